"""Accuracy against a budget: eps, steps, restarts or queries. What is broken stays broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..attacks import pgd, square
from ..attacks.queries.square import STRONGEST
from ..ball import Ball
from ..batches import BATCH, gathered
from ..door import check_ball, check_choice, check_count, check_generator, is_number
from ..draws import Draws, keys, mixed, seed
from ..intervals import wilson
from ..losses import margin
from ..model import frozen
from ..provenance import NOTHING_LEFT, Made, made, written
from ..types import Axis, ImagesLike, LabelsLike, Loss, PerSample
from .rounds import Bout

if TYPE_CHECKING:
    from pandas import DataFrame

Budget = Literal["eps", "steps", "restarts", "queries"]
VALUES: dict[str, tuple[float, ...]] = {
    "eps": (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0),  # in units of the ball's own
    "steps": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
    "restarts": (1, 2, 3, 5, 7, 10),
    "queries": (10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
}


POINTS = 100 * BATCH  # of paths in memory at a time


@dataclass(frozen=True)
class Curve:
    """The smallest budget at which each sample was broken. Accuracy can only fall along it, by construction."""

    over: Budget
    values: Axis  # budgets that were tried, rising; eps in pixels
    broken_at: PerSample  # the smallest of them that broke the sample; 0 where it is wrong as it is, inf where none did
    attack: str
    ball: Ball
    made: Made

    def accuracy(self, value: float) -> float:
        """Share of samples that are right and that no budget up to `value` broke.

        Raises ValueError for a value beyond the largest budget: what it would have broken is not known.
        """
        if value > float(self.values[-1]) * (1 + 1e-9):
            raise ValueError(
                f"value is {value!r}, expected at most {float(self.values[-1]):g}, the largest that was tried"
            )
        return float((self.broken_at > value).double().mean())

    def frame(self) -> DataFrame:
        """One row a budget, from 0, no attack: accuracy with its 95% Wilson interval over samples."""
        import pandas as pd

        rows = []
        for value in (0.0, *self.values.tolist()):
            left = int((self.broken_at > value).sum())
            low, high = wilson(left, len(self.broken_at))
            rows.append({self.over: value, "accuracy": left / len(self.broken_at), "low": low, "high": high})
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        ends = [self.accuracy(value) for value in (0.0, float(self.values[0]), float(self.values[-1]))]
        said = (
            f"{len(self.broken_at)} samples, {self.attack}: clean {ends[0]:.1%}, {ends[1]:.1%} at {self.over} "
            f"{float(self.values[0]):.4g}, {ends[2]:.1%} at {float(self.values[-1]):.4g}"
        )
        return said + NOTHING_LEFT if ends[0] == 0 else said


def curve(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    over: Budget = "eps",
    values: Sequence[float] | Sequence[int] | None = None,
    loss: Loss = margin,
    steps: int = 20,
    samples: int = 1,
    batch: int = BATCH,
    generator: torch.Generator | None = None,
) -> Curve:
    """Robust accuracy against one budget, others fixed (Carlini et al. 2019; Athalye et al. 2018).

    over="eps": PGD with `steps` at each radius `values`, in pixels (an eighth to four times the ball's own if not
    given); a point also counts at every smaller radius that holds it. "steps": one run of PGD as long as the largest
    value, with the constant step 2.5 eps / `steps`, read off on its way. "restarts": the first starts at the image, the
    others at random points, `steps` each. "queries": Square with the largest value as its budget.

    `x`, `y` as in `pgd`; `loss` is what PGD climbs. `samples` > 1 is for random models: PGD averages over so many
    passes, whose mean logits give the class. A model whose accuracy does not fall to 0 at large eps, goes on falling
    over hundreds of steps, or falls to queries what withstands gradients, hides its gradient.

    Raises ValueError as `pgd` does, for an unknown `over`, values that are not positive, and samples > 1 with queries.
    """
    check_ball(ball)
    check_generator(generator)
    check_count("batch", batch)
    batch = int(batch)  # torch splits by none of numpy's numbers
    check_count("steps", steps)
    check_count("samples", samples)
    check_choice("over", over, get_args(Budget))
    if over == "queries" and samples > 1:
        raise ValueError(f"samples is {samples}, expected 1 for over='queries': Square takes one pass for the truth")
    budgets = _checked(over, values, ball)
    number = str(seed(generator))
    options = {"over": over, "values": tuple(budgets), "loss": loss, "steps": steps, "samples": samples}
    run = {"eps": _over_eps, "steps": _over_steps, "restarts": _over_restarts, "queries": _over_queries}[over]
    with frozen(model):
        images, labels, fingerprint = gathered(
            model, x, y, ball, batch=batch, stochastic=samples > 1, averages="" if over == "queries" else "curve"
        )
        bout = Bout(model, images, labels, ball, samples, batch)
        wrong = bout.errs(images, images, labels)
        broken_at = torch.where(wrong, 0.0, torch.inf).to(images.device, torch.float64)
        record = made("curve", model, fingerprint, str(images.device), generator, ball=ball, **options)
        with tqdm(desc=f"curve over {over}", unit="budget", delay=3, disable=None, total=len(budgets)) as bar:
            run(bout, broken_at, budgets, loss, steps, number, bar)
    name = "square" if over == "queries" else f"PGD on {written(loss)}"
    return Curve(
        over=over, values=torch.tensor(budgets, dtype=torch.float64), broken_at=broken_at, attack=name, ball=ball,
        made=record,
    )  # fmt: skip


def _over_eps(
    bout: Bout, broken_at: Tensor, values: list[float], loss: Loss, steps: int, number: str, bar: Any
) -> None:
    balls = [Ball(value, bout.ball.norm, bout.ball.low, bout.ball.high) for value in values]
    for ball in balls:
        for where in _left(broken_at, bout.batch):
            x, y = bout.images[where], bout.labels[where]
            found = pgd(bout.model, x, y, ball, steps=steps, loss=loss, samples=bout.samples).best
            errs = bout.errs(found, x, y)
            for value, smaller in zip(reversed(values), reversed(balls), strict=True):
                broken_at[where[errs & smaller.contains(found, x)]] = value
        bar.update()


def _over_steps(
    bout: Bout, broken_at: Tensor, values: list[float], loss: Loss, steps: int, number: str, bar: Any
) -> None:
    size = 2.5 * bout.ball.eps / steps
    points, done = bout.images.clone(), 0
    for value in values:
        # a path keeps its gradients
        for where in _left(broken_at, max(1, min(bout.batch, POINTS // (int(value) - done)))):
            x, y = bout.images[where], bout.labels[where]
            # PGD without momentum remembers nothing: it goes on from where it was
            trace = pgd(bout.model, x, y, bout.ball, steps=int(value) - done, step_size=size, loss=loss,
                        start=points[where], samples=bout.samples)  # fmt: skip
            points[where] = trace.adversarial
            broken_at[where[bout.errs(trace.best, x, y)]] = value
        done = int(value)
        bar.update()


def _over_restarts(
    bout: Bout, broken_at: Tensor, values: list[float], loss: Loss, steps: int, number: str, bar: Any
) -> None:
    for restart in range(int(values[-1])):
        budget = next(value for value in values if value >= restart + 1)
        for where in _left(broken_at, bout.batch):
            x, y = bout.images[where], bout.labels[where]
            start = x if restart == 0 else bout.ball.sample(x, Draws.of(mixed(number, f"restart {restart}"), keys(x)))
            trace = pgd(bout.model, x, y, bout.ball, steps=steps, loss=loss, start=start, samples=bout.samples)
            broken_at[where[bout.errs(trace.best, x, y)]] = budget
        if restart + 1 == budget:
            bar.update()


def _over_queries(
    bout: Bout, broken_at: Tensor, values: list[float], loss: Loss, steps: int, number: str, bar: Any
) -> None:
    for where in _left(broken_at, bout.batch):
        x, y = bout.images[where], bout.labels[where]
        stream = torch.Generator().manual_seed(mixed(number, "square"))
        trace = square(bout.model, x, y, bout.ball, queries=int(values[-1]), generator=stream, **STRONGEST)
        counted = bout.errs(trace.adversarial, x, y) & bout.ball.contains(trace.adversarial, x)
        for value in reversed(values):
            broken_at[where[counted & (trace.found_at <= value)]] = value
    bar.update(len(values))


def _left(broken_at: PerSample, batch: int) -> Sequence[Tensor]:
    rows = broken_at.isinf().nonzero()[:, 0]
    return rows.split(batch) if len(rows) else ()


def _checked(over: Budget, values: Sequence[float] | Sequence[int] | None, ball: Ball) -> list[float]:
    if values is None:
        return [v * ball.eps if over == "eps" else float(v) for v in VALUES[over]]
    given = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [None]
    whole = over == "eps" or all(is_number(v) and float(v).is_integer() for v in given)
    if not given or not all(is_number(v) and v > 0 for v in given) or not whole:
        kind = "positive numbers of pixels" if over == "eps" else "positive whole numbers"
        raise ValueError(f"values are {values!r:.80}, expected {kind}")
    return sorted({float(v) for v in given})
