"""Models that differ from others in the scale of their logits alone: what a loss sees of them, and no decision does."""

import math

import torch
from torch import Tensor, nn

from ..ball import Ball
from ..door import check_answer, check_images
from ..model import frozen
from ..types import ImagesLike


class Scaled(nn.Module):
    """`model` with its logits times `factor`: the same decisions, boundaries and distances, another confidence."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        if not (isinstance(factor, int | float) and 0 < factor < math.inf):
            raise ValueError(f"factor is {factor!r}, expected a positive number")
        self.model = model
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.model(x)
        return self.factor * answer


def as_confident_as(model: nn.Module, other: nn.Module, x: ImagesLike, ball: Ball = Ball()) -> Scaled:
    """`model` with its logits scaled until the median lead of its first class over the second, on images `x`, is that
    of `other`.

    The control of every claim about the size of cross-entropy gradients: SL with RL's margins is SL in all but its
    confidence, and what it shows as well needs no reinforcement learning. Confidence alone saturates the softmax and
    defeats attacks on the cross-entropy in float32 (Carlini & Wagner 2017, on distillation).

    Raises ValueError for bad images, as `pgd` does, and where a median lead is 0.
    """
    leads = [_lead(one, x, ball) for one in (model, other)]
    for name, lead in zip(("model", "other"), leads, strict=True):
        if not 0 < lead < math.inf:
            raise ValueError(f"{name} leads its second class by {lead:g} in the median image, expected more than 0")
    return Scaled(model, leads[1] / leads[0])


@torch.no_grad()
def _lead(model: nn.Module, x: ImagesLike, ball: Ball) -> float:
    """Median lead of the first class, logits."""
    with frozen(model):
        first, second = check_answer(model, check_images(model, x, ball)).double().topk(2, 1).values.unbind(1)
    return (first - second).median().item()
