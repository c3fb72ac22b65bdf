"""The fast minimum-norm attack: the closest error, whatever its distance."""

import math

import torch
from torch import nn

from ..ball import Ball, expand, unit
from ..batches import Chunk, measured
from ..door import check_attack
from ..losses import errs, margin
from ..model import input_gradient, logits
from ..provenance import UNSIGNED
from ..types import Images, ImagesLike, Labels, LabelsLike
from .distances import Distances

STRIDE = (1.0, 0.01)  # first and last step's length in L2, in widths of the pixel box
CHANGE = (0.05, 0.001)  # share by which the ball shrinks or grows, at the first step and at the last


def minimum_norm(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    steps: int = 100,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> Distances:
    """Distance from each image to the closest error found (FMN, Pintor et al. 2021, with its published step sizes).

    Climbs the margin in steps of falling length, within a ball of each sample's own that shrinks while the model errs
    and grows while it does not. `ball` gives the norm and the pixel box; its eps bounds nothing. An image that is
    misclassified already is at distance 0; where no error was found the distance is nan.

    `x` and `y` are those of `pgd`, and so are the errors. Nothing is drawn; `generator` is only written down.
    """
    check_attack(ball, steps=steps, step_size=None)

    def run(chunk: Chunk) -> Distances:
        # not folded: the closest errors have margins as small as the rounding that folding changes
        best = _closest(model, chunk.x, chunk.y, ball, steps)
        with torch.no_grad():
            answer = logits(model, best)
        passes = torch.full_like(chunk.y, steps + 1)
        return Distances(
            clean=chunk.x, adversarial=best, labels=chunk.y, margin=margin(answer, chunk.y),
            distance=ball.length(best - chunk.x).where(errs(answer, chunk.y), torch.nan),
            forwards=passes + 1, backwards=passes, ball=ball, made=UNSIGNED,
        )  # fmt: skip

    options = {"ball": ball, "steps": steps}
    return measured(run, model, x, y, ball, call="minimum_norm", options=options, batch=batch, generator=generator)


def _closest(model: nn.Module, x: Images, y: Labels, ball: Ball, steps: int) -> Images:
    """Of the points visited that err, the closest to each image; the image itself where none does."""
    point, best = x, x
    widest = ball.length(torch.maximum(x - ball.low, ball.high - x))
    radius = closest = torch.full_like(widest, torch.inf)
    for step in range(steps + 1):
        answer, lead, grad = input_gradient(model, point, y, margin)
        # what would leave the box is no way to the boundary: counted in, it takes all of a small ball's room
        grad = grad.masked_fill((point <= ball.low) & (grad < 0) | (point >= ball.high) & (grad > 0), 0.0)
        length, is_wrong = ball.length(point - x), errs(answer, y)
        is_closer = is_wrong & (length < closest)
        best, closest = torch.where(expand(is_closer, x), point, best), torch.where(is_closer, length, closest)
        change = _annealed(CHANGE, step, steps)
        # the boundary of the linearised model, where float32 may put a point on either side; hence a little beyond
        ahead = length + (lead.abs() / ball.dual(grad)).nan_to_num(0.0, posinf=torch.inf)
        grown = ahead.where(closest.isinf(), radius) * (1 + change)
        radius = grown.where(~is_wrong, closest.minimum(radius * (1 - change))).minimum(widest)
        stride = (ball.high - ball.low) * _annealed(STRIDE, step, steps)
        point = ball.project(point + stride * unit(grad).nan_to_num(0.0), x, radius)
    return best


def _annealed(ends: tuple[float, float], step: int, steps: int) -> float:
    """From the first of `ends` to the last along half a cosine."""
    first, last = ends
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
