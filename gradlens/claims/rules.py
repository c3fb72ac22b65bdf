"""When is a claim about two ways of training supported, contradicted, or open? The rules, before any number is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from pandas import DataFrame

LEVEL = 0.95
Kind = Literal["more", "different", "equal"]
Seeds = Mapping[int, Tensor]  # of each training seed: one value an image, nan where it is undefined


class Contrast(NamedTuple):
    """What one line of a claim says: `a` exceeds `b` by at least `smallest`, differs from it, or equals it so far.

    A `smallest` below 0 allows `a` to be less than `b` by so much: "more" then says "not much less".
    """

    of: str  # what is read, with its unit
    a: Seeds | None  # None: was not measured
    b: Seeds | None
    smallest: float  # the least difference that would matter, in the unit of what is read
    kind: Kind = "more"
    names: str = ""  # of a and b, as in "RL - SL"
    is_share: bool = False  # values are 0 or 1 an image, or means of such


@dataclass(frozen=True)
class Line:
    """One measured line of a claim."""

    of: str
    names: str
    kind: Kind
    difference: float  # mean over images and training seeds
    low: float  # of its interval; nan with fewer than two seeds
    high: float
    smallest: float
    seeds: int
    samples: int  # images with a defined value in every seed

    @property
    def expected(self) -> str:
        """What the claim needs the difference to be, in words."""
        bound = f"{self.smallest:.3g}"
        return {"more": f"at least {bound}", "different": f"beyond +-{bound}", "equal": f"within +-{bound}"}[self.kind]

    @property
    def reading(self) -> str:
        """ "there", "not there", or "unsure" where the interval leaves both possible.

        More: there if the interval lies above 0 (above the loss that is allowed) and reaches the smallest difference
        that matters, not there if it stays below that. Different: there if it leaves out 0 and reaches beyond
        +-smallest, not there if it stays within. Equal: there if it stays within, not there if it is all beyond.
        """
        if math.isnan(self.low):
            return "unsure"
        if self.kind == "more":
            absent = self.high < self.smallest
            present = self.low > min(self.smallest, 0.0) and not absent
        else:
            inside = -self.smallest < self.low and self.high < self.smallest
            outside = self.low > 0 or self.high < 0
            beyond = self.low > self.smallest or self.high < -self.smallest
            present, absent = (inside, beyond) if self.kind == "equal" else (outside and not inside, inside)
        return "there" if present else "not there" if absent else "unsure"


@dataclass(frozen=True)
class Claim:
    """A sentence, and all that would have to be seen if it were true."""

    name: str
    says: str
    lines: tuple[Line, ...]

    @property
    def verdict(self) -> str:
        """ "supported" if every line is there, "contradicted" if one is not, else "open"."""
        readings = [line.reading for line in self.lines]
        if "not there" in readings:
            return "contradicted"
        return "supported" if set(readings) == {"there"} else "open"

    def __str__(self) -> str:
        told = [
            f"  {line.reading:9}  {line.of}, {line.names}: {line.difference:+.3g} [{line.low:+.3g}, {line.high:+.3g}]"
            f", {line.expected}"
            for line in self.lines
        ]
        return "\n".join([f"{self.name} {self.verdict}: {self.says}", *told])

    def frame(self) -> DataFrame:
        """Tidy table, one row a line."""
        import pandas as pd

        head = {"claim": self.name, "says": self.says, "verdict": self.verdict}
        return pd.DataFrame(
            [
                {
                    **head, "measured": line.of, "difference of": line.names, "expected": line.expected,
                    "difference": line.difference, "low": line.low, "high": line.high, "smallest": line.smallest,
                    "reading": line.reading, "seeds": line.seeds, "samples": line.samples,
                }
                for line in self.lines
            ]
        )  # fmt: skip


def judged(name: str, says: str, contrasts: Sequence[Contrast], level: float = LEVEL) -> Claim:
    """Measure each line of a claim, with intervals that hold for all its lines together (Bonferroni).

    Each line asks for the smallest difference that would matter, so that "too small to matter" can be told from "not
    enough data" (equivalence tests: Schuirmann 1987; Lakens 2017).

    Raises ValueError for no lines, and for values of different images.
    """
    if not contrasts:
        raise ValueError(f"contrasts of {name} are empty, expected at least one line")
    each = 1 - (1 - level) / len(contrasts)
    return Claim(name, says, tuple(_line(contrast, each) for contrast in contrasts))


def _line(contrast: Contrast, level: float) -> Line:
    difference, low, high, seeds, samples = paired(
        contrast.a or {}, contrast.b or {}, level, is_share=contrast.is_share
    )
    return Line(contrast.of, contrast.names, contrast.kind, difference, low, high, contrast.smallest, seeds, samples)


def paired(a: Seeds, b: Seeds, level: float = LEVEL, *, is_share: bool = False) -> tuple[float, float, float, int, int]:
    """The mean of a - b over images and seeds that both have, its interval, and the numbers of both.

    An image counts where it has a value in every seed. The variance of the mean is that over seeds plus that over
    images, each as if the other were not there: for another training and other images, and a little too wide rather
    than too narrow. Student's t, whose degrees of freedom are Satterthwaite's (1946): few where seeds decide.

    Shares have two more images in their variance, one on which a is right and b is not and one the other way round,
    each by half (Agresti & Min 2005): that no image of forty differs does not show that none of a thousand would.
    """
    from scipy.stats import t

    shared = sorted(set(a) & set(b))
    if not shared:
        return math.nan, math.nan, math.nan, 0, 0
    sizes = {len(values) for seeds in (a, b) for values in seeds.values()}
    if len(sizes) > 1:
        raise ValueError(f"a and b hold {sorted(sizes)} images, expected the same images everywhere")
    table = np.array([(a[seed].double() - b[seed].double()).cpu().numpy() for seed in shared])
    table = table[:, np.isfinite(table).all(0)]
    seeds, samples = table.shape
    if samples == 0:
        return math.nan, math.nan, math.nan, seeds, 0
    mean = float(table.mean())
    if seeds < 2 or samples < 2:
        return mean, math.nan, math.nan, seeds, samples
    spread, count = float(((table.mean(0) - mean) ** 2).sum()) + is_share, samples + 2 * is_share
    of_images = spread / (count - 1) / count
    parts = [(table.mean(1).var(ddof=1) / seeds, seeds - 1), (of_images, samples - 1)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / of for part, of in parts) if variance else seeds - 1
    half = float(t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    return mean, mean - half, mean + half, seeds, samples
