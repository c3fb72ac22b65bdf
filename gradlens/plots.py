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
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame
from torch import Tensor

from .attacks import PGDTrace
from .compare import wilson
from .entropy import Entropy
from .landscape import Surface, WeightSurface
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
    "error": "error (share)",
    "reward": "expected reward",
    "attacked loss": "attacked cross-entropy (nats)",
    "attacked error": "attacked error (share)",
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


def weight_line(result: WeightSurface, ax: Axes, *, metric: str = "loss", name: str = "") -> Axes:
    """A line through weight space; gaps where the model diverged, dots at the models that the line passes."""
    at, values = result.alpha.cpu().numpy(), _finite(result.of(metric)[:, 0])
    ax.plot(at, values, color=colour(name), label=name or None)
    if not result.measured.all():
        shown = result.measured[:, 0].cpu().numpy()
        ax.plot(at[shown], values[shown], ls="none", marker=".", ms=3, color=colour(name))
    own = result.path_values[result.metrics.index(metric)].cpu().numpy()
    ax.plot(result.path[:, 0].cpu().numpy(), own, ls="none", marker="o", ms=5, color=colour(name))
    ax.set(xlabel=_axis(result, 0), ylabel=LABELS.get(metric, metric))
    return ax


def weight_surface(
    result: WeightSurface, ax: Axes, *, metric: str = "loss", levels: Any = 12, path: bool = True, **options: Any
) -> Axes:
    """Labelled contours of a plane through weight space; the first direction runs to the right, the second upwards.

    Hatched where a model diverged. Dots mark the measured cells of an adaptive grid; `path` draws the models that the
    plane was laid through, in their order. Pass one `levels` array to surfaces that are to be compared.
    """
    across, up, grid = (t.cpu().numpy() for t in (result.alpha, result.beta, result.of(metric).T))
    grid = _finite(grid)
    if np.isnan(grid).any():
        low, high = (across[0], up[0]), (across[-1] - across[0], up[-1] - up[0])
        ax.add_patch(Rectangle(low, *high, hatch="////", fc="none", ec="0.35", lw=0, zorder=0, label="diverged"))
    filled = ax.contourf(across, up, grid, levels, cmap=options.pop("cmap", "viridis"), **options)
    lines = ax.contour(across, up, grid, filled.levels, colors="white", linewidths=0.5)
    ax.clabel(lines, fontsize="xx-small", fmt="%.3g")
    if not result.measured.all():
        r, c = (index.cpu().numpy() for index in result.measured.nonzero().T)
        ax.plot(across[r], up[c], ls="none", marker=".", ms=2, color="black", alpha=0.6, label="measured")
    ax.plot(0, 0, marker="+", color="black", ms=8)
    if path and len(result.path):
        ax.plot(*result.path.T.cpu().numpy(), color="black", marker="o", ms=3, lw=1, label="path")
    ax.set(xlabel=_axis(result, 0), ylabel=_axis(result, 1))
    return ax


def relief(result: WeightSurface, ax: Any, *, metric: str = "loss", **options: Any) -> Any:
    """A plane through weight space in three dimensions, on axes made with projection="3d"; holes where it diverged."""
    alpha, beta = np.meshgrid(result.alpha.cpu().numpy(), result.beta.cpu().numpy(), indexing="ij")
    grid = _finite(result.of(metric))
    limits = {"vmin": np.nanmin(grid), "vmax": np.nanmax(grid)} if np.isfinite(grid).any() else {}
    ax.plot_surface(alpha, beta, grid, rstride=1, cstride=1, **{"cmap": "viridis", "lw": 0} | limits | options)
    ax.set(xlabel=_axis(result, 0), ylabel=_axis(result, 1), zlabel=LABELS.get(metric, metric))
    return ax


def interactive(result: WeightSurface, *, metric: str = "loss") -> Any:
    """A plotly figure of a plane through weight space, to be turned by hand; needs the package plotly.

    Raises ImportError, saying so, where it is not installed.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise ImportError("plots.interactive needs plotly: pip install plotly") from error
    label = LABELS.get(metric, metric)
    surface = graph_objects.Surface(
        x=result.alpha.cpu().numpy(), y=result.beta.cpu().numpy(), z=_finite(result.of(metric).T),
        colorscale="Viridis", colorbar={"title": label}, connectgaps=False,
    )  # fmt: skip
    axes = {
        f"{axis}axis_title": text for axis, text in zip("xyz", (_axis(result, 0), _axis(result, 1), label), strict=True)
    }
    return graph_objects.Figure(surface, layout={"scene": axes, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}})


def _axis(result: WeightSurface, axis: int) -> str:
    return f"{result.axes[axis]}\n(1 = {result.meaning[axis]})"


def _finite(values: Any) -> np.ndarray:
    """As numbers that can be drawn: what is not finite is a gap."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


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
