"""The manifest of a set: figure -> data -> checkpoints -> notebook, commit, versions and seed, tied by hashes."""

import hashlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from figures import sets, stamp
from figures.plan import Plan, portable
from figures.published import Figure, published

MACHINE = ("python", "platform", "processor", "gpus", "versions")


def write(asked: Plan, stages: Mapping[str, float]) -> None:
    """Write `manifest.json` about everything that lies in the set's folder, also from earlier builds."""
    found: dict[str, Any] = {
        "set": asked.called,
        "title": asked.chosen.title,
        "about": asked.chosen.about,
        "profile": asked.profile,
        "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **commit(asked.root),
        "reproduce": reproduce(asked),
        "seed": _seed(asked.chosen),
        **machine(),
        "sweeps": [{"folder": f, "path": p, "sha256": stamp.sha256(asked.root / p)} for f, p in _sweeps(asked).items()],
        "stages": {stage: round(seconds, 2) for stage, seconds in stages.items()},
        "notebooks": [_notebook(book, asked) for book in asked.chosen.notebooks],
        "figures": [row for book in asked.chosen.notebooks for row in _figures(book.name, asked)],
    }
    save(asked.out, scrub(found, asked))


def save(out: Path, found: Mapping[str, Any]) -> None:
    """Write what `read` gives, sealed. Each run stands there once and figures name it: many show the same models."""
    runs: dict[str, Any] = {}

    def name(run: Mapping[str, Any]) -> str:
        key, number = str(run["name"]), 1
        while runs.setdefault(key, run) != run:  # another of that name: its folder, or what became of its checkpoint
            number += 1
            key = f"{run['name']} #{number}"
        return key

    rows = [{**figure, "runs": [name(run) for run in figure["runs"]]} for figure in found["figures"]]
    record = {**found, "figures": rows, "runs": runs}
    stamp.replace(out / "manifest.json", json.dumps({**record, "sha256": stamp.seal(record)}, indent=1))


def read(out: Path) -> dict[str, Any]:
    """The manifest of a built set. ValueError where there is none."""
    path = out / "manifest.json"
    if not path.exists():
        raise ValueError(f"out is {out}, and there is no manifest.json in it; expected a folder that a build has made")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for file in (file for figure in found["figures"] for file in figure["files"]):
            if not (out / file).resolve().is_relative_to(out.resolve()):
                raise ValueError(f"it names {file!r}, expected files of this folder")
        if found.pop("sha256", None) != stamp.seal(found):
            raise ValueError("its content does not match the hash written with it")
        if "runs" in found:  # each once; not in manifests from before they stood apart
            runs = found.pop("runs")
            for figure in found["figures"]:
                figure["runs"] = [dict(runs[name]) for name in figure["runs"]]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, build the set again: {error!r}") from error
    return found


def content(figure: Mapping[str, Any], file: str, out: Path) -> bytes:
    """What is in one of a figure's files. ValueError, naming it, where that is not what was built."""
    if not (out / file).is_file():
        raise ValueError(f"{file} is in the manifest and not in {out}; build the set again")
    found = (out / file).read_bytes()
    if hashlib.sha256(found).hexdigest() != figure["files"][file]:
        raise ValueError(f"{file} in {out} is not the one that was built; build the set again")
    return found


def failure(out: Path, notebook: str) -> dict[str, Any] | None:
    """How a notebook failed in its last execution, None if it did not. ValueError for a damaged record of it."""
    path = out / f"{notebook}.failed.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("sha256", None) != stamp.seal(found):
            raise ValueError("its content does not match the hash written with it")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged, build the set again: {error!r}") from error
    return found


def reproduce(asked: Plan) -> str:
    """The command line that makes the set again."""
    words = ["python", "-m", "figures", "build", asked.chosen.name, *(asked.own.words if asked.own else ())]
    words += ["--dataset", asked.dataset] if asked.dataset else []
    words += ["--profile", asked.profile] if asked.profile != sets.FULL else []
    words += ["--runs", asked.runs] if asked.runs and not asked.own else []
    return shlex.join(words)


def commit(root: Path) -> dict[str, Any]:
    """The commit of the checkout, and whether files differ from it; null where git knows nothing."""
    head = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain")
    return {"commit": head, "dirty": None if changes is None else bool(changes)}


def machine() -> dict[str, Any]:
    """What a build ran on. Notebooks whose parameter `device` is auto measured on one of the GPUs, if there are any."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(Path("/proc/cpuinfo")),
        "gpus": _gpus(),
        "versions": stamp.versions(),
    }


def _processor(told: Path) -> str:
    """Which kind of processor the system tells of: kinds round differently, and the same seeds train other weights."""
    try:
        lines = told.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:  # no Linux
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in said:
        return platform.processor() or platform.machine()
    kind = [f"{key} {said[key]}" for key in ("cpu family", "model", "stepping") if key in said]
    return ", ".join([said["model name"], *kind])


def _gpus() -> list[str]:
    """The names of the machine's GPUs; none where $CUDA_VISIBLE_DEVICES hides them all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        said = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return said.stdout.split("\n")[:-1] if said.returncode == 0 else []


def scrub(value: Any, asked: Plan) -> Any:
    """The value with this machine's paths cut off from all its strings: they would help no reader."""
    if isinstance(value, Mapping):
        return {str(key): scrub(one, asked) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(one, asked) for one in value]
    if not isinstance(value, str):
        return value
    outside = [Path(asked.runs).parent] if asked.runs and Path(asked.runs).is_absolute() else []
    # the longest first: out is mostly inside root
    for base in sorted({str(asked.root), str(asked.out), *map(str, outside), str(Path.home())}, key=len, reverse=True):
        value = "." if value == base else value.replace(f"{base}/", "")
    return value


def _sweeps(asked: Plan) -> dict[str, str]:
    """The sweeps by folder of runs: those of this build, and those that notebooks built here earlier have read."""
    sealed = [stamp.read(asked.out / book.name) for book in asked.chosen.notebooks]
    read = {str(value) for one in sealed if one for value in one["inputs"]["parameters"].values()}
    return asked.sweeps | {folder: path for folder, path in asked.chosen.sweeps.items() if folder in read}


def is_built(book: Mapping[str, Any]) -> bool:
    """Whether a notebook, a row of a manifest, was built, neither missing nor failed."""
    return bool(book["status"] == "built")


def _notebook(book: sets.Notebook, asked: Plan) -> dict[str, Any]:
    name = book.name
    sealed, failed = stamp.read(asked.out / name), failure(asked.out, name)
    row: dict[str, Any] = {"name": name, "path": asked.notebook(name).relative_to(asked.root).as_posix()}
    row |= {"status": "failed" if failed else "built" if sealed else "missing", "error": failed and failed["error"]}
    row["title"] = book.title or (sealed or failed or {}).get("title", name.replace("_", " "))
    if sealed:
        kept = ("seconds", "made_at", "commit", "dirty", "key")
        row |= {"sha256": sealed["notebook_sha256"], "parameters": sealed["inputs"]["parameters"]}
        row |= {"executed": f"{name}/{name}.ipynb", "page": f"{name}/{name}.html", **{key: sealed[key] for key in kept}}
    return row


def _figures(name: str, asked: Plan) -> list[dict[str, Any]]:
    sealed = stamp.read(asked.out / name)
    if not sealed:
        return []
    return [_figure(figure, name, sealed, asked) for figure in published(asked.out / name)]


def _figure(figure: Figure, notebook: str, sealed: Mapping[str, Any], asked: Plan) -> dict[str, Any]:
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "alt": figure.alt,
        "notebook": {
            "name": notebook,
            "path": asked.notebook(notebook).relative_to(asked.root).as_posix(),
            "sha256": sealed["notebook_sha256"],
        },
        "executed": f"{notebook}/{notebook}.ipynb",
        "page": f"{notebook}/{notebook}.html",
        "files": {f"{notebook}/{file}": sealed["files"].get(file) for file in figure.files},
        "data": figure.data and f"{notebook}/{figure.data}",
        "runs": [_run(run, sealed["inputs"]["parameters"], asked) for run in figure.runs],
        "parameters": sealed["inputs"]["parameters"],
        "seconds": sealed["seconds"],
        "made_at": sealed["made_at"],
        "made": figure.made,
        "table": figure.table,
    }


def _run(said: Mapping[str, Any], parameters: Mapping[str, Any], asked: Plan) -> dict[str, Any]:
    """A run as the figure names it. Its checkpoint is hashed again: `unchanged` says whether the file on disk is still
    the one the figure was made from, null where one of the two is not known."""
    path = said.get("path")
    # a run outside the repository may name itself as seen from the folder of runs
    folders = ["", *(str(parameters.get(name, "")) for name in ("runs", "others"))]
    places = [asked.root / folder / str(path) for folder in folders] if path else []
    now = next(filter(None, (_hashed(place / "model.safetensors") for place in places)), None)
    then = said.get("checkpoint_sha256")
    row = {key: said.get(key) for key in ("name", "arm", "seed", "schedule", "dataset", "model")}
    row["path"] = _reachable(Path(path), asked) if path else None
    return {**row, "checkpoint_sha256": then or now, "unchanged": now == then if now and then else None}


def _hashed(path: Path) -> str | None:
    """The hash of a checkpoint, read once and not for each figure as long as the file is the same."""
    if not path.is_file():
        return None
    found = path.stat()
    return _of_bytes(path, found.st_ino, found.st_size, found.st_mtime_ns)


@cache
def _of_bytes(path: Path, *_: int) -> str | None:
    return stamp.sha256(path)


def _reachable(path: Path, asked: Plan) -> str:
    if not path.is_absolute():
        return path.as_posix()
    seen = portable(path, asked.root)
    return portable(path, asked.out) if Path(seen).is_absolute() else seen


def _seed(chosen: sets.FigureSet) -> Any:
    seeds = [book.parameters.get("seed") for book in chosen.notebooks]
    return seeds[0] if all(seed == seeds[0] for seed in seeds) else seeds


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
