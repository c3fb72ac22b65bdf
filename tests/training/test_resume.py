"""A run that was stopped, by an exception or by kill -9, ends as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from training import checkpoint, loop, models, resume
from training import fit as fitting
from training.config import Config
from training.fit import fit
from training.journal import Journal

ROOT = Path(__file__).parents[2]
EVERYTHING = {
    "schedule": "rl:1,sl>rl-adv:3",
    "batch": 256,
    "baseline": "mean",
    "ema": 0.9,
    "attack_steps": 2,
    "clip": 1.0,
    "augment": "flip-translate",
    "epsilon_curve": "linear",
    "keep_every": 2,
}


def dropout(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Random in training: a pass more or less shows."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(32, classes),
    )  # fmt: skip


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, channels_last: bool
) -> None:
    """Weights, average, optimiser, baseline, dropout, attacks, curves and the choice of the best: all as without.

    So they are where the weights of convolutions lie otherwise in memory than the file has them.
    """
    monkeypatch.setitem(models.MODELS, "dropout", dropout)
    model = "cnn_small" if channels_last else "dropout"
    config = Config(model=model, optimizer=optimizer, channels_last=channels_last, **EVERYTHING)
    whole = fit(config, tmp_path / "whole", quiet=True)
    original, calls = fitting.epoch, []

    def stops(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(fitting, "epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        fit(config, tmp_path / "cut", quiet=True)
    assert (tmp_path / "cut" / resume.NAME).is_file()
    assert not (tmp_path / "cut" / "run.json").exists()
    torch.manual_seed(99)  # another global state, as in another process
    cut = fit(config, tmp_path / "cut", quiet=True)
    assert len(calls) == 5  # two of the four epochs were left
    for name in checkpoint.FILES.values():
        assert (whole.path / name).read_bytes() == (cut.path / name).read_bytes()
    assert not (cut.path / resume.NAME).exists()
    assert [{**line, "seconds": 0} for line in whole.history] == [{**line, "seconds": 0} for line in cut.history]
    assert whole.record["best"] == cut.record["best"]
    assert list(whole.record["path"]) == [f"epochs/{number:04d}.safetensors" for number in (0, 2, 4)]
    assert whole.record["path"] == cut.record["path"]
    for name in whole.record["path"]:
        assert (whole.path / name).read_bytes() == (cut.path / name).read_bytes()


@pytest.mark.slow
def test_kill_9(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "fit", "--schedule", "rl-adv:4", "--batch", "128", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen([*command, str(cut)], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (cut / resume.NAME).is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # into the next epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (cut / "run.json").exists()
    for out in (cut, whole):
        subprocess.run([*command, str(out)], env=environment, cwd=ROOT, check=True, capture_output=True)
    for name in checkpoint.FILES.values():
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    history = checkpoint.load(cut).history
    assert [line["epoch"] for line in history] == list(range(1, 5))


def test_a_killed_runs_surplus_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3')
    journal = Journal(tmp_path, 1)
    journal.write({"epoch": 2})
    assert (tmp_path / "history.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def unfinished(folder: Path, **options: object) -> Config:
    """A folder with the state after one of three epochs."""
    config = Config(schedule="sl:3", batch=512, **options)
    training = loop.start(config, loop.data.load("digits"))
    loop.epoch(training, 0)
    resume.save(folder, training.trainee, config, resume.Progress(epoch=1))
    return config


def test_another_config_does_not_go_on_from_it(tmp_path: Path) -> None:
    unfinished(tmp_path)
    with pytest.raises(ValueError, match="holds an unfinished run of another config"):
        fit(Config(schedule="sl:3", batch=512, seed=1), tmp_path, quiet=True)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    config = unfinished(tmp_path)
    path = tmp_path / resume.NAME
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"resume\.safetensors is damaged"):
        fit(config, tmp_path, quiet=True)


def test_the_state_holds_tensors_and_json_alone(tmp_path: Path) -> None:
    unfinished(tmp_path, ema=0.9)
    names = load_file(tmp_path / resume.NAME)
    kinds = {name.split(".")[0] for name in names}
    assert kinds == {"model", "average", "optimizer", "agent"}
    assert {"optimizer.0.exp_avg", "optimizer.0.exp_avg_sq", "optimizer.0.step"} <= names.keys()
