"""What is looked for, one row each: what it means, from which share of samples on it counts, what to do about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..intervals import wilson
from .looks import Marks

GAIN = 0.02  # gradient attacks together miss a sample or two in a hundred of any model
LARGE = 0.05  # of the samples: PGD on one loss and PGD on another differ by less on an ordinary network


class Test(NamedTuple):
    """One thing to look for. It fires where the lower end of a 95% interval of its share is above `threshold`."""

    name: str
    mark: str
    meaning: str  # the share of samples that ...
    threshold: float
    strong: float  # from here on it is reason to call gradients masked, where there is a gap; 1: never
    alone: bool  # does it make a verdict suspect by itself?
    layer: str  # of the defence that it points to; "" where it points to none
    source: str
    remedy: str


STATE = "the output changes from call to call"
RANDOM = "the output is random"
NOTHING = "no gradient arrives"
WRONG = "the backward pass is not the derivative"
PINNED = "the output saturates"
SATURATED = "the loss saturates"
MISLED = "the loss misleads"
SHATTERED = "the direction shatters"
EARLY = "the optimiser stops early"
ATHALYE, CARLINI = "Athalye et al. 2018", "Carlini et al. 2019"
PINTOR = "Pintor et al. 2022"

# in the order in which they explain: what comes first is the reason where several fire
TESTS = (
    Test("state between calls", "state", "get other logits on a second call with the same random numbers",
         GAIN, 0.5, True, STATE, "Croce & Hein 2020", "reset the state before each pass, then attack"),
    Test("random forward pass", "random", "get other logits on a second pass",
         GAIN, 0.5, True, RANDOM, f"{ATHALYE}; Croce & Hein 2020", "average gradients and answers over passes (EOT)"),
    Test("averaging passes gains", "passes", "PGD on the mean of passes breaks and PGD on single ones does not",
         GAIN, LARGE, True, RANDOM, ATHALYE, "attack the mean over passes: samples=k (EOT)"),
    Test("probabilities, not logits", "probabilities", "get shares that sum to 1 in place of logits",
         0.5, 0.5, True, SATURATED, "Croce & Hein 2020", "leave the softmax out, or attack the logarithm"),
    Test("gradient missing", "missing", "have no gradient, zero or not finite, under cross-entropy and margin",
         GAIN, 0.5, True, NOTHING, f"{PINTOR}, I1", "replace the step that stops it in the backward pass (BPDA)"),
    Test("backward is not the slope", "wrong slope", "have a gradient that differences along it contradict",
         0.1, 0.5, True, WRONG, ATHALYE, "find the step whose backward is not its derivative (BPDA)"),
    Test("a logit saturates", "pinned", "have a true or best wrong logit with a thousandth of the other's gradient",
         0.5, 0.5, False, PINNED, "this package", "attack what comes before the last activation"),
    Test("underflow", "underflow", "have a cross-entropy gradient that float32 rounds to exactly 0",
         GAIN, 0.5, True, SATURATED, "Carlini & Wagner 2017", "a loss on logits (margin), or float64"),
    Test("saturation", "saturated", "have a cross-entropy gradient too small for float32, and a margin gradient",
         0.5, 1.0, False, SATURATED, "Carlini & Wagner 2017", "a loss on logits: margin, DLR, rescaled (MIFPE)"),
    Test("float64 gains", "precision", "the same PGD breaks in float64 and not in float32",
         LARGE, 1.0, True, SATURATED, "Yu & Xu 2023", "float64, or a loss on logits"),
    Test("one step beats many", "one step", "one step of eps breaks and PGD does not",
         GAIN, LARGE, True, SHATTERED, ATHALYE, "random starts, smaller steps, averaged gradients"),
    Test("averaged gradients gain", "averaged", "mean gradients nearby break, those of the same loss at points do not",
         GAIN, LARGE, True, SHATTERED, f"{PINTOR}; {ATHALYE}", "average gradients over nearby points"),
    Test("random search gains", "random search", "random points of the ball break and gradients at points do not",
         GAIN, LARGE, True, SHATTERED, ATHALYE, "an attack without gradients; find what hides them"),
    Test("Square gains", "square", "Square breaks by queries and gradients at points do not",
         GAIN, LARGE, True, SHATTERED, f"{ATHALYE}; Croce & Hein 2020", "report Square too; find what hides them"),
    Test("RayS gains", "rays", "RayS breaks by labels alone and gradients at points do not",
         GAIN, LARGE, True, SHATTERED, "Chen & Gu 2020", "report RayS too; find what hides the gradient"),
    Test("transfer gains", "transfer", "points made on another model break and PGD on no loss of its own does",
         GAIN, LARGE, True, SHATTERED, f"{ATHALYE}; Papernot et al. 2017", "attack through the other's gradients"),
    Test("direction turns nearby", "turning", "have a gradient more than 60 degrees off at a tenth of eps",
         0.5, 1.0, False, SHATTERED, f"{ATHALYE}, shattered gradients", "average gradients over nearby points"),
    Test("predictions unstable nearby", "unstable", "see the margin change by over a tenth within 4/255",
         0.5, 1.0, False, SHATTERED, f"{PINTOR}, I2, here of the margin, 10 draws", "average nearby gradients"),
    Test("another loss gains", "loss", "margin, rescaled or DLR loss breaks and cross-entropy does not",
         LARGE, 1.0, True, MISLED, f"{CARLINI}; Croce & Hein 2020", "report PGD on the margin too"),
    Test("more steps gain", "steps", "more or slower steps on cross-entropy or margin break and the usual do not",
         LARGE, 1.0, True, EARLY, CARLINI, "more steps, smaller ones, until accuracy stays"),
    Test("restarts gain", "restarts", "PGD breaks from random starts and not from the image",
         LARGE, 1.0, True, EARLY, CARLINI, "random restarts"),
    Test("silent success", "silent", "PGD fools on the way and not at its end",
         LARGE, 1.0, True, EARLY, f"{PINTOR}, I3", "keep the best point of the path"),
    Test("loss still rising", "incomplete", "see the loss rise by over 5% of its range in the last ten steps",
         0.5, 1.0, False, EARLY, f"{PINTOR}, I4", "more steps, or larger ones"),
    Test("unbounded attack fails", "unbounded", "withstand PGD in the whole pixel box",
         LARGE, 1.0, True, "", f"{PINTOR}, I6; {CARLINI}", "the attack itself is broken here: mend it first"),
    Test("not monotone in eps", "not monotone", "PGD breaks at eps and not at twice eps",
         LARGE, 1.0, True, "", CARLINI, "smaller steps; keep what smaller balls found"),
    Test("size follows confidence", "drift", "have a gradient whose size changes tenfold when logits are scaled",
         0.5, 1.0, False, "", "this package", "compare gradient sizes of the margin, not of the cross-entropy"),
)  # fmt: skip

GAINS = (
    "passes", "precision", "one step", "averaged", "random search", "square", "rays", "transfer", "loss", "steps",
    "restarts", "silent", "not monotone",
)  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """One row: the share of samples that show something, with its 95% Wilson interval over samples."""

    name: str
    value: float  # share of the samples, of all for what an attack gains, else of the right; nan: not looked for
    low: float
    high: float
    threshold: float  # it fires where `low` is above
    fired: bool
    is_strong: bool  # reason to call gradients masked, where there is a gap
    counts: bool  # does firing make a verdict suspect by itself?
    samples: int  # for which it could be said
    meaning: str  # the value is the share of samples that ...
    layer: str
    source: str
    remedy: str

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.name}: not looked for"
        return f"{self.name}: {self.value:.1%} [{self.low:.1%}, {self.high:.1%}], fires above {self.threshold:.0%}"


def weigh(marks: Marks, samples: int) -> tuple[Evidence, ...]:
    """All rows, those that were not looked for with nan.

    `marks` are of the samples that the model gets right, of `samples` in all. What an attack gains is a share of all,
    as accuracies and the gap between them are; what an image shows is a share of those for which it can be said.
    """
    return tuple(_row(test, marks.get(test.mark), samples) for test in TESTS)


def _row(test: Test, mark: Tensor | None, samples: int) -> Evidence:
    known = mark.double() if mark is not None else None
    known = known[~known.isnan()] if known is not None else None
    count = 0 if known is None else len(known)
    value = low = high = math.nan
    if known is not None and count:
        hits, count = int(known.sum()), samples if test.mark in GAINS else count
        value, (low, high) = hits / count, wilson(hits, count)
    return Evidence(
        name=test.name, value=value, low=low, high=high, threshold=test.threshold, fired=low > test.threshold,
        is_strong=low > test.strong, counts=test.alone, samples=count,
        meaning=test.meaning, layer=test.layer, source=test.source, remedy=test.remedy,
    )  # fmt: skip
