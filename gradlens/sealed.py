"""Tensors of an unfinished call, and records in JSON, on disk: each with what it is and a hash over all of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .disk import packed, tidy, write
from .lock import Lock
from .provenance import digest, digest_named


def hold(path: Path) -> Lock:
    """Keep others from the file of an unfinished call until `release`, and clear away what a killed one left of it.

    Raises ValueError naming the process that holds it.
    """
    if not path.name or path.is_dir():
        raise ValueError(f"resume is {os.fspath(path)!r}, expected the name of a file, not of a folder")
    lock = Lock(path.with_name(f".{path.name}.lock"), f"resume is {os.fspath(path)!r}, which").take()
    tidy(path.parent, path.name)
    return lock


def write_sealed(path: Path, kind: str, key: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors whole or not at all; `key` says which call they are of, `kind` what they are."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {"format": f"gradlens {kind} 1", "key": json.dumps(dict(key)), "sha256": _seal(key, plain)}
    write(path, packed(plain, metadata))


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


def write_record(path: Path, kind: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write a record as JSON, whole or not at all; returns it as it is written, with its format and its hash."""
    said = {"format": f"gradlens {kind} 1", **record}
    said["sha256"] = _record_seal(said)
    write(path, (json.dumps(said, indent=2) + "\n").encode())
    return said


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote, or a record from before there were hashes. Raises ValueError for a damaged one."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}, expected an object")
    # one damage cannot hit both of these keys
    if {"format", "sha256"} & record.keys() and record.get("sha256") != _record_seal(record):
        raise ValueError("its content does not match the hash written with it")
    return record


def _record_seal(record: Mapping[str, Any]) -> str:
    return digest(json.dumps({key: value for key, value in record.items() if key != "sha256"}, sort_keys=True))


def _seal(key: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    return digest_named(tensors, json.dumps(dict(key)))
