"""Models that are wrong from the start, random, or constant: attacks say so, or average."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Attack, Ball, losses
from tests.analytic import Constant, Plane, Wrapped

BALL = Ball(0.1)
SAYS = "nothing was left to attack, since every sample is misclassified as it is"


def plane() -> Plane:
    """Boundary at mean pixel 1/2."""
    return Plane(torch.full((4,), 0.25), 0.5, 10.0)


@pytest.fixture
def x() -> Tensor:
    """Means 0.42 to 0.58 around the boundary, at distances 0.02 to 0.3."""
    return (0.5 + torch.tensor([-0.3, -0.08, -0.02, 0.02, 0.08, 0.3]))[:, None, None, None].expand(-1, 1, 2, 2).clone()


@pytest.fixture
def y(x: Tensor) -> Tensor:
    return (x.flatten(1).mean(1) > 0.5).long()


CALLS: dict[str, Callable[..., Any]] = {
    "robustness": lambda m, x, y: gl.robustness(m, x, y, BALL, attacks="quick"),
    "curve": lambda m, x, y: gl.curve(m, x, y, BALL, values=[0.1]),
    "transfer": lambda m, x, y: gl.transfer({"a": m}, {"a": m}, x, y, BALL),
    "square": lambda m, x, y: gl.square(m, x, y, BALL, queries=5),
    "nes": lambda m, x, y: gl.nes(m, x, y, BALL, queries=5),
    "rays": lambda m, x, y: gl.rays(m, x, y, BALL, queries=5),
    "hopskipjump": lambda m, x, y: gl.hopskipjump(m, x, y, BALL, queries=5),
    "minimum norm": lambda m, x, y: gl.minimum_norm(m, x, y, BALL, steps=2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_where_every_label_is_wrong_already_results_say_that_nothing_was_left(call, x, y):
    assert SAYS in str(call(plane(), x, 1 - y))
    assert SAYS not in str(call(plane(), x, y))


class Noisy(Wrapped):
    """Logits with noise, of the same mean."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.05 * torch.randn(len(x), 2)


def test_transfer_and_curves_average_over_the_passes_of_a_random_model(x, y):
    models = {"noisy": Noisy(plane()), "plain": plane()}
    with pytest.raises(ValueError, match="model is random"):
        gl.transfer(models, models, x, y, BALL)
    attack = Attack("pgd-margin", gl.pgd, {"steps": 10, "loss": losses.margin})
    result = gl.transfer(models, models, x, y, BALL, samples=20, attack=attack)
    # only the points at 0.3 are farther than eps; the noise of a mean of 20 is a hundredth of a logit
    assert torch.allclose(result.accuracy, torch.full((2, 2), 1 / 3, dtype=torch.float64))
    curve = gl.curve(models["noisy"], x, y, BALL, values=[0.05, 0.2, 0.4], samples=20)
    assert curve.frame()["accuracy"].tolist() == pytest.approx([1, 4 / 6, 2 / 6, 0])
    with pytest.raises(ValueError, match=r"samples is 5, expected 1 for over='queries'"):
        gl.curve(plane(), x, y, BALL, over="queries", samples=5)
    blind = Attack("square", gl.square, {"queries": 5})
    with pytest.raises(ValueError, match=r"attack 'square' takes one pass for the truth, and samples is 5"):
        gl.transfer(models, models, x, y, BALL, samples=5, attack=blind)


def test_the_record_of_a_transfer_names_all_models(x, y):
    a, b = plane(), Plane(torch.tensor([0.1, 0.2, 0.3, 0.4]), 0.5, 10.0)
    of = {name: gl.transfer({name: m}, {name: m}, x, y, BALL).made.model for name, m in (("a", a), ("b", b))}
    both = gl.transfer({"a": a, "b": b}, {"a": a, "b": b}, x, y, BALL).made.model
    assert both == f"{of['a']}; {of['b']}"
    assert of["a"].removeprefix("a ") != of["b"].removeprefix("b ")


@pytest.mark.parametrize("count", [1, 5])
def test_a_constant_that_looks_like_certainty_is_no_softmax_and_a_softmax_is(count):
    x = torch.rand(count, 1, 2, 2)
    assert not gl.pgd(Constant([1.0, 0.0, 0.0]), x, None, BALL).ever.any()
    with pytest.raises(ValueError, match="returns probabilities"):
        gl.pgd(Constant([0.7, 0.2, 0.1]), x, None, BALL)
    sure = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1))
    sure[1].weight.data *= 1e4  # some shares are exactly 0 and 1
    if count > 1:
        x = torch.eye(4).view(4, 1, 2, 2)
        with pytest.raises(ValueError, match="returns probabilities"):
            gl.pgd(sure, x, None, BALL)


@pytest.mark.parametrize("count", [1, 4])
def test_a_softmax_that_rounds_is_found_out_on_images_of_one_class(count, x):
    sure = nn.Sequential(Plane(torch.full((4,), 0.25), 0.5, 1e4), nn.Softmax(1))
    certain = x[5:].expand(count, 1, 2, 2)
    assert torch.equal(sure(certain), torch.tensor([[0.0, 1.0]]).expand(count, 2))
    with pytest.raises(ValueError, match="returns probabilities"):
        gl.pgd(sure, certain, None, BALL)


RANDOM: dict[str, Callable[..., Any]] = {
    "pgd": lambda m, x, y: gl.pgd(m, x, y, BALL),
    "stability": lambda m, x, y: gl.stability(m, x, y, BALL),
    "robustness": lambda m, x, y: gl.robustness(m, x, y, BALL, attacks="quick"),
    "curve": lambda m, x, y: gl.curve(m, x, y, BALL),
    "transfer": lambda m, x, y: gl.transfer({"a": plane(), "b": m}, {"c": plane()}, x, y, BALL),
    "pgd, robustness, curve or transfer": lambda m, x, y: gl.square(m, x, y, BALL),
}


@pytest.mark.parametrize(("name", "call"), RANDOM.items(), ids=list(RANDOM))
def test_a_random_model_is_refused_with_the_option_of_the_function_that_was_called(name, call, x, y):
    with pytest.raises(ValueError, match=rf"model is random .* \(samples=k, in {name}, averages over the randomness\)"):
        call(Noisy(plane()), x, y)
