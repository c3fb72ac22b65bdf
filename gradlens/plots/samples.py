"""How a number is spread over the samples."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from ..compare import values_of
from ..entropy import Entropy
from ..intervals import wilson
from .look import LABELS, colour, outer_labels, panels, share_limits


def entropy(result: Entropy, ax: Axes, *, name: str = "") -> Axes:
    """Cumulative share of samples up to each entropy: clean as a line, attacked dashed."""
    for values, dashes, note in ((result.clean, "-", "clean"), (result.adversarial, "--", "attacked")):
        if not values.isnan().all():
            sns.ecdfplot(x=values.cpu().numpy(), ax=ax, color=colour(name), ls=dashes, label=f"{name} {note}".strip())
    ax.set(xlabel=LABELS["entropy"], ylabel="share of samples")
    return ax


def reliability(result: Entropy, ax: Axes, *, name: str = "") -> Axes:
    """Accuracy against confidence on clean inputs, with 95% Wilson intervals; dots grow with their share of samples."""
    bins = result.reliability()
    bins = bins[bins["samples"] > 0]
    right = (bins["accuracy"] * bins["samples"]).round().astype(int)
    ends = np.array([wilson(k, n) for k, n in zip(right, bins["samples"], strict=True)]).reshape(-1, 2)
    ax.plot([0, 1], [0, 1], color="0.7", lw=1, zorder=0)
    ax.vlines(bins["confidence"], ends[:, 0], ends[:, 1], color=colour(name), lw=1, alpha=0.6)
    size = 8 + 200 * bins["samples"] / bins["samples"].sum()
    look: dict[str, Any] = {
        "color": colour(name),
        "label": name or None,
        "clip_on": False,
        "zorder": 3,
    }  # above the axis
    ax.scatter(bins["confidence"], bins["accuracy"], s=size, **look)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return ax


def distributions(
    results: Mapping[str, Any],
    axes: Axes | Iterable[Axes],
    *,
    quantity: str | Callable[[Any], Any],
    label: str = "",
    log: bool = False,
    bins: int = 30,
) -> list[Axes]:
    """One histogram a model over shared bins, with its median; what has no place on the axis is counted in words.

    `quantity` is a per-sample field of the results, or a function of a result that gives one value a sample, `label`
    its name and unit. A bar is a share of all samples, so that with undefined ones (nan), or with numbers that are not
    positive on a `log` scale, bars add up to less than 1. Raises ValueError for another number of axes than of results,
    and for a quantity that they do not have.
    """
    flat = panels(axes, list(results))
    values = {name: values_of(result, quantity) for name, result in results.items()}
    placed = {name: v[np.isfinite(v) & ((v > 0) | (not log))] for name, v in values.items()}
    edges = _edges(np.concatenate(list(placed.values())), bins, log)
    for ax, (name, kept) in zip(flat, placed.items(), strict=True):
        every = values[name]
        ax.hist(
            kept,
            edges.tolist(),
            weights=np.full(len(kept), 1 / len(every)),
            color=colour(name, list(results)),
            alpha=0.75,
        )
        if len(kept):
            ax.axvline(float(np.median(kept)), ymax=0.74, color="black", lw=1.2)
        ax.margins(y=0.35)  # the words need room above the bars
        ax.text(0.98, 0.97, _in_words(every, kept, log), transform=ax.transAxes, ha="right", va="top", fontsize="small")
        ax.set(
            xlabel=label or LABELS.get(str(quantity), str(quantity)), ylabel="share of samples",
            xscale="log" if log else "linear", xlim=(edges[0], edges[-1]),
        )  # fmt: skip
    share_limits(flat)
    outer_labels(flat)
    return flat


def _edges(values: np.ndarray, bins: int, log: bool) -> np.ndarray:
    if bins < 1:
        raise ValueError(f"bins is {bins}, expected at least 1")
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.1, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant has no reach of its own
        pad = 0.05 * abs(high) or 0.5
        low, high = low - pad, high + pad
    return np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)


def _in_words(every: np.ndarray, kept: np.ndarray, log: bool) -> str:
    lines = [f"median {np.median(kept):.3g}" if len(kept) else "no value", f"n = {len(every)}"]
    undefined = int((~np.isfinite(every)).sum())
    zero = int((every <= 0).sum()) if log else 0
    lines += [f"{undefined} undefined"] if undefined else []
    lines += [f"{zero} zero" if not (every < 0).any() else f"{zero} not positive"] if zero else []
    return "\n".join(lines)
