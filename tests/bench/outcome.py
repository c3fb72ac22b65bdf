"""What a benchmark found: one row of the table, and how it is printed and kept."""

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

Clock = Callable[[], float]
BEGIN, END = "<!-- {} -->", "<!-- /{} -->"


@dataclass(frozen=True)
class Outcome:
    """One piece of work done by us and by a peer, in turns, in one process."""

    work: str
    against: str
    ratio: float  # of the medians, ours / theirs: below 1 is faster
    low: float  # least and largest ratio of a round
    high: float
    ours: float  # median seconds
    theirs: float
    at_most: float | None  # the goal
    agreement: str  # how it was seen, before the clock ran, that both do the same
    note: str = ""  # what is not measured directly

    @property
    def is_met(self) -> bool:
        return self.at_most is None or self.ratio <= self.at_most

    def __str__(self) -> str:
        goal = "" if self.at_most is None else f", at most {self.at_most:.2f}: {'met' if self.is_met else 'MISSED'}"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.work} / {self.against}: {_short(self.ratio)} ({_short(self.low)} to {_short(self.high)}{goal}); "
            f"{self.ours:.3g} s and {self.theirs:.3g} s; {self.agreement}{note}"
        )


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, clock: Clock | None = None, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each, A B C A B C, so that what slows the machine slows all; a first round, not counted, warms up.

    Processor time with one thread is what an idle machine would take; on a GPU it is the clock on the wall that counts.
    """
    on_gpu = torch.cuda.is_available()
    clock = clock or (time.perf_counter if on_gpu else time.process_time)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1 if warm else 0, rounds):
        for name, run in runs.items():
            begun = clock()
            run()
            if on_gpu:
                torch.cuda.synchronize()
            if number >= 0:
                seconds[name].append(clock() - begun)
    return seconds


def compared(
    work: str,
    against: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    at_most: float | None = None,
    agreement: str,
    note: str = "",
) -> Outcome:
    """The row of two series of seconds, taken in turns."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    a, b = statistics.median(ours), statistics.median(theirs)
    return Outcome(work, against, a / b, min(ratios), max(ratios), a, b, at_most, agreement, note)


def markdown(rows: Sequence[Outcome]) -> str:
    """The table of the README."""
    head = "| work | against | ratio | rounds | goal | note |\n|---|---|---|---|---|---|\n"
    return head + "".join(
        f"| {row.work} | {row.against} | {_short(row.ratio)} | {_spread(row)} | {_goal(row)} | {row.note} |\n"
        for row in rows
    )


def plain(rows: Sequence[Outcome]) -> list[dict[str, object]]:
    """For JSON."""
    return [{**asdict(row), "met": row.is_met} for row in rows]


def read(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """What `plain` made of rows."""
    return [Outcome(**{name: value for name, value in row.items() if name != "met"}) for row in rows]


def rewrite(path: Path, content: str, name: str = "tests.bench") -> None:
    """Replace what stands between the marks of this name. Raises ValueError where they are missing."""
    begin, end = BEGIN.format(name), END.format(name)
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{path} has no {begin} ... {end} to write between")
    path.write_text(pattern.sub(lambda _: f"{begin}\n{content}{end}", text), encoding="utf-8")


def _short(ratio: float) -> str:
    """Two digits after the point, or two that count."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def _spread(row: Outcome) -> str:
    return f"{_short(row.low)} to {_short(row.high)}"


def _goal(row: Outcome) -> str:
    if row.at_most is None:
        return ""
    return f"{row.at_most:.2f}, {'met' if row.is_met else '**missed**'}"
