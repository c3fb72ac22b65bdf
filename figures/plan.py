"""What a build is asked to do, checked before any work begins."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from figures import parameters, sets


@dataclass(frozen=True)
class Plan:
    """What a build is asked to do, with nothing left to look up."""

    chosen: sets.FigureSet  # as the profile has it
    notebooks: tuple[sets.Notebook, ...]  # those to look at
    out: Path
    root: Path
    jobs: int
    profile: str = sets.FULL
    runs: str | None = None  # the folder of runs, if it is not the set's own
    timeout: float = 600  # seconds a notebook
    force: bool = False

    def notebook(self, name: str) -> Path:
        return self.root / "notebooks" / f"{name}.ipynb"

    @property
    def trained(self) -> str:
        """The folder of runs, on which the sweep and the notebooks have to agree."""
        folders = {str(book.parameters.get("runs", "")) for book in self.notebooks}
        if len(folders) != 1 or not (found := folders.pop()):
            raise ValueError(f"set {self.chosen.name!r} has a sweep, so its notebooks need the same parameter runs")
        return found


def plan(
    name: str,
    root: Path,
    *,
    only: Iterable[str] = (),
    profile: str = sets.FULL,
    out: Path | None = None,
    runs: Path | None = None,
    jobs: int | None = None,
    timeout: float = 600,
    force: bool = False,
) -> Plan:
    """Check everything that can be checked before work begins. ValueError says what is wrong."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}, expected seconds above 0")
    given_runs = None if runs is None else portable(runs.resolve(), root)
    chosen = sets.load(name, root).under(profile, given_runs)
    notebooks = chosen.only(only)
    place = (out or folder(name, root, profile)).resolve()
    jobs = min(jobs or cores(), len(notebooks))
    asked = Plan(chosen, notebooks, place, root, jobs, profile, given_runs, timeout, force)
    for book in notebooks:
        given = {**book.parameters, "out": ""}
        parameters.check(asked.notebook(book.name), given, f"notebooks/{book.name}.ipynb")
    if chosen.sweep is not None:
        if not (root / chosen.sweep).is_file():
            raise ValueError(f"set {name!r} names the sweep {chosen.sweep!r}, and there is no such file")
        _ = asked.trained  # refuses where there is no such folder to train into
    return asked


def folder(name: str, root: Path, profile: str = sets.FULL) -> Path:
    """Where a set is built if nothing else is asked."""
    return root / "figures" / "out" / (name if profile == sets.FULL else f"{name}-{profile}")


def cores() -> int:
    """The cores this process may use, which in a container are not all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def portable(path: Path, root: Path) -> str:
    """A path as seen from the repository root, if it is inside."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
