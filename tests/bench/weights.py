"""Are weight planes fast? python -m tests.bench.weights: ratios within one run, medians of paired planes A B A B.

A full 25 x 25 plane at float32 may take as long as loss-landscapes' random_plane with its own Loss metric on the same
images, all of them in the model at once in both; an adaptive one 0.35 of that, within 1% of the range. A small
convolutional network with batch norm, trained for a moment so that the loss has a valley.
"""

import argparse
import copy
import sys
import time
from itertools import pairwise

import loss_landscapes
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlens import WeightSurface, reference, weight_plane
from tests.bench.paired import paired


def network() -> nn.Module:
    """Three convolutions for images of 1 x 28 x 28."""
    widths = (1, 16, 32, 32)
    layers: list[nn.Module] = []
    for wide, wider in pairwise(widths):
        layers += [nn.Conv2d(wide, wider, 3, stride=2, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def trained(images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network after 60 steps on patterns with noise, and what it learned from."""
    torch.manual_seed(0)
    y = torch.arange(images) % 10
    x = (0.5 * torch.rand(10, 1, 28, 28)[y] + 0.5 * torch.rand(images, 1, 28, 28)).clamp(0, 1)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x[:256]), y[:256]).backward()
        optimizer.step()
    return model.eval(), x, y


def theirs(model: nn.Module, x: Tensor, y: Tensor, points: int) -> None:
    """random_plane on a copy; 'layer', since its 'filter' divides by zero where a bias is zero."""
    metric = loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), x, y)
    loss_landscapes.random_plane(copy.deepcopy(model), metric, steps=points, normalization="layer")


def main() -> int:
    """Print the ratios; exit code 1 where one misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--points", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, x, y = trained(given.images)

    def ours(adaptive: float | None = None) -> WeightSurface:
        stream = torch.Generator().manual_seed(1)
        return weight_plane(
            model, x, y, points=given.points, metrics=("loss",), adaptive=adaptive, batch=given.images, generator=stream
        )

    def peer(_: int) -> None:
        theirs(model, x, y, given.points)

    surface, filled = ours(), ours(0.01)
    own = reference.weight_surface(model, x, y, surface).of("loss")
    gap = (own - surface.of("loss")).abs().max()
    print(f"loss-landscapes finds the same values on our plane, to {gap:.1e} nats")
    mine, other, full = paired(lambda _: ours(), peer, given.rounds, clock=time.process_time)
    print(f"full plane / loss-landscapes: {full:.3f} (at most 1); {mine:.2f} s and {other:.2f} s")
    mine, other, sparse = paired(lambda _: ours(0.01), peer, given.rounds, clock=time.process_time)
    print(f"adaptive plane / loss-landscapes: {sparse:.3f} (at most 0.35); {mine:.2f} s and {other:.2f} s")
    error, span = (filled.values - surface.values).abs().max(), surface.values.max() - surface.values.min()
    print(f"  {filled}")
    print(f"  off the full plane by {error / span:.2%} of the range {span:.3g}, bound {filled.bound[0] / span:.2%}")
    return int(full > 1 or sparse > 0.35 or error > filled.bound[0] or gap > 1e-5 * span)


if __name__ == "__main__":
    sys.exit(main())
