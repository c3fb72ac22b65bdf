"""What all attacks by queries share: checks, the box around the model, random numbers ahead of time, the record."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...ball import Ball
from ...batches import BATCH, Chunk, measured
from ...door import check_count, check_flag
from ...draws import Draws
from ...provenance import UNSIGNED
from ...types import Images, ImagesLike, Labels, LabelsLike
from .blackbox import BlackBox
from .record import QueryTrace

Attack = Callable[[BlackBox, Callable[[], Draws]], None]
Kind = Callable[[Tensor, Draws], Tensor]  # draws.uniform or draws.gaussian
AHEAD = 2**15  # random numbers drawn at once from one stream


class Numbers:
    """Random numbers for step after step, drawn for many steps at once: a call to a stream costs more than a number.

    How many are drawn at once depends on nothing but `size`, so that a sample's numbers are the same in any company.
    """

    def __init__(self, kind: Kind, size: int, draws: Draws, x: Images) -> None:
        self.ahead = max(1, min(AHEAD // size, 128))
        self._kind, self._size, self._draws, self._like = kind, size, draws, x
        self._row = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._block, self._step = x.new_empty(0), 0

    def step(self, who: Labels) -> Tensor:
        """(len(who), size) numbers for these samples; each is to be among those of the step before."""
        if self._step % self.ahead == 0:
            self._block = self.block(who, self.ahead)
            self._row[who] = torch.arange(len(who), device=who.device)
        self._step += 1
        return self._block[self._row[who], (self._step - 1) % self.ahead]

    def block(self, who: Labels, steps: int) -> Tensor:
        """(len(who), steps, size) new numbers for these samples; no more than `ahead` steps keep memory flat."""
        streams = Draws(tuple(self._draws.streams[i] for i in who.tolist()))
        return self._kind(self._like.new_empty(len(who), steps, self._size), streams)


def queried(
    attack: Attack,
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball,
    *,
    call: str,
    queries: int,
    options: Mapping[str, object],
    batch: int | None,
    generator: torch.Generator | None = None,
    is_hard: bool = False,
    until_broken: bool = True,
) -> QueryTrace:
    """Run an attack on all samples, each within its budget, and record what its questions found."""
    check_count("queries", queries)
    check_flag("until_broken", until_broken)
    if batch is not None:
        check_count("batch", batch)
    width = BATCH if batch is None else int(batch)

    def run(chunk: Chunk) -> QueryTrace:
        with chunk.folded():
            box = BlackBox(model, chunk.x, chunk.y, ball, queries=queries, width=width, until_broken=until_broken)
            attack(box, chunk.draws)
            best, margin, is_broken, closest, distance = box.recount()
        return QueryTrace(
            clean=chunk.x, adversarial=best, closest=closest if is_hard else None, labels=chunk.y, margin=margin,
            queries=box.used, found_at=box.found_at.where(is_broken, torch.nan),
            distance=distance if is_hard else torch.full_like(distance, torch.nan),
            budget=queries, ball=ball, made=UNSIGNED,
        )  # fmt: skip

    options = {"ball": ball, "queries": queries, **options}
    return measured(run, model, x, y, ball, call=call, options=options, batch=batch, generator=generator)
