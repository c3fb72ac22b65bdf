"""Is the spectrum cheap? python -m tests.bench.curvature: ours and pyhessian's, on one loader of four batches.

Ours gives the five largest and smallest eigenvalues, the trace to `--precision` (1%) and the density; pyhessian the
five largest and the trace. Times are processor seconds of one process, medians of pairs A B A B. So exact a trace by
pyhessian's Hutchinson takes (its relative standard error / precision)^2 as many vectors as it was given here: that time
is computed, from the time it took for `--probes`; with `--whole` it is taken, once: half an hour, or minutes with
`--precision 0.03`. The goal is a third. Exit code 1 where it is missed, where a trace is off the other by more than
three of their standard errors together, or where an eigenvalue is by more than 2%.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradlens as gl
from gradlens import reference
from training.models import cnn_small

GOAL = 1 / 3


def trained(steps: int) -> tuple[nn.Module, Tensor, Tensor]:
    """cnn_small on scikit-learn's digits, a little trained, and 4 x 64 of its images."""
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    model = cnn_small(10, (1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        batch = torch.randint(1500, (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return model.eval(), x[:256], y[:256]


def timed(run: Callable[[], gl.Spectrum]) -> tuple[float, gl.Spectrum]:
    begun = time.process_time()
    result = run()
    return time.process_time() - begun, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--probes", type=int, default=100, help="pyhessian's vectors for the trace, its own default")
    parser.add_argument("--train", type=int, default=150, help="training steps before the measurement")
    parser.add_argument("--precision", type=float, default=0.01, help="standard error of the trace, as a share of it")
    parser.add_argument("--whole", action="store_true", help="run pyhessian to the same accuracy, once, for real")
    options = parser.parse_args()
    model, x, y = trained(options.train)
    loader = DataLoader(TensorDataset(x, y), batch_size=64)
    ratios, equal, agrees = [], [], True
    for pair in range(options.pairs):
        seeded = torch.Generator().manual_seed(pair)
        a, ours = timed(lambda seeded=seeded: gl.spectrum(model, loader, precision=options.precision, generator=seeded))

        def theirs(probes: int, ours: gl.Spectrum = ours, pair: int = pair) -> gl.Spectrum:
            return reference.spectrum(model, x, y, ours, batch=64, probes=probes, seed=pair)

        b, other = timed(lambda theirs=theirs: theirs(options.probes))
        eigenvalues, _ = timed(lambda theirs=theirs: theirs(2))
        needed = options.probes * float(other.trace_error / other.trace / options.precision) ** 2
        slow = eigenvalues + (b - eigenvalues) * max(1.0, needed / options.probes)
        ratios.append(a / b)
        equal.append(a / slow)
        gaps = (other.eigenvalues / ours.eigenvalues - 1).abs().max()
        agrees &= bool(gaps <= 0.02) and _one_trace(ours, other)
        print(
            f"ours {a:.1f} s, trace {ours.trace:.4g} +- {ours.trace_error / ours.trace:.2%}, products {ours.products}; "
            f"pyhessian {b:.1f} s, trace {other.trace:.4g} +- {other.trace_error / other.trace:.2%} from "
            f"{options.probes} vectors ({needed:.0f} for {options.precision:.0%}); eigenvalues differ by {gaps:.2%}"
        )
        if options.whole and pair == 0:
            b, other = timed(lambda theirs=theirs, needed=needed: theirs(round(needed)))
            agrees &= _one_trace(ours, other)
            print(
                f"pyhessian with {needed:.0f} vectors: {b:.1f} s, trace {other.trace:.4g} +- "
                f"{other.trace_error / other.trace:.2%}; ours takes {a / b:.4f} of that"
            )
    print(f"time as run: {statistics.median(ratios):.3f}; at equal accuracy: {statistics.median(equal):.4f}")
    return int(statistics.median(equal) > GOAL or not agrees)


def _one_trace(ours: gl.Spectrum, other: gl.Spectrum) -> bool:
    """Do the two estimates of the trace lie within three standard errors of each other?"""
    return bool((ours.trace - other.trace).abs() <= 3 * (ours.trace_error.square() + other.trace_error.square()).sqrt())


if __name__ == "__main__":
    sys.exit(main())
