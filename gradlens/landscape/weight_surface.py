"""The record of a landscape in weight space: one value a cell and metric, at coordinates that can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..provenance import Made
from ..types import Axis, CellMask, Direction, MetricGrid, MetricPlaces, PerMetric, Places
from .directions import angle, length

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class WeightSurface:
    """Means over a data set at weights + alpha d1 + beta d2, for R values of alpha, C of beta. A line has C = 1.

    Cell [:, r, c] belongs to exactly (alpha[r], beta[c]). `plain` is what the unmoved model gives, measured apart from
    the grid under the same batch-norm policy, and `centre_error` compares the two. NaN where a model diverged.
    """

    values: MetricGrid  # float64, in `units`
    metrics: tuple[str, ...]
    units: tuple[str, ...]  # "" for the caller's own metrics
    alpha: Axis  # along the first direction
    beta: Axis  # along the second
    directions: tuple[Direction, ...]  # what alpha = 1, beta = 1 add to each parameter that moves, by name
    axes: tuple[str, str]  # names of the directions
    meaning: tuple[str, str]  # what one unit of alpha and beta is
    batchnorm: str  # "frozen", "reestimated" (from the same data in each cell), "interpolated", "none" (no such layer)
    samples: int
    plain: PerMetric
    path: Places  # coordinates of the models that the plane was laid through: end points, checkpoints
    path_values: MetricPlaces  # what each of these gives by itself, measured apart; nan where not measured
    measured: CellMask  # the other cells are interpolated from these
    tolerance: float | None  # share of each metric's range that was asked of the interpolation; None: all measured
    bound: PerMetric  # twice the largest miss of cells predicted before they were measured (`adaptive.fill`)
    made: Made

    def of(self, metric: str) -> Tensor:
        """The grid (R, C) of one metric. Raises ValueError for one that was not measured."""
        if metric not in self.metrics:
            raise ValueError(f"metric is {metric!r}, expected one of {', '.join(map(repr, self.metrics))}")
        return self.values[self.metrics.index(metric)]

    @property
    def centre(self) -> tuple[int, int]:
        """Row and column of alpha = beta = 0."""
        return int(self.alpha.abs().argmin()), int(self.beta.abs().argmin())

    @property
    def centre_error(self) -> PerMetric:
        """Difference between the grid's centre and the unmoved model. Anything but rounding is a fault."""
        row, column = self.centre
        return (self.values[:, row, column] - self.plain).abs()

    @property
    def path_error(self) -> PerMetric:
        """Largest difference between a model on the path and the cell at its coordinates; nan if none was measured."""
        gaps = [torch.full_like(self.plain, torch.nan)]
        for place, own in zip(self.path, self.path_values.T, strict=True):
            row, column = int((self.alpha - place[0]).abs().argmin()), int((self.beta - place[1]).abs().argmin())
            if torch.equal(torch.stack([self.alpha[row], self.beta[column]]), place):
                gaps.append((self.values[:, row, column] - own).abs())
        gap = torch.stack(gaps)
        return gap.nan_to_num(-torch.inf).amax(0).where(~gap.isnan().all(0), torch.nan)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Euclidean length of each direction: the distance in weight space that one unit of it moves the model."""
        return tuple(length(direction) for direction in self.directions)

    @property
    def angle(self) -> float:
        """Degrees between the two directions, nan for a line. A plane is drawn as if it were 90."""
        return angle(*self.directions) if len(self.directions) == 2 else float("nan")

    @property
    def evaluations(self) -> int:
        """Cells that were measured."""
        return int(self.measured.sum())

    @property
    def diverged(self) -> int:
        """Cells without a finite value in some metric."""
        return int((~self.values.isfinite().all(0)).sum())

    def __str__(self) -> str:
        _, rows, columns = self.values.shape
        row, column = self.centre
        centre = ", ".join(
            f"{name} {value:.4g}" for name, value in zip(self.metrics, self.values[:, row, column], strict=True)
        )
        how = f"; {self.evaluations} of {rows * columns} cells measured"
        if self.evaluations < rows * columns:
            bounds = zip(self.metrics, self.bound.tolist(), strict=True)
            how += ", the others within about " + ", ".join(f"{bound:.1e} ({name})" for name, bound in bounds)
        elif self.tolerance is not None:
            how += f": none could be left out at {self.tolerance:g} of the range"
        if self.path_error.isfinite().any():
            how += f"; path error {self.path_error.nan_to_num(0.0).max():.1e}"
        how += f"; {self.diverged} diverged" if self.diverged else ""
        names = self.axes[0] if columns == 1 else f"{' x '.join(self.axes)} at {self.angle:.0f} degrees"
        return (
            f"{self.samples} samples on {rows} x {columns} points of weight space, {names}, batch norm "
            f"{self.batchnorm}: {centre} at the centre, centre error {self.centre_error.max():.1e}{how}"
        )

    def frame(self) -> DataFrame:
        """Tidy table, one row a cell, one column a metric."""
        import pandas as pd

        rows, columns = self.measured.shape
        table = {
            "alpha": self.alpha[:, None].expand(rows, columns),
            "beta": self.beta[None].expand(rows, columns),
            "measured": self.measured,
        } | dict(zip(self.metrics, self.values, strict=True))
        return pd.DataFrame({name: values.flatten().cpu().numpy() for name, values in table.items()})
