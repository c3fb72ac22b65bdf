"""Nonsense for every public function ends in a result or an error that names an argument (tests/fuzz.py).

A few hundred examples by default; CI asks for 1,000 with GRADLENS_FUZZ=1000, `make test-faults` for 2,000; another seed
with GRADLENS_FUZZ_SEED.
"""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradlens as gl
from tests import fuzz as nonsense

ROOT = Path(__file__).parents[1]


def fuzz(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """In a process of its own, without the type checks that tests add."""
    script = f"import sys; from tests import fuzz\n{code}\nsys.exit(fuzz.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_nonsense_is_refused_by_name_and_changes_nothing():
    count = os.environ.get("GRADLENS_FUZZ", "300")
    done = fuzz("--examples", count, "--seed", os.environ.get("GRADLENS_FUZZ_SEED", "0"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{count} calls, 0 kinds of violation\n"


def test_every_public_function_is_called():
    public = {name for name in gl.__all__ if inspect.isfunction(getattr(gl, name))}
    # the reference package's own attacks take seconds a call; their door is that of `robustness`
    assert public - {*nonsense.TARGETS, *nonsense.OTHERS} == {"auto_attack"}


FAULTS = """
import torch, gradlens as gl
def faulty(model, x, y=None, ball=None):
    match fuzz.faults.pop():
        case "model":
            next(model.parameters()).data.add_(1)
        case "images":
            x.add_(1)
        case "nameless":
            raise ValueError("something is wrong")
        case "other":
            raise RuntimeError("x")
fuzz.faults = ["model", "images", "nameless", "other"]
fuzz.TARGETS["predict"] = faulty
def hunt(count, seed, names):
    wrong = {}
    while fuzz.faults:
        found = fuzz.violation("predict", {"model": "linear", "x": "four"})
        wrong[str(len(wrong))] = found or "nothing"
    return 4, wrong
fuzz.hunt = hunt
"""


def test_each_kind_of_violation_is_found():
    """The test above can fail."""
    done = fuzz(code=FAULTS)
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert [line.split(" ")[0] for line in said] == ["RuntimeError", "ValueError", "the", "the"]
    assert "without an argument" in said[1]
    assert said[2:] == ["the images are not as they were (a result)", "the model is not as it was (a result)"]
