"""Are weight planes fast? python -m tests.bench.weights, beside loss-landscapes' random_plane with its own Loss metric.

Both see the same images, all of them in the model at once. First loss-landscapes measures our plane, cell by cell, and
must find our values. A small convolutional network with batch norm, with 32 and with 256 images, the whole 25 x 25; and
a ResNet-18 with 256 images, where a cell costs the same wherever it lies: a plane of 3 x 3 cells and one of a single
cell give the seconds of a cell and those of what comes before the first, and from both the whole plane is reckoned;
what the adaptive grid leaves out there is counted on a whole grid with fewer images.
"""

import argparse
import copy
import functools
import sys
from collections.abc import Sequence

import loss_landscapes
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import WeightSurface, reference
from tests.bench import machine, networks
from tests.bench.outcome import Outcome, compared, in_turns

TOLERANCE = 0.01  # of the range, for the adaptive grid


def ours(model: nn.Module, x: Tensor, y: Tensor, points: int, adaptive: float | None = None) -> WeightSurface:
    stream = torch.Generator().manual_seed(1)
    return gl.weight_plane(
        model, x, y, points=points, metrics=("loss",), adaptive=adaptive, batch=len(x), generator=stream
    )


def theirs(model: nn.Module, x: Tensor, y: Tensor, points: int) -> None:
    """random_plane on a copy; 'layer', since its 'filter' divides by zero where a bias is zero."""
    metric = loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), x, y)
    loss_landscapes.random_plane(copy.deepcopy(model), metric, steps=points, normalization="layer")


def checked(model: nn.Module, x: Tensor, y: Tensor, points: int) -> str:
    """Raises RuntimeError where loss-landscapes finds other values on our plane."""
    surface = ours(model, x, y, points)
    values, own = surface.of("loss"), reference.weight_surface(model, x, y, surface).of("loss")
    gap, span = (own - values).abs().max(), values.max() - values.min()
    if not gap < 1e-4 * span:
        raise RuntimeError(f"loss-landscapes finds values off by {gap:.3g} nats on our plane, of range {span:.3g}")
    return f"the same values to {gap:.0e} nats"


def small(images: int, *, points: int = 25, rounds: int = 5, goal: float, sparse: float | None = None) -> list[Outcome]:
    """The whole plane of the small network, and the adaptive one."""
    x, y = networks.patterns(images, (1, 28, 28))
    model = networks.trained(networks.small(), x[:256], y[:256], 60)
    work = f"weight plane {points} x {points}, small network, {images} images"
    agreement = checked(model, x, y, 5)
    runs = {
        "full": lambda: ours(model, x, y, points),
        "adaptive": lambda: ours(model, x, y, points, TOLERANCE),
        "theirs": lambda: theirs(model, x, y, points),
    }
    seconds = in_turns(runs, rounds)
    return [
        compared(work, "loss-landscapes", seconds["full"], seconds["theirs"], at_most=goal, agreement=agreement),
        compared(
            f"{work}, adaptive", "loss-landscapes", seconds["adaptive"], seconds["theirs"], at_most=sparse,
            agreement=_error(model, x, y, points),
        ),
    ]  # fmt: skip


def whole(few: Sequence[float], one: Sequence[float], part: int, cells: float) -> list[float]:
    """Seconds of a plane of so many cells, from those of part x part cells and those of one, round by round."""
    each = [(a - b) / (part**2 - 1) for a, b in zip(few, one, strict=True)]
    return [b + (cells - 1) * cell for b, cell in zip(one, each, strict=True)]


def wide(
    images: int = 256,
    *,
    points: int = 25,
    part: int = 3,
    rounds: int = 2,
    device: str = "cpu",
    half: bool = True,
) -> list[Outcome]:
    """ResNet-18: a plane in float32 and with `half` in bfloat16, whole and as the adaptive grid asks for it."""
    x, y = (t.to(device) for t in networks.patterns(images, (3, 32, 32)))
    model = networks.resnet18().to(device)
    networks.trained(model, x[:64], y[:64], 20, 1e-3)
    sides = {"full": functools.partial(ours, model, x, y), "theirs": functools.partial(theirs, model, x, y)}
    if half:
        sides["half"] = functools.partial(ours, gl.prepare(model, precision="bfloat16"), x, y)
    agreement = checked(model, x[:32], y[:32], part)
    runs = {f"{name} {n}": functools.partial(run, points=n) for n in (1, part) for name, run in sides.items()}
    seconds = in_turns(runs, rounds)
    few = 16
    sparse = ours(model, x[:few], y[:few], points, TOLERANCE)
    share = float(sparse.measured.double().mean())

    def reckoned(name: str, cells: float) -> list[float]:
        return whole(seconds[f"{name} {part}"], seconds[f"{name} 1"], part, cells)

    work = f"weight plane {points} x {points}, ResNet-18, {images} images"
    note = f"reckoned from {part} x {part} cells and a single one"
    left_out = f"{note}; the share of cells measured on the whole grid of {few} images is {share:.3f}"
    kinds = [
        ("full", "", points**2, 1.0, note),
        ("full", ", adaptive", share * points**2, 0.35, left_out),
        ("half", ", bfloat16", points**2, 0.35, note),
        ("half", ", adaptive in bfloat16", share * points**2, 0.35, left_out),
    ]
    return [
        compared(
            work + how, "loss-landscapes", reckoned(name, cells), reckoned("theirs", points**2), at_most=goal,
            agreement=agreement, note=said,
        )
        for name, how, cells, goal, said in kinds if name in sides
    ]  # fmt: skip


def _error(model: nn.Module, x: Tensor, y: Tensor, points: int) -> str:
    full, filled = ours(model, x, y, points), ours(model, x, y, points, TOLERANCE)
    error, span = (filled.values - full.values).abs().max(), full.values.max() - full.values.min()
    if error > filled.bound[0]:
        raise RuntimeError(f"the adaptive plane is off by {error:.3g}, beyond its own bound {filled.bound[0]:.3g}")
    share = filled.measured.double().mean()
    return f"off the full plane by {error / span:.2%} of the range, with {share:.0%} of the cells"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    found = [
        *small(32, rounds=given.rounds, goal=0.33),
        *small(256, rounds=given.rounds, goal=1.0, sparse=0.35),
        *wide(rounds=min(given.rounds, 2), half=machine.measure().is_fast_in_half),
    ]
    print(*found, sep="\n")
    return int(not all(row.is_met for row in found))


if __name__ == "__main__":
    sys.exit(main())
