"""The study's claims (Zou et al. 2026), each as the differences that would have to be seen if it were true."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .measure import Readings
from .rules import Claim, Contrast, Kind, Seeds, judged

if TYPE_CHECKING:
    from pandas import DataFrame

# The least differences that matter, set before any model was measured.
ACCURACY = 0.05  # of accuracy: the study speaks of 13 to 50 points, and of a cost of 3 to 5
ADVANTAGE = 0.02  # of RL-adv over SL-adv: fewer than two points is what seeds of one recipe differ by
FACTOR = 1.25  # of lengths and distances
COSINE = 0.05
ENTROPY = 0.05  # nats
ERROR = 0.02  # of the rise of the error around the weights
KEPT = 0.5  # share of the accuracy that PGD must leave if it "fails"

SHARES = {  # 0 or 1 an image
    "clean", "pgd", "pgd_margin", "hundred", "hundred_margin", "longest", "longest_margin", "square", "transfer",
    "worst",
}  # fmt: skip

Arms = Mapping[str, Mapping[int, Readings]]


@dataclass(frozen=True)
class Claims:
    """The claims table: every claim with its lines and its verdict."""

    claims: tuple[Claim, ...]

    def __getitem__(self, name: str) -> Claim:
        """A claim by its name, such as "C1". Raises ValueError for an unknown one."""
        for claim in self.claims:
            if claim.name == name:
                return claim
        raise ValueError(f"name is {name!r}, expected one of {', '.join(claim.name for claim in self.claims)}")

    def frame(self) -> DataFrame:
        """Tidy table, one row a line of a claim."""
        import pandas as pd

        return pd.concat([claim.frame() for claim in self.claims], ignore_index=True)

    def __str__(self) -> str:
        return "\n".join(map(str, self.claims))


def judge(readings: Arms, *, sl: str = "SL", rl: str = "RL", hybrids: Sequence[str] = ()) -> Claims:
    """Judge C1 to C9 from what `measure` read of each arm and training seed, by rules that know no result.

    A claim is supported if all of its lines are seen with an interval that leaves no doubt, contradicted if one of
    them is seen to be missing, and open otherwise: with fewer than two seeds of an arm, or without it, always. Lines
    are differences paired by training seed and image (`rules.paired`). The first lines of a claim are what the study
    looks at; the others are what would explain it away: the margin beside the cross-entropy, lengths free of the scale
    of the logits, the worst case beside plain PGD.

    `sl` and `rl` name the two arms; a control in place of one (the exact expectation for RL, SL with its logits
    multiplied) asks whether it would pass for the same. C6 and C9 look at both with adversarial training as well, which
    are the arms that `hardened` names. `hybrids` are the arms that C8 is about, by their mean; a single one is named in
    its lines.

    Raises ValueError for hybrids that are not in `readings`, and for readings on different images.
    """
    if not isinstance(readings, Mapping) or not all(
        isinstance(seeds, Mapping) and all(isinstance(one, Readings) for one in seeds.values())
        for seeds in readings.values()
    ):
        raise ValueError(f"readings are {readings!r:.80}, expected what `measure` returns: arms, each by training seed")
    for called, name in (("sl", sl), ("rl", rl)):
        if not isinstance(name, str):
            raise ValueError(f"{called} is {name!r:.80}, expected the name of an arm")
    if not isinstance(hybrids, list | tuple) or not all(isinstance(arm, str) for arm in hybrids):
        raise ValueError(f"hybrids are {hybrids!r:.80}, expected a sequence of arms' names")
    if missing := [arm for arm in hybrids if arm not in readings]:
        raise ValueError(f"hybrids name {', '.join(map(repr, missing))}, expected arms of {list(readings)}")
    arm = _Arms(readings, sl, rl, tuple(hybrids))
    return Claims(tuple(judged(name, says, make(arm)) for name, (says, make) in CLAIMS.items()))


def hardened(arm: str) -> str:
    """What an arm is called that differs by adversarial training: SL-adv for SL, "SL-adv, 6 x epochs" for
    "SL, 6 x epochs". Raises ValueError for what is no name."""
    if not isinstance(arm, str) or not arm:
        raise ValueError(f"arm is {arm!r:.80}, expected the name of an arm")
    head, comma, rest = arm.partition(", ")
    return f"{head}-adv{comma}{rest}"


@dataclass(frozen=True)
class _Arms:
    """What each arm gives, by training seed; None where it was not trained."""

    readings: Arms
    sl: str
    rl: str
    hybrids: tuple[str, ...]

    def of(self, arm: str, read: str) -> Seeds | None:
        seeds = self.readings.get(arm)
        return None if seeds is None else {seed: getattr(one, read) for seed, one in seeds.items()}

    def more(self, what: str, read: str, smallest: float, a: str, b: str) -> Contrast:
        return Contrast(what, self.of(a, read), self.of(b, read), smallest, "more", f"{a} - {b}", read in SHARES)

    def mixed(self, read: str, **weights: float) -> Seeds | None:
        """A weighted sum over sl, rl, sl_adv and rl_adv."""
        arms = {"sl": self.sl, "rl": self.rl, "sl_adv": hardened(self.sl), "rl_adv": hardened(self.rl)}
        parts = {name: self.of(arms[name], read) for name in weights}
        if any(part is None for part in parts.values()):
            return None
        known = {name: part for name, part in parts.items() if part is not None}
        shared = set.intersection(*(set(part) for part in known.values()))
        return {
            seed: torch.stack([weight * known[name][seed] for name, weight in weights.items()]).sum(0)
            for seed in shared
        }

    def hybrid(self, read: str) -> Seeds | None:
        """The mean over all hybrid arms."""
        parts = [part for part in (self.of(arm, read) for arm in self.hybrids) if part is not None]
        if not parts:
            return None
        shared = set.intersection(*(set(part) for part in parts))
        return {seed: torch.stack([part[seed] for part in parts]).mean(0) for seed in shared}


LOG10, LOG2 = (float(torch.tensor(FACTOR).double().log10()), float(torch.tensor(FACTOR).double().log2()))


def _accuracy(arm: _Arms) -> list[Contrast]:
    return [
        arm.more("accuracy under PGD on the cross-entropy", "pgd", ACCURACY, arm.rl, arm.sl),
        arm.more("clean accuracy", "clean", -ACCURACY, arm.rl, arm.sl),
        arm.more("accuracy in the worst case over all attacks", "worst", ACCURACY, arm.rl, arm.sl),
    ]


def _size(arm: _Arms) -> list[Contrast]:
    return [
        arm.more("log10 gradient norm, cross-entropy", "norm", LOG10, arm.sl, arm.rl),
        arm.more("log10 gradient norm, margin", "norm_margin", LOG10, arm.sl, arm.rl),
        arm.more("log10 gradient norm, margin / logits", "norm_free", LOG10, arm.sl, arm.rl),
    ]


def _direction(arm: _Arms) -> list[Contrast]:
    return [
        arm.more("cosine from step to step, cross-entropy", "cosine", COSINE, arm.sl, arm.rl),
        arm.more("cosine at the distance eps, margin", "local_cosine", COSINE, arm.sl, arm.rl),
    ]


def _flatness(arm: _Arms) -> list[Contrast]:
    return [
        arm.more("log10 bend within the ball, cross-entropy", "bend", LOG10, arm.sl, arm.rl),
        arm.more("log10 bend within the ball, margin / logits", "bend_free", LOG10, arm.sl, arm.rl),
        arm.more("rise of the error around the weights", "weights", ERROR, arm.sl, arm.rl),
    ]


def _entropy(arm: _Arms) -> list[Contrast]:
    names = f"{arm.rl} - {arm.sl}"
    read = [
        ("entropy at the image, nats", "entropy"),
        ("entropy after PGD, nats", "entropy_attacked"),
    ]
    return [Contrast(of, arm.of(arm.rl, by), arm.of(arm.sl, by), ENTROPY, "different", names) for of, by in read]


def _dual(arm: _Arms) -> list[Contrast]:
    a, b = hardened(arm.rl), hardened(arm.sl)
    return [
        arm.more("accuracy under PGD on the cross-entropy", "pgd", ADVANTAGE, a, b),
        arm.more("accuracy under queries (Square)", "square", ADVANTAGE, a, b),
        arm.more("accuracy under points of other models", "transfer", ADVANTAGE, a, b),
        arm.more("accuracy in the worst case over all attacks", "worst", ADVANTAGE, a, b),
    ]


def _budgets(arm: _Arms) -> list[Contrast]:
    half = {seed: KEPT * clean for seed, clean in (arm.of(arm.rl, "clean") or {}).items()}
    names = f"{arm.rl} - {KEPT:g} x its clean accuracy"
    return [
        Contrast("accuracy after the longest PGD, cross-entropy", arm.of(arm.rl, "longest"), half, 0.0, "more",
                 names, is_share=True),
        Contrast("accuracy after the longest PGD, margin", arm.of(arm.rl, "longest_margin"), half, 0.0, "more",
                 names, is_share=True),
    ]  # fmt: skip


def _hybrids(arm: _Arms) -> list[Contrast]:
    called = arm.hybrids[0] if len(arm.hybrids) == 1 else "hybrids"  # one may be a control that stands for them

    def against(of: str, read: str, smallest: float, *, down: bool = False) -> Contrast:
        parts = (arm.of(arm.sl, read), arm.hybrid(read)) if down else (arm.hybrid(read), arm.of(arm.sl, read))
        names = f"{arm.sl} - {called}" if down else f"{called} - {arm.sl}"
        return Contrast(of, *parts, smallest, "more", names, read in SHARES)

    return [
        against("clean accuracy", "clean", -ADVANTAGE),
        against("log10 gradient norm, cross-entropy", "norm", LOG10, down=True),
        against("log10 gradient norm, margin / logits", "norm_free", LOG10, down=True),
        against("accuracy in the worst case over all attacks", "worst", ACCURACY),
    ]


def _levels(arm: _Arms) -> list[Contrast]:
    def effect(
        of: str, read: str, names: str, smallest: float, kind: Kind, a: dict[str, float], b: dict[str, float]
    ) -> Contrast:
        return Contrast(of, arm.mixed(read, **a), arm.mixed(read, **b), smallest, kind, names)

    near, far = "local_cosine", "distance"
    plain, rl = {"sl": 0.5, "sl_adv": 0.5}, {"rl": 0.5, "rl_adv": 0.5}
    clean, adv = {"sl": 0.5, "rl": 0.5}, {"sl_adv": 0.5, "rl_adv": 0.5}
    return [
        effect("cosine at the distance eps, margin", near, "both SL - both RL", COSINE, "more", plain, rl),
        effect("log2 distance to an error, eps", far, "both -adv - both without", LOG2, "more", adv, clean),
        effect("log2 distance to an error, eps", far, "both RL - both SL", LOG2, "equal", rl, plain),
        effect("log2 distance to an error, eps", far, "(RL-adv - RL) - (SL-adv - SL)", LOG2, "equal",
               {"rl_adv": 1.0, "rl": -1.0}, {"sl_adv": 1.0, "sl": -1.0}),
    ]  # fmt: skip


CLAIMS: Mapping[str, tuple[str, Callable[[_Arms], list[Contrast]]]] = {
    "C1": ("RL raises accuracy under PGD, at no great cost in clean accuracy", _accuracy),
    "C2": ("RL makes input gradients smaller", _size),
    "C3": ("RL makes gradient directions unstable", _direction),
    "C4": ("RL flattens the loss", _flatness),
    "C5": ("RL changes the predictive entropy", _entropy),
    "C6": ("RL-adv resists every kind of attack better than SL-adv", _dual),
    "C7": ("PGD fails on RL within practical budgets", _budgets),
    "C8": ("hybrids of SL and RL keep SL's accuracy and RL's effect", _hybrids),
    "C9": ("RL acts on gradients, adversarial training on the boundary", _levels),
}
