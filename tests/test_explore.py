"""The explorer shows one sample at one step: what it shows is held against a forward pass and the attack's trace."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import gradlens as gl
from gradlens import plots
from tests.analytic import smooth_cnn

BALL = gl.Ball(0.2)


def panels(figure: Any) -> list[Axes]:
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


@pytest.mark.parametrize("step", [0, 1, 3])
def test_what_is_shown_at_a_step_is_what_the_model_says_there(cnn, images, step):
    x, y = images[:1], torch.tensor([2])
    trace = gl.pgd(cnn, x, y, BALL, steps=3)
    image, added, classes, loss, margin, along = panels(plots.closeup(cnn, x, y, BALL, step=step, steps=3))
    for ax, name in ((loss, "loss"), (margin, "margin")):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), getattr(trace, name)[:, 0])
        assert ax.lines[1].get_xdata()[0] == step
    # the image itself, by signed steps written out
    point = x.clone()
    for _ in range(step):
        point.requires_grad_(True)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(cnn(point), y), point)
        point = point.detach() + 2.5 * BALL.eps / 3 * grad.sign()
        point = torch.minimum(torch.maximum(point, x - BALL.eps), x + BALL.eps).clamp(0, 1)
    np.testing.assert_allclose(image.images[0].get_array(), point[0].detach().mean(0), atol=1e-12)
    np.testing.assert_allclose(added.images[0].get_array(), (point - x)[0].detach().mean(0), atol=1e-12)
    heights = [bar.get_height() for bar in classes.patches]
    with torch.no_grad():
        np.testing.assert_allclose(heights, cnn(point).softmax(1)[0], atol=1e-12)
        ends = {share: gl.losses.margin(cnn(x + share * (trace.adversarial - x)), y).item() for share in (0.0, 1.0)}
    at, values = along.lines[0].get_data()
    for share, value in ends.items():
        assert values[np.abs(at - share).argmin()] == pytest.approx(value)
    assert f"called {heights.index(max(heights))}, is 2" in image.get_title()


def test_a_model_whose_gradient_vanishes_is_shown_without_a_slice():
    still = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).requires_grad_(False)
    for parameter in still.parameters():
        parameter.zero_()
    *_, along = panels(plots.closeup(still, torch.rand(1, 3, 2, 2), torch.tensor([1]), BALL, step=2, steps=2))
    assert along.texts[0].get_text() == "the attack never moved"


@pytest.mark.parametrize(("count", "step", "said"), [(2, 0, "x has 2 images"), (1, 4, "step is 4"), (1, -1, "step is")])
def test_what_makes_no_closeup_is_named(cnn, images, count, step, said):
    with pytest.raises(ValueError, match=said):
        plots.closeup(cnn, images[:count], torch.zeros(count, dtype=torch.long), BALL, step=step, steps=3)


def controls(box: Any) -> tuple[Any, Any, Any, Any, Any]:
    first, second, shown = box.children
    return (*first.children, *second.children, shown)


def alt(shown: Any) -> str:
    return re.search(r'alt="([^"]*)"', shown.value)[1]


def test_turning_a_control_draws_what_it_says_and_leaves_the_models_alone(images: Tensor):
    models = {"SL": smooth_cnn().train(), "<b>": nn.Sequential(nn.Flatten(), nn.Linear(50, 4).double())}
    before = {name: [t.clone() for t in m.state_dict().values()] for name, m in models.items()}
    box = plots.explore(models, images[:2], torch.tensor([0, 1]), BALL, steps=2)
    model, sample, eps, step, shown = controls(box)
    assert alt(shown) == "SL, sample 0, linf eps 0.2, step 2 of 2"
    first = shown.value
    step.value = 1
    assert alt(shown) == "SL, sample 0, linf eps 0.2, step 1 of 2"
    assert shown.value != first
    sample.value, eps.value, model.value = 1, 0.4, "<b>"
    assert alt(shown) == "&lt;b&gt;, sample 1, linf eps 0.4, step 1 of 2"
    model.value, sample.value, eps.value, step.value = "SL", 0, BALL.eps, 2
    assert shown.value == first
    assert models["SL"].training
    for name, one in models.items():
        assert all(torch.equal(a, b) for a, b in zip(before[name], one.state_dict().values(), strict=True))


def test_what_a_model_refuses_is_said_in_place_of_the_picture(images: Tensor):
    refusing = nn.Sequential(nn.Flatten(), nn.Linear(50, 4).double(), nn.Softmax(1))
    shown = controls(plots.explore(refusing, images, torch.zeros(6, dtype=torch.long), BALL))[-1]
    assert shown.value.startswith("<p>")
    assert "probabilities" in shown.value


def test_nothing_to_explore_is_refused(cnn, images):
    with pytest.raises(ValueError, match="models are"):
        plots.explore({}, images, torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match="0 images"):
        plots.explore(cnn, images[:0], torch.zeros(0, dtype=torch.long))
