"""Planes as reliefs: in three dimensions on paper, and to be turned by hand."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from ..landscape import Surface, WeightSurface
from .scale import Limits, Over, Plane, axis_names, cells, colours_of, label_of, limits

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

OFF = 0.5  # share of a face's corners in the pixel box below which it counts as off it


def surface3d(
    result: Plane,
    ax: Axes,
    *,
    quantity: str = "loss",
    sample: int | None = None,
    over: Over = "mean",
    ends: Limits | None = None,
    cmap: str | None = None,
) -> Axes:
    """A plane as a relief, on axes with projection="3d"; grey where it lies off the pixel box, as `surface` hatches.

    Of weight space, `quantity` is a metric. The dot is the image or the model. `ends` are those of the height and of
    the colours; what lies beyond is cut off.
    Raises ValueError for flat axes.
    """
    if ax.name != "3d":
        raise ValueError(f"ax has the projection {ax.name!r}, expected '3d', as plt.subplots(subplot_kw=...) makes it")
    grid = cells(result, quantity, sample, over)
    low, high = ends or limits([result], quantity=quantity, sample=sample, over=over)
    height = np.clip(grid, low, high)
    shades = mpl.colormaps[cmap or colours_of(quantity, over)](Normalize(low, high)(_middles(height)))
    if isinstance(result, Surface) and result.projected is None:
        inside = (result.in_box.any(2) if sample is None else result.in_box[:, :, sample]).cpu().numpy()
        off = _middles(inside.astype(float)) < OFF
        shades[off] = 0.45 * shades[off] + 0.55 * np.array([0.88, 0.88, 0.88, 1])
    across, up = np.meshgrid(result.alpha.cpu().numpy(), result.beta.cpu().numpy(), indexing="ij")
    # an Axes by its type, an Axes3D by the check above
    relief: Any = ax
    relief.plot_surface(
        across,
        up,
        height,
        facecolors=shades,
        rcount=len(across),
        ccount=len(up.T),
        lw=0.15,
        edgecolor=(0, 0, 0, 0.25),
        antialiased=True,
        shade=False,
    )
    row, column = result.centre
    names = axis_names(result)
    relief.plot([0], [0], [height[row, column]], marker="o", mfc="white", mec="black", ms=5, zorder=10)
    relief.set(
        xlabel=names[0], ylabel=names[1], zlabel=label_of(quantity, sample, over), zlim=(low, high)
    )  # fmt: skip
    for axis in (relief.xaxis, relief.yaxis, relief.zaxis):
        axis.label.set_size("small")
        axis.set_tick_params(labelsize="x-small", pad=0)
        axis.set_major_locator(MaxNLocator(3))  # more would lie on each other where several reliefs share a row
    relief.set_box_aspect(None, zoom=0.85)  # long names of directions need room
    relief.view_init(elev=45, azim=-125)  # from so high that a basin is seen behind its wall
    return ax


def _middles(corners: np.ndarray) -> np.ndarray:
    """(R - 1, C - 1): the mean of each face's corners, its height in the middle."""
    return (corners[:-1, :-1] + corners[1:, :-1] + corners[:-1, 1:] + corners[1:, 1:]) / 4


def interactive(
    result: Plane | Mapping[str, Plane],
    *,
    quantity: str = "loss",
    sample: int | None = None,
    over: Over = "mean",
    ends: Limits | None = None,
) -> "Figure":
    """A relief that can be turned, as a plotly figure; of several models one at a time, chosen in a menu, on one scale.

    Raises ValueError for no result.
    """
    from plotly import graph_objects as go  # here, since it is slow to load and rarely wanted

    results = {"": result} if isinstance(result, Surface | WeightSurface) else dict(result)
    low, high = ends or limits(results.values(), quantity=quantity, sample=sample, over=over)
    label = label_of(quantity, sample, over)
    scale = "RdBu_r" if colours_of(quantity, over) == "RdBu_r" else "Viridis"
    first = next(iter(results.values()))
    reliefs = [
        go.Surface(
            # plotly's rows run along y
            x=one.alpha.tolist(), y=one.beta.tolist(), z=cells(one, quantity, sample, over).T, name=name,
            visible=one is first, cmin=low, cmax=high, colorscale=scale, colorbar={"title": {"text": label}},
            contours={"z": {"show": True, "usecolormap": True, "project": {"z": True}}},
            hovertemplate="alpha %{x:.3g}, beta %{y:.3g}<br>" + quantity + " %{z:.4g}",
        )
        for name, one in results.items()
    ]  # fmt: skip
    menu = [
        {"label": name, "method": "update", "args": [{"visible": [other == name for other in results]}]}
        for name in results
    ]
    titles = [{"text": name.replace("\n", "<br>"), "font": {"size": 11}} for name in (*axis_names(first), label)]
    scene: dict[str, Any] = {f"{axis}axis": {"title": title} for axis, title in zip("xyz", titles, strict=True)}
    scene["zaxis"]["range"] = [low, high]
    scene["camera"] = {"eye": {"x": 1.5, "y": 1.5, "z": 1.1}}
    figure = go.Figure(reliefs)
    figure.update_layout(scene=scene, margin={"l": 0, "r": 0, "t": 30, "b": 0})
    if len(results) > 1:
        figure.update_layout(updatemenus=[{"buttons": menu, "x": 0, "xanchor": "left", "y": 1, "yanchor": "top"}])
    return figure
