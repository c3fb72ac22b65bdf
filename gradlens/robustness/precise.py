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


def pgd_double(
    model: nn.Module, x: Images, y: Labels, ball: Ball, *, steps: int = 20, generator: torch.Generator | None = None
) -> Images:
    """PGD on the cross-entropy of a copy in float64, for images whose gradient in float32 vanishes or nearly does.

    A softmax that float32 rounds to 0 or 1 still has a gradient in float64 (Carlini & Wagner 2017, section V). Images
    whose gradient is of normal size are returned as they are: other attacks have met them.
    """
    gradient = input_gradient(model, x, y, cross_entropy)[2]
    lost = ~(gradient.flatten(1).abs().amax(1) > TINY)
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
