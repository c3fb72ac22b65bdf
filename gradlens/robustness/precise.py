"""PGD in double precision, for samples whose gradient single precision rounds away."""

import copy
import warnings

import torch
from torch import nn

from ..attacks import pgd
from ..ball import Ball
from ..door import lacks_memory
from ..losses import cross_entropy
from ..model import input_gradient
from ..types import Images, Labels

TINY = 1e-30  # largest entry of a gradient that single precision has all but lost
SURE = 1e-6  # nats of cross-entropy below which 1 - p(y), and with it a part of the gradient, is mostly rounding


def pgd_double(
    model: nn.Module, x: Images, y: Labels, ball: Ball, *, steps: int = 20, generator: torch.Generator | None = None
) -> Images:
    """PGD on the cross-entropy of a copy in float64, for images whose gradient in float32 is lost, whole or in part.

    A softmax that float32 rounds to 0 or 1 still has a gradient in float64 (Carlini & Wagner 2017, section V). Where
    p(y) alone rounds to 1, a gradient is left, but not that of the true logit: it has another direction. Other images
    are returned as they are: attacks in float32 have met them.
    """
    _, value, gradient = input_gradient(model, x, y, cross_entropy)
    lost = ~(gradient.flatten(1).abs().amax(1) > TINY) | (value < SURE)
    points = x.clone()
    if x.dtype == torch.float64 or not lost.any():
        return points
    try:
        twin = copy.deepcopy(model).double()
        trace = pgd(twin, x[lost].double(), y[lost], ball, steps=steps, generator=generator)
    except Exception as error:  # whatever the copy of a stranger's model raises
        if lacks_memory(error):
            raise
        warnings.warn(
            f"pgd-double was left out, the model has no copy in float64: {error}", RuntimeWarning, stacklevel=2
        )
        return points
    points[lost] = trace.best.to(x)
    return points
