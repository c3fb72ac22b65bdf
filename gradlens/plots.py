"""Pictures of results: (result, ax) -> ax. The only room that imports matplotlib and seaborn."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame
from torch import Tensor

from .attacks import PGDTrace
from .compare import wilson
from .curvature import Spectrum
from .entropy import Entropy
from .landscape import Surface
from .provenance import Made, versions
from .stability import Stability
from .store import write

# Okabe & Ito's colours, told apart by the colour-blind; an arm keeps its colour in every figure
COLOURS = {"SL": "#0072B2", "RL": "#D55E00", "exact": "#009E73", "SL-adv": "#56B4E9", "RL-adv": "#E69F00"}
OTHERS = ("#CC79A7", "#000000", "#F0E442", "#999999")

LABELS = {
    "loss": "cross-entropy (nats)",
    "margin": "margin (logits)",
    "entropy": "predictive entropy (nats)",
    "confidence": "confidence",
    "grad_norm": "gradient norm (nats / pixel)",
    "on_surface": "share of pixels\non the surface",
    "cosine": "cosine to the\nprevious gradient",
    "cosine_first": "cosine to the\nfirst gradient",
    "cosine_final": "cosine to the\nfinal perturbation",
    "sign_agreement": "sign agreement with\nthe previous gradient",
    "moved": "step after projection\n(L2, pixels)",
}


def style() -> None:
    """The look of all figures: white, sparse, fonts embedded in PDFs. For notebooks: it changes global settings."""
    sns.set_theme(style="ticks", context="notebook", font_scale=0.9)
    mpl.rcParams |= {
        "figure.dpi": 110,
        "savefig.dpi": 180,
        "pdf.fonttype": 42,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
        "axes.titlesize": "medium",
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }


def colour(name: str, among: Sequence[str] = ()) -> str:
    """The colour of an arm; other names take the remaining colours in the order of `among`."""
    if name in COLOURS:
        return COLOURS[name]
    others = [other for other in among if other not in COLOURS]
    return OTHERS[(others.index(name) if name in others else 0) % len(OTHERS)]


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
    _band(ax, np.arange(first, first + len(values)), values, name, band)
    ax.set(xlabel="PGD step", ylabel=LABELS.get(quantity, quantity))
    return ax


def local_cosine(result: Stability, ax: Axes, *, name: str = "", band: bool = True) -> Axes:
    """Cosine between the gradient at the image and at fixed distances from it, as `trace` draws a path."""
    _band(ax, np.array(result.radii), result.local_cosine, name, band, marker="o", ms=4)
    ax.set(xscale="log", xlabel="distance from the image (eps)", ylabel="cosine to the\ngradient at the image")
    ax.set_xticks(result.radii, [f"{radius:g}" for radius in result.radii])
    ax.minorticks_off()
    return ax


def history(frame: DataFrame, ax: Axes, *, quantity: str = "clean") -> Axes:
    """A training curve per arm: mean over seeds, with a band from the lowest seed to the highest."""
    arms = list(dict.fromkeys(frame["arm"]))
    palette = {arm: colour(arm, arms) for arm in arms}
    sns.lineplot(frame, x="epoch", y=quantity, hue="arm", palette=palette, errorbar=("pi", 100), ax=ax)
    ax.set(xlabel="epoch", ylabel=quantity)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(title=None)
    return ax


def entropy(result: Entropy, ax: Axes, *, name: str = "") -> Axes:
    """Cumulative share of samples up to each entropy: clean as a line, attacked dashed."""
    for values, dashes, note in ((result.clean, "-", "clean"), (result.adversarial, "--", "attacked")):
        if not values.isnan().all():
            sns.ecdfplot(x=values.cpu().numpy(), ax=ax, color=colour(name), ls=dashes, label=f"{name} {note}".strip())
    ax.set(xlabel=LABELS["entropy"], ylabel="share of samples", xlim=(0, None))
    return ax


def reliability(result: Entropy, ax: Axes, *, name: str = "") -> Axes:
    """Accuracy against confidence on clean inputs, with 95% Wilson intervals; a dot's area is its share of samples."""
    bins = result.reliability()
    bins = bins[bins["samples"] > 0]
    right = (bins["accuracy"] * bins["samples"]).round().astype(int)
    ends = np.array([wilson(k, n) for k, n in zip(right, bins["samples"], strict=True)]).reshape(-1, 2)
    ax.plot([0, 1], [0, 1], color="0.7", lw=1, zorder=0)
    ax.vlines(bins["confidence"], ends[:, 0], ends[:, 1], color=colour(name), lw=1, alpha=0.6)
    size = 8 + 200 * bins["samples"] / bins["samples"].sum()
    ax.scatter(bins["confidence"], bins["accuracy"], s=size, color=colour(name), label=name or None, clip_on=False)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    return ax


def line(result: Surface, ax: Axes, *, quantity: str = "loss", name: str = "", band: bool = True) -> Axes:
    """A one-dimensional slice: median over samples, with a band from the 10th to the 90th percentile."""
    _band(ax, result.alpha.cpu().numpy(), getattr(result, quantity)[:, 0], name, band)
    for edge in (-1, 1):
        ax.axvline(edge, color="0.75", lw=0.8, ls=":", zorder=0)
    ax.set(xlabel=f"{result.axes[0]} direction (eps)", ylabel=LABELS.get(quantity, quantity))
    return ax


def surface(
    result: Surface, ax: Axes, *, quantity: str = "loss", sample: int | None = None, levels: Any = 12, **options: Any
) -> Axes:
    """Filled contours of a plane, for one sample or the mean over all.

    The first direction runs to the right, the second upwards; the dotted square is 1 eps along each axis. Hatched
    where the plane lies off the pixel box (for the mean: off every sample's).
    """
    values = getattr(result, quantity)
    grid = values.nanmean(2) if sample is None else values[:, :, sample]
    inside = result.in_box.any(2) if sample is None else result.in_box[:, :, sample]
    across, up = result.alpha.cpu().numpy(), result.beta.cpu().numpy()
    filled = ax.contourf(across, up, grid.T.cpu().numpy(), levels, cmap=options.pop("cmap", "viridis"), **options)
    ax.contour(across, up, grid.T.cpu().numpy(), filled.levels, colors="white", linewidths=0.4, alpha=0.5)
    if quantity == "margin" and grid.min() < 0 < grid.max():
        ax.contour(across, up, grid.T.cpu().numpy(), [0.0], colors="black", linewidths=1.2)  # the decision boundary
    _frame_of_plane(result, ax, inside)
    return ax


def decisions(result: Surface, ax: Axes, *, sample: int, classes: int = 10) -> Axes:
    """The class that each point of one sample's plane is given, one colour a class; hatched off the pixel box."""
    step = float(result.alpha[1] - result.alpha[0]) / 2
    low, high = float(result.alpha[0]) - step, float(result.alpha[-1]) + step
    # each cell is drawn around the point where it was measured
    ax.imshow(
        result.predicted[:, :, sample].T.cpu().numpy(),
        origin="lower",
        extent=(low, high, low, high),
        vmin=-0.5,
        vmax=classes - 0.5,
        cmap=ListedColormap(_class_colours(classes)),
        interpolation="nearest",
        alpha=0.85,
    )
    _frame_of_plane(result, ax, result.in_box[:, :, sample])
    return ax


def class_legend(fig: Figure, predicted: Sequence[Tensor], *, classes: int = 10) -> None:
    """One patch for each class that appears in the decision maps of a figure, in their colours."""
    seen = sorted({int(c) for grid in predicted for c in grid.unique()})
    patches = [Patch(color=_class_colours(classes)[c], alpha=0.85, label=str(c)) for c in seen]
    fig.legend(handles=patches, title="predicted class", loc="outside lower center", ncols=min(10, len(seen)))


def spectrum(result: Spectrum, ax: Axes, *, name: str = "", width: float | None = None, floor: float = 1e-6) -> Axes:
    """Density of the eigenvalues on a log scale, with a mark at each of the largest (up) and smallest (down).

    Of the inputs, the mean density over samples and the samples' medians. `width` spreads each eigenvalue, as in
    `Spectrum.density`; below `floor` of the highest point the scale ends. Eigenvalues that have not converged are
    drawn hollow.
    """
    ends = ((result.eigenvalues, result.converged, "^"), (result.bottom, result.bottom_converged, "v"))
    low, high = float(result.bottom.nan_to_num(0.0).min()), float(result.eigenvalues.nan_to_num(0.0).max())
    margin = 0.05 * (high - low) or 1.0
    grid = torch.linspace(low - margin, high + margin, 1000, dtype=torch.float64)
    density = result.density(grid, width or 0.01 * (high - low) or 0.01).reshape(-1, len(grid)).nanmean(0)
    top = float(density.max())
    ax.plot(grid, density.cpu().numpy(), color=colour(name), label=name or None, lw=1.5)
    for values, converged, marker in ends:
        at = values.reshape(-1, values.shape[-1]).nanmedian(0).values.cpu().numpy()
        sure = converged.reshape(-1, values.shape[-1]).all(0).cpu().numpy()
        heights = np.full(len(at), floor * top * 1.5)
        faces = [colour(name) if is_sure else "none" for is_sure in sure]
        ax.scatter(at, heights, marker=marker, s=28, facecolors=faces, edgecolors=colour(name), zorder=3)
    unit = "weight" if result.of == "weights" else "pixel"
    ax.set(xlabel=f"eigenvalue of the Hessian (nats / {unit}²)", ylabel="density of eigenvalues", yscale="log")
    if top > 0:
        ax.set_ylim(floor * top, 3 * top)
    return ax


def _class_colours(classes: int) -> list[Any]:
    return list(sns.color_palette("tab10" if classes <= 10 else "husl", classes))


def _band(ax: Axes, at: np.ndarray, values: Tensor, name: str, band: bool, **options: Any) -> None:
    """Median over samples (last axis) with a 10-90% band; gaps where no sample has a value."""
    numbers = values.double().cpu().numpy()
    defined = ~np.isnan(numbers).all(1)
    ends = np.full((3, len(at)), np.nan)
    ends[:, defined] = np.nanpercentile(numbers[defined], (10, 50, 90), axis=1)
    shown = name if band and name else None
    ax.plot(at, ends[1], color=colour(name), label=shown, lw=2 if band else 1, ls="-" if band else "--", **options)
    if band:
        ax.fill_between(at, ends[0], ends[2], color=colour(name), alpha=0.06, lw=0)
        for edge in (ends[0], ends[2]):  # where bands overlap, their fills alone cannot be told apart
            ax.plot(at, edge, color=colour(name), lw=0.6, alpha=0.7)


def _frame_of_plane(result: Surface, ax: Axes, inside: Tensor) -> None:
    across, up = result.alpha.cpu().numpy(), result.beta.cpu().numpy()
    outside = (~inside).double().T.cpu().numpy()
    if outside.any() and result.projected is None:
        with mpl.rc_context({"hatch.color": "0.35", "hatch.linewidth": 0.4}):
            ax.contourf(across, up, outside, [0.5, 1.5], colors="none", hatches=["////"])
    ax.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="black", lw=1, ls=":")
    ax.plot(0, 0, marker="+", color="black", ms=8)
    ax.set(xlabel=f"{result.axes[0]} (eps)", ylabel=f"{result.axes[1]} (eps)", aspect="equal")


def publish(
    fig: Figure,
    name: str,
    data: DataFrame | None,
    caption: str,
    *,
    out: str | Path,
    runs: Sequence[Mapping[str, Any]] = (),
    made: Made | None = None,
    alt: str | None = None,
    title: str | None = None,
) -> Figure:
    """Keep a figure in `out`: `name`.png, .pdf, .parquet (the data behind it), .json (caption, runs, how it was made).

    An empty `out` keeps nothing, as when a notebook is read by hand. `caption` is a paragraph for a paper; `alt`, for
    those who cannot see the picture, is the caption if not given; `runs` name the checkpoints behind the figure;
    `title` is made of the name if not given.
    Raises ValueError for a name that is no plain file name.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"name is {name!r}, expected letters, digits, '-' and '_' only")
    if not str(out):
        return fig
    folder = Path(out)
    place = folder / f"{name}.json"
    # a figure that is drawn again keeps its place among the others
    order = json.loads(place.read_text())["order"] if place.is_file() else len(list(folder.glob("*.json")))
    for kind in ("png", "pdf"):
        path = folder / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        # without a date the same figure is the same bytes
        fig.savefig(path, metadata={"CreationDate": None} if kind == "pdf" else {"Software": None})
    if data is not None:
        data.to_parquet(folder / f"{name}.parquet", index=False)
    record = {
        "name": name,
        "title": title or name.replace("_", " ").capitalize(),
        "caption": caption,
        "alt": alt or caption,
        "data": None if data is None else f"{name}.parquet",
        "runs": [dict(run) for run in runs],
        "order": order,
        "made": asdict(made) if made else {"versions": versions(), "threads": torch.get_num_threads()},
    }
    write(place, (json.dumps(record, indent=2) + "\n").encode())
    return fig
