"""Lanczos' method with full reorthogonalisation, for many operators and starting vectors in step.

Without reorthogonalisation rounding brings eigenvalues that were found already back as ghosts (Golub & Van Loan,
Matrix Computations, 10.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..draws import Source, gaussian
from ..types import Stack


@dataclass(frozen=True)
class Krylov:
    """H V = V T + remainder e_s: an orthonormal basis, what H is on it, and how far H leads out of it.

    For m starting vectors in each of R rows and s steps; T is in float64. Rows of V beyond the dimension of the space
    are zero.
    """

    basis: Tensor  # (m, R, s, n), V's columns
    matrix: Tensor  # (m, R, s, s), T
    remainder: Stack

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (m, R, s), ascending; their coordinates (m, R, s, s) in the basis, as columns; ||H v - value v||.

        nan where the operator gave nan.
        """
        bad = ~self.matrix.isfinite().flatten(-2).all(-1)[..., None]
        values, vectors = torch.linalg.eigh(self.matrix.masked_fill(bad[..., None], 0.0))
        residuals = self.remainder.norm(dim=-1).double()[..., None] * vectors[..., -1, :].abs()
        return tuple(
            t.masked_fill(b, torch.nan) for t, b in ((values, bad), (vectors, bad[..., None]), (residuals, bad))
        )


@dataclass(frozen=True)
class Deflation:
    """A subspace in each row that vectors are kept out of: span of V C, as V and the projector C C^T."""

    basis: Tensor  # (R, s, n)
    projector: Tensor  # (R, s, s)

    def __call__(self, w: Stack) -> Stack:
        inside = w.transpose(0, 1) @ self.basis.mT @ self.projector @ self.basis
        return w - inside.transpose(0, 1)


def lanczos(
    apply: Callable[[Stack], Stack],
    start: Stack,
    steps: int,
    source: Source = None,
    without: Callable[[Stack], Stack] = lambda w: w,
) -> Krylov:
    """The Krylov spaces of `apply` from the vectors `start` (any length; zero makes an empty space).

    `without` takes out of a vector what is to be left aside. A space that closes early is continued from a random
    vector orthogonal to it, so that repeated eigenvalues are found.
    """
    m, rows, n = start.shape
    basis = start.new_zeros(m, rows, steps, n)
    matrix = torch.zeros(m, rows, steps, steps, dtype=torch.float64, device=start.device)
    rounding = 10 * torch.finfo(start.dtype).eps
    v = unit(start)
    for j in range(steps):
        basis[:, :, j] = v
        done = basis[:, :, : j + 1]
        w = apply(v)
        matrix[..., j, j] = (v * w).sum(-1).double()
        w = _outside(w, done, without)
        if j + 1 == steps:
            break
        beta = w.norm(dim=-1).double()
        closed = beta <= rounding * matrix.abs().amax((-2, -1))
        v = unit(w)
        if closed.any():
            v = torch.where(closed[..., None], _fresh(w, done, without, source), v)
            beta = beta.masked_fill(closed, 0.0)
        matrix[..., j, j + 1] = matrix[..., j + 1, j] = beta
    return Krylov(basis, matrix, w)


def _outside(w: Stack, basis: Tensor, without: Callable[[Stack], Stack]) -> Stack:
    """What is left of `w` beside the basis. Twice, since the first pass leaves rounding of the size of w behind."""
    for _ in range(2):
        w = without(w)
        inside = basis @ w[..., None]
        w = w - (inside.mT @ basis).squeeze(-2)
    return w


def _fresh(like: Stack, basis: Tensor, without: Callable[[Stack], Stack], source: Source) -> Stack:
    """A random unit vector in each row, orthogonal to what there is; zero where no dimension is left."""
    drawn = torch.stack([gaussian(row, source) for row in torch.zeros_like(like)])
    w = _outside(drawn, basis, without)
    empty = w.norm(dim=-1) <= torch.finfo(w.dtype).eps ** 0.5 * drawn.norm(dim=-1)
    return _outside(unit(w), basis, without).masked_fill(empty[..., None], 0.0)


def unit(w: Tensor) -> Tensor:
    """Length 1, or exactly 0; dividing by the largest entry first keeps squares from underflowing."""
    largest = w.abs().amax(-1, keepdim=True)
    scaled = w / largest.where(largest != 0, 1.0)
    length = scaled.norm(dim=-1, keepdim=True)
    return scaled / length.where(length != 0, 1.0)
