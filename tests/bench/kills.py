"""kill -9 at random moments: python -m tests.bench.kills [--moments 20] [--seed 0] [NAME ...]

Each piece of work is done once without a fault, then again and again in a process that is killed at a moment drawn
evenly from the time that it takes. After the kill every file is whole; the same call then ends with the same content,
to the bit, as the one that was never killed, and leaves nothing else behind.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import gradlens
from gradlens import Ball
from training import data
from training.config import Config
from training.data import Split
from training.engines import Engine
from training.fit import fit
from training.sweep import sweep

MINUTES = 5  # that a piece of work may take before it counts as lost
TIMES = {"seconds", "made_at", "built_at", "stages", "history_sha256", "sha256"}  # what differs from run to run
SWEEP = 'schedule = ["sl:1", "rl:1"]\n[config]\nbatch = 128\n'


@dataclasses.dataclass(frozen=True)
class Work:
    """A call that writes into a folder, and what of the folder must be the same whatever happened on the way."""

    call: Callable[[Path], Any]
    content: Callable[[Path], Any]
    out: str = "."  # where in the folder it writes


def trained(folder: Path) -> None:
    whole = data.digits()
    cut = {name: Split(*getattr(whole, name).at(torch.arange(96))) for name in ("train", "validation", "test")}
    data.DATASETS["digits"] = lambda: dataclasses.replace(whole, **cut)
    fit(Config(schedule="rl:2,sl-adv:4", batch=32, ema=0.9, keep_every=2), folder / "run", quiet=True)


def swept(folder: Path) -> None:
    (folder / "sweep.toml").write_text(SWEEP)
    sweep(folder / "sweep.toml", folder / "runs", Engine(jobs=2))


def subject() -> tuple[nn.Module, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.rand(48, 1, 6, 6, generator=stream)
    return model, x, model.eval()(x).argmax(1)


def broken(folder: Path) -> None:
    model, x, y = subject()
    found = gradlens.robustness(model, x, y, Ball(0.05), attacks="quick", batch=6, resume=folder / "resume")
    gradlens.save(found, folder / "robustness.safetensors")


def surveyed(folder: Path) -> None:
    from gradlens.landscape import ledger

    ledger.SECONDS = 0.0  # a write after each cell: kills within writes
    model, x, y = subject()
    found = gradlens.weight_plane(
        model, x, y, Ball(0.05), points=9, metrics=("loss", "attacked"), steps=3, resume=folder / "resume",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    gradlens.save(found, folder / "plane.safetensors")


def drawn(folder: Path) -> None:
    from figures.__main__ import main
    from tests.figures.conftest import House, furnish

    house = House(folder)
    if not (folder / "notebooks").exists():
        furnish(house)
    if main(["build", "tiny"], root=folder):
        raise RuntimeError("the build failed")


def run_content(folder: Path) -> Any:
    """All files by name: weights by their hash, records without their times."""
    return {path.relative_to(folder).as_posix(): said(path) for path in files(folder)}


def result_content(folder: Path) -> Any:
    """The result's fields, but not the time that it took, and the names of all files."""
    names = [path.relative_to(folder).as_posix() for path in files(folder)]
    (result,) = (gradlens.load(folder / name) for name in names if name.endswith(".safetensors"))
    fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "seconds"}
    return names, {name: plain(value) for name, value in fields.items()}


def figure_content(folder: Path) -> Any:
    out = folder / "figures" / "out" / "tiny"
    kept = [path for path in files(out) if path.suffix not in (".ipynb", ".html")]
    return [p.relative_to(out).as_posix() for p in files(out)], {p.relative_to(out).as_posix(): said(p) for p in kept}


WORKS = {
    "fit": Work(trained, run_content),
    "sweep": Work(swept, run_content),
    "robustness": Work(broken, result_content),
    "weight plane": Work(surveyed, result_content),
    "figures build": Work(drawn, figure_content, "figures/out"),
}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def plain(value: Any) -> Any:
    """A value that can be compared: tensors as their bytes, with their type and shape.

    Without times, and without hashes of files that hold times.
    """
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {
            key: plain(one)
            for key, one in value.items()
            if key not in TIMES and not key.endswith((".ipynb", ".html", ".json"))
        }
    return value


def said(path: Path) -> Any:
    """The content of a file, without times; raises where it is not whole."""
    content = path.read_bytes()
    match path.suffix:
        case ".safetensors":
            with safe_open(path, framework="pt") as file:
                list(file.keys())
        case ".json" | ".ipynb":
            return plain(json.loads(content))
        case ".jsonl":
            return [plain(json.loads(line)) for line in content.decode().splitlines()]
        case ".html" if not content.rstrip().endswith(b"</html>"):
            raise ValueError(f"{path} is not whole")
    return hashlib.sha256(content).hexdigest()


def begin(work: Work, folder: Path, log: Path) -> int:
    """The id of a process that does the work: a fork, so that no time goes into imports."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        work.call(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end(child: int, log: Path) -> None:
    """Wait for a process that has to end well."""
    limit = time.monotonic() + 60 * MINUTES
    while time.monotonic() < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise AssertionError(f"it ended with {status}: {log.read_text()[-3000:]}")
            return
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError(f"not finished after {MINUTES} minutes: {log.read_text()[-3000:]}")


def survive(work: Work, moments: int, seed: int, place: Path) -> tuple[int, list[str]]:
    """How many kills came before the end, and what went wrong. One that came too late is drawn again,
    from less time."""
    draw, log, wrong, hits = random.Random(seed), place / "log", [], 0
    folder = place / "work"  # always the same, since some files name it
    folder.mkdir()
    begun = time.monotonic()
    end(begin(work, folder, log), log)
    took, expected = time.monotonic() - begun, work.content(folder)
    for _ in range(3 * moments):
        if hits == moments:
            break
        shutil.rmtree(folder)
        folder.mkdir()
        moment = draw.uniform(0, took)
        try:
            child = begin(work, folder, log)
            time.sleep(moment)
            os.kill(child, 9)
            _, status = os.waitpid(child, 0)
            hits += os.WIFSIGNALED(status)
            if not os.WIFSIGNALED(status):  # it takes less than it seemed: the first time is the slowest
                took = moment
            for path in files(folder / work.out):
                if not path.name.endswith((".unfinished", ".lock")) and ".partial" not in str(path):
                    said(path)
            end(begin(work, folder, log), log)
            if (found := work.content(folder)) != expected:
                raise AssertionError(f"ended otherwise: {difference(found, expected)}")
        except (AssertionError, ValueError, OSError, SafetensorError) as error:
            wrong.append(f"killed after {moment:.3f} of {took:.3f} s: {error}")
    return hits, wrong


def difference(found: Any, expected: Any) -> str:
    """Where two contents differ first, roughly."""
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        return next(f"{k}: {difference(found[k], expected[k])}" for k in found if found[k] != expected[k])
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple) and len(found) == len(expected):
        return next(difference(a, b) for a, b in zip(found, expected, strict=True) if a != b)
    return f"{str(found)[:300]} instead of {str(expected)[:300]}"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WORKS))
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    print(f"{'kill -9 in':<16} {'killed':>6} {'survived':>9} {'lost':>5} {'seconds':>8}")
    lost = 0
    for name in given.names or WORKS:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            hits, wrong = survive(WORKS[name], given.moments, given.seed, Path(place))
        lost += len(wrong)
        seconds = time.monotonic() - begun
        print(
            f"{name:<16} {hits:>6} {hits - len(wrong):>9} {len(wrong):>5} {seconds:>8.1f}",
            flush=True,
        )
        for line in wrong:
            print(f"  {line}", file=sys.stderr, flush=True)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
