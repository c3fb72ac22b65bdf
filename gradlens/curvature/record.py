"""The record of a spectrum: eigenvalues with their residuals, trace, density, and what can be read from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ..door import is_number
from ..provenance import Made
from ..types import Axis, Direction, Images, PerNode, PerRank, PerRise, PerSpectrum, RankMask

if TYPE_CHECKING:
    from pandas import DataFrame

Of = Literal["weights", "inputs"]


@dataclass(frozen=True)
class Spectrum:
    """The Hessian of the mean loss in the weights, or of each sample's loss in its input.

    Of the inputs every field has a leading axis over the samples (*batch); of the weights there is none. Units, for
    cross-entropy: nats per squared weight, or nats per squared pixel. `vectors` have length 1: of the weights a dict
    of parameters each, of the inputs a tensor like the images each, as `input_plane` takes for directions.
    """

    of: Of
    eigenvalues: PerRank  # the k largest, descending
    residuals: PerRank  # ||H v - value v||: an eigenvalue lies at most that far from the value
    converged: RankMask  # residual at most 1e-3 of the largest |eigenvalue|, and no random vector saw one beyond
    vectors: tuple[Direction, ...] | tuple[Images, ...]
    bottom: PerRank  # the k smallest, ascending: below 0 the loss curves downwards
    bottom_residuals: PerRank
    bottom_converged: RankMask
    bottom_vectors: tuple[Direction, ...] | tuple[Images, ...]
    trace: PerSpectrum  # by Hutch++ (Meyer et al. 2021) on top of the Lanczos basis
    trace_error: PerSpectrum  # its standard error; 0 where Lanczos has seen the whole space
    precision: float | None  # share of the trace that its standard error was to reach; None where none was asked
    ritz: PerNode  # where the density has mass, by stochastic Lanczos quadrature
    weights: PerNode  # how much, as a share of all eigenvalues; sums to 1
    loss: PerSpectrum
    gradient_norm: PerSpectrum  # Euclidean length of the first derivative, nats per unit weight or pixel
    radii: Axis  # Euclidean lengths of a step along the gradient
    rise: PerRise  # how far the loss rises at each; nan without a gradient
    names: tuple[str, ...]  # the parameters; "x" for the inputs
    size: int  # eigenvalues there are: numbers in these parameters, pixels in an image
    products: dict[str, int]  # Hessian-vector products spent, by purpose; of the inputs, for each sample
    made: Made

    @property
    def is_trace_exact(self) -> bool:
        """Has the trace the precision that was asked of it? A trace near 0 has none that is a share of itself."""
        return self.precision is None or bool((self.trace_error <= self.precision * self.trace.abs()).all())

    @property
    def sharpness(self) -> PerSpectrum:
        """Largest rise of the loss along the gradient within the radii up to 0.05 (SAM: Foret et al. 2021), in nats.

        SAM's own first-order answer to the worst step in a ball of radius rho = 0.05: a lower bound of the worst.
        """
        return self.rise[..., self.radii <= 0.05 * (1 + 1e-6)].amax(-1)

    def basin_width(self, rise: float = 0.1) -> PerSpectrum:
        """How far one can go along the sharpest direction until the curvature has raised the loss by `rise` nats.

        sqrt(2 rise / largest eigenvalue), a Euclidean length; nan where the largest eigenvalue is not positive.
        Raises ValueError for a rise that is not positive.
        """
        if not (is_number(rise) and rise > 0):
            raise ValueError(f"rise is {rise!r}, expected a positive number of nats")
        sharpest = self.eigenvalues[..., 0]
        return (2 * rise / sharpest.where(sharpest > 0, torch.nan)).sqrt()

    def density(self, grid: Axis, width: float | None = None) -> PerNode:
        """Share of eigenvalues per unit at each point of `grid`, every one spread by a Gaussian of deviation `width`.

        The default width is 1% of the range from the smallest eigenvalue to the largest. The integral is 1. Raises
        ValueError for a width that is not positive.
        """
        reach = float((self.eigenvalues[..., 0] - self.bottom[..., 0]).nan_to_num(0.0).max())
        width = 0.01 * reach if width is None else width
        if not (is_number(width) and width > 0):
            raise ValueError(f"width is {width!r}, expected a positive number in the unit of the eigenvalues")
        grid = torch.as_tensor(grid).to(self.ritz)
        gaps = (grid[:, None] - self.ritz[..., None, :]) / width
        heights = torch.exp(-gaps.square() / 2) / (width * math.sqrt(2 * math.pi))
        return (heights * self.weights[..., None, :]).sum(-1)

    def __str__(self) -> str:
        count = f"{len(self.names)} parameters" if self.of == "weights" else f"{len(self.trace)} inputs"
        note = "" if self.of == "weights" else " (medians)"
        short = "" if self.is_trace_exact else f" ({self.precision:.1g} of it was asked)"
        top, bottom = (float(t[..., 0].nanmedian()) for t in (self.eigenvalues, self.bottom))
        return (
            f"{count}, {self.size} numbers: eigenvalues {top:.3g} to {bottom:.3g}, trace {self.trace.nanmedian():.3g} "
            f"+- {self.trace_error.nanmedian():.1g} by Hutch++{short}{note}, {int(self.converged.sum())} of "
            f"{self.converged.numel()} largest converged, {sum(self.products.values())} products"
        )

    def frame(self) -> DataFrame:
        """Tidy table, one row an eigenvalue (and sample): from the top and from the bottom, ranks from 0."""
        import pandas as pd

        ends = {
            "top": (self.eigenvalues, self.residuals, self.converged),
            "bottom": (self.bottom, self.bottom_residuals, self.bottom_converged),
        }
        tables = []
        for end, (values, residuals, converged) in ends.items():
            samples, k = values.reshape(-1, values.shape[-1]).shape
            columns = {"eigenvalue": values, "residual": residuals, "converged": converged}
            table = pd.DataFrame({name: t.flatten().cpu().numpy() for name, t in columns.items()})
            table.insert(0, "rank", list(range(k)) * samples)
            table.insert(0, "end", end)
            if self.of == "inputs":
                table.insert(0, "sample", [i for i in range(samples) for _ in range(k)])
            tables.append(table)
        return pd.concat(tables, ignore_index=True)
