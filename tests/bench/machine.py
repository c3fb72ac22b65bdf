"""What this machine can do, measured in the same run: products of matrices, and a bare pass forward and back."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.bench import networks

SIZE = {"cpu": 2048, "cuda": 8192}  # of the matrices: enough to keep the chip busy
BATCH = {"cpu": 32, "cuda": 512}


@dataclass(frozen=True)
class Machine:
    """Rates in 1e9 operations a second, times in seconds of the wall clock."""

    name: str
    threads: int
    versions: str
    float32: float  # rate of a product of square matrices
    bfloat16: float
    forward: float  # seconds of ResNet-18 forward, `batch` images of 32 x 32
    both: float  # forward and back to the image
    share: float  # of the rate `convolutions` that `both` reaches
    batch: int = BATCH["cpu"]
    tf32: float | None = None  # on a GPU, where torch lets convolutions of float32 run in it unless told otherwise

    @property
    def convolutions(self) -> float:
        """Rate at which a convolution of float32 could run, as torch is set by default."""
        return self.tf32 or self.float32

    @property
    def is_fast_in_half(self) -> bool:
        """Does bfloat16 gain time here? Processors without instructions for it compute it many times slower."""
        return self.bfloat16 > self.float32

    def __str__(self) -> str:
        between = "" if self.tf32 is None else f"{self.tf32:.0f} in TF32, as convolutions use it, "
        half = "" if self.is_fast_in_half else " (slower: rows in bfloat16 are left out)"
        return (
            f"{self.name}, {self.threads} thread(s), {self.versions}: products of matrices at {self.float32:.0f} "
            f"GFLOP/s in float32, {between}{self.bfloat16:.0f} in bfloat16{half}; ResNet-18 on {self.batch} images of "
            f"32 x 32 forward {self.forward:.3g} s, forward and back to the image {self.both:.3g} s, "
            f"{self.share:.0%} of that rate"
        )


def measure(device: str = "cpu") -> Machine:
    kind = torch.device(device).type
    matrix = torch.rand(SIZE[kind], SIZE[kind]).to(device)
    rates = [_rate(matrix.to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    tf32 = None if kind == "cpu" else _rate(matrix, "tf32")
    model = networks.resnet18().eval().requires_grad_(False).to(device)
    x = torch.rand(BATCH[kind], 3, 32, 32, device=device)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def both() -> None:
        point = x.clone().requires_grad_(True)
        torch.autograd.grad(model(point).sum(), point)

    there, back = _seconds(forward), _seconds(both)
    # to the image alone, the way back costs as much as the way there
    share = 2 * flops(model, x) / back / (tf32 or rates[0])
    named = torch.cuda.get_device_name() if kind == "cuda" else _processor()
    return Machine(
        named, torch.get_num_threads(), f"torch {torch.__version__}", rates[0] / 1e9, rates[1] / 1e9, there, back,
        share, batch=len(x), tf32=tf32 and tf32 / 1e9,
    )  # fmt: skip


def flops(model: torch.nn.Module, x: Tensor) -> float:
    """Floating-point operations of a forward pass, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return float(counter.get_total_flops())


def _rate(matrix: Tensor, precision: str = "ieee") -> float:
    """Operations a second of its product with itself; on a GPU, those of float32 in this precision."""
    rules: Any = torch.backends.cuda.matmul
    before, rules.fp32_precision = rules.fp32_precision, precision
    try:
        return 2 * len(matrix) ** 3 / _seconds(lambda: matrix @ matrix)
    finally:
        rules.fp32_precision = before


def _seconds(run: Callable[[], object], rounds: int = 5) -> float:
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
