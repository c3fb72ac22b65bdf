"""How time and memory grow: python -m tests.bench.scaling [NAME ...] [--model cnn_small]

Each measurement runs in a process of its own at each size. Printed are the exponent of the processor time (1: linear),
fitted to all sizes and between the two largest, where what is paid once weighs least, and the working memory: the
peak during the call above what the process held before it, less the result's own tensors. Flat working memory is what
lets a long measurement run where a short one does. Exit code 1 where time grows faster than its mark, or the working
memory grows with samples, steps or points.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gradlens as gl

ROOT = Path(__file__).parents[2]
BALL = gl.Ball(8 / 255)
SAMPLES, STEPS, POINTS, WIDTHS = (64, 256, 1024, 4096), (5, 10, 20, 40), (5, 9, 17, 33), (32, 64, 128, 256)
# what is freed goes back to the system at once, so that what is held can be read off; it costs time
EAGER = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
ROOM = 48e6  # bytes by which working memory may differ over sizes: buffers of the allocator, caches of matrix routines


@dataclass(frozen=True)
class Work:
    """A call at a size, along an axis, and the most that its time may grow with: size ** limit."""

    over: str
    sizes: Sequence[int]
    call: Callable[[int], Any]
    limit: float = 1.1
    is_flat: bool = True


def network(width: int = 16) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 10),
        ).eval()  # fmt: skip


def images(count: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, 32, 32, generator=stream), torch.randint(10, (count,), generator=stream)


def labelled(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    model, (x, _) = network(), images(count)
    return model, x, gl.predict(model, x)


WORKS = {
    "stability": Work("samples", SAMPLES, lambda n: gl.stability(network(), *images(n), BALL, steps=5)),
    "gradients": Work("samples", SAMPLES, lambda n: gl.gradients(network(), *images(n), BALL)),
    "entropy": Work("samples", SAMPLES, lambda n: gl.entropy(network(), *images(n))),
    "square": Work("samples", SAMPLES[:3], lambda n: gl.square(*labelled(n), BALL, queries=50)),
    "robustness": Work(
        "samples", (32, 64, 128), lambda n: gl.robustness(*labelled(n), BALL, attacks="quick", batch=16)
    ),
    "masking": Work("samples", (64, 128, 256), lambda n: gl.masking(*labelled(n), BALL, batch=32)),
    "weight line": Work("samples", SAMPLES, lambda n: gl.weight_line(network(), *images(n), BALL, points=9)),
    "spectrum": Work(
        "samples", SAMPLES[:3],
        lambda n: gl.spectrum(network(), *images(n), k=2, steps=10, probes=2, depth=10, precision=1, batch=64),
    ),
    "pgd by steps": Work("steps", STEPS, lambda n: gl.pgd(network(), *images(256), BALL, steps=n)),
    "input plane by points": Work(
        "points", POINTS, lambda n: gl.input_plane(network(), *images(16), BALL, points=n, steps=5), 2.1
    ),
    "weight plane by points": Work(
        "points", POINTS, lambda n: gl.weight_plane(network(), *images(128), BALL, points=n), 2.1
    ),
    # a network's passes grow with the square of its width, as its parameters do
    "stability by width": Work(
        "width", WIDTHS, lambda n: gl.stability(network(n), *images(64), BALL, steps=5), 2.1, is_flat=False
    ),
    "weight line by width": Work(
        "width", WIDTHS, lambda n: gl.weight_line(network(n), *images(64), BALL, points=9), 2.1, is_flat=False
    ),
}  # fmt: skip


def held(result: Any) -> int:
    """Bytes of all tensors in a result."""
    if isinstance(result, Tensor):
        return result.untyped_storage().nbytes()
    if isinstance(result, dict):
        return sum(map(held, result.values()))
    if isinstance(result, tuple | list):
        return sum(map(held, result))
    return sum(held(getattr(result, f.name)) for f in fields(result)) if is_dataclass(result) else 0


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The most memory that the process holds meanwhile, looked at every millisecond."""

    def __enter__(self) -> "Peak":
        self.most, self.done = resident(), False
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done:
            self.most = max(self.most, resident())
            time.sleep(0.001)

    def __exit__(self, *error: object) -> None:
        self.done = True
        self.thread.join()


def once(name: str, size: int) -> dict[str, float]:
    """Processor seconds, and bytes of working memory. A small call first loads what is loaded once."""
    torch.set_num_threads(1)
    work = WORKS[name]
    work.call(work.sizes[0])
    before = resident()
    with Peak() as peak:
        begun = time.process_time()
        result = work.call(size)
        seconds = time.process_time() - begun
    given = 4 * 3 * 32 * 32 * size if work.over == "samples" else 0
    return {"seconds": seconds, "working": peak.most - before - held(result) - given}


def fresh(command: list[str], own: dict[str, str]) -> dict[str, float]:
    """What a process of its own says."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, **own})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Exponent of a power law, by least squares in logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def main(words: list[str] | None = None) -> int:
    """Print a row a measurement; 1 where one grows too fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WORKS))
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help="judge memory alone: half as many processes")
    given = parser.parse_args(words)
    if given.once is not None:
        print(json.dumps(once(given.names[0], given.once)))
        return 0
    if unknown := set(given.names) - set(WORKS):
        parser.error(f"{sorted(unknown)} are no measurements, expected some of {', '.join(WORKS)}")
    print(
        f"{'measurement':<24} {'over':<8} {'sizes':<18} {'seconds':<26} {'exponent':>8} {'last':>6} {'working MB':<24}"
    )
    missed = False
    for name in given.names or WORKS:
        work, rows = WORKS[name], []
        for size in work.sizes:
            command = [sys.executable, "-m", "tests.bench.scaling", name, "--once", str(size)]
            rows.append(fresh(command, EAGER))
            if not given.memory:
                rows[-1]["seconds"] = fresh(command, {})["seconds"]
        seconds, working = [row["seconds"] for row in rows], [row["working"] for row in rows]
        last = slope(work.sizes[-2:], seconds[-2:])
        grows = last > work.limit and not given.memory
        swells = work.is_flat and working[-1] - max(working[1:-1]) > ROOM
        missed |= grows or swells
        print(
            f"{name:<24} {work.over:<8} {' '.join(map(str, work.sizes)):<18} "
            f"{' '.join(f'{s:.2f}' for s in seconds):<26} {slope(work.sizes, seconds):>8.2f} {last:>6.2f} "
            f"{' '.join(f'{w / 1e6:.0f}' for w in working):<24}"
            f"{'  time grows too fast' if grows else ''}{'  memory grows' if swells else ''}",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
