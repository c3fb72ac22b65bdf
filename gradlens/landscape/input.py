"""The loss around an image, on a line or a plane through it."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..attacks.pgd import perturb
from ..ball import Ball, expand, l2
from ..batches import Chunk, measured
from ..door import check_attack
from ..draws import gaussian
from ..losses import cross_entropy, margin
from ..model import input_gradient, logits, per_sample
from ..provenance import UNSIGNED
from ..types import Axis, Images, ImagesLike, Labels, LabelsLike, Loss
from .surface import Surface

Directions = Literal["adversarial", "gradient"]
Box = Literal["mark", "project"]


def input_plane(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    directions: Directions | tuple[Images, Images] = "adversarial",
    span: float = 3.0,
    points: int = 51,
    loss: Loss = cross_entropy,
    steps: int = 20,
    box: Box = "mark",
    batch: int = 512,
    generator: torch.Generator | None = None,
) -> Surface:
    """Loss, margin and predicted class at x + eps (alpha d1 + beta d2), alpha and beta from -span to span.

    `x` is (batch, ...); without labels `y` (batch,), the model's own predictions are used. `directions`:
    "adversarial", what a PGD on the margin adds in `steps` steps; "gradient", the steepest step of `loss`; each beside
    a random direction orthogonal to it; or two tensors of x's shape. d1 has length 1 in the ball's norm, so that
    alpha = 1 is eps away; the random d2 has d1's Euclidean length, so that angles are true. Given tensors are taken as
    they are, in units of eps. Points off the pixel box are measured and marked; with box="project" each is clamped
    into it first, so that the plane bends but holds only images that exist. `points` is odd, so that the image itself
    is measured; `batch` images go through the model at a time. A sample whose direction vanishes (a zero gradient) is
    nan.

    Raises ValueError as `pgd` does, and for an even number of points, a span that is not positive, directions of
    another shape.
    """
    return _slice(model, x, y, ball, directions, span, points, loss, steps, box, batch, generator, is_plane=True)


def input_line(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    directions: Directions | tuple[Images] = "adversarial",
    span: float = 3.0,
    points: int = 51,
    loss: Loss = cross_entropy,
    steps: int = 20,
    box: Box = "mark",
    batch: int = 512,
    generator: torch.Generator | None = None,
) -> Surface:
    """The row beta = 0 of `input_plane`: the loss along one direction, as a Surface with a single column."""
    return _slice(model, x, y, ball, directions, span, points, loss, steps, box, batch, generator, is_plane=False)


def _slice(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball,
    directions: Directions | tuple[Images, ...],
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
    if not span > 0:
        raise ValueError(f"span is {span}, expected a positive number of eps")
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points is {points}, expected an odd number of at least 3, so that the centre is measured")
    if box not in get_args(Box):
        raise ValueError(f"box is {box!r}, expected 'mark' or 'project'")
    if batch < 1:
        raise ValueError(f"batch is {batch}, expected at least 1")
    if not isinstance(directions, str) and isinstance(x, torch.Tensor):
        _check_given(directions, x, 2 if is_plane else 1)
    half = points // 2
    limits = (ball.low, ball.high) if box == "project" else None

    def run(chunk: Chunk) -> Surface:
        x, y = chunk.x, chunk.y
        vectors, names = _directions(model, chunk, ball, directions, loss, steps, size, is_plane)
        alpha = span * torch.arange(-half, half + 1, device=x.device, dtype=x.dtype) / half
        beta = alpha if is_plane else alpha[half : half + 1]
        with torch.no_grad():
            values = _measure(model, x, y, ball, vectors, alpha, beta, loss, limits, batch)
            centre_loss = per_sample(loss, logits(model, x), y)
        return Surface(
            **values, alpha=alpha, beta=beta, directions=vectors, axes=names, unit=ball.eps, projected=limits,
            labels=y, centre_loss=centre_loss, made=UNSIGNED,
        )  # fmt: skip

    options = {
        "ball": ball, "directions": directions if isinstance(directions, str) else "given", "span": span,
        "points": points, "loss": loss, "steps": steps, "box": box,
    }  # fmt: skip
    call = "input_plane" if is_plane else "input_line"
    return measured(run, model, x, y, ball, call=call, options=options, batch=batch, generator=generator)


def _check_given(directions: tuple[Images, ...], x: torch.Tensor, wanted: int) -> None:
    shapes = [tuple(d.shape) for d in directions]
    if shapes != [tuple(x.shape)] * wanted or not all(d.isfinite().all() and d.any() for d in directions):
        raise ValueError(
            f"directions have shapes {shapes}, expected {wanted} finite tensors of x's shape {tuple(x.shape)}, "
            "none of them all zero"
        )


def _directions(
    model: nn.Module,
    chunk: Chunk,
    ball: Ball,
    directions: Directions | tuple[Images, ...],
    loss: Loss,
    steps: int,
    step_size: float,
    is_plane: bool,
) -> tuple[tuple[Images, ...], tuple[str, str]]:
    x, y = chunk.x, chunk.y
    if not isinstance(directions, str):
        directions = tuple(d[chunk.where] for d in directions)
        if any(d.shape != x.shape for d in directions):
            raise ValueError(f"directions have another shape than x {tuple(x.shape)}, expected a step for each image")
        return tuple(d.to(x) for d in directions), (
            "first given direction",
            "second given direction" if is_plane else "none",
        )
    if directions == "adversarial":
        # the margin does not saturate: cross-entropy would leave a confident model without a direction
        move = perturb(model, x, y, ball, steps=steps, step_size=step_size, loss=margin, start=x) - x
    elif directions == "gradient":
        move = ball.steepest(input_gradient(model, x, y, loss)[2])
    else:
        raise ValueError(f"directions is {directions!r}, expected 'adversarial', 'gradient' or tensors of x's shape")
    first = move / expand(ball.length(move), move)  # nan where the attack found no way at all
    if not is_plane:
        return (first,), (directions, "none")
    noise = gaussian(x, chunk.draws())
    second = noise.sign() if ball.norm == "linf" else noise
    second = second - expand((second * first).flatten(1).sum(1) / l2(first) ** 2, first) * first
    second = second * expand(l2(first) / l2(second), second)
    return (first, second), (directions, "random orthogonal")


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
    batch: int,
) -> dict[str, Tensor]:
    """All cells of all samples, `batch` images at a time, so that memory does not grow with the grid."""
    shape = (len(alpha), len(beta), len(x))
    cells = torch.cartesian_prod(*(torch.arange(size, device=x.device) for size in shape))
    undirected = torch.stack([d.flatten(1).isnan().any(1) for d in directions]).any(0)
    parts: list[tuple[Tensor, ...]] = []
    for row, column, sample in (chunk.T for chunk in cells.split(batch)):
        point = x[sample] + ball.eps * expand(alpha[row], x) * directions[0][sample]
        if len(directions) > 1:
            point = point + ball.eps * expand(beta[column], x) * directions[1][sample]
        void = undirected[sample]
        boxed = ((point >= ball.low - 1e-6) & (point <= ball.high + 1e-6)).flatten(1).all(1)
        point = point if limits is None else point.clamp(*limits)
        answer = logits(model, torch.where(expand(void, point), x[sample], point))
        labels = y[sample]
        parts.append(
            (
                per_sample(loss, answer, labels).masked_fill(void, torch.nan),
                margin(answer, labels).masked_fill(void, torch.nan),
                answer.argmax(1),
                boxed & ~void,
            )
        )
    names = ("loss", "margin", "predicted", "in_box")
    return {name: torch.cat(pieces).view(shape) for name, pieces in zip(names, zip(*parts, strict=True), strict=True)}
