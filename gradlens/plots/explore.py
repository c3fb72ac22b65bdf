"""One image under attack, step by step: as a figure, and with sliders in a notebook."""

import functools
import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..attacks import PGDTrace, pgd
from ..ball import Ball
from ..landscape import Surface, input_line
from ..model import frozen, logits
from ..types import Images, Labels
from .look import LABELS, colour, look
from .paths import line
from .pictures import inline

if TYPE_CHECKING:
    from ipywidgets import VBox

SPAN = 3.0  # how far the slice reaches, in lengths of the perturbation


class Sight(NamedTuple):
    """What is drawn of one image at one step of an attack."""

    trace: PGDTrace  # the whole attack
    point: Tensor  # (C, H, W), the image at the step
    probabilities: Tensor  # (classes,) there
    along: Surface | None  # the line to where the attack ended; None where it never moved
    step: int


def closeup(
    model: nn.Module,
    x: Images,
    y: Labels,
    ball: Ball = Ball(),
    *,
    step: int,
    steps: int = 20,
    name: str = "",
    fig: Figure | None = None,
) -> Figure:
    """One image at one step of PGD on the cross-entropy: the image, what was added, the model's probabilities, loss
    and margin on the way, and the margin on the straight line to where the attack ends.

    `x` is (1, channels, height, width), `y` (1,). Steps are of 2.5 eps / `steps`, as in `pgd`. `fig` is an empty figure
    of pyplot, which a notebook shows by itself; a figure of its own if not given.
    Raises ValueError as `pgd` does, for more than one image and for a step that is not between 0 and `steps`.
    """
    if len(x) != 1:
        raise ValueError(f"x has {len(x)} images, expected one")
    if not 0 <= step <= steps:
        raise ValueError(f"step is {step}, expected 0 to {steps}")
    sight = _look(model, x, y, ball, step, steps)
    with mpl.rc_context(look()):
        return _draw(sight, name, fig or Figure(figsize=(11, 6), dpi=80, layout="constrained"))


def explore(
    models: nn.Module | Mapping[str, nn.Module], x: Images, y: Labels, ball: Ball = Ball(), *, steps: int = 20
) -> "VBox":
    """`closeup` with controls, for notebooks: which model, which sample, eps (pixels) and step of the attack.

    Models go by the names of their dict; the first view is drawn at once, so that a notebook that nobody turns shows
    it too. What a model refuses is said in place of the picture.
    Raises ValueError for no model and for no image.
    """
    import ipywidgets as widgets  # here, since only notebooks have it loaded

    named = {type(models).__name__: models} if isinstance(models, nn.Module) else dict(models)
    if not named or not len(x):
        raise ValueError(f"models are {list(named)} and x has {len(x)} images, expected at least one of each")
    slider = {"continuous_update": False}
    model = widgets.Dropdown(options=list(named), description="model")
    sample = widgets.IntSlider(0, 0, len(x) - 1, description="sample", **slider)
    eps = widgets.FloatSlider(
        ball.eps,
        min=ball.eps / 8,
        max=4 * ball.eps,
        step=ball.eps / 8,
        description="eps",
        readout_format=".3g",
        **slider,
    )
    step = widgets.IntSlider(steps, 0, steps, description="step", **slider)
    shown = widgets.HTML()

    @functools.lru_cache(maxsize=64)
    def drawn(name: str, sample: int, eps: float, step: int) -> str:
        around = Ball(eps, ball.norm, ball.low, ball.high)
        try:
            figure = closeup(
                named[name], x[sample : sample + 1], y[sample : sample + 1], around, step=step, steps=steps, name=name
            )
        except (ValueError, RuntimeError) as error:
            return f"<p>{html.escape(str(error))}</p>"
        said = f"{name}, sample {sample}, {ball.norm} eps {eps:.3g}, step {step} of {steps}"
        return inline(figure, said)

    def update(_: object = None) -> None:
        shown.value = drawn(model.value, sample.value, eps.value, step.value)

    for control in (model, sample, eps, step):
        control.observe(update, names="value")
    update()
    return widgets.VBox([widgets.HBox([model, sample]), widgets.HBox([eps, step]), shown])


def _look(model: nn.Module, x: Images, y: Labels, ball: Ball, step: int, steps: int) -> Sight:
    size = 2.5 * ball.eps / steps
    trace = pgd(model, x, y, ball, steps=steps, step_size=size)
    # a shorter run of the same steps ends where the long one was at that time
    point = pgd(model, x, y, ball, steps=step, step_size=size).adversarial if step else trace.clean
    with frozen(model), torch.no_grad():
        probabilities = logits(model, point).softmax(1)[0]
    moved = bool((trace.adversarial != trace.clean).any())
    along = input_line(model, x, y, ball, directions=trace, span=SPAN, box="project") if moved else None
    return Sight(trace, point[0], probabilities, along, step)


def _draw(sight: Sight, name: str, fig: Figure) -> Figure:
    (image, added, classes), (loss, margin, along) = fig.subplots(2, 3)
    _images(sight, image, added)
    _classes(sight, classes, name)
    for ax, quantity in ((loss, "loss"), (margin, "margin")):
        values = getattr(sight.trace, quantity)[:, 0].double().cpu().numpy()
        ax.plot(values, color=colour(name))
        ax.plot(sight.step, values[sight.step], "o", color="black")
        ax.set(xlabel="PGD step", ylabel=LABELS[quantity])
    if sight.along is None:
        along.text(0.5, 0.5, "the attack never moved", ha="center", va="center", transform=along.transAxes)
        along.set_axis_off()
    else:
        line(sight.along, along, quantity="margin", name=name)
        along.set(xlabel="share of the way\nto the attack's end")
    for ax in (margin, along):
        ax.axhline(0, color="0.6", lw=0.8, ls=":")
    return fig


def _images(sight: Sight, image: Axes, added: Axes) -> None:
    ball, clean = sight.trace.ball, sight.trace.clean[0]
    gap = (sight.point - clean).double()
    image.imshow(_pixels(sight.point, ball), cmap="gray", vmin=0, vmax=1)
    image.set_title(f"step {sight.step}: called {int(sight.probabilities.argmax())}, is {int(sight.trace.labels[0])}")
    reach = float(gap.abs().max()) or ball.eps
    # several channels are shown by their mean, which has a sign
    shades = added.imshow(gap.mean(0).cpu().numpy(), cmap="RdBu_r", vmin=-reach, vmax=reach)
    added.figure.colorbar(shades, ax=added, label="pixels")
    added.set_title(f"added: {float(ball.length(gap[None])[0]):.3g} of eps {ball.eps:.3g}, {ball.norm}")
    for ax in (image, added):
        ax.set(xticks=[], yticks=[])


def _pixels(point: Tensor, ball: Ball) -> np.ndarray:
    """Rows of pixels in [0, 1], in colour where there are three channels, else their mean."""
    shown = ((point.double().cpu() - ball.low) / (ball.high - ball.low)).clamp(0, 1)
    return shown.permute(1, 2, 0).numpy() if len(shown) == 3 else shown.mean(0).numpy()


def _classes(sight: Sight, ax: Axes, name: str, most: int = 10) -> None:
    """Bars of the likeliest classes, the true one hatched."""
    probabilities = sight.probabilities.double().cpu()
    chosen = sorted(probabilities.topk(min(most, len(probabilities))).indices.tolist())
    bars = ax.bar([str(c) for c in chosen], probabilities[chosen].numpy(), color=colour(name), alpha=0.8)
    truth = int(sight.trace.labels[0])
    if truth in chosen:
        bars[chosen.index(truth)].set(hatch="//", edgecolor="black")
    ax.set(xlabel="class (hatched: the true one)", ylabel="probability", ylim=(0, 1.02))
