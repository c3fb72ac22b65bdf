"""What do the indicators cost? python -m tests.bench.indicators: ratios within one run, in turns.

Recording a trace may cost 8% over the same PGD with nothing recorded, on the same model and to the same point; and
stability, gradients and entropy together 1.5 times a bare PGD of as many steps, on the same images. The bare PGD is
what any script would write. cnn_small on images of Fashion-MNIST's size, or any model of training.models by name.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlens as gl
from gradlens.attacks.pgd import climb, perturb
from gradlens.losses import cross_entropy
from gradlens.model import frozen
from tests.bench.outcome import Outcome, compared, in_turns
from training import models

BALL = gl.Ball(0.1)
ALIKE = 0.95  # share of pixels at which both have to end alike


def bare(model: nn.Module, x: Tensor, y: Tensor, steps: int, step_size: float) -> Tensor:
    """PGD as any script would write it."""
    point = x
    for _ in range(steps):
        point = point.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
        point = (x + (point.detach() + step_size * grad.sign() - x).clamp(-BALL.eps, BALL.eps)).clamp(0, 1)
    return point


def rows(*, name: str = "cnn_small", images: int = 512, steps: int = 20, rounds: int = 5) -> list[Outcome]:
    """What recording costs, what `gl.pgd` costs in all, and all three indicators against a bare PGD."""
    torch.manual_seed(0)
    shape = (1, 28, 28) if name == "cnn_small" else (3, 32, 32)
    channels = (0.5,) * shape[0]
    model = models.build(name, classes=10, shape=shape, mean=channels, std=channels).eval().requires_grad_(False)
    x, size = torch.rand(images, *shape), 2.5 * BALL.eps / steps
    y = gl.predict(model, x)
    chunks = list(zip(x.split(256), y.split(256), strict=True))

    def plain() -> Tensor:
        return torch.cat([bare(model, a, b, steps, size) for a, b in chunks])

    def silent() -> None:
        with frozen(model):
            for a, b in chunks:
                end = perturb(model, a, b, BALL, steps=steps, step_size=size, loss=cross_entropy, start=a)
                with torch.no_grad():
                    model(end)  # whether it succeeded; the trace knows

    def recorded() -> None:
        with frozen(model):
            for a, b in chunks:
                climb(model, a, b, BALL, a, steps, size, cross_entropy)

    def indicators() -> None:
        result = gl.stability(model, x, y, BALL, steps=steps)
        gl.gradients(model, x, y, BALL)
        gl.entropy(model, x, y, result.trace)

    def checked() -> Tensor:
        return gl.pgd(model, x, y, BALL, steps=steps).adversarial

    same = float(((plain() - checked()).abs() < 1e-6).double().mean())
    if same < ALIKE:  # the rest: signs of gradients near 0
        raise RuntimeError(f"{same:.2%} of pixels end alike, expected at least {ALIKE:.0%}")
    said = f"{same:.1%} of pixels end alike"
    runs = {"plain": plain, "silent": silent, "recorded": recorded, "checked": checked, "indicators": indicators}
    seconds = in_turns(runs, rounds)
    return [
        compared(
            f"PGD-{steps}, everything recorded, {name}, {images} images", "the same, nothing recorded",
            seconds["recorded"], seconds["silent"], at_most=1.08, agreement=said,
        ),
        compared(
            f"`pgd`, checked and recorded, {name}, {images} images", "PGD as a script writes it", seconds["checked"],
            seconds["plain"], agreement=said,
        ),
        compared(
            f"`stability` + `gradients` + `entropy`, {name}, {images} images", f"PGD-{steps} as a script writes it",
            seconds["indicators"], seconds["plain"], at_most=1.5, agreement=said,
        ),
    ]  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Print the ratios; exit code 1 where one misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cnn_small")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    found = rows(name=given.model, images=given.images, steps=given.steps, rounds=given.rounds)
    print(*found, sep="\n")
    return int(not all(row.is_met for row in found))


if __name__ == "__main__":
    sys.exit(main())
