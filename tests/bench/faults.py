"""What goes wrong, on purpose: python -m tests.bench.faults [--moments 20] [--examples 2000] [--seed 0]

One table over kills, files, locks, disks, numbers, memory, nonsense and pages: each fault, how often it was tried, how
often nothing was lost and nothing wrong came out. Damages of files count byte by byte, the rest test by test, call by
call or kill by kill. A fault that cannot be tried here, such as a full disk without the right to mount one, is said.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Row = Callable[[], tuple[int, int, list[str]]]  # tried, lost, what is to be said
# kind of fault: files, and a word that picks their tests, as for `pytest -k`
FAMILIES: dict[str, tuple[list[str], str]] = {
    "two at one place": (
        ["tests/test_lock.py", "tests/test_disk.py", "tests/training/test_run_files.py",
         "tests/figures/test_set_files.py"],
        "test_lock or in_use or killed_write or killed_process or by_one_process or outlives_a_kill",
    ),
    "damaged file": (
        ["tests/test_disk.py", "tests/test_store.py", "tests/training/test_run_files.py",
         "tests/training/test_adopt.py", "tests/figures/test_set_files.py"],
        "changed or damage or ends_early or truncated or no_weights or as_it_was_built",
    ),
    "pickle that acts": (["tests/test_disk.py"], "pickle"),
    "name that leads away": (
        ["tests/test_disk.py", "tests/training/test_run_files.py", "tests/training/test_adopt.py",
         "tests/figures/test_set_files.py"],
        "outside or leave or elsewhere or plain_one",
    ),
    "full disk": (
        ["tests/test_disk.py", "tests/training/test_run_files.py", "tests/figures/test_set_files.py"],
        "full_disk or fills_up",
    ),
    "odd numbers": (["tests/test_numbers.py"], "not does_not_fit"),
    "out of memory": (["tests/test_numbers.py", "tests/test_batches.py"], "does_not_fit"),
    "hostile text": (["tests/figures/test_hostile.py", "tests/test_display.py"], "hostile or manifest_says or script"),
    "open port": (
        ["tests/figures/test_hostile.py", "tests/notebooks/test_jupyterlab.py", "tests/training/test_cluster.py"],
        "make_lab or jupyterlab or listen or open_port",
    ),
    "other bytes": (["tests/test_determinism.py"], "bytes"),
}  # fmt: skip


OUTCOMES: Counter[str] = Counter()  # of the tests of one process, which has this file as a plugin
REASONS: list[str] = []


def pytest_runtest_logreport(report: Any) -> None:
    """A test is tried where its body ran; set-up that fails is a loss too."""
    if report.skipped:
        OUTCOMES["skipped"] += 1
        REASONS.append(str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr))
    elif report.failed:
        OUTCOMES["failed"] += 1
        REASONS.append(f"{report.nodeid}: {report.longreprtext[-600:]}")
    elif report.when == "call":
        OUTCOMES["passed"] += 1


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was counted goes where the table is made."""
    from tests import faults

    if said := os.environ.get("GRADLENS_TALLY"):
        Path(said).write_text(json.dumps({**OUTCOMES, "damages": faults.tried, "reasons": REASONS}))


def tests(files: list[str], word: str) -> tuple[int, int, list[str]]:
    """Faults tried, those of them lost, and what was said."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "tally.json"
        words = ["-q", "-p", "tests.bench.faults", "-p", "no:cacheprovider", "-k", word, *files]
        environment = {**os.environ, "GRADLENS_TALLY": str(path)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words], cwd=ROOT, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        found = json.loads(path.read_text()) if path.exists() else {}
    lost, ran = found.get("failed", 0), found.get("passed", 0) + found.get("failed", 0)
    if not ran and not found.get("skipped"):
        return 0, 1, [f"no test in {', '.join(files)} is called {word!r}", done.stdout[-600:], done.stderr[-600:]]
    # a test that damages one file in many ways counts each of them
    return ran + found.get("damages", 0), lost, found["reasons"]


def kills(name: str, moments: int, seed: int) -> tuple[int, int, list[str]]:
    """In a process of its own, which forks; without the type checks that tests add."""
    words = [sys.executable, "-m", "tests.bench.kills", name, "--moments", str(moments), "--seed", str(seed)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    tried = lost = moments
    for line in done.stdout.splitlines():
        if line.startswith(name):
            tried, _, lost = map(int, line.split()[-4:-1])
    return tried, lost, done.stderr.splitlines()[-20:] if lost else []


def growth(
    names: tuple[str, ...] = ("entropy", "pgd by steps", "weight plane by points"),
) -> tuple[int, int, list[str]]:
    """Measurements of four sizes each, those of them whose working memory grew with the size."""
    words = [sys.executable, "-m", "tests.bench.scaling", *names, "--memory"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = done.stdout.splitlines()[1:]
    grown = [row for row in rows if row.endswith("memory grows")]
    return len(names), len(grown) + len(names) - len(rows), grown + done.stderr.splitlines()[-20:]


def nonsense(examples: int, seed: int) -> tuple[int, int, list[str]]:
    """Calls, kinds of violation."""
    words = [sys.executable, "-m", "tests.fuzz", "--examples", str(examples), "--seed", str(seed)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return examples, len(done.stderr.splitlines()) if done.returncode else 0, done.stderr.splitlines()


def main(words: list[str] | None = None) -> int:
    """Print the table; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    from tests.bench.kills import WORKS

    # the longest first: the short ones fill up what is left of either core
    longest = sorted(WORKS, key=lambda name: name not in ("figures build", "sweep"))
    rows: dict[str, Row] = {
        f"kill -9 in {name}": lambda name=name: kills(name, given.moments, given.seed) for name in longest
    }
    rows["growing memory"] = growth
    rows |= {name: lambda files=files, word=word: tests(files, word) for name, (files, word) in FAMILIES.items()}
    rows["nonsense"] = lambda: nonsense(given.examples, given.seed)
    print(f"{'fault':<24} {'tried':>6} {'survived':>9} {'lost':>5} {'seconds':>8}")
    total, begun = 0, time.monotonic()
    with ThreadPoolExecutor(2) as pool:  # each row works in processes of its own
        for name, (tried, lost, said, seconds) in zip(rows, pool.map(timed, rows.values()), strict=True):
            total += lost
            print(f"{name:<24} {tried:>6} {tried - lost:>9} {lost:>5} {seconds:>8.1f}", flush=True)
            for line in said:
                print(f"  {line}", file=sys.stderr, flush=True)
    print(f"{'all, two at a time':<24} {'':>6} {'':>9} {total:>5} {time.monotonic() - begun:>8.1f}")
    return int(total > 0)


def timed(run: Row) -> tuple[int, int, list[str], float]:
    """A row and its seconds."""
    begun = time.monotonic()
    return *run(), time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
