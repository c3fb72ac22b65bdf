"""Is the loop fast? python -m tests.bench.training: ratios within one run, medians of paired epochs A B A B.

A policy-gradient epoch may cost 1.05 supervised ones. A supervised epoch must reach 85% of the throughput of a bare
forward, backward, step loop on the same batches. cnn_small on synthetic images of Fashion-MNIST's size.
"""

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F

from gradlens import Ball
from tests.bench.paired import paired
from training import checkpoint, loop, optimize
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


def main() -> int:
    """Print both ratios; exit code 1 where one misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dataset, batch = clothes(given.images), given.batch
    rl, sl, cost = paired(ours("rl", dataset, batch=batch), ours("sl", dataset, batch=batch), given.rounds)
    print(f"RL epoch / SL epoch: {cost:.3f} (at most 1.05); {rl:.2f} s and {sl:.2f} s, {given.images} images")
    plain, sl, share = paired(bare(dataset, batch=batch), ours("sl", dataset, batch=batch), given.rounds)
    print(f"SL throughput / bare throughput: {share:.3f} (at least 0.85); {sl:.2f} s and {plain:.2f} s")
    return int(cost > 1.05 or share < 0.85)


if __name__ == "__main__":
    sys.exit(main())
