"""The verdict on a model's gradients, the rows of evidence behind it, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..ball import Ball
from ..intervals import wilson
from ..provenance import Made
from ..types import Images, Labels, SampleMask
from .evidence import Evidence

if TYPE_CHECKING:
    from pandas import DataFrame

WIDE = 0.1  # a gap that so few samples do not exclude is said beside "usable"
Verdict = Literal["usable", "suspect", "masked"]
ADVICE = {
    "usable": "PGD on the cross-entropy misses little of what these attacks find; what was not looked for may be there",
    "suspect": "do not report PGD on the cross-entropy alone: do what the rows that fired advise, then look again",
    "masked": "robustness measured by plain PGD is not real: the gradients hide errors that other attacks find",
}


@dataclass(frozen=True)
class Masking:
    """B samples under PGD as everybody runs it, and under all that could show it to be blind.

    `verdict` follows from the rows by the rules of `masking.verdict.judge`; `layers` say what in the defence does it,
    the first one first.
    """

    verdict: Verdict
    layers: tuple[str, ...]  # "the loss saturates", "the direction shatters"...; empty for a usable model
    evidence: tuple[Evidence, ...]
    labels: Labels
    right: SampleMask  # the model is right on the image as it is
    naive: SampleMask  # right, and PGD on the cross-entropy ends at a point that is right too
    robust: SampleMask  # right, and broken by nothing that ran
    adversarial: Images  # the point that broke the sample; the image itself where none did
    seconds: float
    budget: str
    ball: Ball
    made: Made

    @property
    def clean_accuracy(self) -> float:
        """Share of samples that are right without an attack."""
        return float(self.right.double().mean())

    @property
    def naive_accuracy(self) -> float:
        """Share of samples that are right at the end of PGD on the cross-entropy, as most studies report it."""
        return float(self.naive.double().mean())

    @property
    def best_accuracy(self) -> float:
        """Share of samples that nothing broke: the worst case over all that ran."""
        return float(self.robust.double().mean())

    @property
    def gap(self) -> tuple[float, float, float]:
        """Share of samples that PGD leaves and something else breaks, and its 95% Wilson interval."""
        hidden = int((self.naive & ~self.robust).sum())
        return hidden / len(self.naive), *wilson(hidden, len(self.naive))

    @property
    def fired(self) -> tuple[Evidence, ...]:
        """The rows that fired."""
        return tuple(row for row in self.evidence if row.fired)

    def row(self, name: str) -> Evidence:
        """One row of evidence. Raises ValueError for an unknown name."""
        for row in self.evidence:
            if row.name == name:
                return row
        raise ValueError(f"name is {name!r}, expected one of {', '.join(repr(row.name) for row in self.evidence)}")

    def frame(self) -> DataFrame:
        """Tidy table, one row a piece of evidence, in the order in which they explain."""
        import dataclasses

        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(row) for row in self.evidence])

    def __str__(self) -> str:
        gap, low, high = self.gap
        why = f": {', '.join(self.layers)}" if self.layers else ""
        lines = [
            f"{self.verdict}{why}",
            f"{len(self.labels)} samples, {self.ball.norm} eps {self.ball.eps:.4g}: clean {self.clean_accuracy:.1%}, "
            f"PGD on the cross-entropy {self.naive_accuracy:.1%}, best of all attacks {self.best_accuracy:.1%}; "
            f"PGD misses {gap:.1%} [{low:.1%}, {high:.1%}]",
        ]
        for row in self.fired:
            if row.counts:
                lines.append(f"  {row.name}: {row.value:.1%} [{row.low:.1%}, {row.high:.1%}] {row.meaning}")
                lines.append(f"      try: {row.remedy} ({row.source})")
        also = [f"{row.name} {row.value:.0%}" for row in self.fired if not row.counts]
        if also:
            lines.append(f"  also seen, no reason by itself: {', '.join(also)}")
        skipped = [row.name for row in self.evidence if row.samples == 0]
        if skipped:
            lines.append(f"  not looked for: {', '.join(skipped)}")
        if self.verdict == "usable" and high > WIDE:
            lines.append(f"  so few samples do not exclude that PGD misses {high:.0%}: bring more")
        lines.append(f"{ADVICE[self.verdict]} ({self.budget}, {self.seconds:.0f} s)")
        return "\n".join(lines)
