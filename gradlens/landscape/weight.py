"""The loss around a model's weights: lines and planes through one model, or through several."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..ball import Ball
from ..batches import BATCH, gathered
from ..curvature import Spectrum
from ..door import check_attack, check_count
from ..model import frozen
from ..types import ImagesLike, LabelsLike
from .directions import MEANINGS, Normalization, differences, given_directions, random_directions
from .metrics import Data, Metric, gauge, split
from .survey import File, Plane, alone, grid_axis, survey
from .trajectory import Trajectory
from .walk import batch_norms, trainable
from .weight_surface import WeightSurface

BatchNorm = Literal["frozen", "reestimated"]
WeightDirections = (
    Normalization | WeightSurface | Trajectory | Spectrum | Mapping | Sequence | Tensor | Callable[..., Any]
)
DEFAULT: tuple[Metric, ...] = ("loss", "error")


def weight_plane(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    directions: WeightDirections = "filter",
    span: float = 1.0,
    points: int = 25,
    metrics: Sequence[Metric] = DEFAULT,
    batchnorm: BatchNorm = "frozen",
    steps: int = 10,
    adaptive: float | None = None,
    resume: File | None = None,
    batch: int = BATCH,
    generator: torch.Generator | None = None,
) -> WeightSurface:
    """Means over all of `x` at weights + alpha d1 + beta d2, alpha and beta from -span to span (Li et al. 2018).

    `x`, `y` as in `pgd`; an iterable such as a DataLoader is read once and held, so that each cell sees the same
    samples, `batch` of them in the model at a time. `directions`: "filter", "layer" or "model", two independent random
    ones normalised so (`random_directions`); those of an earlier WeightSurface, as they are; a Trajectory, whose path
    the grid covers, with a tenth to spare if span = 1; a Spectrum of the weights, whose top eigenvectors they are;
    given ones, each a dict by parameter name or tensors in the order of the trainable parameters; or a function
    (model, x, y) that returns such.

    `metrics`, in one pass: "loss" (cross-entropy, nats), "error" (share), "reward" (mean p(y)), "attacked" (loss and
    error at the end of `steps` of PGD in `ball`, run anew in each cell), functions (model, x, y) -> one value a sample,
    and loss-landscapes' metrics, (model_wrapper) -> a number, which see evaluation mode and must not move weights.
    `batchnorm`: the model's own statistics in each cell, or "reestimated" from `x` in each (plain average over
    batches). `adaptive` measures a part of the cells and interpolates the rest to within about that share of each
    metric's range, say 0.01: an estimate, of little use for metrics with steps, such as "error" on few samples
    (`landscape.adaptive.fill`). `resume` names a file that cells are written to and taken from.

    Raises ValueError as `pgd` does, and for a span that is not positive, an even number of points, directions that do
    not fit or are all zero, a model without trainable parameters, a `resume` file of another call.
    """
    return _around(
        model, x, y, ball, directions, span, points, metrics, batchnorm, steps, adaptive, resume, batch, generator, 2
    )


def weight_line(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    directions: WeightDirections = "filter",
    span: float = 1.0,
    points: int = 25,
    metrics: Sequence[Metric] = DEFAULT,
    batchnorm: BatchNorm = "frozen",
    steps: int = 10,
    adaptive: float | None = None,
    resume: File | None = None,
    batch: int = BATCH,
    generator: torch.Generator | None = None,
) -> WeightSurface:
    """As `weight_plane`, along one direction: a WeightSurface with a single column, beta = 0."""
    return _around(
        model, x, y, ball, directions, span, points, metrics, batchnorm, steps, adaptive, resume, batch, generator, 1
    )


def interpolate(
    models: Sequence[nn.Module],
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    points: int = 25,
    beyond: float = 0.0,
    metrics: Sequence[Metric] = DEFAULT,
    batchnorm: Literal["interpolated", "reestimated"] = "interpolated",
    steps: int = 10,
    adaptive: float | None = None,
    resume: File | None = None,
    batch: int = BATCH,
) -> WeightSurface:
    """The straight line through two models, or the plane through three of one architecture.

    Cell (0, 0) is the first model, (1, 0) the second, (0, 1) the third; `points` from one to the next, and as many
    more as it takes to go `beyond` them by that share of the way. The axes of a plane are as oblique as the models lie.
    All parameters move, frozen ones too. "interpolated" moves batch norm's statistics along, so that each model is
    met as it is; "reestimated" measures them anew in each cell, as Garipov et al. (2018) do. `path_values` are the
    models' own, `path_error` the largest gap to the grid. Else as `weight_plane`.

    Raises ValueError as `weight_plane` does, for other than two or three models, for models of different
    architectures, for two that are equal, and where there are no labels.
    """
    models = list(models)
    size = _check(points, metrics, batchnorm, ("interpolated", "reestimated"), ball, steps, adaptive, batch)
    if points < 2:
        raise ValueError(f"points is {points}, expected at least 2: the models themselves")
    if not (math.isfinite(beyond) and beyond >= 0):
        raise ValueError(f"beyond is {beyond}, expected 0 or more, a share of the way from one model to the next")
    ways = differences(models)
    measured = gauge(metrics, ball, steps, size)
    extra = math.ceil(beyond * (points - 1) - 1e-9)
    axis = torch.arange(-extra, points + extra, dtype=torch.float64) / (points - 1)
    names = [f"from model 1 to model {i}" for i in range(2, len(models) + 1)]
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[: len(models)]
    beta = axis if len(ways) == 2 else axis.new_zeros(1)
    plane = Plane(ways, *_pair(names, "the way between the models"), axis, beta, places)
    own = []
    for i, model in enumerate(models):
        with frozen(model):
            if i == 0:
                data = split(model, *gathered(model, x, y, ball, batch=batch, is_labelled=True), batch)
                _check_samples(data, model, batchnorm)
            own.append(alone(model, data, measured, batchnorm))
    options = {
        "models": len(models), "ball": ball, "points": points, "beyond": beyond, "metrics": measured.names,
        "batchnorm": batchnorm, "steps": steps, "batch": batch,
    }  # fmt: skip
    with frozen(models[0]):
        return survey(
            models[0], data, plane, measured, batchnorm=batchnorm, tolerance=adaptive, resume=resume,
            call="interpolate", options=options, plain=own[0], path_values=torch.stack(own, 1),
        )  # fmt: skip


def _around(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball,
    directions: WeightDirections,
    span: float,
    points: int,
    metrics: Sequence[Metric],
    batchnorm: BatchNorm,
    steps: int,
    adaptive: float | None,
    resume: File | None,
    batch: int,
    generator: torch.Generator | None,
    count: int,
) -> WeightSurface:
    size = _check(points, metrics, batchnorm, get_args(BatchNorm), ball, steps, adaptive, batch)
    if not (math.isfinite(span) and span > 0):
        raise ValueError(f"span is {span}, expected a positive number, in units of the directions")
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points is {points}, expected an odd number of at least 3, so that the centre is measured")
    names = trainable(model)
    measured = gauge(metrics, ball, steps, size)
    drawn = None
    if isinstance(directions, str):
        drawn = random_directions(model, _name(directions), count=count, generator=generator)
    if callable(directions):  # here, where parameters still require gradients
        directions = directions(model, x, y)
    with frozen(model):
        data = split(model, *gathered(model, x, y, ball, batch=batch), batch)
        _check_samples(data, model, batchnorm)
        plane = _plane(model, directions if drawn is None else drawn, names, span, points, count)
        if drawn is not None:
            title = [f"{directions}-normalised random", f"second {directions}-normalised random"]
            axes, meaning = _pair(title[:count], MEANINGS[str(directions)])
            plane = plane._replace(axes=axes, meaning=meaning)
        options = {
            "ball": ball, "directions": directions if drawn is not None else plane.axes, "span": span,
            "points": points, "metrics": measured.names, "batchnorm": batchnorm, "steps": steps, "batch": batch,
        }  # fmt: skip
        plain = alone(model, data, measured, batchnorm)
        return survey(
            model, data, plane, measured, batchnorm=batchnorm, tolerance=adaptive, resume=resume,
            call="weight_plane" if count == 2 else "weight_line", options=options, plain=plain,
            path_values=torch.full((len(plain), len(plane.path)), torch.nan, dtype=torch.float64), generator=generator,
            # rounding can send an attack another way: its centre would not be the plain model's value
            folds=batchnorm == "frozen" and all(metric in ("loss", "error", "reward") for metric in metrics),
        )  # fmt: skip


def _plane(model: nn.Module, given: Any, names: Sequence[str], span: float, points: int, count: int) -> Plane:
    limits, path = [(-span, span)] * 2, torch.zeros(0, 2, dtype=torch.float64)
    axes, meaning = _pair(["first given direction", "second given direction"][:count], "given direction")
    if isinstance(given, WeightSurface):
        axes, meaning = (given.axes, given.meaning) if count == 2 else _pair(given.axes[:1], given.meaning[0])
        given = given.directions
    elif isinstance(given, Trajectory):
        path = given.places.cpu()
        axes, meaning = _pair(
            [f"component {i + 1} ({share:.0%} of variance)" for i, share in enumerate(given.explained)][:count],
            "distance in weight space",
        )
        ends = torch.cat([path, torch.zeros(1, 2, dtype=path.dtype)])
        low, high = ends.amin(0), ends.amax(0)
        spare = (high - low).amax() / 10
        limits = [(span * float(a), span * float(b)) for a, b in zip(low - spare, high + spare, strict=True)]
        given = given.directions
    elif isinstance(given, Spectrum):
        if given.of != "weights" or len(given.vectors) < count:
            raise ValueError(
                f"directions is a Spectrum of the {given.of} with k = {len(given.vectors)}, expected one of the "
                f"weights with k = {count} or more"
            )
        axes, meaning = _pair(
            [f"eigenvector of the Hessian at {value:.3g}" for value in given.eigenvalues[:count].tolist()],
            "distance in weight space",
        )
        given = given.vectors[:count]
    vectors = given_directions(given, model, names, count)
    alpha, beta = (grid_axis(*limit, points) for limit in limits)
    return Plane(vectors, axes, meaning, alpha, beta if count == 2 else beta.new_zeros(1), path)


def _pair(names: Sequence[str], meaning: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Names and meanings of two axes; a line's second has none."""
    return (names[0], names[1] if len(names) > 1 else "none"), (meaning, meaning if len(names) > 1 else "none")


def _name(directions: Any) -> Normalization:
    if directions not in get_args(Normalization):
        raise ValueError(
            f"directions is {directions!r}, expected one of {', '.join(map(repr, get_args(Normalization)))}, a "
            "WeightSurface, a Trajectory, or tensors by parameter name"
        )
    return directions


def _check_samples(data: Data, model: nn.Module, batchnorm: str) -> None:
    smallest = min(len(y) for _, y in data.batches)
    if batchnorm == "reestimated" and batch_norms(model) and smallest < 2:
        raise ValueError(
            f"batchnorm is 'reestimated', but a batch holds {smallest} sample, expected at least 2: one has no variance"
        )


def _check(
    points: int,
    metrics: Sequence[Metric],
    batchnorm: str,
    policies: tuple[str, ...],
    ball: Ball,
    steps: int,
    adaptive: float | None,
    batch: int,
) -> float:
    """The attack's step size, once the knobs that lines, planes and interpolations share have been checked."""
    if batchnorm not in policies:
        raise ValueError(f"batchnorm is {batchnorm!r}, expected {' or '.join(map(repr, policies))}")
    if adaptive is not None and not 0 < adaptive < 1:
        raise ValueError(f"adaptive is {adaptive}, expected a share of the range between 0 and 1, such as 0.01")
    check_count("batch", batch)
    check_count("points", points)
    return check_attack(ball, steps=steps, step_size=None)
