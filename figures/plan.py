"""What a build is asked to do, checked before any work begins."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from figures import parameters, sets, stamp
from figures.cluster import check_resources
from figures.own import Adopted

TIMEOUT = 600.0  # seconds a notebook may take if neither its set nor anybody else says


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
    dataset: str | None = None  # on which the set trains and measures, if it is not its own
    timeout: float = TIMEOUT  # seconds a notebook
    force: bool = False
    own: Adopted | None = None  # somebody's own model, which the notebooks read in place of trained runs
    engine: str = "local"  # or "ray"
    address: str | None = None  # HOST:PORT of a Ray cluster's head
    cpus: float | None = None  # Ray: cores that a run and a notebook reserve
    gpus: float | None = None  # Ray: what a run and a notebook reserve; if not given both are on the CPU
    memory: str | None = None  # Ray: what a run and a notebook reserve

    @property
    def called(self) -> str:
        """The set's name, with the data set that it was moved to."""
        return named(self.chosen.name, self.dataset)

    @property
    def sweeps(self) -> dict[str, str]:
        """The sweeps by the folder of runs that they train, of the set's those that its notebooks read."""
        first = {} if self.chosen.sweep is None else {self.trained: self.chosen.sweep}
        read = {value for book in self.notebooks for value in book.parameters.values() if isinstance(value, str)}
        return first | {folder: path for folder, path in self.chosen.sweeps.items() if folder in read}

    def notebook(self, name: str) -> Path:
        """The file of one of the set's notebooks."""
        files = {book.name: book.file for book in self.chosen.notebooks}
        return self.root / "notebooks" / f"{files.get(name) or name}.ipynb"

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
    timeout: float | None = None,
    force: bool = False,
    own: Adopted | None = None,
    given: Mapping[str, Any] | None = None,
    engine: str = "local",
    address: str | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    memory: str | None = None,
    dataset: str | None = None,
) -> Plan:
    """Check everything that can be checked before work begins; `given` parameters win over the set's.

    ValueError says what is wrong.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs is {jobs}, expected at least 1")
    for option, value in (("address", address), ("cpus", cpus), ("gpus", gpus), ("memory", memory)):
        if engine != "ray" and value is not None:
            raise ValueError(f"{option} is {value!r}, expected it beside --engine ray alone")
    if dataset is not None and (runs is not None or own is not None):
        raise ValueError(f"dataset is {dataset!r}, expected none beside --runs or --model, whose data sets are known")
    if dataset is not None and not re.fullmatch(r"[\w-]+", dataset):  # it becomes part of folders' names
        raise ValueError(f"dataset is {dataset!r}, expected the name of one, such as cifar10")
    check_resources(cpus, gpus, memory)
    if engine == "ray" and jobs is not None:
        raise ValueError(f"jobs is {jobs}, expected it without --engine ray, which gives each notebook a core")
    given_runs = None if runs is None else portable(runs.resolve(), root)
    said = {"runs": given_runs, "dataset": own and own.dataset, **(given or {})}
    chosen = sets.load(name, root).under(profile, {key: value for key, value in said.items() if value is not None})
    chosen = chosen if dataset is None else chosen.on(dataset)
    timeout = next(limit for limit in (timeout, chosen.timeout, TIMEOUT) if limit is not None)
    if not timeout > 0:
        raise ValueError(f"timeout is {timeout}, expected seconds above 0")
    notebooks = tuple(_with_folders(book, root) for book in chosen.only(only))
    place = (out or folder(named(name, dataset), root, profile)).resolve()
    jobs = min(jobs or cores(), len(notebooks))
    asked = Plan(chosen, notebooks, place, root, jobs, profile, given_runs, dataset, timeout, force, own, engine,
                 address, cpus, gpus, memory)  # fmt: skip
    for book in notebooks:
        parameters.check(asked.notebook(book.name), {**book.parameters, "out": ""}, f"notebooks/{book.file}.ipynb")
    for path in asked.sweeps.values():  # which refuses where there is no folder to train into
        if not (root / path).is_file():
            raise ValueError(f"set {name!r} names the sweep {path!r}, and there is no such file")
    return asked


def _with_folders(book: sets.Notebook, root: Path) -> sets.Notebook:
    """A notebook with the folders of runs that it reads where nobody says, so that they are trained and watched."""
    known = parameters.read(root / "notebooks" / f"{book.file}.ipynb", f"notebooks/{book.file}.ipynb")
    folders = {name: known[name].default for name in stamp.FOLDERS if name in known}
    return replace(
        book, parameters={**{n: f for n, f in folders.items() if f and isinstance(f, str)}, **book.parameters}
    )


def named(name: str, dataset: str | None) -> str:
    """What a set is called that was moved to another data set."""
    return name if dataset is None else f"{name}-{dataset}"


def folder(name: str, root: Path, profile: str = sets.FULL) -> Path:
    """Where a set is built if nothing else is asked."""
    return root / "figures" / "out" / (name if profile == sets.FULL else f"{name}-{profile}")


def cores() -> int:
    """The cores this process may use, which in a container are not all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def portable(path: Path, root: Path) -> str:
    """A path as seen from the repository root, if it is inside."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
