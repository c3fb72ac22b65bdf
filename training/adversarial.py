"""Attacked images to train on. What is trained on them is the loop's business."""

import torch
from torch import Tensor, nn

from gradlens import Ball, frozen, losses
from gradlens.attacks.pgd import perturb
from gradlens.ball import cosine
from gradlens.draws import gaussian
from gradlens.model import input_gradient, logits
from gradlens.types import Images, Labels, Loss, PerSample
from training.config import Config
from training.objectives import divergence

NOISE = 0.001  # TRADES' start, pixels: at the image itself the divergence has no gradient


def start(whole: Images, ball: Ball, config: Config, generator: torch.Generator) -> Images:
    """Where the inner attack starts for each image of a batch: the image, a point nearby, or one anywhere in the ball.

    To be called with the batch of all processes, so that each finds the start that a single process would.
    """
    if config.inner == "kl":
        return ball.project(whole + NOISE * gaussian(whole, generator), whole)
    return whole if config.attack == "fgsm" else ball.sample(whole, generator)


def attack(model: nn.Module, x: Images, y: Labels, ball: Ball, config: Config, trained: Loss, begin: Images) -> Images:
    """The inner attack from `begin`; `trained` is the objective of the step, for inner="pg".

    PGD sees the model as an attacker would, in evaluation mode. The single steps see it in training mode, as the
    study and Wong et al. (2020) have it. `model` is the bare module: several processes do not wait for each other.
    """
    if config.attack == "pgd":
        with frozen(model):
            size = 2.5 * ball.eps / config.attack_steps
            climbed = _climbed(model, x, config, trained)
            return perturb(model, x, y, ball, steps=config.attack_steps, step_size=size, loss=climbed, start=begin)
    size = (1.25 if config.attack == "fgsm-rs" else 1.0) * ball.eps
    climbed = _climbed(model, x, config, trained)
    return perturb(model, x, y, ball, steps=1, step_size=size, loss=climbed, start=begin)


def _climbed(model: nn.Module, x: Images, config: Config, trained: Loss) -> Loss:
    match config.inner:
        case "ce":
            return losses.cross_entropy
        case "pg":
            return trained
    with torch.no_grad():
        clean = logits(model, x).log_softmax(1)

    def strayed(answer: Tensor, y: Tensor) -> Tensor:
        return divergence(clean, answer.log_softmax(1))

    return strayed


def gradalign(
    model: nn.Module, x: Images, y: Labels, ball: Ball, *, generator: torch.Generator | None = None
) -> PerSample:
    """1 - cos(g(x), g(x + eta)), g the input gradient of the cross-entropy, eta uniform in the ball, uncut by the box.

    Near 0 where the loss is linear in the ball, so that one step finds what many find; in [0, 2]. nan where a gradient
    is exactly 0 (Andriushchenko & Flammarion 2020).
    """
    everywhere = Ball(ball.eps, ball.norm, low=-torch.inf, high=torch.inf)
    with frozen(model):
        near, far = (
            input_gradient(model, point, y, losses.cross_entropy)[2] for point in (x, everywhere.sample(x, generator))
        )
    return 1 - cosine(near, far)
