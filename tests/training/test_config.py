"""A knob that says something else than it may is refused before anything is trained."""

import pytest

from training import loop
from training.config import Config

CHOICES = {
    "optimizer": ("adam", "adamw"), "reward": ("plus-minos", "plus-minus"), "baseline": ("pY", None),
    "coin": ("batsch", "batch"), "attack": ("fgsm-r", "fgsm-rs"), "inner": ("trades", None),
    "lr_curve": ("cosin", "cosine"), "blend_curve": ("lineer", "linear"), "precision": ("float16", "bfloat16"),
    "augment": ("papr", "paper"), "epsilon_curve": ("line", "linear"),
}  # fmt: skip


def checked(knob, value):
    """A config with this value, past the tests' own type checks, as scripts and sweep files come."""
    config = Config()
    object.__setattr__(config, knob, value)
    config.__post_init__()
    return config


@pytest.mark.parametrize("knob", CHOICES)
def test_a_name_that_is_none_of_the_choices_is_refused_with_the_nearest(knob):
    wrong, near = CHOICES[knob]
    with pytest.raises(ValueError, match=f"{knob} is '{wrong}', expected one of .*" + (f"'{near}'" if near else "")):
        checked(knob, wrong)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("actions", 2.5), ("batch", 2.5), ("lr", "a"), ("seed", 1.5), ("seed", -1), ("weight_decay", -1.0),
        ("lr", float("inf")), ("entropy_bonus", float("nan")), ("adversarial_weight", -1.0), ("adversarial_from", -3),
        ("eps", 0.0), ("importance_weight", 1), ("dataset", 3), ("model", None), ("clip", "1"), ("beta", -0.1),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_out_of_range_is_refused_by_name(knob, value):
    with pytest.raises(ValueError, match=f"{knob} is {value!r}, expected "):
        checked(knob, value)


def test_whole_numbers_are_numbers():
    assert checked("lr", 1).lr == checked("clip", 2).lr * 500


def test_an_adversarial_arm_that_would_never_attack_is_refused(tiny):
    with pytest.raises(ValueError, match="adversarial_from is 2, expected fewer epochs than the 2 of 'sl-adv:2'"):
        loop.start(Config(schedule="sl-adv:2", adversarial_from=2), tiny)
    loop.start(Config(schedule="sl-adv:2", adversarial_from=1), tiny)
