"""Attacks on one wrong class after the other, and which to try first."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from ..ball import Ball
from ..batches import Chunk, measured
from ..door import check_attack, check_choice, check_count
from ..losses import margin, targeted_dlr, towards
from ..model import logits
from ..types import Images, ImagesLike, Labels, LabelsLike, Loss, Targets
from .apgd import climb as climb_halving
from .pgd import climb as climb_steadily
from .runs import check_beside, start_of
from .trace import PGDTrace, stronger

By = Literal["logit", "malt"]
CANDIDATES = 100  # classes of largest logit that "malt" looks at, as in its paper


def target_classes(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    count: int | None = None,
    by: By = "malt",
    batch: int | None = None,
) -> Targets:
    """The wrong classes that look closest, (batch, count), the closest first; all of them where no count is given,
    with by="malt" at most 100.

    By "logit": of largest logit, AutoAttack's choice. By "malt" (Melamed et al. 2024, arXiv 2407.02240): by the true
    logit's lead over the size of its gradient in `x`, which on a linear model is the distance to that class; taken in
    the ball's dual norm, so that it is a distance in the ball's own, among the 100 classes of largest logit. A class
    whose lead has no gradient comes last.

    Raises ValueError as `pgd` does, for another `by`, and for a count below 1 or above the number of wrong classes.
    """
    _check_by(by)
    if count is not None:
        check_count("count", count)

    def run(chunk: Chunk) -> _Ranks:
        with chunk.folded():
            ranks = ranked(model, chunk.x, chunk.y, ball, by)
        if count is not None and count > ranks.shape[1]:
            raise ValueError(f"count is {count}, expected at most {ranks.shape[1]}, the wrong classes that are ranked")
        return _Ranks(ranks[:, :count])

    options = {"ball": ball, "count": count, "by": by}
    return measured(run, model, x, y, ball, call="target_classes", options=options, batch=batch, generator=None).classes


def apgd_targeted(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    steps: int = 100,
    classes: int = 9,
    by: By = "malt",
    loss: Loss = targeted_dlr,
    start: ImagesLike | None = None,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> PGDTrace:
    """`apgd` towards up to `classes` wrong classes, one after the other, until some error is found.

    Each run climbs `loss` towards one class of `target_classes`; any error counts as success, as in AutoAttack's
    APGD-T, which is by="logit". Samples that have met an error are left alone by the later runs. The trace tells of
    each sample's run with the largest margin; `forwards` and `backwards` count all runs, and what the choice of
    classes took. A model with fewer wrong classes than `classes` has all of them attacked.

    Arguments and errors are those of `apgd`; the default loss needs four classes and refuses fewer by name.
    """
    check_attack(ball, steps=steps, step_size=None)
    check_count("classes", classes)
    _check_by(by)
    check_beside("start", start, x)

    def walk(x: Images, y: Labels, point: Images, climbed: Loss) -> PGDTrace:
        return climb_halving(model, x, y, ball, point, steps, climbed)

    def run(chunk: Chunk) -> PGDTrace:
        return _one_by_one(walk, model, chunk, start_of(start, chunk, ball), ball, loss, by, classes)

    options = {"ball": ball, "steps": steps, "classes": classes, "by": by, "loss": loss, "start": start}
    return measured(
        run, model, x, y, ball, call="apgd_targeted", options=options, batch=batch, generator=generator, kept=steps
    )


def pgd_targeted(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    steps: int = 10,
    step_size: float | None = None,
    classes: int | None = None,
    by: By = "malt",
    loss: Loss = margin,
    momentum: float = 0.0,
    start: ImagesLike | None = None,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> PGDTrace:
    """`pgd` towards all wrong classes, one after the other, until some error is found (MultiTargeted, Gowal et al.
    2019).

    As `apgd_targeted`, with fixed steps, towards all that `target_classes` ranks, or the first `classes` of them. The
    default loss raises the target's lead over all other classes.

    Arguments and errors are those of `pgd`.
    """
    size = check_attack(ball, steps=steps, step_size=step_size, momentum=momentum)
    if classes is not None:
        check_count("classes", classes)
    _check_by(by)
    check_beside("start", start, x)

    def walk(x: Images, y: Labels, point: Images, climbed: Loss) -> PGDTrace:
        return climb_steadily(model, x, y, ball, point, steps, size, climbed, momentum=momentum)

    def run(chunk: Chunk) -> PGDTrace:
        return _one_by_one(walk, model, chunk, start_of(start, chunk, ball), ball, loss, by, classes)

    options = {
        "ball": ball, "steps": steps, "step_size": size, "classes": classes, "by": by, "loss": loss,
        "momentum": momentum, "start": start,
    }  # fmt: skip
    return measured(
        run, model, x, y, ball, call="pgd_targeted", options=options, batch=batch, generator=generator, kept=steps
    )


def _one_by_one(
    walk: Callable[[Images, Labels, Images, Loss], PGDTrace],
    model: nn.Module,
    chunk: Chunk,
    begin: Images,
    ball: Ball,
    loss: Loss,
    by: By,
    count: int | None,
) -> PGDTrace:
    """A run towards each of the first `count` classes, of the samples that have met no error before it."""
    x, y = chunk.x, chunk.y
    with chunk.folded():
        ranks = ranked(model, x, y, ball, by)
        gradients = ranks.shape[1] if by == "malt" else 0
        trace = walk(x, y, begin, towards(loss, ranks[:, 0]))
        for wanted in ranks.T[1:count]:
            left = (~trace.ever).nonzero().flatten()
            if len(left) == 0:
                break
            trace = stronger(trace, walk(x[left], y[left], begin[left], towards(loss, wanted[left])), left)
    return dataclasses.replace(trace, forwards=trace.forwards + 1, backwards=trace.backwards + gradients)


def ranked(model: nn.Module, x: Images, y: Labels, ball: Ball, by: By) -> Targets:
    """All wrong classes of checked samples, or of many the likeliest, the closest first."""
    x = x.detach().clone().requires_grad_(True)
    answer = logits(model, x)
    wrong = answer.detach().scatter(1, y[:, None], -torch.inf)
    classes = wrong.argsort(dim=1, descending=True, stable=True)[:, :-1]
    if by == "logit":
        return classes
    classes = classes[:, :CANDIDATES]
    leads = answer.gather(1, y[:, None]) - answer.gather(1, classes)
    if not leads.requires_grad:
        return classes
    slopes = [
        ball.dual(torch.autograd.grad(lead.sum(), x, retain_graph=True, materialize_grads=True)[0]) for lead in leads.T
    ]
    distance = (leads.detach() / torch.stack(slopes, 1)).nan_to_num(torch.inf, torch.inf, -torch.inf)
    return classes.gather(1, distance.argsort(dim=1, stable=True))


def _check_by(by: object) -> None:
    check_choice("by", by, get_args(By))


@dataclass(frozen=True)
class _Ranks:
    classes: Targets
