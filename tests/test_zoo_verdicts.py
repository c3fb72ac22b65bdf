"""Every model of the zoo is called rightly, for the right reason; over more seeds: python -m tests.bench.zoo."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor, nn

from gradlens.masking.evidence import LARGE
from tests.bench.zoo import judged
from tests.zoo import first

pytestmark = pytest.mark.slow
SAMPLES = 96
ROOT = Path(__file__).parents[1]


def test_every_model_of_the_zoo_is_called_rightly():
    """In a process of its own, without the tests' type checks, which would take as long again."""
    words = ["-m", "tests.bench.zoo", "--seeds", "0", "--samples", str(SAMPLES)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("0 called wrongly\n"), done.stdout + done.stderr
    assert done.returncode == 0
    assert len(re.findall("^(honest|masked)", done.stdout, re.MULTILINE)) >= 25


class Times(nn.Module):
    """Logits multiplied by a factor."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)


def test_multiplied_logits_leave_the_best_accuracy_and_make_no_honest_model_masked():
    case = first(0)
    plain = judged(case, 0, SAMPLES)
    assert plain.verdict == "usable"
    moved = 0
    for factor in (0.1, 10.0):
        scaled = judged(dataclasses.replace(case, model=Times(case.model, factor)), 0, SAMPLES)
        assert scaled.best_accuracy == pytest.approx(plain.best_accuracy, abs=0.01)
        assert scaled.verdict != "masked"
        if scaled.gap[1] > LARGE:  # where plain PGD is misled, the row of the loss says so
            moved += 1
            assert scaled.verdict == "suspect"
            assert scaled.row("another loss gains").fired
            assert scaled.layers[0] in ("the loss misleads", "the loss saturates")
    assert moved
