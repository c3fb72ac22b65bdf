"""The look of all figures: colours, labels, the band over samples."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from torch import Tensor

# Okabe & Ito's colours, told apart by the colour-blind; an arm keeps its colour in every figure
COLOURS = {"SL": "#0072B2", "RL": "#D55E00", "exact": "#009E73", "SL-adv": "#56B4E9", "RL-adv": "#E69F00"}
# what is left of them, then Tol's muted ones and his brown; yellow, which is weak on white, comes last
OTHERS = ("#CC79A7", "#000000", "#999999", "#882255", "#999933", "#332288", "#44AA99", "#661100", "#F0E442")
_given: dict[str, str] = {}  # the colours of other names since `style`, in one process

LABELS = {
    "loss": "cross-entropy (nats)",
    "margin": "margin (logits)",
    "entropy": "predictive entropy (nats)",
    "error": "error (share)",
    "reward": "expected reward",
    "attacked loss": "attacked cross-entropy (nats)",
    "attacked error": "attacked error (share)",
    "confidence": "confidence",
    "grad_norm": "gradient norm (nats / pixel)",
    "on_surface": "share of pixels\non the surface",
    "cosine": "cosine to the\nprevious gradient",
    "cosine_first": "cosine to the\nfirst gradient",
    "cosine_final": "cosine to the\nfinal perturbation",
    "sign_agreement": "sign agreement with\nthe previous gradient",
    "moved": "step after projection\n(L2, pixels)",
}


def look() -> Any:  # matplotlib has a type of its own for a dict of settings
    """The settings of all figures: white, sparse, fonts embedded in PDFs."""
    return {
        **sns.axes_style("ticks"),
        **sns.plotting_context("notebook", font_scale=0.9),
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


def style(names: Sequence[str] = ()) -> None:
    """Give all figures this look, and colours to names anew, in order. For notebooks: it changes global settings."""
    _given.clear()
    for name in names:
        colour(name)
    sns.set_theme(style="ticks", context="notebook", font_scale=0.9)
    mpl.rcParams |= look()


def colour(name: str, among: Sequence[str] = ()) -> str:
    """The colour of an arm; another name takes the next one that is free, those of `among` first, and keeps it."""
    for other in (*among, name):
        if other not in COLOURS and other not in _given:
            _given[other] = OTHERS[len(_given) % len(OTHERS)]
    return COLOURS.get(name) or _given[name]


def draw_band(ax: Axes, at: np.ndarray, values: Tensor, name: str, band: bool, **options: Any) -> None:
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


def panels(axes: Axes | Iterable[Axes], names: Sequence[str]) -> list[Axes]:
    """The axes of small multiples, one a name, each with its title; raises ValueError if they are not as many."""
    flat = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).flat)
    if not names or len(flat) != len(names):
        raise ValueError(f"axes are {len(flat)}, expected one for each of the {len(names)} results")
    for ax, name in zip(flat, names, strict=True):
        ax.set_title(name)
    return flat


def share_limits(axes: Sequence[Axes]) -> None:
    """The same reach on every panel, so that heights can be compared."""
    for name in ("xlim", "ylim"):
        ends = [getattr(ax, f"get_{name}")() for ax in axes]
        for ax in axes:
            ax.set(**{name: (min(low for low, _ in ends), max(high for _, high in ends))})


def tabulate(ax: Axes, rows: Sequence[str], columns: Sequence[str], **text: Any) -> None:
    """Axes as a table of cells one unit wide: heads above, names at the left, white lines between."""
    ax.set_yticks(range(len(rows)), rows, **text)
    ax.set_xticks(range(len(columns)), columns, **text)
    ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    ax.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    ax.grid(False)
    ax.grid(which="minor", color="white", lw=1.5)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)


def outer_labels(axes: Sequence[Axes]) -> None:
    """Labels of shared axes once: at the left of a row and below a column of these panels, whatever else is there."""
    places = {ax: place for ax in axes if (place := ax.get_subplotspec()) is not None}
    for ax, place in places.items():
        others = places.values()
        if any(other.rowspan == place.rowspan and other.colspan.start < place.colspan.start for other in others):
            ax.set_ylabel("")
            ax.tick_params(axis="y", labelleft=False)
        if any(other.colspan == place.colspan and other.rowspan.start > place.rowspan.start for other in others):
            ax.set_xlabel("")
            ax.tick_params(axis="x", labelbottom=False)
