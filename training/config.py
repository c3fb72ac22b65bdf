"""One frozen record is the command line, the run and what is written beside its weights."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Config:
    """What decides a run. Two runs with equal configs on one machine have equal weights."""

    dataset: str = "digits"
    """Data set: digits."""
    model: str = "cnn_small"
    """cnn_small, cnn6 (the paper's) or any torchvision classifier by name, such as resnet18."""
    schedule: str = "sl:15"
    """Phases as objective:epochs, comma-separated; objectives: sl, rl, sl-adv, rl-adv."""
    seed: int = 0
    """Seeds weights, batch order, actions and attacks, each with its own generator."""
    batch: int = 64
    """Images a step."""
    lr: float = 2e-3
    """AdamW's peak learning rate."""
    lr_curve: Literal["cosine", "constant"] = "cosine"
    """The learning rate falls to 0 along half a cosine, or stays."""
    weight_decay: float = 1e-2
    """AdamW's decoupled weight decay."""
    epsilon: float = 0.1
    """Exploration of the policy gradient: the chance that a whole batch acts uniformly at random."""
    attack: Literal["pgd", "fgsm"] = "pgd"
    """Inner attack of the -adv objectives: PGD from a random start (Madry et al. 2018), or FGSM from the image."""
    eps: float | None = None
    """Radius of the inner attack in Linf, pixels; the data set's own if not given."""
    attack_steps: int = 7
    """Steps of the inner PGD, of 2.5 eps / steps each."""
    inner: Literal["ce", "pg"] = "ce"
    """What the inner attack climbs: cross-entropy, or the objective that is trained."""
    adversarial_weight: float = 1.0
    """Weight of the attacked loss beside the clean one."""
