"""How accurate is a run on test images, clean and attacked, and how sure is that number?"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from pandas import DataFrame
from torch import Tensor, nn

import gradlens
from gradlens import Ball, Robustness, Transfer, losses, pgd, predict
from gradlens.disk import write
from gradlens.intervals import wilson
from gradlens.provenance import digest, named, versions
from gradlens.robustness.suites import SUITES
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
    (model,), x, y, ball = _measured([run], samples, seed, which)
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


def robust(
    run: Run, attacks: str, *, samples: int | None = None, seed: int = 0, which: Which = "last"
) -> tuple[Robustness, Path]:
    """Robust accuracy under a suite of attacks, and the file in the run's folder that holds the result.

    A call that was stopped goes on; the result of an earlier one with the same weights, images and suite is read. Its
    name tells calls apart, so that none overwrites the result of another. Raises ValueError for a damaged one.
    """
    (model,), x, y, ball = _measured([run], samples, seed, which)
    weights = run.record["checkpoint_sha256"][:8]  # a run that was trained again in its folder is another one
    path = run.path / "measure" / f"robustness-{attacks}-{which}-{len(y)}-s{seed}-{weights}.safetensors"
    if path.exists():
        kept = gradlens.load(path)
        if isinstance(kept, Robustness) and _is_of(kept, model, x, y, ball, attacks):
            return kept, path
    partial = path.with_suffix(".partial")
    result = gradlens.robustness(
        model, x, y, ball, attacks=attacks, resume=partial,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    write(path.with_suffix(".csv"), result.table().to_csv(index=False).encode())
    gradlens.save(result, path)
    partial.unlink(missing_ok=True)
    return result, path


def transferred(
    runs: Sequence[Run], *, samples: int | None = None, seed: int = 0, steps: int = 20, which: Which = "last"
) -> tuple[Transfer, Path]:
    """Points from each run, and from the others together, shown to each; and the file beside the first that holds it.

    Its name ends in a hash of the runs' names and weights and of `steps`: a call overwrites only what the same call
    wrote. Runs of one name are told apart by the folder they lie in; architectures may differ. Raises ValueError for
    fewer than two runs, for one that is given twice and for runs on different data sets.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"runs are {', '.join(names)}, expected at least two with different names for --transfer")
    sets = sorted({run.config.dataset for run in runs})
    if len(sets) > 1:
        raise ValueError(f"runs are on {', '.join(sets)}, expected one data set")
    models, x, y, ball = _measured(runs, samples, seed, which)
    everyone = dict(zip(names, models, strict=True))
    attack = gradlens.Attack("pgd-margin", pgd, {"steps": steps, "loss": losses.margin})
    result = gradlens.transfer(
        everyone, everyone, x, y, ball, attack=attack, ensemble=True, generator=torch.Generator().manual_seed(seed)
    )
    of = digest(steps, *names, *(run.record["checkpoint_sha256"] for run in runs))[:8]
    path = runs[0].path.parent / f"transfer-{which}-{len(y)}-s{seed}-{of}.safetensors"
    write(path.with_suffix(".csv"), result.frame().to_csv(index=False).encode())
    return result, gradlens.save(result, path)


def matrix(result: Transfer) -> DataFrame:
    """Accuracy in percent: rows are where points were made, columns whom they were shown."""
    return DataFrame(100 * result.accuracy.numpy(), index=list(result.sources), columns=list(result.targets)).round(1)


def _is_of(kept: Robustness, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, attacks: str) -> bool:
    """Was it measured on these weights and images, by these versions and attacks?"""
    if not set(kept.attacks) <= {attack.name for attack in SUITES[attacks]}:
        return False
    if repr(", ".join(str(attack) for attack in SUITES[attacks] if attack.name in kept.attacks)) not in kept.made.call:
        return False
    now = versions() | {package: version(package) for package in kept.made.versions.keys() - versions().keys()}
    made_alike = kept.made.model == named(model) and kept.made.versions == now
    return made_alike and kept.ball == ball and torch.equal(kept.images, x) and torch.equal(kept.labels, y)


def _measured(
    runs: Sequence[Run], samples: int | None, seed: int, which: Which
) -> tuple[list[nn.Module], Tensor, Tensor, Ball]:
    """The models, and the test images of their data set with labels and ball."""
    if samples is not None and samples < 1:
        raise ValueError(f"samples is {samples}, expected at least 1, or none given for all test images")
    dataset = data.load(runs[0].config.dataset)
    x, y = data.subset(dataset.test, samples or len(dataset.test), seed)
    return [run.model(which) for run in runs], x, y, dataset.ball
