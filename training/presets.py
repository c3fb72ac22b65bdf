"""Whole configs by name: what the study did, and what a fair comparison takes. (schedule) -> Config."""

from collections.abc import Callable
from dataclasses import replace

from training import schedule
from training.config import Config

PAPER_EPOCHS = {"sl": 100, "sl-adv": 100, "rl": 600, "rl-adv": 600}
SOUND_EPOCHS = dict.fromkeys(schedule.KNOWN, 100)


def paper(arm: str) -> Config:
    """The study's settings on CIFAR-10, each arm with its own: the comparison that it made, confounds included.

    `arm` is sl, rl, sl-adv or rl-adv, with its own number of epochs or the study's. RL arms: AdamW 1e-4 without
    curve or clipping, 600 epochs, FGSM on the policy gradient from epoch 400. SL arms: AdamW 2e-4, five epochs of
    warm-up, then a line to a tenth, clipped at 1, 100 epochs, FGSM on the cross-entropy. Batches of 256, eps 0.01.
    The study does not state batch, lr and clipping of plain SL (taken from SL-adv), the batch of SL-adv (from RL-adv)
    and the epochs of plain RL (from RL-adv). It keeps the weights of the best clean validation accuracy:
    Run.model("best_clean").

    Raises ValueError for another arm.
    """
    phases = schedule.parse(schedule.complete(arm, PAPER_EPOCHS))
    if len(phases) > 1 or phases[0].arm not in PAPER_EPOCHS:
        raise ValueError(f"schedule is {arm!r}, expected for the preset 'paper' one of {', '.join(PAPER_EPOCHS)}")
    shared = Config(
        dataset="cifar10",
        model="cnn6",
        schedule=f"{phases[0].arm}:{phases[0].epochs}",
        augment="paper",
        batch=256,
        attack="fgsm",
        eps=0.01,
    )
    if phases[0].objective == "rl":
        begins = phases[0].epochs * 400 // 600 if phases[0].is_adversarial else 0  # a shorter run keeps the share
        return replace(shared, lr=1e-4, lr_curve="constant", inner="pg", adversarial_from=begins)
    warmup = min(5.0, phases[0].epochs / 2)  # a shorter run still rises and falls
    return replace(shared, lr=2e-4, lr_curve="linear", lr_end=0.1, warmup=warmup, clip=1.0)


def sound(arms: str) -> Config:
    """The same budget for every arm: CIFAR-10, 100 epochs, and PGD-10 from a random start inside (Madry et al. 2018).

    `arms` is any schedule; phases without a number of epochs get 100. The ball is the data set's own.
    """
    return Config(
        dataset="cifar10",
        model="cnn6",
        schedule=schedule.complete(arms, SOUND_EPOCHS),
        batch=128,
        lr=1e-3,
        clip=1.0,
        attack="pgd",
        attack_steps=10,
    )


PRESETS: dict[str, Callable[[str], Config]] = {"paper": paper, "sound": sound}
