"""The training loop, all of it visible. Arms differ in the objective and in nothing else."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from gradlens import Ball
from gradlens.types import Labels, Logits, Loss, PerSample
from training import adversarial, checkpoint, data, optimize, processes, schedule
from training.augment import AUGMENTATIONS
from training.config import Config
from training.objectives import curve, divergence, objective
from training.policy import Agent
from training.randomness import Generators, seed_layers
from training.resume import Trainee
from training.schedule import Phase

CHECKED = 64  # steps between two looks at the losses: each look waits for the accelerator


@dataclass(frozen=True)
class Training:
    """What a run is made of."""

    config: Config
    dataset: data.Data
    fabric: Fabric
    trainee: Trainee
    phases: tuple[Phase, ...]

    @property
    def epochs(self) -> int:
        """Over all phases."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def ball(self) -> Ball:
        """The one that is trained in."""
        return self.dataset.ball if self.config.eps is None else Ball(self.config.eps)

    def batches(self, generator: torch.Generator) -> list[Tensor]:
        """One epoch's index batches, each enough for two images a process: batch norm cannot use a single one."""
        whole = data.batches(self.dataset.train, self.config.batch, generator)
        return [batch for batch in whole if len(batch) >= 2 * self.fabric.world_size]


class Moment(NamedTuple):
    """Where a step stands in a run: all that changes from step to step."""

    phase: Phase
    attacks: bool
    lr: float
    epsilon: float
    mix: float


def start(config: Config, dataset: data.Data) -> Training:
    """An untrained model and all that trains it."""
    phases = schedule.parse(config.schedule)
    if config.warmup >= sum(phase.epochs for phase in phases):
        raise ValueError(f"warmup is {config.warmup} epochs, expected fewer than {config.schedule!r} has")
    epochs = sum(phase.epochs for phase in phases)
    if any(phase.is_adversarial for phase in phases) and config.adversarial_from >= epochs:
        raise ValueError(
            f"adversarial_from is {config.adversarial_from}, expected fewer epochs than the {epochs} of "
            f"{config.schedule!r}, which would never attack"
        )
    fabric = processes.launch(config)
    fabric.seed_everything(config.seed, verbose=False)
    model = processes.share_statistics(checkpoint.build(config, dataset), fabric)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    passed: nn.Module = torch.compile(model) if config.compile else model  # type: ignore[assignment]
    module, optimizer = fabric.setup(passed, optimize.optimizer(model, config))
    agent = Agent(config.policy, torch.zeros((), device=fabric.device))
    trainee = Trainee(model, module, optimizer, optimize.average(model, config), agent)
    return Training(config, _at_home(config, dataset, fabric.device), fabric, trainee, phases)


def epoch(training: Training, number: int, bar: "tqdm[Any] | None" = None) -> dict[str, Any]:
    """One pass over the training part, the `number`-th from 0; means of loss, expected reward and entropy.

    Raises ValueError naming the step whose loss is not finite.
    """
    config, fabric = training.config, training.fabric
    generators = Generators.of(config.seed, number)
    seed_layers(config.seed, number, fabric.global_rank)
    training.trainee.module.train()
    batches = training.batches(generators.order)
    seen = torch.zeros(len(batches), 3, device=fabric.device)
    for i, batch in enumerate(batches):
        now = moment(training, number, i / len(batches))
        seen[i] = step(training, now, batch, generators)
        if bar is not None:
            bar.update()
        if (i + 1) % CHECKED == 0 or i + 1 == len(batches):
            first = i // CHECKED * CHECKED
            seen[first : i + 1] = processes.mean(seen[first : i + 1], fabric)
            _refuse_nonfinite(training, seen[: i + 1, 0], number)
    loss, reward, entropy = seen.double().mean(0).tolist()
    arm, rate = now.phase.arm, now.lr
    return {"epoch": number + 1, "arm": arm, "loss": loss, "reward": reward, "entropy": entropy, "lr": rate}


def moment(training: Training, number: int, share: float) -> Moment:
    """The moment after this share of epoch `number`."""
    config = training.config
    phase, within = schedule.at(training.phases, number)
    return Moment(
        phase,
        attacks=phase.is_adversarial and number >= config.adversarial_from,
        lr=optimize.rate(config, number + share, training.epochs),
        epsilon=config.epsilon * curve(config.epsilon_curve, (number + share) / training.epochs),
        mix=1 - curve(config.blend_curve, (within + share) / phase.epochs),
    )


def step(training: Training, now: Moment, batch: Tensor, generators: Generators) -> Tensor:
    """One update of the weights; loss, expected reward and entropy, scaled so that processes average to the batch's."""
    config, fabric, dataset = training.config, training.fabric, training.dataset
    model, module, optimizer, _, agent = training.trainee
    part = processes.part(len(batch), rank=fabric.global_rank, world=fabric.world_size)
    whole, y = (t.to(fabric.device, non_blocking=True) for t in dataset.train.at(batch))
    whole, y = dataset.augment(whole, generators.augment), y[part.rows]
    if config.channels_last:
        whole = whole.contiguous(memory_format=torch.channels_last)
    x, attacked = whole[part.rows], None
    made = partial(
        objective, now.phase.objective, agent, generators.actions, epsilon=now.epsilon, mix=now.mix, part=part
    )
    if now.attacks:
        begin = adversarial.start(whole, training.ball, config, generators.attacks)[part.rows]
        with fabric.autocast():
            attacked = adversarial.attack(model, x, y, training.ball, config, made(learns=False), begin)
    trained = made()
    logits = module(x)
    loss = trained(logits, y).sum()
    if attacked is not None:
        loss = loss + _hostile(module(attacked), logits, y, trained, config).sum()
    scale = fabric.world_size / part.batch  # processes average their gradients
    optimizer.zero_grad()
    fabric.backward(loss * scale)
    _update(training, now.lr)
    with torch.no_grad():
        p = logits.softmax(1)
        return scale * torch.stack([loss, p.gather(1, y[:, None]).sum(), torch.special.entr(p).sum()])


def _hostile(attacked: Logits, clean: Logits, y: Labels, trained: Loss, config: Config) -> PerSample:
    """The loss on attacked images: the objective's own, or what sets their answers apart from the clean ones."""
    if config.inner == "kl":
        return config.beta * divergence(clean.log_softmax(1), attacked.log_softmax(1))
    return config.adversarial_weight * trained(attacked, y)


def _update(training: Training, lr: float) -> None:
    """Move the weights, and what follows them."""
    config, fabric = training.config, training.fabric
    model, module, optimizer, averaged, agent = training.trainee
    for group in optimizer.param_groups:
        group["lr"] = lr
    if config.clip is not None:
        fabric.clip_gradients(module, optimizer, max_norm=config.clip, error_if_nonfinite=False)
    optimizer.step()
    if averaged is not None:
        averaged.update_parameters(model)
    if (mean_reward := agent.take()) is not None:
        agent.remember(processes.mean(mean_reward, fabric))


def _refuse_nonfinite(training: Training, losses: Tensor, number: int) -> None:
    """Stop at the first loss that is not finite, or at the last one where the weights that it led to are not."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad) == 0 and all(bool(p.isfinite().all()) for p in training.trainee.model.parameters()):
        return
    place = int(bad[0]) if len(bad) else len(losses) - 1
    found = f"loss is {losses[place].item()}" if len(bad) else "weights are not finite"
    raise ValueError(
        f"{found} at step {place} after {number} epochs of {training.config.schedule!r}; what those epochs reached "
        "stays in the folder of the run. A smaller lr may help, or a clip"
    )


def _at_home(config: Config, dataset: data.Data, device: torch.device) -> data.Data:
    """The data set on the device, with as many training images and augmented as the config has it."""
    train = dataset.train if config.images is None else data.part(dataset.train, config.images)
    parts: dict[str, Any] = {"train": train.to(device), "validation": dataset.validation.to(device)}
    if config.augment is not None:
        parts["augment"] = AUGMENTATIONS[config.augment]
    return dataclasses.replace(dataset, **parts)
