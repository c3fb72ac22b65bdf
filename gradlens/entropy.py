"""How sure is the model, before and after an attack, and is it right to be?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from .attacks.trace import PGDTrace
from .ball import Ball
from .batches import Chunk, measured
from .door import check_answer, check_images
from .model import logits
from .provenance import UNSIGNED, Made
from .types import Images, ImagesLike, Labels, LabelsLike, PerPoint, PerSample, SampleMask

if TYPE_CHECKING:
    from pandas import DataFrame

BINS = 15  # Guo et al. 2017


@dataclass(frozen=True)
class Entropy:
    """Predictive entropy of clean and attacked inputs. What was not given is nan, or None for masks."""

    clean: PerSample  # nats, 0 .. log(classes)
    adversarial: PerSample  # nats; nan without an attack
    along: PerPoint | None  # nats, at each point of the attack's path; None without a trace
    kl: PerSample  # KL(p(clean) || p(adversarial)), nats; nan without an attack
    js: PerSample  # Jensen-Shannon divergence of the two, nats, 0 .. log 2
    confidence: PerSample  # largest probability on the clean input
    confidence_adversarial: PerSample
    correct: SampleMask | None  # on the clean input; None without labels
    correct_adversarial: SampleMask | None
    made: Made

    @property
    def ece(self) -> float:
        """Expected calibration error on clean inputs: mean |accuracy - confidence| over 15 bins (Guo et al. 2017)."""
        return self._gap(self.reliability(), np.average)

    @property
    def adaptive_ece(self) -> float:
        """The same over 15 bins that hold equally many samples (Nguyen & O'Connor 2015)."""
        return self._gap(self.reliability(adaptive=True), np.average)

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest |accuracy - confidence| of 15 equal bins (Guo et al. 2017)."""
        return self._gap(self.reliability(), lambda gaps, weights: np.max(gaps))

    def reliability(self, bins: int = BINS, *, adaptive: bool = False, attacked: bool = False) -> DataFrame:
        """Accuracy and mean confidence per bin (low, high], a row a bin; confidence 1 is in the last one.

        Bins are equally wide or, if `adaptive`, hold equally many samples but for ties. On clean or on attacked inputs.
        Raises ValueError for fewer than one bin.
        """
        import pandas as pd

        if bins < 1:
            raise ValueError(f"bins is {bins}, expected at least 1")
        confidence = (self.confidence_adversarial if attacked else self.confidence).double().cpu().numpy()
        correct = self.correct_adversarial if attacked else self.correct
        edges = np.linspace(0, 1, bins + 1)
        if adaptive:
            # equal confidences share a bin, or the order of the samples would decide
            places = np.ceil(len(confidence) * np.arange(1, bins) / bins).astype(int) - 1
            ends = np.sort(confidence)[places]
            which = np.searchsorted(ends, confidence, side="left")
            edges = np.array([0.0, *ends, 1.0])
        else:
            which = np.clip(np.ceil(np.nan_to_num(confidence) * bins).astype(int) - 1, 0, bins - 1)
        table = pd.DataFrame({"low": edges[:-1], "high": edges[1:]})
        if correct is None:
            return table.assign(samples=0, confidence=np.nan, accuracy=np.nan)
        count = np.bincount(which, minlength=bins)
        with np.errstate(invalid="ignore"):  # an empty bin has no accuracy: 0 / 0 is nan
            mean_confidence = np.bincount(which, confidence, minlength=bins) / count
            accuracy = np.bincount(which, correct.double().cpu().numpy(), minlength=bins) / count
        return table.assign(samples=count, confidence=mean_confidence, accuracy=accuracy)

    @staticmethod
    def _gap(bins: DataFrame, mean: Callable[..., np.floating]) -> float:
        filled = bins[bins["samples"] > 0]
        if filled.empty:
            return float("nan")
        return float(mean((filled["accuracy"] - filled["confidence"]).abs(), weights=filled["samples"]))

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
    batch: int | None = None,
) -> Entropy:
    """Entropy, in nats, of the model's softmax on `x` (batch, ...) and on `adversarial` (the same shape, or a trace).

    Labels `y` (batch,) add the right / wrong masks and the calibration error; `x` may be a DataLoader that brings
    them. `ball` gives the pixel box.

    Raises ValueError for inputs outside the box, wrong shapes or labels, a random model.
    """
    attacked = adversarial.adversarial if isinstance(adversarial, PGDTrace) else adversarial
    arrays = (torch.Tensor, np.ndarray)
    if isinstance(attacked, arrays) and isinstance(x, arrays) and attacked.shape != x.shape:
        raise ValueError(f"adversarial has shape {tuple(attacked.shape)}, expected x's shape {tuple(x.shape)}")
    has_labels = y is not None or not isinstance(x, torch.Tensor | np.ndarray)

    @torch.no_grad()
    def run(chunk: Chunk) -> Entropy:
        log_p = logits(model, chunk.x).log_softmax(1)
        before = _read(log_p, chunk.y if has_labels else None)
        nothing = torch.full_like(before.entropy, torch.nan)
        after, kl, js = _Reading(nothing, nothing, None), nothing, nothing
        if attacked is not None:
            moved = _moved(model, attacked, chunk, ball)
            log_q = check_answer(model, moved, name="adversarial", offset=chunk.where.start).log_softmax(1)
            after = _read(log_q, chunk.y if has_labels else None)
            log_m = torch.logaddexp(log_p, log_q) - np.log(2)
            kl = _kl(log_p, log_q)
            js = (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2
        along = adversarial.entropy[:, chunk.where].to(log_p) if isinstance(adversarial, PGDTrace) else None
        return Entropy(
            clean=before.entropy, adversarial=after.entropy, along=along, kl=kl, js=js, confidence=before.confidence,
            confidence_adversarial=after.confidence, correct=before.correct, correct_adversarial=after.correct,
            made=UNSIGNED,
        )  # fmt: skip

    options = {"adversarial": "PGDTrace" if isinstance(adversarial, PGDTrace) else attacked, "ball": ball}
    return measured(run, model, x, y, ball, call="entropy", options=options, batch=batch, generator=None)


class _Reading(NamedTuple):
    entropy: PerSample
    confidence: PerSample
    correct: SampleMask | None


def _read(log_p: torch.Tensor, y: Labels | None) -> _Reading:
    p = log_p.exp()
    return _Reading(-(p * log_p).sum(1), p.amax(1), None if y is None else p.argmax(1) == y)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> PerSample:
    # rounding can bring the divergence of nearly equal distributions a hair below zero
    return (log_p.exp() * (log_p - log_q)).sum(1).clamp(min=0)


def _moved(model: nn.Module, attacked: ImagesLike, chunk: Chunk, ball: Ball) -> Images:
    if not isinstance(attacked, torch.Tensor | np.ndarray):
        raise ValueError(f"adversarial is a {type(attacked).__name__}, expected images of x's shape or a PGDTrace")
    moved = check_images(model, attacked[chunk.where], ball, name="adversarial", offset=chunk.where.start)
    if moved.shape != chunk.x.shape:
        raise ValueError(f"adversarial has shape {tuple(moved.shape)}, expected x's shape {tuple(chunk.x.shape)}")
    return moved
