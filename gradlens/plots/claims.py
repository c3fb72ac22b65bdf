"""The claims table as a picture: each line's interval against the smallest difference that would matter."""

import math

from matplotlib.axes import Axes
from matplotlib.ticker import SymmetricalLogLocator

from ..claims import Claims
from .look import COLOURS

# told apart without colour too
MARKS = {
    "there": ("o", COLOURS["SL"], COLOURS["SL"]),
    "not there": ("X", COLOURS["RL"], COLOURS["RL"]),
    "unsure": ("o", "white", "0.45"),
}
GAP = 1.6  # rows between claims


def claims(result: Claims, ax: Axes) -> Axes:
    """One row a line of a claim: difference and interval, in units of the smallest difference that would matter.

    Right of 1 is what a claim needs; between -1 and 1 (grey) a difference is too small to matter. A line that allows a
    loss is divided by what it allows: right of -1 is enough. One that must be above 0 is in units of 0.05. The axis is
    linear between -1 and 1 and logarithmic beyond.
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
        ax.text(1.01, (begun + at - 1) / 2, f"{claim.name}\n{claim.verdict}", transform=ax.get_yaxis_transform(),
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
    ax.plot([], [], marker="|", ms=12, mew=1.6, color="black", ls="none", label="needed")
    return ax
