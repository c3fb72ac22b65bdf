"""Curves over steps, radii, epochs and distances: median over samples with a band."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from pandas import DataFrame

from ..attacks import PGDTrace
from ..landscape import InputPath, Surface
from ..stability import Stability
from .look import LABELS, colour, draw_band, outer_labels, panels, share_limits
from .scale import axis_names

Traced = PGDTrace | Stability


def trace(
    result: PGDTrace | Stability, ax: Axes, *, quantity: str = "grad_norm", name: str = "", band: bool = True
) -> Axes:
    """A quantity along the attack: median over samples, with a band from the 10th to the 90th percentile.

    Without `band`, a thin dashed line that stays out of the legend: a further seed of an arm.
    """
    result = result.trace if isinstance(result, Stability) else result
    values = getattr(result, quantity)
    # what compares a gradient with the one before stands at the later point
    first = 0 if quantity == "cosine_final" else len(result.loss) - len(values)
    draw_band(ax, np.arange(first, first + len(values)), values, name, band)
    ax.set(xlabel="PGD step", ylabel=LABELS.get(quantity, quantity))
    return ax


def local_cosine(result: Stability, ax: Axes, *, name: str = "", band: bool = True) -> Axes:
    """Cosine between the gradient at the image and at fixed distances from it, as `trace` draws a path."""
    draw_band(ax, np.array(result.radii), result.local_cosine, name, band, marker="o", ms=4)
    ax.set(xscale="log", xlabel="distance from the image (eps)", ylabel="cosine to the\ngradient at the image")
    ax.set_xticks(result.radii, [f"{radius:g}" for radius in result.radii])
    ax.minorticks_off()
    return ax


def history(frame: DataFrame, ax: Axes, *, quantity: str = "clean") -> Axes:
    """A training curve per arm: mean over seeds, with a band from the lowest to the highest; a dot if measured once.

    All epochs are shown, on a logarithmic axis where one arm trained for more than three times as many as most.
    """
    arms = list(dict.fromkeys(frame["arm"]))
    palette = {arm: colour(arm, arms) for arm in arms}
    sns.lineplot(frame, x="epoch", y=quantity, hue="arm", palette=palette, errorbar=("pi", 100), ax=ax)
    for arm, rows in frame.dropna(subset=[quantity]).groupby("arm", sort=False):
        if rows["epoch"].nunique() == 1:  # a line of one point is not seen
            ax.plot(rows["epoch"], rows[quantity], "o", color=palette[arm], ms=5, alpha=0.8)
    ax.set(xlabel="epoch", ylabel=quantity)
    ends = frame.groupby("arm")["epoch"].max()
    first, last = frame["epoch"].min(), ends.max()
    if last > 3 * ends.median():
        ax.set_xscale("log")
        ax.set_xlim(first / 1.05, last * 1.05)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        room = max(0.5, 0.05 * (last - first))
        ax.set_xlim(first - room, last + room)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.legend(title=None)
    return ax


def line(result: Surface, ax: Axes, *, quantity: str = "loss", name: str = "", band: bool = True) -> Axes:
    """A one-dimensional slice: median over samples, with a band from the 10th to the 90th percentile.

    Of a plane, the line through the image along its first direction. Dotted where more than half of the samples have
    left the pixel box.
    """
    at, column = result.alpha.cpu().numpy(), result.centre[1]
    before = len(ax.lines)
    draw_band(ax, at, getattr(result, quantity)[:, column], name, band)
    if band and result.projected is None:
        median = ax.lines[before]
        inside = np.where(result.in_box_share[:, column].cpu().numpy() >= 0.5, median.get_ydata(), np.nan)
        ax.plot(at, inside, color=median.get_color(), lw=2, label=name or None)
        median.set(ls=":", lw=1.5, label="_off the box")
    for edge in (-1, 1):
        ax.axvline(edge, color="0.75", lw=0.8, ls=":", zorder=0)
    ax.set(xlabel=axis_names(result)[0], ylabel=LABELS.get(quantity, quantity))
    return ax


def path(result: InputPath, ax: Axes, *, quantity: str = "loss", name: str = "", band: bool = True) -> Axes:
    """A quantity along PGD's own path, also between its steps, whose ends are dotted; the band is that of `trace`."""
    at, values = result.step.cpu().numpy(), getattr(result, quantity)
    per_step = round(len(at) / max(1.0, float(at[-1])))
    draw_band(ax, at, values, name, band, marker="o", ms=3.5, markevery=per_step)
    ax.set(xlabel="PGD step", ylabel=LABELS.get(quantity, quantity))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def traces(
    results: Mapping[str, Traced | Sequence[Traced]], axes: Axes | Iterable[Axes], *, quantity: str = "grad_norm"
) -> list[Axes]:
    """One panel a model on shared axes: its median with a 10-90% band, the other models' medians in grey behind it.

    A model may have several results, one a training seed: further seeds are thin dashed lines. Raises ValueError for
    another number of axes than of results.
    """
    flat = panels(axes, list(results))
    seeds = {name: [one] if isinstance(one, Traced) else list(one) for name, one in results.items()}
    for ax, name in zip(flat, seeds, strict=True):
        for other, (first, *_) in seeds.items():
            if other != name:
                trace(first, ax, quantity=quantity, name=name, band=False)
                ax.lines[-1].set(color="0.8", ls="-", zorder=0.5)
        for i, one in enumerate(seeds[name]):
            trace(one, ax, quantity=quantity, name=name, band=i == 0)
    share_limits(flat)
    outer_labels(flat)
    return flat
