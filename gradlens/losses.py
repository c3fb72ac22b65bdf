"""Per-sample attack losses: (logits, labels) -> (batch,). Higher means closer to an error.

`targeted_dlr` alone takes targets beside the labels; of the others, an attack on targets climbs the negative.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .types import Labels, Logits, Loss, PerSample, SampleMask


def errs(logits: Logits, y: Labels) -> SampleMask:
    """Is the class of the largest logit, the first of equals, another than `y`? Logits that are nan name no class."""
    return (logits.argmax(1) != y) & ~logits.isnan().any(1)


def cross_entropy(logits: Logits, y: Labels) -> PerSample:
    """-log p(y), in nats. Saturates: its gradient dies where the model is sure."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Logits, y: Labels) -> PerSample:
    """Best wrong logit minus true logit, in logits. Positive where the model errs, negative where it is right.

    At 0 classes tie, and the first of them is the model's answer, as for torch's argmax (see `errs`).

    The loss of Carlini & Wagner (2017) without its cut-off: its gradient does not depend on the model's confidence.
    """
    true = logits.gather(1, y[:, None]).squeeze(1)
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return wrong - true


def dlr(logits: Logits, y: Labels) -> PerSample:
    """Difference of logits ratio: the margin over (largest - third largest logit), without unit.

    It does not change when the logits are shifted or scaled (Croce & Hein 2020, AutoAttack).

    Raises ValueError for fewer than four classes: with two the ratio has no denominator, with three it is constant
    for every label that ranks last. Take `margin` there.
    """
    if logits.shape[1] < 4:
        raise ValueError(f"dlr needs at least 4 classes, the model has {logits.shape[1]}; take losses.margin instead")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2])


def targeted_dlr(logits: Logits, y: Labels, targets: Labels) -> PerSample:
    """The target's lead over the true logit, over (largest - mean of third and fourth largest logit), without unit.

    Like `dlr` it does not change when the logits are shifted or scaled; any error counts, the target only says where
    to look for it (Croce & Hein 2020, AutoAttack's APGD-T).

    Raises ValueError for fewer than four classes. Take `margin` there, in `apgd_targeted` or with `targets`.
    """
    if logits.shape[1] < 4:
        raise ValueError(
            f"targeted_dlr needs at least 4 classes, the model has {logits.shape[1]}; take losses.margin instead"
        )
    top = logits.topk(4, dim=1).values
    lead = (logits.gather(1, targets[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    return lead / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def towards(loss: Loss, targets: Labels) -> Loss:
    """What an attack on `targets` climbs: `targeted_dlr` itself, the negative of any other loss with them as labels."""

    def climbed(logits: Tensor, y: Tensor) -> Tensor:
        return targeted_dlr(logits, y, targets) if loss is targeted_dlr else -loss(logits, targets)

    return climbed


def probability_margin(logits: Logits, y: Labels) -> PerSample:
    """log(1 + best wrong probability - true probability), in nats: climbs as the probability margin of Xie et al. 2024.

    The margin of the softmax itself (arXiv 2411.15210) rounds to -1 in float32, and loses its gradient, where the model
    is sure. Its logarithm after adding 1 has the same order and the same direction of gradient, and neither is lost.
    Positive where the model errs.
    """
    wrong = logits.scatter(1, y[:, None], -torch.inf)
    # 1 + p_j - p_y is the sum of all wrong probabilities, the best of them taken twice
    twice = F.one_hot(wrong.argmax(1), logits.shape[1]) * math.log(2)
    return (wrong + twice).logsumexp(1) - logits.logsumexp(1)


def rescaled(logits: Logits, y: Labels, t: float = 1.0) -> PerSample:
    """Cross-entropy, in nats, of t times the logits divided by the (detached) gap between the two largest.

    The gap becomes t, so that float32 does not round the softmax to 0 or 1, as it does from a gap of 17 on (MIFPE, Yu &
    Xu 2023, where t is 1 or 10). An attack takes another t as `functools.partial(rescaled, t=10.0)`. Logits whose two
    largest are equal are not divided: there is nothing to rescale. Raises ValueError for a t that is not above 0.
    """
    if not 0 < t < math.inf:
        raise ValueError(f"t is {t!r}, expected a positive number")
    top = logits.detach().topk(2, dim=1).values
    gap = top[:, 0] - top[:, 1]
    return cross_entropy(t * logits / gap.where(gap > 0, 1.0)[:, None], y)
