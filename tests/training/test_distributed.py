"""Several processes under torchrun train as one does, on the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.processes import part

ROOT = Path(__file__).parents[2]
# without batch norm: torch has none on the CPU that sees more than its own process's images
SCRIPT = """
import json, os, sys
from pathlib import Path
from torch import nn
from training import models
from training.config import Config
from training.fit import fit

models.MODELS["plain"] = lambda classes, shape: nn.Sequential(
    nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, classes)
)
run = fit(Config(model="plain", **json.loads(sys.argv[2])), Path(sys.argv[1]), quiet=True)
Path(sys.argv[3], os.environ.get("RANK", "0")).write_text(str(run.record["processes"]))
"""


def train(folder: Path, processes: int, config: dict[str, object]) -> list[dict[str, float]]:
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    said = folder.with_suffix(".said")  # a file a process: lines of two processes on one pipe may mix
    said.mkdir()
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(folder), json.dumps(config), str(said)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.read_text() for path in said.iterdir()] == [str(processes)] * processes
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"schedule": "sl:2,rl-adv:1", "inner": "pg", "baseline": "mean", "clip": 1.0, "augment": "flip-translate"},
        {"schedule": "sl-adv:2", "inner": "kl", "coin": "sample", "ema": 0.9, "batch": 99},
    ],
)
def test_two_processes_give_the_curves_of_one(tmp_path: Path, config: dict[str, object]) -> None:
    one, two = (train(tmp_path / str(n), n, {"attack_steps": 2, **config}) for n in (1, 2))
    assert len(one) == len(two) > 1
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "reward", "entropy", "clean", "pgd", "lr"):
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), name
    assert {path.name for path in (tmp_path / "2").iterdir()} == {path.name for path in (tmp_path / "1").iterdir()}


@pytest.mark.parametrize(("batch", "world"), [(10, 1), (10, 3), (7, 2), (64, 8)])
def test_parts_are_the_whole_batch_in_order(batch: int, world: int) -> None:
    rows = [part(batch, rank=rank, world=world).rows for rank in range(world)]
    assert [i for each in rows for i in range(batch)[each]] == list(range(batch))
    sizes = [each.stop - each.start for each in rows]
    assert max(sizes) - min(sizes) <= 1
