"""One frozen record is the command line, the run and what is written beside its weights."""

import difflib
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

from training.augment import AUGMENTATIONS
from training.policy import Baseline, Coin, PolicyGradient, Reward

Curve = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Config:
    """What decides a run. Two runs with equal configs on one machine have equal weights."""

    called: str = ""
    """What tables and legends call the arm; after its schedule (SL, RL-adv) if empty."""
    dataset: str = "digits"
    """Data set, such as digits."""
    images: int | None = None
    """Training images, the same first ones of a fixed shuffle for every run; all of the training part if not given."""
    model: str = "cnn_small"
    """cnn_small, cnn6 (the paper's) or any torchvision classifier by name, such as resnet18."""
    schedule: str = "sl:15"
    """Phases as objective:epochs, comma-separated; objectives: sl, rl, exact, lq, blends sl>rl and sl>exact, each
    also with -adv."""
    seed: int = 0
    """Seeds weights, batch order, augmentation, actions and attacks, each with its own generator."""
    augment: str | None = None
    """Augmentation of the training images by name, such as none or paper; the data set's own if not given."""
    batch: int = 64
    """Images a step, over all processes together."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    lr: float = 2e-3
    """Peak learning rate."""
    lr_curve: Curve = "cosine"
    """The learning rate falls along half a cosine or a line, over all phases, or stays."""
    lr_end: float = 0.0
    """Where the learning rate ends, as a share of its peak."""
    warmup: float = 0.0
    """Epochs in which the learning rate first rises from 0 along a line."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay, or SGD's."""
    clip: float | None = None
    """Largest Euclidean norm of the gradient of all weights; no clipping if not given."""
    ema: float = 0.0
    """Decay a step of an exponential moving average of the weights, which is then what is watched and kept; 0: none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: forward and backward passes in mixed precision; weights and validation stay float32."""
    channels_last: bool = False
    """Lay images out with their channels together in memory, which some processors prefer."""
    compile: bool = False
    """Compile the training pass with torch.compile."""
    epsilon: float = 0.1
    """Exploration of the policy gradient: the chance to act uniformly at random."""
    epsilon_curve: Curve = "constant"
    """Exploration stays, or falls to 0 over the run."""
    coin: Coin = "batch"
    """Whether to explore is decided once a batch (the study's rule) or for each action on its own."""
    reward: Reward = "zero-one"
    """Of a right and a wrong action: 1 and 0, or 1 and -1."""
    baseline: Baseline = "none"
    """Taken off the reward: nothing, its running mean, the reward of the likeliest action, or its expectation."""
    importance_weight: bool = False
    """Weigh each action by policy / behaviour, which takes the exploration out of the expected gradient. Without it, a
    reward below 0 for actions that only exploration takes (a baseline, several actions, reward plus-minus) pushes
    their logits down without end."""
    actions: int = 1
    """Actions drawn a sample; several are compared with each other: (reward - mean) / std of the group."""
    entropy_bonus: float = 0.0
    """Weight of the policy's entropy, which is rewarded beside right actions."""
    blend_curve: Literal["linear", "cosine"] = "linear"
    """How a blend passes from its first loss to its second, and lq from q = 0 to 1."""
    attack: Literal["pgd", "fgsm", "fgsm-rs"] = "pgd"
    """Inner attack of the -adv objectives: PGD from a random start (Madry et al. 2018), FGSM from the image, or FGSM
    from a random start with step 1.25 eps (Wong et al. 2020). FGSM sees the model in training mode."""
    eps: float | None = None
    """Radius of the inner attack in Linf, pixels; the data set's own if not given."""
    attack_steps: int = 7
    """Steps of the inner PGD, of 2.5 eps / steps each."""
    inner: Literal["ce", "pg", "kl"] = "ce"
    """What the inner attack climbs: cross-entropy, the objective that is trained (the policy gradient, for rl-adv), or
    the divergence from the answer to the clean image, which then is the attacked loss too (TRADES, Zhang et al. 2019).
    """
    adversarial_weight: float = 1.0
    """Weight of the attacked loss beside the clean one."""
    beta: float = 6.0
    """The same where the attacked loss is TRADES' divergence."""
    adversarial_from: int = 0
    """Epochs of the run before its -adv phases really attack."""
    watch_every: int = 1
    """Epochs between attacks on validation images, and after the last; clean accuracy is measured after each."""
    keep_every: int = 0
    """Epochs between weights that are kept on the way, for the path through weight space, beside the untrained and the
    last ones; 0: none."""

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            _check(name, getattr(self, name), kind)
        for name, is_right, expected in (
            ("called", self.called == self.called.strip() and self.called.isprintable(), "a printable name"),
            ("images", self.images is None or self.images >= 2, "at least 2, or nothing"),
            ("seed", self.seed >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("eps", self.eps is None or self.eps > 0, "a positive number of pixels, or nothing"),
            ("entropy_bonus", self.entropy_bonus >= 0, "0 or more"),
            ("adversarial_weight", self.adversarial_weight >= 0, "0 or more"),
            ("beta", self.beta >= 0, "0 or more"),
            ("adversarial_from", self.adversarial_from >= 0, "a number of epochs, or 0"),
            ("keep_every", self.keep_every >= 0, "a number of epochs, or 0"),
            ("watch_every", self.watch_every >= 1, "at least 1"),
            ("batch", self.batch >= 2, "at least 2"),
            ("lr", self.lr > 0, "a positive number"),
            ("lr_end", 0 <= self.lr_end <= 1, "a share of the peak in [0, 1]"),
            ("warmup", self.warmup >= 0, "a number of epochs, or 0"),
            ("momentum", 0 <= self.momentum < 1, "a number in [0, 1)"),
            ("clip", self.clip is None or self.clip > 0, "a positive norm, or nothing"),
            ("ema", 0 <= self.ema < 1, "a decay in [0, 1)"),
            ("epsilon", 0 <= self.epsilon <= 1, "a chance in [0, 1]"),
            ("attack_steps", self.attack_steps >= 1, "at least 1"),
        ):
            if not is_right:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")
        if self.augment is not None:
            _check("augment", self.augment, Literal[tuple(AUGMENTATIONS)])
        _ = self.policy  # checks its own knobs

    @property
    def policy(self) -> PolicyGradient:
        """The estimator of the policy gradient."""
        return PolicyGradient(
            reward=self.reward,
            baseline=self.baseline,
            importance_weight=self.importance_weight,
            coin=self.coin,
            actions=self.actions,
            entropy_bonus=self.entropy_bonus,
        )


def _check(name: str, value: Any, kind: Any) -> None:
    """Is this knob of its type, one of its choices, a finite number? A sweep file or a script may say anything."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}{hint}")
        return
    kinds = typing.get_args(kind) or (kind,)
    whole_for_float = type(value) is int and float in kinds
    if type(value) not in kinds and not whole_for_float:
        names = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{name} is {value!r}, expected {names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, expected a finite number")
