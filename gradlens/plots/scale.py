"""From many samples to one number a cell, and from many planes to one scale with its lines."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from ..door import check_choice
from ..landscape import Surface, WeightSurface
from .look import LABELS

Over = Literal["mean", "median", "spread"]
Limits = tuple[float, float]
Plane = Surface | WeightSurface
HALO = [withStroke(linewidth=2.5, foreground="white")]  # of what is black, to be seen on the darkest colours too
QUANTITIES = ("loss", "margin", "entropy", "error")  # of a plane through an image


def cells(result: Plane, quantity: str, sample: int | None = None, over: Over = "mean") -> np.ndarray:
    """(R, C): one sample's values, or the mean, median or 10-90% spread over all that are defined.

    Of a plane through weight space, which has no samples, a metric's values; what is not finite is a gap.
    """
    check_choice("over", over, get_args(Over))
    refuse_line(result)
    if isinstance(result, WeightSurface):
        numbers = result.of(quantity).double().cpu().numpy()
        return np.where(np.isfinite(numbers), numbers, np.nan)
    if quantity not in QUANTITIES:
        raise ValueError(f"quantity is {quantity!r}, expected one of {', '.join(map(repr, QUANTITIES))}")
    values = getattr(result, quantity)
    if sample is not None:
        check_sample(result, sample)
        return values[:, :, sample].double().cpu().numpy()
    if over == "mean":
        return values.double().nanmean(2).cpu().numpy()
    band = result.summary(quantity)
    column = band["median"] if over == "median" else band["high"] - band["low"]
    return column.to_numpy(float).reshape(values.shape[:2])


def check_sample(result: Surface, sample: int) -> None:
    """Raises ValueError for a sample that the surface does not hold."""
    count = result.predicted.shape[2]
    if not (isinstance(sample, int | np.integer) and -count <= sample < count):
        raise ValueError(f"sample is {sample!r}, expected one of the {count} that the surface holds, from 0")


def refuse_line(result: Plane) -> None:
    """Raises ValueError for a surface with a single column: it has no area."""
    if len(result.beta) == 1:
        raise ValueError(
            "the surface has a single column, expected that of a plane; plots.line or plots.weight_line draws it"
        )


def limits(
    results: Iterable[Plane], *, quantity: str = "loss", sample: int | None = None, over: Over = "mean"
) -> Limits:
    """The reach of a quantity over all these planes, for one scale; of margins as far below 0 as above it.

    Raises ValueError for no plane, an unknown `over` or a sample that is not there.
    """
    grids = [cells(result, quantity, sample, over) for result in results]
    if not grids:
        raise ValueError("results are empty, expected at least one Surface")
    values = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    if len(values) == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if is_signed(quantity, over):
        reach = max(-low, high) or 1.0
        return -reach, reach
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant has no reach of its own
        pad = 0.05 * abs(high) or 0.5
        return low - pad, high + pad
    return low, high


def levels_of(ends: Limits, levels: int | Sequence[float] | np.ndarray) -> np.ndarray:
    """About so many round numbers from end to end; a sequence is taken as it is."""
    if not isinstance(levels, int | np.integer):
        return np.asarray(levels, float)
    if levels < 2 or not ends[0] < ends[1]:
        raise ValueError(f"levels is {levels} and limits {ends}, expected at least 2 levels and low < high")
    return np.array(MaxNLocator(int(levels)).tick_values(*ends))


def beyond_of(
    results: Iterable[Plane], levels: np.ndarray, quantity: str, sample: int | None = None, over: Over = "mean"
) -> Literal["neither", "min", "max", "both"]:
    """Which ends of the scale some values pass, in contourf's words: the colour bar gets an arrow there."""
    grids = np.concatenate([cells(result, quantity, sample, over).ravel() for result in results])
    below, above = (grids < levels[0]).any(), (grids > levels[-1]).any()
    if below and above:
        return "both"
    return "min" if below else "max" if above else "neither"


def is_signed(quantity: str, over: Over) -> bool:
    """Does 0 mean the decision boundary, so that it is drawn white?"""
    return quantity == "margin" and over != "spread"


def colours_of(quantity: str, over: Over) -> str:
    """The name of a colour map: two-sided where 0 is the boundary."""
    return "RdBu_r" if is_signed(quantity, over) else "viridis"


def label_of(quantity: str, sample: int | None, over: Over) -> str:
    """What the numbers of `cells` are, for a colour bar or an axis."""
    name = LABELS.get(quantity, quantity)
    return name if sample is not None or over == "mean" else f"{name}, {over}"


def axis_names(result: Plane) -> tuple[str, str]:
    """The directions with their unit."""
    if isinstance(result, WeightSurface):
        across, up = (f"{name}\n(1 = {unit})" for name, unit in zip(result.axes, result.meaning, strict=True))
        return across, up
    unit = "1 = its end" if result.has_ends else "eps"
    return f"{result.axes[0]} ({unit})", f"{result.axes[1]} ({unit})"


def isolines(ax: Axes, across: np.ndarray, up: np.ndarray, grid: np.ndarray, levels: np.ndarray, **look: Any) -> Any:
    """Contour lines at those levels that the values cross; None where they cross none."""
    finite = grid[np.isfinite(grid)]
    crossed = levels[(levels > finite.min()) & (levels < finite.max())] if len(finite) else levels[:0]
    return ax.contour(across, up, grid, crossed, **look) if len(crossed) else None


def label_lines(ax: Axes, lines: Any, levels: np.ndarray) -> None:
    """The lines of every second of these levels carry their value, where there is room for it; see `_Sieve`.

    All would lie on each other on a steep wall; `levels` are those of all planes, so that they label the same lines.
    """
    chosen = [] if lines is None else [level for level in lines.levels if level in levels[::2]]
    if chosen:
        # lines run on below their labels, and are whole where one is dropped
        texts = ax.clabel(lines, chosen, fontsize=6.5, colors="black", fmt="%g", inline=False)
        for text in texts:
            text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
        ax.add_artist(_Sieve(ax, texts))


class _Sieve(Artist):
    """Drops labels that leave the axes, meet an earlier one or lie on (0, 0): where they are is known at drawing."""

    zorder = 0  # before the labels are drawn

    def __init__(self, ax: Axes, texts: Sequence[Text]) -> None:
        super().__init__()
        self.ax, self.texts = ax, list(texts)
        self.set_in_layout(False)

    def draw(self, renderer: Any) -> None:
        """Draws nothing itself."""
        frame, taken = self.ax.bbox, [self._cross(renderer)]
        for text in self.texts:
            text.set_visible(True)  # a hidden one has no place
            box = text.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            text.set_visible(inside and not box.count_overlaps(taken))
            taken += [box] if text.get_visible() else []

    def _cross(self, renderer: Any) -> Bbox:
        x, y = self.ax.transData.transform((0, 0))
        arm = renderer.points_to_pixels(4)
        return Bbox.from_extents(x - arm, y - arm, x + arm, y + arm)
