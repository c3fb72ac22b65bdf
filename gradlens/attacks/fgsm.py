"""The fast gradient sign method: one step to the surface of the ball."""

import torch
from torch import nn

from ..ball import Ball
from ..door import check_attack
from ..losses import cross_entropy
from ..types import Images, ImagesLike, Labels, LabelsLike, Loss
from .pgd import climb
from .runs import attacked
from .trace import PGDTrace


def fgsm(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    loss: Loss = cross_entropy,
    targets: LabelsLike | None = None,
    samples: int = 1,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> PGDTrace:
    """One step of length eps along the loss's gradient at `x` (Goodfellow et al. 2015); its sign under "linf".

    Arguments and errors are those of `pgd`, of which this is the run with steps=1 and step_size=eps.
    """
    check_attack(ball, steps=1, step_size=None, samples=samples)

    def walk(x: Images, y: Labels, point: Images, wanted: Labels | None) -> PGDTrace:
        return climb(model, x, y, ball, point, 1, ball.eps, loss, samples, targets=wanted)

    options = {"ball": ball, "loss": loss, "samples": samples, "targets": targets}
    return attacked(
        walk, model, x, y, ball, call="fgsm", options=options, steps=1, start=None, targets=targets, batch=batch,
        generator=generator, samples=samples,
    )  # fmt: skip
