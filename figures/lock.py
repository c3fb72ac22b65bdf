"""One writer at a time: a file beside what is written, locked by the system, says who holds it.

The system lets go of a lock with the process that held it, so what a killed one left is simply taken. This file needs
nothing but Python: figures/lock.py is a copy, since figures does without torch.
"""

import errno
import json
import os
import platform
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks: nobody is kept out there
    fcntl = None  # type: ignore[assignment]

PAUSE = 0.1  # seconds between two tries of one who waits
_mine: set["Lock"] = set()  # what this process holds


class Lock:
    """Holds a file from `take`, or from entering a `with` block, until `release`, its end or that of the process.

    `subject` begins the message to others, such as "out 'runs/sl'". With `waits` they wait, and say so once; else they
    get a ValueError that names the holder.
    """

    def __init__(self, path: Path, subject: str, *, waits: bool = False) -> None:
        self.path, self.subject, self.waits = path, subject, waits
        self._file: int | None = None

    def take(self) -> "Lock":
        """Raises ValueError naming the process that holds it, unless this one waits for it."""
        if fcntl is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_said = False
        while not self._try():
            said = f"{self.subject} is in use by {_holder(self.path)}"
            if not self.waits:
                raise ValueError(f"{said}; expected nobody else to write there, wait for it or take another")
            if not is_said:
                warnings.warn(f"{said}; waiting for it", RuntimeWarning, stacklevel=2)
                is_said = True
            time.sleep(PAUSE)
        return self

    def release(self) -> None:
        """Let others have it; of no effect where it is not held."""
        if self._file is None:
            return
        _mine.discard(self)
        file, self._file = self._file, None
        self.path.unlink(missing_ok=True)  # while it is locked: whoever opened it before sees that it is gone
        os.close(file)

    def __enter__(self) -> "Lock":
        return self.take()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _try(self) -> bool:
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(file)
                return False
            # some network file systems have no locks; better to work unguarded there than not at all
            warnings.warn(f"{self.subject} cannot be locked ({error.strerror})", RuntimeWarning, stacklevel=3)
        if not _is_at(file, self.path):  # its holder removed it between opening and locking
            os.close(file)
            return False
        _sign(file)
        self._file = file
        _mine.add(self)
        return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _sign(file: int) -> None:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    said = {"pid": os.getpid(), "host": platform.node(), "since": now}
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(said).encode(), 0)
    except OSError:  # a full disk: the lock holds without a name too
        pass


def _holder(path: Path) -> str:
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not signed yet, or is letting go
        return "another process"


def _forget() -> None:
    """A fork holds its parent's files open, and would hold its locks after it."""
    for lock in _mine:
        if lock._file is not None:
            os.close(lock._file)
            lock._file = None
    _mine.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
