"""Landscapes in weight space: closed forms at every coordinate, the model put back, policies, files, bad input."""

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

from gradlens import Ball, WeightSurface, interpolate, pgd, spectrum, trajectory, weight_line, weight_plane
from gradlens.landscape import ledger, weight_selftest
from tests.analytic import Bowl, Counting, InPlace, smooth_cnn, snapshot

every_slice = pytest.mark.parametrize("measure", [weight_line, weight_plane])


@pytest.fixture
def bowl() -> Bowl:
    return Bowl()


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1])


def normed(*, seed: int = 1) -> nn.Module:
    """Convolution, batch norm with statistics of its own, dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 4)
        ).double()
        with torch.no_grad():
            model[1].running_mean.normal_()
            model[1].running_var.uniform_(0.5, 2)
    return model.eval()


def moved(model: nn.Module, surface: WeightSurface, row: int, column: int) -> nn.Module:
    """A copy of `model` at a cell's coordinates, with the result's own directions: the slow and obvious way."""
    twin = copy.deepcopy(model).eval()
    tensors = dict((*twin.named_parameters(), *twin.named_buffers()))
    with torch.no_grad():
        for share, direction in zip((surface.alpha[row], surface.beta[column]), surface.directions, strict=False):
            for name, step in direction.items():
                tensors[name] += share * step
    return twin


def cells(surface: WeightSurface) -> itertools.product:
    return itertools.product(range(len(surface.alpha)), range(len(surface.beta)))


def margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(x)[:, 1]


@every_slice
@pytest.mark.parametrize("directions", ["filter", "layer", "model"])
def test_each_cell_holds_the_quadratic_at_exactly_its_own_coordinates(measure, directions, bowl, images, generator):
    """With label 0 the margin is q(weights) + mean pixel, the loss log(1 + e^margin), the reward 1 - sigmoid."""
    y = torch.zeros(6, dtype=torch.long)
    result = measure(
        bowl, images, y, directions=directions, span=1.5, points=5, metrics=("loss", "error", "reward", margin),
        generator=generator,
    )  # fmt: skip
    assert result.values.shape == (4, 5, 5 if measure is weight_plane else 1)
    torch.testing.assert_close(result.alpha, torch.linspace(-1.5, 1.5, 5, dtype=torch.float64))
    for row, column in cells(result):
        weights = [w.detach().clone() for w in bowl.weights()]
        names = ("matrix", "filters", "bias", "gain", "fixed", "tied.weight", "tied.weight")
        for share, direction in zip((result.alpha[row], result.beta[column]), result.directions, strict=False):
            named = {("tied.weight" if name == "filters_twin" else name): d for name, d in direction.items()}
            weights = [w + share * named.get(name, torch.zeros(())) for w, name in zip(weights, names, strict=True)]
        z = bowl.at(weights).detach() + images.flatten(1).mean(1)
        expected = torch.stack([F.softplus(z).mean(), (z > 0).double().mean(), (1 - z.sigmoid()).mean(), z.mean()])
        torch.testing.assert_close(result.values[:, row, column], expected, rtol=0, atol=1e-9)
    assert result.values[3].std() > 0.1
    assert result.centre_error.max() < 1e-12
    torch.testing.assert_close(result.plain, result.values[:, *result.centre])


def test_frozen_and_flat_parameters_stay_unused_and_tied_ones_move_once(bowl, images, generator):
    """named_parameters gives a tied parameter one name."""
    result = weight_plane(bowl, images, [0] * 6, points=3, generator=generator)
    assert [set(d) for d in result.directions] == [{"matrix", "filters", "unused", "filters_twin"}] * 2


def test_the_mean_is_over_the_whole_data_set_however_it_comes(cnn, images, labels):
    def measure(x: Any, y: Any, batch: int) -> Tensor:
        stream = torch.Generator().manual_seed(3)
        return weight_plane(
            cnn, x, y, points=3, metrics=("loss", "error", "reward"), batch=batch, generator=stream
        ).values

    whole = measure(images, labels, 256)
    data = TensorDataset(images, labels)
    for x, y, batch in ((images, labels, 1), (images, labels, 4), (DataLoader(data, 4), None, 256)):
        torch.testing.assert_close(measure(x, y, batch), whole, rtol=0, atol=1e-12)
    shuffled = DataLoader(data, 2, shuffle=True, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(measure(shuffled, None, 256), whole, rtol=0, atol=1e-12)


def test_attacked_loss_is_that_of_a_pgd_run_anew_in_each_cell(cnn, images, labels, generator):
    ball = Ball(0.1)
    result = weight_plane(
        cnn, images, labels, ball, points=3, metrics=("loss", "attacked"), steps=4, generator=generator
    )
    assert result.metrics == ("loss", "attacked loss", "attacked error")
    assert result.units == ("nats", "nats", "share")
    for row, column in cells(result):
        trace = pgd(moved(cnn, result, row, column), images, labels, ball, steps=4)
        expected = torch.stack([trace.loss[0].mean(), trace.loss[-1].mean(), (trace.margin[-1] > 0).double().mean()])
        torch.testing.assert_close(result.values[:, row, column], expected, rtol=0, atol=1e-9)
    assert (result.of("attacked loss") > result.of("loss")).all()


class Whole:
    """In loss-landscapes' Metric protocol: one number of a wrapped model."""

    def __call__(self, model_wrapper: Any) -> float:
        (module,) = model_wrapper.get_modules()
        assert not module.training
        return sum(float(p.double().square().sum()) for p in model_wrapper.parameters())


def test_users_metrics_see_the_moved_model(cnn, images, labels, generator):
    result = weight_line(cnn, images, labels, points=3, metrics=(Whole(), margin), generator=generator)
    assert result.metrics == ("Whole", "margin")
    for row in range(3):
        twin = moved(cnn, result, row, 0)
        norm = sum(float(p.detach().square().sum()) for p in twin.parameters())
        expected = torch.tensor([norm, margin(twin, images, labels).mean().item()], dtype=torch.float64)
        torch.testing.assert_close(result.values[:, row, 0], expected)


def test_reestimated_batch_norm_is_that_of_update_bn_in_each_cell(images, labels, generator):
    """Statistics averaged over the batches of the same data, everything else in evaluation mode; batches of 3 and 3."""
    model = normed()
    result = weight_plane(
        model, images, labels, points=3, batchnorm="reestimated", batch=4, metrics=("loss",), generator=generator
    )
    assert result.batchnorm == "reestimated"
    for row, column in cells(result):
        twin = moved(model, result, row, column)
        for layer in twin.modules():
            layer.training = isinstance(layer, nn.BatchNorm2d)
        twin[3].p = 0.0  # update_bn switches dropout on
        update_bn(images.split(3), twin)
        expected = F.cross_entropy(twin.eval()(images), labels).detach()
        torch.testing.assert_close(result.values[0, row, column], expected, rtol=0, atol=1e-12)
    frozen = weight_plane(model, images, labels, directions=result, points=3, metrics=("loss",))
    assert frozen.batchnorm == "frozen"
    for row, column in cells(frozen):
        expected = F.cross_entropy(moved(model, frozen, row, column)(images), labels).detach()
        torch.testing.assert_close(frozen.values[0, row, column], expected, rtol=0, atol=1e-12)
    assert (frozen.values - result.values).abs().min() > 1e-3
    assert result.centre_error.max() < 1e-12


def test_the_policy_is_named_none_where_there_is_no_batch_norm(cnn, images, labels):
    assert weight_line(cnn, images, labels, points=3, batchnorm="reestimated").batchnorm == "none"


@pytest.mark.parametrize("batchnorm", ["interpolated", "reestimated"])
@pytest.mark.parametrize("count", [2, 3])
def test_an_interpolation_meets_each_model(batchnorm, count, images, labels):
    models = [normed(seed=seed).float() for seed in range(count)]
    x = images.float()
    result = interpolate(models, x, labels, points=5, beyond=0.25, batchnorm=batchnorm)
    assert result.alpha.tolist() == [-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25]
    assert result.beta.tolist() == ([0.0] if count == 2 else result.alpha.tolist())
    for i, (model, place) in enumerate(zip(models, ((0, 0), (1, 0), (0, 1)), strict=False)):
        twin = copy.deepcopy(model)
        if batchnorm == "reestimated":
            twin[3].p = 0.0
            update_bn([x], twin)
        answer = twin.eval()(x)
        own = torch.stack([F.cross_entropy(answer, labels), (answer.argmax(1) != labels).float().mean()]).double()
        row, column = (result.alpha.tolist().index(place[0]), result.beta.tolist().index(place[1]))
        torch.testing.assert_close(result.values[:, row, column], own, rtol=0, atol=1e-6)
        torch.testing.assert_close(result.path_values[:, i], own, rtol=0, atol=1e-6)
        assert torch.equal(result.values[:, row, column], result.path_values[:, i])  # the weights are the same bits
    assert result.path_error.max() == 0
    torch.testing.assert_close(result.values[0, 3, result.centre[1]], halfway(models, x, labels, batchnorm))


def halfway(models: list[nn.Module], x: Tensor, y: Tensor, batchnorm: str) -> Tensor:
    twin = copy.deepcopy(models[0])
    ends = [model.state_dict() for model in models[:2]]
    twin.load_state_dict({name: (t + ends[1][name]) / 2 if t.is_floating_point() else t for name, t in ends[0].items()})
    if batchnorm == "reestimated":
        twin[3].p = 0.0
        update_bn([x], twin)
    return F.cross_entropy(twin.eval()(x), y).double().detach()


CALLS: dict[str, Callable[[nn.Module, Tensor, Tensor, Any], WeightSurface]] = {
    "line": lambda m, x, y, metric: weight_line(m, x, y, points=5, metrics=("loss", metric)),
    "plane": lambda m, x, y, metric: weight_plane(m, x, y, points=5, metrics=("loss", metric), batchnorm="reestimated"),
    "attacked": lambda m, x, y, metric: weight_plane(m, x, y, points=3, metrics=("attacked", metric), steps=2),
    "interpolation": lambda m, x, y, metric: interpolate([m, normed(seed=9)], x, y, points=5, metrics=("loss", metric)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("error", [None, RuntimeError("no"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_the_model_is_back_to_the_bit_also_after_an_exception(call, error, images, labels):
    model = normed().train()
    model[1].eval()
    model[5].weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before, homes = snapshot(model), [p.data_ptr() for p in model.parameters()]
    left = [4]

    def metric(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        left[0] -= 1
        if error is not None and left[0] == 0:
            assert snapshot(model) != before
            raise error
        return torch.zeros(len(y))

    if error is None:
        call(model, images, labels, metric)
    else:
        with pytest.raises(type(error)):
            call(model, images, labels, metric)
        assert left[0] == 0
    assert snapshot(model) == before
    assert [p.data_ptr() for p in model.parameters()] == homes
    assert model[1].momentum == 0.1


def test_under_inference_mode_and_with_models_that_count(cnn, images, labels):
    model = Counting(cnn, is_replaced=True)
    before = snapshot(model)
    plain = weight_plane(
        model, images, labels, points=3, metrics=("attacked",), generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        again = weight_plane(
            model, images, labels, points=3, metrics=("attacked",), generator=torch.Generator().manual_seed(1)
        )
    assert torch.equal(plain.values, again.values)
    assert snapshot(model) == before


def test_a_model_that_overwrites_its_input_is_given_copies(cnn, images, labels):
    """The first layer maps x to 2x - 1 in place: without copies each pass would see the one before it."""

    def run(model: nn.Module) -> WeightSurface:
        return weight_plane(model, x, labels, points=3, generator=torch.Generator().manual_seed(1))

    class Apart(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * 2 - 1)

    x = images.clone()
    overwriting, apart = run(InPlace(cnn)), run(Apart(cnn))
    assert torch.equal(x, images)
    torch.testing.assert_close(overwriting.values, apart.values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_close_to_double_on_the_same_directions(dtype, images, labels):
    values = {}
    for kind in (dtype, torch.float64):
        stream = torch.Generator().manual_seed(2)
        values[kind] = weight_plane(
            smooth_cnn().to(kind), images, labels, points=3, metrics=("loss",), generator=stream
        )
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(values[dtype].values, values[torch.float64].values, rtol=0, atol=tolerance)
    assert values[torch.float64].values.std() > 0.02
    assert all(d.dtype == torch.float32 for d in values[dtype].directions[0].values())


def test_a_model_that_diverges_is_nan_and_nothing_else_is(images, labels):
    class Cliff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.eye(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] * (1.5 - self.matrix[0, 0]).sqrt()

    along = {"matrix": torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)}
    result = weight_line(
        Cliff(), images, labels, directions=along, points=5, metrics=("loss", "error", "reward", "attacked")
    )
    assert torch.equal(result.values.isnan(), torch.tensor([0, 0, 0, 0, 1]).bool()[None, :, None].expand(5, 5, 1))
    assert result.diverged == 1
    assert "1 diverged" in str(result)


class Stop(Exception):
    pass


@pytest.mark.parametrize("adaptive", [None, 0.3])
def test_an_interrupted_grid_goes_on_where_it_stopped_and_ends_as_if_it_had_not(
    adaptive, cnn, images, labels, tmp_path, monkeypatch
):
    calls = [0]
    limit = [10**9]

    def counted(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > limit[0]:
            raise Stop
        return model(x)[:, 0]

    def run(path: Path | None, seed: int = 0) -> WeightSurface:
        stream = torch.Generator().manual_seed(seed)
        return weight_plane(
            cnn, images, labels, points=21, metrics=("loss", counted), adaptive=adaptive, resume=path, generator=stream
        )

    whole = run(None)
    total, path = calls[0], tmp_path / "deep" / "grid.safetensors"
    calls[0], limit[0] = 0, total // 2
    with pytest.raises(Stop):
        run(path)
    assert path.is_file() and (total == 442) == (adaptive is None)
    calls[0], limit[0] = 0, 10**9
    resumed = run(path)
    assert calls[0] == total - total // 2 + 1  # and the plain value again
    for field in dataclasses.fields(WeightSurface):
        if field.name != "directions":
            a, b = getattr(whole, field.name), getattr(resumed, field.name)
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, field.name
    calls[0] = 0
    run(path)
    assert calls[0] == 1
    with pytest.raises(
        ValueError, match=r"resume is '.*grid\.safetensors', which holds the grid of another call: its dir"
    ):
        run(path, seed=1)
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"resume is '.*grid\.safetensors', damaged"):
        run(path)
    path.write_text("notes")
    with pytest.raises(ValueError, match=r"resume is '.*grid\.safetensors', damaged or no unfinished grid"):
        run(path)


def test_a_long_grid_writes_as_it_goes(cnn, images, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "SECONDS", -1.0)
    path, sizes = tmp_path / "grid", []

    def seen(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        sizes.append(int(safe_count(path)))
        return model(x)[:, 0]

    weight_line(cnn, images, labels, points=5, metrics=(seen,), resume=path)
    assert sizes == [0, 0, 1, 2, 3, 4]  # the plain value first


def safe_count(path: Path) -> float:
    from safetensors.torch import load_file

    return float(load_file(path)["done"].sum()) if path.is_file() else 0.0


def test_an_adaptive_plane_is_the_full_one_within_its_bound_for_a_third_of_the_cells(cnn, images, labels):
    def run(adaptive: float | None) -> WeightSurface:
        stream = torch.Generator().manual_seed(4)
        return weight_plane(
            cnn, images, labels, points=51, metrics=("loss", "reward"), adaptive=adaptive, generator=stream
        )

    full, sparse = run(None), run(0.01)
    assert full.measured.all() and full.tolerance is None and full.evaluations == 2601
    assert sparse.evaluations <= 2601 / 3
    assert sparse.evaluations == int(sparse.measured.sum())
    span = full.values.flatten(1).amax(1) - full.values.flatten(1).amin(1)
    error = (sparse.values - full.values).abs().flatten(1).amax(1)
    assert (error <= sparse.bound).all() and (sparse.bound <= 0.01 * span).all()
    assert torch.equal(sparse.values[:, sparse.measured], full.values[:, sparse.measured])
    assert f"{sparse.evaluations} of 2601 cells measured, the others within about {sparse.bound[0]:.1e} (loss)" in str(
        sparse
    )
    small = weight_plane(cnn, images, labels, points=5, adaptive=0.01)
    assert "25 of 25 cells measured: none could be left out at 0.01 of the range" in str(small)


def test_a_plane_through_a_trajectory_covers_it_and_meets_checkpoints_in_the_plane(images, labels):
    models = [smooth_cnn() for _ in range(3)]
    with torch.no_grad():
        for i, model in enumerate(models[:2]):
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    path = trajectory(models[2], models)
    result = weight_plane(models[2], images, labels, directions=path, points=9, metrics=("loss",))
    torch.testing.assert_close(result.path, path.places)
    for axis, places in zip((result.alpha, result.beta), path.places.T, strict=True):
        assert axis.min() <= places.min() and places.max() <= axis.max()
        assert (axis == 0).sum() == 1
        torch.testing.assert_close(axis.diff(), axis.diff()[:1].expand(8))
    weights = {name: p.detach().clone() for name, p in models[2].named_parameters()}
    for share, direction in zip(path.places[0], path.directions, strict=True):
        weights = {name: w + share * direction[name] for name, w in weights.items()}
    there, own = functional_call(models[2], weights, (images,)), models[0](images)
    torch.testing.assert_close(there, own)  # three points span the plane, so it holds the first checkpoint itself


def test_frame_and_readings(bowl, images, generator):
    result = weight_plane(bowl, images, [0] * 6, points=3, generator=generator)
    table = result.frame()
    assert list(table.columns) == ["alpha", "beta", "measured", "loss", "error"]
    for row in table.itertuples():
        r, c = (result.alpha == row.alpha).nonzero().item(), (result.beta == row.beta).nonzero().item()
        assert row.loss == result.of("loss")[r, c].item() and row.error == result.of("error")[r, c].item()
    assert len(table) == 9
    for direction, size in zip(result.directions, result.lengths, strict=True):
        assert size == pytest.approx(torch.cat([d.flatten() for d in direction.values()]).norm().item())
    with pytest.raises(ValueError, match="metric is 'reward', expected one of 'loss', 'error'"):
        result.of("reward")
    assert result.samples == 6
    assert result.path_error.isnan().all()
    assert "filter-normalised random x second filter-normalised random" in str(result)
    assert result.made.call.startswith("weight_plane(") and result.meaning[0] == "norm of each filter of the model"
    twisted = dataclasses.replace(result, plain=result.plain + 0.5)
    torch.testing.assert_close(twisted.centre_error, torch.full((2,), 0.5, dtype=torch.float64))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"points": 1}, "points is 1, expected an odd number of at least 3"),
    ({"points": 4}, "points is 4, expected an odd number"),
    ({"span": 0.0}, "span is 0.0, expected a positive number"),
    ({"span": -1.0}, "span is -1.0, expected a positive number"),
    ({"span": float("nan")}, "span is nan, expected a positive number"),
    ({"span": 1e300}, "span is 1e\\+300, expected a positive number up to 1e30"),
    ({"batch": 0}, "batch is 0, expected at least 1"),
    ({"steps": 0}, "steps is 0, expected at least 1"),
    ({"adaptive": 0.0}, "adaptive is 0.0, expected a share of the range"),
    ({"adaptive": 2.0}, "adaptive is 2.0, expected a share of the range"),
    ({"metrics": ()}, r"metrics is \(\), expected a sequence"),
    ({"metrics": ("loss", "loss")}, "metrics holds 'loss' twice"),
    ({"metrics": (lambda model, x: 0,)}, "metric '<lambda>' takes 2 arguments, expected three"),
    ({"metrics": (max,)}, "metric 'max' takes an unknown number of arguments, expected three"),
    ({"metrics": (lambda model, x, y: model(x),)}, r"metric '<lambda>' returns shape \(6, 4\) for 6 samples"),
    ({"metrics": (lambda model: (1, 2),)}, r"metric '<lambda>' returns \(1, 2\), expected a single number"),
    (
        {"directions": ({"0.weight": torch.ones(1)},) * 2},
        r"directions\[0\] has shape \(1,\) .*for '0.weight', expected",
    ),
    ({"directions": ({"nowhere": torch.ones(1)},) * 2}, r"directions\[0\] names 'nowhere', which the model does not"),
    ({"directions": ({"0.bias": torch.zeros(4)},) * 2}, r"directions\[0\] is all zero"),
    ({"directions": ({"0.bias": torch.full((4,), torch.nan)},) * 2}, r"directions\[0\] is all zero or holds NaN"),
    ({"directions": ()}, "directions holds 0, expected"),
    ({"directions": (torch.ones(3),) * 2}, r"directions\[0\] has shape \(3,\), expected a dict by parameter name"),
]


@every_slice
@pytest.mark.parametrize(("options", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_refused_by_name(measure, options, message, cnn, images, labels):
    before = snapshot(cnn)
    with pytest.raises(ValueError, match=message):
        measure(cnn, images, labels, **options)
    assert snapshot(cnn) == before


@every_slice
def test_models_and_data_that_cannot_be_measured_are_refused(measure, cnn, images, labels):
    with pytest.raises(ValueError, match="x yields no images, expected at least one batch"):
        measure(cnn, DataLoader(TensorDataset(images[:0], labels[:0])))
    with pytest.raises(ValueError, match=r"x spans .*outside the pixel box"):
        measure(cnn, images * 255, labels)
    with pytest.raises(ValueError, match=r"x holds torch.uint8, expected floating-point pixels"):
        measure(cnn, images.byte(), labels)
    with pytest.raises(ValueError, match=r"y spans 0\.\.9"):
        measure(cnn, images, [9, 0, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="batch holds 1 sample, expected at least 2"):
        measure(normed(), images, labels, batchnorm="reestimated", batch=1)
    cnn.requires_grad_(False)
    with pytest.raises(ValueError, match=r"model \(Sequential\) has no parameter that requires gradients"):
        measure(cnn, images, labels)
    shared = nn.Sequential(nn.Flatten(), nn.Linear(50, 50), nn.Linear(50, 50)).double()
    shared[2].weight = nn.Parameter(shared[1].weight.data)
    with pytest.raises(ValueError, match=r"'1\.weight' and '2\.weight' share memory"):
        measure(shared, images, labels)


@pytest.mark.parametrize(
    "measure",
    [
        weight_plane,
        spectrum,
        pgd,
        lambda model, x, y: interpolate([model, model], x, y),
        lambda model, x, y: trajectory(model, [model] * 3),
    ],
)
def test_a_model_whose_weights_have_no_shape_yet_is_refused(measure, images, labels):
    with pytest.raises(ValueError, match=r"model.* \(Sequential\) has lazy layers whose weights have no shape yet"):
        measure(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), images.float(), labels)


def test_models_that_cannot_be_joined_are_refused(cnn, images, labels):
    other = smooth_cnn()
    with torch.no_grad():
        other[0].weight += 1
    wide = nn.Sequential(nn.Conv2d(2, 5, 3, padding=1), *list(smooth_cnn())[1:]).double()
    with pytest.raises(ValueError, match=r"models\[1\] has another architecture .*'0.weight' has \(5, 2, 3, 3\), exp"):
        interpolate([cnn, wide], images, labels)
    with pytest.raises(ValueError, match=r"models\[1\] has the weights of models\[0\]"):
        interpolate([cnn, smooth_cnn()], images, labels)
    with pytest.raises(ValueError, match="models holds 1, expected two"):
        interpolate([cnn], images, labels)
    with pytest.raises(ValueError, match="points is 1, expected at least 2"):
        interpolate([cnn, other], images, labels, points=1)
    with pytest.raises(ValueError, match=r"beyond is -1\.0, expected 0 to 100"):
        interpolate([cnn, other], images, labels, beyond=-1.0)
    with pytest.raises(ValueError, match="y is None and x brings no labels"):
        interpolate([cnn, other], images)


def test_resume_tells_metrics_of_one_name_apart(cnn, images, tmp_path):
    def measure(value):
        def metric(model, x, y):
            return torch.full((len(x),), value)

        return weight_line(cnn, images, [0] * 6, points=3, metrics=(metric,), resume=tmp_path / "cells")

    assert measure(0.0).values.unique().tolist() == [0.0]
    with pytest.raises(ValueError, match="cells"):
        measure(1.0)


def writes_to_all(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """As a metric of somebody else may: normalises weights in place, and forgets to put them back."""
    values = model(x)[:, 1].detach()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
        for p in model.parameters():
            p.data = torch.zeros_like(p)
    return values


@pytest.mark.parametrize("line", [False, True])
def test_a_metric_that_writes_weights_moves_neither_the_model_nor_other_cells(line, images, labels, generator):
    model = normed()
    before = snapshot(model)
    state = generator.get_state()
    if line:
        models = [model, normed(seed=2)]
        spoilt, plain = (interpolate(models, images, labels, metrics=(m,), points=3) for m in (writes_to_all, margin))
    else:
        generator.set_state(state)
        spoilt = weight_plane(model, images, labels, metrics=(writes_to_all,), points=3, generator=generator)
        generator.set_state(state)
        plain = weight_plane(model, images, labels, metrics=(margin,), points=3, generator=generator)
    torch.testing.assert_close(spoilt.values, plain.values)
    torch.testing.assert_close(spoilt.plain, plain.plain)
    assert snapshot(model) == before


class Steepness:
    """In loss-landscapes' Metric protocol: the squared gradient in the weights, in training mode, all left behind."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __call__(self, model_wrapper: Any) -> float:
        model_wrapper.requires_grad_(True).eval().zero_grad()
        F.cross_entropy(model_wrapper.forward(self.x), self.y).backward()
        size = sum(float(p.grad.square().sum()) for p in model_wrapper.parameters())
        model_wrapper.train()
        return size


def leaves_a_mess(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    values = model(x)[:, 1].detach()
    model.requires_grad_(True)
    model.train()
    F.cross_entropy(model(x), y).backward()
    return values


def test_a_metric_may_switch_modes_and_take_gradients_and_nobody_else_sees_it(images, labels, generator):
    """The model has dropout and batch norm, so that a cell in training mode would be another number."""
    model = normed()
    model[5].bias.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before, state = snapshot(model), generator.get_state()
    metrics = (Steepness(images, labels), leaves_a_mess, "loss", margin)
    result = weight_plane(model, images, labels, points=3, metrics=metrics, generator=generator)
    assert snapshot(model) == before
    generator.set_state(state)
    plain = weight_plane(model, images, labels, points=3, metrics=("loss", margin), generator=generator)
    for name in ("loss", "margin"):
        torch.testing.assert_close(result.of(name), plain.of(name), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.of("leaves_a_mess"), plain.of("margin"), rtol=0, atol=1e-12)
    twin = moved(model, result, 2, 0).requires_grad_(True)
    grads = torch.autograd.grad(F.cross_entropy(twin(images), labels), list(twin.parameters()))
    assert result.of("Steepness")[2, 0].item() == pytest.approx(sum(float(g.square().sum()) for g in grads))


def test_every_model_of_an_interpolation_is_looked_at(images, labels):
    class Noisy(nn.Module):
        def __init__(self, inner: nn.Module, level: float) -> None:
            super().__init__()
            self.inner, self.level = inner, level

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + self.level * torch.rand(len(x), 4)

    with pytest.raises(ValueError, match="random"):
        interpolate([Noisy(normed(seed=1), 0.0), Noisy(normed(seed=2), 1.0)], images, labels, points=3)


def test_parallel_directions_are_refused_and_oblique_ones_say_their_angle(images, labels):
    model = normed()
    (first,) = weight_line(model, images, labels, points=3).directions
    with pytest.raises(ValueError, match=r"directions are parallel, 0 degrees apart, expected two that span a plane"):
        weight_plane(model, images, labels, directions=[first, {name: 2 * d for name, d in first.items()}], points=3)
    opposite = {name: -d for name, d in first.items()}
    with pytest.raises(ValueError, match="180 degrees apart"):
        weight_plane(model, images, labels, directions=[first, opposite], points=3)
    a = {"0.weight": torch.ones_like(model[0].weight)}
    b = {"0.weight": torch.ones_like(model[0].weight), "5.weight": torch.zeros_like(model[5].weight)}
    b["5.weight"].view(-1)[0] = model[0].weight.numel() ** 0.5  # as long as the first: 45 degrees
    plane = weight_plane(model, images, labels, directions=[a, b], points=3)
    assert plane.angle == pytest.approx(45)
    assert "at 45 degrees" in str(plane)
    collinear = [copy.deepcopy(model) for _ in range(3)]
    with torch.no_grad():
        for i, twin in enumerate(collinear):
            twin[5].bias += i
    with pytest.raises(ValueError, match=r"the ways from models\[0\] to the others are parallel"):
        interpolate(collinear, images, labels, points=3)


def test_the_selftest_sees_a_plane_that_is_shifted_by_one_cell():
    assert weight_selftest() < 1e-12

    def shifted(*args: Any, **options: Any) -> WeightSurface:
        surface = weight_plane(*args, **options)
        return dataclasses.replace(surface, values=surface.values.roll(1, 1))

    def turned(*args: Any, **options: Any) -> WeightSurface:
        surface = weight_plane(*args, **options)
        return dataclasses.replace(surface, values=surface.values.mT.contiguous())

    assert weight_selftest(plane=shifted) > 1e-3
    assert weight_selftest(plane=turned) > 1e-3


def test_layers_of_other_types_are_no_straight_line_apart(images, labels):
    relu, tanh = (
        nn.Sequential(nn.Flatten(), nn.Linear(50, 8), act, nn.Linear(8, 4)).double() for act in (nn.ReLU(), nn.Tanh())
    )
    with pytest.raises(ValueError, match=r"models\[1\] has another architecture than models\[0\]: its layers are of"):
        interpolate([relu, tanh], images, labels, points=3)
    with pytest.raises(ValueError, match=r"models\[1\] has another architecture .* torch.float32"):
        interpolate([relu, copy.deepcopy(relu).float()], images, labels, points=3)
    other = copy.deepcopy(relu)
    with torch.no_grad():
        other[1].weight += 0.1
    assert "path error" in str(interpolate([relu, other], images, labels, points=3))
