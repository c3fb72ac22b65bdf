"""What an attack by queries found for each sample, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...ball import Ball
from ...door import check_count
from ...provenance import NOTHING_LEFT, Made
from ...types import Images, Labels, PerSample, SampleMask

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class QueryTrace:
    """One attack on B samples that saw only the model's answers. Undefined values are nan.

    One image through the model is one query; the first is the clean image itself. What is said of points was
    recounted after the attack by passes of its own, which are not queries.
    """

    clean: Images
    adversarial: Images  # of the points asked inside the ball and the box, the one of largest margin
    closest: Images | None  # hard label: the closest point asked that errs, in the box; the clean image if none
    labels: Labels
    margin: PerSample  # at `adversarial`: best wrong logit minus true logit; > 0 where the model errs
    queries: Labels  # that each sample spent, and its forward passes; no more than `budget`
    found_at: PerSample  # number of the first query that broke the sample inside the ball, from 1; nan if none did
    distance: PerSample  # hard label: from clean to `closest`, in the ball's norm, pixels; nan if none errs
    budget: int  # queries that each sample had
    ball: Ball
    made: Made

    @property
    def success(self) -> SampleMask:
        """`adversarial` is inside the ball and the box and fools the model."""
        return self.found_at.isfinite()

    def accuracy(self, queries: int) -> float:
        """Share of samples that no point inside the ball had broken after so many queries; never rises with them.

        After one query it is the clean accuracy. Raises ValueError for less than one query and for more than the
        budget: what more of them would have found is not known.
        """
        check_count("queries", queries)
        if queries > self.budget:
            raise ValueError(f"queries is {queries}, expected at most {self.budget}, the budget of the attack")
        return 1 - float((self.found_at <= queries).double().mean())

    def __str__(self) -> str:
        name = self.made.call.partition("(")[0]
        said = (
            f"{len(self.labels)} samples, {self.ball.norm} eps {self.ball.eps:.3g}, {name}:"
            f" accuracy {self.accuracy(1):.1%} -> {self.accuracy(self.budget):.1%} after {self.budget} queries"
            f"  spent {self.queries.double().mean():.0f} a sample"
        )
        if bool((self.found_at == 1).all()):
            return said + NOTHING_LEFT
        if self.closest is None:
            return said
        found = int(self.distance.isfinite().sum())
        return f"{said}  median distance {self.distance.nanmedian():.3g} ({found} found)"

    def frame(self) -> DataFrame:
        """Tidy table, one row a sample."""
        import pandas as pd

        names = ("labels", "success", "margin", "queries", "found_at", "distance")
        table = {name: getattr(self, name).cpu().numpy() for name in names}
        return pd.DataFrame({"sample": range(len(self.labels)), **table})
