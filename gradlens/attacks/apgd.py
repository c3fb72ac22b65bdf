"""Auto-PGD: a climb that halves its own steps, sample by sample, where they stop paying."""

from itertools import accumulate

import torch
from torch import nn

from ..ball import Ball, expand
from ..door import check_attack
from ..losses import cross_entropy
from ..types import Images, ImagesLike, Labels, LabelsLike, Loss
from .path import Path
from .runs import attacked
from .trace import PGDTrace

FORWARD = 0.75  # share of the gradient's step; the rest goes on as the last step went
RISING = 0.75  # share of steps since the last checkpoint that must raise the loss


def apgd(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    steps: int = 100,
    loss: Loss = cross_entropy,
    targets: LabelsLike | None = None,
    restarts: int = 1,
    start: ImagesLike | None = None,
    samples: int = 1,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> PGDTrace:
    """Climb `loss` with steps that begin at 2 eps and are halved where they stop paying (Croce & Hein 2020, Auto-PGD).

    At checkpoints that grow denser, a sample whose loss rose in at most three quarters of the steps since the last
    one, or whose best loss and step size have both stood still since, goes back to the point of its best loss and
    takes half the step; `PGDTrace.halvings` counts these. `step_size`, `moved` and the cosines of the trace are
    between the points visited, so that a step after a halving is read across the jump back.

    Arguments and errors are those of `pgd`. `start` defaults to `x`; the reference package begins on the surface of
    the ball, for which `start=ball.shell(x, 1.0, generator)`. Some point of the trace fools the model: `PGDTrace.ever`,
    the sense in which AutoAttack counts success. With `losses.dlr` it is APGD-DLR, which needs four classes and says
    so; with `targets` and `losses.targeted_dlr` it goes where it is told, while `apgd_targeted` picks the classes.
    """
    check_attack(ball, steps=steps, step_size=None, restarts=restarts, samples=samples)

    def walk(x: Images, y: Labels, point: Images, wanted: Labels | None) -> PGDTrace:
        return climb(model, x, y, ball, point, steps, loss, samples, wanted)

    options = {
        "ball": ball, "steps": steps, "loss": loss, "start": start, "restarts": restarts, "samples": samples,
        "targets": targets,
    }  # fmt: skip
    return attacked(
        walk, model, x, y, ball, call="apgd", options=options, steps=steps, start=start, restarts=restarts,
        targets=targets, batch=batch, generator=generator, samples=samples,
    )  # fmt: skip


def climb(
    model: nn.Module,
    x: Images,
    y: Labels,
    ball: Ball,
    point: Images,
    steps: int,
    loss: Loss,
    samples: int = 1,
    targets: Labels | None = None,
) -> PGDTrace:
    """One run on checked samples, from `point`, recorded."""
    path = Path(model, x, y, ball, loss, samples, targets)
    value, grad = path.visit(point)
    before, best, best_grad, highest = point, point, grad, value
    size = torch.full_like(value, 2 * ball.eps)
    checks, checked = checkpoints(steps), 0
    rises, then, halved = torch.zeros_like(y), highest, torch.ones_like(value, dtype=torch.bool)
    for step in range(1, steps + 1):
        share = 1.0 if step == 1 else FORWARD
        ahead = ball.project(point + expand(size, x) * ball.steepest(grad), x)
        moved = share * (ahead - point) + (1 - share) * (point - before)
        before, point, last = point, ball.project(point + moved, x), value
        value, grad = path.visit(point, size)
        rises = rises + (value > last)
        is_best = value > highest
        best, best_grad = (torch.where(expand(is_best, x), a, b) for a, b in ((point, best), (grad, best_grad)))
        highest = torch.where(is_best, value, highest)
        if step in checks:
            # a tie counts as too few, as in the authors' code; their paper asks for fewer
            halved = (rises <= RISING * (step - checked)) | (~halved & (highest <= then))
            size = torch.where(halved, size / 2, size)
            point, grad = (torch.where(expand(halved, x), a, b) for a, b in ((best, point), (best_grad, grad)))
            rises, then, checked = torch.zeros_like(rises), highest, step
    return path.trace()


def checkpoints(steps: int) -> list[int]:
    """Steps after which the step size is looked at: 22% of them, then in intervals 3% shorter each, down to 6%."""
    first, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    return [step for step in accumulate(max(first - i * shorter, least) for i in range(steps)) if step <= steps]
