"""Projected gradient descent, told as a trace of what it met on the way."""

import torch
from torch import nn

from ..ball import Ball, expand, l1, linf
from ..door import check_attack
from ..losses import cross_entropy
from ..model import input_gradient
from ..types import Images, ImagesLike, Labels, LabelsLike, Loss
from .path import Path
from .runs import attacked
from .trace import PGDTrace


def pgd(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    steps: int = 10,
    step_size: float | None = None,
    loss: Loss = cross_entropy,
    start: ImagesLike | None = None,
    restarts: int = 1,
    samples: int = 1,
    momentum: float = 0.0,
    targets: LabelsLike | None = None,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> PGDTrace:
    """Climb `loss` inside `ball` around `x`, record every point (Madry et al. 2018).

    `x` is (batch, ...) with pixels in the ball's box, or an iterable of (images, labels) such as a DataLoader; `y`
    (batch,) class numbers, None takes the model's predictions. `step_size` is in pixels, of the ball's norm, and
    defaults to 2.5 eps / steps; every step has that length unless the gradient is exactly zero. `start` defaults to
    `x` itself; further `restarts` begin at points drawn uniformly from the ball, and each sample keeps the run that
    errs and led by most (`PGDTrace.lead`). `samples` > 1 averages the gradient over that many passes of a random model
    (EOT, Athalye et al. 2018). `momentum` is the decay of MI-FGSM (Dong et al. 2018). With `targets` (batch,) the
    loss towards them is descended, or `losses.targeted_dlr` climbed. At most `batch` images are
    in the model at a time, fewer where so many steps would not fit.

    Raises ValueError for inputs outside the box, wrong shapes or labels, a random model with samples=1, steps,
    restarts or samples below 1.
    """
    size = check_attack(ball, steps=steps, step_size=step_size, restarts=restarts, samples=samples, momentum=momentum)

    def walk(x: Images, y: Labels, point: Images, wanted: Labels | None) -> PGDTrace:
        return climb(model, x, y, ball, point, steps, size, loss, samples, momentum, wanted)

    options = {
        "ball": ball, "steps": steps, "step_size": size, "loss": loss, "start": start, "restarts": restarts,
        "samples": samples, "momentum": momentum, "targets": targets,
    }  # fmt: skip
    return attacked(
        walk, model, x, y, ball, call="pgd", options=options, steps=steps, start=start, restarts=restarts,
        targets=targets, batch=batch, generator=generator, samples=samples,
    )  # fmt: skip


def climb(
    model: nn.Module,
    x: Images,
    y: Labels,
    ball: Ball,
    point: Images,
    steps: int,
    step_size: float,
    loss: Loss,
    samples: int = 1,
    momentum: float = 0.0,
    targets: Labels | None = None,
) -> PGDTrace:
    """One run on checked samples, from `point`, recorded."""
    path = Path(model, x, y, ball, loss, samples, targets)
    grad = path.visit(point)[1]
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        velocity = grad if momentum == 0 else momentum * velocity + _shape(grad)
        point = ball.project(point + step_size * ball.steepest(velocity), x)
        grad = path.visit(point, step_size)[1]
    return path.trace()


def perturb(
    model: nn.Module, x: Images, y: Labels, ball: Ball, *, steps: int, step_size: float, loss: Loss, start: Images
) -> Images:
    """The bare loop of `pgd`: the last point alone, nothing recorded, nothing checked, the model's mode left alone.

    For the inner problem of adversarial training, where the caller owns the model and the batch.
    """
    point = start
    for _ in range(steps):
        grad = input_gradient(model, point, y, loss)[2]
        point = ball.project(point + step_size * ball.steepest(grad), x)
    return point


def _shape(grad: Images) -> Images:
    """The gradient scaled to sum of absolute values 1, as MI-FGSM adds it up; zero where it is zero."""
    scaled = grad / expand(linf(grad), grad)
    return (scaled / expand(l1(scaled), grad)).nan_to_num(0.0)
