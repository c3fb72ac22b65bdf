"""How far away the closest error is that an attack found for each sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from ..ball import Ball
from ..provenance import NOTHING_LEFT, Made
from ..types import Images, Labels, PerSample, SampleMask

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Distances:
    """What an attack without an eps of its own found for B samples. Undefined values are nan."""

    clean: Images
    adversarial: Images  # the closest point found in the box that errs; the clean image where none was found
    labels: Labels
    distance: PerSample  # from clean to adversarial, in the ball's norm, pixels; 0: errs by itself, nan: none was found
    margin: PerSample  # at adversarial, by a pass of its own: best wrong logit minus true logit; > 0: the model errs
    forwards: Labels  # passes through the model that each sample took
    backwards: Labels
    ball: Ball  # gave the norm and the box; its eps bounds nothing
    made: Made

    @property
    def found(self) -> SampleMask:
        """The sample errs, at some distance."""
        return self.distance.isfinite()

    def accuracy(self, eps: float) -> float:
        """Share of samples with no error found within `eps` pixels; never rises with eps. At 0, the clean accuracy.

        Raises ValueError for an eps below 0 or not finite.
        """
        if not (isinstance(eps, Real) and math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps is {eps!r}, expected 0 or a positive finite number of pixels")
        return 1 - float((self.distance <= eps).double().mean())  # nan is within no distance

    def __str__(self) -> str:
        name = self.made.call.partition("(")[0]
        said = (
            f"{len(self.labels)} samples, {name}, {self.ball.norm}: clean accuracy {self.accuracy(0.0):.1%}"
            f"  median distance {self.distance.nanmedian():.3g}  not found {int((~self.found).sum())}"
        )
        return said + NOTHING_LEFT if self.accuracy(0.0) == 0 else said

    def frame(self) -> DataFrame:
        """Tidy table, one row a sample."""
        import pandas as pd

        names = ("labels", "distance", "found", "margin", "forwards", "backwards")
        table = {name: getattr(self, name).cpu().numpy() for name in names}
        return pd.DataFrame({"sample": range(len(self.labels)), **table})
