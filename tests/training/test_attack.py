"""The inner attack of adversarial training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlens import Ball
from tests.analytic import smooth_cnn, snapshot
from training.config import Config
from training.fit import Generators, attack
from training.objectives import explore
from training.schedule import Phase

BALL = Ball(0.1)


def generators(seed: int) -> Generators:
    return Generators(*(torch.Generator().manual_seed(seed + i) for i in range(3)))


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1])


def test_where_the_reward_is_zero_the_studys_attack_does_not_perturb(cnn, images, labels):
    """And where it is one, x + eps sign(grad of -log pi_y): the network has no batch norm, so samples do not mix."""
    config, phase = Config(inner="pg", attack="fgsm", epsilon=0.2), Phase("rl-adv", 1)
    attacked = attack(cnn.train(), images, labels, phase, config, BALL, generators(3))
    x = images.clone().requires_grad_(True)
    log_pi = cnn(x).log_softmax(1)
    rewarded = explore(log_pi.detach(), 0.2, generators(3).actions) == labels
    assert 0 < rewarded.sum() < 6
    (grad,) = torch.autograd.grad(-log_pi.gather(1, labels[:, None]).sum(), x)
    assert torch.equal(attacked[~rewarded], images[~rewarded])
    torch.testing.assert_close(attacked[rewarded], (images + 0.1 * grad.sign()).clamp(0, 1)[rewarded])


@pytest.mark.parametrize("eps", [None, 0.03])
def test_fgsm_is_one_signed_step_of_the_cross_entropy_from_the_image(eps, cnn, images, labels):
    config = Config(inner="ce", attack="fgsm", eps=eps)
    attacked = attack(cnn, images, labels, Phase("sl-adv", 1), config, BALL, generators(0))
    x = images.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(cnn(x), labels, reduction="sum"), x)
    torch.testing.assert_close(attacked, (images + (eps or 0.1) * grad.sign()).clamp(0, 1))


@pytest.mark.parametrize("steps", [1, 4])
def test_pgd_starts_in_the_ball_and_takes_signed_steps_inside_it(steps, cnn, images, labels):
    config = Config(inner="ce", attack="pgd", attack_steps=steps)
    attacked = attack(cnn, images, labels, Phase("rl-adv", 1), config, BALL, generators(5))
    point = BALL.sample(images, generators(5).attacks)
    for _ in range(steps):
        x = point.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(cnn(x), labels, reduction="sum"), x)
        point = point + 2.5 * 0.1 / steps * grad.sign()
        point = torch.max(torch.min(point, images + 0.1), images - 0.1).clamp(0, 1)
    torch.testing.assert_close(attacked, point)
    assert BALL.contains(attacked, images).all()


@pytest.mark.parametrize("inner", ["ce", "pg"])
@pytest.mark.parametrize("arm", ["sl-adv", "rl-adv"])
def test_an_attack_that_sees_the_model_in_evaluation_mode_leaves_it_as_it_was(inner, arm, images, labels):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), smooth_cnn()).double().train()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state = snapshot(model)
    config = Config(inner=inner, attack="pgd", attack_steps=2)
    attacked = attack(model, images, labels, Phase(arm, 1), config, BALL, generators(1))
    assert snapshot(model) == state
    assert not attacked.requires_grad


def test_fgsm_touches_neither_weights_nor_gradients(cnn, images, labels):
    cnn.train()
    state = snapshot(cnn)
    attack(cnn, images, labels, Phase("rl-adv", 1), Config(inner="pg", attack="fgsm"), BALL, generators(1))
    assert snapshot(cnn) == state
