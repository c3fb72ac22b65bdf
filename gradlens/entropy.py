"""How sure is the model, before and after an attack, and is it right to be?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from .attacks.pgd import PGDTrace
from .ball import Ball
from .model import admit, frozen, logits
from .provenance import Made, made
from .types import ImagesLike, LabelsLike, PerSample, SampleMask

if TYPE_CHECKING:
    from pandas import DataFrame

BINS = 15  # Guo et al. 2017


@dataclass(frozen=True)
class Entropy:
    """Predictive entropy of clean and attacked inputs. What was not given is nan, or None for masks."""

    clean: PerSample  # nats, 0 .. log(classes)
    adversarial: PerSample  # nats; nan without an attack
    kl: PerSample  # KL(p(clean) || p(adversarial)), nats; nan without an attack
    confidence: PerSample  # largest probability on the clean input
    confidence_adversarial: PerSample
    correct: SampleMask | None  # on the clean input; None without labels
    correct_adversarial: SampleMask | None
    made: Made

    @property
    def ece(self) -> float:
        """Expected calibration error on clean inputs: mean |accuracy - confidence| over 15 bins (Guo et al. 2017)."""
        bins = self.reliability()
        if bins["samples"].sum() == 0:
            return float("nan")
        gaps = (bins["accuracy"] - bins["confidence"]).abs()
        return float(np.average(gaps[bins["samples"] > 0], weights=bins["samples"][bins["samples"] > 0]))

    def reliability(self, bins: int = BINS) -> DataFrame:
        """Accuracy and mean confidence on clean inputs in equal bins (low, high]; confidence 1 is in the last one."""
        import pandas as pd

        edges = np.linspace(0, 1, bins + 1)
        table = pd.DataFrame({"low": edges[:-1], "high": edges[1:]})
        if self.correct is None:
            return table.assign(samples=0, confidence=np.nan, accuracy=np.nan)
        confidence = self.confidence.double().cpu().numpy()
        which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        count = np.bincount(which, minlength=bins)
        with np.errstate(invalid="ignore"):  # an empty bin has no accuracy: 0 / 0 is nan
            mean_confidence = np.bincount(which, confidence, minlength=bins) / count
            accuracy = np.bincount(which, self.correct.double().cpu().numpy(), minlength=bins) / count
        return table.assign(samples=count, confidence=mean_confidence, accuracy=accuracy)

    def __str__(self) -> str:
        attacked = "" if self.adversarial.isnan().all() else f", attacked {self.adversarial.mean():.3g}"
        accuracy = "" if self.correct is None else f", accuracy {self.correct.double().mean():.1%}, ece {self.ece:.3f}"
        return f"{len(self.clean)} samples: mean entropy clean {self.clean.mean():.3g}{attacked} nats{accuracy}"

    def frame(self) -> DataFrame:
        """Tidy table, one row a sample and input (clean, attacked)."""
        import pandas as pd

        inputs = {"clean": (self.clean, self.confidence, self.correct)}
        if not self.adversarial.isnan().all():
            inputs["attacked"] = (self.adversarial, self.confidence_adversarial, self.correct_adversarial)
        parts = [
            pd.DataFrame(
                {
                    "sample": range(len(entropy)),
                    "input": name,
                    "entropy": entropy.cpu().numpy(),
                    "confidence": confidence.cpu().numpy(),
                    "kl": self.kl.cpu().numpy(),
                    "correct": pd.array([None] * len(entropy), "boolean") if correct is None else correct.cpu().numpy(),
                }
            )
            for name, (entropy, confidence, correct) in inputs.items()
        ]
        return pd.concat(parts, ignore_index=True)


def entropy(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    adversarial: ImagesLike | PGDTrace | None = None,
    *,
    ball: Ball = Ball(),
) -> Entropy:
    """Entropy, in nats, of the model's softmax on `x` (batch, ...) and on `adversarial` (the same shape, or a trace).

    Labels `y` (batch,) add the right / wrong masks and the calibration error. `ball` gives the pixel box.

    Raises ValueError for inputs outside the box, wrong shapes or labels, a random model.
    """
    attacked = adversarial.adversarial if isinstance(adversarial, PGDTrace) else adversarial
    with frozen(model), torch.no_grad():
        x, labels = admit(model, x, y, ball)
        record = made("entropy", model, x, labels)
        log_p = logits(model, x).log_softmax(1)
        nothing = torch.full_like(log_p[:, 0], torch.nan)
        clean = (-(log_p.exp() * log_p).sum(1), log_p.exp().amax(1), None if y is None else log_p.argmax(1) == labels)
        after: tuple[PerSample, PerSample, SampleMask | None] = (nothing, nothing, None)
        kl = nothing
        if attacked is not None:
            moved, _ = admit(model, attacked, None, ball, name="adversarial")
            if moved.shape != x.shape:
                raise ValueError(f"adversarial has shape {tuple(moved.shape)}, expected x's shape {tuple(x.shape)}")
            log_q = logits(model, moved).log_softmax(1)
            after = (
                -(log_q.exp() * log_q).sum(1),
                log_q.exp().amax(1),
                None if y is None else log_q.argmax(1) == labels,
            )
            kl = (log_p.exp() * (log_p - log_q)).sum(1)
    return Entropy(
        clean=clean[0],
        adversarial=after[0],
        kl=kl,
        confidence=clean[1],
        confidence_adversarial=after[1],
        correct=clean[2],
        correct_adversarial=after[2],
        made=record,
    )
