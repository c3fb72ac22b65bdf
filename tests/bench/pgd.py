"""Is PGD fast while everything about it is recorded? python -m tests.bench.pgd, in the peers' environment.

PGD-20 on a ResNet-18 for images of 32 x 32, from the image itself, with the same step: gradlens with its whole trace,
in float32 and, where a processor gains by it, in bfloat16; torchattacks and foolbox, which record nothing; in turns.
Before that all of them run once, and their ends are held against each other.
"""

import argparse
import statistics
import sys

import torch
from torch import Tensor

import gradlens as gl
from tests.bench import machine, networks
from tests.bench.outcome import Outcome, compared, in_turns

BALL = gl.Ball(8 / 255)
GOALS = {"torchattacks": 0.85, "foolbox": 0.50, "bfloat16": 0.45}
ON_GPU = {"torchattacks": 0.50, "foolbox": 0.50, "bfloat16": 0.25}


def rows(*, batch: int = 64, steps: int = 20, rounds: int = 3, device: str = "cpu", half: bool = True) -> list[Outcome]:
    """Ours against both peers, and with `half` ours in bfloat16 against torchattacks."""
    import foolbox
    import torchattacks  # in the peers' environment alone

    x, y = networks.patterns(max(batch, 64), (3, 32, 32))
    model = networks.trained(networks.resnet18(), x[:64], y[:64], 20, 1e-3).to(device)
    x, y = x[:batch].to(device), y[:batch].to(device)
    size = 2.5 * BALL.eps / steps
    lower = gl.prepare(model, precision="bfloat16")
    theirs = torchattacks.PGD(model, eps=BALL.eps, alpha=size, steps=steps, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
    other = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=steps, random_start=False)
    runs = {
        "gradlens": lambda: gl.pgd(model, x, y, BALL, steps=steps).adversarial,
        **({"bfloat16": lambda: gl.pgd(lower, x, y, BALL, steps=steps).adversarial} if half else {}),
        "torchattacks": lambda: theirs(x, y),
        "foolbox": lambda: other(wrapped, x, y, epsilons=BALL.eps)[1],
    }
    ends = {name: run() for name, run in runs.items()}
    seconds = in_turns(runs, rounds, warm=False)  # the runs that were compared have warmed up
    work = f"PGD-{steps} with its whole trace, ResNet-18, batch {batch}"
    goals = GOALS if device == "cpu" else ON_GPU
    each = 2 * machine.flops(model, x[:1])  # operations to the logits and back to the image, as many

    def pace(name: str) -> str:
        images = batch * (steps + 1) / statistics.median(seconds[name])
        return f"{images:.0f} images there and back a second, {images * each / 1e9:.0f} GFLOP/s"

    return [
        compared(
            f"{work}, {'bfloat16' if ours == 'bfloat16' else 'float32'}", f"{peer}, nothing recorded", seconds[ours],
            seconds[peer], at_most=goals[goal], agreement=agreement(model, ends[ours], ends[peer], y),
            note=pace(ours),
        )
        for ours, peer, goal in (
            ("gradlens", "torchattacks", "torchattacks"), ("gradlens", "foolbox", "foolbox"),
            ("bfloat16", "torchattacks", "bfloat16"),
        )
        if ours in runs
    ]  # fmt: skip


@torch.no_grad()
def agreement(model: torch.nn.Module, a: Tensor, b: Tensor, y: Tensor) -> str:
    """How alike two ends of an attack are; raises RuntimeError where the attacks did not do the same."""
    same = ((a - b).abs() < 1e-5).double().mean()
    first, second = (torch.nn.functional.cross_entropy(model(end), y) for end in (a, b))
    if not (first / second - 1).abs() < 0.05:
        raise RuntimeError(f"the ends have losses {first:.4g} and {second:.4g}, expected the same within 5%")
    return f"{same:.1%} of pixels end alike, loss {first:.4g} and {second:.4g} nats"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    half = machine.measure(given.device).is_fast_in_half
    found = rows(batch=given.batch, steps=given.steps, rounds=given.rounds, device=given.device, half=half)
    print(*found, sep="\n")
    return int(not all(row.is_met for row in found))


if __name__ == "__main__":
    sys.exit(main())
