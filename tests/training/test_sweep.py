"""Sweeps: the grid of a file, and runs that do not depend on how many are made at a time."""

from pathlib import Path

import pytest

from training.config import Config
from training.fit import fit
from training.schedule import ARMS
from training.sweep import grid, sweep, table

FILE = """
dataset = ["digits"]
schedule = ["sl:1", "rl:1"]
seed = [0]
[config]
batch = 512
attack_steps = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(FILE)
    return path


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_a_grid_is_every_combination_under_its_own_name(tmp_path):
    path = write(
        tmp_path, 'schedule = ["sl:1", "sl:2,rl-adv:3"]\nseed = [0, 7]\nmodel = ["cnn6"]\n[config]\nlr = 0.5\n'
    )
    assert grid(path) == {
        "digits-cnn6-sl-1-s0": Config(model="cnn6", schedule="sl:1", seed=0, lr=0.5),
        "digits-cnn6-sl-1-s7": Config(model="cnn6", schedule="sl:1", seed=7, lr=0.5),
        "digits-cnn6-sl-2+rl-adv-3-s0": Config(model="cnn6", schedule="sl:2,rl-adv:3", seed=0, lr=0.5),
        "digits-cnn6-sl-2+rl-adv-3-s7": Config(model="cnn6", schedule="sl:2,rl-adv:3", seed=7, lr=0.5),
    }


def test_every_sweep_of_the_project_is_a_grid():
    assert all(grid(path) for path in Path("training/sweeps").glob("*.toml"))


@pytest.mark.parametrize("name", ["digits", "smoke", "fashion-mnist"])
def test_the_sweeps_of_figure_sets_hold_all_four_arms(name):
    path = Path(f"training/sweeps/{name}.toml")
    arms = [config.schedule.partition(":")[0] for config in grid(path).values()]
    assert set(arms) == {*ARMS, "exact"}  # and the control
    assert len({arms.count(arm) for arm in arms}) == 1
    assert len({config.schedule.partition(":")[2] for config in grid(path).values()}) == 1  # matched epochs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('scheduel = ["sl:1"]', r"sweep '.*sweep.toml' has scheduel, expected lists dataset, model, schedule, seed"),
        ("[config]\nlearning_rate = 1.0", r"has learning_rate, expected lists .*table \[config\] of .*lr"),
        ("[config]\nseed = 1", r"has seed, expected lists .* and a table \[config\]"),
        ('dataset = ["digist"]', r"dataset is 'digist', expected one of digits.*did you mean 'digits'"),
        ('schedule = ["sl"]', r"schedule 'sl' has 'sl', expected objective:epochs"),
        ('model = ["cnn7"]', r"model is 'cnn7', expected cnn_small, cnn6 or .*did you mean 'cnn6'"),
        ("seed = 3", r"sweep '.*sweep.toml' has seed = 3, expected a list"),
        ("seed = [", r"sweep '.*sweep.toml' is no TOML"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        grid(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"sweep '.*nowhere.toml' is not a file, expected a TOML file"):
        grid(tmp_path / "nowhere.toml")


@pytest.mark.slow
def test_results_do_not_depend_on_how_many_runs_are_made_at_a_time(file, tmp_path):
    """Two at a time, and one after the other in this process, which has one thread as well."""
    runs = sweep(file, tmp_path / "two", 2)
    assert [run.name for run in runs] == ["digits-cnn_small-sl-1-s0", "digits-cnn_small-rl-1-s0"]
    for run in runs:
        alone = fit(run.config, tmp_path / "alone" / run.name, quiet=True)
        assert (alone.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*.*")}
    assert sweep(file, tmp_path / "two", 1) == runs
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*.*")} == before
    lines = table(runs).splitlines()
    assert len(lines) == 3
    for run, line in zip(runs, lines[1:], strict=True):
        assert line.split()[:2] == [run.name, f"{run.record['last']['clean']:.1%}"]
