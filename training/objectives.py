"""What is minimised: (logits, labels, generator) -> one loss a sample."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlens.types import Labels, Logits, PerSample


def cross_entropy(logits: Logits, y: Labels, generator: torch.Generator, epsilon: float = 0.0) -> PerSample:
    """-log p(y), in nats: supervised learning. Draws nothing."""
    return F.cross_entropy(logits, y, reduction="none")


def policy_gradient(logits: Logits, y: Labels, generator: torch.Generator, epsilon: float = 0.1) -> PerSample:
    """-r log pi(a|x), in nats, with a drawn from the policy pi = softmax(logits) and reward r = 1 where a = y.

    One coin a batch: with chance `epsilon` all actions are uniform, else all come from pi. No baseline, no importance
    weight, as the study has it. The gradient of its expectation is that of -(1 - epsilon) p_y - (epsilon / K) log p_y.
    """
    log_pi = logits.log_softmax(1)
    actions = explore(log_pi.detach(), epsilon, generator)
    reward = (actions == y).to(logits.dtype)
    return -reward * log_pi.gather(1, actions[:, None]).squeeze(1)


def explore(log_pi: Tensor, epsilon: float, generator: torch.Generator) -> Labels:
    """Actions for a batch, epsilon-greedy with one coin for all of it."""
    batch, classes = log_pi.shape
    device = generator.device
    if torch.rand((), generator=generator, device=device) < epsilon:
        return torch.randint(classes, (batch,), generator=generator, device=device).to(log_pi.device)
    return torch.multinomial(log_pi.exp().to(device), 1, generator=generator).squeeze(1).to(log_pi.device)


OBJECTIVES = {"sl": cross_entropy, "rl": policy_gradient}
