"""What is minimised: (logits, labels, ...) -> one loss a sample."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlens.types import Labels, Logits, Loss, PerSample
from training.policy import Agent, Part, PolicyGradient, draw, surrogate

STUDY = PolicyGradient()


def cross_entropy(
    logits: Logits, y: Labels, generator: torch.Generator | None = None, epsilon: float = 0.0
) -> PerSample:
    """-log p(y), in nats: supervised learning. Draws nothing."""
    return F.cross_entropy(logits, y, reduction="none")


def policy_gradient(logits: Logits, y: Labels, generator: torch.Generator, epsilon: float = 0.1) -> PerSample:
    """-r log pi(a|x), in nats, with a drawn from the policy pi = softmax(logits) and reward r = 1 where a = y.

    One coin a batch: with chance `epsilon` all actions are uniform, else all come from pi. No baseline, no importance
    weight, as the study has it. The gradient of its expectation is that of `exact`.
    """
    actions = explore(logits.detach().log_softmax(1), epsilon, generator)
    return surrogate(logits, y, actions[:, None], STUDY, epsilon=epsilon)


def explore(log_pi: Tensor, epsilon: float, generator: torch.Generator) -> Labels:
    """One action a sample, epsilon-greedy with one coin for the whole batch."""
    return draw(log_pi, epsilon, generator).squeeze(1)


def exact(logits: Logits, y: Labels, epsilon: float = 0.1) -> PerSample:
    """-(1 - e) p_y - (e/K) log p_y: what `policy_gradient` minimises in expectation, without its noise.

    The control of the study: what it shares with sampled reinforcement learning is the shape of the loss, and only
    what is left is exploration. Probability and nats are added as they are.
    """
    log_p = _log_p(logits, y)
    return -(1 - epsilon) * log_p.exp() - epsilon / logits.shape[1] * log_p


def lq(logits: Logits, y: Labels, q: float) -> PerSample:
    """(1 - p_y^q) / q (Zhang & Sabuncu 2018): cross-entropy in nats as q -> 0, the expected error 1 - p_y at q = 1."""
    if q == 0:
        return cross_entropy(logits, y)
    return -torch.expm1(q * _log_p(logits, y)) / q  # expm1 keeps the digits that 1 - p^q loses for a small q


def divergence(log_p: Logits, log_q: Logits) -> PerSample:
    """KL(p || q) in nats, from logarithms of probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def objective(
    name: str,
    agent: Agent,
    generator: torch.Generator,
    *,
    epsilon: float,
    mix: float,
    part: Part | None = None,
    learns: bool = True,
) -> Loss:
    """The loss of one step: `name` is sl, rl, exact, lq, or a blend such as sl>rl.

    `mix` in [0, 1] is how far a phase that changes has come: the second loss's share in a blend, the q of lq.
    """
    if ">" in name:
        first, second = (
            objective(part_name, agent, generator, epsilon=epsilon, mix=mix, part=part, learns=learns)
            for part_name in name.split(">")
        )
        return lambda logits, y: (1 - mix) * first(logits, y) + mix * second(logits, y)
    match name:
        case "rl":
            return lambda logits, y: agent.loss(logits, y, generator, epsilon, part, learns)
        case "exact":
            return lambda logits, y: exact(logits, y, epsilon)
        case "lq":
            return lambda logits, y: lq(logits, y, mix)
    return cross_entropy


def curve(name: str, t: float) -> float:
    """From 1 at t = 0 to 0 at t = 1, along a line or half a cosine; "constant" stays at 1."""
    match name:
        case "linear":
            return 1 - t
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * t))
    return 1.0


def _log_p(logits: Logits, y: Labels) -> PerSample:
    return logits.log_softmax(1).gather(1, y[:, None]).squeeze(1)


OBJECTIVES = {"sl": cross_entropy, "rl": policy_gradient}
