"""python -m training {fit,evaluate,sweep,measure,prepare,adopt}"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tyro

import gradlens
from gradlens.robustness.suites import SUITES
from training import data
from training.adopt import Adoption, adopt
from training.checkpoint import Which, load
from training.config import Config
from training.engines import Engine, follow_caller
from training.evaluate import evaluate, header, matrix, robust, transferred
from training.fit import fit
from training.prepare import prepare_command
from training.presets import PRESETS
from training.shards import measure
from training.sweep import sweep, table

LOCAL = Engine()


def fit_command(default: Config) -> Callable[..., None]:
    """The command whose options are those of a config, `default` where they are not given."""

    def command(
        out: Path,
        config: tyro.conf.OmitArgPrefixes[Config] = default,
        preset: Literal["paper", "sound"] | None = None,
        tensorboard: bool = False,
    ) -> None:
        """Train one model and write the run to a folder; a run that was stopped goes on.

        Args:
            out: Folder of the run, such as runs/sl.
            preset: Start from the study's own settings for this arm, or from a budget that is the same for all arms;
                the schedule may then be without epochs (--preset sound --schedule rl-adv), other options win.
            tensorboard: Write a folder tensorboard/ too.
        """
        run = fit(
            config if preset is None else replace(config, schedule=default.schedule), out, tensorboard=tensorboard
        )
        if int(os.environ.get("RANK", "0")) > 0:
            return  # of several processes one reports
        last = run.record["last"]
        print(
            f"{run.path}: clean {last['clean']:.1%}, PGD-10 {last['pgd']:.1%} on validation images, "
            f"{run.record['seconds']:.1f} s, weights {run.record['checkpoint_sha256'][:12]}"
        )

    return command


def preset_of(args: list[str]) -> Config:
    """The config that the preset among these arguments stands for; raises ValueError for an arm that it has not."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset")
    parser.add_argument("--schedule", default="sl")
    given, _ = parser.parse_known_args(args)
    return PRESETS[given.preset](given.schedule) if given.preset in PRESETS else Config()


def evaluate_command(
    runs: tyro.conf.Positional[tuple[Path, ...]],
    attacks: str | None = None,
    transfer: bool = False,
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    which: Which = "last",
) -> None:
    """Print clean and PGD accuracy on test images, with 95% intervals; or robust accuracy under a suite of attacks.

    Args:
        runs: Folders of finished runs.
        attacks: Suite of attacks: quick, standard (ends with AutoAttack) or full. The result is kept in the run's
            folder measure/ and read when it is asked for again; a call that was stopped goes on.
        transfer: Show each run the points that were made on the others; the matrix is kept beside the first, under a
            name that tells calls apart. Runs may differ in architecture.
        samples: Test images to use; all if not given.
        steps: Steps of PGD, 20 if not given; a suite has its own.
        seed: Chooses the images, and seeds the attacks.
        which: Weights after the last epoch, or after the best one on validation images.
    """
    finished = [load(run) for run in runs]
    if not finished:
        raise ValueError("no run is given, expected the folder of a finished run")
    if attacks is not None and attacks not in SUITES:
        raise ValueError(f"attacks is {attacks!r}, expected one of {', '.join(map(repr, SUITES))}")
    if transfer and attacks is not None:
        raise ValueError(
            "attacks is given beside --transfer, which makes its points by PGD on the margin: give one of them"
        )
    if steps is not None and attacks is not None:
        raise ValueError(
            f"steps is {steps} beside the suite {attacks!r}, whose attacks have their own: give one of them"
        )
    steps = 20 if steps is None else steps
    ball = data.load(finished[0].config.dataset).ball
    chosen: dict[str, Any] = {"samples": samples, "seed": seed, "which": which}
    if transfer:
        result, path = transferred(finished, steps=steps, **chosen)
        print(f"accuracy (%) of the columns on points made on the rows, {ball.norm} eps {ball.eps:g}")
        print(f"{matrix(result).to_string()}\n{path}")
        return
    for run in finished:
        head = header(run, data.load(run.config.dataset).ball, which)
        if attacks is None:
            print("\n  ".join([head, *map(str, evaluate(run, steps=steps, **chosen))]))
        else:
            found, path = robust(run, attacks, **chosen)
            print(head)
            print(f"{found.table().to_string(index=False, float_format='{:.3f}'.format)}\n{found}\n{path}")


def sweep_command(
    file: tyro.conf.Positional[Path],
    out: Path,
    datasets: tuple[str, ...] = (),
    engine: tyro.conf.OmitArgPrefixes[Engine] = LOCAL,
) -> None:
    """Train the grid of runs that a TOML file describes; finished runs are skipped, stopped ones go on.

    Args:
        file: Sweep file, such as training/sweeps/digits.toml.
        out: Folder that gets one folder a run.
        datasets: Data sets to train on, such as cifar10, in place of those that the file names.
    """
    print(table(sweep(file, out, engine, datasets)))


def measure_command(
    run: tyro.conf.Positional[Path],
    what: str,
    out: Path,
    samples: int | None = None,
    shards: int | None = None,
    seed: int = 0,
    which: Which = "last",
    engine: tyro.conf.OmitArgPrefixes[Engine] = LOCAL,
) -> None:
    """Measure a run on many test images, side by side, and write the result for gradlens.load.

    Args:
        run: Folder of a finished run.
        what: Function of gradlens, such as stability, gradients, entropy or pgd, with its own defaults.
        out: File that gets the result, such as runs/sl/measure/stability.safetensors.
        samples: Test images to use; all if not given.
        shards: Parts, of 256 images or a multiple; as many as there can be if not given. They change no number.
        seed: Chooses the images, and seeds the measurement.
        which: Weights after the last epoch, or after the best one on validation images.
    """
    result = measure(load(run), what, samples=samples, shards=shards, seed=seed, which=which, engine=engine)
    print(f"{result}\n{gradlens.save(result, out)}")


def adopt_command(out: Path, asked: tyro.conf.OmitArgPrefixes[Adoption]) -> None:
    """Write a classifier that was trained elsewhere, and its images, as a run that notebooks and `evaluate` read.

    Args:
        out: Folder of the run, such as runs/own/mine.
    """
    run = adopt(asked, out)
    print(f"{run.path}: {run.arm} on {run.config.dataset}, weights {run.record['checkpoint_sha256'][:12]}")


def main(args: list[str] | None = None) -> int:
    """Run a command; a mistake in its arguments is one line on stderr and exit code 2, a full disk or another that
    fails the same and 1."""
    args = sys.argv[1:] if args is None else args
    try:
        commands: dict[str, Callable[..., Any]] = {
            "fit": fit_command(preset_of(args)),
            "evaluate": evaluate_command,
            "sweep": sweep_command,
            "measure": measure_command,
            "prepare": prepare_command,
            "adopt": adopt_command,
        }
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m training", args=args)
    except (ValueError, argparse.ArgumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    follow_caller()
    sys.exit(main())
