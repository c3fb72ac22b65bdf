"""A stranger's model, weights and images become a gallery, from the folder where they lie."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from torch import nn

from figures import manifest, own, sets
from figures.__main__ import ROOT, main
from tests.training.test_adopt import FACTORY


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What a stranger has."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "models.py").write_text(FACTORY)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    levels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=levels, y=np.arange(20) % 5)
    return tmp_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """This repository, without what it has trained and drawn."""
    made = tmp_path / "root"
    (made / "figures").mkdir(parents=True)
    for name in ("training", "gradlens", "notebooks", "figures/sets"):
        (made / name).symlink_to(ROOT / name)
    return made


WORDS = ["--model", "my.models:make", "--weights", "w.safetensors", "--data", "x.npz", "--eps", "0.05"]


@pytest.mark.slow
def test_a_model_of_ones_own_is_drawn_and_is_then_current(home: Path, root: Path):
    code = "import sys, pathlib, figures.__main__ as m; sys.exit(m.main(sys.argv[2:], pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", code, str(root), "build", *WORDS, "--profile", "smoke", "--only", "explorer"]
    place = {**os.environ, "PYTHONPATH": str(ROOT), "GRADLENS_DATA": str(home / "data")}
    done = subprocess.run(command, cwd=home, env=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out = root / "figures" / "out" / "my-models-make-smoke"
    found = manifest.read(out)
    assert {figure["name"] for figure in found["figures"]} == {"closeup", "all_models"}
    (run,) = found["figures"][0]["runs"]
    weights = root / "runs" / "own" / "my-models-make" / "my-models-make" / "model.safetensors"
    assert (run["model"], run["schedule"]) == ("my.models:make", None)
    assert run["unchanged"], weights
    assert found["reproduce"] == f"python -m figures build model {' '.join(WORDS)} --profile smoke"
    assert "eps 0.05" in found["figures"][0]["caption"]
    stamp = (out / "explorer" / "stamp.json").read_bytes()
    again = subprocess.run(command, cwd=home, env=place, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (out / "explorer" / "stamp.json").read_bytes() == stamp


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no set is named; there are: cifar10, cifar100, compare, digits, digits-claims, "),
        (["model"], "model is missing: a model of your own needs --model and --data"),
        (["--model", "my.models:make"], "data is missing"),
        (["--model", "my.models:make", "--data", "none.npz"], "none.npz', and there is no such file"),
        ([*WORDS, "--only", "explore"], "no notebook 'explore'; did you mean 'explorer'?"),
        ([*WORDS, "--profile", "smok"], "no profile 'smok'"),
    ],
)
def test_what_is_missing_is_said_before_a_kernel_starts(home, root, capsys, monkeypatch, words, said):
    monkeypatch.chdir(home)
    assert main(["build", *words], root=root) == 2
    assert said in capsys.readouterr().err
    assert not (root / "figures" / "out").exists()
    assert not (root / "runs").exists()


def test_a_set_may_name_a_model_with_the_options_of_the_command_line(house):
    house.edit_set("[parameters]", '[model]\nmodel = "a.b:c"\ndata = "x.npz"\neps = 1\nmean = [0.5]\n[parameters]')
    assert sets.load("tiny", house.root).model == {"model": "a.b:c", "data": "x.npz", "eps": 1, "mean": [0.5]}
    house.edit_set("eps = 1", 'eps = "1"')
    with pytest.raises(ValueError, match=r"eps is '1', expected a float \| int"):
        sets.load("tiny", house.root)
    house.edit_set('eps = "1"', "epsilon = 1")
    with pytest.raises(ValueError, match="unknown key 'epsilon'; did you mean 'eps'"):
        sets.load("tiny", house.root)
    assert set(own.OPTIONS) == set(own.Model.__dataclass_fields__)


def test_paths_and_factories_of_a_set_count_from_the_repository_those_of_a_command_line_from_here(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[list[str], str]] = []

    def run(command: list[str], *, env: dict[str, str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append((command, env["PYTHONPATH"].split(os.pathsep)[0]))
        return subprocess.CompletedProcess(command, 2, "", "error: that is enough")

    monkeypatch.setattr(own.subprocess, "run", run)
    said, here = {"model": "theirs:make", "weights": "w.pt", "data": "x.npz"}, tmp_path / "here"
    for given in ({}, {"data": "mine.npz", "eps": 0.5}, {"model": "mine:make"}):
        with pytest.raises(ValueError, match="that is enough"):
            own.adopt(said, given, root, here)
    (first, base), (second, _), (third, other) = seen
    assert first[6:] == ["--model", "theirs:make", "--weights", f"{root}/w.pt", "--data", f"{root}/x.npz"]
    assert second[10:] == ["--data", f"{here}/mine.npz", "--eps", "0.5"]
    assert third[7] == "mine:make"
    assert (base, other) == (str(root), str(here))


def test_the_set_for_ones_own_model_names_notebooks_that_one_model_fills():
    found = sets.load(own.SET, ROOT)
    assert {"training", "transfer"}.isdisjoint(book.name for book in found.notebooks)
    assert len(found.notebooks) >= 8
