"""The record of an evaluation: who broke which sample, at what cost. Robust accuracy is the worst case per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ..ball import Ball
from ..door import check_choice
from ..intervals import wilson
from ..provenance import NOTHING_LEFT, Made
from ..types import AttackMask, Images, Labels, PerAttack, PerSample, SampleMask

if TYPE_CHECKING:
    from pandas import DataFrame

Cost = Literal["forwards", "backwards", "seconds"]


@dataclass(frozen=True)
class Robustness:
    """Samples under several attacks, one after the other; each attack meets those that withstood the ones before it.

    A sample is broken where a point was found inside the ball and the pixel box that a forward pass of its own, after
    the attack, gives another class. With `exhaustive` evaluations each attack met all samples that were right.
    """

    images: Images
    labels: Labels
    clean: SampleMask  # the model is right on the image as it is
    tried: AttackMask  # which samples each attack met
    broke: AttackMask  # which of them it broke
    broken_by: Labels  # number of the first attack that broke the sample, -1 where none did or none had to
    adversarial: Images  # the point that broke it; the image itself where none did
    distance: PerSample  # of that point from the image, in the ball's norm, pixels; nan where the sample is not broken
    attacks: tuple[str, ...]
    forwards: PerAttack  # samples that passed through the model during each attack, checks included
    backwards: PerAttack  # samples whose gradient was computed
    seconds: PerAttack
    flags: dict[str, str]  # what the reference package warns of, by kind: "randomised", "softmax", "zero gradients"...
    ball: Ball
    made: Made
    samples: int = 1  # passes whose mean logits gave the class, of a random model

    @property
    def robust(self) -> SampleMask:
        """Right, and broken by no attack."""
        return self.clean & (self.broken_by < 0)

    @property
    def clean_accuracy(self) -> float:
        """Share of samples that are right without an attack."""
        return float(self.clean.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that are right and were not broken by anything that ran."""
        return float(self.robust.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95% Wilson interval of the robust accuracy, over samples."""
        return wilson(int(self.robust.sum()), len(self.robust))

    def under(self, *attacks: str) -> float:
        """Robust accuracy under these attacks alone, as far as they ran: worst case per sample over them.

        nan where one of them did not meet every sample that was right and that the others of them left unbroken.
        Raises ValueError for an attack that did not run.
        """
        for name in attacks:
            if name not in self.attacks:
                raise ValueError(f"attack is {name!r}, expected one of {', '.join(map(repr, self.attacks))}")
        rows = [self.attacks.index(name) for name in attacks]
        broken = self.broke[rows].any(0)
        met = self.tried[rows].all(0)
        if not bool((met | broken | ~self.clean).all()):
            return float("nan")
        return float((self.clean & ~broken).double().mean())

    def spent(self, of: Cost) -> PerSample:
        """What each sample took until it was broken, of passes forwards or backwards, or of seconds.

        An attack's cost, in whatever batches it ran, is shared equally among the samples that it met. A sample takes
        its share of each attack it met up to the one that broke it, of all where none did, and nothing where it is
        wrong as it is. Exact for attacks that treat all samples alike; for those that let some go early, as attacks by
        queries do, a mean. Unless the evaluation was `exhaustive`, the samples together took what the attacks cost.

        Raises ValueError for another `of`.
        """
        check_choice("of", of, get_args(Cost))
        tried, broken_by = self.tried.cpu(), self.broken_by.cpu()
        rows = torch.arange(len(tried))[:, None]
        until = tried & ((broken_by < 0) | (rows <= broken_by))
        share = getattr(self, of).cpu().double() / tried.sum(1).clamp(min=1)
        return share @ until.double()

    def table(self) -> DataFrame:
        """One row an attack, in their order: samples met, broken, what is left of the accuracy, cost."""
        import pandas as pd

        rows = []
        left = self.clean.clone()
        for i, name in enumerate(self.attacks):
            left = left & ~self.broke[i]
            low, high = wilson(int(left.sum()), len(left))
            rows.append(
                {
                    "attack": name, "met": int(self.tried[i].sum()), "broke": int(self.broke[i].sum()),
                    "robust_accuracy": float(left.double().mean()), "low": low, "high": high,
                    "forwards": int(self.forwards[i]), "backwards": int(self.backwards[i]),
                    "seconds": float(self.seconds[i]),
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def frame(self) -> DataFrame:
        """Tidy table, one row a sample; its costs are those of `spent`."""
        import pandas as pd

        names = [self.attacks[i] if i >= 0 else "" for i in self.broken_by.tolist()]
        return pd.DataFrame(
            {
                "sample": range(len(names)),
                "label": self.labels.cpu().numpy(),
                "clean": self.clean.cpu().numpy(),
                "robust": self.robust.cpu().numpy(),
                "broken_by": names,
                "distance": self.distance.cpu().numpy(),
                **{of: self.spent(of).numpy() for of in get_args(Cost)},
            }
        )

    def __str__(self) -> str:
        low, high = self.interval
        text = (
            f"{len(self.labels)} samples, {self.ball.norm} eps {self.ball.eps:.4g}: clean {self.clean_accuracy:.1%}, "
            f"robust {self.robust_accuracy:.1%} [{low:.1%}, {high:.1%}] under {', '.join(self.attacks)}"
        )
        if not self.clean.any():
            text += NOTHING_LEFT
        return text + "".join(f"; {kind}: {said}" for kind, said in self.flags.items())
