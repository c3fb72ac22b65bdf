"""gradlens beside its peers: `make bench`, or python -m tests.bench [NAME ...] [--quick] where the peers are installed.

Every row is measured in this one run, both sides in turns, after a check that both do the same; the machine's own limit
stands above. With --json FILE the numbers are kept, with --readme the table of README.md is written anew.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from tests.bench import attacks, curvature, indicators, machine, outcome, pgd, training, weights
from tests.bench.outcome import Outcome

README = Path(__file__).parents[2] / "README.md"
Rows = Callable[[machine.Machine], list[Outcome]]

WHOLE: Mapping[str, Rows] = {
    "pgd": lambda limit: pgd.rows(rounds=3, half=limit.is_fast_in_half),
    "weights": lambda limit: [
        *weights.small(32, rounds=3, goal=0.33),
        *weights.small(256, rounds=3, goal=1.0, sparse=0.35),
        *weights.wide(half=limit.is_fast_in_half),
    ],
    "curvature": lambda _: curvature.rows(rounds=3),
    "attacks": lambda _: attacks.rows(),
    "indicators": lambda _: indicators.rows(rounds=3),
    "training": lambda _: training.rows(rounds=5),
}
# On a GPU, where a device is named: the rows for which it is bought.
ON_GPU: Mapping[str, Rows] = {
    "pgd": lambda limit: pgd.rows(batch=512, batches=4, rounds=3, device="cuda", half=limit.is_fast_in_half),
    "weights": lambda limit: weights.wide(part=25, rounds=3, device="cuda", half=limit.is_fast_in_half),
    "training": lambda limit: training.on_gpu(limit.convolutions * 1e9),
    "curvature": lambda _: curvature.rows(rounds=3, device="cuda"),
}
# Smaller work, fewer rounds: what the rows are about in three minutes, with ratios that are good to a tenth.
QUICK: Mapping[str, Rows] = {
    "pgd": lambda limit: pgd.rows(batch=16, steps=3, rounds=2, half=limit.is_fast_in_half),
    "weights": lambda _: weights.small(32, points=11, rounds=2, goal=0.33),
    "curvature": lambda _: curvature.rows(rounds=1, precision=0.05, probes=20),
    "indicators": lambda _: indicators.rows(images=64, rounds=2),
    "training": lambda _: training.rows(images=256, rounds=2),
}


MARKS = {False: "tests.bench", True: "tests.bench.gpu"}  # in the README, of the tables without and with --gpu


def main(words: Sequence[str] | None = None) -> int:
    """Print each row as it comes, then the table. Exit code 1 where a goal is missed, 2 where both sides disagree."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WHOLE))
    parser.add_argument("--quick", action="store_true", help="in under three minutes")
    parser.add_argument("--gpu", action="store_true", help="on a CUDA device, in under ten minutes")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--from", dest="kept", type=Path, help="numbers kept by --json, in place of measuring")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(words)
    chosen = ON_GPU if given.gpu else QUICK if given.quick else WHOLE
    if unknown := set(given.names) - set(chosen):
        parser.error(f"{sorted(unknown)} are no benchmarks, expected some of {', '.join(chosen)}")
    if given.kept:
        said = json.loads(given.kept.read_text(encoding="utf-8"))
        limit, rows, broken, today = machine.Machine(**said["machine"]), outcome.read(said["rows"]), False, said["date"]
    else:
        torch.set_num_threads(given.threads)
        limit, today = machine.measure("cuda" if given.gpu else "cpu"), datetime.date.today().isoformat()
        print(limit, flush=True)
        rows, broken = _measured(given.names or chosen, chosen, limit, today, given.json)
    table = outcome.markdown(rows)
    print(f"\n{table}")
    if given.readme:
        size = ", `make bench-quick`'s smaller work" if given.quick else ""
        outcome.rewrite(README, f"{limit} ({today}{size}).\n\n{table}", MARKS[given.gpu])
    return 2 if broken else int(not all(row.is_met for row in rows))


def _measured(
    names: Iterable[str], chosen: Mapping[str, Rows], limit: machine.Machine, today: str, kept: Path | None
) -> tuple[list[Outcome], bool]:
    """All rows, kept as they come, and whether some could not be measured."""
    rows: list[Outcome] = []
    broken = False
    for name in names:
        try:
            found = chosen[name](limit)
        except (RuntimeError, ValueError) as error:  # the other rows are worth having
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            broken = True
            continue
        print(*found, sep="\n", flush=True)
        rows += found
        if kept:
            said = {"date": today, "machine": asdict(limit), "rows": outcome.plain(rows)}
            kept.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return rows, broken


if __name__ == "__main__":
    sys.exit(main())
