"""Per-sample attack losses: (logits, labels) -> (batch,). Higher means closer to an error."""

import torch
import torch.nn.functional as F

from .types import Labels, Logits, PerSample


def cross_entropy(logits: Logits, y: Labels) -> PerSample:
    """-log p(y), in nats. Saturates: its gradient dies where the model is sure."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Logits, y: Labels) -> PerSample:
    """Best wrong logit minus true logit, in logits. Positive exactly where the model errs.

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


def rescaled(logits: Logits, y: Labels) -> PerSample:
    """Cross-entropy, in nats, of logits divided by the (detached) gap between the two largest.

    The gap becomes 1, so that float32 never rounds the softmax to 0 or 1 (MIFPE, Yamamura et al. 2022, with t = 1).
    Logits whose two largest are equal are left as they are: there is nothing to rescale.
    """
    top = logits.detach().topk(2, dim=1).values
    gap = top[:, 0] - top[:, 1]
    return cross_entropy(logits / gap.where(gap > 0, 1.0)[:, None], y)
