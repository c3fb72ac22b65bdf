"""Spectra of Hessians."""

import numpy as np
import torch
from matplotlib.axes import Axes

from ..curvature import Spectrum
from .look import colour


def spectrum(result: Spectrum, ax: Axes, *, name: str = "", width: float | None = None, floor: float = 1e-6) -> Axes:
    """Density of the eigenvalues on a log scale, with a mark at each of the largest (up) and smallest (down).

    Of the inputs, the mean density over samples and the samples' medians. `width` spreads each eigenvalue, as in
    `Spectrum.density`; give one to spectra that are to be compared. The scale ends at `floor` of the highest point of
    all that is drawn on these axes and on those that share theirs. Marks stand at the axis, hollow where an eigenvalue
    has not converged.
    """
    ends = ((result.eigenvalues, result.converged, "^"), (result.bottom, result.bottom_converged, "v"))
    low, high = float(result.bottom.nan_to_num(0.0).min()), float(result.eigenvalues.nan_to_num(0.0).max())
    width = width or 0.01 * (high - low) or 0.01
    margin = max(0.05 * (high - low), 6 * width)  # where the last eigenvalue's bell has sunk to 1e-8 of its height
    grid = torch.linspace(low - margin, high + margin, 1000, dtype=torch.float64)
    density = result.density(grid, width).reshape(-1, len(grid)).nanmean(0)
    ax.plot(grid, density.cpu().numpy(), color=colour(name), label=name or None, lw=1.5)
    for values, converged, marker in ends:
        at = values.reshape(-1, values.shape[-1]).nanmedian(0).values.cpu().numpy()
        sure = converged.reshape(-1, values.shape[-1]).all(0).cpu().numpy()
        heights = np.full(len(at), 0.03)  # of the axis, whatever its scale will be
        faces = [colour(name) if is_sure else "none" for is_sure in sure]
        place = ax.get_xaxis_transform()
        ax.scatter(
            at, heights, marker=marker, s=28, facecolors=faces, edgecolors=colour(name), zorder=3, transform=place
        )
    unit = "weight" if result.of == "weights" else "pixel"
    ax.set(xlabel=f"eigenvalue of the Hessian (nats / {unit}²)", ylabel="density of eigenvalues", yscale="log")
    family = ax.get_shared_y_axes().get_siblings(ax)
    top = max(float(np.max(line.get_ydata())) for one in family for line in one.lines)
    if top > 0:
        ax.set_ylim(floor * top, 3 * top)
    return ax
