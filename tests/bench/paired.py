"""Two ways to do one piece of work, timed in turns A B A B, so that what slows the machine slows both."""

import statistics
import time
from collections.abc import Callable

import torch


def paired(
    a: Callable[[int], object],
    b: Callable[[int], object],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Median seconds of each, and the median of their ratios a / b within a round, after one round to warm up.

    With `clock=time.process_time` a busy machine does not decide: with one thread it is what an idle one would take.
    """
    seconds: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        pair = []
        for run in (a, b):
            begun = clock()
            run(number)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            pair.append(clock() - begun)
        seconds.append((pair[0], pair[1]))
    kept = seconds[1:]
    first, second = (statistics.median(one) for one in zip(*kept, strict=True))
    return first, second, statistics.median(x / y for x, y in kept)
