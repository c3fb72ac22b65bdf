"""The picture that a result shows of itself in a notebook."""

import base64
import html
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..attacks import PGDTrace
from ..curvature import Spectrum
from ..entropy import Entropy
from ..gradients import Gradients
from ..landscape import InputPath, Surface, WeightSurface
from ..masking import Masking
from ..robustness import Curve, Robustness, Transfer
from ..stability import Stability
from .attacks import attacks, curves, transfer
from .evidence import evidence
from .look import LABELS, look
from .paths import line, local_cosine, path, trace
from .planes import surface
from .samples import distributions, entropy, reliability
from .spectra import spectrum
from .weights import weight_line, weight_surface

Panel = Callable[[Axes], Any]
HEIGHTS: dict[type, float] = {Masking: 6.5}  # inches, where a row of text needs its own; else 3.5


def picture(result: Any) -> Figure | None:
    """A result on a figure of its own, in the look of all figures; None for a kind that has no picture.

    Neither pyplot's figures nor the global settings are touched.
    """
    panels = PANELS[type(result)](result) if type(result) in PANELS else []
    if not panels:
        return None
    with mpl.rc_context(look()):
        size = (4.0 * len(panels) if len(panels) > 1 else 5.2, HEIGHTS.get(type(result), 3.5))
        fig = Figure(figsize=size, dpi=90, layout="constrained")
        for ax, draw in zip(fig.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            draw(ax)
    return fig


def inline(figure: Figure, alt: str) -> str:
    """A figure as an HTML image that holds its own pixels; `alt` says what it shows."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    source = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" style="max-width: 100%" src="data:image/png;base64,{source}">'


def _traced(result: PGDTrace) -> list[Panel]:
    return [partial(trace, result, quantity=name) for name in ("margin", "grad_norm", "cosine")]


def _stable(result: Stability) -> list[Panel]:
    return [*_traced(result.trace)[:2], partial(local_cosine, result)]


def _static(result: Gradients) -> list[Panel]:
    return [partial(_norms, result, loss, unit) for loss, unit in (("cross_entropy", "nats"), ("margin", "logits"))]


def _norms(result: Gradients, loss: str, unit: str, ax: Axes) -> None:
    name, label = loss.replace("_", "-"), f"gradient norm ({unit} / pixel)"
    distributions({name: result}, ax, quantity=lambda one: one.norm(loss), label=label, log=True)


def _certain(result: Entropy) -> list[Panel]:
    return [partial(_spread, result)] + ([] if result.correct is None else [partial(reliability, result)])


def _spread(result: Entropy, ax: Axes) -> None:
    entropy(result, ax).legend()


def _walked(result: InputPath) -> list[Panel]:
    return [partial(path, result, quantity=name) for name in ("loss", "margin")]


def _sliced(result: Surface) -> list[Panel]:
    if len(result.beta) == 1:
        return [partial(line, result, quantity=name) for name in ("loss", "margin")]
    return [partial(_plane, surface, result, "quantity", name) for name in ("loss", "margin")]


def _weighed(result: WeightSurface) -> list[Panel]:
    if len(result.beta) == 1:
        return [partial(weight_line, result, metric=name) for name in result.metrics[:2]]
    return [partial(_plane, weight_surface, result, "metric", name) for name in result.metrics[:2]]


def _plane(draw: Callable[..., Axes], result: Any, option: str, name: str, ax: Axes) -> None:
    draw(result, ax, **{option: name}).set_title(LABELS.get(name, name))


def _alone(draw: Callable[..., Axes], result: Any) -> list[Panel]:
    """What takes a dict of results, one a model, here without a name."""
    return [partial(draw, {"": result})]


PANELS: dict[type, Callable[[Any], list[Panel]]] = {
    Curve: partial(_alone, curves),
    Entropy: _certain,
    Gradients: _static,
    InputPath: _walked,
    Masking: partial(_alone, evidence),
    PGDTrace: _traced,
    Robustness: partial(_alone, attacks),
    Spectrum: lambda result: [partial(spectrum, result)],
    Stability: _stable,
    Surface: _sliced,
    Transfer: lambda result: [partial(transfer, result)],
    WeightSurface: _weighed,
}
