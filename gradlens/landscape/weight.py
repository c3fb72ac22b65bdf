"""The loss around a model's weights: lines and planes through one model, or through several."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..ball import Ball
from ..batches import BATCH, gathered
from ..curvature import Spectrum, spectrum
from ..door import PROBE, admit, check_attack, check_count, check_generator, is_number
from ..model import frozen
from ..types import ImagesLike, LabelsLike
from .directions import MEANINGS, Normalization, differences, random_directions, refuse_parallel
from .metrics import Data, Gauge, Metric, gauge, split
from .plane import FARTHEST, Plane, laid, named, pair
from .survey import File, alone, survey
from .trajectory import Trajectory
from .walk import batch_norms, trainable
from .weight_surface import WeightSurface

BatchNorm = Literal["frozen", "reestimated"]
WeightDirections = (
    Normalization | WeightSurface | Trajectory | Spectrum | Mapping | Sequence | Tensor | Callable[..., Any]
)
DEFAULT: tuple[Metric, ...] = ("loss", "error")


@dataclass(frozen=True)
class Grid:
    """The knobs that lines, planes and interpolations share."""

    points: int
    metrics: Sequence[Metric]
    batchnorm: str
    ball: Ball
    steps: int
    adaptive: float | None
    resume: File | None
    batch: int

    def checked(self, policies: tuple[str, ...]) -> Gauge:
        """What is measured in each cell, once the knobs have been checked."""
        if not isinstance(self.batchnorm, str) or self.batchnorm not in policies:
            raise ValueError(f"batchnorm is {self.batchnorm!r}, expected {' or '.join(map(repr, policies))}")
        if self.adaptive is not None and not (is_number(self.adaptive) and 0 < self.adaptive < 1):
            raise ValueError(
                f"adaptive is {self.adaptive!r}, expected a share of the range between 0 and 1, such as 0.01"
            )
        if not isinstance(self.resume, str | os.PathLike | None):
            raise ValueError(f"resume is {self.resume!r}, expected the name of a file, or nothing")
        check_count("batch", self.batch)
        check_count("points", self.points)
        return gauge(self.metrics, self.ball, self.steps, check_attack(self.ball, steps=self.steps, step_size=None))

    def options(self, measured: Gauge) -> dict[str, object]:
        """As the result's record names them."""
        return {
            "ball": self.ball, "points": self.points, "metrics": measured.names, "batchnorm": self.batchnorm,
            "steps": self.steps, "batch": self.batch,
        }  # fmt: skip


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
    ones normalised so (`random_directions`); "hessian", the top eigenvectors of the loss's Hessian on these samples;
    those of an earlier WeightSurface, as they are; a Trajectory, whose path the grid covers, with a tenth to spare if
    span = 1; a Spectrum of the weights, whose top eigenvectors they are; given ones, each a dict by parameter name or
    tensors in the order of the trainable parameters; or a function (model, x, y) of these samples that returns such.

    `metrics`, in one pass: "loss" (cross-entropy, nats), "error" (share), "reward" (mean p(y)), "attacked" (loss and
    error at the end of `steps` of PGD in `ball`, run anew in each cell), functions (model, x, y) -> one value a sample,
    and loss-landscapes' metrics, (model_wrapper) -> a number. They see the moved model in evaluation mode; what they
    do to weights, modes and gradients is undone.
    `batchnorm`: the model's own statistics in each cell, or "reestimated" from `x` in each (plain average over
    batches). `adaptive` measures a part of the cells and interpolates the rest to within about that share of each
    metric's range, say 0.01: an estimate, of little use for metrics with steps, such as "error" on few samples
    (`landscape.adaptive.fill`). `resume` names a file that cells are written to and taken from.

    Raises ValueError as `pgd` does, and for a span that is not positive, an even number of points, directions that do
    not fit or are all zero, a model without trainable parameters, a `resume` file of another call.
    """
    grid = Grid(points, metrics, batchnorm, ball, steps, adaptive, resume, batch)
    return _around(2, model, x, y, directions, span, grid, generator)


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
    grid = Grid(points, metrics, batchnorm, ball, steps, adaptive, resume, batch)
    return _around(1, model, x, y, directions, span, grid, generator)


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
    if not isinstance(models, Sequence):
        raise ValueError(f"models is a {type(models).__name__}, expected a sequence of two or three modules")
    grid = Grid(points, metrics, batchnorm, ball, steps, adaptive, resume, batch)
    measured = grid.checked(("interpolated", "reestimated"))
    if points < 2:
        raise ValueError(f"points is {points}, expected at least 2: the models themselves")
    if not (is_number(beyond) and 0 <= beyond <= 100):
        raise ValueError(f"beyond is {beyond!r}, expected 0 to 100, shares of the way from one model to the next")
    ways = differences(models)
    refuse_parallel(ways, "the ways from models[0] to the others")
    extra = math.ceil(beyond * (points - 1) - 1e-9)
    axis = torch.arange(-extra, points + extra, dtype=torch.float64) / (points - 1)
    names = [f"from model 1 to model {i}" for i in range(2, len(models) + 1)]
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[: len(models)]
    beta = axis if len(ways) == 2 else axis.new_zeros(1)
    plane = Plane(ways, *pair(names, "the way between the models"), axis, beta, places)
    own = []
    for i, model in enumerate(models):
        with frozen(model):
            if i == 0:
                data = split(model, *gathered(model, x, y, ball, batch=batch, is_labelled=True), batch)
                _check_samples(data, model, batchnorm)
            else:
                admit(model, data.batches[0][0][:PROBE], None)  # the door has seen the first model only
            own.append(alone(model, data, measured, batchnorm))
    with frozen(models[0]):
        return survey(
            models[0], data, plane, measured, batchnorm=batchnorm, tolerance=adaptive, resume=resume,
            call="interpolate", options={"models": len(models), "beyond": beyond, **grid.options(measured)},
            plain=own[0], path_values=torch.stack(own, 1),
        )  # fmt: skip


def _around(
    count: int,
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    directions: WeightDirections,
    span: float,
    grid: Grid,
    generator: torch.Generator | None,
) -> WeightSurface:
    measured = grid.checked(get_args(BatchNorm))
    if not (is_number(span) and 0 < span <= FARTHEST):
        raise ValueError(f"span is {span!r}, expected a positive number up to 1e30, in units of the directions")
    if grid.points < 3 or grid.points % 2 == 0:
        raise ValueError(
            f"points is {grid.points}, expected an odd number of at least 3, so that the centre is measured"
        )
    check_generator(generator)
    names = trainable(model)
    drawn = None
    with frozen(model):
        images, labels, fingerprint = gathered(model, x, y, grid.ball, batch=grid.batch)
    if isinstance(directions, str) and directions == "hessian":
        directions = spectrum(
            model, images, labels, k=count, probes=2, depth=1, precision=1e6, ball=grid.ball, batch=grid.batch
        )
    elif isinstance(directions, str):
        drawn = random_directions(model, named(directions), count=count, generator=generator)
    elif callable(directions):  # here, where parameters still require gradients
        directions = directions(model, images, labels)
    with frozen(model):
        data = split(model, images, labels, fingerprint, grid.batch)
        _check_samples(data, model, grid.batchnorm)
        plane = laid(model, directions if drawn is None else drawn, names, span, grid.points, count)
        if drawn is not None:
            title = [f"{directions}-normalised random", f"second {directions}-normalised random"]
            axes, meaning = pair(title[:count], MEANINGS[str(directions)])
            plane = plane._replace(axes=axes, meaning=meaning)
        options = {"directions": directions if drawn is not None else plane.axes, "span": span}
        plain = alone(model, data, measured, grid.batchnorm)
        return survey(
            model, data, plane, measured, batchnorm=grid.batchnorm, tolerance=grid.adaptive, resume=grid.resume,
            call="weight_plane" if count == 2 else "weight_line", options={**options, **grid.options(measured)},
            plain=plain, generator=generator,
            path_values=torch.full((len(plain), len(plane.path)), torch.nan, dtype=torch.float64),
            # rounding can send an attack another way: its centre would not be the plain model's value
            folds=grid.batchnorm == "frozen" and {"loss", "error", "reward"}.issuperset(measured.names),
        )  # fmt: skip


def _check_samples(data: Data, model: nn.Module, batchnorm: str) -> None:
    smallest = min(len(y) for _, y in data.batches)
    if batchnorm == "reestimated" and batch_norms(model) and smallest < 2:
        raise ValueError(
            f"batchnorm is 'reestimated', but a batch holds {smallest} sample, expected at least 2: one has no variance"
        )
