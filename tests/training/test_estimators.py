"""Each estimator of the policy gradient: its expectation, by going through every coin and action, is what the theory
says; and the actions that it is averaged over have the distribution that this enumeration assumes."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from training.config import Config
from training.objectives import cross_entropy, exact, explore, lq, objective, policy_gradient
from training.policy import Agent, Part, PolicyGradient, draw, surrogate

K = 4
EPSILON = 0.3
LOGITS = torch.tensor([[0.3, -1.2, 0.8, 0.1], [2.0, 0.5, -0.4, -3.0], [-0.7, 0.2, 0.9, 1.1]], dtype=torch.float64)
Y = torch.tensor([2, 3, 0])


def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the summed loss in the logits."""
    logits = LOGITS.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(logits).sum(), logits)
    return grad


def enumerated(policy: PolicyGradient, mean_reward: float = 0.0, epsilon: float = EPSILON) -> Tensor:
    """Expected gradient of the estimator: coins times actions, each weighted with its probability."""
    total = torch.zeros_like(LOGITS)
    pi = LOGITS.softmax(1)
    mixed = (1 - epsilon) * pi + epsilon / K
    behaviours = (
        [(1.0, mixed)] if policy.coin == "sample" else [(epsilon, torch.full_like(pi, 1 / K)), (1 - epsilon, pi)]
    )
    for chosen in itertools.product(range(K), repeat=policy.actions):
        actions = torch.tensor(chosen).expand(len(Y), -1)
        chance = sum(coin * b[:, list(chosen)].prod(1) for coin, b in behaviours)
        total += chance[:, None] * gradient(
            lambda z, a=actions: surrogate(z, Y, a, policy, epsilon=epsilon, mean_reward=mean_reward)
        )
    return total


def log_p(logits: Tensor) -> Tensor:
    return logits.log_softmax(1).gather(1, Y[:, None]).squeeze(1)


def weighted(weight: Tensor | float) -> Tensor:
    """Descent direction of weight x grad log p_y, the weight held constant."""
    return gradient(lambda z: -weight * log_p(z))


P = log_p(LOGITS).exp()
RULE = (1 - EPSILON) * P + EPSILON / K  # the study's weight of grad log p_y


def spread(c: Tensor | float) -> Tensor:
    """What a baseline c adds to the descent: c (e/K) sum_a grad log pi(a)."""
    return gradient(lambda z: c * EPSILON / K * z.log_softmax(1).sum(1))


COINS = pytest.mark.parametrize("coin", ["batch", "sample"])


@COINS
def test_study_rule(coin: str) -> None:
    found = enumerated(PolicyGradient(coin=coin))
    torch.testing.assert_close(found, weighted(RULE), rtol=0, atol=1e-9)
    torch.testing.assert_close(found, gradient(lambda z: exact(z, Y, EPSILON)), rtol=0, atol=1e-9)


def test_no_exploration_is_the_gradient_of_the_expected_reward() -> None:
    expected = gradient(lambda z: -z.softmax(1).gather(1, Y[:, None]))
    torch.testing.assert_close(enumerated(PolicyGradient(), epsilon=0.0), expected, rtol=0, atol=1e-9)


@COINS
def test_importance_weights_take_the_exploration_out(coin: str) -> None:
    found = enumerated(PolicyGradient(importance_weight=True, coin=coin))
    torch.testing.assert_close(found, weighted(P), rtol=0, atol=1e-9)


def test_an_importance_weight_never_exceeds_its_bound_and_survives_a_vanished_probability() -> None:
    logits = torch.tensor([[0.0, 200.0, -200.0]], requires_grad=True)
    policy = PolicyGradient(importance_weight=True)
    for action in range(3):
        loss = surrogate(logits, torch.tensor([action]), torch.tensor([[action]]), policy, epsilon=0.1)
        weight = -torch.autograd.grad(loss.sum(), logits)[0] / (
            torch.nn.functional.one_hot(torch.tensor([action]), 3) - logits.detach().softmax(1)
        )
        assert loss.isfinite().all()
        assert weight.nan_to_num(0.0).max() <= 1 / 0.9 + 1e-6


@COINS
def test_running_mean_baseline(coin: str) -> None:
    found = enumerated(PolicyGradient(baseline="mean", coin=coin), mean_reward=0.37)
    torch.testing.assert_close(found, weighted(RULE) + spread(0.37), rtol=0, atol=1e-9)


def test_expected_reward_as_baseline() -> None:
    found = enumerated(PolicyGradient(baseline="p_y"))
    torch.testing.assert_close(found, weighted(RULE) + spread(P), rtol=0, atol=1e-9)


def test_self_critical_baseline() -> None:
    right = (LOGITS.argmax(1) == Y).double()
    assert right.tolist() == [1.0, 0.0, 0.0]
    found = enumerated(PolicyGradient(baseline="self-critical"))
    torch.testing.assert_close(found, weighted(RULE) + spread(right), rtol=0, atol=1e-9)


def test_rewards_of_plus_and_minus_one_are_twice_the_rule_with_baseline_one_half() -> None:
    found = enumerated(PolicyGradient(reward="plus-minus"))
    torch.testing.assert_close(found, 2 * weighted(RULE) + spread(1.0), rtol=0, atol=1e-9)
    halved = enumerated(PolicyGradient(baseline="mean"), mean_reward=0.5)
    torch.testing.assert_close(found, 2 * halved, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("baseline", "c"), [("p_y", 2 * P - 1), ("self-critical", torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))]
)
def test_baselines_are_in_the_unit_of_the_reward(baseline: str, c: Tensor) -> None:
    found = enumerated(PolicyGradient(reward="plus-minus", baseline=baseline))
    torch.testing.assert_close(found, 2 * weighted(RULE) + spread(1.0) + spread(c), rtol=0, atol=1e-9)


def test_weights_and_a_baseline_together_leave_the_expected_reward() -> None:
    found = enumerated(PolicyGradient(baseline="p_y", importance_weight=True))
    torch.testing.assert_close(found, weighted(P), rtol=0, atol=1e-9)


def test_entropy_bonus_adds_the_gradient_of_the_entropy() -> None:
    bonus = gradient(lambda z: -0.2 * torch.distributions.Categorical(logits=z).entropy())
    found = enumerated(PolicyGradient(entropy_bonus=0.2))
    torch.testing.assert_close(found, weighted(RULE) + bonus, rtol=0, atol=1e-9)


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("reward", ["zero-one", "plus-minus"])
def test_groups_without_exploration(group: int, reward: str) -> None:
    """With k of G right, advantages are sqrt((G-k)/k) and -sqrt(k/(G-k)); k is binomial in p_y, and a wrong action's
    expected grad log pi is -p_y / (1 - p_y) grad log p_y."""
    weight = sum(
        math.comb(group, k) * P**k * (1 - P) ** (group - k) * math.sqrt(k * (group - k)) / group / (1 - P)
        for k in range(1, group)
    )
    found = enumerated(PolicyGradient(actions=group, reward=reward), epsilon=0.0)
    torch.testing.assert_close(found, weighted(weight), rtol=0, atol=1e-9)


@COINS
def test_pairs_with_exploration(coin: str) -> None:
    """Of two actions that disagree the right one is drawn to +1, the wrong one to -1."""
    pi = LOGITS.softmax(1)
    mixed = (1 - EPSILON) * pi + EPSILON / K
    parts = [(1.0, mixed)] if coin == "sample" else [(EPSILON, torch.full_like(pi, 1 / K)), (1 - EPSILON, pi)]
    expected = torch.zeros_like(LOGITS)
    for coin_chance, b in parts:
        right = b.gather(1, Y[:, None]).squeeze(1)
        wrong = b.scatter(1, Y[:, None], 0.0)
        expected += coin_chance * gradient(
            lambda z, r=right, w=wrong: -r * ((1 - r) * log_p(z) - (w * z.log_softmax(1)).sum(1))
        )
    found = enumerated(PolicyGradient(actions=2, coin=coin))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_a_group_that_agrees_teaches_nothing() -> None:
    for action in range(K):
        grad = gradient(
            lambda z, a=action: surrogate(z, Y, torch.full((3, 3), a), PolicyGradient(actions=3), epsilon=0.1)
        )
        assert (grad == 0).all()


@pytest.mark.parametrize("q", [1e-6, 0.3, 1.0])
def test_lq(q: float) -> None:
    torch.testing.assert_close(lq(LOGITS, Y, q), (1 - P**q) / q, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient(lambda z: lq(z, Y, q)), weighted(P**q), rtol=0, atol=1e-9)


def test_lq_leads_from_cross_entropy_to_the_expected_error() -> None:
    torch.testing.assert_close(lq(LOGITS, Y, 0.0), cross_entropy(LOGITS, Y))
    torch.testing.assert_close(lq(LOGITS, Y, 1e-9), -log_p(LOGITS), rtol=1e-7, atol=0)
    torch.testing.assert_close(lq(LOGITS, Y, 1.0), 1 - P)


def test_a_blend_is_the_weighted_sum_of_its_losses() -> None:
    agent = Agent(PolicyGradient(), torch.zeros(()))
    made = objective("sl>exact", agent, torch.Generator(), epsilon=EPSILON, mix=0.25)
    torch.testing.assert_close(made(LOGITS, Y), 0.75 * cross_entropy(LOGITS, Y) + 0.25 * exact(LOGITS, Y, EPSILON))


@pytest.mark.parametrize("coin", ["batch", "sample"])
@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_actions_have_the_behaviour_policys_distribution(coin: str, epsilon: float) -> None:
    """Chi-squared over 2,000 draws of one sample, or 20 of a thousand; a right sampler fails once in a million."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([[0.3, -1.2, 0.8, 0.1]])
    log_pi = logits.log_softmax(1)
    counts = torch.zeros(K, dtype=torch.long)
    repeats = 2000 if coin == "batch" else 20
    rows = log_pi if coin == "batch" else log_pi.expand(1000, -1)
    for _ in range(repeats):
        counts += torch.bincount(draw(rows, epsilon, generator, coin=coin).flatten(), minlength=K)
    expected = ((1 - epsilon) * log_pi.exp() + epsilon / K).squeeze(0).double() * counts.sum()
    assert stats.chisquare(counts.numpy(), (expected / expected.sum() * counts.sum()).numpy()).pvalue > 1e-6


def test_one_coin_decides_for_the_whole_batch_or_for_each_action() -> None:
    """A policy that is sure of class 0 shows the coin: uniform batches hold other classes, the rest none."""
    log_pi = torch.tensor([[50.0, 0.0, 0.0, 0.0]]).log_softmax(1).expand(400, -1)
    generator = torch.Generator().manual_seed(1)
    shares = torch.stack([(draw(log_pi, 0.5, generator) != 0).double().mean() for _ in range(50)])
    assert ((shares == 0) | (shares > 0.6)).all()
    assert 10 <= (shares == 0).sum() <= 40
    single = (draw(log_pi, 0.5, generator, coin="sample", actions=3) != 0).double().mean()
    assert 0.3 < single < 0.45  # half of them uniform, of which three quarters are not class 0


def test_samples_draw_independently() -> None:
    log_pi = torch.zeros(20_000, 2).log_softmax(1)
    actions = draw(log_pi, 0.1, torch.Generator().manual_seed(0), actions=2)
    table = torch.bincount(2 * actions[:, 0] + actions[:, 1], minlength=4).view(2, 2)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-6


def test_an_impossible_action_is_never_drawn() -> None:
    log_pi = torch.tensor([[-200.0, 0.0, -200.0]]).log_softmax(1).expand(10_000, -1)
    assert (explore(log_pi, 0.0, torch.Generator().manual_seed(0)) == 1).all()


@pytest.mark.parametrize("coin", ["batch", "sample"])
def test_parts_of_a_batch_act_as_the_whole(coin: str) -> None:
    log_pi = torch.randn(10, 5, generator=torch.Generator().manual_seed(0)).log_softmax(1)

    def drawn(rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        part = Part(rows, 10)
        return draw(log_pi[rows], 0.5, generator, coin=coin, actions=2, part=part)

    whole = drawn(slice(None))
    assert torch.equal(torch.cat([drawn(slice(0, 4)), drawn(slice(4, 10))]), whole)


def test_policy_gradient_is_the_default_estimator() -> None:
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    y = torch.arange(64) % 10
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    actions = draw(logits.log_softmax(1), 0.1, one)
    log_pi = logits.log_softmax(1)
    expected = -(actions.squeeze(1) == y).float() * log_pi[torch.arange(64), actions.squeeze(1)]
    torch.testing.assert_close(policy_gradient(logits, y, two), expected)


def test_the_running_mean_follows_after_the_step() -> None:
    agent = Agent(PolicyGradient(baseline="mean"), torch.zeros(()))
    logits = torch.tensor([[100.0, 0.0]]).expand(8, -1)
    y = torch.zeros(8, dtype=torch.long)
    agent.loss(logits, y, torch.Generator(), 0.0, None, False)
    assert agent.take() is None  # an inner attack's actions do not count
    agent.loss(logits, y, torch.Generator(), 0.0, None, True)
    mean = agent.take()
    assert mean is not None
    assert agent.mean_reward == 0
    agent.remember(mean)
    assert agent.mean_reward.item() == pytest.approx(0.1)


def test_the_configs_knobs_reach_the_estimator() -> None:
    knobs = {
        "reward": "plus-minus",
        "baseline": "p_y",
        "importance_weight": True,
        "coin": "sample",
        "entropy_bonus": 0.5,
    }
    assert dataclasses.asdict(Config(**knobs).policy) == {**knobs, "actions": 1}
    assert Config().policy == PolicyGradient()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"actions": 0}, "actions is 0"), ({"actions": 2, "baseline": "mean"}, "compared with its own mean")],
)
def test_refuses_knobs_that_contradict(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**knobs)
