"""The attacks behind the evidence: small loops that keep each sample's best point, on a model already checked."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attacks.queries.blackbox import BlackBox
from ..ball import Ball, expand
from ..batches import BATCH
from ..draws import Draws, gaussian, uniform
from ..losses import margin
from ..model import input_gradient, logits
from ..types import Images, Labels, Loss, PerSample, SampleMask

Gradient = Callable[[Images], tuple[PerSample, Images]]  # margins at the points, and the gradient to follow


@dataclass
class Best:
    """Of the points seen in the ball, each sample's with the largest margin."""

    points: Images
    margins: PerSample

    @classmethod
    def none(cls, x: Images) -> "Best":
        return cls(x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device))

    def see(self, points: Images, margins: PerSample) -> None:
        better = margins > self.margins
        self.points = torch.where(expand(better, points), points, self.points)
        self.margins = torch.where(better, margins.to(self.margins), self.margins)


def along(model: nn.Module, y: Labels, loss: Loss) -> Gradient:
    """The gradient of a loss at the point itself."""

    def gradient(point: Images) -> tuple[PerSample, Images]:
        answer, _, grad = input_gradient(model, point, y, loss)
        return margin(answer, y), grad

    return gradient


def averaged(model: nn.Module, y: Labels, loss: Loss, ball: Ball, draws: Draws, count: int) -> Gradient:
    """The mean unit gradient over `count` Gaussian points around: of a shattered loss, its slope at a larger scale.

    sigma is eps per pixel under "linf", and eps over the whole image under "l2".
    """

    def gradient(point: Images) -> tuple[PerSample, Images]:
        sigma = ball.eps if ball.norm == "linf" else ball.eps / point[0].numel() ** 0.5
        total = torch.zeros_like(point)
        for _ in range(count):
            near = (point + sigma * gaussian(point, draws)).clamp(ball.low, ball.high)
            grad = input_gradient(model, near, y, loss)[2].nan_to_num(0.0)
            size = grad.flatten(1).norm(dim=1)
            # unit gradients: the steep walls of a staircase would drown what lies between them
            total += torch.where(expand(size > 0, grad), grad / expand(size.clamp(min=1e-38), grad), 0.0)
        with torch.no_grad():
            return margin(logits(model, point), y), total

    return gradient


def climb(
    gradient: Gradient, x: Images, ball: Ball, start: Images, steps: int, *, best: Best, shrink: bool = False
) -> Best:
    """PGD with steps of 2.5 eps / `steps`, or from eps down to 0 along a cosine if `shrink`; the best point is kept."""
    point = start
    for step in range(steps + 1):
        margins, grad = gradient(point)
        best.see(point, margins)
        if step < steps:
            share = 0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * step / steps)).item() if shrink else 2.5 / steps
            point = ball.project(point + share * ball.eps * ball.steepest(grad), x)
    return best


@torch.no_grad()
def scatter(model: nn.Module, x: Images, y: Labels, ball: Ball, draws: Draws, count: int) -> Best:
    """Random search: half the points uniform in the ball, half at its far ends, where most errors lie."""
    best = Best.none(x)
    for draw in range(count):
        if draw % 2:
            point = ball.sample(x, draws)
        elif ball.norm == "linf":
            point = (x + ball.eps * (2 * (uniform(x, draws) < 0.5) - 1)).clamp(ball.low, ball.high)
        else:
            point = ball.shell(x, 1.0, draws)
        best.see(point, margin(logits(model, point), y))
    return best


def asked(search: Callable[[BlackBox], None], model: nn.Module, x: Images, y: Labels, ball: Ball, queries: int) -> Best:
    """An attack by queries alone."""
    box = BlackBox(model, x, y, ball, queries=queries, width=BATCH, until_broken=True)
    search(box)
    points, margins, *_ = box.recount()
    return Best(points, margins)


@torch.no_grad()
def errs(model: nn.Module, points: Images, x: Images, y: Labels, ball: Ball) -> SampleMask:
    """The model errs on these points, in a pass of its own, and they are inside the ball and the box."""
    answer: Tensor = logits(model, points)
    return (answer.argmax(1) != y) & answer.isfinite().all(1) & ball.contains(points, x)
