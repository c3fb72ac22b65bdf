"""Directions in weight space: Li et al.'s normalisation by hand, seeds, given ones, principal components."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gradlens import Trajectory, spectrum, trajectory, weight_line, weight_plane
from gradlens.landscape import normalize, random_directions
from tests.analytic import Bowl, smooth_cnn, snapshot


@pytest.fixture
def mixed() -> nn.Module:
    """A filter bank with an empty filter, batch norm, a transformer's tensors of 3 dimensions, 0-d and frozen ones."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4), nn.Linear(4, 4))
    model.token = nn.Parameter(torch.randn(1, 2, 3))
    model.gain = nn.Parameter(torch.tensor(2.0))
    model[4].requires_grad_(False)
    with torch.no_grad():
        model[0].weight[1] = 0
    return model


def li(drawn: Tensor, weights: Tensor) -> Tensor:
    """normalize_direction(..., 'filter') of github.com/tomgoldstein/loss-landscape, filter by filter."""
    return torch.stack([d * (w.norm() / (d.norm() + 1e-10)) for d, w in zip(drawn, weights, strict=True)])


def test_filter_normalisation_is_that_of_li_et_al(mixed):
    drawn = {name: torch.randn(p.shape) for name, p in mixed.named_parameters()}
    scaled = normalize(drawn, mixed, "filter")
    assert set(scaled) == {"token", "0.weight", "3.weight", "4.weight"}  # biases and batch norm stay
    for name, direction in scaled.items():
        torch.testing.assert_close(direction, li(drawn[name], mixed.get_parameter(name).detach()))
    assert not scaled["0.weight"][1].any() and scaled["0.weight"][0].any()


def test_layer_and_model_normalisation(mixed):
    drawn = {name: torch.randn(p.shape) for name, p in mixed.named_parameters()}
    for name, direction in normalize(drawn, mixed, "layer").items():
        expected = drawn[name] * mixed.get_parameter(name).detach().norm() / drawn[name].norm()
        torch.testing.assert_close(direction, expected)
    scaled = normalize(drawn, mixed, "model")
    own = torch.cat([mixed.get_parameter(name).detach().flatten() for name in scaled]).norm()
    raw = torch.cat([drawn[name].flatten() for name in scaled]).norm()
    for name, direction in scaled.items():
        torch.testing.assert_close(direction, drawn[name] * own / raw)


def test_random_directions_are_independent_gaussians_of_the_model_s_own_filter_norms():
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 50))
    first, second = (
        d["1.weight"] for d in random_directions(model, "filter", generator=torch.Generator().manual_seed(0))
    )
    weight = model[1].weight.detach()
    for direction in (first, second):
        torch.testing.assert_close(direction.norm(dim=1), weight.norm(dim=1))
        z = direction / direction.norm(dim=1, keepdim=True) * 20  # a Gaussian of 400 entries is 20 long
        assert abs(z.mean()) < 0.03 and abs((z**4).mean() - 3) < 0.2
    cosine = torch.cosine_similarity(first.flatten(), second.flatten(), 0)
    assert 0 < abs(cosine) < 0.03  # independent, not made orthogonal


def test_a_seed_means_the_same_directions_in_every_precision_and_whatever_is_frozen():
    def drawn(model: nn.Module, seed: int = 5) -> tuple[dict[str, Tensor], ...]:
        return random_directions(model, "layer", generator=torch.Generator().manual_seed(seed))

    plain, half, thawed = smooth_cnn().float(), smooth_cnn().half(), smooth_cnn().float()
    thawed[0].weight.requires_grad_(False)
    assert "0.weight" not in drawn(thawed)[0] and "2.weight" in drawn(thawed)[0]
    for direction, other, third in zip(drawn(plain), drawn(half), drawn(thawed), strict=True):
        for name, d in direction.items():
            torch.testing.assert_close(d, other[name], rtol=2e-3, atol=0)
            assert name not in third or torch.equal(d, third[name])
    assert not torch.equal(drawn(plain)[0]["0.weight"], drawn(plain, 6)[0]["0.weight"])


def test_directions_serve_another_model_as_they_are_or_normalised_to_it(cnn, images):
    other = smooth_cnn()
    with torch.no_grad():
        other[0].weight *= 3
    first = weight_plane(cnn, images, [0] * 6, points=3)
    again = weight_plane(other, images, [0] * 6, points=3, directions=first)
    assert again.axes == first.axes and again.meaning == first.meaning
    for a, b in zip(first.directions, again.directions, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        fitted = normalize(a, other, "filter")
        torch.testing.assert_close(fitted["0.weight"], 3 * a["0.weight"])
        torch.testing.assert_close(fitted["2.weight"], a["2.weight"])


def test_given_directions_in_every_form_are_one(images):
    model = Bowl()
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    named = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    tensors = tuple(named.values())
    flat = torch.cat([t.flatten() for t in tensors])
    full = [named.get(name, torch.zeros_like(p)) for name, p in model.named_parameters()]
    values = [
        weight_line(model, images, [0] * 6, directions=given, points=5, span=0.5).values
        for given in ((named,), named, (tensors,), (flat,), flat, (full,), (named, named), lambda model, x, y: (flat,))
    ]
    assert values[0].std() > 0.01
    for value in values:
        assert torch.equal(value, values[0])


def test_a_function_for_directions_may_take_gradients(cnn, images):
    """What an eigenvector routine needs: the parameters as the caller has them."""

    def gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple:
        loss = nn.functional.cross_entropy(model(x), y)
        return (torch.autograd.grad(loss, list(model.parameters())),)

    y = torch.zeros(6, dtype=torch.long)
    result = weight_line(cnn, images, y, directions=gradient, points=3, span=1e-4, metrics=("loss",))
    slope = (result.values[0, 2, 0] - result.values[0, 0, 0]) / 2e-4
    torch.testing.assert_close(slope.item(), result.lengths[0] ** 2, rtol=1e-6, atol=0)


def test_along_an_eigenvector_the_loss_curves_by_its_eigenvalue(cnn, images):
    y = torch.arange(6) % 4
    found = spectrum(cnn, images, y, k=2, steps=60)
    plane = weight_plane(cnn, images, y, directions=found, points=3, span=1e-3, metrics=("loss",))
    loss = plane.of("loss")
    bends = [loss[0, 1] + loss[2, 1] - 2 * loss[1, 1], loss[1, 0] + loss[1, 2] - 2 * loss[1, 1]]
    torch.testing.assert_close(torch.stack(bends) / 1e-6, found.eigenvalues, rtol=1e-3, atol=1e-6)
    assert plane.axes[0] == f"eigenvector of the Hessian at {found.eigenvalues[0]:.3g}"
    with pytest.raises(
        ValueError, match=r"directions is a Spectrum of the weights with k = 1, expected .* k = 2 or more"
    ):
        weight_plane(cnn, images, y, directions=spectrum(cnn, images, y, k=1), points=3)
    with pytest.raises(ValueError, match="directions is a Spectrum of the inputs"):
        weight_plane(cnn, images, y, directions=spectrum(cnn, images, y, k=2, of="inputs"), points=3)


def test_hessian_directions_are_the_spectrum_s_eigenvectors(cnn, images):
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    loader = iter([(images[:4], y[:4]), (images[4:], y[4:])])  # can be read once
    plane = weight_plane(cnn, loader, directions="hessian", span=0.01, points=3)
    found = spectrum(cnn, images, y, k=2)
    for direction, vector in zip(plane.directions, found.vectors, strict=True):
        overlap = sum((direction[name] * vector[name]).sum() for name in vector)
        assert abs(float(overlap)) == pytest.approx(1, abs=1e-6)
    assert plane.angle == pytest.approx(90)
    assert plane.axes[0].startswith("eigenvector of the Hessian at ")


def test_an_axis_says_that_its_eigenvector_has_not_converged(cnn, images):
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    rough = spectrum(cnn, images, y, k=2, steps=3, probes=2, depth=2, precision=1e3)
    assert not rough.converged.any()
    plane = weight_plane(cnn, images, y, directions=rough, span=0.01, points=3)
    assert all(axis.endswith("(not converged)") for axis in plane.axes)


def test_what_cannot_be_normalised_is_refused(cnn):
    with pytest.raises(ValueError, match=r"has no weights that filter normalisation moves"):
        random_directions(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"direction has shape \(2,\) .* for '0.weight', expected"):
        normalize({"0.weight": torch.ones(2)}, cnn)


@pytest.fixture
def run() -> list[nn.Module]:
    """Six checkpoints of a small network: a curved path with noise."""
    generator = torch.Generator().manual_seed(2)
    models = []
    for i in range(6):
        model = smooth_cnn()
        with torch.no_grad():
            stream = torch.Generator().manual_seed(1)
            for p in model.parameters():
                a, b = (torch.randn(p.shape, generator=stream, dtype=torch.float64) for _ in range(2))
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.add_((5 - i) * a / 10 + (5 - i) ** 2 * b / 40 + 0.01 * noise)
        models.append(model)
    return models


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()


def test_principal_components_are_those_of_numpy(run):
    states = [copy.deepcopy(model.state_dict()) for model in run]
    before = snapshot(run[-1])
    result = trajectory(run[-1], states)
    points = np.stack([flat(model) for model in run])
    _, sizes, rows = np.linalg.svd(points - points.mean(0), full_matrices=False)
    offsets = points - points[-1]
    places = offsets @ rows[:2].T
    signs = np.sign(places[np.abs(places).argmax(0), [0, 1]])
    np.testing.assert_allclose(result.places.numpy(), places * signs, atol=1e-9)
    np.testing.assert_allclose(result.explained.numpy(), sizes[:2] ** 2 / (sizes**2).sum(), atol=1e-12)
    off = offsets - places @ rows[:2]
    np.testing.assert_allclose(result.residual.numpy(), np.linalg.norm(off, axis=1), atol=1e-6)
    for direction, row in zip(result.directions, rows[:2] * signs[:, None], strict=True):
        ours = torch.cat([direction[name].flatten() for name, _ in run[-1].named_parameters()])
        np.testing.assert_allclose(ours.numpy(), row, atol=1e-9)
    assert result.residual.max() > 0.01
    assert snapshot(run[-1]) == before
    assert torch.equal(trajectory(run[-1], run).places, result.places)


def test_a_trajectory_as_a_table_and_in_one_line(run):
    result = trajectory(run[-1], run)
    table = result.frame()
    assert list(table.columns) == ["alpha", "beta", "residual"] and len(table) == 6
    assert table["beta"].tolist() == result.places[:, 1].tolist()
    assert str(result).startswith("6 checkpoints: two components explain 9") and "\n" not in str(result)
    assert isinstance(result, Trajectory) and result.made.call == "trajectory(checkpoints=6)"


def test_checkpoints_that_make_no_plane_are_refused(run):
    state = run[0].state_dict()
    for checkpoints, message in (
        (run[:2], "checkpoints holds 2, expected at least three"),
        ([run[0]] * 3, "checkpoints lie on a straight line or on one point"),
        ([run[0], run[1], {}], r"checkpoints\[2\] has no '0.weight', expected a state dict"),
        ([run[0], run[1], state | {"0.bias": torch.ones(9)}], r"checkpoints\[2\] has shape \(9,\) for '0.bias', exp"),
        ([run[0], run[1], state | {"0.bias": torch.full((4,), torch.nan)}], r"checkpoints\[2\] holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            trajectory(run[-1], checkpoints)
    middle = {name: (state[name] + t) / 2 for name, t in run[1].state_dict().items()}
    with pytest.raises(ValueError, match="checkpoints lie on a straight line"):
        trajectory(run[0], [run[0], middle, run[1]])


def test_a_folder_of_checkpoints_is_taken_in_the_order_of_its_numbers(run, tmp_path):
    names = ["epoch2.pt", "epoch9.safetensors", "epoch10.pth", "epoch20.safetensors", "epoch100.pt", "last.safetensors"]
    for name, model in zip(names, run, strict=True):
        state = model.state_dict()
        (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    (tmp_path / "notes.txt").write_text("not weights")
    assert torch.equal(trajectory(run[-1], tmp_path).places, trajectory(run[-1], run).places)
    assert torch.equal(trajectory(run[-1], str(tmp_path)).places, trajectory(run[-1], run).places)


def test_a_folder_with_anything_but_weights_is_refused_by_the_file_s_name(run, tmp_path):
    for i, model in enumerate(run):
        save_file(model.state_dict(), tmp_path / f"{i}.safetensors")
    torch.save({"model": run[0]}, tmp_path / "7.pt")  # a whole module: a pickle that could execute code
    with pytest.raises(ValueError, match=r"weights '.*7\.pt' are refused"):
        trajectory(run[-1], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds 0, expected at least three"):
        trajectory(run[-1], tmp_path / "empty")
