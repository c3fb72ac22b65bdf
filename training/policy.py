"""The class as an action: drawn from the softmax, rewarded where it is right. The estimators of its gradient."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gradlens.types import Labels, Logits, PerSample

Actions = Int[Tensor, "batch actions"]
Rewards = Float[Tensor, "batch actions"]
Reward = Literal["zero-one", "plus-minus"]
Baseline = Literal["none", "mean", "self-critical", "p_y"]
Coin = Literal["batch", "sample"]
MEMORY = 0.9  # of the running mean of rewards, a step


@dataclass(frozen=True)
class PolicyGradient:
    """The knobs of the estimator; the defaults are the study's rule.

    With K classes, p_y the probability of the right one and e the exploration, the expected ascent is
    ((1 - e) p_y + e/K) grad log p_y; with a baseline c, less c (e/K) sum_a grad log pi(a); with importance weights
    p_y grad log p_y. Rewards of +-1 without weights equal twice the rule with baseline 1/2.

    Raises ValueError for fewer than one action, or for a baseline beside a group of actions, which has its own.
    """

    reward: Reward = "zero-one"
    baseline: Baseline = "none"
    importance_weight: bool = False
    coin: Coin = "batch"
    actions: int = 1
    entropy_bonus: float = 0.0

    def __post_init__(self) -> None:
        if self.actions < 1:
            raise ValueError(f"actions is {self.actions}, expected at least 1")
        if self.actions > 1 and self.baseline != "none":
            raise ValueError(
                f"baseline is {self.baseline!r} beside {self.actions} actions, expected 'none': "
                "a group of actions is compared with its own mean"
            )


class Part(NamedTuple):
    """The rows of a batch that are this process's own, and how many the batch has over all processes."""

    rows: slice
    batch: int


def draw(
    log_pi: Logits,
    epsilon: float,
    generator: torch.Generator,
    *,
    coin: Coin = "batch",
    actions: int = 1,
    part: Part | None = None,
) -> Actions:
    """Actions, epsilon-greedy: with chance `epsilon` uniform over the classes, else from the policy (not its argmax).

    `coin` "batch" decides this once for all samples and actions, "sample" for each action of each sample. Uniform
    numbers are drawn for the batch of all processes and put through the inverse of the policy's distribution
    function, so that several processes act exactly as one would.
    """
    part = part or Part(slice(None), len(log_pi))
    device = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device, dtype=log_pi.dtype)

    def mine(numbers: Tensor) -> Tensor:
        return numbers[part.rows].to(log_pi.device, non_blocking=True)

    classes = log_pi.shape[1]
    if coin == "batch":
        # the coin is tossed on the host, where the generator is: looking at it waits for no accelerator
        heads = bool(uniform(1) < epsilon)
        u = mine(uniform(part.batch, actions))
        return (u * classes).long() if heads else _inverse(log_pi, u)
    tossed, u = mine(uniform(part.batch, actions)), mine(uniform(part.batch, actions))
    return torch.where(tossed < epsilon, (u * classes).long(), _inverse(log_pi, u))


def _inverse(log_pi: Logits, u: Rewards) -> Actions:
    """The class where the distribution function passes `u` of its total; total, since rounding may miss 1."""
    heights = log_pi.exp().cumsum(1)
    chosen = torch.searchsorted(heights, u * heights[:, -1:], right=True)
    return chosen.clamp(max=log_pi.shape[1] - 1)  # reached only where the policy is nan, which the loss then shows


def rewards(actions: Actions, y: Labels, policy: PolicyGradient, kind: torch.dtype = torch.float32) -> Rewards:
    """1 where the action is the label; else 0, or -1."""
    right = (actions == y[:, None]).to(kind)
    return right if policy.reward == "zero-one" else 2 * right - 1


def surrogate(
    logits: Logits,
    y: Labels,
    actions: Actions,
    policy: PolicyGradient,
    *,
    epsilon: float,
    mean_reward: float | Tensor = 0.0,
) -> PerSample:
    """The loss whose gradient is the estimate: -A log pi(a|x), in nats, averaged over a sample's actions.

    A is the reward less the baseline; in a group of several actions (r - mean) / std over the group, 0 where all
    agree. `mean_reward` is what the running baseline stands at. The entropy bonus subtracts its share of H(pi).
    """
    log_pi = logits.log_softmax(1)
    taken = log_pi.gather(1, actions)
    with torch.no_grad():
        reward = rewards(actions, y, policy, logits.dtype)
        advantage = _standard(reward) if policy.actions > 1 else _above(reward, log_pi, y, policy, mean_reward)
        if policy.importance_weight and epsilon > 0:
            # pi / b, with b = (1 - e) pi + e/K, divided by pi: a probability that underflows gets weight 0, not nan
            advantage = advantage / (1 - epsilon + epsilon / logits.shape[1] * (-taken).exp())
    loss = -(advantage * taken).mean(1)
    if policy.entropy_bonus == 0:
        return loss
    return loss + policy.entropy_bonus * (log_pi.exp() * log_pi).sum(1)


def _above(reward: Rewards, log_pi: Logits, y: Labels, policy: PolicyGradient, mean_reward: float | Tensor) -> Rewards:
    """The reward less what was to be expected."""
    match policy.baseline:
        case "none":
            return reward
        case "mean":
            return reward - mean_reward
        case "self-critical":
            return reward - rewards(log_pi.argmax(1, keepdim=True), y, policy, reward.dtype)
        case "p_y":
            p = log_pi.gather(1, y[:, None]).exp()
            return reward - (p if policy.reward == "zero-one" else 2 * p - 1)


def _standard(reward: Rewards) -> Rewards:
    centred = reward - reward.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(deviation > 0, centred / deviation, 0.0)


class Agent:
    """A classifier that acts: the estimator, its source of actions, and the running mean of its rewards."""

    def __init__(self, policy: PolicyGradient, mean_reward: Tensor) -> None:
        self.policy = policy
        self.mean_reward = mean_reward
        self._seen: list[Tensor] = []

    def loss(
        self, logits: Logits, y: Labels, generator: torch.Generator, epsilon: float, part: Part | None, learns: bool
    ) -> PerSample:
        """Act and score. `learns`: the rewards count for the running mean, as an inner attack's do not."""
        policy = self.policy
        actions = draw(
            logits.detach().log_softmax(1), epsilon, generator, coin=policy.coin, actions=policy.actions, part=part
        )
        if learns and policy.baseline == "mean":
            self._seen.append(rewards(actions, y, policy, logits.dtype).mean())
        return surrogate(logits, y, actions, policy, epsilon=epsilon, mean_reward=self.mean_reward)

    def take(self) -> Tensor | None:
        """Mean of the rewards since the last call, for `remember`; None where no baseline asks for it."""
        if not self._seen:
            return None
        mean = torch.stack(self._seen).mean()
        self._seen.clear()
        return mean

    def remember(self, mean: Tensor) -> None:
        """Let the baseline follow, after the step that it served: a baseline must not know its own actions."""
        self.mean_reward.lerp_(mean.to(self.mean_reward), 1 - MEMORY)
