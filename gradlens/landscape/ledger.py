"""A long grid on disk: cells are written as they come, so that an interrupted call goes on where it stopped."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..disk import write
from ..provenance import digest

FORMAT = "gradlens grid 1"
SECONDS = 5.0  # between two writes: a lost cell costs less than a write after each


class Ledger:
    """Values (metrics, R, C) of the cells measured so far, in a file if a path is given.

    `key` says which call the cells belong to. Raises ValueError, naming the file, for one that is damaged, foreign or
    of another call.
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
        if self.path is not None and self.path.exists():
            self._read(self.path)

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
        metadata = {"format": FORMAT, "key": json.dumps(self.key), "sha256": self._seal()}
        write(self.path, safetensors.torch.save(tensors, metadata))
        self._written, self._is_new = time.monotonic(), False

    def _seal(self) -> str:
        return digest(json.dumps(self.key), torch.from_numpy(self.values), torch.from_numpy(self.done))

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
                found = json.loads(metadata["key"])
                values, done = file.get_tensor("values").numpy(), file.get_tensor("done").numpy()
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise ValueError(f"resume is {os.fspath(path)!r}, damaged or no unfinished grid: {error}") from error
        for name, value in self.key.items():
            if found.get(name) != value:
                raise ValueError(
                    f"resume is {os.fspath(path)!r}, which holds cells of another call: its {name} is "
                    f"{found.get(name)}, expected {value}; name another file, or seed the generator alike"
                )
        self.values, self.done = values, done
        if self._seal() != metadata.get("sha256"):
            raise ValueError(f"resume is {os.fspath(path)!r}, damaged: its content does not match its hash")
