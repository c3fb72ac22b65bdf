"""Many runs from one file: a grid of data sets, models, schedules and seeds. What is finished is skipped."""

import dataclasses
import itertools
import multiprocessing
import tomllib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from training import data, models, schedule
from training.checkpoint import Run
from training.config import Config
from training.fit import fit

AXES = ("dataset", "model", "schedule", "seed")


def grid(path: Path) -> dict[str, Config]:
    """The runs of a sweep file, by folder name: every combination of its lists, its [config] shared by all.

    Raises ValueError for a missing file, an unknown entry or a name that does not exist.
    """
    if not path.is_file():
        raise ValueError(f"sweep {str(path)!r} is not a file, expected a TOML file such as training/sweeps/digits.toml")
    try:
        content = tomllib.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"sweep {str(path)!r} is no TOML: {error}") from error
    shared = content.pop("config", {})
    known = {field.name for field in dataclasses.fields(Config)} - set(AXES)
    if unknown := (set(content) - set(AXES)) | (set(shared) - known):
        raise ValueError(
            f"sweep {str(path)!r} has {', '.join(sorted(unknown))}, expected lists {', '.join(AXES)} and a "
            f"table [config] of {', '.join(sorted(known))}"
        )
    for axis in AXES:
        if not isinstance(content.get(axis, []), list):
            raise ValueError(f"sweep {str(path)!r} has {axis} = {content[axis]!r}, expected a list")
    lists = [content.get(axis, [getattr(Config, axis)]) for axis in AXES]
    configs = [Config(**dict(zip(AXES, values, strict=True)), **shared) for values in itertools.product(*lists)]
    for config in configs:
        schedule.parse(config.schedule)
        models.check(config.model)
        if config.dataset not in data.DATASETS:
            data.load(config.dataset)  # says what is expected
    return {name(config): config for config in configs}


def name(config: Config) -> str:
    """A run's folder: data set, model, schedule and seed, in characters that every file system takes."""
    phases = "+".join(f"{phase.arm.replace('>', '-to-')}-{phase.epochs}" for phase in schedule.parse(config.schedule))
    return f"{config.dataset}-{config.model}-{phases}-s{config.seed}"


def sweep(path: Path, out: Path, jobs: int) -> list[Run]:
    """Train what is not finished yet, `jobs` runs at a time, each on one thread: so results do not depend on `jobs`.

    What was stopped in the middle goes on where it was.
    """
    runs = grid(path)
    out.mkdir(parents=True, exist_ok=True)
    tasks = [(config, out / folder) for folder, config in runs.items()]
    todo = [task for task in tasks if not (task[1] / "run.json").is_file()]
    for config, folder in tasks:
        if (config, folder) not in todo:
            fit(config, folder)  # refuses a run of another config before the others are trained
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads in the middle of their work
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(_one, *task) for task in todo]
        for future in tqdm(as_completed(futures), total=len(todo), desc=path.stem, unit="run"):
            future.result()
    return [fit(config, folder) for config, folder in tasks]


def table(runs: Iterable[Run]) -> str:
    """One line a run: what it reached on the validation part in its last epoch, and how long it took."""
    rows: list[tuple[Any, ...]] = [("run", "clean", "pgd-10", "seconds")]
    for run in runs:
        last = run.record["last"]
        rows.append((run.name, f"{last['clean']:.1%}", f"{last['pgd']:.1%}", f"{run.record['seconds']:.1f}"))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{row[0]:<{width}}  {row[1]:>7}  {row[2]:>7}  {row[3]:>8}" for row in rows)


def _one(config: Config, out: Path) -> None:
    torch.set_num_threads(1)
    fit(config, out, quiet=True)
