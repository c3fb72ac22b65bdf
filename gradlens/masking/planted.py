"""An active test: a planted adversarial example, which an attack that works must find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..attacks import pgd, square
from ..attacks.queries.square import STRONGEST
from ..ball import Ball
from ..batches import BATCH, answers, gathered
from ..door import check_ball, check_count, check_generator
from ..draws import Draws, keys, mixed, seed, uniform
from ..intervals import wilson
from ..losses import margin
from ..model import frozen, logits
from ..provenance import Made, made
from ..robustness import QUICK, Attack
from ..robustness.attack import named
from ..robustness.suites import SUITES
from ..types import AttackMask, Images, ImagesLike, Labels, LabelsLike, SampleMask
from .subject import introduced

if TYPE_CHECKING:
    from pandas import DataFrame

INNER, CANDIDATES = 200, 50  # points inside the ball that stay right, and points at its far ends to plant one at
DEFAULT = (
    Attack("pgd-ce", pgd, {"steps": 20}),
    *QUICK[:3],
    Attack("square", square, {"queries": 500, **STRONGEST}),
)
PASS = 0.9  # of the planted examples found


@dataclass(frozen=True)
class Planted:
    """Attacks against B models, one a sample, each with an adversarial example known to lie in the ball."""

    attacks: tuple[str, ...]
    found: AttackMask  # the attack found an adversarial example, counted anew
    planted: SampleMask  # one could be planted; the others do not count
    by_chance: SampleMask  # a random point of the ball, of as many as there were inner ones, errs too: too easy to tell
    ball: Ball
    made: Made

    def rate(self, attack: str) -> tuple[float, float, float]:
        """Share of planted examples that an attack found, with its 95% Wilson interval; nan where none was planted.

        Raises ValueError for an attack that did not run.
        """
        if attack not in self.attacks:
            raise ValueError(f"attack is {attack!r}, expected one of {', '.join(map(repr, self.attacks))}")
        count = int(self.planted.sum())
        hits = int((self.found[self.attacks.index(attack)] & self.planted).sum())
        return (hits / count, *wilson(hits, count)) if count else (float("nan"),) * 3

    @property
    def passed(self) -> dict[str, bool]:
        """Did the attack find at least nine in ten?"""
        return {name: self.rate(name)[0] >= PASS for name in self.attacks}

    def frame(self) -> DataFrame:
        """Tidy table, one row an attack."""
        import pandas as pd

        rows = [(name, int(self.planted.sum()), *self.rate(name), self.passed[name]) for name in self.attacks]
        return pd.DataFrame(rows, columns=["attack", "planted", "found", "low", "high", "passed"])

    def __str__(self) -> str:
        count = int(self.planted.sum())
        if not count:
            return f"no example could be planted, in none of {len(self.planted)} images: nothing is said of the attacks"
        said = ", ".join(f"{name} {self.rate(name)[0]:.0%}" for name in self.attacks)
        return (
            f"{count} planted examples ({int((self.by_chance & self.planted).sum())} also met by chance), "
            f"{self.ball.norm} eps {self.ball.eps:.4g}; found by {said}; "
            f"failed: {', '.join(name for name, ok in self.passed.items() if not ok) or 'none'}"
        )


class Readout(nn.Module):
    """Two classes read off another model's logits: (0, scale (w . logits - b))."""

    def __init__(self, inner: nn.Module, w: Tensor, b: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.w, self.b, self.scale = nn.Parameter(w), nn.Parameter(b), nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        z = self.scale * (self.inner(x) @ self.w - self.b)
        return torch.stack([torch.zeros_like(z), z], 1)


def planted(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    attacks: str | Sequence[Any] = DEFAULT,
    batch: int = BATCH,
    generator: torch.Generator | None = None,
) -> Planted:
    """Plant an adversarial example for each sample, and see which attacks find it (Zimmermann et al. 2022).

    For each image a new two-class model is read off the logits of `model`: random points inside the ball are of the
    first class, one of the ball's far ends of the second, on the line in logit space that tells them apart best, and
    the image's margin is as wide as it was. An attack that finds none on it has failed where success was possible: its
    failures on `model` prove nothing. Nothing is learned of what comes after the logits, such as a softmax. `attacks`
    as in `robustness`. A few dozen images are enough: each is attacked alone.

    Raises ValueError as `robustness` does, for random models too: average them first.
    """
    check_ball(ball)
    check_generator(generator)
    check_count("batch", batch)
    chosen = named(attacks, SUITES)
    number = str(seed(generator))
    with frozen(model):
        images, labels, fingerprint = gathered(model, x, y, ball, batch=int(batch))
        inner = introduced(model, images, labels, ball, 1).scores
        streams = Draws.of(mixed(number, "plant"), keys(images)).streams
        heads = [
            _head(inner, images[i : i + 1], labels[i : i + 1], ball, Draws((stream,)))
            for i, stream in enumerate(streams)
        ]
        found = torch.zeros(len(chosen), len(images), dtype=torch.bool)
        with tqdm(desc="planted", unit="sample", delay=3, disable=None, total=len(images)) as bar:
            for i, (head, _) in enumerate(heads):
                if head is not None:
                    with frozen(head):
                        found[:, i] = _attacked(head, images[i : i + 1], ball, chosen, number)
                bar.update()
        record = made("planted", model, fingerprint, str(images.device), generator, ball=ball,
                      attacks=", ".join(map(str, chosen)))  # fmt: skip
    return Planted(
        attacks=tuple(attack.name for attack in chosen), found=found,
        planted=torch.tensor([head is not None for head, _ in heads]),
        by_chance=torch.tensor([chance for _, chance in heads]), ball=ball, made=record,
    )  # fmt: skip


@torch.no_grad()
def _head(inner: nn.Module, x: Images, y: Labels, ball: Ball, draws: Draws) -> tuple[Readout | None, bool]:
    """The two-class model of one image, nothing where no far end can be told from the inner points; and by chance?"""
    within = torch.cat([x, *(ball.sample(x, draws) for _ in range(INNER))])
    ends = torch.cat([_far_end(x, ball, draws) for _ in range(CANDIDATES)])
    calm, wild = answers(inner, within, BATCH).double(), answers(inner, ends, BATCH).double()
    mean = calm.mean(0)
    spread = (calm - mean).T @ (calm - mean) / len(calm)
    ridge = 1e-6 * spread.diagonal().mean() * torch.eye(len(mean), dtype=spread.dtype, device=spread.device)
    if not spread.any() or not bool(torch.isfinite(spread).all()):
        return None, False
    ways = torch.linalg.solve(spread + ridge, (wild - mean).T)  # a column for each candidate: Fisher's discriminant
    ways = ways / ways.norm(dim=0)
    highest, reached = (calm @ ways).amax(0), (wild * ways.T).sum(1)
    best = int(((reached - highest) / (calm @ ways).std(0)).argmax())
    w, level = ways[:, best], (highest + reached)[best] / 2
    here = calm[0] @ w
    if not reached[best] > level or not here < level:
        return None, False
    scale = margin(calm[:1], y).abs()[0] / (level - here)
    head = Readout(inner, *(t.to(x) for t in (w, level, scale)))
    if not bool(logits(head, ends[best : best + 1]).argmax(1)):  # lost to rounding
        return None, False
    fresh = torch.cat([ball.sample(x, draws) for _ in range(INNER)])
    return head.eval(), bool(answers(head, fresh, BATCH).argmax(1).any())


def _far_end(x: Images, ball: Ball, draws: Draws) -> Images:
    if ball.norm == "l2":
        return ball.shell(x, 1.0, draws)
    return (x + ball.eps * (2 * (uniform(x, draws) < 0.5) - 1)).clamp(ball.low, ball.high)


def _attacked(head: nn.Module, x: Images, ball: Ball, attacks: Sequence[Attack], number: str) -> Tensor:
    y = torch.zeros(1, dtype=torch.long, device=x.device)
    hits = []
    for attack in attacks:
        stream = torch.Generator().manual_seed(mixed(number, attack.name))
        point = attack(head, x, y, ball, samples=1, generator=stream)
        with torch.no_grad():
            hits.append(bool(logits(head, point).argmax(1)) and bool(ball.contains(point, x)))
    return torch.tensor(hits)
