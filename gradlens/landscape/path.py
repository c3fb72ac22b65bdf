"""The loss along the way that an attack takes, also between its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attacks.pgd import perturb
from ..ball import Ball
from ..batches import Chunk, measured
from ..door import check_attack, check_count
from ..losses import cross_entropy, margin
from ..model import logits, per_sample, predictive_entropy
from ..provenance import UNSIGNED, Made
from ..types import Axis, Images, ImagesLike, Labels, LabelsLike, Loss, PerPoint, PerSample, PointLabels

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class InputPath:
    """Values along the polyline x_0 .. x_T of a PGD run, P points for B samples; x_t is where `step` is t."""

    loss: PerPoint  # the loss's own unit (cross-entropy: nats)
    margin: PerPoint  # logits; > 0 where the model errs
    entropy: PerPoint  # of the softmax, nats
    predicted: PointLabels  # class number
    length: PerPoint  # of the way so far, in eps, in the ball's norm
    distance: PerPoint  # from the image as the crow flies, in eps, in the ball's norm
    step: Axis  # 0 .. T, in PGD steps, with fractions between them
    labels: Labels
    ball: Ball
    made: Made

    @property
    def overshot(self) -> PerSample:
        """Share of steps between whose ends the loss rises above both: the step leaps over a ridge.

        nan where nothing was measured between the steps.
        """
        steps = round(float(self.step[-1]))
        within = self.loss[:-1].unflatten(0, (steps, -1))[:, 1:]
        if within.shape[1] == 0:
            return torch.full_like(self.loss[0], torch.nan)
        vertices = self.loss[:: within.shape[1] + 1]
        ends = torch.maximum(vertices[:-1], vertices[1:])
        # where the loss is constant, rounding alone puts one point above another
        return (within.amax(1) > ends + 1e-6 * ends.abs()).to(self.loss).mean(0)

    def __str__(self) -> str:
        steps = round(float(self.step[-1]))
        return (
            f"{len(self.labels)} samples along {steps} PGD steps: loss {self.loss[0].median():.3g} to "
            f"{self.loss[-1].median():.3g} (median), way {self.length[-1].median():.3g} eps long, "
            f"{self.overshot.nanmean():.0%} of the steps leap over a ridge"
        )

    def frame(self) -> DataFrame:
        """Tidy table, one row a point and sample."""
        import pandas as pd

        points, batch = self.loss.shape
        table = {"step": self.step.repeat_interleave(batch), "sample": torch.arange(batch).repeat(points)}
        for name in ("loss", "margin", "entropy", "predicted", "length", "distance"):
            table[name] = getattr(self, name).flatten()
        return pd.DataFrame({name: values.cpu().numpy() for name, values in table.items()})


def input_path(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    steps: int = 20,
    step_size: float | None = None,
    loss: Loss = cross_entropy,
    points: int = 5,
    batch: int | None = None,
) -> InputPath:
    """Loss, margin, entropy and class along PGD's own path, `points` to a step, the step's two ends included once.

    The path is that of `pgd` with the same options: from `x` (batch, ...), a DataLoader or the like, uphill in `loss`;
    at whole steps the values are those of its trace. What lies between them shows whether a step follows the slope or
    leaps over ridges. The ball and the box are convex, so that every point is an image that the attacker may use.

    Raises ValueError as `pgd` does, and for points below 1.
    """
    size = check_attack(ball, steps=steps, step_size=step_size)
    check_count("points", points)

    def run(chunk: Chunk) -> InputPath:
        with chunk.folded():
            values = _walk(model, chunk.x, chunk.y, ball, steps, size, loss, points)
        step = torch.arange(steps * points + 1, device=chunk.x.device, dtype=chunk.x.dtype) / points
        return InputPath(**values, step=step, labels=chunk.y, ball=ball, made=UNSIGNED)

    options = {"ball": ball, "steps": steps, "step_size": size, "loss": loss, "points": points}
    return measured(run, model, x, y, ball, call="input_path", options=options, batch=batch, generator=None)


def _walk(
    model: nn.Module, x: Images, y: Labels, ball: Ball, steps: int, step_size: float, loss: Loss, points: int
) -> dict[str, Tensor]:
    length = torch.zeros_like(x.flatten(1)[:, 0])
    read: list[tuple[Tensor, ...]] = []

    def look(at: Images, length: PerSample) -> None:
        with torch.no_grad():
            answer = logits(model, at)
            values = per_sample(loss, answer, y), margin(answer, y), predictive_entropy(answer), answer.argmax(1)
            read.append((*values, length, ball.length(at - x) / ball.eps))

    point = x
    for _ in range(steps):
        after = perturb(model, x, y, ball, steps=1, step_size=step_size, loss=loss, start=point)
        reach = ball.length(after - point) / ball.eps
        for share in (k / points for k in range(points)):
            look(torch.lerp(point, after, share), length + share * reach)
        point, length = after, length + reach
    look(point, length)
    names = ("loss", "margin", "entropy", "predicted", "length", "distance")
    return {name: torch.stack(values) for name, values in zip(names, zip(*read, strict=True), strict=True)}
