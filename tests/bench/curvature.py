"""Is the spectrum cheap? python -m tests.bench.curvature: ours, pyhessian's and curvlinops', on four batches.

Ours gives the five largest and smallest eigenvalues, the trace to `precision` and the density; pyhessian the five
largest and the trace. So exact a trace by pyhessian's Hutchinson takes (its relative standard error / precision)^2 as
many vectors as it was given here: that time is computed, from the time it took for `probes`. curvlinops has an operator
for the Hessian and leaves the rest to scipy and to its own estimators: it gets the five largest eigenvalues, and for
density and trace as many products as ours took. Processor seconds of one process, in turns.
"""

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradlens as gl
from gradlens import reference
from tests.bench.outcome import Outcome, compared
from training.models import cnn_small

BATCHES, BATCH = 4, 64


def trained(steps: int = 150) -> tuple[nn.Module, Tensor, Tensor]:
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
    return model.eval(), x[: BATCHES * BATCH], y[: BATCHES * BATCH]


def timed(run: Callable[[], object]) -> tuple[float, object]:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    begun = clock()
    result = run()
    return clock() - begun, result


def linear(model: nn.Module, x: Tensor, y: Tensor, ours: gl.Spectrum, depth: int = 15) -> tuple[Tensor, float]:
    """curvlinops' five largest eigenvalues and its trace, with the density computed besides."""
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    parameters = [p for p in model.parameters() if p.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from curvlinops import HessianLinearOperator, hutchpp_trace, lanczos_approximate_spectrum

        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, batches, check_deterministic=False)
        largest = eigsh(operator.to_scipy(), k=5, which="LA", tol=1e-3, return_eigenvectors=False)
        ends = float(ours.bottom[0]), float(ours.eigenvalues[0])
        probes = max(1, ours.products["density"] // depth)
        lanczos_approximate_spectrum(operator, depth, num_repeats=probes, boundaries=ends)
        trace = float(hutchpp_trace(operator, max(3, 3 * (ours.products["trace"] // 3))))
    return torch.from_numpy(np.sort(largest)[::-1].copy()), trace


def rows(*, rounds: int = 3, precision: float = 0.01, probes: int = 100, device: str = "cpu") -> list[Outcome]:
    """Against pyhessian, as both run and at equal accuracy, and against curvlinops."""
    model, x, y = (part.to(device) for part in trained())
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
    mine: list[float] = []
    short, equal, operators = list[float](), list[float](), list[float]()
    said = ""
    for number in range(rounds):
        seeded = torch.Generator().manual_seed(number)
        a, ours = timed(lambda seeded=seeded: gl.spectrum(model, loader, precision=precision, generator=seeded))
        assert isinstance(ours, gl.Spectrum)

        def theirs(probes: int, ours: gl.Spectrum = ours, number: int = number) -> gl.Spectrum:
            return reference.spectrum(model, x, y, ours, batch=BATCH, probes=probes, seed=number)

        b, other = timed(lambda theirs=theirs: theirs(probes))
        alone, _ = timed(lambda theirs=theirs: theirs(2))
        c, found = timed(lambda ours=ours: linear(model, x, y, ours))
        assert isinstance(other, gl.Spectrum)
        assert isinstance(found, tuple)
        said = agreement(ours, other, *found)
        needed = probes * float(other.trace_error / other.trace / precision) ** 2
        mine.append(a)
        short.append(b)
        equal.append(alone + (b - alone) * max(1.0, needed / probes))
        operators.append(c)
    work = f"spectrum: ends, density, trace to {precision:.0%}, {BATCHES} batches"
    return [
        compared(work, f"pyhessian: eigenvalues, trace from {probes} vectors", mine, short, agreement=said),
        compared(
            work, "pyhessian: eigenvalues, trace at equal accuracy", mine, equal, at_most=1 / 3, agreement=said,
            note="pyhessian's time computed from the vectors it needs",
        ),
        compared(
            work, "curvlinops with scipy's eigsh, as many products", mine, operators, at_most=1.0, agreement=said
        ),
    ]  # fmt: skip


def agreement(ours: gl.Spectrum, other: gl.Spectrum, largest: Tensor, trace: float) -> str:
    """Raises RuntimeError where an eigenvalue differs by 2%, a trace by 3 standard errors, or ours is not precise.

    curvlinops' own trace is told, not judged: it has no standard error, and in the quick form a handful of vectors.
    """
    gaps = [
        float((values.cpu().double() / ours.eigenvalues.cpu().double() - 1).abs().max())
        for values in (other.eigenvalues, largest)
    ]
    errors = math.hypot(float(ours.trace_error), float(other.trace_error))
    apart, beside = (abs(float(ours.trace) - there) for there in (float(other.trace), trace))
    if not ours.is_trace_exact:
        raise RuntimeError(f"our trace is sure to {float(ours.trace_error / ours.trace):.2%} only, not as asked")
    if max(gaps) > 0.02 or apart > 3 * errors:
        raise RuntimeError(f"eigenvalues differ by {gaps}, traces by {apart:.3g} at a standard error of {errors:.3g}")
    within = f"traces within {apart / float(ours.trace):.1%}, curvlinops' within {beside / float(ours.trace):.1%}"
    return f"five eigenvalues within {max(gaps):.1e}, {within}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--probes", type=int, default=100, help="pyhessian's vectors for the trace, its own default")
    parser.add_argument("--precision", type=float, default=0.01, help="standard error of the trace, as a share of it")
    parser.add_argument("--whole", action="store_true", help="run pyhessian to the same accuracy, once, for real")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    found = rows(rounds=given.rounds, precision=given.precision, probes=given.probes)
    print(*found, sep="\n")
    if given.whole:
        model, x, y = trained()
        ours = gl.spectrum(model, x, y, precision=given.precision, generator=torch.Generator().manual_seed(0))
        first = reference.spectrum(model, x, y, ours, batch=BATCH, probes=given.probes)
        needed = round(given.probes * float(first.trace_error / first.trace / given.precision) ** 2)
        seconds, whole = timed(lambda: reference.spectrum(model, x, y, ours, batch=BATCH, probes=needed))
        assert isinstance(whole, gl.Spectrum)
        reached = whole.trace_error / whole.trace
        share = found[0].ours / seconds
        print(f"pyhessian with {needed} vectors: {seconds:.1f} s, trace to {reached:.2%}; ours {share:.4f} of that")
    return int(not all(row.is_met for row in found))


if __name__ == "__main__":
    sys.exit(main())
