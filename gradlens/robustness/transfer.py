"""Do points that fool one model fool another? A matrix of sources and targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..attacks import pgd
from ..ball import Ball
from ..batches import BATCH, gathered
from ..door import admit, check_ball, check_count, check_flag, check_generator
from ..draws import mixed, seed
from ..intervals import wilson
from ..losses import margin
from ..model import frozen, logits
from ..provenance import NOTHING_LEFT, Made, made, named
from ..types import ImagesLike, LabelsLike, Logits, SourceTarget, TargetMask, TransferMask
from .attack import Attack, refuse_single_pass
from .rounds import Bout

if TYPE_CHECKING:
    from pandas import DataFrame

ENSEMBLE = "ensemble of the others"
DEFAULT = Attack("pgd-margin", pgd, {"steps": 20, "loss": margin})


@dataclass(frozen=True)
class Transfer:
    """Points made on S sources, shown to T targets. Only samples that a target is right on count for it.

    The ensemble of the others, if it is among the sources, is another one for each target: all sources but itself.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    right: TargetMask  # the target is right on the image as it is
    fooled: TransferMask  # it is right, and the source's point, in the ball, is given another class
    attack: str
    ball: Ball
    made: Made

    @property
    def accuracy(self) -> SourceTarget:
        """Share of the samples a target is right on that it stays right on; nan where it is right on none."""
        count = self.right.sum(1).double()
        return 1 - self.fooled.sum(2).double() / count

    @property
    def asymmetry(self) -> SourceTarget:
        """Accuracy of a on points from b, less that of b on points from a; nan where a model is not both."""
        table = torch.full_like(self.accuracy, torch.nan)
        for s, source in enumerate(self.sources):
            for t, target in enumerate(self.targets):
                if source in self.targets and target in self.sources:
                    other = self.accuracy[self.sources.index(target), self.targets.index(source)]
                    table[s, t] = self.accuracy[s, t] - other
        return table

    def worst(self, target: str) -> float:
        """Accuracy of a target under the worst source of all others, sample by sample; nan without one.

        Raises ValueError for an unknown target.
        """
        if target not in self.targets:
            raise ValueError(f"target is {target!r}, expected one of {', '.join(map(repr, self.targets))}")
        t = self.targets.index(target)
        others = [s for s, source in enumerate(self.sources) if source != target]
        if not others or not self.right[t].any():
            return float("nan")
        fooled = self.fooled[others, t].any(0)
        return 1 - float(fooled.sum()) / float(self.right[t].sum())

    def frame(self) -> DataFrame:
        """Tidy table, one row a pair, with 95% Wilson intervals over the samples that the target is right on."""
        import pandas as pd

        rows = []
        for s, source in enumerate(self.sources):
            for t, target in enumerate(self.targets):
                count = int(self.right[t].sum())
                left = count - int(self.fooled[s, t].sum())
                low, high = wilson(left, count) if count else (float("nan"), float("nan"))
                rows.append(
                    {
                        "source": source, "target": target, "samples": count,
                        "accuracy": float(self.accuracy[s, t]), "low": low, "high": high,
                        "white_box": source == target, "asymmetry": float(self.asymmetry[s, t]),
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        shares = {target: self.worst(target) for target in self.targets}
        worst = ", ".join(f"{t} {share:.1%}" if isfinite(share) else f"{t} undefined" for t, share in shares.items())
        said = (
            f"{self.attack} in {self.ball.norm} eps {self.ball.eps:.4g} from {len(self.sources)} sources to "
            f"{len(self.targets)} targets, {self.right.shape[1]} samples; under the worst other source: {worst}"
        )
        return said if self.right.any() else said + NOTHING_LEFT


class Ensemble(nn.Module):
    """Log of the models' mean probabilities (Liu et al. 2017)."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Logits:
        answers = torch.stack([logits(model, x).log_softmax(1) for model in self.models])
        return answers.logsumexp(0) - torch.tensor(float(len(self.models))).log().to(answers)


def transfer(
    sources: Mapping[str, nn.Module],
    targets: Mapping[str, nn.Module],
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    attack: Attack = DEFAULT,
    ensemble: bool = False,
    samples: int = 1,
    batch: int = BATCH,
    generator: torch.Generator | None = None,
) -> Transfer:
    """Attack each source, show the points to each target (Papernot et al. 2016).

    `x`, `y` as in `pgd`, but labels must be given: models may disagree on them. `attack` is a white-box one and works
    at the source; where a model is both source and target, its own row is the white-box result. With `ensemble` there
    is one more source: for each target, the mean probability of all sources but it. White-box accuracy far above that
    under transfer is a sign of masked gradients. `samples` > 1 is for random models: the attack averages over so many
    passes, and a class is that of their mean logits.

    Raises ValueError as `pgd` does, for no source or target, for models with different numbers of classes, and for an
    attack that cannot average where samples > 1.
    """
    check_ball(ball)
    check_generator(generator)
    check_count("batch", batch)
    batch = int(batch)  # torch splits by none of numpy's numbers
    check_count("samples", samples)
    check_flag("ensemble", ensemble)
    _check(sources, targets, attack, ensemble=ensemble)
    refuse_single_pass([attack], samples)
    everyone = {**sources, **targets}
    origin, first = next(iter(everyone.items()))
    number = str(seed(generator))
    with ExitStack() as stack:
        for model in {id(model): model for model in everyone.values()}.values():
            stack.enter_context(frozen(model))
        try:
            images, labels, fingerprint = gathered(
                first, x, y, ball, batch=batch, is_labelled=True, stochastic=samples > 1, averages="transfer"
            )
        except ValueError as error:
            raise ValueError(f"model {origin!r}: {error}" if "model" in str(error) else str(error)) from error
        _refuse_other_classes(everyone, images, labels, stochastic=samples > 1)
        bouts = {name: Bout(model, images, labels, ball, samples, batch) for name, model in everyone.items()}
        right = {name: bouts[name].right() for name in targets}
        made_on = dict(sources.items())
        if ensemble:
            for target in targets:
                others = [model for name, model in sources.items() if name != target]
                if others:
                    made_on[f"{ENSEMBLE}: {target}"] = Ensemble(others).eval()
        rows: dict[str, list[Tensor]] = {name: [] for name in (*sources, *([ENSEMBLE] if ensemble else []))}
        bar = stack.enter_context(tqdm(desc="transfer", unit="source", delay=3, disable=None, total=len(made_on)))
        for name, model in made_on.items():
            points = _points(attack, model, bouts[next(iter(bouts))], number, name)
            own = name.partition(f"{ENSEMBLE}: ")[2]
            for target in [own] if own else targets:
                fools = bouts[target].errs(points, images, labels) & ball.contains(points, images) & right[target]
                rows[ENSEMBLE if own else name].append(fools)
            bar.update()
        record = made(
            "transfer", first, fingerprint, str(images.device), generator, sources=", ".join(sources),
            targets=", ".join(targets), ball=ball, attack=str(attack), ensemble=ensemble,
            samples=samples,
        )  # fmt: skip
        record = dataclasses.replace(record, model="; ".join(f"{name} {named(m)}" for name, m in everyone.items()))
    return Transfer(
        sources=tuple(rows), targets=tuple(targets), right=torch.stack(list(right.values())),
        fooled=torch.stack([torch.stack(row) for row in rows.values()]), attack=str(attack), ball=ball, made=record,
    )  # fmt: skip


def _points(attack: Attack, model: nn.Module, bout: Bout, number: str, name: str) -> Tensor:
    parts = []
    for x, y in zip(bout.images.split(bout.batch), bout.labels.split(bout.batch), strict=True):
        stream = torch.Generator().manual_seed(mixed(number, f"{attack.name} {name}"))
        parts.append(attack(model, x, y, bout.ball, samples=bout.samples, generator=stream))
    return torch.cat(parts)


def _refuse_other_classes(models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, *, stochastic: bool) -> None:
    classes = {}
    for name, model in models.items():
        try:
            _, answer = admit(model, images[:16], labels[:16], stochastic=stochastic, averages="transfer")
        except ValueError as error:
            raise ValueError(f"model {name!r}: {error}") from error
        classes[name] = answer.shape[1]
    if len(set(classes.values())) > 1:
        raise ValueError(f"models have different numbers of classes ({classes}), expected one number")


def _check(
    sources: Mapping[str, nn.Module], targets: Mapping[str, nn.Module], attack: Attack, *, ensemble: bool
) -> None:
    for name, models in (("sources", sources), ("targets", targets)):
        if not isinstance(models, Mapping) or not models:
            raise ValueError(f"{name} is {models!r:.80}, expected a dict of models by name, at least one")
    if not isinstance(attack, Attack):
        raise ValueError(f"attack is {attack!r:.80}, expected a gradlens.Attack")
    for name in sources.keys() & targets.keys():
        if sources[name] is not targets[name]:
            raise ValueError(f"{name!r} is one model among the sources and another among the targets, expected one")
    if ensemble and len(sources) < 2:
        raise ValueError(f"ensemble is True and sources are {list(sources)}, expected at least two")
    if ensemble and ENSEMBLE in {**sources, **targets}:
        raise ValueError(f"{ENSEMBLE!r} is the name of a model, and with ensemble=True of their mean; expected another")
