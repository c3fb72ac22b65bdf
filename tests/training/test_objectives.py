"""The study's policy gradient against its expectation: by enumeration, and by many draws."""

import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from training import objectives
from training.objectives import cross_entropy, explore, policy_gradient

CLASSES, EPSILON = 4, 0.3


@pytest.fixture
def logits(generator: torch.Generator) -> Tensor:
    return 1.5 * torch.randn(6, CLASSES, generator=generator, dtype=torch.float64)


@pytest.fixture
def labels(generator: torch.Generator) -> Tensor:
    return torch.randint(CLASSES, (6,), generator=generator)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logits)[0]


def closed_form(logits: Tensor, y: Tensor, epsilon: float) -> Tensor:
    """The gradient of -(1 - e) p_y - (e / K) log p_y."""
    logits = logits.clone().requires_grad_(True)
    p = logits.softmax(1).gather(1, y[:, None])
    return gradient(-(1 - epsilon) * p - epsilon / CLASSES * p.log(), logits)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, EPSILON, 1.0])
def test_the_expected_gradient_is_the_closed_form(epsilon, logits, labels, monkeypatch, generator):
    """Every action of the rule in turn, weighted with its chance under coin and policy: no drawing at all."""
    expected = torch.zeros_like(logits)
    pi = logits.softmax(1)
    for action in range(CLASSES):
        monkeypatch.setattr(objectives, "explore", lambda log_pi, *_, a=action: torch.full((len(log_pi),), a))
        leaf = logits.clone().requires_grad_(True)
        chance = epsilon / CLASSES + (1 - epsilon) * pi[:, action]
        expected += chance[:, None] * gradient(policy_gradient(leaf, labels, generator, epsilon), leaf)
    torch.testing.assert_close(expected, closed_form(logits, labels, epsilon))


def test_the_mean_gradient_of_many_draws_is_the_closed_form(logits, labels, generator):
    draws = 4000
    samples = torch.empty(draws, *logits.shape, dtype=torch.float64)
    for i in range(draws):
        leaf = logits.clone().requires_grad_(True)
        samples[i] = gradient(policy_gradient(leaf, labels, generator, EPSILON), leaf)
    error = samples.mean(0) - closed_form(logits, labels, EPSILON)
    z = error / (samples.std(0) / draws**0.5)
    assert z.abs().max() < 4
    # the test would see half an epsilon too much or too little
    for wrong in (0.0, 2 * EPSILON):
        off = samples.mean(0) - closed_form(logits, labels, wrong)
        assert (off / (samples.std(0) / draws**0.5)).abs().max() > 8


def test_loss_is_minus_log_pi_where_the_action_is_right_and_zero_elsewhere(logits, labels):
    actions = explore(logits.log_softmax(1), EPSILON, torch.Generator().manual_seed(5))
    loss = policy_gradient(logits, labels, torch.Generator().manual_seed(5), EPSILON)
    for i, (action, y) in enumerate(zip(actions.tolist(), labels.tolist(), strict=True)):
        exact = -math.log(logits[i].exp()[action] / logits[i].exp().sum()) if action == y else 0.0
        assert loss[i].item() == pytest.approx(exact)
    assert 0 < (actions == labels).sum() < 6


def test_one_coin_decides_for_the_whole_batch(generator):
    """A policy that is sure of class 0: a batch is all zeros, or it is uniform."""
    log_pi = torch.tensor([0.0, -60.0, -60.0, -60.0]).expand(64, CLASSES).log_softmax(1)
    batches, others = 4000, []
    for _ in range(batches):
        share = (explore(log_pi, EPSILON, generator) != 0).double().mean().item()
        if share > 0:
            others.append(share)
    # one coin a sample would make every batch a mixture: 22% other actions
    assert scipy.stats.binomtest(len(others), batches, EPSILON).pvalue > 0.01
    assert min(others) > 0.4
    assert sum(others) / len(others) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_actions_follow_the_policy_or_the_uniform_distribution(epsilon, generator):
    """Drawn from the policy, not its most likely action."""
    pi = torch.tensor([0.5, 0.3, 0.15, 0.05])
    actions = explore(pi.log().expand(20_000, CLASSES), epsilon, generator)
    expected = pi if epsilon == 0 else torch.full((CLASSES,), 0.25)
    counts = torch.bincount(actions, minlength=CLASSES)
    assert scipy.stats.chisquare(counts, 20_000 * expected.double() / expected.double().sum()).pvalue > 0.01


@pytest.mark.parametrize("objective", objectives.OBJECTIVES.values())
def test_objectives_draw_from_their_generator_alone(objective, logits, labels):
    before = torch.get_rng_state()
    first, again = (objective(logits, labels, torch.Generator().manual_seed(1), EPSILON) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_supervised_learning_minimises_minus_log_p_and_draws_nothing(logits, labels, generator):
    state = generator.get_state()
    loss = cross_entropy(logits, labels, generator)
    torch.testing.assert_close(loss, -logits.softmax(1).gather(1, labels[:, None]).log().squeeze(1))
    assert torch.equal(generator.get_state(), state)
