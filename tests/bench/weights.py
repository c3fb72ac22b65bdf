"""Are weight planes fast? python -m tests.bench.weights, beside loss-landscapes' random_plane with its own Loss metric.

Both see the same images, all of them in the model at once. First loss-landscapes measures our plane, cell by cell, and
must find our values. A small convolutional network with batch norm, with 32 and with 256 images, the whole 25 x 25; and
a ResNet-18 with 256 images, where a cell costs the same wherever it lies: a plane of 3 x 3 cells is timed, and the
whole one reckoned by the forward passes that both take, which are counted image by image while the clock runs: ours
looks at the model before the first cell. What the adaptive grid leaves out there is counted with fewer images.
"""

import argparse
import copy
import functools
import sys
from collections.abc import Callable, Sequence

import loss_landscapes
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import WeightSurface, reference
from gradlens.prepared import products
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
    with x.device:  # it draws its directions where torch draws by default, and so fails on a GPU
        loss_landscapes.random_plane(copy.deepcopy(model), metric, steps=points, normalization="layer")


def checked(model: nn.Module, x: Tensor, y: Tensor, points: int) -> str:
    """Raises RuntimeError where loss-landscapes finds other values on our plane."""
    with products("ieee"):  # a GPU may round what is multiplied, each order of the same sums in its own way
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


def passes(measure: Callable[[], object], images: int) -> float:
    """How often a network with one linear layer, or a copy of it, is run on so many images; on fewer, that share."""
    count = 0

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        nonlocal count
        count += len(inputs[0]) if isinstance(module, nn.Linear) else 0

    hook = nn.modules.module.register_module_forward_hook(seen)
    try:
        measure()
    finally:
        hook.remove()
    return count / images


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
    models = {"full": model} | ({"half": gl.prepare(model, precision="bfloat16")} if half else {})
    agreement = checked(model, x[:32], y[:32], part)
    taken: dict[str, float] = {}  # passes of the part that is timed

    def timed(name: str) -> None:
        run = functools.partial(ours, models[name]) if name in models else functools.partial(theirs, model)
        taken[name] = passes(lambda: run(x, y, part), len(x))

    seconds = in_turns({name: functools.partial(timed, name) for name in (*models, "theirs")}, rounds)

    def reckoned(name: str, cells: float) -> list[float]:
        """Each further cell takes one pass more; what else a call takes is held to grow as its passes do."""
        return [second * (cells - part**2 + taken[name]) / taken[name] for second in seconds[name]]

    few, whole = (x[:8], y[:8]), points**2
    truth = ours(model, *few, points)
    work = f"weight plane {points} x {points}, ResNet-18, {images} images"
    note = f"reckoned from {part} x {part} cells"
    found = []
    for name, one in models.items():
        how = ", bfloat16" if name == "half" else ""
        said = agreement if name == "full" else _apart(truth, ours(one, *few, points), len(few[0]))
        sparse = ours(one, *few, points, TOLERANCE)
        for kind, cells, says, goal in (
            (how, whole, said, 0.35 if name == "half" else 1.0),
            (f", adaptive{how.replace(',', ' in')}", sparse.evaluations, _apart(truth, sparse, len(few[0])), 0.35),
        ):
            left_out = "" if cells == whole else f", and from the {cells} of {whole} cells that few images take"
            found.append(
                compared(
                    work + kind, "loss-landscapes", reckoned(name, cells), reckoned("theirs", whole), at_most=goal,
                    agreement=says, note=note + left_out,
                )
            )  # fmt: skip
    return found


def _apart(truth: WeightSurface, other: WeightSurface, images: int) -> str:
    """How far a plane in other arithmetic or with cells left out is from all cells in float32, and what it promised."""
    error, span = (other.values - truth.values).abs().max(), truth.values.max() - truth.values.min()
    bound = "" if other.tolerance is None else f", its own bound is {float(other.bound[0] / span):.2%}"
    return f"off the full plane by {error / span:.2%} of the range{bound} ({images} images)"


def _error(model: nn.Module, x: Tensor, y: Tensor, points: int) -> str:
    full, filled = ours(model, x, y, points), ours(model, x, y, points, TOLERANCE)
    error = (filled.values - full.values).abs().max()
    if error > filled.bound[0]:
        raise RuntimeError(f"the adaptive plane is off by {error:.3g}, beyond its own bound {filled.bound[0]:.3g}")
    return f"{_apart(full, filled, len(x))}, with {filled.measured.double().mean():.0%} of the cells"


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
