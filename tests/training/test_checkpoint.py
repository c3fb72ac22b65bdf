"""Runs on disk: refused by name where damaged or missing."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from gradlens import Ball, losses, pgd
from training import checkpoint
from training.checkpoint import Run, histories, load, load_all
from training.config import Config
from training.data import Data, subset
from training.evaluate import evaluate
from training.fit import fit

TINY = Config(schedule="sl:1", batch=32, attack_steps=2)


@pytest.fixture
def run(tiny: Data, tmp_path: Path) -> Run:
    return fit(TINY, tmp_path / "runs" / "sl", quiet=True)


@pytest.mark.parametrize("place", [0, 40, -1])
def test_damaged_weights_are_refused_by_name(place, run):
    path = run.path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run 'sl': model.safetensors is damaged"):
        load(run.path).model()


def test_missing_weights_are_refused_by_name(run):
    (run.path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"run 'sl': model.safetensors is missing"):
        load(run.path).model()


@pytest.mark.parametrize(
    "content", ["", '{"config"', "{}", "[]", '{"config": {"modle": "cnn6"}}'], ids=lambda text: text or "empty"
)
def test_a_damaged_record_is_refused_by_name(content, run):
    (run.path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run '.*sl': run.json is damaged or of another version"):
        load(run.path)


def test_a_missing_or_unfinished_run_is_named_with_the_command_that_makes_one(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=rf"run '{path}' holds no run.json.*python -m training fit --out {path}"):
            load(path)


def test_a_folder_without_runs_is_named_with_the_command_that_makes_some(tmp_path):
    with pytest.raises(
        ValueError, match=rf"runs '{tmp_path}' holds no finished run.*training sweep .*--out {tmp_path}"
    ):
        load_all(tmp_path)
    hybrid = tmp_path / "digits-hybrid"
    hybrid.mkdir()
    with pytest.raises(ValueError, match=rf"sweep training/sweeps/digits-hybrid.toml --out {hybrid}"):
        load_all(hybrid)


def test_weights_are_read_back_to_the_bit_and_in_evaluation_mode(run, tiny):
    model, other = run.model(), checkpoint.build(run.config, tiny)
    assert not model.training
    assert set(model.state_dict()) == set(other.state_dict())
    again = load(run.path).model().state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again[name]), name


def test_runs_come_in_the_order_of_arms_and_seeds(tiny, tmp_path):
    for name, schedule, seed in (("a", "rl:1", 0), ("b", "sl:1", 1), ("c", "sl-adv:1", 0), ("d", "sl:1", 0)):
        fit(dataclasses.replace(TINY, schedule=schedule, seed=seed), tmp_path / name, quiet=True)
    fit(dataclasses.replace(TINY, schedule="sl:1", called="another"), tmp_path / "0", quiet=True)
    named = [run.path.name for run in load_all(tmp_path)]
    assert named == ["d", "b", "0", "a", "c"]  # one called otherwise stands behind its kind
    (tmp_path / "0" / "run.json").unlink()
    runs = load_all(tmp_path)
    assert [(run.arm, run.config.seed) for run in runs] == [("SL", 0), ("SL", 1), ("RL", 0), ("SL-adv", 0)]
    assert [run.path.name for run in load_all(tmp_path, "RL|SL ")] == ["d", "b", "a"]
    fit(dataclasses.replace(TINY, schedule="sl:1", batch=16), tmp_path / "e", quiet=True)
    with pytest.raises(ValueError, match=r"runs 'd' and 'e' in .* are both SL with seed 0, expected one"):
        load_all(tmp_path)
    assert [run.name for run in load_all(tmp_path, "RL")] == ["a"]
    with pytest.raises(ValueError, match=r"only names 'rl', expected arms of \['RL', 'SL', 'SL-adv'\]"):
        load_all(tmp_path, "SL | rl")
    table = histories(runs)
    assert table[["run", "arm", "seed", "phase", "epoch"]].to_numpy().tolist() == [
        ["d", "SL", 0, "sl", 1],
        ["b", "SL", 1, "sl", 1],
        ["a", "RL", 0, "rl", 1],
        ["c", "SL-adv", 0, "sl-adv", 1],
    ]


def test_a_reference_names_the_run_its_config_and_the_hash_of_its_weights(run):
    reference = run.reference()
    record = json.loads((run.path / "run.json").read_text())
    assert reference["checkpoint_sha256"] == record["checkpoint_sha256"]
    assert (reference["name"], reference["arm"], reference["seed"]) == ("sl", "SL", 0)


@pytest.mark.parametrize("samples", [None, 15])
def test_evaluation_counts_images_that_no_visited_point_fools(samples, run, tiny):
    model = run.model()
    x, y = subset(tiny.test, samples or 40, seed=4)
    clean, *attacked = evaluate(run, samples=samples, seed=4, steps=3)
    assert (clean.right, clean.samples) == (int((model(x).argmax(1) == y).sum()), samples or 40)
    for row, loss in zip(attacked, (losses.cross_entropy, losses.margin), strict=True):
        survivors = 0
        for image, label in zip(x, y, strict=True):
            visited = [pgd(model, image[None], label[None], Ball(0.1), steps=3, loss=loss).margin]
            survivors += bool((torch.cat(visited) <= 0).all())
        assert row.right == survivors
        assert row.value == survivors / len(y)
        assert row.interval[0] <= row.value <= row.interval[1]
        assert f"({survivors} of {len(y)})" in str(row)


def test_an_image_that_was_fooled_on_the_way_counts_as_wrong_even_if_the_last_point_does_not(run, monkeypatch):
    """Silent successes by hand: three of ten images are fooled at point 1 alone, one more at the end."""

    def silent(*args, **options):
        trace = pgd(*args, **options)
        margin = torch.full_like(trace.margin, -1.0)
        margin[1, :3], margin[-1, 3] = 1.0, 1.0
        labels = torch.zeros_like(trace.labels)
        return dataclasses.replace(trace, margin=margin, labels=labels, predicted=(margin > 0).long())

    monkeypatch.setattr("training.evaluate.pgd", silent)
    assert [row.right for row in evaluate(run, samples=10, steps=3)[1:]] == [6, 6]


@pytest.mark.parametrize("samples", [0, -3])
def test_a_number_of_samples_below_one_is_refused(samples, run):
    with pytest.raises(ValueError, match=f"samples is {samples}, expected at least 1"):
        evaluate(run, samples=samples)
