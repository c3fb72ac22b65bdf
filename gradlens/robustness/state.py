"""How far an evaluation has come, in memory and in a file, from which it goes on without repeating a batch."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lock import Lock
from ..sealed import hold, read_sealed, write_sealed
from ..types import Images, SampleMask
from .attack import Cost
from .record import Robustness

PAUSE = 20  # times as long as a write takes, at least, is worked between two: a twentieth of the time for the disk
File = str | os.PathLike[str]
FIELDS = ("tried", "broke", "broken_by", "adversarial", "forwards", "backwards", "seconds")


class State:
    """Who met and who broke which sample, and what it took."""

    def __init__(self, attacks: Sequence[str], clean: SampleMask, tensors: Mapping[str, Tensor]) -> None:
        self.attacks = tuple(attacks)
        self.clean = clean
        self.tried, self.broke, self.broken_by = (tensors[name] for name in FIELDS[:3])
        self.adversarial: Images = tensors["adversarial"]
        self.forwards, self.backwards, self.seconds = (tensors[name] for name in FIELDS[4:])
        self._path: Path | None = None
        self._lock: Lock | None = None
        self._key: dict[str, str] = {}
        self._written, self._pause, self._is_new = time.monotonic(), 0.0, False

    @classmethod
    def start(
        cls,
        images: Images,
        clean: SampleMask,
        attacks: Sequence[str],
        key: Mapping[str, str],
        path: File | None,
    ) -> "State":
        """Nothing done yet, or what a file holds of the same call; others are kept from it until a `with` block ends.

        Raises ValueError, naming the file.
        """
        if not isinstance(path, str | os.PathLike | None):
            raise ValueError(f"resume is {path!r}, expected the name of a file, or nothing")
        mask = torch.zeros(len(attacks), len(images), dtype=torch.bool, device=images.device)
        cost = torch.zeros(len(attacks), dtype=torch.float64)
        none = torch.full((len(images),), -1, device=images.device)
        fresh = (mask, mask.clone(), none, images.clone(), cost, cost.clone(), cost.clone())
        tensors = dict(zip(FIELDS, fresh, strict=True))
        lock = None if path is None else hold(Path(path))
        try:
            if path is not None and Path(path).exists():
                kept = read_sealed(Path(path), "evaluation", key)
                tensors = {name: kept[name].to(t.device) for name, t in tensors.items()}
            state = cls(attacks, clean, tensors)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        state._path, state._key, state._lock = None if path is None else Path(path), dict(key), lock
        return state

    def __enter__(self) -> "State":
        return self

    def __exit__(self, *_: object) -> None:
        """Let others have the file."""
        if self._lock is not None:
            self._lock.release()

    @classmethod
    def further(cls, result: Robustness, attacks: Sequence[str]) -> "State":
        """What a record tells, with room for more attacks."""
        rows = {name: getattr(result, name).clone() for name in FIELDS}
        for name in ("tried", "broke", "forwards", "backwards", "seconds"):
            rows[name] = torch.cat([rows[name], rows[name].new_zeros(len(attacks), *rows[name].shape[1:])])
        return cls((*result.attacks, *attacks), result.clean, rows)

    def todo(self, row: int, *, exhaustive: bool) -> Tensor:
        """The samples that an attack has still to meet."""
        waiting = self.clean & ~self.tried[row]
        return (waiting if exhaustive else waiting & (self.broken_by < 0)).nonzero()[:, 0]

    def add(self, row: int, where: Tensor, points: Images, broke: SampleMask, cost: Cost, seconds: float) -> None:
        """Take in a batch; written at once unless that would take long."""
        self.tried[row, where] = True
        self.broke[row, where] = broke
        new = broke & (self.broken_by[where] < 0)
        self.broken_by[where[new]] = row
        self.adversarial[where[new]] = points[new]
        self.forwards[row] += cost.forwards
        self.backwards[row] += cost.backwards
        self.seconds[row] += seconds
        self._is_new = True
        if time.monotonic() - self._written >= self._pause:
            self.flush()

    def flush(self) -> None:
        """Write what is new."""
        if self._path is None or not self._is_new:
            return
        begun = time.monotonic()
        write_sealed(self._path, "evaluation", self._key, self.results())
        self._written, self._is_new = time.monotonic(), False
        self._pause = PAUSE * (self._written - begun)

    def results(self) -> dict[str, Any]:
        """The fields of the record that an evaluation fills."""
        return {name: getattr(self, name) for name in FIELDS}
