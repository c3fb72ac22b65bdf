"""Static indicators against closed forms, exact Jacobians and finite differences."""

import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball
from gradlens.losses import cross_entropy, dlr, margin
from tests.analytic import Constant, Detached, Plane, Quadratic, Sine, Steps

BALL = Ball(0.05)
W = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
X = torch.tensor([[0.2, 0.4, 0.6, 0.8], [0.9, 0.3, 0.1, 0.5]], dtype=torch.float64)


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """(B, classes, pixels), exact, one sample at a time."""
    rows = [torch.func.jacrev(lambda v: model(v[None])[0])(sample) for sample in x]
    return torch.stack(rows).flatten(2)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_a_linear_model_has_its_closed_form(scale) -> None:
    model, y = Plane(W, 0.5, scale).double(), torch.tensor([0, 0])
    g = gl.gradients(model, X, y, BALL)
    z = scale * (X @ W - 0.5)
    p = torch.as_tensor(expit(z.numpy()))
    for norm, order in (("l1", 1), ("l2", 2), ("linf", torch.inf)):
        length = scale * W.norm(p=order)
        torch.testing.assert_close(g.norm("margin", norm), length.expand(2))
        torch.testing.assert_close(g.norm("cross_entropy", norm), p * length)
    torch.testing.assert_close(g.saturation, p)
    torch.testing.assert_close(g.doubt, p)
    torch.testing.assert_close(g.margin, z)
    torch.testing.assert_close(g.logit_norm, z.abs() / 2**0.5)
    torch.testing.assert_close(g.lipschitz, (scale * W.norm()).expand(2))
    assert g.gradalign.abs().max() < 1e-9
    assert g.norm("dlr").isnan().all()  # two classes
    torch.testing.assert_close(g.linearity[1], torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)


def test_norms_and_jacobian_equal_the_exact_jacobian(cnn, images) -> None:
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    g = gl.gradients(cnn, images, y, BALL, jacobian=True)
    exact = jacobian(cnn, images)
    torch.testing.assert_close(g.jacobian_norm, exact.flatten(1).norm(dim=1))
    for name, loss in (("cross_entropy", cross_entropy), ("margin", margin), ("dlr", dlr)):
        slow = torch.stack([
            torch.func.grad(lambda v, t=t, loss=loss: loss(cnn(v[None]), t[None])[0])(v).flatten()
            for v, t in zip(images, y, strict=True)
        ])  # fmt: skip
        for norm, order in (("l1", 1), ("l2", 2), ("linf", torch.inf)):
            torch.testing.assert_close(g.norm(name, norm), slow.norm(p=order, dim=1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_scale_sweep_is_the_model_with_scaled_logits(scale, cnn, images) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scale * cnn(x)

    y = torch.zeros(len(images), dtype=torch.long)
    swept = gl.gradients(cnn, images, y, BALL, scales=(scale,)).scaled_norm[0]
    torch.testing.assert_close(swept, gl.gradients(Scaled(), images, y, BALL).norm())


def test_drift_tells_confidence_from_geometry() -> None:
    y = torch.tensor([1, 1])
    unsure = gl.gradients(Plane(W, 0.5, 1e-3).double(), X, y, BALL)
    assert abs(unsure.drift - 1) < 0.05  # p stays near 1/2 at every scale: the norm is geometry
    sure = gl.gradients(Plane(W, -9.0, 1.0).double(), X, y, BALL)
    p = [expit(-s * (X @ W + 9).numpy()) for s in (0.1, 10.0)]
    assert sure.drift == pytest.approx(float(p[1].min() / p[0].min()), rel=1e-6)  # torch's median of two is the lower
    assert sure.drift < 1e-6


def test_curvature_of_a_quadratic_is_its_hessian_along_the_step() -> None:
    model = Quadratic(4)

    def identity(logits: Tensor, y: Tensor) -> Tensor:
        return logits[:, 1]

    y = torch.zeros(2, dtype=torch.long)
    g = gl.gradients(model, X, y, BALL)

    # independently: cross-entropy log(1 + e^z) has gradient p(z) (A x + c)
    def grad(x: Tensor) -> Tensor:
        z = model.z(x)
        return z.sigmoid()[:, None] * (x @ model.a + model.c)

    h = 0.1 * BALL.eps * grad(X).sign()
    slow = (grad(X + h) - grad(X)).norm(dim=1) / h.norm(dim=1)
    torch.testing.assert_close(g.curvature, slow.detach())


def test_gradalign_and_noise_of_a_sine_are_those_of_its_cosines() -> None:
    model, y = Sine(40.0), torch.zeros(2, dtype=torch.long)
    generator = torch.Generator().manual_seed(3)
    g = gl.gradients(model, X, y, BALL, draws=5, generator=generator)
    from gradlens.draws import Draws, keys, seed

    draws = Draws.of(seed(torch.Generator().manual_seed(3)), keys(X))
    seen = []
    for _ in range(5):
        x = X + BALL.noise(X, draws)
        z = (40 * x).sin().sum(1) / 40
        seen.append(z.sigmoid()[:, None] * (40 * x).cos())
    z = (40 * X).sin().sum(1) / 40
    here = z.sigmoid()[:, None] * (40 * X).cos()
    cosines = torch.stack([torch.cosine_similarity(here, there) for there in seen])
    torch.testing.assert_close(g.gradalign, 1 - cosines.mean(0))
    stack = torch.stack(seen)
    torch.testing.assert_close(g.signal_to_noise, stack.mean(0).norm(dim=1) / stack.var(0).sum(1).sqrt())


@pytest.mark.parametrize("model", [Steps(), Constant([2.0, 0.0]), Detached(nn.Linear(4, 2))])
def test_no_gradient_is_zero_everywhere_and_undefined_where_it_divides(model) -> None:
    x = X.float()
    g = gl.gradients(model, x, None, BALL)
    assert g.zero_share["float32"] == 1
    assert (g.norm() == 0).all() and g.saturation.isnan().all() and g.gradalign.isnan().all()
    assert g.curvature.isnan().all()


def test_float32_loses_a_gradient_that_float64_keeps() -> None:
    model, y = Plane(W.float(), -14.0, 2.0), torch.tensor([1, 1])
    g = gl.gradients(model, X.float(), y, BALL)
    z = 2 * (X @ W + 14)
    assert (torch.as_tensor(expit(-z.numpy())) < 6e-8).all()  # 1 - p is below what float32 tells from 0
    assert g.zero_share == {"float32": 1.0, "bfloat16": 1.0, "float64": 0.0}
    torch.testing.assert_close(g.doubt.double(), torch.as_tensor(expit(-z.numpy())), rtol=1e-4, atol=0)
    assert (g.norm("margin") > 0).all()


def test_linearity_bounds_the_gap_from_below(cnn, images) -> None:
    y = torch.zeros(len(images), dtype=torch.long)
    g = gl.gradients(cnn, images, y, Ball(0.3), draws=6)
    # the exact largest gap can be no smaller than the largest over a dense random search that includes nothing of ours
    x = images[:1]
    grad = torch.func.grad(lambda v: cross_entropy(cnn(v), y[:1])[0])(x)
    delta = 0.3 * (2 * torch.rand(20000, *x.shape[1:], dtype=torch.float64) - 1).sign()
    with torch.no_grad():
        gaps = cross_entropy(cnn(x + delta), y[:1].expand(20000)) - cross_entropy(cnn(x), y[:1])
    exact = (gaps - (delta * grad).flatten(1).sum(1)).abs().amax()
    assert 0 < g.linearity[0, 0] <= exact * 1.05


@pytest.mark.parametrize(
    ("options", "message"),
    [({"draws": 1}, "draws is 1"), ({"scales": ()}, "scales are"), ({"scales": (0.0,)}, "scales are")],
)
def test_bad_options_are_named(options, message, cnn, images) -> None:
    with pytest.raises(ValueError, match=message):
        gl.gradients(cnn, images, None, BALL, **options)


def test_unknown_norms_are_named(cnn, images) -> None:
    with pytest.raises(ValueError, match="'l3'"):
        gl.gradients(cnn, images, None, BALL).norm("margin", "l3")


def test_the_frame_has_a_row_a_sample(cnn, images) -> None:
    g = gl.gradients(cnn, images, None, BALL)
    frame = g.frame()
    assert len(frame) == len(images)
    assert frame["margin_l1"].to_numpy() == pytest.approx(g.norm("margin", "l1").numpy())
    assert str(g).count("\n") == 0
