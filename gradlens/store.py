"""Save and load any result: tensors and their record in one safetensors file. No pickle, nothing is executed."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .attacks import Distances, PGDTrace, QueryTrace
from .ball import Ball
from .curvature import Spectrum
from .disk import packed, saying, tidy, write
from .entropy import Entropy
from .gradients import Gradients
from .landscape import InputPath, Surface, Trajectory, WeightSurface
from .lock import Lock
from .masking import Evidence, Masking, Planted
from .provenance import Made, digest_named
from .robustness import Curve, Robustness, Transfer
from .stability import Stability

KINDS = (
    Ball, Curve, Distances, Entropy, Evidence, Gradients, InputPath, Made, Masking, PGDTrace, Planted, QueryTrace,
    Robustness, Spectrum, Stability, Surface, Trajectory, Transfer, WeightSurface,
)  # fmt: skip
RESULTS = {kind.__name__: kind for kind in KINDS}
FORMAT = "gradlens 1"

__all__ = ["RESULTS", "load", "save", "write"]


def save(result: Any, path: str | os.PathLike[str]) -> Path:
    """Write a result to `path`, whole or not at all; what stood there before stays until the new file is complete.

    Who saves to the same place meanwhile waits; what a killed one left there is cleared away.
    Raises ValueError for anything but a gradlens result.
    """
    if not isinstance(path, str | os.PathLike) or not os.path.basename(path):
        raise ValueError(f"path is {path!r:.80}, expected the name of a file")
    if type(result).__name__ not in RESULTS:
        raise ValueError(f"result is a {type(result).__name__}, expected one of {', '.join(RESULTS)}")
    tensors: dict[str, Tensor] = {}
    record = json.dumps(_pack(result, "", tensors))
    metadata = {"format": FORMAT, "result": record, "sha256": _seal(record, tensors)}
    place, content = Path(path), packed(tensors, metadata)
    with saying(place):
        lock = Lock(place.with_name(f".{place.name}.lock"), f"path {os.fspath(path)!r}", waits=True).take()
    try:
        tidy(place.parent, place.name)
        return write(place, content)
    finally:
        lock.release()


def load(path: str | os.PathLike[str]) -> Any:
    """Read what `save` wrote, on the CPU, equal to the bit.

    Raises FileNotFoundError for a missing file and ValueError, naming the file, for one that is damaged or foreign.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path is {path!r:.80}, expected the name of a file written by gradlens.save")
    if not Path(path).is_file():
        raise FileNotFoundError(f"path {os.fspath(path)!r} is not a file, expected a result written by gradlens.save")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"path {os.fspath(path)!r} is damaged or no gradlens result: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"path {os.fspath(path)!r} says format {metadata.get('format')!r}, expected {FORMAT!r}")
    record = metadata.get("result", "")
    if metadata.get("sha256") != _seal(record, tensors):
        raise ValueError(f"path {os.fspath(path)!r} is damaged: its content does not match the hash written with it")
    try:
        return _unpack(json.loads(record), tensors)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"path {os.fspath(path)!r} was written by another version of gradlens, whose results have other fields: "
            f"{error}; measure again"
        ) from error


def _seal(record: str, tensors: dict[str, Tensor]) -> str:
    """The hash of all that a file says: the record and each tensor under its name."""
    return digest_named(tensors, record)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # a copy, since safetensors refuses tensors that share memory
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if dataclasses.is_dataclass(value):
        fields = {f.name: _pack(getattr(value, f.name), f"{name}.{f.name}", tensors) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": {key: _pack(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    return value


def _unpack(record: Any, tensors: dict[str, Tensor]) -> Any:
    match record:
        case {"tensor": name}:
            return tensors[name]
        case {"type": kind, "fields": fields}:
            return RESULTS[kind](**{name: _unpack(value, tensors) for name, value in fields.items()})
        case {"tuple": items}:
            return tuple(_unpack(item, tensors) for item in items)
        case {"dict": items}:
            return {key: _unpack(item, tensors) for key, item in items.items()}
    return record
