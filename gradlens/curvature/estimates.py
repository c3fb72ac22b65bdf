"""What a spectrum is read from: one long Lanczos run for the ends, short ones beside it for the density and the trace.

The long run's basis is the low-rank part of Hutch++ (Meyer et al. 2021), and what it found to be eigenvectors is taken
out of the short runs: no product is spent on the same thing twice.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..draws import Source, gaussian
from ..types import PerRow, Stack
from .lanczos import Deflation, Krylov, lanczos, unit
from .products import Hessian

TOLERANCE = 1e-3  # of the largest |eigenvalue|: a pair with a smaller residual counts as converged
FEWEST, MOST = 8, 100  # random vectors of a trace that is to reach a precision
UNSEEN = 1e-10  # a smaller share of a random vector is rounding


class Ends(NamedTuple):
    """The first k eigenvalues from one end, a row each: values (R, k), residuals, converged, vectors (R, k, n)."""

    values: Tensor
    residuals: Tensor
    converged: Tensor
    vectors: Tensor


class Estimates(NamedTuple):
    """All that is estimated of R operators; `products` counts Hessian-vector products by purpose, for one row."""

    top: Ends
    bottom: Ends
    trace: PerRow
    trace_error: PerRow
    ritz: Tensor  # (R, nodes)
    weights: Tensor  # (R, nodes)
    products: dict[str, int]


def estimate(
    hessian: Hessian,
    source: Source,
    *,
    k: int,
    steps: int,
    probes: int,
    depth: int,
    precision: float | None,
    bar: tqdm | None = None,
) -> Estimates:
    """`steps` Lanczos steps from one vector, `depth` from each of `probes`, and further vectors for the trace.

    `precision` is the standard error that the trace is to reach, as a share of it; None stays with `probes` vectors.
    """
    calls = {"eigenvalues": 0, "density": 0, "trace": 0}

    def applied(purpose: str, vectors: Stack) -> Stack:
        calls[purpose] += len(vectors)
        if bar is not None:
            bar.update(len(vectors))
        return hessian.products(vectors)

    main = lanczos(lambda v: applied("eigenvalues", v), _drawn(hessian, 1, source), min(steps, hessian.size), source)
    values, vectors, residuals = (t[0] for t in main.ritz())
    scale = values.abs().amax(-1, keepdim=True)
    # the recurrence knows nothing of what is lost to the rounding of the products themselves
    residuals = residuals + torch.finfo(hessian.like.dtype).eps * scale
    converged = residuals <= TOLERANCE * scale

    sure = (vectors * converged[:, None]).nan_to_num(0.0)
    rest = _Rest(hessian, main, Deflation(main.basis[0], (sure @ sure.mT).to(main.basis.dtype)), converged)
    starts = rest.starts(probes, source)
    runs = lanczos(lambda v: applied("density", v), starts, min(depth, hessian.size), source, rest.without)
    nodes, coordinates, _ = runs.ritz()
    weights = coordinates[..., 0, :] ** 2

    samples = rest.trace(starts, runs.matrix[..., 0, 0])
    while precision is not None and not _is_enough(samples, values.sum(-1), precision):
        more = rest.starts(probes, source)
        samples = torch.cat([samples, rest.trace(more, (more * applied("trace", more)).sum(-1).double())])

    # an eigenvalue beyond the last one found says that one was missed: Lanczos sees a repeated one once
    seen = [torch.where(weights > UNSEEN, nodes, fill).movedim(0, 1).flatten(1) for fill in (-torch.inf, torch.inf)]
    hidden_above = seen[0].amax(1, keepdim=True) > values.flip(-1)[:, :k] + TOLERANCE * scale
    hidden_below = seen[1].amin(1, keepdim=True) < values[:, :k] - TOLERANCE * scale
    upper = [t.flip(-1)[..., :k] for t in (values, residuals, converged, vectors)]
    lower = [t[..., :k] for t in (values, residuals, converged, vectors)]
    return Estimates(
        top=_ends(main, *upper, hidden_above),
        bottom=_ends(main, *lower, hidden_below),
        trace=values.sum(-1) + samples.mean(0),
        trace_error=samples.std(0) / len(samples) ** 0.5
        if len(samples) > 1
        else torch.full_like(samples[0], torch.nan),
        ritz=torch.cat([values, *nodes], -1),
        weights=torch.cat([converged.double() / hessian.size, *(weights * rest.share[:, None] / probes)], -1),
        products=calls,
    )


class _Rest:
    """What the long run has not settled: the space orthogonal to its converged eigenvectors."""

    def __init__(self, hessian: Hessian, main: Krylov, without: Deflation, converged: Tensor) -> None:
        self.hessian, self.main, self.without = hessian, main, without
        self.size = (hessian.size - converged.sum(-1)).double()  # its dimensions, in each row
        self.share = self.size / hessian.size

    def starts(self, vectors: int, source: Source) -> Stack:
        """Unit vectors, uniform on the sphere of this space; zero where it has no dimension left."""
        drawn = unit(self.without(self.without(_drawn(self.hessian, vectors, source))))
        return drawn * (self.size > 0)[:, None]

    def trace(self, g: Stack, curvature: Tensor) -> Tensor:
        """Unbiased samples (m, R) of the trace beside the long run's whole basis V, from g in this space and g.H g.

        The trace is tr(T) + E[h.H h], h = (1 - V V^T) g, since V holds all that was taken out of g; and as
        H V = V T + r e_s, no product is needed for H h.
        """
        c = (self.main.basis[0] @ g.permute(1, 2, 0)).permute(2, 0, 1).double()
        inside = ((c[..., None, :] @ self.main.matrix[0]).squeeze(-2) * c).sum(-1)
        across = c[..., -1] * (g * self.main.remainder).sum(-1).double()
        return self.size * (curvature - inside - 2 * across)


def _ends(main: Krylov, values: Tensor, residuals: Tensor, converged: Tensor, vectors: Tensor, hidden: Tensor) -> Ends:
    found = vectors.mT.to(main.basis.dtype) @ main.basis[0]
    return Ends(values, residuals, converged & ~hidden, found)


def _drawn(hessian: Hessian, vectors: int, source: Source) -> Stack:
    like = hessian.like.new_empty(hessian.rows, hessian.size)
    return torch.stack([gaussian(like, source) for _ in range(vectors)])


def _is_enough(samples: Tensor, settled: PerRow, precision: float) -> bool:
    error = samples.std(0) / len(samples) ** 0.5
    reached = bool((error <= precision * (settled + samples.mean(0)).abs()).all()) or not bool(error.isfinite().all())
    return len(samples) >= MOST or (len(samples) >= FEWEST and reached)
