"""The claims table as a picture: each line's interval against the smallest difference that would matter."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.ticker import SymmetricalLogLocator

from ..claims import Claims
from .look import COLOURS, tabulate

# told apart without colour too
MARKS = {
    "there": ("o", COLOURS["SL"], COLOURS["SL"]),
    "not there": ("X", COLOURS["RL"], COLOURS["RL"]),
    "unsure": ("o", "white", "0.45"),
}
GAP = 1.6  # rows between claims
FILLS = {"not there": "#d9756c", "unsure": "#eeeeee", "there": "#7fa8d9"}  # of cells, and of the verdicts made of them


def claims(result: Claims, ax: Axes) -> Axes:
    """One row a line of a claim: difference and interval, in units of the smallest difference that would matter.

    Between -1 and 1 (grey) a difference is too small to matter. Black ticks are the limits that intervals are read
    against: a line that asks for more is there if its interval leaves out 0 and reaches 1, which its middle need not.
    A line that allows a loss is divided by what it allows: its interval has to lie right of -1. One that must be above
    0 is in units of 0.05. The axis is linear between -1 and 1 and logarithmic beyond.
    """
    ax.axvspan(-1, 1, color="0.93", lw=0)
    ax.axvline(0, color="0.6", lw=0.8)
    places, texts, at = [], [], 0.0
    for claim in result.claims:
        begun = at
        for line in claim.lines:
            places.append(at)
            texts.append(f"{line.of}\n{line.names}")
            marker, face, edge = MARKS[line.reading]
            unit = abs(line.smallest) or 0.05
            if not math.isnan(line.low):
                ax.plot([line.low / unit, line.high / unit], [at, at], color=edge, lw=1.5)
            if not math.isnan(line.difference):
                ax.plot(line.difference / unit, at, marker=marker, mfc=face, mec=edge, ms=7, ls="none")
            else:
                ax.text(0, at, "not measured", ha="center", va="center", fontsize="small", color="0.45")
            needed = [line.smallest / unit] if line.kind == "more" else [-1.0, 1.0]
            ax.plot(needed, [at] * len(needed), marker="|", ms=14, mew=1.6, color="black", ls="none", zorder=1)
            at += 1
        measured = any(not math.isnan(line.difference) for line in claim.lines)
        word = claim.verdict if measured else "–"  # "open" is a finding
        ax.text(1.01, (begun + at - 1) / 2, f"{claim.name}\n{word}", transform=ax.get_yaxis_transform(),
                va="center", fontweight="bold")  # fmt: skip
        ax.axhline(at - 1 + GAP / 2, color="0.85", lw=0.8)
        at += GAP - 1
    ax.set_xscale("symlog", linthresh=1, linscale=0.7)
    ax.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=[1, 2, 5]))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yticks(places, texts, fontsize="x-small")
    ax.set(ylim=(at - 0.4, -0.9), xlabel="difference / smallest that would matter (logarithmic beyond 1)")
    for reading, (marker, face, edge) in MARKS.items():
        ax.plot([], [], marker=marker, mfc=face, mec=edge, color=edge, lw=1.5, label=reading)
    ax.plot([], [], marker="|", ms=12, mew=1.6, color="black", ls="none", label="limit")
    return ax


def _shared(names: Sequence[str]) -> str:
    """What the names of one difference have in common, term by term; "..." for what they do not. The first where an
    arm's own name holds " - "."""
    terms = [name.split(" - ") for name in names]
    if len({len(one) for one in terms}) > 1:
        return names[0]
    return " - ".join(several[0] if len(set(several)) == 1 else "..." for several in zip(*terms, strict=True))


def contrasts(results: Mapping[str, Claims], ax: Axes) -> Axes:
    """Claims tables side by side, as with several controls in one arm's place: a row a line, a column a table.

    A cell tells the difference and its interval, and has the colour of the reading: blue where what the row expects is
    there, red where it is not, grey where the interval leaves both possible. A row's difference is that of the tables;
    where they differ by an arm, "..." stands for the column's. A dash is what a table lacks or was not measured. Raises
    ValueError for no result.
    """
    if not results:
        raise ValueError("results are empty, expected at least one Claims")
    tables = [
        {(claim.name, at): line for claim in result.claims for at, line in enumerate(claim.lines)}
        for result in results.values()
    ]
    first = {row: line for table in reversed(tables) for row, line in table.items()}
    rows, readings = sorted(first), list(FILLS)
    codes = np.full((len(rows), len(tables)), np.nan)
    for row, column in np.ndindex(codes.shape):
        line = tables[column].get(rows[row])
        if line is None or math.isnan(line.difference):
            ax.text(column, row, "–", ha="center", va="center", color="0.6")
            continue
        codes[row, column] = readings.index(line.reading)
        words = f"{line.difference:+z.3f}"
        if not math.isnan(line.low):
            words += f"\n[{line.low:+.3f}, {line.high:+.3f}]"
        ax.text(column, row, words, ha="center", va="center", fontsize="x-small")
    ax.imshow(codes, cmap=ListedColormap(list(FILLS.values())), vmin=0, vmax=len(FILLS) - 1, aspect="auto")
    names = [
        f"{row[0]}: {first[row].of}\n{_shared([table[row].names for table in tables if row in table])}, "
        f"{first[row].expected}"
        for row in rows
    ]
    tabulate(ax, names, list(results), fontsize="x-small")
    for row, (_, at) in enumerate(rows):
        if row and at == 0:  # where another claim begins
            ax.axhline(row - 0.5, color="0.4", lw=1)
    key = [Patch(facecolor=fill, label=reading) for reading, fill in FILLS.items()]
    ax.legend(handles=key, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=len(key), fontsize="small")
    return ax
