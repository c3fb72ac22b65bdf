"""What goes wrong with files: a changed bit, an early end, a full disk, a pickle that acts."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

tried = 0  # damages, of all files so far


class Bomb:
    """Unpickled, it makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def damaged(path: Path, *, every: int = 1) -> Iterator[str]:
    """The file with one byte changed, at `every`-th place in turn, then cut short in turn; at last as it was."""
    content = path.read_bytes()
    for i in range(0, len(content), every):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x01]) + content[i + 1 :])
        yield f"byte {i}: {content[max(0, i - 10) : i + 10]!r}"
    for length in range(0, len(content) - 1, every):
        path.write_bytes(content[:length])
        yield f"first {length} bytes"
    path.write_bytes(content)


def refusals(path: Path, read: Callable[[], object], *, match: str, every: int = 1) -> int:
    """How many damages were tried; each must end in a ValueError that matches, or change nothing that is read, as in
    the 17th digit of a number."""
    global tried  # noqa: PLW0603 - a tally for tests/bench/faults.py
    before, whole = tried, read()
    for what in damaged(path, every=every):
        try:
            found = read()
            said = match if isinstance(whole, dict) and found == whole else f"{path.name} was read"
        except ValueError as error:
            said = str(error)
        assert match in said, (what, said)
        tried += 1
    read()
    return tried - before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> None:
    """Leave nothing free."""
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
