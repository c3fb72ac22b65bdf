"""python -m training"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.__main__ import main
from training.checkpoint import load

ROOT = Path(__file__).parents[2]


def training(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training", *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_run_is_trained_and_evaluated_from_the_command_line(tmp_path):
    out = tmp_path / "sl"
    done = training("fit", "--dataset", "digits", "--schedule", "sl:1", "--batch", "256", "--out", out)
    assert done.returncode == 0, done.stderr
    run = load(out)
    assert run.config.batch == 256
    (line,) = done.stdout.splitlines()
    assert f"clean {run.record['last']['clean']:.1%}" in line
    for words, reason in (
        (["--attacks", "all"], "attacks is 'all', expected one of 'quick', 'standard'"),
        (["--transfer", "--attacks", "quick"], "attacks is given beside --transfer"),
    ):
        done = training("evaluate", out, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert reason in done.stderr
    done = training("evaluate", out, "--samples", "20", "--steps", "2")
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.startswith("sl (last): SL on digits, linf eps 0.1")
    assert [row.split("  ")[1].strip() for row in rows] == ["clean", "PGD-2 CE", "PGD-2 margin"]
    assert all("of 20)" in row for row in rows)


@pytest.mark.slow
def test_a_bad_schedule_is_one_line_on_stderr_and_exit_code_two(tmp_path):
    done = training("fit", "--schedule", "sl-avd:3", "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: schedule 'sl-avd:3' has objective 'sl-avd', expected one of sl, rl, sl-adv, rl-adv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evaluate", "nowhere"], "run 'nowhere' holds no run.json"),
        (["sweep", "nowhere.toml", "--out", "runs/x"], "sweep 'nowhere.toml' is not a file"),
        (["fit", "--dataset", "digist", "--out", "runs/x"], "dataset is 'digist'"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_two(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []
