"""Lines and planes through weight space."""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..landscape import WeightSurface
from .look import LABELS, colour
from .scale import HALO, axis_names, cells, isolines, label_lines


def weight_line(result: WeightSurface, ax: Axes, *, metric: str = "loss", name: str = "", dashes: str = "-") -> Axes:
    """A line through weight space; gaps where the model diverged, dots at the models that the line passes.

    Of a plane, the line through the model along its first direction. `dashes` is the line's style, for lines that run
    on each other.
    """
    at, values = result.alpha.cpu().numpy(), _column(result, metric)
    ax.plot(at, values, color=colour(name), ls=dashes, label=name or None)
    if not result.measured.all():
        shown = result.measured[:, result.centre[1]].cpu().numpy()
        ax.plot(at[shown], values[shown], ls="none", marker=".", ms=3, color=colour(name))
    own = result.path_values[result.metrics.index(metric)].cpu().numpy()
    ax.plot(result.path[:, 0].cpu().numpy(), own, ls="none", marker="o", ms=5, color=colour(name))
    ax.set(xlabel=axis_names(result)[0], ylabel=LABELS.get(metric, metric))
    return ax


def weight_surface(
    result: WeightSurface,
    ax: Axes,
    *,
    metric: str = "loss",
    levels: Any = 12,
    path: bool = True,
    labels: bool = True,
    **options: Any,
) -> Axes:
    """Labelled contours of a plane through weight space; the first direction runs to the right, the second upwards.

    Hatched where a model diverged. Dots mark the measured cells of an adaptive grid; `path` draws the models that the
    plane was laid through, in their order. Pass one `levels` array to surfaces that are to be compared. A plane with
    the same coordinates along both directions is drawn square. `options` are contourf's.
    """
    across, up, grid = result.alpha.cpu().numpy(), result.beta.cpu().numpy(), cells(result, metric).T
    if np.isnan(grid).any():
        low, high = (across[0], up[0]), (across[-1] - across[0], up[-1] - up[0])
        ax.add_patch(Rectangle(low, *high, hatch="////", fc="none", ec="0.35", lw=0, zorder=0, label="diverged"))
    filled = ax.contourf(across, up, grid, levels, cmap=options.pop("cmap", "viridis"), **options)
    lines = isolines(ax, across, up, grid, np.asarray(filled.levels), colors="white", linewidths=0.5)
    if labels:
        label_lines(ax, lines, np.asarray(filled.levels))
    if not result.measured.all():
        r, c = (index.cpu().numpy() for index in result.measured.nonzero().T)
        ax.plot(across[r], up[c], ls="none", marker=".", ms=2, color="black", alpha=0.6, label="measured")
    ax.plot(0, 0, marker="+", color="black", ms=8, path_effects=HALO)
    if path and len(result.path):
        halo = [withStroke(linewidth=2.5, foreground="black")]  # seen on dark valleys and on bright walls
        places = result.path.T.cpu().numpy()
        ax.plot(*places, color="white", marker="o", ms=3, mec="black", lw=1, label="path", path_effects=halo)
    ax.set(xlabel=axis_names(result)[0], ylabel=axis_names(result)[1])
    if torch.equal(result.alpha, result.beta):
        ax.set_aspect("equal")
    return ax


def _column(result: WeightSurface, metric: str) -> np.ndarray:
    """The values along the first direction, through the model itself; what is not finite is a gap."""
    values = result.of(metric)[:, result.centre[1]].double().cpu().numpy()
    return np.where(np.isfinite(values), values, np.nan)
