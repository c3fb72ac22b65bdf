"""What an attack met on its way, point by point and sample by sample."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..ball import Ball, cosine
from ..provenance import NOTHING_LEFT, Made
from ..types import (
    Images,
    Labels,
    PathSum,
    PerPoint,
    PerSample,
    PerStep,
    PointLabels,
    PointMask,
    SampleMask,
)

if TYPE_CHECKING:
    from pandas import DataFrame


class Point(NamedTuple):
    """What is read at one point of the path, per sample; units as in `PGDTrace`."""

    loss: PerSample
    margin: PerSample
    entropy: PerSample
    confidence: PerSample
    predicted: Labels
    grad_norm: PerSample
    grad_norm_l1: PerSample
    grad_norm_linf: PerSample
    vanished: SampleMask
    on_surface: PerSample
    distance: PerSample


class Step(NamedTuple):
    """What is read off one step and the gradients at its two ends, per sample."""

    cosine: PerSample
    cosine_first: PerSample
    sign_agreement: PerSample
    moved: PerSample
    step_size: PerSample


@dataclass(frozen=True)
class PGDTrace:
    """One climb by gradients on B images. T steps visit P = T + 1 points; point 0 is the start, point T the end.

    Step t leads from point t to point t + 1. Undefined values are nan, never a number that looks harmless.
    """

    clean: Images
    adversarial: Images  # point T
    best: Images  # the visited point that errs, if any does, and has the largest margin or, with targets, lead
    lead: PerSample  # by how much, in logits: the margin there, or the target's logit less the best other one
    gradient: Images  # g_0, the loss's gradient at the start, in the loss's unit a pixel
    labels: Labels
    targets: Labels | None  # classes that a targeted attack wanted
    loss: PerPoint  # the loss that was climbed, in its own unit (cross-entropy: nats)
    margin: PerPoint  # best wrong logit minus true logit; > 0 where the model errs, < 0 where it is right
    entropy: PerPoint  # of the softmax, nats
    confidence: PerPoint  # largest probability, in [0, 1]
    predicted: PointLabels  # class number
    grad_norm: PerPoint  # ||g_t||_2, nats per unit pixel
    grad_norm_l1: PerPoint  # ||g_t||_1: by how much the loss rises, to first order, for an Linf step of one unit
    grad_norm_linf: PerPoint  # largest entry of |g_t|
    vanished: PointMask  # g_t is exactly zero in every pixel
    on_surface: PerPoint  # share of pixels on the surface of the ball or of the box
    distance: PerPoint  # from the clean image, in the ball's norm, pixels
    cosine: PerStep  # cos(g_t, g_t+1); nan where either gradient is exactly 0
    cosine_first: PerStep  # cos(g_0, g_t+1)
    cosine_final: PerStep  # cos(g_t, x_T - clean): does the gradient point to where the attack ends?
    sign_agreement: PerStep  # share of pixels that keep the gradient's sign, among those where neither is 0
    moved: PerStep  # ||x_t+1 - x_t||_2 after projection, pixels
    step_size: PerStep  # nominal length in the ball's norm, pixels, before projection and the attack's momentum
    path_dispersion: PerSample  # 1 - |mean over points of the gradient's direction|: 0 steady, 1 all over the place
    direction_sum: PathSum  # sum over samples of the unit gradients; nan with several starts, whose paths differ
    restart_agreement: PerSample  # mean cosine between the perturbations of two starts; nan with a single start
    forwards: Labels  # passes through the model that each sample took, all starts together
    backwards: Labels
    ball: Ball
    made: Made

    @property
    def errs(self) -> PointMask:
        """The model gives the point another class; of classes that tie, the first is its answer."""
        return (self.predicted != self.labels) & ~self.margin.isnan()

    @property
    def success(self) -> SampleMask:
        """The last point fools the model."""
        return self.errs[-1]

    @property
    def ever(self) -> SampleMask:
        """Some visited point fools the model."""
        return self.errs.any(0)

    @property
    def silent_success(self) -> SampleMask:
        """An earlier point fools the model, the last one does not (Pintor et al. 2022, I3)."""
        return self.ever & ~self.success

    @property
    def reached(self) -> SampleMask:
        """The last point is given the class that a targeted attack wanted; without targets, any wrong class."""
        return self.success if self.targets is None else self.predicted[-1] == self.targets

    @property
    def halvings(self) -> Labels:
        """How often the step size of each sample was halved on the way; 0 for an attack with a fixed one."""
        return (self.step_size[1:] < self.step_size[:-1]).sum(0)

    @property
    def incomplete(self) -> SampleMask:
        """The attack was stopped while still gaining (Pintor et al. 2022, I4).

        The loss is scaled to [0, 1] over the path; true where its running best rose by more than 0.05 in the last ten
        steps, or in the last half of a path shorter than 20.
        """
        low, high = self.loss.amin(0), self.loss.amax(0)
        best = ((self.loss - low) / (high - low)).cummax(0).values
        window = min(10, max(1, len(self.moved) // 2))
        return best[-1] - best[-1 - window] > 0.05

    @property
    def undefined(self) -> PerSample:
        """Share of points whose gradient is exactly zero or not finite, and so has no direction."""
        return (~((self.grad_norm > 0) & self.grad_norm.isfinite())).to(self.grad_norm.dtype).mean(0)

    @property
    def batch_dispersion(self) -> Tensor:
        """(P,): 1 - mean over samples of the cosine to their mean direction. 0: all gradients are parallel.

        Vanished gradients are left out; nan where none is left, and with several starts.
        """
        # the mean cosine to the mean direction is the length of the mean of unit vectors
        defined = (self.grad_norm > 0) & self.grad_norm.isfinite()
        return 1 - self.direction_sum.flatten(1).norm(dim=1) / defined.sum(1)

    def __str__(self) -> str:
        name = self.made.call.partition("(")[0]
        begins_clean = bool((self.distance[0] == 0).all())
        clean = f" {1 - self.errs[0].double().mean():.1%} ->" if begins_clean else ""
        said = (
            f"{len(self.labels)} samples, {name}, {self.ball.norm} eps {self.ball.eps:.3g}: accuracy{clean}"
            f" {1 - self.ever.double().mean():.1%} over {len(self.moved)} steps"
            f"  silent successes {self.silent_success.double().mean():.1%}"
            f"  halvings {self.halvings.double().mean():.1f}  undefined {self.undefined.mean():.1%}"
        )
        return said + NOTHING_LEFT if begins_clean and bool(self.errs[0].all()) else said

    def frame(self) -> DataFrame:
        """Tidy table, one row a point and sample.

        What compares a gradient with the one before stands at the later point; `cosine_final` at its own gradient.
        """
        import pandas as pd

        points, batch = self.loss.shape
        index = torch.cartesian_prod(torch.arange(points), torch.arange(batch))
        table = {"step": index[:, 0].numpy(), "sample": index[:, 1].numpy()}
        for name in (*Point._fields, *Step._fields, "cosine_final"):
            values = getattr(self, name)
            if len(values) < points:
                missing = torch.full_like(values[:1], torch.nan)
                values = torch.cat([values, missing] if name == "cosine_final" else [missing, values])
            table[name] = values.flatten().cpu().numpy()
        return pd.DataFrame(table)


def strongest(runs: list[PGDTrace]) -> PGDTrace:
    """For each sample, the run that errs and whose best point leads by most; what all runs cost together."""
    everyone = torch.arange(len(runs[0].lead), device=runs[0].lead.device)
    best = functools.reduce(lambda kept, run: stronger(kept, run, everyone), runs)
    found = [run.best - run.clean for run in runs]
    pairs = [cosine(a, b) for i, a in enumerate(found) for b in found[:i]]
    return dataclasses.replace(best, restart_agreement=torch.stack(pairs).nanmean(0))


def stronger(kept: PGDTrace, run: PGDTrace, where: Labels) -> PGDTrace:
    """`kept`, with those of the samples `where` for which a further `run` on them errs first or leads by more; costs
    add up."""
    now, before = run.ever, kept.ever[where]
    better = (now & ~before) | ((now == before) & (run.lead > kept.lead[where]))
    fields: dict[str, Any] = {"direction_sum": torch.full_like(kept.direction_sum, torch.nan)}
    for name in ("adversarial", "best", "lead", "gradient", "path_dispersion"):
        fields[name] = getattr(kept, name).index_copy(0, where[better], getattr(run, name)[better])
    for name in (*Point._fields, *Step._fields, "cosine_final"):
        fields[name] = getattr(kept, name).index_copy(1, where[better], getattr(run, name)[:, better])
    for name in ("forwards", "backwards"):
        fields[name] = getattr(kept, name).index_add(0, where, getattr(run, name))
    return dataclasses.replace(kept, **fields)
