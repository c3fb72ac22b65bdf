"""What do the indicators cost? python -m tests.bench.indicators: ratios within one run, medians of paired rounds.

Recording a trace may cost 8% over the same PGD with nothing recorded, on the same model and to the same point; and
stability, gradients and entropy together 1.5 times a bare PGD of as many steps, on the same images. The bare PGD is
what any script would write. cnn_small on images of Fashion-MNIST's size, or any model of training.models by name.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlens as gl
from gradlens.attacks.pgd import climb, perturb
from gradlens.losses import cross_entropy
from gradlens.model import frozen
from tests.bench.paired import paired
from training import models

BALL = gl.Ball(0.1)


def bare(model: nn.Module, x: Tensor, y: Tensor, steps: int, step_size: float) -> Tensor:
    """PGD as any script would write it."""
    point = x
    for _ in range(steps):
        point = point.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
        point = (x + (point.detach() + step_size * grad.sign() - x).clamp(-BALL.eps, BALL.eps)).clamp(0, 1)
    return point


def main() -> int:
    """Print the ratios; exit code 1 where one misses its mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cnn_small")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    shape = (1, 28, 28) if given.model == "cnn_small" else (3, 32, 32)
    channels = (0.5,) * shape[0]
    model = models.build(given.model, classes=10, shape=shape, mean=channels, std=channels).eval().requires_grad_(False)
    x, size = torch.rand(given.images, *shape), 2.5 * BALL.eps / given.steps
    y = gl.predict(model, x)
    chunks = list(zip(x.split(256), y.split(256), strict=True))

    def plain(_: int) -> Tensor:
        return torch.cat([bare(model, a, b, given.steps, size) for a, b in chunks])

    def silent(_: int) -> None:
        with frozen(model):
            for a, b in chunks:
                end = perturb(model, a, b, BALL, steps=given.steps, step_size=size, loss=cross_entropy, start=a)
                with torch.no_grad():
                    model(end)  # whether it succeeded; the trace knows

    def recorded(_: int) -> None:
        with frozen(model):
            for a, b in chunks:
                climb(model, a, b, BALL, a, given.steps, size, cross_entropy)

    def indicators(_: int) -> None:
        result = gl.stability(model, x, y, BALL, steps=given.steps)
        gl.gradients(model, x, y, BALL)
        gl.entropy(model, x, y, result.trace)

    gap = (plain(0) - gl.pgd(model, x, y, BALL, steps=given.steps).adversarial).abs()
    same = (gap < 1e-6).double().mean()
    print(f"the same end: {same:.2%} of pixels, at least 95% (the rest: signs of gradients near 0)")
    now, then, trace = paired(recorded, silent, given.rounds)
    print(f"recorded / silent PGD-{given.steps}: {trace:.3f} (at most 1.08); {now:.2f} s and {then:.2f} s")
    now, then, ratio = paired(lambda n: gl.pgd(model, x, y, BALL, steps=given.steps), plain, given.rounds)
    print(f"gl.pgd, checked and recorded / bare PGD: {ratio:.3f}; {now:.2f} s and {then:.2f} s")
    now, then, all_three = paired(indicators, plain, given.rounds)
    print(f"stability + gradients + entropy / bare PGD: {all_three:.3f} (at most 1.5); {now:.2f} s and {then:.2f} s")
    return int(trace > 1.08 or all_three > 1.5 or same < 0.95)


if __name__ == "__main__":
    sys.exit(main())
