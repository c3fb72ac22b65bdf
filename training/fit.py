"""One run from an untrained model to files: trained, watched, written after each epoch, taken up where it stopped."""

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gradlens.disk import tidy
from gradlens.lock import Lock
from gradlens.provenance import versions
from training import checkpoint, data, resume, schedule
from training.checkpoint import Run
from training.config import Config
from training.journal import Journal
from training.loop import Training, epoch, start
from training.randomness import Generators
from training.resume import Progress
from training.watch import collapsed, glance, warn, watch

LOCK = ".lock"  # in a run's folder while it is trained
BEST = {"best_clean": "clean", "best_pgd": "pgd"}  # kept checkpoints, and the validation accuracy that chooses each


def fit(config: Config, out: Path, *, quiet: bool = False, tensorboard: bool = False, waits: bool = False) -> Run:
    """Train one run and write it to `out`; a finished run with the same config is returned as it is.

    A run that was stopped goes on after its last finished epoch and ends with the weights that it would have had.
    Under torchrun all processes call this together: they share each batch, and the first one writes. While another
    process trains in `out`, this one `waits` for what it makes, or is refused.

    Raises ValueError for an unknown data set, model or schedule, a folder that holds another run or is in use, or a
    loss that is no longer finite, naming the step; the state of the last finished epoch and the best weights stay in
    the folder.
    """
    schedule.parse(config.schedule)
    dataset = data.load(config.dataset)
    if (out / "run.json").is_file():
        return _finished(config, out)
    is_first = int(os.environ.get("RANK", "0")) == 0
    with Lock(out / LOCK, f"out {str(out)!r}", waits=waits) if is_first else nullcontext():
        if (out / "run.json").is_file():
            return _finished(config, out)
        if is_first:
            for folder in (out, out / "epochs"):
                tidy(folder)
        return _trained(config, dataset, out, quiet, tensorboard)


def _trained(config: Config, dataset: data.Data, out: Path, quiet: bool, tensorboard: bool) -> Run:
    """The run, trained to its end."""
    training = start(config, dataset)
    progress = resume.restore(out, training.trainee, config)
    if training.fabric.is_global_zero and progress.epoch == 0:
        progress = _keep_epoch(training, out, progress, 0)
    training.fabric.barrier()  # all have looked before the first one writes
    journal = None
    if training.fabric.is_global_zero:
        journal = Journal(out, progress.epoch, tensorboard=tensorboard, expected=progress.history)
    with _bar(training, progress, out.name, quiet=quiet or journal is None) as bar:
        for number in range(progress.epoch, training.epochs):
            begun = time.perf_counter()
            record = epoch(training, number, bar)
            if journal is not None:
                _watch(training, journal, {**record, "seconds": time.perf_counter() - begun})
                progress = _keep(training, out, journal, progress, begun)
                bar.set_postfix(
                    {name: f"{value:.1%}" for name in BEST.values() if (value := journal.last[name]) is not None}
                )
    if journal is not None:
        journal.close()
        checkpoint.save(out, training.trainee.product, config, _summary(training, progress, journal))
        (out / resume.NAME).unlink()
    training.fabric.barrier()
    return checkpoint.load(out)


def _watch(training: Training, journal: Journal, record: dict[str, Any]) -> None:
    """Measure after an epoch, write its line, and warn the first time that training has collapsed."""
    config, model, dataset = training.config, training.trainee.product, training.dataset
    if record["epoch"] % config.watch_every == 0 or record["epoch"] == training.epochs:
        measured = watch(model, dataset, ball=training.ball, seed=config.seed)
    else:
        measured = glance(model, dataset)
    entry = {**record, **measured}
    attacked = [past for past in journal.records if past["arm"].endswith("-adv")]
    entry["collapsed"] = record["arm"].endswith("-adv") and collapsed([*attacked, entry])
    journal.write(entry)
    if entry["collapsed"] and not any(past["collapsed"] for past in attacked):
        warn(entry["epoch"], entry)


def _keep(training: Training, out: Path, journal: Journal, progress: Progress, begun: float) -> Progress:
    """Write the weights that are the best so far, then the state from which the run could go on."""
    best, last = dict(progress.best), journal.last
    for which, accuracy in BEST.items():
        if last[accuracy] is None:  # not watched in this epoch
            continue
        if which not in best or last[accuracy] > best[which]["value"]:
            digest = checkpoint.save_weights(out / checkpoint.FILES[which], training.trainee.product)
            best[which] = {"epoch": last["epoch"], "value": last[accuracy], "sha256": digest}
    seconds = progress.seconds + time.perf_counter() - begun
    progress = Progress(last["epoch"], seconds, best, progress.path, journal.sha256)
    progress = _keep_epoch(training, out, progress, last["epoch"])
    resume.save(out, training.trainee, training.config, progress)
    return progress


def _keep_epoch(training: Training, out: Path, progress: Progress, number: int) -> Progress:
    """Write the weights after this epoch, if they are of those that the config wants on the way."""
    every = training.config.keep_every
    if not every or (number % every and number != training.epochs):
        return progress
    name = checkpoint.epoch_file(number)
    digest = checkpoint.save_weights(out / name, training.trainee.product)
    return progress._replace(path={**progress.path, name: digest})


def _summary(training: Training, progress: Progress, journal: Journal) -> dict[str, Any]:
    return {
        "seconds": progress.seconds,
        "threads": torch.get_num_threads(),
        "processes": training.fabric.world_size,
        "device": str(training.fabric.device),
        "versions": versions(),
        "last": journal.last,
        "best": progress.best,
        "path": progress.path,
        "history_sha256": journal.sha256,
    }


def _bar(training: Training, progress: Progress, name: str, *, quiet: bool) -> "tqdm[Any]":
    """Steps done and the time left; nothing where nobody looks."""
    steps = len(training.batches(Generators.of(training.config.seed, 0).order))
    total, done = training.epochs * steps, progress.epoch * steps
    return tqdm(total=total, initial=done, desc=name, unit="step", leave=False, disable=quiet or None)


def _finished(config: Config, out: Path) -> Run:
    run = checkpoint.load(out)
    if run.config != config:
        raise ValueError(f"out {str(out)!r} holds a run of another config ({run.config}), expected an empty folder")
    (out / resume.NAME).unlink(missing_ok=True)
    return run
