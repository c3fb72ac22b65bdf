"""The gradient at the image: how large under each loss, how much of that is confidence, how straight the loss is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .ball import Ball, cosine, l1, l2, linf
from .batches import Chunk, measured
from .door import check_count, check_flag, check_positive
from .draws import Draws
from .losses import cross_entropy, dlr, margin
from .model import logits
from .provenance import UNSIGNED, Made
from .types import (
    Images,
    ImagesLike,
    Labels,
    LabelsLike,
    Logits,
    Loss,
    PerDtype,
    PerLoss,
    PerSample,
    PerScale,
    PerSmoothLoss,
)

if TYPE_CHECKING:
    from pandas import DataFrame

LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
SCALES = (0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Gradients:
    """Static indicators at B clean images. Norms are of input gradients, per unit pixel; nan is undefined.

    Rows of `norm_*` are the losses in `losses`: cross-entropy in nats, margin in logits, DLR without unit (nan for
    fewer than four classes, where it is not defined). `linearity` has a row for cross-entropy and one for the margin.
    """

    norm_l1: PerLoss
    norm_l2: PerLoss
    norm_linf: PerLoss
    losses: tuple[str, ...]
    saturation: PerSample  # ||grad CE||_2 / ||grad margin||_2: near 0, a small CE gradient is confidence and no more
    doubt: PerSample  # 1 - p_y, from the logits in float64: float32 knows nothing below 6e-8
    margin: PerSample  # best wrong logit minus true logit
    logit_norm: PerSample  # Euclidean length of the centred logits
    vanished: PerDtype  # 1 where the CE gradient is exactly zero in each of `dtypes`; nan: the model does not run in it
    dtypes: tuple[str, ...]
    gradalign: PerSample  # 1 - mean cos(g(x), g(x + eta)), eta uniform in the ball (Andriushchenko & Flammarion 2020)
    signal_to_noise: PerSample  # ||mean g(x + eta)|| / root of the summed variance of g(x + eta)
    lipschitz: (
        PerSample  # largest ||grad margin||_2 met at x and x + eta: a lower bound of the local Lipschitz constant
    )
    linearity: PerSmoothLoss  # largest |L(x + d) - L(x) - d.g| over the points d tried (Qin et al. 2019): a lower bound
    curvature: PerSample  # ||g(x + h z) - g(x)|| / ||h z||, z the steepest direction, h = eps / 10, cross-entropy
    jacobian_norm: PerSample  # Frobenius norm of d logits / d x; nan unless asked for
    scaled_norm: PerScale  # ||grad CE(s z)||_2 with the logits z multiplied by each of `scales`
    scales: tuple[float, ...]
    made: Made

    @property
    def zero_share(self) -> dict[str, float]:
        """Share of samples whose cross-entropy gradient is exactly zero, by the type it is computed in."""
        return dict(zip(self.dtypes, self.vanished.double().mean(1).tolist(), strict=True))

    @property
    def drift(self) -> float:
        """Median cross-entropy norm at the largest logit scale over that at the smallest, each divided by its scale.

        1 would be geometry alone: the margin's norm is proportional to the scale. Far from 1, the norm measures
        confidence.
        """
        medians = self.scaled_norm.median(1).values / torch.tensor(self.scales).to(self.scaled_norm)
        return float(medians[-1] / medians[0])

    def norm(self, loss: str = "cross_entropy", norm: str = "l2") -> PerSample:
        """One row of the norms. Raises ValueError for an unknown loss or norm."""
        if loss not in self.losses or norm not in ("l1", "l2", "linf"):
            raise ValueError(f"loss is {loss!r} and norm {norm!r}, expected one of {self.losses} and l1, l2 or linf")
        return getattr(self, f"norm_{norm}")[self.losses.index(loss)]

    def __str__(self) -> str:
        medians = self.norm_l2.nanmedian(1).values.tolist()
        norms = "  ".join(f"{name} {value:.3g}" for name, value in zip(self.losses, medians, strict=True))
        zeros = ", ".join(f"{name} {share:.1%}" for name, share in self.zero_share.items())
        return (
            f"{len(self.margin)} samples: median |grad| {norms}  saturation {self.saturation.nanmedian():.3g}"
            f"  1 - GradAlign {1 - self.gradalign.nanmean():.2f}  exactly zero in {zeros}  drift {self.drift:.2g}"
        )

    def frame(self) -> DataFrame:
        """Tidy table, one row a sample."""
        import pandas as pd

        columns: dict[str, Tensor] = {}
        for norm in ("l1", "l2", "linf"):
            columns |= {f"{loss}_{norm}": self.norm(loss, norm) for loss in self.losses}
        names = (
            "saturation",
            "doubt",
            "margin",
            "logit_norm",
            "gradalign",
            "signal_to_noise",
            "lipschitz",
            "curvature",
        )
        columns |= {name: getattr(self, name) for name in (*names, "jacobian_norm")}
        columns |= {f"linearity_{loss}": row for loss, row in zip(self.losses[:2], self.linearity, strict=True)}
        columns |= {f"zero_{kind}": row for kind, row in zip(self.dtypes, self.vanished, strict=True)}
        columns |= {f"scaled_{scale:g}": row for scale, row in zip(self.scales, self.scaled_norm, strict=True)}
        return pd.DataFrame({"sample": range(len(self.margin)), **{k: v.cpu().numpy() for k, v in columns.items()}})


def gradients(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    draws: int = 2,
    scales: tuple[float, ...] = SCALES,
    jacobian: bool = False,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> Gradients:
    """Measure the gradient at `x` (batch, ...) under three losses, its precision, and how straight the loss is there.

    Without labels `y` (batch,), the model's own predictions are used; `x` may be a DataLoader. `draws` random points
    of the ball serve GradAlign, the signal-to-noise ratio and the lower bound of the linearity;
    `scales` multiply the logits; `jacobian` adds the exact Frobenius norm, at one backward pass a class.

    Raises ValueError as `pgd` does, and for fewer than two draws or scales that are not positive.
    """
    check_count("draws", draws, least=2)  # a variance needs two
    check_positive("scales", scales, "factors of the logits")
    check_flag("jacobian", jacobian)
    if not scales:
        raise ValueError("scales are (), expected at least one factor of the logits")

    def run(chunk: Chunk) -> Gradients:
        x, y = chunk.x, chunk.y
        few = logits(model, x[:1]).shape[1] < 4  # the DLR loss is not defined there
        with chunk.folded():
            at = _at(model, x, y, [cross_entropy, margin] if few else list(LOSSES.values()), scales, jacobian)
            around = _around(model, x, y, ball, at, draws, chunk.draws())
        grads = [*at.grads, torch.full_like(x, torch.nan)] if few else at.grads
        norms = [torch.stack([norm(grad) for grad in grads]) for norm in (l1, l2, linf)]
        z = at.logits.double()
        wrong = z.scatter(1, y[:, None], -torch.inf).logsumexp(1)
        return Gradients(
            norm_l1=norms[0], norm_l2=norms[1], norm_linf=norms[2], losses=tuple(LOSSES),
            saturation=norms[1][0] / norms[1][1], doubt=(wrong - z.logsumexp(1)).exp().to(x.dtype),
            margin=margin(at.logits, y), logit_norm=(z - z.mean(1, keepdim=True)).norm(dim=1).to(x.dtype),
            vanished=_vanished(model, x, y, grads[0]), dtypes=tuple(DTYPES),
            **around._asdict(),
            jacobian_norm=at.jacobian_norm, scaled_norm=at.scaled_norm, scales=tuple(scales), made=UNSIGNED,
        )  # fmt: skip

    options = {"ball": ball, "draws": draws, "scales": scales, "jacobian": jacobian}
    return measured(run, model, x, y, ball, call="gradients", options=options, batch=batch, generator=generator)


class _At(NamedTuple):
    """One forward pass at a point and the backward passes through it."""

    logits: Logits
    losses: list[PerSample]
    grads: list[Images]
    scaled_norm: PerScale
    jacobian_norm: PerSample


def _at(
    model: nn.Module,
    x: Images,
    y: Labels,
    kinds: list[Loss],
    scales: tuple[float, ...] = (),
    jacobian: bool = False,
    backward: int | None = None,
) -> _At:
    """Losses at `x`, the gradients of the first `backward` of them (all, if not given), and what else is asked for."""
    x = x.detach().clone().requires_grad_(True)
    answer = logits(model, x)

    def back(values: Tensor) -> Images:
        if not values.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(values.sum(), x, retain_graph=True, materialize_grads=True)[0]

    losses = [kind(answer, y) for kind in kinds]
    grads = [back(value) for value in losses[:backward]]
    scaled = [l2(grads[0] if scale == 1 else back(cross_entropy(scale * answer, y))) for scale in scales]
    rows = [l2(back(answer[:, k])) for k in (range(answer.shape[1]) if jacobian else ())]
    nothing = torch.full_like(losses[0].detach(), torch.nan)
    return _At(
        answer.detach(), [value.detach() for value in losses], grads,
        torch.stack(scaled) if scaled else nothing[None][:0], torch.stack(rows).norm(dim=0) if rows else nothing,
    )  # fmt: skip


class _Around(NamedTuple):
    gradalign: PerSample
    signal_to_noise: PerSample
    lipschitz: PerSample
    linearity: PerSmoothLoss
    curvature: PerSample


def _around(model: nn.Module, x: Images, y: Labels, ball: Ball, at: _At, draws: int, source: Draws) -> _Around:
    """What gradients say at random points of the ball, and on the way of the steepest step.

    The points are not cut by the pixel box: that is GradAlign's definition, and on a black background the box would
    let half of the noise through only.
    """
    first, straight = at.grads[:2]
    z = ball.eps * ball.steepest(first)
    lipschitz, gaps = l2(straight), torch.zeros_like(torch.stack(at.losses[:2]))
    found = []
    # where only one gradient is read, or none, none other is computed
    wanted = [*((ball.noise(x, source), 1) for _ in range(draws)), (0.1 * z, 1), (z, 2)]
    for delta, backward in wanted:
        there = _at(model, x + delta, y, [cross_entropy, margin], backward=backward)
        rises = [(delta * grad).flatten(1).sum(1) for grad in (first, straight)]
        off = [now - was - rise for now, was, rise in zip(there.losses, at.losses[:2], rises, strict=True)]
        gaps = torch.maximum(gaps, torch.stack(off).abs())
        found.append(there.grads[0])
    lipschitz = torch.maximum(lipschitz, l2(there.grads[1]))
    noisy = torch.stack(found[:draws])
    variance = (noisy - noisy.mean(0)).flatten(2).pow(2).sum((0, 2)) / (draws - 1)
    return _Around(
        gradalign=1 - torch.stack([cosine(first, grad) for grad in noisy]).nanmean(0),
        signal_to_noise=l2(noisy.mean(0)) / variance.sqrt(),
        lipschitz=lipschitz,
        linearity=gaps,
        curvature=l2(found[draws] - first) / l2(0.1 * z),  # 0 / 0 is nan: no gradient, no direction
    )


def _vanished(model: nn.Module, x: Images, y: Labels, grad: Images) -> PerDtype:
    """Is the cross-entropy gradient exactly zero in each type? nan where the model does not run in it."""
    native = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    zero = linf(grad) == 0
    rows = []
    for dtype in DTYPES.values():
        row = zero.to(grad.dtype)
        # what float32 tells from zero, float64 tells too: only the rest is computed again
        again = zero if dtype == torch.float64 and native == torch.float32 else torch.ones_like(zero)
        if dtype != native and again.any():
            try:
                row[again] = (linf(_gradient_in(dtype, model, x[again], y[again])) == 0).to(row)
            except RuntimeError:
                row = torch.full_like(row, torch.nan)
        rows.append(row)
    return torch.stack(rows)


def _gradient_in(dtype: torch.dtype, model: nn.Module, x: Images, y: Labels) -> Images:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    cast = {name: t.detach().to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    x = x.detach().to(dtype).requires_grad_(True)
    answer = functional_call(model, cast, (x.clone(),))
    wide = answer if dtype == torch.float64 else answer.float()
    (grad,) = torch.autograd.grad(cross_entropy(wide, y).sum(), x, materialize_grads=True)
    return grad
