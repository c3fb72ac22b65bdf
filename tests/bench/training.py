"""Is the loop fast? python -m tests.bench.training: ratios within one run, epochs in turns.

A policy-gradient epoch may cost 1.05 supervised ones. A supervised epoch must reach 85% of the throughput of a bare
forward, backward, step loop on the same batches. cnn_small on synthetic images of Fashion-MNIST's size; on a GPU,
ResNet-18 on Fashion-MNIST itself where `python -m training prepare` has brought it, with images a second.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from gradlens import Ball
from tests.bench import machine
from tests.bench.outcome import Outcome, compared, in_turns
from training import checkpoint, data, loop, optimize
from training.config import Config
from training.data import Data, Split
from training.randomness import Generators


def clothes(images: int) -> Data:
    """Noise in the shape and the storage of Fashion-MNIST."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        x = torch.randint(256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return Split(x, torch.randint(10, (count,), generator=generator))

    return Data("clothes", split(images), split(100), split(100), classes=10, ball=Ball(0.1))


def ours(schedule: str, dataset: Data, **options: object) -> Callable[[int], None]:
    """One epoch of the package's loop."""
    training = loop.start(Config(schedule=f"{schedule}:1000", **options), dataset)  # type: ignore[arg-type]

    def run(number: int) -> None:
        loop.epoch(training, number)

    return run


def bare(dataset: Data, **options: object) -> Callable[[int], None]:
    """What any script would write: batches as they come, one loss, nothing measured."""
    config = Config(schedule="sl:1000", **options)  # type: ignore[arg-type]
    training = loop.start(config, dataset)
    model = checkpoint.build(config, dataset).to(training.fabric.device)
    optimizer = optimize.optimizer(model, config)

    def run(number: int) -> None:
        model.train()
        for batch in training.batches(Generators.of(config.seed, number).order):
            x, y = training.dataset.train.at(batch)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return run


def rows(*, images: int = 2048, batch: int = 64, rounds: int = 7) -> list[Outcome]:
    """An epoch of RL against one of SL, and one of SL against a bare loop over the same batches."""
    dataset = clothes(images)
    seconds = in_turns(_epochs(dataset, batch=batch), rounds)
    said = f"the same batches of {batch}, cnn_small"
    return [
        compared(f"an epoch of RL, {images} images", "an epoch of SL", seconds["rl"], seconds["sl"], at_most=1.05,
                 agreement=said),
        compared(f"an epoch of SL, {images} images", "a bare loop", seconds["sl"], seconds["bare"], at_most=1 / 0.85,
                 agreement=said),
    ]  # fmt: skip


def on_gpu(rate: float, *, batch: int = 512, rounds: int = 2) -> list[Outcome]:
    """Epochs of ResNet-18, also in bfloat16, against a bare loop in float32; `rate` is the chip's for convolutions."""
    try:
        dataset = data.load("fashion-mnist")
    except ValueError:  # not brought here
        dataset = clothes(54_000)
    options = {"batch": batch, "model": "resnet18"}
    half = counting(ours("sl", dataset, precision="bfloat16", **options))
    seconds = in_turns({**_epochs(dataset, **options), "half": half}, rounds)
    model = checkpoint.build(Config(model="resnet18"), dataset).eval()
    each = 3 * machine.flops(model, dataset.validation.at(torch.arange(1))[0])  # there, back to weights and to inputs
    count = len(dataset.train)

    def pace(name: str) -> str:
        a_second = count / statistics.median(seconds[name])
        return f"{a_second:.0f} images a second, {a_second * each / rate:.0%} of the chip's rate for float32"

    work = f"ResNet-18 on {dataset.name}, {count} images"
    said = f"the same batches of {batch}"
    return [
        compared(f"an epoch of {arm}, {work}{kind}", against, seconds[name], seconds[other], agreement=said,
                 note=pace(name))
        for arm, name, kind, other, against in (
            ("RL", "rl", "", "sl", "an epoch of SL"),
            ("SL", "sl", "", "bare", "a bare loop"),
            ("SL", "half", ", bfloat16", "bare", "a bare loop, float32"),
        )
    ]  # fmt: skip


def _epochs(dataset: Data, **options: object) -> dict[str, Callable[[], None]]:
    """What is timed in turns: an epoch of each kind, one after the other."""
    return {
        "rl": counting(ours("rl", dataset, **options)),
        "sl": counting(ours("sl", dataset, **options)),
        "bare": counting(bare(dataset, **options)),
    }


def counting(run: Callable[[int], None]) -> Callable[[], None]:
    """Epoch after epoch."""
    numbers = itertools.count()
    return lambda: run(next(numbers))


def main(words: Sequence[str] | None = None) -> int:
    """Print both ratios; exit code 1 where one misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    found = rows(images=given.images, batch=given.batch, rounds=given.rounds)
    print(*found, sep="\n")
    return int(not all(row.is_met for row in found))


if __name__ == "__main__":
    sys.exit(main())
