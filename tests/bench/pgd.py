"""Is PGD fast while everything about it is recorded? python -m tests.bench.pgd, in the peers' environment.

PGD-20 on a ResNet-18 for images of 32 x 32, from the image itself, with the same step: gradlens with its whole trace,
in float32 and, where a processor gains by it, in bfloat16; torchattacks and foolbox, which record nothing; in turns.
Before that all of them run once, and their ends are held against each other.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens.attacks.pgd import perturb
from gradlens.folding import LOOK, folding
from gradlens.losses import cross_entropy
from gradlens.model import frozen
from tests.bench import machine, networks
from tests.bench.outcome import Outcome, compared, in_turns

BALL = gl.Ball(8 / 255)
GOALS = {("float32", "torchattacks"): 0.85, ("float32", "foolbox"): 0.50, ("bfloat16", "torchattacks"): 0.45}
ON_GPU = {("float32, compiled", "torchattacks"): 0.50, ("bfloat16, compiled", "torchattacks"): 0.25}


def rows(
    *, batch: int = 64, steps: int = 20, rounds: int = 3, device: str = "cpu", half: bool = True, batches: int = 1
) -> list[Outcome]:
    """Ours against both peers, and with `half` ours in bfloat16 against torchattacks; `batches` in a call of ours.

    On a GPU, where torch rounds the factors of a convolution to TF32 for everybody, also compiled, and the same loop
    with nothing recorded, by hand: how near ours is to what it does.
    """
    import foolbox
    import torchattacks  # in the peers' environment alone

    x, y = networks.patterns(max(batches * batch, 64), (3, 32, 32))
    x, y = x.to(device), y.to(device)
    model = networks.trained(networks.resnet18().to(device), x[:64], y[:64], 20, 1e-3)
    x, y = x[: batches * batch], y[: batches * batch]
    chunks = list(zip(x.split(batch), y.split(batch), strict=True))
    size = 2.5 * BALL.eps / steps
    attack = torchattacks.PGD(model, eps=BALL.eps, alpha=size, steps=steps, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
    other = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=steps, random_start=False)

    def ours(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: gl.pgd(model, x, y, BALL, steps=steps, batch=batch).adversarial

    def theirs(attack: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.cat([attack(a, b) for a, b in chunks])

    def limit(model: nn.Module) -> Callable[[], Tensor]:
        return lambda: bare(model, chunks, steps, size)

    runs = {
        "float32": ours(model),
        "torchattacks": theirs(attack),
        "foolbox": theirs(lambda a, b: other(wrapped, a, b, epsilons=BALL.eps)[1]),
    }
    pairs = [("float32", "torchattacks"), ("float32", "foolbox")]
    if half:
        runs["bfloat16"] = ours(gl.prepare(model, precision="bfloat16"))
        pairs.append(("bfloat16", "torchattacks"))
    if device != "cpu":
        for kind, precision in (("float32", "tf32"), ("bfloat16", "bfloat16")):
            compiled = gl.prepare(model, precision=precision, compile=True)
            runs |= {f"{kind}, compiled": ours(compiled), f"{kind}, compiled, nothing recorded": limit(compiled)}
        pairs += [(name, "torchattacks") for name in runs if "compiled" in name]
    ends = {name: run() for name, run in runs.items()}
    seconds = in_turns(runs, rounds, warm=False)  # the runs that were compared have warmed up
    goals = GOALS if device == "cpu" else ON_GPU
    work = f"PGD-{steps} with its whole trace, ResNet-18, {f'{batches} x ' if batches > 1 else ''}batch {batch}"
    each = 2 * machine.flops(model, x[:1])  # operations to the logits and back to the image, as many

    def pace(name: str) -> str:
        images = len(x) * (steps + 1) / statistics.median(seconds[name])
        return f"{images:.0f} images there and back a second, {images * each / 1e9:.0f} GFLOP/s"

    return [
        compared(
            f"{work}, {name}", f"{peer}, nothing recorded", seconds[name], seconds[peer],
            at_most=goals.get((name, peer)), note=pace(name),
            agreement=agreement(model, ends[name], ends[peer], y, 0.1 if "bfloat16" in name else 0.05),
        )
        for name, peer in pairs
    ]  # fmt: skip


def bare(model: nn.Module, chunks: Sequence[tuple[Tensor, Tensor]], steps: int, step_size: float) -> Tensor:
    """PGD alone on the folded model: no check, no record."""
    with frozen(model), folding(model, chunks[0][0][:LOOK])():
        return torch.cat(
            [
                perturb(model, x, y, BALL, steps=steps, step_size=step_size, loss=cross_entropy, start=x)
                for x, y in chunks
            ]
        )


@torch.no_grad()
def agreement(model: nn.Module, a: Tensor, b: Tensor, y: Tensor, gap: float = 0.05) -> str:
    """How alike two ends of an attack are; raises RuntimeError where the attacks did not do the same."""
    same = ((a - b).abs() < 1e-5).double().mean()
    first, second = (torch.nn.functional.cross_entropy(model(end), y) for end in (a, b))
    if not (first / second - 1).abs() < gap:
        raise RuntimeError(f"the ends have losses {first:.4g} and {second:.4g}, expected the same within {gap:.0%}")
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
