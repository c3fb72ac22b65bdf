"""Is the quick suite worth AutoAttack? python -m tests.bench.attacks --runs runs/digits

On an SL-adv and an RL-adv model: the robust accuracy of the suite "quick" and of AutoAttack "standard" (the reference
package, on what is left after each of its attacks), and their processor time. The suite may take a fifth of it and
leave half a point more, no more: with fewer than 200 images, none.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

import gradlens as gl
from tests.bench.outcome import Outcome, compared, in_turns
from training import checkpoint, data

SHARE, POINTS = 0.2, 0.005


def rows(*, runs: str = "runs/digits", samples: int = 256, rounds: int = 1, seed: int = 0) -> list[Outcome]:
    """One row an arm. Raises RuntimeError where quick leaves too much."""
    found = []
    for arm in ("SL-adv", "RL-adv"):
        run = next(run for run in checkpoint.load_all(runs) if run.arm == arm)
        dataset = data.load(run.config.dataset)
        x, y = data.subset(dataset.test, samples, seed)
        model, ball = run.model(), dataset.ball
        ends: dict[str, gl.Robustness] = {}
        for suite in ("quick", gl.STANDARD[-4:-3]):  # what is loaded once is loaded before, for both sides
            gl.robustness(model, x[:8], y[:8], ball, attacks=suite)

        def quick(model=model, x=x, y=y, ball=ball, ends=ends) -> None:  # type: ignore[no-untyped-def]
            ends["quick"] = gl.robustness(model, x, y, ball, attacks="quick")

        def whole(model=model, x=x, y=y, ball=ball, ends=ends) -> None:  # type: ignore[no-untyped-def]
            ends["whole"] = gl.auto_attack(model, x, y, ball)

        seconds = in_turns({"quick": quick, "whole": whole}, rounds, warm=False)
        left, best = ends["quick"].robust_accuracy, ends["whole"].robust_accuracy
        if left - best > POINTS:
            raise RuntimeError(
                f"{run.name}: quick leaves {left:.2%}, AutoAttack {best:.2%}; expected within half a point"
            )
        found.append(
            compared(
                f'suite "quick", {arm} on digits, {len(y)} images', "AutoAttack standard, the reference package",
                seconds["quick"], seconds["whole"], at_most=SHARE,
                agreement=f"robust accuracy {left:.2%} and {best:.2%}",
            )
        )  # fmt: skip
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs/digits", help="a folder of runs with the arms SL-adv and RL-adv")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    found = rows(runs=given.runs, samples=given.samples, rounds=given.rounds)
    print(*found, sep="\n")
    return int(not all(row.is_met for row in found))


if __name__ == "__main__":
    sys.exit(main())
