"""Which way to walk from an image: where an attack went, up the gradient, or as the caller says."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks import Distances, PGDTrace, QueryTrace
from ..attacks.pgd import perturb
from ..ball import Ball, expand, l2, linf
from ..batches import Chunk
from ..door import tensor_of
from ..draws import gaussian
from ..losses import margin
from ..model import input_gradient
from ..types import Images, ImagesLike, Loss
from .surface import Surface

Named = Literal["adversarial", "gradient"]
Trace = PGDTrace | QueryTrace | Distances
Way = Tensor | np.ndarray | Trace
Directions = Named | Surface | Way | Sequence[Way] | Mapping[str, Way]


class Given(NamedTuple):
    """Directions that came from outside, for all samples."""

    ways: tuple[Tensor, ...]  # in units of eps
    cleans: tuple[Tensor | None, ...]  # the images that each belongs to, where that is known
    axes: tuple[str, str]
    has_ends: bool  # coordinate 1 is a point that the caller named
    source: str  # for the record

    def __repr__(self) -> str:
        return self.source


def admitted(directions: Directions, x: ImagesLike, ball: Ball, wanted: int) -> Named | Given:
    """The caller's directions once they have been checked as far as that goes before the first image is seen.

    Raises ValueError naming what came and what was expected.
    """
    if isinstance(directions, str):
        if directions not in get_args(Named):
            raise ValueError(
                f"directions is {directions!r}, expected 'adversarial', 'gradient', tensors of x's shape, "
                "traces of attacks or a Surface"
            )
        return directions
    given = _of_surface(directions, ball, wanted) if isinstance(directions, Surface) else _of_ways(directions, ball)
    _check(given.ways, x, wanted)
    return given


def build(
    model: nn.Module,
    chunk: Chunk,
    ball: Ball,
    directions: Named | Given,
    loss: Loss,
    steps: int,
    step_size: float,
    is_plane: bool,
) -> tuple[tuple[Images, ...], tuple[str, str], bool]:
    """The directions of a chunk's images, in units of eps, nan where a sample has none; names; are their ends named?"""
    if isinstance(directions, Given):
        return _of_chunk(directions, chunk), directions.axes, directions.has_ends
    x, y = chunk.x, chunk.y
    if directions == "adversarial":
        # the margin does not saturate: cross-entropy would leave a confident model without a direction
        move = perturb(model, x, y, ball, steps=steps, step_size=step_size, loss=margin, start=x) - x
    else:
        move = ball.steepest(input_gradient(model, x, y, loss)[2])
    first = move / expand(ball.length(move), move)  # nan where the attack found no way at all
    if not is_plane:
        return (first,), (directions, "none"), False
    return (first, _orthogonal(first, ball, chunk)), (directions, "random orthogonal"), False


def _orthogonal(first: Images, ball: Ball, chunk: Chunk) -> Images:
    """A random direction at a right angle to the first one, of the same Euclidean length."""
    noise = gaussian(first, chunk.draws())
    second = noise.sign() if ball.norm == "linf" else noise
    second = second - expand((second * first).flatten(1).sum(1) / l2(first) ** 2, first) * first
    return second * expand(l2(first) / l2(second), second)


def _of_surface(surface: Surface, ball: Ball, wanted: int) -> Given:
    if not math.isclose(surface.unit, ball.eps, rel_tol=1e-6):
        raise ValueError(
            f"directions is a Surface in units of {surface.unit:g} pixels, the ball's eps is {ball.eps:g}; expected "
            "the same, or a shared plane would mean another distance"
        )
    ways = surface.directions[:wanted]
    axes = (surface.axes[0], surface.axes[1] if wanted > 1 else "none")
    return Given(ways, (surface.clean,) * len(ways), axes, surface.has_ends, f"Surface of {surface.made.model}")


def _of_ways(directions: Way | Sequence[Way] | Mapping[str, Way], ball: Ball) -> Given:
    if isinstance(directions, Way):
        directions = (directions,)
    if not isinstance(directions, Mapping | Sequence):
        raise ValueError(
            f"directions is a {type(directions).__name__}, expected tensors of x's shape or traces of attacks"
        )
    ways = list(directions.values() if isinstance(directions, Mapping) else directions)
    for way in ways:
        if not isinstance(way, Way):
            raise ValueError(
                f"directions hold a {type(way).__name__}, expected tensors of x's shape or traces of attacks"
            )
    kinds = ["adversary" if isinstance(way, Trace) else "given direction" for way in ways]
    names = [f"{number} {kind}" for number, kind in zip(("first", "second"), kinds, strict=False)]
    if isinstance(directions, Mapping):
        names = list(map(str, directions))
    sources = [f"{type(way).__name__} of {way.made.model}" if isinstance(way, Trace) else "given" for way in ways]
    return Given(
        ways=tuple(_in_eps(way, ball) for way in ways),
        cleans=tuple(way.clean if isinstance(way, Trace) else None for way in ways),
        axes=(names[0] if names else "none", names[1] if len(names) > 1 else "none"),
        has_ends=True,
        source=f"({', '.join(sources)})",
    )


def _in_eps(way: Way, ball: Ball) -> Tensor:
    if isinstance(way, Trace):
        return (way.adversarial - way.clean) / ball.eps
    if isinstance(way, np.ndarray):
        way = tensor_of(way, f"directions hold an array of {way.dtype}, expected numbers")
    return way.detach()


def _check(ways: tuple[Tensor, ...], x: ImagesLike, wanted: int) -> None:
    shapes = [tuple(way.shape) for way in ways]
    expected = tuple(x.shape) if isinstance(x, Tensor | np.ndarray) else shapes[0] if shapes else ()
    if shapes != [expected] * wanted or not all(_leads_somewhere(way) for way in ways):
        shape = f"x's shape {expected}" if isinstance(x, Tensor | np.ndarray) else "the shape of all of x's images"
        raise ValueError(
            f"directions have shapes {shapes}, expected {wanted} finite tensors of {shape}, none of them all zero"
        )


def _leads_somewhere(way: Tensor) -> bool:
    """Finite and not zero, but for samples that are nan throughout, as a Surface keeps those without a direction."""
    undirected = way.isnan().flatten(1).all(1)
    kept = way[~undirected]
    return bool(kept.isfinite().all() and kept.any())


def _of_chunk(given: Given, chunk: Chunk) -> tuple[Images, ...]:
    vectors = []
    for way, clean in zip(given.ways, given.cleans, strict=True):
        vector = way[chunk.where].to(chunk.x)
        if vector.shape != chunk.x.shape:
            raise ValueError(
                f"directions have another shape than x {tuple(chunk.x.shape)}, expected a step for each image"
            )
        if clean is not None:
            _refuse_other_images(clean[chunk.where].to(chunk.x), chunk)
        # no step is no direction: a plane along it would look flat
        vectors.append(vector.masked_fill(expand(linf(vector) == 0, vector), torch.nan))
    return tuple(vectors)


def _refuse_other_images(clean: Images, chunk: Chunk) -> None:
    same = torch.isclose(clean, chunk.x, rtol=1e-5, atol=1e-6).flatten(1).all(1)
    if not same.all():
        raise ValueError(
            "directions were found from other images than x, the first of them sample "
            f"{chunk.where.start + int((~same).nonzero()[0])}; expected those of these images, in this order"
        )
