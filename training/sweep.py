"""Many runs from one file: a grid of data sets, models, schedules and seeds. What is finished is skipped."""

import dataclasses
import itertools
import tempfile
import time
import tomllib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gradlens.disk import write
from gradlens.lock import Lock
from training import data, models, schedule
from training.checkpoint import Run
from training.config import Config
from training.engines import Engine
from training.fit import LOCK, fit
from training.presets import PRESETS

DAY = 86_400.0  # seconds
AXES = ("dataset", "model", "schedule", "seed")


def grid(path: Path, datasets: Sequence[str] = ()) -> dict[str, Config]:
    """The runs of a sweep file, by folder name: every combination of its lists, its [config] shared by all.

    Each table [[arm]] adds a schedule with settings and a name (`called`) of its own, for every data set, model and
    seed. With a `preset`, each schedule has that preset's settings where the file says nothing else, and may be
    without epochs. `datasets` take the place of those that the file names: the same runs on other images.
    Raises ValueError for a missing file, an unknown entry or a name that does not exist.
    """
    if not path.is_file():
        raise ValueError(f"sweep {str(path)!r} is not a file, expected a TOML file such as training/sweeps/digits.toml")
    try:
        content = tomllib.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"sweep {str(path)!r} is no TOML: {error}") from error
    shared, preset, arms = content.pop("config", {}), content.pop("preset", None), content.pop("arm", [])
    if preset is not None and preset not in list(PRESETS):
        raise ValueError(f"sweep {str(path)!r} has preset = {preset!r}, expected one of {', '.join(PRESETS)}")
    known = {field.name for field in dataclasses.fields(Config)} - set(AXES)
    _check_arms(arms, path)
    of_arms = {key for arm in arms for key in arm} - {"schedule"}
    if unknown := (set(content) - set(AXES)) | ((set(shared) | of_arms) - known):
        raise ValueError(
            f"sweep {str(path)!r} has {', '.join(sorted(unknown))}, expected lists {', '.join(AXES)}, a preset, tables "
            f"[[arm]] and a table [config] of {', '.join(sorted(known))}"
        )
    for axis in AXES:
        if not isinstance(content.get(axis, []), list):
            raise ValueError(f"sweep {str(path)!r} has {axis} = {content[axis]!r}, expected a list")
    content |= {"dataset": list(datasets)} if datasets else {}
    lists = {axis: content[axis] for axis in AXES if axis in content}
    choices = [] if arms and "schedule" not in lists else _combined(lists)
    choices += [{**choice, **arm} for arm in arms for choice in _combined({**lists, "schedule": [arm["schedule"]]})]
    configs = [_config(preset, {**shared, **choice}) for choice in choices]
    for config in configs:
        schedule.parse(config.schedule)
        models.check(config.model)
        if config.dataset not in data.DATASETS:
            data.load(config.dataset)  # says what is expected
    named = {name(config): config for config in configs}
    if len(named) < len(configs):
        twice = sorted({one for one in map(name, configs) if [name(c) for c in configs].count(one) > 1})
        raise ValueError(f"sweep {str(path)!r} has {', '.join(twice)} twice; tell arms apart by what they are called")
    return named


def _check_arms(arms: Any, path: Path) -> None:
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        raise ValueError(f"sweep {str(path)!r} has arm = {arms!r}, expected tables [[arm]]")
    for number, arm in enumerate(arms, 1):
        if not isinstance(arm.get("schedule"), str):
            raise ValueError(
                f"sweep {str(path)!r}, [[arm]] {number} has the schedule {arm.get('schedule')!r}, expected one such as "
                "'rl:15'"
            )


def _combined(lists: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def _config(preset: str | None, said: dict[str, Any]) -> Config:
    if preset is None:
        return Config(**said)
    base = PRESETS[preset](said.get("schedule", Config.schedule))
    return dataclasses.replace(base, **{**said, "schedule": base.schedule})


def name(config: Config) -> str:
    """A run's folder: data set, model, what it is called, schedule and seed, in characters every file system takes."""
    called = "".join(c if c.isalnum() and c.isascii() else "_" for c in config.called)
    phases = "+".join(f"{phase.arm.replace('>', '-to-')}-{phase.epochs}" for phase in schedule.parse(config.schedule))
    return "-".join(filter(None, (config.dataset, config.model, called, phases, f"s{config.seed}")))


def sweep(path: Path, out: Path, engine: Engine = Engine(), datasets: Sequence[str] = ()) -> list[Run]:
    """Train what is not finished yet, run beside run, each on one thread: so results do not depend on the engine.

    What was stopped in the middle goes on where it was; what another process trains is waited for. Nodes of a cluster
    train in `out` itself where they see it, so that a run whose node is lost goes on from its last epoch; from others
    the files of a finished run are sent, and a lost one starts again.
    """
    runs = grid(path, datasets)
    out.mkdir(parents=True, exist_ok=True)
    tasks = [(config, out / folder) for folder, config in runs.items()]
    todo = [task for task in tasks if not (task[1] / "run.json").is_file()]
    for config, folder in tasks:
        if (config, folder) not in todo:
            fit(config, folder)  # refuses a run of another config before the others are trained
    # so that no long run begins last, alone
    todo.sort(key=lambda task: _passes(task[0]), reverse=True)
    if todo:
        elsewhere = marked(out) if engine.engine == "ray" else nullcontext()
        with engine.pool() as pool, elsewhere as mark:
            futures = {pool.submit(_one, config, folder.resolve(), mark): folder for config, folder in todo}
            for future in tqdm(as_completed(futures), total=len(todo), desc=path.stem, unit="run"):
                _keep(futures[future], future.result())
    return [fit(config, folder) for config, folder in tasks]


def table(runs: Iterable[Run]) -> str:
    """One line a run: what it reached on the validation part in its last epoch, and how long it took."""
    rows: list[tuple[Any, ...]] = [("run", "clean", "pgd-10", "seconds")]
    for run in runs:
        last = run.record["last"]
        rows.append((run.name, f"{last['clean']:.1%}", f"{last['pgd']:.1%}", f"{run.record['seconds']:.1f}"))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:<{width}}  {row[1]:>7}  {row[2]:>7}  {row[3]:>8}" for row in rows)


def _passes(config: Config) -> int:
    """How often a run passes each image, by which runs of one model and data set differ: once an epoch, with an attack
    once more a step and once more to learn from it."""
    steps = config.attack_steps if config.attack == "pgd" else 1
    phases = schedule.parse(config.schedule)
    return sum(phase.epochs * (2 + steps if phase.is_adversarial else 1) for phase in phases)


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """A file of a name that nobody else has: whoever sees it sees this folder, and not its like on another disk.

    What a killed sweep left of such files is removed a day later, since another may be at work here.
    """
    for left in folder.glob(".seen-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > DAY:
                left.unlink()
    mark = folder.resolve() / f".seen-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _one(config: Config, out: Path, mark: Path | None) -> dict[str, bytes]:
    """Train a run; its files, the record last, where `out` is not on this node's disk."""
    torch.set_num_threads(1)
    if mark is None or mark.is_file():
        fit(config, out, quiet=True, waits=True)
        return {}
    with tempfile.TemporaryDirectory() as folder:
        fit(config, here := Path(folder) / out.name, quiet=True)
        paths = sorted((path for path in here.rglob("*") if path.is_file()), key=lambda path: path.name == "run.json")
        return {path.relative_to(here).as_posix(): path.read_bytes() for path in paths}


def _keep(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a run that was trained elsewhere; its record, which comes last, marks it as finished."""
    if not files:
        return
    with Lock(out / LOCK, f"out {str(out)!r}", waits=True):
        if not (out / "run.json").is_file():
            for name, content in files.items():
                write(out / name, content)
