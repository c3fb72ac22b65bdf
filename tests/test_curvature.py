"""The spectrum against exact Hessians in float64, known spectra, and other packages."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

import gradlens as gl
from gradlens import losses, reference
from tests.analytic import smooth_cnn


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1])


def exact(model: nn.Module, x: Tensor, y: Tensor, loss=losses.cross_entropy, names=None) -> Tensor:
    """The full Hessian of the mean loss in the named parameters, by torch.autograd.functional."""
    weights = {name: p.detach() for name, p in model.named_parameters() if names is None or name in names}
    sizes = [w.numel() for w in weights.values()]

    def mean_loss(flat: Tensor) -> Tensor:
        pieces = zip(weights.items(), flat.split(sizes), strict=True)
        state = {name: piece.view(w.shape) for (name, w), piece in pieces}
        return loss(functional_call(model, state, (x,)), y).mean()

    return torch.autograd.functional.hessian(mean_loss, torch.cat([w.flatten() for w in weights.values()]))


def exact_inputs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The full Hessian of each sample's cross-entropy in its own pixels."""

    def each(image: Tensor, label: Tensor) -> Tensor:
        def loss(v: Tensor) -> Tensor:
            return F.cross_entropy(model(v.view(image.shape)[None]), label[None])

        return torch.autograd.functional.hessian(loss, image.flatten())

    return torch.stack([each(image, label) for image, label in zip(x, y, strict=True)])


def flat(vector: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in vector.values()])


EXPECTED_REWARD = lambda logits, y: 1 - logits.softmax(1).gather(1, y[:, None]).squeeze(1)  # noqa: E731


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, EXPECTED_REWARD])
def test_ends_trace_and_density_are_those_of_the_full_hessian(loss, cnn, images, y, generator):
    h = exact(cnn, images, y, loss)
    values = torch.linalg.eigvalsh(h)
    s = gl.spectrum(cnn, images, y, loss=loss, generator=generator)
    assert values[-1] > 0.1 and values[0] < -0.01
    torch.testing.assert_close(s.eigenvalues, values.flip(0)[:5], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(s.bottom, values[:5], rtol=1e-6, atol=1e-6)
    assert s.converged.all() and s.bottom_converged.all()
    assert abs(s.trace - h.trace()) < 1e-6
    assert wasserstein_distance(s.ritz, values, s.weights) < 1e-3
    assert s.size == len(h) == 292
    assert s.names == tuple(name for name, _ in cnn.named_parameters())


def test_few_steps_are_right_within_what_they_say(cnn, images, y):
    h = exact(cnn, images, y)
    values = torch.linalg.eigvalsh(h)
    ours = [
        gl.spectrum(cnn, images, y, steps=40, precision=0.02, generator=torch.Generator().manual_seed(seed))
        for seed in range(12)
    ]
    for s in ours:
        assert s.converged.all()
        torch.testing.assert_close(s.eigenvalues, values.flip(0)[:5], rtol=1e-6, atol=1e-6)
        assert wasserstein_distance(s.ritz, values, s.weights) < 2e-3 * (values[-1] - values[0])
        assert s.weights.sum() == pytest.approx(1)
        assert 0 < s.trace_error <= 0.02 * s.trace
    gaps = torch.stack([(s.trace - h.trace()) / s.trace_error for s in ours])
    assert gaps.abs().max() < 5
    assert 0.3 < gaps.square().mean().sqrt() < 2  # the stated error is neither boastful nor timid


def test_each_end_has_its_residual_and_its_eigenvectors(cnn, images, y, generator):
    h = exact(cnn, images, y)
    s = gl.spectrum(cnn, images, y, k=4, steps=14, generator=generator)
    pairs = [
        *zip(s.vectors, s.eigenvalues, s.residuals, s.converged, strict=True),
        *zip(s.bottom_vectors, s.bottom, s.bottom_residuals, s.bottom_converged, strict=True),
    ]
    for vector, value, residual, converged in pairs:
        assert {name: t.shape for name, t in vector.items()} == {n: p.shape for n, p in cnn.named_parameters()}
        v = flat(vector)
        assert v.norm() == pytest.approx(1)
        assert (h @ v - value * v).norm() == pytest.approx(residual.item(), abs=1e-9)
        assert bool(converged) <= bool(residual <= 1e-3 * torch.linalg.eigvalsh(h).abs().max())
    assert s.converged[0] and not s.converged.all()  # both cases are met


class Bowl(nn.Module):
    """Logits (w.D w / 2, 0): with the loss below, a quadratic in the weights whose Hessian is D."""

    def __init__(self, diagonal: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(len(diagonal), dtype=torch.float64))
        self.register_buffer("diagonal", diagonal.double())

    def forward(self, x: Tensor) -> Tensor:
        height = (self.diagonal * self.w**2).sum() / 2
        return torch.stack([height, height * 0], 0).expand(len(x), -1)


def height(logits: Tensor, y: Tensor) -> Tensor:
    return logits[:, 0]


@pytest.mark.parametrize("diagonal", [torch.linspace(-1, 3, 30), torch.tensor([4.0, 4.0, 4.0, 1.0, 0.0, 0.0, -2.0])])
def test_a_known_spectrum_is_found_repeated_eigenvalues_too(diagonal):
    s = gl.spectrum(Bowl(diagonal), torch.rand(3, 2), [0, 0, 0], loss=height, k=3)
    ordered = diagonal.double().sort().values
    torch.testing.assert_close(s.eigenvalues, ordered.flip(0)[:3])
    torch.testing.assert_close(s.bottom, ordered[:3], atol=1e-9, rtol=0)
    assert s.trace == pytest.approx(ordered.sum().item())
    assert wasserstein_distance(s.ritz, ordered, s.weights) < 1e-9


@pytest.mark.parametrize("sign", [1, -1])
def test_a_repeated_eigenvalue_that_was_missed_is_not_called_converged(sign):
    """Too few steps to see the second 4: the second value is 3, which is an eigenvalue, and not the second one."""
    diagonal = sign * torch.cat([torch.tensor([4.0, 4.0, 3.0, 2.0]), torch.linspace(-0.1, 0.1, 600)])
    s = gl.spectrum(Bowl(diagonal), torch.rand(2, 2), [0, 0], loss=height, k=2, steps=9)
    values, residuals, converged = (
        (s.eigenvalues, s.residuals, s.converged) if sign > 0 else (s.bottom, s.bottom_residuals, s.bottom_converged)
    )
    assert values.tolist() == pytest.approx([4 * sign, 3 * sign], abs=1e-6)
    assert (residuals < 1e-3).all()
    assert converged.tolist() == [True, False]


def test_a_flat_loss_has_no_curvature_and_no_sharpest_direction():
    s = gl.spectrum(Bowl(torch.zeros(6)), torch.rand(2, 2), [0, 0], loss=height, k=2)
    assert s.eigenvalues.tolist() == s.bottom.tolist() == [0, 0]
    assert s.trace == 0 and s.trace_error == 0
    assert math.isnan(s.basin_width()) and math.isnan(s.sharpness) and s.rise.isnan().all()


def test_sharpness_and_basin_width_of_a_quadratic_are_known():
    diagonal = torch.tensor([3.0, 1.0, 0.5])
    model = Bowl(diagonal)
    s = gl.spectrum(model, torch.rand(2, 2), [0, 0], loss=height, k=1)
    w, d = model.w.detach(), diagonal.double()
    direction = d * w / (d * w).norm()
    for radius, rise in zip(s.radii, s.rise, strict=True):
        there = w + radius * direction
        assert rise == pytest.approx(((d * there**2).sum() / 2 - (d * w**2).sum() / 2).item())
    assert s.gradient_norm == pytest.approx((d * w).norm().item())
    assert s.loss == pytest.approx((d * w**2).sum().item() / 2)
    assert s.radii[s.rise == s.sharpness].tolist() == [0.05]
    width = s.basin_width(0.2)
    assert 3 * width**2 / 2 == pytest.approx(0.2)  # what the loss rises that far along the first axis, from the bottom


def test_a_density_integrates_to_one_and_stands_at_the_eigenvalues():
    s = gl.spectrum(Bowl(torch.tensor([4.0, 1.0, 1.0, -2.0])), torch.rand(2, 2), [0, 0], loss=height, k=1)
    grid = torch.linspace(-5, 7, 4001)
    density = s.density(grid, 0.1)
    assert torch.trapezoid(density, grid.double()) == pytest.approx(1)
    peak = 1 / (0.1 * math.sqrt(2 * math.pi))
    at = s.density(torch.tensor([4.0, 1.0, -2.0, 3.0]), 0.1)
    torch.testing.assert_close(at, torch.tensor([peak / 4, peak / 2, peak / 4, 0]).double(), atol=1e-6, rtol=1e-5)


def test_input_hessians_are_the_exact_ones_sample_by_sample(cnn, images, y):
    h = exact_inputs(cnn, images, y)
    values = torch.linalg.eigvalsh(h)
    s = gl.spectrum(cnn, images, y, of="inputs", k=3)
    torch.testing.assert_close(s.eigenvalues, values.flip(1)[:, :3], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(s.bottom, values[:, :3], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(s.trace, h.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-6, atol=1e-8)
    assert s.converged.all() and s.size == 50 and s.names == ("x",)
    for values_of, ends in ((s.eigenvalues, s.vectors), (s.bottom, s.bottom_vectors)):
        for rank, vector in enumerate(ends):
            assert vector.shape == images.shape
            v = vector.flatten(1)
            torch.testing.assert_close((h @ v[..., None])[..., 0], values_of[:, rank, None] * v, rtol=0, atol=1e-7)
    torch.testing.assert_close(s.loss, F.cross_entropy(cnn(images), y, reduction="none"))
    grid = torch.linspace(-3, 3, 2001)
    torch.testing.assert_close(torch.trapezoid(s.density(grid, 0.05), grid.double(), dim=1), torch.ones(6).double())


def test_few_steps_on_inputs_give_the_largest_and_an_honest_trace(cnn, images, y):
    h = exact_inputs(cnn, images, y)
    s = gl.spectrum(cnn, images, y, of="inputs", k=1, steps=12, probes=8)
    torch.testing.assert_close(s.eigenvalues[:, 0], torch.linalg.eigvalsh(h)[:, -1], rtol=1e-4, atol=0)
    gaps = (s.trace - h.diagonal(dim1=1, dim2=2).sum(1)) / s.trace_error
    assert gaps.abs().max() < 5
    assert (s.trace_error > 0).all()


def test_eigenvectors_of_the_input_are_directions_of_an_input_plane(cnn, images, y):
    s = gl.spectrum(cnn, images, y, of="inputs", k=2)
    plane = gl.input_plane(cnn, images, y, gl.Ball(0.01, "l2"), directions=s.vectors, points=3, span=0.1)
    step = 0.01 * 0.1
    second = (plane.loss[2, 1] - 2 * plane.loss[1, 1] + plane.loss[0, 1]) / step**2
    torch.testing.assert_close(second, s.eigenvalues[:, 0], rtol=1e-3, atol=1e-4)


def test_pyhessian_and_curvlinops_agree(cnn, images, y, generator):
    ours = gl.spectrum(cnn, images, y, k=3, steps=40, generator=generator)
    theirs = reference.spectrum(cnn, images, y, ours, batch=2, tolerance=1e-5, probes=100)
    torch.testing.assert_close(theirs.eigenvalues, ours.eigenvalues, rtol=0.02, atol=0)
    assert abs(theirs.trace - ours.trace) < 4 * theirs.trace_error
    for a, b in zip(theirs.vectors, ours.vectors, strict=True):
        assert abs(flat(a) @ flat(b)) > 0.99
    v = flat(ours.vectors[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's forward mode, which curvlinops takes, uses torch.jit
        from curvlinops import HessianLinearOperator

        data = [(images[:4], y[:4]), (images[4:], y[4:])]
        product = HessianLinearOperator(cnn, nn.CrossEntropyLoss(), list(cnn.parameters()), data) @ v
    torch.testing.assert_close(product, ours.eigenvalues[0] * v, rtol=0, atol=1e-6)


@pytest.mark.parametrize("of", ["weights", "inputs"])
def test_micro_batches_and_loaders_change_nothing(of, images, y, monkeypatch):
    model = smooth_cnn()
    loader = DataLoader(TensorDataset(images, y), batch_size=4)

    def run(x, y, **options):
        seeded = torch.Generator().manual_seed(3)
        return gl.spectrum(model, x, y, of=of, k=2, steps=20, generator=seeded, **options)

    whole = run(images, y)
    parts = {"batch": run(images, y, batch=4), "one": run(images, y, batch=1), "loader": run(loader, None)}
    monkeypatch.setattr("gradlens.curvature.products.GRAPHS", 0)  # nothing is kept
    parts["rebuilt"] = run(images, y, batch=2)
    for name, part in parts.items():
        for field in ("eigenvalues", "bottom", "trace", "trace_error", "loss", "gradient_norm", "rise"):
            torch.testing.assert_close(
                getattr(part, field), getattr(whole, field), rtol=1e-5, atol=1e-7, msg=f"{name} {field}"
            )
        assert part.made.data == whole.made.data
        assert part.ritz.shape == whole.ritz.shape


def test_graphs_are_kept_up_to_a_budget_and_serve_several_vectors(images, y, monkeypatch):
    built = []
    build = gl.curvature.products._Graph.__init__
    monkeypatch.setattr(gl.curvature.products._Graph, "__init__", lambda *a: (built.append(1), build(*a))[1])
    model = smooth_cnn()
    gl.spectrum(model, images, y, batch=2, steps=10, depth=5, precision=9.0)
    assert len(built) == 1 + 3  # one to weigh, three micro-batches
    monkeypatch.setattr("gradlens.curvature.products.GRAPHS", 0)
    built.clear()
    s = gl.spectrum(model, images, y, batch=2, steps=10, depth=5, precision=9.0)
    assert s.products == {"eigenvalues": 10, "density": 20, "trace": 4}
    assert len(built) == 1 + 3 * (10 + 5 + 1 + 1)  # a block of four probes costs one pass; one is for the gradient


def test_it_prints_and_tabulates(cnn, images, y, generator):
    s = gl.spectrum(cnn, images, y, k=3, generator=generator)
    assert "Hutch++" in str(s) and "\n" not in str(s) and "292 numbers" in str(s)
    table = s.frame()
    assert table.groupby("end").size().to_dict() == {"bottom": 3, "top": 3}
    np.testing.assert_allclose(table.query("end == 'top'")["eigenvalue"], s.eigenvalues)
    inputs = gl.spectrum(cnn, images, y, of="inputs", k=2)
    table = inputs.frame()
    assert len(table) == 6 * 2 * 2
    row = table.query("end == 'bottom' and sample == 4 and rank == 1").iloc[0]
    assert row["eigenvalue"] == inputs.bottom[4, 1].item()
    assert "spectrum(of='inputs', k=2" in inputs.made.call
    assert dataclasses.is_dataclass(inputs)


def test_a_trace_that_misses_its_precision_says_so(cnn, images, monkeypatch):
    y = [0, 1, 2, 3, 0, 1]
    reached = gl.spectrum(cnn, images, y, steps=5, precision=0.5)
    assert reached.is_trace_exact and "asked" not in str(reached)
    monkeypatch.setattr("gradlens.curvature.estimates.MOST", 8)
    missed = gl.spectrum(cnn, images, y, steps=5, precision=1e-9)
    assert not missed.is_trace_exact
    assert float(missed.trace_error) > 1e-9 * float(missed.trace.abs())
    assert "(1e-09 of it was asked)" in str(missed)
    whole = gl.spectrum(cnn, images, y, precision=1e-9)  # few enough weights that Lanczos sees them all
    assert whole.is_trace_exact
    assert gl.spectrum(cnn, images, y, of="inputs").is_trace_exact
