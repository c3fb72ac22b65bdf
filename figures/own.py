"""Somebody's own model in place of trained runs, adopted by `python -m training adopt` before any notebook runs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

SET = "model"  # the set that shows a model when no other is asked for
OPTIONS: Mapping[str, Any] = {
    "model": str, "weights": str, "data": str, "eps": float | int, "norm": str, "mean": list, "std": list, "size": int,
    "images": int, "called": str,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model that gradlens has never seen, and images."""

    model: str | None = None  # factory package.module:function, torchvision classifier, or timm/NAME
    weights: Path | None = None  # safetensors, or a state dict from torch.save
    data: Path | None = None  # npz with x and y, or a folder with a folder of images a class
    eps: float | None = None  # radius of the ball, pixels in [0, 1]; 8/255 if not given
    norm: Literal["linf", "l2"] | None = None  # linf if not given
    mean: tuple[float, ...] = ()  # taken off pixels, a number a channel; a torchvision model has ImageNet's
    std: tuple[float, ...] = ()  # what they are then divided by
    size: int | None = None  # pixels a side of a folder's images; as they are if not given
    images: int | None = None  # images kept, at most; 512 if not given
    called: str | None = None  # what figures call it; made of its own name if not given

    @property
    def options(self) -> dict[str, Any]:
        """What was given, as a set's table [model] says it."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in said.items()}
        return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items() if v is not None and v != ()}


@dataclass(frozen=True)
class Adopted:
    """Where the notebooks find an adopted model."""

    name: str  # of folders
    runs: Path
    dataset: str
    importable: str  # the folder in which its factory was found
    words: tuple[str, ...]  # the options of the command line


def adopt(said: Mapping[str, Any], given: Mapping[str, Any], root: Path, here: Path) -> Adopted:
    """Have the model that a set names (`said`), a command line (`given`) or both together, written under runs/own/.

    A set's paths and its factory count from the repository's root, those of a command line from `here`.

    Raises ValueError with what `training adopt` says is wrong.
    """
    options = {**_resolved(said, root), **_resolved(given, here)}
    for key in ("model", "data"):
        if not options.get(key):
            raise ValueError(f"{key} is missing: a model of your own needs --model and --data, mostly --weights too")
    name = _slug(str(options.get("called") or options["model"]))
    run = root / "runs" / "own" / name / name
    base = here if given.get("model") else root
    command = [sys.executable, "-m", "training", "adopt", "--out", str(run)]
    command += _words({"name" if key == "called" else key: value for key, value in options.items()})
    done = subprocess.run(command, cwd=root, env=environment(str(base)), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise ValueError(lines[-1].removeprefix("error: ") if done.returncode == 2 else "\n".join(lines))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return Adopted(name, run.parent, record["config"]["dataset"], str(base), tuple(_words(given)))


def environment(importable: str) -> dict[str, str]:
    """This process's environment, in which what lies in a folder can be imported."""
    known = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [importable, known]))}


def _resolved(options: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The options with their paths as seen from anywhere."""
    return {key: str((base / v).resolve()) if key in ("weights", "data") else v for key, v in options.items()}


def _words(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in options.items():
        words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or SET
