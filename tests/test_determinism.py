"""The same seed on the same machine: the same bytes, in another process too."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gradlens as gl
from tests.analytic import smooth_cnn
from tests.test_numbers import ALL, LABELS

ROOT = Path(__file__).parents[1]
TIMED = ("robustness",)  # whose results hold the time that they took


def content(name: str, x: Tensor, path: Path) -> bytes:
    torch.manual_seed(5)
    result = ALL[name](smooth_cnn().float(), x, LABELS)
    if name in TIMED:
        result = dataclasses.replace(result, seconds=torch.zeros_like(result.seconds))
    return gl.save(result, path).read_bytes()


@pytest.mark.parametrize("name", [name for name in ALL if name != "masking"])  # of which tests/test_masking.py tells
def test_twice_the_same_bytes(name, tmp_path):
    x = torch.rand(5, 2, 5, 5)
    first = content(name, x, tmp_path / "first")
    torch.rand(7)  # other draws in between
    assert content(name, x, tmp_path / "second") == first
    assert content(name, 1 - x, tmp_path / "third") != first


SCRIPT = """
import sys, torch
from pathlib import Path
from tests import test_determinism as here
torch.manual_seed(0)
x = torch.rand(5, 2, 5, 5)
for name in ("stability", "square", "robustness", "weight_line", "spectrum of weights"):
    here.content(name, x, Path(sys.argv[1]) / name)
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / folder)], cwd=ROOT, check=True)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
