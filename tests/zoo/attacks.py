"""What is tried on the zoo's models: the attack that everybody runs, and the attack that knows the trick."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlens import Ball

VOTES = 31  # draws that decide what a random model says


def naive(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, steps: int = 20) -> Tensor:
    """PGD on the cross-entropy of what the model returns, with the gradients it gives, from x: the last point."""
    point = x
    for _ in range(steps):
        point = ball.project(point + 2.5 * ball.eps / steps * ball.steepest(gradient(model, point, y, nats)), x)
    return point


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of the summed loss in x; zero where none arrives."""
    x = x.detach().requires_grad_(True)
    value = loss(model(x), y).sum()
    if not value.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(value, x, materialize_grads=True)[0]


def nats(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(logits, y, reduction="none")


def lead(logits: Tensor, y: Tensor) -> Tensor:
    """Best wrong logit minus true logit."""
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - logits.gather(1, y[:, None])[:, 0]


@torch.no_grad()
def errs(model: nn.Module, x: Tensor, y: Tensor, *, is_random: bool = False) -> Tensor:
    """Does the model's own forward pass err, or most of them if it is random?"""
    votes = VOTES if is_random else 1
    return sum((model(x).argmax(1) != y).float() for _ in range(votes)) > votes / 2


def knowing(
    model: nn.Module, within: nn.Module, *, draws: int = 1, is_random: bool = False, steps: int = 40, starts: int = 2
) -> Callable[[Tensor, Tensor, Ball], Tensor]:
    """The attack that knows the trick: it climbs what is `within` the defence, and asks the model itself who is broken.

    `within` maps images to logits with honest gradients: the undefended network, or the defence with its backward pass
    replaced (BPDA, Athalye et al. 2018). Margin and cross-entropy, from x and from random points; of a random model
    the gradient is a mean over `draws` (EOT). Returned: a mask of samples with a point, inside, on which it errs.
    """

    def right(x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            broken = errs(model, x, y, is_random=is_random)
            for run in range(2 * starts):
                loss = lead if run % 2 == 0 else nats
                point = x if run < 2 else ball.sample(x)
                for step in range(steps):
                    grad = sum(gradient(within, point, y, loss) for _ in range(draws))
                    size = 0.5 * ball.eps * (1 - step / steps)
                    point = ball.project(point + size * ball.steepest(grad), x)
                    if not is_random or step == steps - 1:
                        broken |= errs(model, point, y, is_random=is_random) & ball.contains(point, x)
            return broken

    return right
