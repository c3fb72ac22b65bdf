"""What a run says of itself while it runs: history.jsonl, one line an epoch, and TensorBoard on request."""

import hashlib
import json
from pathlib import Path
from typing import Any

from gradlens.store import write


class Journal:
    """Writes each epoch's record as it comes. Lines after `epoch`, left by a run that was killed, are dropped.

    Raises ValueError where TensorBoard is asked for and not installed, and where the lines up to `epoch` are not those
    with the SHA-256 `expected`.
    """

    def __init__(self, folder: Path, epoch: int, *, tensorboard: bool = False, expected: str | None = None) -> None:
        self.path = folder / "history.jsonl"
        self.records = _read(self.path)[:epoch]
        if expected not in (None, self.sha256):
            raise ValueError(f"{self.path} is damaged: it is not the history that the unfinished run wrote")
        write(self.path, self._content)
        self._board = _board(folder, epoch) if tensorboard else None

    @property
    def last(self) -> dict[str, Any]:
        """The newest record."""
        return self.records[-1]

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self._content).hexdigest()

    @property
    def _content(self) -> bytes:
        return "".join(map(_line, self.records)).encode()

    def write(self, record: dict[str, Any]) -> None:
        """Add a line; the file is whole at any moment."""
        self.records.append(record)
        write(self.path, self._content)
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._board.add_scalar(name, value, record["epoch"])
            self._board.flush()

    def close(self) -> None:
        """Let go of TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a history; the last may be torn. Raises ValueError, naming the file, for a damaged one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}\n")]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _board(folder: Path, epoch: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard is not installed; add it with: pip install tensorboard") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=epoch + 1)
