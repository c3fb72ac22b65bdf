"""The grammar of schedules, what changes along them, and the presets."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import checkpoint, data, loop, schedule, sweep
from training.__main__ import main, preset_of
from training.config import Config
from training.fit import fit
from training.loop import Training, moment
from training.optimize import rate
from training.presets import paper, sound
from training.randomness import Generators


def training(**config: object) -> Training:
    return loop.start(Config(**config), data.load("digits"))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("exact:100", "exact"),
        ("exact-adv:1", "exact-adv"),
        ("sl:50,rl:50", "SL, RL"),
        ("sl>rl:100", "SL>RL"),
        ("sl>rl-adv:3", "SL>RL-adv"),
        ("lq:100", "Lq"),
        ("sl>exact:2, lq-adv:1", "SL>exact, Lq-adv"),
    ],
)
def test_labels(text: str, written: str) -> None:
    assert schedule.label(text) == written


@pytest.mark.parametrize(("wrong", "near"), [("exct:3", "exact"), ("sl>lr:3", "sl>rl"), ("lq-avd:3", "lq-adv")])
def test_an_unknown_objective_is_told_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        schedule.parse(wrong)


def test_epochs_find_their_phase() -> None:
    phases = schedule.parse("sl:2,rl:3")
    places = [schedule.at(phases, epoch) for epoch in range(5)]
    assert [(phase.arm, within) for phase, within in places] == [("sl", 0), ("sl", 1), ("rl", 0), ("rl", 1), ("rl", 2)]


def test_a_blend_begins_anew_in_its_phase_and_lr_and_epsilon_run_across_phases() -> None:
    run = training(schedule="sl:2,sl>rl:2", epsilon=0.2, epsilon_curve="linear", lr=1.0, lr_curve="linear")
    first, middle, late = (moment(run, *place) for place in ((0, 0.0), (2, 0.0), (3, 0.5)))
    assert (first.lr, middle.lr, late.lr) == pytest.approx((1.0, 0.5, 0.125))
    assert (first.epsilon, middle.epsilon, late.epsilon) == pytest.approx((0.2, 0.1, 0.025))
    assert (middle.mix, late.mix) == pytest.approx((0.0, 0.75))


def test_curves_of_blend_and_exploration() -> None:
    run = training(schedule="lq:4", blend_curve="cosine", epsilon=0.2, epsilon_curve="cosine")
    for epoch in range(4):
        fallen = (1 + math.cos(math.pi * epoch / 4)) / 2
        assert moment(run, epoch, 0.0).mix == pytest.approx(1 - fallen)
        assert moment(run, epoch, 0.0).epsilon == pytest.approx(0.2 * fallen)


def test_exploration_is_constant_by_default() -> None:
    assert moment(training(schedule="rl:4"), 3, 0.5).epsilon == 0.1


def test_attacks_begin_when_they_are_told_to() -> None:
    run = training(schedule="sl:1,rl-adv:3", adversarial_from=2)
    assert [moment(run, epoch, 0.0).attacks for epoch in range(4)] == [False, False, True, True]


def test_learning_rates() -> None:
    config = Config(lr=0.1, lr_curve="linear", lr_end=0.1, warmup=2.0)
    assert [rate(config, e, 12) for e in (0.0, 1.0, 2.0, 7.0, 12.0)] == pytest.approx([0, 0.05, 0.1, 0.055, 0.01])
    cosine = Config(lr=0.1)
    assert [rate(cosine, e, 4) for e in (0.0, 1.0, 2.0, 4.0)] == pytest.approx([0.1, 0.05 * (1 + 0.5**0.5), 0.05, 0])
    assert rate(Config(lr=0.1, lr_curve="constant"), 3.9, 4) == 0.1
    with pytest.raises(ValueError, match=r"warmup is 2.0 epochs, expected fewer than 'sl:2' has"):
        training(schedule="sl:2", warmup=2.0)


def test_a_phase_boundary_changes_nothing_else(tmp_path: Path) -> None:
    """Optimiser, learning rate and batch order run on: two phases of one objective are one."""
    whole, parts = (
        fit(Config(schedule=text, batch=256, seed=3), tmp_path / str(i), quiet=True)
        for i, text in enumerate(("rl:2", "rl:1,rl:1"))
    )
    assert whole.record["checkpoint_sha256"] == parts.record["checkpoint_sha256"]


def test_arms_see_the_same_batches_and_augmentations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, list[Tensor]] = {}
    original = loop.step

    def recorded(run: Training, now: loop.Moment, batch: Tensor, generators: Generators) -> Tensor:
        result = original(run, now, batch, generators)
        seen.setdefault(run.config.schedule, []).extend([batch, generators.augment.get_state()])
        return result

    monkeypatch.setattr(loop, "step", recorded)
    for text in ("sl:2", "rl-adv:2", "exact:1,lq:1"):
        fit(Config(schedule=text, batch=512, attack="fgsm", augment="flip"), tmp_path / text[:2], quiet=True)
    first, *others = seen.values()
    assert len(first) == 2 * 2 * 3
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[6])  # another order in the second epoch


@pytest.mark.parametrize(("text", "same"), [("sl>rl:1", "sl:1"), ("lq:1", "sl:1")])
def test_blends_begin_as_their_first_loss(text: str, same: str) -> None:
    weights = []
    for schedule_text in (text, same):
        run = training(schedule=schedule_text, batch=256)
        generators = Generators.of(0, 0)
        loop.step(run, moment(run, 0, 0.0), torch.arange(256), generators)
        weights.append([p.detach().clone() for p in run.trainee.model.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_papers_settings() -> None:
    rl, sl = paper("rl-adv"), paper("sl-adv")
    assert (rl.schedule, rl.batch, rl.lr, rl.lr_curve, rl.clip, rl.warmup) == (
        "rl-adv:600", 256, 1e-4, "constant", None, 0,
    )  # fmt: skip
    assert (rl.attack, rl.inner, rl.eps, rl.adversarial_from, rl.adversarial_weight) == ("fgsm", "pg", 0.01, 400, 1.0)
    assert (rl.epsilon, rl.epsilon_curve, rl.policy) == (0.1, "constant", Config().policy)
    assert (rl.dataset, rl.model, rl.augment) == ("cifar10", "cnn6", "paper")
    assert (sl.schedule, sl.lr, sl.lr_curve, sl.lr_end, sl.clip, sl.warmup) == (
        "sl-adv:100", 2e-4, "linear", 0.1, 1.0, 5,
    )  # fmt: skip
    assert (sl.attack, sl.inner, sl.eps, sl.adversarial_from) == ("fgsm", "ce", 0.01, 0)
    assert paper("rl").schedule == "rl:600"
    assert paper("rl-adv:30").adversarial_from == 20
    with pytest.raises(ValueError, match="expected one of sl, sl-adv, rl, rl-adv"):
        paper("exact")
    with pytest.raises(ValueError, match="preset 'paper'"):
        paper("sl:1,rl:1")


def test_sound_settings_differ_in_the_schedule_alone() -> None:
    arms = [sound(arm) for arm in ("sl", "rl", "sl-adv", "rl-adv", "exact", "sl>rl", "sl:50,rl:50")]
    assert len({dataclasses.replace(arm, schedule="") for arm in arms}) == 1
    assert {sum(phase.epochs for phase in schedule.parse(arm.schedule)) for arm in arms} == {100}
    assert (arms[0].attack, arms[0].attack_steps, arms[0].inner) == ("pgd", 10, "ce")


def test_explicit_options_win_over_the_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = "fit --preset paper --schedule rl-adv:1 --dataset digits --model cnn_small --augment none"
    assert main([*arguments.split(), "--batch", "512", "--lr", "0.002", "--out", str(folder)]) == 0
    assert "clean" in capsys.readouterr().out
    expected = dataclasses.replace(
        paper("rl-adv:1"), dataset="digits", model="cnn_small", augment="none", batch=512, lr=0.002
    )
    assert checkpoint.load(folder).config == expected
    assert preset_of(["fit", "--preset", "sound", "--schedule=rl"]).schedule == "rl:100"
    assert preset_of(["fit", "--schedule", "rl:3"]) == Config()


def test_a_wrong_arm_of_a_preset_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["fit", "--preset", "sound", "--schedule", "rll", "--out", str(tmp_path)]) == 2
    assert "did you mean 'rl'" in capsys.readouterr().err


def test_folders_of_a_sweep_have_plain_names() -> None:
    name = sweep.name(Config(schedule="sl:1,sl>rl-adv:2"))
    assert name == "digits-cnn_small-sl-1+sl-to-rl-adv-2-s0"
