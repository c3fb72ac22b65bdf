"""Where a grid through weight space lies: its two directions, what they are called, its coordinates."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..curvature import Spectrum
from ..types import Axis, Direction, Places
from .directions import Normalization, given_directions, refuse_parallel
from .trajectory import Trajectory
from .weight_surface import WeightSurface

FARTHEST = 1e30  # beyond it coordinates are no numbers of single precision


class Plane(NamedTuple):
    """Where the grid lies, and what its coordinates mean."""

    directions: tuple[Direction, ...]
    axes: tuple[str, str]
    meaning: tuple[str, str]
    alpha: Axis
    beta: Axis
    path: Places


def laid(model: nn.Module, given: Any, names: Sequence[str], span: float, points: int, count: int) -> Plane:
    """The plane that is asked for: from what was given, through the model, over `points` to `span` on each axis."""
    limits, path = [(-span, span)] * 2, torch.zeros(0, 2, dtype=torch.float64)
    axes, meaning = pair(["first given direction", "second given direction"][:count], "given direction")
    if isinstance(given, WeightSurface):
        axes, meaning = (given.axes, given.meaning) if count == 2 else pair(given.axes[:1], given.meaning[0])
        given = given.directions
    elif isinstance(given, Trajectory):
        path = given.places.cpu()
        axes, meaning = pair(
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
        axes, meaning = pair(
            [
                f"eigenvector of the Hessian at {value:.3g}{'' if is_sure else ' (not converged)'}"
                for value, is_sure in zip(given.eigenvalues[:count].tolist(), given.converged.tolist(), strict=False)
            ],
            "distance in weight space",
        )
        given = given.vectors[:count]
    vectors = given_directions(given, model, names, count)
    refuse_parallel(vectors, "directions")
    alpha, beta = (grid_axis(*limit, points) for limit in limits)
    return Plane(vectors, axes, meaning, alpha, beta if count == 2 else beta.new_zeros(1), path)


def pair(names: Sequence[str], meaning: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Names and meanings of two axes; a line's second has none."""
    return (names[0], names[1] if len(names) > 1 else "none"), (meaning, meaning if len(names) > 1 else "none")


def named(directions: Any) -> Normalization:
    """A normalisation by its name, checked."""
    for name in get_args(Normalization):
        if isinstance(directions, str) and directions == name:
            return name
    raise ValueError(
        f"directions is {directions!r}, expected one of {', '.join(map(repr, get_args(Normalization)))}, "
        "'hessian', a WeightSurface, a Trajectory, or tensors by parameter name"
    )


def grid_axis(low: float, high: float, points: int) -> Tensor:
    """`points` even steps that hold 0 exactly and cover [low, high], up to half a step where 0 is off the middle."""
    if -low == high:
        half = points // 2
        return high * torch.arange(-half, half + 1, dtype=torch.float64) / half
    step = (high - low) / (points - 1)
    return step * (torch.arange(points, dtype=torch.float64) + round(low / step))
