"""Projected gradient descent, told as a trace of what it met on the way."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ..ball import Ball, cosine, l2
from ..losses import cross_entropy, margin
from ..model import admit, frozen, input_gradient
from ..provenance import Made, made
from ..types import Images, ImagesLike, Labels, LabelsLike, Logits, Loss, PerPoint, PerSample, PerStep, SampleMask

if TYPE_CHECKING:
    from pandas import DataFrame


class Point(NamedTuple):
    """What is read at one point of the path, per sample; units as in `PGDTrace`."""

    loss: PerSample
    margin: PerSample
    entropy: PerSample
    confidence: PerSample
    grad_norm: PerSample
    on_surface: PerSample


@dataclass(frozen=True)
class PGDTrace:
    """One PGD run on a batch of B images. T steps visit P = T + 1 points; point 0 is the start, point T the end.

    Step t leads from point t to point t + 1. Undefined values are nan, never a number that looks harmless.
    """

    clean: Images
    adversarial: Images  # point T
    best: Images  # the visited point with the largest margin
    labels: Labels
    loss: PerPoint  # the loss that was climbed, in its own unit (cross-entropy: nats)
    margin: PerPoint  # best wrong logit minus true logit; > 0 exactly where the model errs
    entropy: PerPoint  # of the softmax, nats
    confidence: PerPoint  # largest probability, in [0, 1]
    grad_norm: PerPoint  # ||g_t||_2, nats per unit pixel
    on_surface: PerPoint  # share of pixels on the surface of the ball or of the box
    cosine: PerStep  # cos(g_t, g_t+1); nan where either gradient is exactly 0
    cosine_first: PerStep  # cos(g_0, g_t+1)
    cosine_final: PerStep  # cos(g_t, x_T - clean): does the gradient point to where the attack ends?
    sign_agreement: PerStep  # share of pixels that keep the gradient's sign, among those where neither is 0
    moved: PerStep  # ||x_t+1 - x_t||_2 after projection, pixels
    ball: Ball
    made: Made

    @property
    def success(self) -> SampleMask:
        """The last point fools the model."""
        return self.margin[-1] > 0

    @property
    def ever(self) -> SampleMask:
        """Some visited point fools the model."""
        return (self.margin > 0).any(0)

    @property
    def silent_success(self) -> SampleMask:
        """An earlier point fools the model, the last one does not (Pintor et al. 2022, I3)."""
        return self.ever & ~self.success

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

    def frame(self) -> DataFrame:
        """Tidy table, one row a point and sample.

        What compares a gradient with the one before stands at the later point; `cosine_final` at its own gradient.
        """
        import pandas as pd

        points, batch = self.loss.shape
        index = torch.cartesian_prod(torch.arange(points), torch.arange(batch))
        table = {"step": index[:, 0].numpy(), "sample": index[:, 1].numpy()}
        for name in (*Point._fields, "cosine", "cosine_first", "cosine_final", "sign_agreement", "moved"):
            values = getattr(self, name)
            if len(values) < points:
                missing = torch.full_like(values[:1], torch.nan)
                values = torch.cat([values, missing] if name == "cosine_final" else [missing, values])
            table[name] = values.flatten().cpu().numpy()
        return pd.DataFrame(table)


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
    generator: torch.Generator | None = None,
) -> PGDTrace:
    """Climb `loss` inside `ball` around `x`, record every point (Madry et al. 2018).

    `x` is (batch, ...) with pixels in the ball's box, `y` (batch,) class numbers; None takes the model's predictions.
    `step_size` is in pixels, of the ball's norm, and defaults to 2.5 eps / steps. `start` defaults to `x` itself;
    further `restarts` begin at points drawn uniformly from the ball, and each sample keeps the run whose best point
    has the largest margin. `samples` > 1 averages the gradient over that many passes of a random model (EOT, Athalye
    et al. 2018). A step has its nominal length for every gradient that is not exactly zero.

    Raises ValueError for inputs outside the box, wrong shapes or labels, a random model with samples=1, steps or
    restarts below 1.
    """
    for name, count in (("steps", steps), ("restarts", restarts), ("samples", samples)):
        if count < 1:
            raise ValueError(f"{name} is {count}, expected at least 1")
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size is {step_size}, expected a positive number of pixels")
    size = 2.5 * ball.eps / steps if step_size is None else step_size
    with frozen(model):
        x, y = admit(model, x, y, ball, stochastic=samples > 1)
        record = made(
            "pgd",
            model,
            x,
            y,
            generator,
            ball=ball,
            steps=steps,
            step_size=size,
            loss=loss,
            start=start,
            restarts=restarts,
            samples=samples,
        )
        first = x if start is None else _start(start, x, ball)
        starts = [first, *(ball.sample(x, generator) for _ in range(restarts - 1))]
        runs = [_climb(model, x, y, ball, point, steps, size, loss, samples, record) for point in starts]
    return runs[0] if restarts == 1 else _strongest(runs)


def _climb(
    model: nn.Module,
    x: Images,
    y: Labels,
    ball: Ball,
    point: Images,
    steps: int,
    step_size: float,
    loss: Loss,
    samples: int,
    record: Made,
) -> PGDTrace:
    points: list[Point] = []
    moves: list[PerSample] = []
    grads: list[Images] = []
    best, best_margin = point, torch.full_like(x.flatten(1)[:, 0], -torch.inf)
    for step in range(steps + 1):
        if step > 0:
            before, point = point, ball.project(point + step_size * ball.steepest(grads[-1]), x)
            moves.append(l2(point - before))
        logits, value, grad = _mean_gradient(model, point, y, loss, samples)
        points.append(_read(logits, value, grad, point, x, y, ball))
        grads.append(grad)
        better = points[-1].margin > best_margin
        best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), point, best)
        best_margin = torch.where(better, points[-1].margin, best_margin)
    pairs = list(pairwise(grads))
    return PGDTrace(
        clean=x,
        adversarial=point,
        best=best,
        labels=y,
        ball=ball,
        made=record,
        moved=torch.stack(moves),
        cosine=torch.stack([cosine(a, b) for a, b in pairs]),
        cosine_first=torch.stack([cosine(grads[0], b) for b in grads[1:]]),
        cosine_final=torch.stack([cosine(a, point - x) for a in grads[:-1]]),
        sign_agreement=torch.stack([_sign_agreement(a, b) for a, b in pairs]),
        **{name: torch.stack(values) for name, values in zip(Point._fields, zip(*points, strict=True), strict=True)},
    )


def _mean_gradient(
    model: nn.Module, x: Images, y: Labels, loss: Loss, samples: int
) -> tuple[Logits, PerSample, Images]:
    """Mean over `samples` passes of logits, loss and gradient: the gradient of the expected loss."""
    passes = [input_gradient(model, x, y, loss) for _ in range(samples)]
    if samples == 1:
        return passes[0]
    logits, value, grad = (torch.stack(parts).mean(0) for parts in zip(*passes, strict=True))
    return logits, value, grad


def _read(logits: Logits, loss: PerSample, grad: Images, point: Images, x: Images, y: Labels, ball: Ball) -> Point:
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    return Point(loss, margin(logits, y), -(p * log_p).sum(1), p.amax(1), l2(grad), ball.on_surface(point, x))


def _sign_agreement(a: Images, b: Images) -> PerSample:
    both = (a != 0) & (b != 0)
    same = both & (a.sign() == b.sign())
    kept, compared = (mask.flatten(1).sum(1).to(a.dtype) for mask in (same, both))
    return kept / compared  # 0 / 0 is nan: no pixel to compare


def _start(start: ImagesLike, x: Images, ball: Ball) -> Images:
    point = torch.as_tensor(start).to(x)
    if point.shape != x.shape or not point.isfinite().all():
        raise ValueError(f"start has shape {tuple(point.shape)}, expected finite images of x's shape {tuple(x.shape)}")
    return ball.project(point, x)


def _strongest(runs: list[PGDTrace]) -> PGDTrace:
    """For each sample, the run whose best point has the largest margin."""
    chosen = torch.stack([run.margin.nan_to_num(-torch.inf).amax(0) for run in runs]).argmax(0)
    everyone = torch.arange(len(chosen), device=chosen.device)
    fields: dict[str, Any] = {}
    for name, value in vars(runs[0]).items():
        if isinstance(value, torch.Tensor) and name not in ("clean", "labels"):
            stacked = torch.stack([getattr(run, name) for run in runs])
            per_image = name in ("adversarial", "best")
            fields[name] = stacked[chosen, everyone] if per_image else stacked[chosen, :, everyone].T
    return dataclasses.replace(runs[0], **fields)


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
