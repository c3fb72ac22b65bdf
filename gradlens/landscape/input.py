"""The loss around an image, on a line or a plane through it."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..ball import Ball, expand
from ..batches import Chunk, Room, in_parts, measured
from ..door import check_attack, check_choice, check_count, is_number
from ..losses import cross_entropy, margin
from ..model import logits, per_sample, predictive_entropy
from ..provenance import UNSIGNED
from ..types import Axis, Images, ImagesLike, Labels, LabelsLike, Loss
from .input_directions import Directions, Given, admitted, build
from .surface import Surface

Box = Literal["mark", "project"]


def input_plane(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    directions: Directions = "adversarial",
    span: float = 3.0,
    points: int = 49,
    loss: Loss = cross_entropy,
    steps: int = 20,
    box: Box = "mark",
    batch: int = 512,
    generator: torch.Generator | None = None,
) -> Surface:
    """Loss, margin, entropy and class at x + eps (alpha d1 + beta d2), alpha and beta from -span to span.

    `x` is (batch, ...); without labels `y` (batch,), the model's own predictions are used. `directions`:
    - "adversarial", what a PGD on the margin adds in `steps` steps; "gradient", the steepest step of `loss`; each
      beside a random direction orthogonal to it. d1 has length 1 in the ball's norm, so that alpha = 1 is eps away; d2
      has d1's Euclidean length, so that angles are true.
    - two traces of the same images, by any two attacks (`pgd`, `square`, `minimum_norm` ...) or on two models: alpha =
      1 is where the first ended, beta = 1 where the second did. `Surface.angle` says how far from orthogonal they are.
    - two tensors or arrays of x's shape, taken as they are, in units of eps: another package's examples are
      (adversarial - x) / ball.eps. A dict gives the axes its keys as names.
    - a Surface of the same images: its very plane, so that several models can be compared on one.

    Every cell is measured: samples share no surface, so an adaptive grid, as `weight_plane` has, would have to follow
    each of them. Points off the pixel box are measured and marked; with box="project" each is clamped into it first,
    so that the plane bends but holds only images that exist. `points` is odd, so that the image itself is measured;
    coordinate 1 is measured where span divides (points - 1) / 2. `batch` images go through the model at a time. A
    sample whose direction vanishes (a zero gradient, an attack that never moved) is nan.

    Raises ValueError as `pgd` does, and for an even number of points, a span that is not positive, directions of
    another shape or number, all zero, or found from other images.
    """
    return _slice(model, x, y, ball, directions, span, points, loss, steps, box, batch, generator, is_plane=True)


def input_line(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    directions: Directions = "adversarial",
    span: float = 3.0,
    points: int = 49,
    loss: Loss = cross_entropy,
    steps: int = 20,
    box: Box = "mark",
    batch: int = 512,
    generator: torch.Generator | None = None,
) -> Surface:
    """The row beta = 0 of `input_plane`: the loss along one direction, as a Surface with a single column.

    Of a plane's Surface given as `directions`, the first direction is taken.
    """
    return _slice(model, x, y, ball, directions, span, points, loss, steps, box, batch, generator, is_plane=False)


def _slice(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball,
    directions: Directions,
    span: float,
    points: int,
    loss: Loss,
    steps: int,
    box: Box,
    batch: int,
    generator: torch.Generator | None,
    is_plane: bool,
) -> Surface:
    size = check_attack(ball, steps=steps, step_size=None)
    if not (is_number(span) and span > 0):
        raise ValueError(f"span is {span!r}, expected a positive number of eps")
    check_count("points", points)
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points is {points}, expected an odd number of at least 3, so that the centre is measured")
    check_choice("box", box, get_args(Box))
    check_count("batch", batch)
    chosen = admitted(directions, x, ball, 2 if is_plane else 1)
    half = points // 2
    limits = (ball.low, ball.high) if box == "project" else None
    room = Room(batch)

    def run(chunk: Chunk) -> Surface:
        x, y = chunk.x, chunk.y
        with chunk.folded():
            vectors, names, has_ends = build(model, chunk, ball, chosen, loss, steps, size, is_plane)
        alpha = span * torch.arange(-half, half + 1, device=x.device, dtype=x.dtype) / half
        beta = alpha if is_plane else alpha[half : half + 1]
        with chunk.folded(), torch.no_grad():
            values = _measure(model, x, y, ball, vectors, alpha, beta, loss, limits, room)
        with torch.no_grad():
            centre_loss = per_sample(loss, logits(model, x), y)
        return Surface(
            **values, alpha=alpha, beta=beta, directions=vectors, axes=names, has_ends=has_ends, unit=ball.eps,
            projected=limits, clean=x, labels=y, centre_loss=centre_loss, made=UNSIGNED,
        )  # fmt: skip

    options = {
        "ball": ball, "directions": chosen, "span": span, "points": points, "loss": loss, "steps": steps, "box": box,
    }  # fmt: skip
    call = "input_plane" if is_plane else "input_line"
    result = measured(run, model, x, y, ball, call=call, options=options, batch=batch, generator=generator)
    if isinstance(chosen, Given) and len(chosen.ways[0]) != len(result.labels):
        raise ValueError(
            f"directions are for {len(chosen.ways[0])} images, x yields {len(result.labels)}, expected as many"
        )
    return result


def _measure(
    model: nn.Module,
    x: Images,
    y: Labels,
    ball: Ball,
    directions: tuple[Images, ...],
    alpha: Axis,
    beta: Axis,
    loss: Loss,
    limits: tuple[float, float] | None,
    room: Room,
) -> dict[str, Tensor]:
    """All cells of all samples, as many images at a time as have room, so that memory does not grow with the grid."""
    shape = (len(alpha), len(beta), len(x))
    cells = torch.cartesian_prod(*(torch.arange(size, device=x.device) for size in shape))
    undirected = torch.stack([d.flatten(1).isnan().any(1) for d in directions]).any(0)
    # those are measured at the image itself, and what came out is struck off
    ways = [d.masked_fill(expand(undirected, d), 0) for d in directions]

    def measure(where: slice) -> tuple[Tensor, ...]:
        row, column, sample = cells[where].T
        point = x[sample]
        for way, reach in zip(ways, (alpha[row], beta[column]), strict=False):
            point.addcmul_(expand(ball.eps * reach, x), way[sample])
        void = undirected[sample]
        lowest, highest = point.flatten(1).aminmax(dim=1)
        boxed = (lowest >= ball.low - 1e-6) & (highest <= ball.high + 1e-6)
        answer = logits(model, point if limits is None else point.clamp(*limits))
        labels = y[sample]
        return (
            per_sample(loss, answer, labels).masked_fill(void, torch.nan),
            margin(answer, labels).masked_fill(void, torch.nan),
            predictive_entropy(answer).masked_fill(void, torch.nan),
            answer.argmax(1).masked_fill(void, -1),
            boxed & ~void,
        )

    parts = in_parts(measure, len(cells), room)
    names = ("loss", "margin", "entropy", "predicted", "in_box")
    return {name: torch.cat(pieces).view(shape) for name, pieces in zip(names, zip(*parts, strict=True), strict=True)}
