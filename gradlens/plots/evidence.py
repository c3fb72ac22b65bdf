"""Is the robustness real? Rows of evidence, and what plain PGD misses."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..intervals import wilson
from ..masking import Masking
from .look import colour, tabulate

FEW = 4  # a row that could be said of fewer than one in so many samples is counted, not given as a share


def evidence(results: Mapping[str, Masking], ax: Axes) -> Axes:
    """One row a piece of evidence, one column a model: the share of samples in which it shows, darker for more.

    Framed where it fires, with a thick frame where it is reason to call gradients masked; hatched where it was not
    looked for; counted, as in 1 of 1, where it could be said of far fewer samples than other rows. Verdicts stand above
    the columns. Raises ValueError for no result.
    """
    if not results:
        raise ValueError("results are empty, expected at least one Masking")
    first = next(iter(results.values()))
    names = [row.name for row in first.evidence]
    values = np.array([[row.value for row in result.evidence] for result in results.values()]).T
    ax.imshow(np.nan_to_num(values), cmap="Purples", vmin=0, vmax=1.6, aspect="auto")
    for column, result in enumerate(results.values()):
        most = max(row.samples for row in result.evidence)
        for line, row in enumerate(result.evidence):
            corner = (column - 0.5, line - 0.5)
            if row.samples == 0:
                ax.add_patch(Rectangle(corner, 1, 1, facecolor="0.95", edgecolor="0.75", hatch="////", lw=0))
                continue
            counted = f"{round(row.value * row.samples)} of {row.samples}"
            words = counted if FEW * row.samples < most else f"{row.value:.0%}"
            ax.text(column, line, words, ha="center", va="center", fontsize="small",
                    color="black" if row.fired or row.value > 0.5 else "0.45")  # fmt: skip
            if row.fired:
                inner = (corner[0] + 0.04, corner[1] + 0.06)
                ax.add_patch(
                    Rectangle(inner, 0.92, 0.88, fill=False, edgecolor="black",
                              lw=2.2 if row.is_strong else 1.0, ls="-" if row.counts else ":")
                )  # fmt: skip
    tabulate(ax, names, [f"{name}\n{result.verdict}" for name, result in results.items()])
    return ax


def gaps(results: Mapping[str, Masking], ax: Axes) -> Axes:
    """Accuracy under plain PGD (hollow) and in the worst case over all attacks (full), with 95% Wilson intervals.

    The line between the two is what plain PGD misses. Raises ValueError for no result.
    """
    if not results:
        raise ValueError("results are empty, expected at least one Masking")
    for line, (name, result) in enumerate(results.items()):
        tone, count = colour(name, list(results)), len(result.labels)
        ax.plot([result.best_accuracy, result.naive_accuracy], [line, line], color=tone, lw=4, alpha=0.25)
        for share, below, face in ((result.naive_accuracy, -0.12, "white"), (result.best_accuracy, 0.12, tone)):
            low, high = wilson(round(share * count), count)
            ax.hlines(line + below, low, high, color=tone, lw=1)
            ax.plot(share, line + below, marker="o", ms=6, mfc=face, mec=tone, ls="none")
    ax.set(
        yticks=range(len(results)), yticklabels=[f"{name} ({result.verdict})" for name, result in results.items()],
        ylim=(len(results) - 0.5, -0.5), xlim=(-0.02, 1.02),
        xlabel="accuracy: plain PGD (hollow), all attacks (full)",
    )  # fmt: skip
    return ax
