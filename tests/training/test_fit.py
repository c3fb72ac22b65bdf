"""The training loop: what decides a run, what is the same in all arms, what stops it."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from training import checkpoint, data
from training.config import Config
from training.data import Data
from training.evaluate import evaluate
from training.fit import fit
from training.schedule import ARMS

TINY = Config(schedule="sl:1", batch=32, attack_steps=2)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("arm", ARMS)
def test_the_same_config_gives_the_same_weights_to_the_byte_and_another_seed_others(arm, tiny, tmp_path):
    config = dataclasses.replace(TINY, schedule=f"{arm}:2")
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.rand(7)  # whatever was drawn before
        fit(dataclasses.replace(config, seed=seed), tmp_path / name, quiet=True)
    assert weights(tmp_path / "first") == weights(tmp_path / "again")
    assert weights(tmp_path / "first") != weights(tmp_path / "other")


def test_arms_differ_in_their_weights(tiny, tmp_path):
    contents = set()
    for arm in ARMS:
        fit(dataclasses.replace(TINY, schedule=f"{arm}:1"), tmp_path / arm, quiet=True)
        contents.add(weights(tmp_path / arm))
    assert len(contents) == 4


@pytest.mark.parametrize("inner", ["ce", "pg"])
def test_all_arms_see_the_same_batches_from_the_same_first_weights(inner, tiny, tmp_path, monkeypatch):
    orders: dict[str, list[list[int]]] = {}
    starts: set[bytes] = set()
    batches, build = data.batches, checkpoint.build

    def watched_batches(*args):
        parts = batches(*args)
        orders[arm].extend(part.tolist() for part in parts)
        return parts

    def watched_build(*args):
        model = build(*args)
        starts.add(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes())
        return model

    monkeypatch.setattr(data, "batches", watched_batches)
    monkeypatch.setattr(checkpoint, "build", watched_build)
    for arm in ARMS:
        orders[arm] = []
        fit(dataclasses.replace(TINY, schedule=f"{arm}:2", inner=inner), tmp_path / arm, quiet=True)
    first, second = orders["sl"][-6:-3], orders["sl"][-3:]
    assert first != second  # two epochs
    assert sorted(i for part in first for i in part) == sorted(i for part in second for i in part)
    assert all(orders[arm] == orders["sl"] for arm in ARMS)
    assert len(starts) == 1


@pytest.mark.parametrize("curve", ["cosine", "constant"])
def test_the_learning_rate_follows_its_curve_over_the_whole_run(curve, tiny, tmp_path, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(dataclasses.replace(TINY, schedule="sl:1,rl:3", lr=0.01, lr_curve=curve), tmp_path / "run", quiet=True)
    steps = 4 * 3
    expected = [0.01 * (0.5 * (1 + math.cos(math.pi * i / steps)) if curve == "cosine" else 1) for i in range(steps)]
    assert rates == pytest.approx(expected)


def test_a_run_tells_each_epoch_and_how_it_was_made(tiny, tmp_path):
    config = dataclasses.replace(TINY, schedule="sl:1,rl-adv:2", seed=3)
    run = fit(config, tmp_path / "run", quiet=True)
    assert [record["epoch"] for record in run.history] == [1, 2, 3]
    assert [record["arm"] for record in run.history] == ["sl", "rl-adv", "rl-adv"]
    assert run.record["last"] == run.history[-1]
    assert run.record["config"] == dataclasses.asdict(config)
    assert run.arm == "SL, RL-adv"
    loaded = checkpoint.load(tmp_path / "run")
    assert loaded == run
    x, y = tiny.validation.x, tiny.validation.y
    accuracy = (loaded.model()(x).argmax(1) == y).double().mean().item()
    assert run.record["last"]["clean"] == pytest.approx(accuracy)
    assert run.record["last"]["pgd"] <= accuracy


def test_training_learns(tiny, tmp_path):
    """Ten passes over 96 images: far from chance on images that were not among them."""
    run = fit(dataclasses.replace(TINY, schedule="sl:10"), tmp_path / "run", quiet=True)
    losses = [record["loss"] for record in run.history]
    assert losses[-1] < 0.3 * losses[0]
    assert run.record["last"]["clean"] > 0.5


def test_the_first_loss_and_reward_are_those_of_the_first_weights(tiny, tmp_path, monkeypatch):
    """One batch holds all images: the record of epoch 1 is the untrained model's mean cross-entropy and mean p_y."""
    models: list[nn.Module] = []
    build = checkpoint.build
    monkeypatch.setattr(checkpoint, "build", lambda *args: models.append(build(*args)) or models[-1])
    first: list[Tensor] = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: first.append(torch.ones(())))
    run = fit(dataclasses.replace(TINY, batch=96), tmp_path / "run", quiet=True)
    assert len(first) == 1
    log_p = models[0].train()(tiny.train.x).detach().log_softmax(1)
    right = log_p.gather(1, tiny.train.y[:, None])
    assert run.history[0]["loss"] == pytest.approx(-right.mean().item(), rel=1e-5)
    assert run.history[0]["reward"] == pytest.approx(right.exp().mean().item(), rel=1e-5)
    assert run.history[0]["entropy"] == pytest.approx(-(log_p.exp() * log_p).sum(1).mean().item(), rel=1e-5)


def test_a_finished_run_is_returned_as_it_is(tiny, tmp_path, monkeypatch):
    first = fit(TINY, tmp_path / "run", quiet=True)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert set(before) == {
        "model.safetensors",
        "best_clean.safetensors",
        "best_pgd.safetensors",
        "run.json",
        "history.jsonl",
    }
    monkeypatch.setattr(checkpoint, "build", None)  # nothing is built anew
    assert fit(TINY, tmp_path / "run", quiet=True) == first
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_a_folder_that_holds_another_run_is_refused(tiny, tmp_path):
    fit(TINY, tmp_path / "run", quiet=True)
    content = weights(tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"out '.*run' holds a run of another config .*seed=0.*expected an empty folder"
    ):
        fit(dataclasses.replace(TINY, seed=1), tmp_path / "run", quiet=True)
    assert weights(tmp_path / "run") == content


def test_a_loss_that_is_no_longer_finite_stops_the_run_and_names_the_step(tiny, tmp_path, monkeypatch):
    """The weights are poisoned after the fourth step: the fifth, step 1 of the second epoch, sees NaN."""
    step, count = torch.optim.AdamW.step, []

    def poison(self, *args, **kwargs):
        step(self, *args, **kwargs)
        count.append(1)
        if len(count) == 4:
            with torch.no_grad():
                self.param_groups[0]["params"][-1].fill_(torch.nan)

    monkeypatch.setattr(torch.optim.AdamW, "step", poison)
    with pytest.raises(ValueError, match=r"loss is nan at step 1 after 1 epochs of 'sl:3'"):
        fit(dataclasses.replace(TINY, schedule="sl:3"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "digist"}, "dataset is 'digist'.*did you mean 'digits'"),
        ({"model": "cnn_smal"}, "model is 'cnn_smal'.*did you mean 'cnn_small'"),
        ({"schedule": "sl"}, "schedule 'sl' has 'sl', expected objective:epochs"),
    ],
)
def test_unknown_names_are_refused_and_nothing_is_written(change, message, tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(dataclasses.replace(TINY, **change), tmp_path / "run", quiet=True)
    assert not list(tmp_path.rglob("*.*"))


def test_a_fit_does_not_touch_the_data(tiny: Data, tmp_path):
    before = tiny.train.x.clone()
    fit(dataclasses.replace(TINY, schedule="rl-adv:1", attack="fgsm"), tmp_path / "run", quiet=True)
    assert torch.equal(tiny.train.x, before)


def test_the_attacked_loss_moves_the_weights(tiny, tmp_path):
    """Weight 0 beside weight 1: the passes are the same, so batch norm's statistics are, but the steps are not."""
    base = dataclasses.replace(TINY, schedule="sl-adv:1", optimizer="sgd", lr=0.05)
    models = [
        fit(dataclasses.replace(base, adversarial_weight=weight), tmp_path / str(weight), quiet=True).model()
        for weight in (0.0, 1.0)
    ]
    a, b = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models)
    assert (a - b).norm() > 1e-3 * a.norm()


@pytest.mark.slow
def test_adversarial_training_makes_digits_harder_to_attack(tmp_path):
    robust = {}
    for arm in ("sl", "sl-adv"):
        run = fit(Config(schedule=f"{arm}:5"), tmp_path / arm, quiet=True)
        robust[arm] = evaluate(run, steps=10)[1].value
        assert run.history[-1]["clean"] > 0.9
    assert robust["sl-adv"] > robust["sl"] + 0.1
