"""A run on disk: model.safetensors, run.json, history.jsonl. Written whole, read without executing anything."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from pandas import DataFrame
from torch import nn

from gradlens.store import write
from training import data, models, schedule
from training.config import Config

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies, how it was made, what it reached."""

    path: Path
    config: Config
    record: dict[str, Any]  # run.json

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def arm(self) -> str:
        """SL, RL, SL-adv, RL-adv."""
        return schedule.label(self.config.schedule)

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record an epoch."""
        return [json.loads(line) for line in (self.path / "history.jsonl").read_text().splitlines()]

    def model(self) -> nn.Module:
        """The classifier, in evaluation mode. Raises ValueError where the weights are not those that the run wrote."""
        path = self.path / "model.safetensors"
        if not path.is_file():
            raise ValueError(
                f"run {self.name!r}: model.safetensors is missing, expected the weights that the run wrote"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.record["checkpoint_sha256"]:
            raise ValueError(f"run {self.name!r}: model.safetensors is damaged, its SHA-256 differs from run.json")
        model = build(self.config, data.load(self.config.dataset))
        model.load_state_dict(safetensors.torch.load(content))
        return model.eval()

    def reference(self) -> dict[str, Any]:
        """What a figure's manifest says of a run."""
        return {
            "name": self.name,
            "path": _readable(self.path),
            "arm": self.arm,
            "dataset": self.config.dataset,
            "model": self.config.model,
            "schedule": self.config.schedule,
            "seed": self.config.seed,
            "checkpoint_sha256": self.record["checkpoint_sha256"],
        }


def build(config: Config, dataset: data.Data) -> nn.Module:
    """The untrained model of a config."""
    return models.build(config.model, classes=dataset.classes, shape=dataset.shape, mean=dataset.mean, std=dataset.std)


def save(path: Path, model: nn.Module, config: Config, record: dict[str, Any]) -> Run:
    """Write weights, then run.json, which marks the run as finished."""
    content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    write(path / "model.safetensors", content)
    record = {"config": dataclasses.asdict(config), "checkpoint_sha256": hashlib.sha256(content).hexdigest(), **record}
    write(path / "run.json", (json.dumps(record, indent=2) + "\n").encode())
    return Run(path, config, record)


def load(path: str | Path) -> Run:
    """A finished run; raises ValueError naming the folder where it is missing or unfinished, and how to make it."""
    folder = find(path)
    if not (folder / "run.json").is_file():
        raise ValueError(
            f"run {str(path)!r} holds no run.json, expected the folder of a finished run; make one with: "
            f"python -m training fit --out {path}"
        )
    try:
        record = json.loads((folder / "run.json").read_text())
        return Run(folder, Config(**record["config"]), record)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"run {str(path)!r}: run.json is damaged or of another version: {error!r}") from error


def load_all(folder: str | Path) -> list[Run]:
    """The finished runs in a folder, by arm (in the order SL, RL, SL-adv, RL-adv) and seed.

    Raises ValueError naming the folder where there is none, and how to make some.
    """
    runs = [load(record.parent) for record in find(folder).glob("*/run.json")]
    if not runs:
        raise ValueError(
            f"runs {str(folder)!r} holds no finished run, expected a folder of runs; make one with: "
            f"python -m training sweep training/sweeps/digits.toml --out {folder}"
        )
    order = {arm: i for i, arm in enumerate(schedule.ARMS)}
    return sorted(runs, key=lambda run: (*(order[p.arm] for p in schedule.parse(run.config.schedule)), run.config.seed))


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
