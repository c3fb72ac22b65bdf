"""Tensors of an unfinished call on disk, with the call that they belong to and a hash over both."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .disk import write
from .provenance import digest


def write_sealed(path: Path, kind: str, key: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors whole or not at all; `key` says which call they are of, `kind` what they are."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"format": f"gradlens {kind} 1", "key": json.dumps(dict(key)), "sha256": _seal(key, plain)}
    write(path, safetensors.torch.save(plain, metadata))


def read_sealed(path: Path, kind: str, key: Mapping[str, str]) -> dict[str, Tensor]:
    """What `write_sealed` wrote of the same call. Raises ValueError, naming the file, for anything else."""
    name = os.fspath(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != f"gradlens {kind} 1":
                raise ValueError(f"its format is {metadata.get('format')!r}, expected 'gradlens {kind} 1'")
            found = json.loads(metadata["key"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"resume is {name!r}, damaged or no unfinished {kind}: {error}") from error
    for part, value in key.items():
        if found.get(part) != value:
            raise ValueError(
                f"resume is {name!r}, which holds the {kind} of another call: its {part} is {found.get(part)}, "
                f"expected {value}; name another file, or seed the generator alike"
            )
    if _seal(found, tensors) != metadata.get("sha256"):
        raise ValueError(f"resume is {name!r}, damaged: its content does not match its hash")
    return tensors


def _seal(key: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    return digest(json.dumps(dict(key)), *(part for name in sorted(tensors) for part in (name, tensors[name])))
