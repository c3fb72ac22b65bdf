"""A surface that is known on paper, measured as any other: is the picture right?"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ball import Ball
from .input import input_line, input_plane
from .surface import Surface
from .weight import weight_line, weight_plane

Measure = Callable[..., Any]


class _Quadratic(nn.Module):
    """Logits (0, q(x)), q(x) = x.Ax / 2 + c.x: with label 0 the margin is q."""

    def __init__(self, generator: torch.Generator, pixels: int = 6) -> None:
        super().__init__()
        a = torch.randn(pixels, pixels, generator=generator, dtype=torch.float64)
        self.a = nn.Parameter(a + a.T)
        self.c = nn.Parameter(torch.randn(pixels, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        q = ((x @ self.a) * x).sum(1) / 2 + x @ self.c
        return torch.stack([torch.zeros_like(q), q], 1)


@torch.no_grad()
def selftest(plane: Measure = input_plane, line: Measure = input_line) -> float:
    """Largest deviation of `plane` and `line` from a surface that is known on paper, in nats, logits and eps.

    Both measure a quadratic margin, whose values on a plane are a polynomial in alpha and beta: margin, cross-entropy,
    entropy, class and the coordinates themselves, under Linf and L2, at every cell. Rounding leaves about 1e-14; a
    wrong class, nan or grid is infinitely far off. Takes some hundredths of a second.
    """
    generator = torch.Generator().manual_seed(0)
    model = _Quadratic(generator)
    x = 0.3 + 0.4 * torch.rand(3, 6, generator=generator, dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.long)
    worst = 0.0
    for ball in (Ball(0.1), Ball(0.4, "l2")):
        for measure in (plane, line):
            result = measure(model, x, y, ball, span=2.0, points=9, steps=3, generator=generator)
            worst = max(worst, _deviation(model, x, ball, result))
    return worst


def _deviation(model: _Quadratic, x: Tensor, ball: Ball, result: Surface) -> float:
    axis = torch.linspace(-2, 2, 9, dtype=x.dtype)
    beta = axis if len(result.directions) > 1 else torch.zeros(1, dtype=x.dtype)
    q = _on_plane(model, x, [ball.eps * d for d in result.directions], axis, beta)
    p = q.sigmoid()
    pairs = [
        (result.alpha, axis),
        (result.beta, beta),
        (result.margin, q),
        (result.loss, F.softplus(q)),
        (result.entropy, p * F.softplus(-q) + (1 - p) * F.softplus(q)),
    ]
    if any(a.shape != b.shape for a, b in pairs) or not torch.equal(result.predicted, (q > 0).long()):
        return float("inf")
    return max(float((a - b).abs().nan_to_num(torch.inf).max()) for a, b in pairs)


def _on_plane(model: _Quadratic, x: Tensor, directions: list[Tensor], alpha: Tensor, beta: Tensor) -> Tensor:
    """The polynomial (R, C, B) that q is on the plane: its value, slopes and curvatures at the image, put together."""
    first, second = directions if len(directions) > 1 else (*directions, torch.zeros_like(x))
    slope = x @ model.a + model.c
    r, c = alpha[:, None, None], beta[None, :, None]
    linear = r * (slope * first).sum(1) + c * (slope * second).sum(1)
    square = (
        r**2 * ((first @ model.a) * first).sum(1)
        + 2 * r * c * ((first @ model.a) * second).sum(1)
        + c**2 * ((second @ model.a) * second).sum(1)
    )
    return model(x)[:, 1] + linear + square / 2


class _Bowl(nn.Module):
    """Logits (0, q(w) + mean pixel), q(w) = w.Aw / 2, of weights in three rows: a margin known at every weight."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        a = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.register_buffer("a", a + a.T)
        self.w = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))

    def q(self, w: Tensor) -> Tensor:
        """The quadratic at these weights."""
        return (w.flatten() @ self.get_buffer("a") @ w.flatten()) / 2

    def forward(self, x: Tensor) -> Tensor:
        z = self.q(self.w) + x.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(z), z], 1)


@torch.no_grad()
def weight_selftest(plane: Measure = weight_plane, line: Measure = weight_line) -> float:
    """As `selftest`, in weight space: largest deviation of `plane` and `line` from a loss that is known on paper.

    The margin is a quadratic in the weights, whose loss, expected reward and coordinates are compared at every cell,
    for filter, layer and model normalisation. Rounding leaves about 1e-14.
    """
    generator = torch.Generator().manual_seed(0)
    model = _Bowl(generator)
    x = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.long)
    axis = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    worst = 0.0
    for normalisation in ("filter", "layer", "model"):
        for measure, beta in ((plane, axis), (line, axis[3:4])):
            result = measure(
                model, x, y, directions=normalisation, span=1.5, points=7, metrics=("loss", "reward"),
                generator=generator,
            )  # fmt: skip
            ways = [direction["w"] for direction in result.directions]
            cells = [
                [model.q(model.w + sum(s * d for s, d in zip((r, c), ways, strict=False))) for c in beta] for r in axis
            ]
            z = torch.stack([torch.stack(row) for row in cells])[..., None] + x.mean(1)
            pairs = [
                (result.alpha, axis),
                (result.beta, beta),
                (result.of("loss"), torch.logaddexp(torch.zeros_like(z), z).mean(2)),
                (result.of("reward"), (-z).sigmoid().mean(2)),
            ]
            if any(a.shape != b.shape for a, b in pairs):
                return float("inf")
            worst = max(worst, *(float((a - b).abs().nan_to_num(torch.inf).max()) for a, b in pairs))
    return worst
