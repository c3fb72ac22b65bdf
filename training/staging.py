"""A folder appears whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradlens.lock import Lock

PARTIAL = ".partial"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A path for a new folder, which replaces `target` when the block ends well and vanishes when it does not.

    Raises ValueError, naming the process, where another one makes the same folder.
    """
    with Lock(target.with_name(f".{target.name}.lock"), f"folder {str(target)!r}"):
        for left in target.parent.glob(f"{target.name}.*{PARTIAL}"):  # by a process that was killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=f"{target.name}.", suffix=PARTIAL, dir=target.parent) as stage:
            yield Path(stage) / target.name
            if target.exists():
                shutil.rmtree(target)
            (Path(stage) / target.name).rename(target)
