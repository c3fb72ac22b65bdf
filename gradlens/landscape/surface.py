"""The record of a landscape: values on a grid whose coordinates, directions and centre can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..ball import cosine
from ..provenance import Made
from ..types import Axis, Grid, GridLabels, GridMask, GridMean, Images, Labels, PerSample

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Surface:
    """Values at x + unit (alpha d1 + beta d2) for R values of alpha, C of beta, B samples. A line has C = 1, beta 0.

    Cell [r, c] was measured at exactly (alpha[r], beta[c]); `centre_loss` is the plain loss at the unmoved point,
    measured apart from the grid, and `centre_error` compares the two.
    """

    loss: Grid  # the loss's own unit (cross-entropy: nats)
    margin: Grid  # logits; > 0 where the model errs
    entropy: Grid  # of the softmax, nats
    predicted: GridLabels  # class number; -1 for a sample that has no direction, whose numbers are nan
    in_box: GridMask  # no pixel of the plane's own point is off the pixel box: an attacker could hand it in as it is
    alpha: Axis  # along the first direction, in units of `unit` (eps)
    beta: Axis  # along the second
    directions: tuple[Images, ...]  # what alpha = 1, beta = 1 add to the image, in units of `unit`
    axes: tuple[str, str]  # names of the directions
    has_ends: bool  # coordinate 1 of an axis is a point that the caller named, such as an adversarial example
    unit: float  # pixels that one unit of alpha means, in the ball's norm
    projected: tuple[float, float] | None  # the pixel box into which every point was clamped before it was measured
    clean: Images  # alpha = beta = 0
    labels: Labels
    centre_loss: PerSample
    made: Made

    @property
    def centre(self) -> tuple[int, int]:
        """Row and column of alpha = beta = 0."""
        return int(self.alpha.abs().argmin()), int(self.beta.abs().argmin())

    @property
    def centre_error(self) -> float:
        """Largest difference between the grid's centre and the plain loss. Anything but rounding is a fault."""
        gaps = (self.loss[self.centre] - self.centre_loss).abs()
        return float(gaps.nan_to_num(-torch.inf).max()) if gaps.isfinite().any() else float("nan")

    @property
    def angle(self) -> PerSample:
        """Between the two directions, in degrees: 90 for a random orthogonal one. nan on a line."""
        if len(self.directions) < 2:
            return torch.full_like(self.centre_loss, torch.nan)
        return cosine(*self.directions).arccos().rad2deg()

    @property
    def error(self) -> Grid:
        """1 where the model errs, 0 where it does not, nan where undefined."""
        return (self.predicted != self.labels).to(self.margin).masked_fill(self.margin.isnan(), torch.nan)

    @property
    def in_box_share(self) -> GridMean:
        """Share of the samples whose point of a cell is in the pixel box; nan where no sample has a direction."""
        directed = ~self.loss.isnan().all((0, 1))
        return self.in_box[:, :, directed].to(self.loss).mean(2)

    @property
    def sharpness(self) -> PerSample:
        """Largest rise of the loss above the centre at the grid's points within 1 unit, in the loss's unit.

        nan where no point of the grid is 1 unit away: what lies nearer would be less than was asked for.
        """
        if not any(((axis.abs() - 1).abs() < 1e-6).any() for axis in (self.alpha, self.beta)):
            return torch.full_like(self.centre_loss, torch.nan)
        near = self.loss[self.alpha.abs() <= 1 + 1e-6][:, self.beta.abs() <= 1 + 1e-6]
        return (near - self.loss[self.centre]).flatten(0, 1).amax(0)

    def __str__(self) -> str:
        rows, columns, batch = self.loss.shape
        unit = "times as far" if self.has_ends else "eps"
        angle = f", {self.angle.nanmedian():.0f} degrees apart (median)" if self.has_ends and columns > 1 else ""
        names = self.axes[0] if columns == 1 else " x ".join(self.axes)
        return (
            f"{batch} samples on {rows} x {columns} points, {names}{angle}, "
            f"+-{self.alpha.max():g} {unit}: sharpness {self.sharpness.nanmedian():.3g} (median), "
            f"centre error {self.centre_error:.1e}"
        )

    def frame(self) -> DataFrame:
        """Tidy table, one row a cell and sample."""
        import pandas as pd

        rows, columns, batch = self.loss.shape
        r, c, b = torch.meshgrid(torch.arange(rows), torch.arange(columns), torch.arange(batch), indexing="ij")
        table = {
            "alpha": self.alpha.cpu()[r],
            "beta": self.beta.cpu()[c],
            "sample": b,
            "loss": self.loss,
            "margin": self.margin,
            "entropy": self.entropy,
            "predicted": self.predicted,
            "in_box": self.in_box,
        }
        return pd.DataFrame({name: values.flatten().cpu().numpy() for name, values in table.items()})

    def summary(self, quantity: str = "loss") -> DataFrame:
        """The band over samples, one row a cell: median, 10th and 90th percentile, defined samples, in-box share.

        Undefined samples are left out. `quantity` is "loss", "margin", "entropy" or "error".
        """
        import pandas as pd

        values = getattr(self, quantity).double()
        shares = torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype, device=values.device)
        # row by row, since torch takes no more than 16 million numbers at a time
        low, median, high = torch.stack([row.nanquantile(shares, 1) for row in values], 1)
        table = {
            "alpha": self.alpha[:, None].expand_as(median),
            "beta": self.beta.expand_as(median),
            "low": low,
            "median": median,
            "high": high,
            "samples": (~values.isnan()).sum(2),
            "in_box": self.in_box_share,
        }
        return pd.DataFrame({name: column.flatten().cpu().numpy() for name, column in table.items()})
