"""Planes seen from above: contours and decision maps, alone or side by side on one scale."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from torch import Tensor

from ..landscape import Surface, WeightSurface
from .look import outer_labels, panels
from .relief import surface3d
from .scale import (
    HALO,
    Limits,
    Over,
    Plane,
    axis_names,
    beyond_of,
    cells,
    check_sample,
    colours_of,
    is_signed,
    isolines,
    label_lines,
    label_of,
    levels_of,
    limits,
    refuse_line,
)
from .weights import weight_surface

# Petroff's ten, told apart by the colour-blind; older matplotlib does not know them by name
PETROFF = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip


def surface(
    result: Plane,
    ax: Axes,
    *,
    quantity: str = "loss",
    sample: int | None = None,
    over: Over = "mean",
    levels: int | Sequence[float] | np.ndarray = 12,
    ends: Limits | None = None,
    cmap: str | None = None,
    labels: bool = True,
) -> Axes:
    """Labelled contours of a plane, for one sample or the mean, median or 10-90% spread `over` all.

    The first direction runs to the right, the second upwards; the dotted square is 1 eps along each axis; of a plane
    through two adversaries, the image and they are marked, and the angle between them given. Hatched where the plane
    lies off the pixel box (of many samples: off every one's; the dashed line is where half of them leave it) and
    where there is no number. `ends` are those of the colour scale, see `limits`. A plane through weight space, whose
    metric `quantity` is, is drawn as by `weight_surface`.
    """
    steps = levels_of(ends or limits([result], quantity=quantity, sample=sample, over=over), levels)
    beyond = beyond_of([result], steps, quantity, sample, over)
    _contours(result, ax, steps, beyond, quantity, sample, over, cmap, labels)
    return ax


def surfaces(
    results: Mapping[str, Plane],
    axes: Axes | Iterable[Axes],
    *,
    quantity: str = "loss",
    sample: int | None = None,
    over: Over = "mean",
    levels: int | Sequence[float] | np.ndarray = 12,
    ends: Limits | None = None,
    cmap: str | None = None,
    labels: bool = False,
) -> list[Axes]:
    """One plane a model, side by side on one colour scale, whose bar stands at the right; of images or of weights.

    Square panels stand closest on a figure with layout="compressed". On axes with projection="3d", each is drawn as a
    relief. `ends` cut the scale, where one model would flatten all others. Raises ValueError for another number of
    axes than of results.
    """
    flat = panels(axes, list(results))
    ends = ends or limits(results.values(), quantity=quantity, sample=sample, over=over)
    steps = levels_of(ends, levels)
    is_relief = flat[0].name == "3d"
    # reliefs are cut at the ends themselves, contours at the round numbers around them
    beyond = beyond_of(results.values(), np.array(ends) if is_relief else steps, quantity, sample, over)
    for ax, result in zip(flat, results.values(), strict=True):
        if ax.name == "3d":
            surface3d(result, ax, quantity=quantity, sample=sample, over=over, ends=ends, cmap=cmap).set(zlabel="")
            shades = ScalarMappable(Normalize(*ends), cmap or colours_of(quantity, over))
        else:
            shades = _contours(result, ax, steps, beyond, quantity, sample, over, cmap, labels)
    outer_labels([ax for ax in flat if ax.name != "3d"])
    look: dict[str, Any] = {"shrink": 0.6, "extend": beyond} if is_relief else {}  # contours know their own extent
    flat[0].figure.colorbar(shades, ax=flat, label=label_of(quantity, sample, over), **look)
    return flat


def decisions(result: Surface, ax: Axes, *, sample: int, classes: int = 10) -> Axes:
    """The class that each point of one sample's plane is given, one colour a class; hatched off the pixel box.

    Empty for a sample that has no direction.
    """
    if not isinstance(result, Surface):
        raise ValueError(f"result is a {type(result).__name__}, expected a Surface: only images are given a class")
    refuse_line(result)
    check_sample(result, sample)
    step = float(result.alpha[1] - result.alpha[0]) / 2
    low, high = float(result.alpha[0]) - step, float(result.alpha[-1]) + step
    predicted = result.predicted[:, :, sample].T.cpu().numpy()
    # each cell is drawn around the point where it was measured
    ax.imshow(
        np.ma.masked_less(predicted, 0),
        origin="lower",
        extent=(low, high, low, high),
        vmin=-0.5,
        vmax=classes - 0.5,
        cmap=ListedColormap(_class_colours(classes)),
        interpolation="nearest",
        alpha=0.85,
    )
    _frame_of_plane(result, ax, sample, predicted.T < 0)
    return ax


def decision_maps(
    results: Mapping[str, Surface], axes: Axes | Iterable[Axes], *, sample: int, classes: int = 10
) -> list[Axes]:
    """One decision map a model, side by side, a class in the same colour in each, with their legend below.

    Square panels stand closest on a figure with layout="compressed". Raises ValueError for another number of axes than
    of results.
    """
    flat = panels(axes, list(results))
    for ax, result in zip(flat, results.values(), strict=True):
        decisions(result, ax, sample=sample, classes=classes)
    outer_labels(flat)
    seen = [result.predicted[:, :, sample] for result in results.values()]
    class_legend(flat[0].figure, seen, classes=classes)
    return flat


def class_legend(fig: Figure | SubFigure, predicted: Sequence[Tensor], *, classes: int = 10) -> None:
    """One patch for each class that appears in the decision maps of a figure, in their colours."""
    seen = sorted({int(c) for grid in predicted for c in grid.unique() if c >= 0})
    patches = [Patch(color=_class_colours(classes)[c], alpha=0.85, label=str(c)) for c in seen]
    fig.legend(handles=patches, title="predicted class", loc="outside lower center", ncols=min(10, max(1, len(seen))))


def _class_colours(classes: int) -> list[Any]:
    if classes <= 10:
        return list(PETROFF[:classes])
    hues = sns.color_palette("husl", classes)
    # classes that follow each other are often alike; the golden section sets their colours apart
    order = np.argsort(np.arange(classes) * 0.618034 % 1)
    return [hues[place] for place in np.argsort(order)]


def _contours(
    result: Plane,
    ax: Axes,
    steps: np.ndarray,
    beyond: Literal["neither", "min", "max", "both"],
    quantity: str,
    sample: int | None,
    over: Over,
    cmap: str | None,
    labels: bool,
) -> ScalarMappable:
    if isinstance(result, WeightSurface):
        shades = cmap or colours_of(quantity, over)
        weight_surface(result, ax, metric=quantity, levels=steps, labels=labels, cmap=shades, extend=beyond)
        return ax.collections[0]
    grid = cells(result, quantity, sample, over)
    across, up = result.alpha.cpu().numpy(), result.beta.cpu().numpy()
    filled = ax.contourf(across, up, grid.T, steps, cmap=cmap or colours_of(quantity, over), extend=beyond)
    if is_signed(quantity, over):
        isolines(ax, across, up, grid.T, np.array([0.0]), colors="black", linewidths=1.2)  # the decision boundary
    lines = isolines(ax, across, up, grid.T, steps, colors="white", linewidths=0.5, alpha=0.7)
    if labels:
        label_lines(ax, lines, steps)
    _frame_of_plane(result, ax, sample, np.isnan(grid))
    return filled


def _frame_of_plane(result: Surface, ax: Axes, sample: int | None, undefined: np.ndarray) -> None:
    across, up = result.alpha.cpu().numpy(), result.beta.cpu().numpy()
    inside = result.in_box.any(2) if sample is None else result.in_box[:, :, sample]
    off = ~inside.cpu().numpy() & (result.projected is None) | undefined
    if off.any():
        with mpl.rc_context({"hatch.color": "0.35", "hatch.linewidth": 0.4}):
            ax.contourf(across, up, off.T.astype(float), [0.5, 1.5], colors="none", hatches=["////"])
    if sample is None and result.projected is None:
        share = result.in_box_share.cpu().numpy()
        isolines(ax, across, up, share.T, np.array([0.5]), colors="0.2", linewidths=1.0, linestyles="--")
    across_name, up_name = axis_names(result)
    ax.set(xlabel=across_name, ylabel=up_name, aspect="equal")
    ax.plot(0, 0, marker="+", color="black", ms=8, path_effects=HALO)
    if result.has_ends:
        _mark_ends(result, ax, sample)
    else:
        ax.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="black", lw=1, ls=":", path_effects=HALO)


def _mark_ends(result: Surface, ax: Axes, sample: int | None) -> None:
    for name, at, offset in (("x", (0, 0), (-9, -9)), ("a", (1, 0), (6, -10)), ("b", (0, 1), (-10, 6))):
        ax.plot(*at, marker="o" if name != "x" else "", ms=5, mfc="white", mec="black")
        ax.plot([0, at[0]], [0, at[1]], color="black", lw=1, ls=":")
        ax.annotate(
            name, at, xytext=offset, textcoords="offset points", ha="center", va="center", path_effects=HALO,
            annotation_clip=True,
        )  # fmt: skip
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "boxstyle": "round,pad=0.2"}
    angle = float(result.angle.nanmedian() if sample is None else result.angle[sample])
    ax.text(0.98, 0.98, f"angle {angle:.0f}°", transform=ax.transAxes, ha="right", va="top", bbox=box, zorder=10)
