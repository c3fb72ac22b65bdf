"""What the trace says beyond size and angle of the gradient, against slow versions."""

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens.losses import cross_entropy, margin
from tests.analytic import Constant, Plane, Random, Steps

BALL = gl.Ball(0.08)
W = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss=cross_entropy) -> Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(loss(model(x), y).sum(), x)[0]


def path(model: nn.Module, x: Tensor, y: Tensor, steps: int, size: float, **options) -> list[Tensor]:
    """Every point of a run, each found by a run that ends there."""
    return [
        x,
        *(gl.pgd(model, x, y, BALL, steps=k, step_size=size, **options).adversarial for k in range(1, steps + 1)),
    ]


@pytest.fixture
def labels(images: Tensor) -> Tensor:
    return torch.arange(len(images)) % 4


def test_norms_distance_and_class_are_those_at_each_point(cnn, images, labels) -> None:
    trace = gl.pgd(cnn, images, labels, BALL, steps=4, step_size=0.03)
    for step, point in enumerate(path(cnn, images, labels, 4, 0.03)):
        grad = gradient(cnn, point, labels).flatten(1)
        torch.testing.assert_close(trace.grad_norm_l1[step], grad.norm(p=1, dim=1))
        torch.testing.assert_close(trace.grad_norm[step], grad.norm(p=2, dim=1))
        torch.testing.assert_close(trace.grad_norm_linf[step], grad.norm(p=torch.inf, dim=1))
        torch.testing.assert_close(trace.distance[step], (point - images).flatten(1).norm(p=torch.inf, dim=1))
        assert torch.equal(trace.predicted[step], cnn(point).argmax(1))
    torch.testing.assert_close(trace.gradient, gradient(cnn, images, labels))


def test_dispersions_are_those_of_the_explicit_directions(cnn, images, labels) -> None:
    trace = gl.pgd(cnn, images, labels, BALL, steps=3, step_size=0.03)
    grads = torch.stack([gradient(cnn, p, labels).flatten(1) for p in path(cnn, images, labels, 3, 0.03)])
    units = grads / grads.norm(dim=2, keepdim=True)
    torch.testing.assert_close(trace.path_dispersion, 1 - units.mean(0).norm(dim=1))
    for step, rows in enumerate(units):
        mean = rows.mean(0)
        slow = 1 - torch.cosine_similarity(rows, mean[None]).mean()
        torch.testing.assert_close(trace.batch_dispersion[step], slow)


def test_a_linear_model_has_no_dispersion_and_a_vanished_gradient_no_direction() -> None:
    x = torch.rand(3, 4, dtype=torch.float64)
    straight = gl.pgd(Plane(W).double(), x, None, BALL, steps=3)
    assert straight.path_dispersion.abs().max() < 1e-12
    assert not straight.vanished.any()
    flat = gl.pgd(Steps(), x, None, BALL, steps=3)
    assert flat.vanished.all() and flat.path_dispersion.isnan().all() and flat.batch_dispersion.isnan().all()


def test_restarts_agree_on_a_linear_model_and_their_cosine_is_counted(cnn, images, labels) -> None:
    x = torch.full((3, 4), 0.5, dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.long)
    sure = gl.pgd(Plane(W).double(), x, y, BALL, steps=20, restarts=3, loss=margin)
    torch.testing.assert_close(sure.restart_agreement, torch.ones(3, dtype=torch.float64))
    assert gl.pgd(cnn, images, labels, BALL).restart_agreement.isnan().all()
    assert (sure.forwards == 3 * 21).all() and (sure.backwards == 3 * 21).all()


def test_passes_are_counted_as_the_model_sees_them(images, labels, cnn) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    with cnn.register_forward_hook(count):
        trace = gl.pgd(cnn, images, labels, BALL, steps=5, restarts=2, samples=3)
    # the door looks once at a model that may be random; the rest are the attack's
    assert (trace.forwards == calls - 1).all()


def test_momentum_is_mi_fgsm(cnn, images, labels) -> None:
    trace = gl.pgd(cnn, images, labels, BALL, steps=5, step_size=0.02, momentum=0.9)
    point, velocity = images, torch.zeros_like(images)
    for _ in range(5):
        grad = gradient(cnn, point, labels)
        velocity = 0.9 * velocity + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        point = images + (point + 0.02 * velocity.sign() - images).clamp(-BALL.eps, BALL.eps)
        point = point.clamp(0, 1)
    torch.testing.assert_close(trace.adversarial, point)


def test_momentum_changes_the_path(cnn, images, labels) -> None:
    plain, heavy = (gl.pgd(cnn, images, labels, gl.Ball(0.5), steps=20, momentum=m).adversarial for m in (0.0, 0.9))
    assert not torch.equal(plain, heavy)


def test_a_targeted_attack_goes_where_it_is_told() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double()
    x = torch.rand(8, 16, dtype=torch.float64)
    for wanted in range(4):
        targets = torch.full((8,), wanted)
        trace = gl.pgd(model, x, None, gl.Ball(1.0), steps=40, targets=targets, loss=margin)
        assert torch.equal(trace.reached, trace.predicted[-1] == wanted)
        assert trace.reached.double().mean() > 0.9  # the whole box is free to search
        assert (trace.loss[-1] >= trace.loss[0]).all()


def test_the_targeted_loss_is_the_negative_of_the_loss_towards_the_target(cnn, images, labels) -> None:
    targets = (labels + 1) % 4
    trace = gl.pgd(cnn, images, labels, BALL, steps=2, targets=targets)
    torch.testing.assert_close(trace.loss[0], -cross_entropy(cnn(images), targets))


def test_eot_steadies_a_random_model() -> None:
    """Averaging k gradients of a linear model under input noise on a kink brings the cosine to the true one up."""
    x = torch.full((4, 4), 0.5, dtype=torch.float64)
    y = torch.zeros(4, dtype=torch.long)

    class Kink(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = (x - 0.5).abs().sum(1) + 0.1 * x.sum(1)
            return torch.stack([torch.zeros_like(z), z], 1)

    one, many = (gl.pgd(Random(Kink(), 0.1, seed=0), x, y, BALL, steps=10, samples=k, loss=margin) for k in (2, 400))
    assert many.cosine.mean() > one.cosine.mean() + 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": -1.0}, "momentum is -1"),
        ({"targets": [0, 1]}, "targets has 2 entries"),
        ({"targets": [0, 1, 2, 3, 4, 9]}, r"targets span 0\.\.9"),
        ({"targets": torch.full((6,), 0.5)}, "targets holds torch.float32"),
        ({"start": torch.zeros(7, 2, 5, 5).double()}, "start has 7 entries"),
        ({"samples": 0}, "samples is 0"),
        ({"step_size": 0.0}, "step_size is 0"),
    ],
)
def test_bad_knobs_are_named(options, message, cnn, images, labels) -> None:
    with pytest.raises(ValueError, match=message):
        gl.pgd(cnn, images, labels, BALL, **options)


def test_a_constant_model_is_all_undefined() -> None:
    trace = gl.pgd(Constant([2.0, 0.0]), torch.rand(3, 4), None, BALL, steps=2)
    assert (trace.undefined == 1).all() and trace.vanished.all()


def test_restarts_with_targets_keep_the_run_in_which_the_target_led_by_most(cnn, images):
    ball, targets = gl.Ball(0.3), torch.tensor([1, 2, 3, 0, 1, 2])
    y = torch.zeros(6, dtype=torch.long).where(targets != 0, torch.ones(6, dtype=torch.long))
    options = {"steps": 3, "targets": targets, "step_size": 0.05}
    several = gl.pgd(cnn, images, y, ball, restarts=6, generator=torch.Generator().manual_seed(3), **options)
    alone = gl.pgd(cnn, images, y, ball, **options)
    z = cnn(several.best).detach()
    others = z.scatter(1, targets[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(several.lead, z.gather(1, targets[:, None])[:, 0] - others)
    assert (several.lead >= alone.lead).all() and (several.lead > alone.lead).any()
    assert (several.reached | ~alone.reached).all()
