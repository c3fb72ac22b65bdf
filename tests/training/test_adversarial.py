"""The inner attacks on models whose gradients are known, and the eye kept on them."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlens import Ball
from training import data
from training.adversarial import NOISE, attack, gradalign, start
from training.config import Config
from training.loop import _hostile
from training.loop import start as begin_training
from training.objectives import cross_entropy, objective
from training.policy import Agent, PolicyGradient, draw
from training.watch import CatastrophicOverfitting, collapsed, warn, watch

BALL = Ball(0.1)


def linear() -> nn.Module:
    """Two classes, one direction: the cross-entropy of class 0 rises along w_1 - w_0 everywhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.5, 1.0, 0.0, 3.0]]))
        model[1].bias.zero_()
    return model


RISE = torch.tensor([-1.0, 1.0, 0.0, 1.0]).view(1, 1, 2, 2)  # sign of w_1 - w_0
X = torch.full((3, 1, 2, 2), 0.5)
ZEROS = torch.zeros(3, dtype=torch.long)


def attacked(config: Config, model: nn.Module | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Start and end of the inner attack on X, all of class 0."""
    begin = start(X, BALL, config, torch.Generator().manual_seed(seed))
    return begin, attack(model or linear(), X, ZEROS, BALL, config, cross_entropy, begin)


def test_fgsm_goes_from_the_image_to_the_edge() -> None:
    begin, end = attacked(Config(attack="fgsm"))
    assert torch.equal(begin, X)
    torch.testing.assert_close(end, X + 0.1 * RISE.expand_as(X))


def test_fgsm_from_a_random_start_steps_further_and_stays_inside() -> None:
    begin, end = attacked(Config(attack="fgsm-rs"))
    assert 0.01 < (begin - X).abs().max() <= 0.1 + 1e-6
    torch.testing.assert_close(end, X + (begin - X + 0.125 * RISE).clamp(-0.1, 0.1))


def test_pgd_starts_anywhere_in_the_ball_and_ends_where_the_loss_is_largest() -> None:
    begin, end = attacked(Config(attack="pgd", attack_steps=5))
    assert (begin - X).abs().max() > 0.01
    moved = RISE.expand_as(X) != 0
    torch.testing.assert_close(end[moved], (X + 0.1 * RISE)[moved])
    torch.testing.assert_close(end[~moved], begin[~moved])  # no gradient, no step


def test_the_ball_is_cut_by_the_pixel_box() -> None:
    begin = start(torch.ones(3, 1, 2, 2), BALL, Config(), torch.Generator().manual_seed(0))
    end = attack(linear(), torch.ones(3, 1, 2, 2), ZEROS, BALL, Config(), cross_entropy, begin)
    assert begin.max() <= 1
    assert end.max() == 1


def test_the_policy_gradient_moves_no_image_whose_action_was_wrong() -> None:
    """The reward is 0, so is the gradient: the study's attack leaves such an image alone."""
    model, x, y = linear(), torch.full((64, 1, 2, 2), 0.5), torch.arange(64) % 2
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    right = draw(model(x).log_softmax(1), 0.5, generators[0], coin="sample").squeeze(1) == y
    agent = Agent(PolicyGradient(coin="sample"), torch.zeros(()))
    policy_loss = objective("rl", agent, generators[1], epsilon=0.5, mix=0.0)
    end = attack(model, x, y, BALL, Config(attack="fgsm", inner="pg"), policy_loss, x)
    moved = (end != x).flatten(1).any(1)
    assert torch.equal(moved, right)
    assert 0 < moved.sum() < 64


def test_trades_starts_near_the_image_and_climbs_the_divergence() -> None:
    model = linear()
    begin, end = attacked(Config(inner="kl", attack_steps=5), model)
    assert 0 < (begin - X).abs().max() < 6 * NOISE
    clean, there = (model(t).log_softmax(1).detach() for t in (X, end))
    found = F.kl_div(there, clean, log_target=True, reduction="none").sum(1)
    corners = torch.stack([X + 0.1 * sign * RISE for sign in (1, -1)])
    best = torch.stack(
        [F.kl_div(model(c).log_softmax(1).detach(), clean, log_target=True, reduction="none").sum(1) for c in corners]
    )
    assert (found >= best.amin(0) * 0.999).all()  # at one of the two corners, the local maxima of the divergence
    assert (found > 0.01).all()


def test_the_attacked_losses() -> None:
    clean, there = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6) % 4
    hostile = _hostile(there, clean, y, cross_entropy, Config(adversarial_weight=0.5))
    torch.testing.assert_close(hostile, 0.5 * F.cross_entropy(there, y, reduction="none"))
    divergence = F.kl_div(there.log_softmax(1), clean.softmax(1), reduction="none").sum(1)  # TRADES' own words
    torch.testing.assert_close(_hostile(there, clean, y, cross_entropy, Config(inner="kl", beta=6.0)), 6 * divergence)


@pytest.mark.parametrize(("kind", "moves"), [("pgd", False), ("fgsm", True), ("fgsm-rs", True)])
def test_single_steps_see_the_model_in_training_mode(kind: Any, moves: bool) -> None:
    """Seen in batch norm's statistics: a pass in training mode moves them. The mode itself is always put back."""
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    before = model[1].running_mean.clone()
    attacked(Config(attack=kind), model)
    assert torch.equal(model[1].running_mean, before) != moves
    assert model.training
    assert model[1].training


def test_attacks_leave_the_gradients_of_the_weights_alone() -> None:
    model = linear()
    for kind in ("pgd", "fgsm"):
        attacked(Config(attack=kind), model)
    assert all(p.grad is None for p in model.parameters())


def test_gradalign_is_zero_where_the_direction_never_changes() -> None:
    found = gradalign(linear(), X, ZEROS, BALL, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.zeros(3), atol=1e-6, rtol=0)


def test_gradalign_by_hand() -> None:
    """Against autograd of the mean loss at hand-made points, uncut by the pixel box."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    x, y = torch.zeros(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2])
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    points = [x.clone().requires_grad_(), (x + 0.5 * (2 * noise - 1)).requires_grad_()]
    a, b = (torch.autograd.grad(F.cross_entropy(model(point), y), point)[0].flatten(1) for point in points)
    found = gradalign(model, x, y, Ball(0.5), generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, 1 - F.cosine_similarity(a, b))
    assert (found > 1e-4).all()


def history(*pairs: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"fgsm_inner": fgsm, "pgd_inner": pgd} for fgsm, pgd in pairs]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0.5, 0.4), (0.6, 0.5), (0.9, 0.05)], True),
        ([(0.5, 0.4), (0.6, 0.5), (0.1, 0.05)], False),  # both fell: the model is just worse
        ([(0.5, 0.4), (0.6, 0.5), (0.7, 0.4)], False),
        ([(0.3, 0.1), (0.5, 0.02)], False),  # there was nothing to lose
        ([(0.5, 0.4)], False),
    ],
)
def test_collapse_is_many_steps_falling_while_one_step_stays(pairs: list[tuple[float, float]], expected: bool) -> None:
    assert collapsed(history(*pairs)) is expected


def test_collapse_is_a_warning_with_its_numbers() -> None:
    with pytest.warns(CatastrophicOverfitting, match=r"epoch 7: accuracy 90\.0% under one step, 5\.0% under ten"):
        warn(7, history((0.9, 0.05))[0])


def test_watch_reads_what_predictions_and_logits_say() -> None:
    training = begin_training(Config(eps=0.02), data.load("digits"))
    model, part = training.trainee.model, training.dataset.validation
    seen = watch(model, training.dataset, ball=training.ball)
    x, y = part.at(torch.arange(len(part)))
    with torch.no_grad():
        logits = model.eval()(x)
    assert seen["clean"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    few = round(0.05 * len(training.dataset.train))  # what is attacked of a set as small as this
    assert few < len(part)
    wrong = logits[:few].scatter(1, y[:few, None], -math.inf).amax(1)
    margin = wrong - logits[:few].gather(1, y[:few, None]).squeeze(1)
    assert seen["margin"] == pytest.approx(margin.double().mean().item(), abs=1e-5)
    assert seen["margin_pgd"] > seen["margin"]
    assert seen["pgd"] <= seen["pgd_inner"] <= seen["fgsm_inner"]  # a smaller ball, fewer steps
    assert 0 <= seen["gradalign"] <= 2
