"""When a notebook's output is current: everything it was made from is unchanged, and so is every file it left."""

import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CODE = (
    "gradlens/**/*.py", "training/**/*.py", "figures/build.py", "figures/execute.py", "figures/pictures.py",
    "figures/reading.py",
)  # fmt: skip
UNFINISHED = ".unfinished"  # the end of the name of a file that is being written
FOLDERS = ("runs", "others")  # parameters that name folders of runs
RUN = ("model.safetensors", "run.json", "history.jsonl")
PACKAGES = (
    "torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "seaborn", "papermill", "loss-landscapes",
    "pyhessian", "gradlens",
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """What a notebook's output depends on; all values are hashes or plain JSON, none is a path of this machine."""

    notebook: str
    parameters: Mapping[str, Any]
    code: str
    runs: Mapping[str, Mapping[str, str | None]]  # run -> file -> hash, None where the run has no such file
    versions: Mapping[str, str | None]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()

    @property
    def measured(self) -> str:
        """The key of what is measured: a notebook that draws it otherwise may take it over."""
        return dataclasses.replace(self, notebook="").key


def inputs(notebook: Path, parameters: Mapping[str, Any], root: Path) -> Inputs:
    """Read what the output of a notebook would depend on, were it made now."""
    return Inputs(
        notebook=_source(notebook),
        parameters=dict(parameters),
        code=_code(root),
        runs={
            **_read(parameters, "runs", root),
            **{f"others/{k}": v for k, v in _read(parameters, "others", root).items()},
        },
        versions=versions(),
    )


def _read(parameters: Mapping[str, Any], name: str, root: Path) -> dict[str, dict[str, str | None]]:
    folder = parameters.get(name)
    return runs(root / folder) if isinstance(folder, str) and folder else {}


def runs(folder: Path) -> dict[str, dict[str, str | None]]:
    """The hashes of each trained run of a folder; what notebooks add to a run later does not count."""
    trained = sorted(path.parent for path in folder.glob("*/model.safetensors"))
    return {run.name: {name: sha256(run / name) for name in RUN} for run in trained}


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that the numbers and the pictures depend on."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def write(folder: Path, made_from: Inputs, record: Mapping[str, Any]) -> None:
    """Seal an output folder: its files as they are now, what they were made from, and whatever else is to be kept."""
    files = {path.name: sha256(path) for path in _files(folder)}
    stamp = json.loads(
        json.dumps({"key": made_from.key, **record, "files": files, "inputs": vars(made_from)}, default=str)
    )
    replace(folder / "stamp.json", json.dumps({**stamp, "sha256": seal(stamp)}, indent=1))


def read(folder: Path) -> dict[str, Any] | None:
    """The stamp of an output folder, None where there is none that can be read."""
    try:
        stamp = json.loads((folder / "stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(stamp, dict) or not {"key", "files", "inputs"} <= stamp.keys():
        return None
    return stamp if stamp.pop("sha256", None) == seal(stamp) else None


def seal(record: Mapping[str, Any]) -> str:
    """The hash of a record of plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def stale(folder: Path, wanted: Inputs) -> str | None:
    """Why an output folder has to be made again, None where it is current."""
    stamp = read(folder)
    if stamp is None:
        return "not built yet"
    if stamp["key"] != wanted.key:
        now = json.loads(json.dumps(vars(wanted)))
        return " and ".join(part for part in now if now[part] != stamp["inputs"].get(part)) + " changed"
    for name, hashed in stamp["files"].items():
        if sha256(folder / name) != hashed:
            return f"{name} was changed or lost"
    return None


def title(notebook: Path) -> str:
    """The first heading of a notebook, else its file's name."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        heading = re.search(r"^#\s+(.+)$", "".join(cell["source"]), re.MULTILINE)
        if cell["cell_type"] == "markdown" and heading:
            return heading[1].strip()
    return notebook.stem.replace("_", " ")


def sha256(path: Path) -> str | None:
    """The hash of a file's bytes, None where there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader, or a power cut, sees the old text or the new one and nothing between.

    OSError, naming the file, where it cannot be written, as on a full disk; the old text stays.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            left = memoryview(text.encode())
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private, and a gallery is there to be shown
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            os.unlink(temporary)
        if isinstance(error, OSError):
            reason = f"{error.strerror}; not written, and what stood there before stays"
            raise OSError(error.errno, reason, str(path)) from error
        raise


def _source(notebook: Path) -> str:
    """The hash of what a notebook says, without outputs, counts and the marks that editors leave."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    said = [[c["cell_type"], "".join(c["source"]), c.get("metadata", {}).get("tags", [])] for c in cells]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _code(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CODE for path in root.glob(pattern)}):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256(path)}\0".encode())
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != "stamp.json")
