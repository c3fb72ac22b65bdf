"""How steady is the input gradient that an attacker would follow?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from .attacks.pgd import climb
from .attacks.trace import PGDTrace
from .ball import Ball, cosine
from .batches import Chunk, measured
from .door import check_attack, check_positive
from .losses import cross_entropy
from .model import mean_gradient
from .provenance import Made
from .types import ImagesLike, LabelsLike, Loss, PerRadius, PerSample

if TYPE_CHECKING:
    from pandas import DataFrame

RADII = (0.01, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Stability:
    """Per-sample summary of a PGD trace. Means skip undefined (nan) values; `undefined` says how many there were.

    A point that bounces on the ball's surface turns its gradient for a purely geometric reason, so `local_cosine`
    measures the same thing at fixed distances, without any path.
    """

    grad_norm: PerSample  # mean of ||g_t||_2 over the path, nats per unit pixel
    cosine: PerSample  # mean cos(g_t, g_t+1)
    sign_agreement: PerSample  # mean share of pixels that keep the gradient's sign from step to step
    undefined: PerSample  # share of points with an exactly zero gradient
    local_cosine: PerRadius  # cos(g(x), g(x + u)), u at each of `radii`
    radii: tuple[float, ...]  # in eps
    trace: PGDTrace

    @property
    def made(self) -> Made:
        """How the trace was made."""
        return self.trace.made

    def __str__(self) -> str:
        local = "  ".join(f"{value:.2f}" for value in self.local_cosine.nanmean(1).tolist())
        ball = self.trace.ball
        return (
            f"{len(self.grad_norm)} samples, {ball.norm} eps {ball.eps:.3g}:"
            f" |g| {self.grad_norm.median():.3g} nats/pixel  cos {self.cosine.nanmean():.2f}"
            f"  sign {self.sign_agreement.nanmean():.2f}"
            f"  cos at {'/'.join(f'{radius:g}' for radius in self.radii)} eps: {local}"
            f"  undefined {self.undefined.mean():.1%}  fooled {self.trace.success.float().mean():.1%}"
        )

    def frame(self) -> DataFrame:
        """Tidy table, one row a sample."""
        import pandas as pd

        columns = {name: getattr(self, name) for name in ("grad_norm", "cosine", "sign_agreement", "undefined")}
        columns |= {
            f"local_cosine_{radius:g}": values for radius, values in zip(self.radii, self.local_cosine, strict=True)
        }
        table = {name: values.cpu().numpy() for name, values in columns.items()}
        return pd.DataFrame({"sample": range(len(self.grad_norm)), **table, "fooled": self.trace.success.cpu().numpy()})


def stability(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    steps: int = 20,
    step_size: float | None = None,
    loss: Loss = cross_entropy,
    samples: int = 1,
    momentum: float = 0.0,
    radii: tuple[float, ...] = RADII,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> Stability:
    """Measure the gradient's size and steadiness around `x` (batch, ...), along PGD's path and at fixed distances.

    Without labels `y` (batch,), the model's own predictions are used; `x` may be a DataLoader. The attack's knobs are
    those of `pgd`; `radii` in eps, one random point each, uniform on the surface of the smaller ball. `print` gives
    one line, `.frame()` one row a sample.

    Raises ValueError as `pgd` does, and for radii that are not positive.
    """
    check_positive("radii", radii, "in eps")
    size = check_attack(ball, steps=steps, step_size=step_size, samples=samples, momentum=momentum)

    def run(chunk: Chunk) -> Stability:
        x, y = chunk.x, chunk.y
        draws = chunk.draws() if radii else None
        with chunk.folded():
            trace = climb(model, x, y, ball, x, steps, size, loss, samples, momentum)
            there = (mean_gradient(model, ball.shell(x, radius, draws), y, loss, samples)[2] for radius in radii)
            local = [cosine(trace.gradient, grad) for grad in there]
        return Stability(
            grad_norm=trace.grad_norm.mean(0), cosine=trace.cosine.nanmean(0),
            sign_agreement=trace.sign_agreement.nanmean(0), undefined=trace.undefined,
            local_cosine=torch.stack(local) if local else trace.cosine[:0], radii=tuple(radii), trace=trace,
        )  # fmt: skip

    options = {
        "ball": ball, "steps": steps, "step_size": size, "loss": loss, "samples": samples, "momentum": momentum,
        "radii": radii,
    }  # fmt: skip
    return measured(
        run, model, x, y, ball, call="stability", options=options, batch=batch, generator=generator,
        stochastic=samples > 1, kept=steps,
    )  # fmt: skip
