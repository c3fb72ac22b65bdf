"""python -m training {fit,evaluate,sweep}"""

import os
import sys
from pathlib import Path

import tyro

from training import data
from training.checkpoint import load
from training.config import Config
from training.evaluate import evaluate, header
from training.fit import fit
from training.sweep import sweep, table


def fit_command(config: tyro.conf.OmitArgPrefixes[Config], out: Path) -> None:
    """Train one model and write the run to a folder.

    Args:
        out: Folder of the run, such as runs/sl.
    """
    run = fit(config, out)
    last = run.record["last"]
    print(
        f"{run.path}: clean {last['clean']:.1%}, PGD-10 {last['pgd']:.1%} on validation images, "
        f"{run.record['seconds']:.1f} s, weights {run.record['checkpoint_sha256'][:12]}"
    )


def evaluate_command(
    run: tyro.conf.Positional[Path], samples: int | None = None, steps: int = 20, seed: int = 0
) -> None:
    """Print clean and PGD accuracy on test images, with 95% intervals.

    Args:
        run: Folder of a finished run.
        samples: Test images to use; all if not given.
        steps: Steps of the attack.
        seed: Chooses the images.
    """
    finished = load(run)
    print(header(finished, data.load(finished.config.dataset).ball))
    for row in evaluate(finished, samples=samples, seed=seed, steps=steps):
        print(f"  {row}")


def sweep_command(file: tyro.conf.Positional[Path], out: Path, jobs: int = os.cpu_count() or 1) -> None:
    """Train the grid of runs that a TOML file describes; finished runs are skipped.

    Args:
        file: Sweep file, such as training/sweeps/digits.toml.
        out: Folder that gets one folder a run.
        jobs: Runs at a time.
    """
    print(table(sweep(file, out, jobs)))


def main(args: list[str] | None = None) -> int:
    """Run a command; a mistake in its arguments is one line on stderr and exit code 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"fit": fit_command, "evaluate": evaluate_command, "sweep": sweep_command},
            prog="python -m training",
            args=args,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
