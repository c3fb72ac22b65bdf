"""The grammar of schedules."""

import pytest

from training.schedule import ARMS, Phase, label, parse


@pytest.mark.parametrize(
    ("text", "phases"),
    [
        ("sl:15", [("sl", 15)]),
        ("sl:50,rl:50", [("sl", 50), ("rl", 50)]),
        (" rl-adv:1 , sl-adv:200 ", [("rl-adv", 1), ("sl-adv", 200)]),
    ],
)
def test_phases_are_read_in_order(text, phases):
    assert parse(text) == tuple(Phase(*phase) for phase in phases)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"schedule '' has '', expected objective:epochs, such as 'sl:15'"),
        ("sl", r"schedule 'sl' has 'sl', expected objective:epochs"),
        ("sl:0", r"has 'sl:0', expected objective:epochs"),
        ("sl:-1", r"has 'sl:-1', expected objective:epochs"),
        ("sl:1.5", r"has 'sl:1.5', expected objective:epochs"),
        ("sl:15,", r"schedule 'sl:15,' has '', expected objective:epochs"),
        ("sl:1;rl:1", r"has 'sl:1;rl:1', expected objective:epochs"),
        ("SL:1", r"has 'SL:1', expected objective:epochs"),
        ("sl-avd:3", r"objective 'sl-avd', expected one of sl, rl, sl-adv, rl-adv, exact, .*; did you mean 'sl-adv'\?"),
        ("sl:3,rll:3", r"schedule 'sl:3,rll:3' has objective 'rll', .*did you mean 'rl'\?"),
        ("quantum:3", r"objective 'quantum', expected one of sl, rl, sl-adv, rl-adv, [^;]*$"),
    ],
)
def test_a_wrong_phase_is_named_with_the_nearest_objective(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_an_objective_with_or_without_attacked_images(arm):
    phase = Phase(arm, 1)
    assert phase.objective == arm[:2]
    assert phase.is_adversarial == (len(arm) > 2)


@pytest.mark.parametrize(
    ("text", "name"), [("sl:1", "SL"), ("rl-adv:5", "RL-adv"), ("sl:1,rl:2", "SL, RL"), ("sl-adv:1", "SL-adv")]
)
def test_labels_are_those_of_papers(text, name):
    assert label(text) == name
