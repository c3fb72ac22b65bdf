"""The training loop, all of it visible. Arms differ in the objective and in nothing else."""

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from gradlens import Ball, frozen, losses, pgd, predict
from gradlens.attacks.pgd import perturb
from gradlens.provenance import versions
from gradlens.store import write
from gradlens.types import Images, Labels
from training import checkpoint, data, schedule
from training.checkpoint import Run
from training.config import Config
from training.objectives import OBJECTIVES
from training.schedule import Phase

WATCHED = 128  # validation images that are attacked after each epoch


class Generators(NamedTuple):
    """One source of randomness a purpose: arms that draw more actions still see the same batches."""

    order: torch.Generator
    actions: torch.Generator
    attacks: torch.Generator


def fit(config: Config, out: Path, *, quiet: bool = False) -> Run:
    """Train one run and write it to `out`; a finished run with the same config is returned as it is.

    Raises ValueError for an unknown data set, model or schedule, a folder that holds another run, or a loss that is
    no longer finite, naming the step.
    """
    phases = schedule.parse(config.schedule)
    dataset = data.load(config.dataset)
    if (out / "run.json").is_file():
        return _finished(config, out)
    fabric = Fabric(accelerator="auto", devices=1)
    fabric.seed_everything(config.seed, verbose=False)
    model = checkpoint.build(config, dataset)
    module, optimizer = fabric.setup(
        model, torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    )
    generators = Generators(*(torch.Generator().manual_seed(3 * config.seed + i) for i in range(3)))
    total = sum(phase.epochs for phase in phases)
    history: list[dict[str, float | str]] = []
    started = time.perf_counter()
    with tqdm(total=total, desc=f"{out.name}", unit="epoch", disable=quiet or None, leave=False) as bar:
        for phase in [one for one in phases for _ in range(one.epochs)]:
            begun = time.perf_counter()
            means = epoch(
                fabric, module, model, optimizer, dataset, phase, config, generators, len(history) / total, total
            )
            seconds = time.perf_counter() - begun
            history.append(
                {"epoch": len(history) + 1, "arm": phase.arm, **means, **watch(model, dataset), "seconds": seconds}
            )
            bar.update()
            bar.set_postfix(clean=f"{history[-1]['clean']:.1%}", pgd=f"{history[-1]['pgd']:.1%}")
    write(out / "history.jsonl", "".join(json.dumps(record) + "\n" for record in history).encode())
    return checkpoint.save(
        out,
        model,
        config,
        {
            "seconds": time.perf_counter() - started,
            "threads": torch.get_num_threads(),
            "device": str(fabric.device),
            "versions": versions(),
            "last": history[-1],
        },
    )


def epoch(
    fabric: Fabric,
    module: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: data.Data,
    phase: Phase,
    config: Config,
    generators: Generators,
    progress: float,
    total: int,
) -> dict[str, float]:
    """One pass over the training part. `module` is the model as Fabric wraps it, `model` the same weights bare."""
    module.train()
    train = dataset.train
    batches = data.batches(train, config.batch, generators.order)
    sums = torch.zeros(3)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _lr(config, progress + step / len(batches) / total)
        x, y = (part.to(fabric.device) for part in train.at(batch))
        attacked = attack(model, x, y, phase, config, dataset.ball, generators) if phase.is_adversarial else None
        logits = module(x)
        loss = _objective(logits, y, phase, config, generators).mean()
        if attacked is not None:
            hostile = _objective(module(attacked), y, phase, config, generators).mean()
            loss = loss + config.adversarial_weight * hostile
        if not loss.isfinite():
            raise ValueError(
                f"loss is {loss.item()} at step {step} after {progress * total:.0f} epochs of {config.schedule!r}"
            )
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        p = logits.detach().softmax(1)
        entropy = torch.special.entr(p).sum(1).mean()
        sums += torch.stack([loss.detach(), p.gather(1, y[:, None]).mean(), entropy]).cpu()
    loss_mean, reward, entropy_mean = (sums / len(batches)).tolist()
    return {"loss": loss_mean, "reward": reward, "entropy": entropy_mean}


def attack(
    model: nn.Module, x: Images, y: Labels, phase: Phase, config: Config, ball: Ball, generators: Generators
) -> Images:
    """The inner attack. FGSM, as the study has it, starts at the image and sees the model in training mode;

    PGD starts anywhere in the ball and sees it as an attacker would, in evaluation mode.
    """
    ball = ball if config.eps is None else Ball(config.eps)

    def climbed(logits: Tensor, y: Tensor) -> Tensor:
        return (
            losses.cross_entropy(logits, y)
            if config.inner == "ce"
            else _objective(logits, y, phase, config, generators)
        )

    if config.attack == "fgsm":
        return perturb(model, x, y, ball, steps=1, step_size=ball.eps, loss=climbed, start=x)
    with frozen(model):
        start = ball.sample(x, generators.attacks)
        size = 2.5 * ball.eps / config.attack_steps
        return perturb(model, x, y, ball, steps=config.attack_steps, step_size=size, loss=climbed, start=start)


def watch(model: nn.Module, dataset: data.Data) -> dict[str, float]:
    """Accuracy on the validation part, clean and under ten steps of PGD: an eye on the training, not a result."""
    part = dataset.validation
    device = next(model.parameters()).device
    x, y = part.x[:WATCHED].to(device), part.y[:WATCHED].to(device)
    clean = (predict(model, part.x.to(device)) == part.y.to(device)).double().mean()
    robust = (~pgd(model, x, y, dataset.ball, steps=10).ever).double().mean()
    return {"clean": clean.item(), "pgd": robust.item()}


def _objective(logits: Tensor, y: Labels, phase: Phase, config: Config, generators: Generators) -> Tensor:
    return OBJECTIVES[phase.objective](logits, y, generators.actions, config.epsilon)


def _lr(config: Config, progress: float) -> float:
    return 1.0 if config.lr_curve == "constant" else 0.5 * (1 + math.cos(math.pi * progress))


def _finished(config: Config, out: Path) -> Run:
    run = checkpoint.load(out)
    if run.config != config:
        raise ValueError(f"out {str(out)!r} holds a run of another config ({run.config}), expected an empty folder")
    return run
