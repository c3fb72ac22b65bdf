"""A run on disk: weights as safetensors, run.json, history.jsonl. Written whole, read without executing anything."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from pandas import DataFrame
from torch import nn

from gradlens.disk import seal_weights, write
from gradlens.sealed import read_record, write_record
from training import data, devices, models, schedule
from training.config import Config
from training.filling import fill

ROOT = Path(__file__).parents[1]
Which = Literal["last", "best_clean", "best_pgd"]
EPOCH = re.compile(r"epochs/\d+\.safetensors")
FILES = {"last": "model.safetensors", "best_clean": "best_clean.safetensors", "best_pgd": "best_pgd.safetensors"}


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies, how it was made, what it reached."""

    path: Path
    config: Config
    record: dict[str, Any]  # run.json
    device: str = "cpu"  # where its models are put

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def arm(self) -> str:
        """SL, RL, SL-adv, RL-adv and so on, or what its config or its adoption calls it."""
        return self.adopted.get("called") or self.config.called or schedule.label(self.config.schedule)

    @property
    def adopted(self) -> dict[str, Any]:
        """Where a model that was trained elsewhere came from (`training.adopt`); empty for one trained here."""
        return self.record.get("adopted", {})

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record an epoch. Raises ValueError where the file is not the one that the run wrote."""
        path = self.path / "history.jsonl"
        if not path.is_file():
            raise ValueError(f"run {self.name!r}: history.jsonl is missing")
        content = path.read_bytes()
        expected = self.record.get("history_sha256")  # runs from before there was one have none
        if expected not in (None, hashlib.sha256(content).hexdigest()):
            raise ValueError(f"run {self.name!r}: history.jsonl is damaged, its SHA-256 differs from run.json")
        return [json.loads(line) for line in content.decode().splitlines()]

    def model(self, which: Which = "last") -> nn.Module:
        """The classifier after the last epoch, or after that of the best validation accuracy, in evaluation mode.

        Raises ValueError where the weights are not those that the run wrote, or do not fit the architecture.
        """
        known = {"last": {"sha256": self.record["checkpoint_sha256"]}, **self.record.get("best", {})}
        if which not in known or which not in FILES:
            raise ValueError(f"run {self.name!r} keeps {', '.join(known)}; it has no checkpoint {which!r}")
        return self._read(FILES[which], known[which]["sha256"])

    @property
    def keeps_epochs(self) -> bool:
        """Are there weights from the way, for `epochs` and for gradlens.trajectory on the folder epochs/?"""
        return bool(self.record.get("path"))

    def epochs(self) -> dict[int, nn.Module]:
        """The classifier at each epoch that was kept on the way, from 0, the untrained one, to the last.

        Raises ValueError as `model` does, and where the run kept none (`keep_every`).
        """
        kept = self.record.get("path", {})
        if not kept:
            raise ValueError(f"run {self.name!r} kept no weights on its way; train one with --keep-every 1")
        models = {name: self._read(name, digest) for name, digest in kept.items()}
        return {int(Path(name).stem): model for name, model in models.items()}

    def _read(self, name: str, digest: str) -> nn.Module:
        path = self.path / name
        if name not in FILES.values() and not EPOCH.fullmatch(name):
            raise ValueError(f"run {self.name!r}: run.json names the weights {name!r}, expected a file of the run")
        if not path.is_file():
            raise ValueError(f"run {self.name!r}: {name} is missing")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"run {self.name!r}: {name} is damaged, its SHA-256 differs from run.json")
        model = build(self.config, data.load(self.config.dataset))
        fill(model, safetensors.torch.load(content), f"run {self.name!r}: {name}")
        return model.eval().to(self.device)

    def reference(self) -> dict[str, Any]:
        """What a figure's manifest says of a run."""
        return {
            "name": self.name,
            "path": _readable(self.path),
            "arm": self.arm,
            "dataset": self.config.dataset,
            "model": self.config.model,
            "schedule": None if self.adopted else self.config.schedule,
            "seed": None if self.adopted else self.config.seed,
            "checkpoint_sha256": self.record["checkpoint_sha256"],
        }


def build(config: Config, dataset: data.Data) -> nn.Module:
    """The untrained model of a config."""
    return models.build(config.model, classes=dataset.classes, shape=dataset.shape, mean=dataset.mean, std=dataset.std)


def save(path: Path, model: nn.Module, config: Config, record: dict[str, Any]) -> Run:
    """Write weights, then run.json, which marks the run as finished."""
    digest = save_weights(path / FILES["last"], model)
    record = {"config": dataclasses.asdict(config), "checkpoint_sha256": digest, **record}
    return Run(path, config, write_record(path / "run.json", "run", record))


def epoch_file(number: int) -> str:
    """Where in a run's folder the weights after this epoch are kept; names in the order of the epochs."""
    return f"epochs/{number:04d}.safetensors"


def save_weights(path: Path, model: nn.Module) -> str:
    """Write a model's parameters and buffers, whole or not at all; returns the file's SHA-256."""
    content = seal_weights(model.state_dict())
    write(path, content)
    return hashlib.sha256(content).hexdigest()


def load(path: str | Path) -> Run:
    """A finished run; raises ValueError naming the folder where it is missing or unfinished, and how to make it."""
    folder = find(path)
    if not (folder / "run.json").is_file():
        raise ValueError(
            f"run {str(path)!r} holds no run.json, expected the folder of a finished run; make one with: "
            f"python -m training fit --out {path}"
        )
    try:
        record = read_record(folder / "run.json")
        return Run(folder, Config(**record["config"]), record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"run {str(path)!r}: run.json is damaged or of another version: {error!r}") from error


def load_all(folder: str | Path, only: str = "", device: str = "cpu") -> list[Run]:
    """The finished runs in a folder, by arm (SL, RL, SL-adv, RL-adv, then the others, each kind before what is called
    otherwise) and seed; with `only`, those of the arms that it names, with | between them, as in "SL | RL". Their
    models come on the `device` (see `devices.find`).

    Raises ValueError naming the folder where there is none, and how to make some, and for an arm that is not there; and
    for two runs of one arm, architecture and seed, as a changed sweep leaves them, which tables cannot tell apart.
    """
    place = str(devices.find(device))
    runs = [dataclasses.replace(load(record.parent), device=place) for record in find(folder).glob("*/run.json")]
    if not runs:
        own, default = f"training/sweeps/{Path(folder).name}.toml", "training/sweeps/digits.toml"
        raise ValueError(
            f"runs {str(folder)!r} holds no finished run, expected a folder of runs; make one with: "
            f"python -m training sweep {own if find(own).is_file() else default} --out {folder}"
        )
    if wanted := {name.strip() for name in only.split("|")} - {""}:
        there = {run.arm for run in runs}
        if unknown := sorted(wanted - there):
            raise ValueError(f"only names {', '.join(map(repr, unknown))}, expected arms of {sorted(there)}")
        runs = [run for run in runs if run.arm in wanted]
    seen: dict[tuple[Any, ...], Run] = {}
    for run in sorted(runs, key=lambda run: run.name):
        twin = seen.setdefault((run.arm, run.config.model, run.config.seed), run)
        if twin is not run:
            raise ValueError(
                f"runs {twin.name!r} and {run.name!r} in {str(folder)!r} are both {run.arm} with seed "
                f"{run.config.seed}, expected one; move away what is left of a changed sweep"
            )

    def order(run: Run) -> tuple[Any, ...]:
        phases = schedule.parse(run.config.schedule)
        called = run.arm if run.arm != schedule.label(run.config.schedule) else ""
        kinds, epochs = [schedule.place(phase) for phase in phases], [phase.epochs for phase in phases]
        return kinds, called != "", epochs, called, run.config.seed, run.name

    return sorted(runs, key=order)


def histories(runs: list[Run]) -> DataFrame:
    """Tidy table, one row an epoch and run."""
    return DataFrame(
        [
            {**record, "phase": record["arm"], "arm": run.arm, "run": run.name, "seed": run.config.seed}
            for run in runs
            for record in run.history
        ]
    )


def find(path: str | Path) -> Path:
    """A relative path counts from here or, if it is not here, from the project: notebooks run in either."""
    path = Path(path)
    return path if path.is_absolute() or path.exists() else ROOT / path


def _readable(path: Path) -> str:
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
