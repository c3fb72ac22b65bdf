"""python -m training evaluate: suites, transfer between architectures, and files that no other call overwrites."""

import gzip
from pathlib import Path

import pandas as pd
import pytest
import torch

import gradlens
from gradlens import Ball, losses
from gradlens.robustness.transfer import ENSEMBLE
from training.__main__ import main
from training.checkpoint import Run, load
from training.config import Config
from training.data import Data
from training.evaluate import robust, transferred
from training.fit import fit

SMALL = {"batch": 32, "attack_steps": 1}


@pytest.fixture
def runs(tiny: Data, tmp_path: Path) -> list[Run]:
    """Two architectures, three epochs each."""
    configs = {"small": Config(schedule="sl:3", **SMALL), "wide": Config(schedule="sl:3", model="wrn_10_1", **SMALL)}
    return [fit(config, tmp_path / name, quiet=True) for name, config in configs.items()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_points_go_from_one_architecture_to_another_and_the_table_is_what_one_counts(runs, tiny, tmp_path, capsys):
    assert main(["evaluate", *(str(run.path) for run in runs), "--transfer", "--steps", "3"]) == 0
    said = capsys.readouterr().out
    (path,) = tmp_path.glob("transfer-last-40-s0-*.safetensors")
    assert said.splitlines()[-1] == str(path)
    result = gradlens.load(path)
    assert result.targets == ("small", "wide") and result.sources == ("small", "wide", ENSEMBLE)
    x, y = tiny.test.x, tiny.test.y
    small, wide = (run.model() for run in runs)
    points = gradlens.pgd(small, x, y, tiny.ball, steps=3, loss=losses.margin).best
    with torch.no_grad():
        right, fooled = wide(x).argmax(1) == y, wide(points).argmax(1) != y
    assert right.any()
    left = 1 - float((right & fooled).sum() / right.sum())
    assert float(result.accuracy[0, 1]) == pytest.approx(left)
    assert f"{100 * left:.1f}" in said.splitlines()[2]
    table = pd.read_csv(path.with_suffix(".csv"))
    row = table[(table["source"] == "small") & (table["target"] == "wide")].iloc[0]
    assert row["accuracy"] == pytest.approx(left) and row["samples"] == int(right.sum())


def test_a_matrix_is_overwritten_by_the_same_call_alone(runs, tmp_path):
    path = transferred(runs, samples=8, steps=1)[1]
    first = files(tmp_path)
    assert len(first) == 2
    for options in ({"steps": 2}, {"seed": 1}, {"samples": 9}):
        transferred(runs, **{"samples": 8, "steps": 1, **options})
    transferred(runs[::-1], samples=8, steps=1)
    assert {name: content for name, content in files(tmp_path).items() if name in first} == first
    assert len(files(tmp_path)) == 10
    assert transferred(runs, samples=8, steps=1)[1] == path
    assert len(files(tmp_path)) == 10


def test_runs_of_one_name_are_told_apart_by_their_folders_and_one_run_twice_is_refused(runs, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "wide").rename(tmp_path / "other" / "small")
    both = [runs[0], load(tmp_path / "other" / "small")]
    assert transferred(both, samples=8, steps=1)[0].targets == (f"{tmp_path.name}/small", "other/small")
    for chosen in ([runs[0]], [runs[0], both[1], runs[0]]):
        with pytest.raises(ValueError, match=r"runs are .*small, expected at least two with different names"):
            transferred(chosen, samples=8, steps=1)


def test_a_result_is_read_again_and_measured_anew_for_other_weights_or_images(runs, tiny, monkeypatch):
    calls: list[int] = []
    measure = gradlens.robustness

    def counted(*args: object, **options: object) -> gradlens.Robustness:
        calls.append(1)
        return measure(*args, **options)

    monkeypatch.setattr(gradlens, "robustness", counted)
    result, path = robust(runs[0], "quick", samples=6)
    again, same = robust(runs[0], "quick", samples=6)
    assert len(calls) == 1 and same == path and str(again) == str(result)
    assert not list(path.parent.glob("*.partial"))
    assert robust(runs[0], "quick", samples=7)[1] != path
    assert robust(runs[0], "quick", samples=6, seed=1)[1] != path
    assert len(calls) == 3
    gradlens.save(gradlens.robustness(runs[1].model(), result.images, result.labels, Ball(0.1), attacks="quick"), path)
    robust(runs[0], "quick", samples=6)
    assert len(calls) == 5  # what lay there was another model's
    path.write_bytes(gzip.compress(b"no result"))
    with pytest.raises(ValueError, match=r"robustness-quick-last-6-s0-.* is damaged or no gradlens result"):
        robust(runs[0], "quick", samples=6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attacks", "all"], "attacks is 'all', expected one of 'quick', 'standard', 'full', 'randomised'"),
        (["--transfer", "--attacks", "quick"], "attacks is given beside --transfer"),
        (["--attacks", "quick", "--samples", "0"], "samples is 0, expected at least 1"),
        (["--which", "best_clean", "--steps", "0"], "steps is 0, expected at least 1"),
        (["--transfer"], "runs are small, expected at least two with different names for --transfer"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_printed_or_written(words, message, runs, capsys, tmp_path):
    before = files(tmp_path), files(runs[0].path)
    capsys.readouterr()
    assert main(["evaluate", str(runs[0].path), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert (files(tmp_path), files(runs[0].path)) == before
