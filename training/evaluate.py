"""How accurate is a run on test images, clean and attacked, and how sure is that number?"""

from dataclasses import dataclass

from gradlens import Ball, losses, pgd, predict
from gradlens.intervals import wilson
from training import data
from training.checkpoint import Run, Which


@dataclass(frozen=True)
class Accuracy:
    """A share of test images, with its 95% Wilson interval (over images; it says nothing about other seeds)."""

    name: str
    right: int
    samples: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.right / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        return wilson(self.right, self.samples)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.name:<14} {self.value:6.1%}  [{low:.1%}, {high:.1%}]  ({self.right} of {self.samples})"


def evaluate(
    run: Run, *, samples: int | None = None, seed: int = 0, steps: int = 20, which: Which = "last"
) -> list[Accuracy]:
    """Accuracy on the test part: clean, and under PGD on the cross-entropy and on the margin; images that any visited
    point fools count as wrong. The attacks use the data set's own ball."""
    if samples is not None and samples < 1:
        raise ValueError(f"samples is {samples}, expected at least 1, or none given for all test images")
    dataset = data.load(run.config.dataset)
    x, y = data.subset(dataset.test, samples or len(dataset.test), seed)
    model, ball = run.model(which), dataset.ball
    rows = [Accuracy("clean", int((predict(model, x) == y).sum()), len(y))]
    for name, loss in (("CE", losses.cross_entropy), ("margin", losses.margin)):
        trace = pgd(model, x, y, ball, steps=steps, loss=loss)
        rows.append(Accuracy(f"PGD-{steps} {name}", int((~trace.ever).sum()), len(y)))
    return rows


def header(run: Run, ball: Ball, which: Which = "last") -> str:
    """What the table is about."""
    return (
        f"{run.name} ({which}): {run.arm} on {run.config.dataset}, {ball.norm} eps {ball.eps:g}, 95% Wilson intervals"
    )
