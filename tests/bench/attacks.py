"""Is the quick suite worth AutoAttack? python -m tests.bench.attacks --runs runs/digits

On an SL-adv and an RL-adv model: the robust accuracy of the suite "quick" and of AutoAttack "standard" (the reference
package, on what is left after each of its attacks), and their processor time. The suite may take a fifth of it and
leave half a point more. Exit code 1 where it misses.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch

import gradlens as gl
from training import checkpoint, data

SHARE, POINTS = 0.2, 0.005


def timed(run: Callable[[], gl.Robustness]) -> tuple[float, gl.Robustness]:
    begun = time.process_time()
    result = run()
    return time.process_time() - begun, result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs/digits", help="a folder of runs with the arms SL-adv and RL-adv")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    missed = False
    for arm in ("SL-adv", "RL-adv"):
        run = next(run for run in checkpoint.load_all(options.runs) if run.arm == arm)
        dataset = data.load(run.config.dataset)
        x, y = data.subset(dataset.test, options.samples, options.seed)
        model = run.model()
        gl.robustness(model, x[:8], y[:8], dataset.ball, attacks="quick")  # what is loaded once is loaded before
        a, quick = timed(lambda m=model, x=x, y=y, b=dataset.ball: gl.robustness(m, x, y, b, attacks="quick"))
        b, whole = timed(lambda m=model, x=x, y=y, b=dataset.ball: gl.auto_attack(m, x, y, b))
        surplus = quick.robust_accuracy - whole.robust_accuracy
        print(
            f"{run.name}, {len(y)} images, {dataset.ball.norm} eps {dataset.ball.eps:g}: quick "
            f"{quick.robust_accuracy:.2%} in {a:.1f} s, AutoAttack {whole.robust_accuracy:.2%} in {b:.1f} s; "
            f"time {a / b:.3f} (at most {SHARE}), {100 * surplus:+.2f} points (at most {100 * POINTS:+.1f})"
        )
        missed |= a > SHARE * b or surplus > POINTS
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
