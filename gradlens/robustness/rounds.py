"""One attack after the other on what is left, batch by batch; what they claim is counted anew."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..ball import Ball
from ..batches import in_parts, smaller
from ..draws import mixed
from ..losses import errs
from ..model import logits
from ..types import Images, Labels, Logits, SampleMask
from .attack import Attack, metered
from .state import State


@dataclass(frozen=True)
class Bout:
    """A model and its samples in a ball, checked; for use within `frozen`."""

    model: nn.Module
    images: Images
    labels: Labels
    ball: Ball
    samples: int  # passes whose mean logits are the model's answer
    batch: int

    @torch.no_grad()
    def errs(self, points: Images, x: Images, y: Labels) -> SampleMask:
        """Finite points that are given another class than `y`, in a pass that no attack had a hand in."""
        finite = points.isfinite().flatten(1).all(1)
        points = torch.where(finite.view(-1, *[1] * (points.ndim - 1)), points, x)

        def mean(where: slice) -> Logits:
            return torch.stack([logits(self.model, points[where]) for _ in range(self.samples)]).mean(0)

        answers = torch.cat(in_parts(mean, len(points), self.batch) or [points.new_empty(0, 1)])
        return errs(answers, y) & finite & answers.isfinite().all(1)

    def right(self) -> SampleMask:
        """The samples that the model gets right as they are."""
        return ~self.errs(self.images, self.images, self.labels)

    def run(self, attacks: Sequence[Attack], state: State, number: str, *, exhaustive: bool) -> None:
        """All attacks in their order, which are the last rows of `state`; `number` seeds them."""
        with ExitStack() as stack:
            stack.callback(state.flush)  # also when interrupted
            total = int(state.clean.sum()) * len(attacks)
            bar = stack.enter_context(tqdm(desc="robustness", unit="sample", delay=3, disable=None, total=total))
            for row, attack in enumerate(attacks, len(state.attacks) - len(attacks)):
                bar.set_postfix_str(attack.name)
                for met in self._met(attack, row, state, number, exhaustive):
                    bar.update(met)

    def _met(self, attack: Attack, row: int, state: State, number: str, exhaustive: bool) -> Any:
        """One attack on all that it has to meet; yields how many samples a batch settles."""
        batch = self.batch
        while len(todo := state.todo(row, exhaustive=exhaustive)):
            where = todo[:batch]
            x, y = self.images[where], self.labels[where]
            # the same stream for each batch: what a sample meets does not depend on the batches before
            stream = torch.Generator().manual_seed(mixed(number, attack.name))
            begun = time.perf_counter()
            try:
                with metered(self.model) as cost:
                    points = attack(self.model, x, y, self.ball, samples=self.samples, generator=stream)
                    broke = self.errs(points, x, y) & self.ball.contains(points, x)
            except (RuntimeError, MemoryError) as error:
                batch = smaller(batch, len(where), error)
                continue
            state.add(row, where, points, broke, cost, time.perf_counter() - begun)
            later = 0 if exhaustive else len(state.attacks) - row - 1
            yield len(where) + later * int(broke.sum())

    def distance(self, state: State) -> Tensor:
        """Of the points that broke a sample, in the ball's norm; nan where none did."""
        return self.ball.length(state.adversarial - self.images).where(state.broken_by >= 0, torch.nan)
