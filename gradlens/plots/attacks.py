"""Robust accuracy: by attack, by budget, from model to model."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..intervals import wilson
from ..robustness import Curve, Robustness, Transfer
from .look import colour

BUDGETS = {"eps": "eps (pixels)", "steps": "steps", "restarts": "restarts", "queries": "queries a sample"}
FOUND, TRANSFER = "found on ", "transfer"  # how attacks are named that show points from elsewhere; their row


def attacks(
    results: Mapping[str, Robustness],
    ax: Axes,
    *,
    names: Sequence[str] | None = None,
    worst: Mapping[str, Robustness] | None = None,
) -> Axes:
    """Accuracy of each model clean, under each attack alone and in the worst case, with 95% Wilson intervals.

    The worst case is that of `worst`, by the same names, where more ran than `results` tell of. Of an evaluation that
    showed later attacks only what was left, the accuracy after each attack, and those before it. What was found
    elsewhere, such as on other models, is one row, the worst of it: transfer. `names` choose attacks and their order.
    Nothing is drawn for a model that an attack was not defined for.

    Raises ValueError for no result, and for one of `names` that did not run.
    """
    if not results:
        raise ValueError("results are empty, expected at least one Robustness")
    families = list(dict.fromkeys(_family(name) for result in results.values() for name in names or result.attacks))
    rows = ["clean", *families, "worst case"]
    each = [_under(result, [family], names) for result in results.values() for family in families]
    alone = all(share is None or np.isfinite(share) for share in each)
    for i, (model, result) in enumerate(results.items()):
        shares: list[float | None] = [result.clean_accuracy]
        for k, family in enumerate(families):
            shares.append(_under(result, [family] if alone else families[: k + 1], names))
        shares.append((worst or results)[model].robust_accuracy)
        count = len(result.labels)
        drawn = np.array([np.nan if share is None else share for share in shares])
        known = np.isfinite(drawn)
        ends = np.array([wilson(round(share * count), count) for share in drawn[known]])
        at = np.arange(len(rows)) + (i - (len(results) - 1) / 2) * 0.7 / max(1, len(results))
        ax.hlines(at[known], ends[:, 0], ends[:, 1], color=colour(model, list(results)), lw=1.2)
        ax.plot(drawn, at, ls="none", marker="o", ms=4.5, color=colour(model, list(results)), label=model)
    for line in np.arange(len(rows) - 1) + 0.5:
        ax.axhline(line, color="0.9", lw=0.6, zorder=0)
    ax.set(
        yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5), xlim=(-0.02, 1.02),
        xlabel="accuracy" if alone else "accuracy (after each attack and those above it)",
    )  # fmt: skip
    return ax


def _family(attack: str) -> str:
    return TRANSFER if attack.startswith(FOUND) else attack


def _under(result: Robustness, families: Sequence[str], names: Sequence[str] | None) -> float | None:
    """Accuracy under the attacks of these families together; nothing where none of them was to run."""
    ran = [name for name in result.attacks if _family(name) in families]
    missing = [name for name in names or () if name in families and name not in (*ran, TRANSFER)]
    return result.under(*ran, *missing) if ran or missing else None


def curves(results: Mapping[str, Curve], ax: Axes) -> Axes:
    """Accuracy against a budget, one line a model, with 95% Wilson bands; the ball's own eps is dotted.

    Raises ValueError for no result and for curves over different budgets.
    """
    kinds = {result.over for result in results.values()}
    if len(kinds) != 1:
        raise ValueError(f"results are curves over {sorted(kinds) or 'nothing'}, expected one kind of budget")
    (over,) = kinds
    for model, result in results.items():
        table = result.frame()
        # a logarithmic axis has no 0: what no attack leaves is drawn at the left edge
        at = table[over].to_numpy(float).copy()
        if over != "eps":
            at[0] = at[1] / 2
        ax.plot(at, table["accuracy"], marker="o", ms=3, color=colour(model, list(results)), label=model)
        faint = 0.6 / max(6, len(results))  # the bands of many models would be one grey
        ax.fill_between(at, table["low"], table["high"], color=colour(model, list(results)), alpha=faint, lw=0)
    if over == "eps":
        ax.axvline(next(iter(results.values())).ball.eps, color="0.6", lw=0.8, ls=":")
    else:
        ax.set_xscale("log")
        first = next(iter(results.values())).values
        ax.set_xticks([float(first[0]) / 2, *first.tolist()], ["clean", *(f"{v:g}" for v in first.tolist())])
        ax.tick_params(axis="x", labelsize="x-small")
        ax.minorticks_off()
    ax.set(xlabel=BUDGETS[over], ylabel="robust accuracy", ylim=(-0.02, 1.02))
    return ax


def asymmetry(result: Transfer, ax: Axes) -> Axes:
    """How much better the column's model fares against the row's than the row's against it, in percentage points."""
    both = [name for name in result.sources if name in result.targets]
    rows = [result.sources.index(name) for name in both]
    columns = [result.targets.index(name) for name in both]
    table = (100 * result.asymmetry[rows][:, columns]).round().cpu().numpy() + 0.0  # no minus before a 0
    reach = max(1.0, float(np.nanmax(np.abs(table))) if np.isfinite(table).any() else 1.0)
    sns.heatmap(
        table, ax=ax, vmin=-reach, vmax=reach, cmap="RdBu", annot=True, fmt=".0f", square=True, linewidths=0.5,
        xticklabels=both, yticklabels=both, annot_kws={"size": "small"}, cbar_kws={"label": "percentage points"},
    )  # fmt: skip
    ax.set(xlabel="target", ylabel="points made on")
    ax.tick_params(axis="y", labelrotation=0)
    return ax


def transfer(result: Transfer, ax: Axes) -> Axes:
    """The matrix of accuracies: rows are where points were made, columns whom they were shown. White-box is framed."""
    table = 100 * result.accuracy.cpu().numpy()
    sns.heatmap(
        table, ax=ax, vmin=0, vmax=100, cmap="viridis", annot=True, fmt=".0f", square=True, linewidths=0.5,
        xticklabels=list(result.targets), yticklabels=list(result.sources), annot_kws={"size": "small"},
        cbar_kws={"label": "accuracy of the target (%)"},
    )  # fmt: skip
    for s, source in enumerate(result.sources):
        if source in result.targets:
            t = result.targets.index(source)
            ax.add_patch(Rectangle((t, s), 1, 1, fill=False, ec="black", lw=1.5))
    ax.set(xlabel="target", ylabel="points made on")
    ax.tick_params(axis="y", labelrotation=0)
    return ax
