"""What a spectrum is read from: one long Lanczos run for the ends, short ones beside it for the density and the trace.

The long run's basis is the low-rank part of Hutch++ (Meyer et al. 2021), and what it found to be eigenvectors is taken
out of the short runs: no product is spent on the same thing twice.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..draws import Source, gaussian
from ..types import PerRow, Stack
from .lanczos import Deflation, Krylov, lanczos, unit
from .products import Hessian

TOLERANCE = 1e-3  # of the largest |eigenvalue|: a pair with a smaller residual counts as converged
FEWEST, MOST = 8, 400  # random vectors of a trace that is to reach a precision
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
    counted = _Counted(hessian, bar)
    start = _drawn(counted, 1, source)
    main = lanczos(partial(counted.products, "eigenvalues"), start, min(steps, counted.size), source)
    pairs = _pairs(main)
    settled = pairs.values.sum(-1)

    rest = _Rest(counted, main, pairs)
    starts = rest.starts(probes, source)
    beside = partial(counted.products, "density")
    runs = lanczos(beside, starts, min(depth, counted.size), source, rest.without)
    nodes, coordinates, _ = runs.ritz()
    weights = coordinates[..., 0, :] ** 2

    samples = rest.trace(starts, runs.matrix[..., 0, 0])
    while precision is not None and not _is_enough(samples, settled, precision):
        more = rest.starts(probes, source)
        curvature = (more * counted.products("trace", more)).sum(-1).double()
        samples = torch.cat([samples, rest.trace(more, curvature)])

    # Lanczos sees a repeated eigenvalue once: one beyond the last that was found says that a copy was missed
    slack = TOLERANCE * pairs.values.abs().amax(-1, keepdim=True)
    unseen = weights <= UNSEEN
    highest = nodes.masked_fill(unseen, -torch.inf).amax((0, 2))[:, None]
    lowest = nodes.masked_fill(unseen, torch.inf).amin((0, 2))[:, None]
    top, bottom = _ends(main, Ends(*(t.flip(-1) for t in pairs)), k), _ends(main, pairs, k)
    return Estimates(
        top=top._replace(converged=top.converged & (highest <= top.values + slack)),
        bottom=bottom._replace(converged=bottom.converged & (lowest >= bottom.values - slack)),
        trace=settled + samples.mean(0),
        trace_error=samples.std(0) / len(samples) ** 0.5,
        ritz=torch.cat([pairs.values, *nodes], -1),
        weights=torch.cat([pairs.converged.double() / counted.size, *(weights * rest.share[:, None] / probes)], -1),
        products=counted.calls,
    )


class _Counted:
    """A Hessian that knows what its products were for."""

    def __init__(self, hessian: Hessian, bar: tqdm | None) -> None:
        self.hessian, self.bar = hessian, bar
        self.rows, self.size, self.like = hessian.rows, hessian.size, hessian.like
        self.calls = {"eigenvalues": 0, "density": 0, "trace": 0}

    def products(self, purpose: str, vectors: Stack) -> Stack:
        self.calls[purpose] += len(vectors)
        if self.bar is not None:
            self.bar.update(len(vectors))
        return self.hessian.products(vectors)


class _Rest:
    """What the long run has not settled: the space orthogonal to its converged eigenvectors."""

    def __init__(self, hessian: _Counted, main: Krylov, pairs: Ends) -> None:
        self.hessian, self.main = hessian, main
        sure = (pairs.vectors * pairs.converged[:, None]).nan_to_num(0.0)
        self.without = Deflation(main.basis[0], (sure @ sure.mT).to(main.basis.dtype))
        self.size = (hessian.size - pairs.converged.sum(-1)).double()  # its dimensions, in each row
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


def _pairs(main: Krylov) -> Ends:
    """All Ritz pairs of the long run, ascending; in place of vectors their coordinates in the basis, as columns."""
    values, coordinates, residuals = (t[0] for t in main.ritz())
    scale = values.abs().amax(-1, keepdim=True)
    # the recurrence knows nothing of what is lost to the rounding of the products themselves
    residuals = residuals + torch.finfo(main.basis.dtype).eps * scale
    return Ends(values, residuals, residuals <= TOLERANCE * scale, coordinates)


def _ends(main: Krylov, pairs: Ends, k: int) -> Ends:
    values, residuals, converged, coordinates = (t[..., :k] for t in pairs)
    return Ends(values, residuals, converged, coordinates.mT.to(main.basis.dtype) @ main.basis[0])


def _drawn(hessian: _Counted, vectors: int, source: Source) -> Stack:
    like = hessian.like.new_empty(hessian.rows, hessian.size)
    return torch.stack([gaussian(like, source) for _ in range(vectors)])


def _is_enough(samples: Tensor, settled: PerRow, precision: float) -> bool:
    error = samples.std(0) / len(samples) ** 0.5
    reached = bool((error <= precision * (settled + samples.mean(0)).abs()).all()) or not bool(error.isfinite().all())
    return len(samples) >= MOST or (len(samples) >= FEWEST and reached)
