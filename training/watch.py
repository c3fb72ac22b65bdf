"""An eye on the training after each epoch, on validation images: not a result, but what warns of one gone wrong."""

import math
import warnings
from typing import Any

import torch
from torch import nn

from gradlens import Ball, losses, pgd, predict
from gradlens.model import frozen, logits
from gradlens.types import Images, Labels, SampleMask
from training import data
from training.adversarial import gradalign

WATCHED = 128  # validation images that are attacked after each epoch, at most
PART = 0.05  # of the training images, at most: ten steps on more would take as long as an epoch of a small set
CHUNK = 1000  # validation images that go through the model at a time
NOTABLE = 0.2  # PGD accuracy below which nothing can be said to collapse


class CatastrophicOverfitting(UserWarning):
    """Accuracy under many steps fell while accuracy under one stayed: the model learned to mislead a single step."""


ATTACKED = ("pgd", "margin", "margin_pgd", "fgsm_inner", "pgd_inner", "gradalign")


def glance(model: nn.Module, dataset: data.Data) -> dict[str, float | None]:
    """Clean accuracy alone: what `watch` measures, None where it would have to attack."""
    return {"clean": _accuracy(model, dataset.validation), **dict.fromkeys(ATTACKED)}


def watch(model: nn.Module, dataset: data.Data, *, ball: Ball | None = None, seed: int = 0) -> dict[str, float | None]:
    """Accuracy and mean margin (logits, negative = right), clean and under ten PGD steps in the data set's ball;

    and in the ball that is trained in (`ball`), accuracy under FGSM and PGD, and mean GradAlign.
    """
    part = dataset.validation
    device = next(model.parameters()).device
    few = max(1, min(WATCHED, round(PART * len(dataset.train)), len(part)))
    x, y = (t.to(device) for t in part.at(torch.arange(few)))
    trace = pgd(model, x, y, dataset.ball, steps=10)
    inner = dataset.ball if ball is None else ball
    step = pgd(model, x, y, inner, steps=1, step_size=inner.eps)
    many = trace if inner == dataset.ball else pgd(model, x, y, inner, steps=10)
    align = gradalign(model, x, y, inner, generator=torch.Generator().manual_seed(seed)).nanmean().item()
    return {
        "clean": _accuracy(model, part),
        "pgd": _share(~trace.ever),
        "margin": _margin(model, x, y),
        "margin_pgd": trace.margin.amax(0).double().mean().item(),
        "fgsm_inner": _share(~step.success),
        "pgd_inner": _share(~many.ever),
        "gradalign": None if math.isnan(align) else align,
    }


def collapsed(history: list[dict[str, Any]]) -> bool:
    """Is the last epoch one of catastrophic overfitting (Wong et al. 2020)?

    True where, within the ball that is trained in, PGD accuracy fell under half of its best so far, while FGSM
    accuracy is as good as in that best epoch, or 90% of it.
    """
    now, history = history[-1], [record for record in history if record["pgd_inner"] is not None]
    if now["pgd_inner"] is None:  # nobody looked
        return False
    best = max(history, key=lambda record: record["pgd_inner"])
    fell = best["pgd_inner"] >= NOTABLE and now["pgd_inner"] < 0.5 * best["pgd_inner"]
    return bool(fell and now["fgsm_inner"] >= 0.9 * best["fgsm_inner"])


def warn(epoch: int, record: dict[str, Any]) -> None:
    """Say which epoch collapsed."""
    warnings.warn(
        f"catastrophic overfitting in epoch {epoch}: accuracy {record['fgsm_inner']:.1%} under one step, "
        f"{record['pgd_inner']:.1%} under ten; train against more steps (attack='pgd') or a smaller eps",
        CatastrophicOverfitting,
        stacklevel=3,
    )


def _accuracy(model: nn.Module, part: data.Split) -> float:
    device = next(model.parameters()).device
    right = 0
    for index in torch.arange(len(part)).split(CHUNK):
        x, y = (t.to(device) for t in part.at(index))
        right += int((predict(model, x) == y).sum())
    return right / len(part)


def _margin(model: nn.Module, x: Images, y: Labels) -> float:
    with frozen(model), torch.no_grad():
        return losses.margin(logits(model, x), y).double().mean().item()


def _share(mask: SampleMask) -> float:
    return mask.double().mean().item()
