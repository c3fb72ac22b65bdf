"""A long grid on disk: cells are written as they come, so that an interrupted call goes on where it stopped."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..lock import Lock
from ..sealed import hold, read_sealed, write_sealed

SECONDS = 5.0  # between two writes: a lost cell costs less than a write after each


class Ledger:
    """Values (metrics, R, C) of the cells measured so far, in a file if a path is given.

    `key` says which call the cells belong to. Within a `with` block nobody else writes to the file; at its end what is
    new is in it. Raises ValueError, naming the file, for one that is damaged, foreign, of another call or in use.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, key: Mapping[str, str], shape: tuple[int, int, int]
    ) -> None:
        self.path = None if path is None else Path(path)
        self.key = dict(key)
        self.values = np.full(shape, np.nan)
        self.done = np.zeros(shape[1:], dtype=bool)
        self._written = time.monotonic()
        self._is_new = False
        self._lock: Lock | None = None

    def __enter__(self) -> "Ledger":
        if self.path is None:
            return self
        self._lock = hold(self.path)
        try:
            if self.path.exists():
                tensors = read_sealed(self.path, "grid", self.key)
                self.values, self.done = tensors["values"].numpy(), tensors["done"].numpy()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:  # also when interrupted
        try:
            self.flush()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __contains__(self, cell: tuple[int, int]) -> bool:
        return bool(self.done[cell])

    def __getitem__(self, cell: tuple[int, int]) -> np.ndarray:
        return self.values[:, *cell].copy()

    def add(self, cell: tuple[int, int], value: Tensor) -> None:
        """Take in a cell; written at once if the last write is long ago."""
        self.values[:, *cell] = value.cpu().numpy()
        self.done[cell] = True
        self._is_new = True
        if time.monotonic() - self._written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is new."""
        if self.path is None or not self._is_new:
            return
        tensors = {"values": torch.from_numpy(self.values), "done": torch.from_numpy(self.done)}
        write_sealed(self.path, "grid", self.key, tensors)
        self._written, self._is_new = time.monotonic(), False
