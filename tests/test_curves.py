"""Accuracy against a budget, on models where the budget that each sample takes is known on paper."""

import math
from importlib import import_module

import pytest
import torch
from torch import Tensor

import gradlens as gl
from gradlens import Ball, curve
from tests.analytic import Plane


@pytest.fixture
def plane() -> Plane:
    w = torch.randn(25, generator=torch.Generator().manual_seed(1))
    return Plane(w, b=float(0.5 * w.sum()))


@pytest.fixture
def x() -> Tensor:
    return 0.5 + 0.2 * (torch.rand(24, 1, 5, 5, generator=torch.Generator().manual_seed(2)) - 0.5)


@pytest.fixture
def y(plane, x) -> Tensor:
    labels = gl.predict(plane, x)
    labels[-2:] = 1 - labels[-2:]
    return labels


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_over_eps_each_sample_breaks_at_the_first_radius_beyond_its_distance(norm, plane, x, y):
    distance = plane.distance(x, norm)
    # as many radii as it takes to have some between the samples; none within a thousandth of a distance
    radii = [r for r in torch.linspace(0.3, 1.2, 8).mul(distance.max()).tolist()
             if ((distance / r - 1).abs() > 2e-3).all()]  # fmt: skip
    found = curve(plane, x, y, Ball(0.1, norm), values=radii)
    for i in range(22):
        expected = next((r for r in radii if r > distance[i]), math.inf)
        assert float(found.broken_at[i]) == pytest.approx(expected), i
    assert found.broken_at[22:].tolist() == [0, 0]
    assert found.accuracy(0.0) == pytest.approx(22 / 24)
    assert len(found.broken_at.unique()) > 3


def test_a_point_from_a_large_radius_counts_at_each_smaller_one_that_holds_it(plane, x, y):
    distance = plane.distance(x, "l2")
    big = float(distance.max()) * 1.5
    small = float(distance.max()) * 1.02
    found = curve(plane, x, y, Ball(0.1, "l2"), values=[small, big], steps=1)
    # one step of 2.5 big, brought back into the ball, breaks all at the larger radius, and none sooner than it may
    assert (found.broken_at[:22] >= small * 0.999).all()
    assert found.broken_at[:22].isfinite().all()


def test_over_steps_each_sample_breaks_after_as_many_as_its_margin_takes(plane, x, y):
    """Each step of PGD raises the margin of a plane by step size x ||w||_1, until the surface of the ball."""
    distance = plane.distance(x, "linf")[:22]
    ball = Ball(float(distance.max()) * 2)
    steps = 40
    size = 2.5 * ball.eps / steps
    needed = (distance / size).ceil()
    values = list(range(1, 41))
    found = curve(plane, x, y, ball, over="steps", values=values, steps=steps)
    near_a_step = ((distance / size) - (distance / size).round()).abs() < 1e-3
    assert torch.equal(found.broken_at[:22][~near_a_step], needed.double()[~near_a_step])
    assert len(needed.unique()) > 3


def test_steps_in_pieces_are_the_steps_of_one_run(cnn, images):
    y = gl.predict(cnn, images)
    ball = Ball(0.15)
    found = curve(cnn, images, y, ball, over="steps", values=[1, 2, 4, 7, 12], steps=12, loss=gl.losses.cross_entropy)
    trace = gl.pgd(cnn, images, y, ball, steps=12)
    for i in range(len(images)):
        wrong = (trace.margin[:, i] > 0).nonzero()
        first = int(wrong[0]) if len(wrong) else math.inf
        expected = next((v for v in (1, 2, 4, 7, 12) if v >= first), math.inf)
        assert float(found.broken_at[i]) == expected
    assert found.broken_at.isfinite().any()


def test_a_long_run_has_fewer_images_in_memory_and_the_same_curve(cnn, images, monkeypatch):
    y, most = gl.predict(cnn, images), []
    options = {"over": "steps", "values": [2, 12], "steps": 12}
    whole = curve(cnn, images, y, Ball(0.02), **options)
    monkeypatch.setattr(import_module("gradlens.robustness.curves"), "POINTS", 20)
    handle = cnn.register_forward_pre_hook(lambda module, args: most.append((len(args[0]), args[0].requires_grad)))
    parts = curve(cnn, images, y, Ball(0.02), **options)
    handle.remove()
    assert torch.equal(parts.broken_at, whole.broken_at) and whole.broken_at.isinf().any()
    assert {size for size, has_grad in most[-20:] if has_grad} == {2}  # 20 points, ten steps each


def test_over_restarts_the_first_begins_at_the_image(cnn, images):
    y = gl.predict(cnn, images)
    ball = Ball(0.12)
    found = curve(cnn, images, y, ball, over="restarts", values=[1, 2, 4], steps=3,
                  generator=torch.Generator().manual_seed(0))  # fmt: skip
    trace = gl.pgd(cnn, images, y, ball, steps=3, loss=gl.losses.margin)
    assert torch.equal(found.broken_at == 1, trace.ever)
    single = curve(cnn, images, y, ball, over="restarts", values=[1, 2, 4], steps=3, batch=1,
                   generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert torch.equal(found.broken_at, single.broken_at)


def test_over_queries_is_squares_own_count(plane, x, y):
    ball = Ball(float(plane.distance(x, "linf").median()) * 1.5)
    values = [2, 5, 10, 50, 200]
    found = curve(plane, x, y, ball, over="queries", values=values, generator=torch.Generator().manual_seed(0))
    assert found.broken_at[22:].tolist() == [0, 0]
    assert found.broken_at[:22].isfinite().any()
    frame = found.frame()
    assert frame["accuracy"].is_monotonic_decreasing
    assert frame["queries"].tolist() == [0, *values]
    assert (frame["low"] <= frame["accuracy"]).all() and (frame["accuracy"] <= frame["high"]).all()
    distance = plane.distance(x, "linf")
    assert found.broken_at[:22][distance[:22] > ball.eps * 1.001].isinf().all()


def test_defaults_are_in_units_of_the_ball_and_reach_a_thousand_steps(plane, x, y):
    found = curve(plane, x[:2], y[:2], Ball(0.02), steps=2)
    torch.testing.assert_close(found.values, 0.02 * torch.tensor([0.125, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]).double())
    far = curve(plane, x[:2], y[:2], Ball(1e-4), over="steps")
    assert far.values.tolist() == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert far.broken_at.isinf().all()
    assert "steps" in str(far)


def test_a_curve_is_kept_to_the_bit(plane, x, y, tmp_path):
    found = curve(plane, x, y, Ball(0.05), values=[0.02, 0.05])
    again = gl.load(gl.save(found, tmp_path / "c.safetensors"))
    assert str(again) == str(found) and torch.equal(again.broken_at, found.broken_at)
