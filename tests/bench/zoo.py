"""Is every model of the zoo called rightly? python -m tests.bench.zoo: verdicts over seeds, exit code 1 for a mistake.

The zoo trains on digits in seconds; tests/test_zoo.py proves its labels without the verdict. A verdict is right where
the case allows it, and for a masked model its layers must name one that the case allows.
"""

import argparse
import sys
import time

import torch

from gradlens import Masking, masking
from tests.zoo import BALL, Case, cases, images


def judged(case: Case, seed: int, samples: int) -> Masking:
    """The verdict on one model."""
    x, y = images(seed, samples)
    return masking(case.model, x, y, BALL, generator=torch.Generator().manual_seed(seed))


def wrong(case: Case, result: Masking) -> str:
    """What is wrong about a verdict; empty where nothing is."""
    if result.verdict not in case.verdicts:
        return f"{result.verdict}, expected {' or '.join(sorted(case.verdicts))}"
    if case.kind == "masked" and result.layers[0] not in case.layers:
        return f"{result.layers[0]}, expected {' or '.join(sorted(case.layers))}"
    return ""


def main() -> int:
    """Print a line a model and seed; exit code 1 where one is called wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--only", default="", help="part of a model's name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    mistakes = 0
    for seed in given.seeds:
        begun = time.perf_counter()
        zoo = [case for case in cases(seed) if given.only in case.name]
        print(f"seed {seed}: {len(zoo)} models trained in {time.perf_counter() - begun:.0f} s", flush=True)
        for case in zoo:
            result = judged(case, seed, given.samples)
            mistake = wrong(case, result)
            mistakes += bool(mistake)
            print(
                f"{case.kind:7} {case.name:20} clean {result.clean_accuracy:6.1%} naive {result.naive_accuracy:6.1%} "
                f"best {result.best_accuracy:6.1%} {result.verdict:8} {', '.join(result.layers):40} "
                f"{result.seconds:5.1f} s {'WRONG: ' + mistake if mistake else ''}",
                flush=True,
            )
            if mistake:
                print("        " + "; ".join(f"{r.name} {r.value:.0%} [{r.low:.0%}" for r in result.fired), flush=True)
    print(f"{mistakes} called wrongly")
    return int(mistakes > 0)


if __name__ == "__main__":
    sys.exit(main())
