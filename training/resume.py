"""The state of an unfinished run in one file, from which it goes on as if it had never been stopped. No pickle."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gradlens.disk import packed, write
from gradlens.provenance import digest_named
from training.config import Config
from training.policy import Agent

NAME = "resume.safetensors"


class Progress(NamedTuple):
    """How far a run has come."""

    epoch: int = 0  # finished epochs
    seconds: float = 0.0  # spent on them, watching included
    best: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - never written to; by checkpoint: value, epoch, sha256
    path: dict[str, str] = {}  # noqa: RUF012 - never written to; SHA-256 of the weights kept on the way, by file
    history: str | None = None  # SHA-256 of history.jsonl after them


class Trainee(NamedTuple):
    """What a run carries from step to step. Randomness is not among it: each epoch has generators of its own."""

    model: nn.Module  # bare
    module: nn.Module  # the same weights as Fabric wraps them
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    agent: Agent

    @property
    def product(self) -> nn.Module:
        """The classifier that is watched and kept."""
        return self.model if self.averaged is None else self.averaged.module


def save(folder: Path, trainee: Trainee, config: Config, progress: Progress) -> None:
    """Write the state after an epoch, whole or not at all: tensors, and the rest as their JSON metadata."""
    metadata = {"config": json.dumps(dataclasses.asdict(config)), "progress": json.dumps(progress._asdict())}
    # copies, since safetensors refuses tensors that share memory
    tensors = {
        name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in _tensors(trainee).items()
    }
    write(folder / NAME, packed(tensors, {**metadata, "sha256": _seal(metadata, tensors)}))


def restore(folder: Path, trainee: Trainee, config: Config) -> Progress:
    """Put the state in `folder` into a fresh trainee of the same config; where there is none, the run starts at 0.

    Raises ValueError for the state of another config, and for a damaged file.
    """
    path = folder / NAME
    if not path.is_file():
        return Progress()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
        if metadata.pop("sha256", None) != _seal(metadata, tensors):
            raise ValueError("its content does not match the hash written with it")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove the folder to start again") from error
    if (written := Config(**json.loads(metadata["config"]))) != config:
        raise ValueError(f"out {str(folder)!r} holds an unfinished run of another config ({written}), remove it first")
    _fill_optimizer(trainee.optimizer, tensors)
    with torch.no_grad():
        for name, t in _tensors(trainee).items():
            t.copy_(tensors[name])
    return Progress(**json.loads(metadata["progress"]))


def _seal(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    return digest_named(tensors, json.dumps(metadata, sort_keys=True))


def _tensors(trainee: Trainee) -> dict[str, Tensor]:
    """Everything that a step changes, by name."""
    found = {f"model.{name}": t for name, t in trainee.model.state_dict().items()}
    if trainee.averaged is not None:
        found |= {f"average.{name}": t for name, t in trainee.averaged.state_dict().items()}
    for i, state in trainee.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{key}": t for key, t in state.items()}
    return found | {"agent.mean_reward": trainee.agent.mean_reward}


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Each moment laid out in memory as its weights are: a fused optimiser walks both in step, and does not look."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            like = weights[int(i)]
            moment = torch.empty_like(like, dtype=t.dtype).copy_(t) if t.shape == like.shape else t
            state.setdefault(int(i), {})[key] = moment
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
