"""Planes through adversarial examples, planes shared over models, directions as callers hand them over."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradlens import Ball, PGDTrace, Surface, frozen, input_line, input_plane, losses, minimum_norm, pgd, square
from gradlens.landscape import selftest
from tests.analytic import Detached, smooth_cnn, snapshot

BALLS = (Ball(0.1), Ball(0.4, "l2"))
every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)


@pytest.fixture
def other() -> nn.Module:
    """Another model of the same images."""
    model = smooth_cnn()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flip(0))
    return model


@pytest.fixture
def labels(images: Tensor) -> Tensor:
    return torch.arange(len(images)) % 4


def attacks(cnn: nn.Module, other: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> tuple[PGDTrace, PGDTrace]:
    return pgd(cnn, x, y, ball, steps=5), pgd(other, x, y, ball, steps=5, loss=losses.margin)


def cell(result: Surface, alpha: float, beta: float) -> tuple[int, int]:
    (r,), (c,) = (torch.isclose(axis, torch.tensor(v, dtype=axis.dtype)).nonzero().flatten().tolist()
                  for axis, v in ((result.alpha, alpha), (result.beta, beta)))  # fmt: skip
    return r, c


@every_ball
def test_two_adversaries_stand_at_one_on_their_axes(ball, cnn, other, images, labels):
    """Values at (1, 0) and (0, 1) are those that the model itself gives the attacks' last points."""
    first, second = attacks(cnn, other, images, labels, ball)
    result = input_plane(cnn, images, labels, ball, directions=(first, second), span=1.5, points=7)
    for trace, at in ((first, cell(result, 1, 0)), (second, cell(result, 0, 1))):
        with frozen(cnn), torch.no_grad():
            answer = cnn(trace.adversarial)
        torch.testing.assert_close(result.margin[at], losses.margin(answer, labels), rtol=0, atol=1e-10)
        torch.testing.assert_close(result.loss[at], losses.cross_entropy(answer, labels), rtol=0, atol=1e-10)
        assert torch.equal(result.predicted[at], answer.argmax(1))
        assert result.in_box[at].all()
    torch.testing.assert_close(result.margin[cell(result, 1, 0)], first.margin[-1], rtol=0, atol=1e-10)
    assert result.has_ends
    assert result.axes == ("first adversary", "second adversary")
    assert first.made.model in result.made.call
    assert second.made.model in result.made.call


def test_an_attack_by_queries_and_one_without_an_eps_are_adversaries_too(cnn, images, labels):
    """At (1, 0) and (0, 1) stand the margins that the attacks counted by passes of their own."""
    ball = Ball(0.1)
    first = square(cnn, images, labels, ball, queries=40, generator=torch.Generator().manual_seed(1))
    second = minimum_norm(cnn, images, labels, ball)
    assert second.found.all()
    result = input_plane(cnn, images, labels, ball, directions=(first, second), span=1.0, points=3)
    for trace, at in ((first, cell(result, 1, 0)), (second, cell(result, 0, 1))):
        moved = (trace.adversarial != images).flatten(1).any(1)
        assert moved.any()
        torch.testing.assert_close(result.margin[at][moved], trace.margin[moved], rtol=0, atol=1e-10, equal_nan=True)
    assert result.axes == ("first adversary", "second adversary") and result.has_ends
    assert "QueryTrace of" in result.made.call and "Distances of" in result.made.call
    with pytest.raises(ValueError, match="found from other images than x"):
        input_line(cnn, images.flip(0), labels, ball, directions=first, points=3)


def test_the_angle_is_the_one_between_the_two_perturbations(cnn, other, images, labels):
    first, second = attacks(cnn, other, images, labels, Ball(0.1))
    result = input_plane(cnn, images, labels, Ball(0.1), directions=(first, second), points=3)
    for b in range(len(images)):
        u, v = ((trace.adversarial - trace.clean)[b].flatten().numpy() for trace in (first, second))
        expected = np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
        assert result.angle[b].item() == pytest.approx(expected)
    assert result.angle.std() > 1
    assert f"{result.angle.median():.0f} degrees apart (median), +-3 times as far" in str(result)
    orthogonal = input_plane(cnn, images, labels, Ball(0.1), points=3)
    torch.testing.assert_close(orthogonal.angle, torch.full((6,), 90.0, dtype=torch.float64))
    assert not orthogonal.has_ends
    assert "adversarial x random orthogonal, +-3 eps" in str(orthogonal)
    line = input_line(cnn, images, labels, Ball(0.1), points=3)
    assert line.angle.isnan().all()
    assert "3 x 1 points, adversarial, +-3 eps" in str(line)


def test_an_attack_that_never_moved_a_sample_leaves_it_without_a_plane(cnn, images, labels):
    still = pgd(Detached(cnn), images, labels, Ball(0.1), steps=2)
    moving = pgd(cnn, images, labels, Ball(0.1), steps=2)
    adversarial = torch.where(torch.arange(6).view(6, 1, 1, 1) == 2, still.adversarial, moving.adversarial)
    way = (adversarial - images) / 0.1
    result = input_line(cnn, images, labels, Ball(0.1), directions=(way,), points=3)
    assert result.loss.isnan().all((0, 1)).tolist() == [False, False, True, False, False, False]
    assert result.predicted[:, :, 2].unique().tolist() == [-1]
    with pytest.raises(ValueError, match="none of them all zero"):
        input_line(cnn, images, labels, Ball(0.1), directions=still)


@every_ball
@pytest.mark.parametrize("hand_over", ["surface", "directions"])
def test_one_plane_is_shared_over_models(hand_over, ball, cnn, other, images, labels):
    """The second model is measured at the very points of the first one's plane."""
    first = input_plane(cnn, images, labels, ball, span=2.0, points=5)
    given = first if hand_over == "surface" else first.directions
    shared = input_plane(other, images, labels, ball, directions=given, span=2.0, points=5)
    again = input_plane(cnn, images, labels, ball, directions=given, span=2.0, points=5)
    torch.testing.assert_close(again.loss, first.loss, rtol=0, atol=1e-12)
    for mine, theirs in zip(shared.directions, first.directions, strict=True):
        assert torch.equal(mine, theirs)
    assert (shared.loss - first.loss).abs().max() > 0.1
    for r, alpha in enumerate(shared.alpha):
        for c, beta in enumerate(shared.beta):
            point = images + ball.eps * (alpha * first.directions[0] + beta * first.directions[1])
            with torch.no_grad():
                expected = losses.cross_entropy(other(point), labels)
            torch.testing.assert_close(shared.loss[r, c], expected, rtol=0, atol=1e-10)
    if hand_over == "surface":
        assert shared.axes == first.axes
        assert first.made.model in shared.made.call


def test_samples_without_a_direction_stay_so_on_a_shared_plane(cnn, other, images, labels):
    first = input_plane(cnn, images, labels, Ball(0.1), points=3)
    directions = tuple(d.clone() for d in first.directions)
    directions[0][4] = torch.nan
    for given in (directions, tuple(d.numpy() for d in directions), list(directions)):
        shared = input_plane(other, images, labels, Ball(0.1), directions=given, points=3)
        assert shared.loss.isnan().all((0, 1)).tolist() == [False] * 4 + [True, False]


def test_a_line_takes_the_first_direction_of_a_plane(cnn, images, labels):
    plane = input_plane(cnn, images, labels, Ball(0.1), points=5)
    line = input_line(cnn, images, labels, Ball(0.1), directions=plane, points=5)
    torch.testing.assert_close(line.loss[:, 0], plane.loss[:, 2], rtol=0, atol=1e-12)
    assert line.axes == ("adversarial", "none")


def test_a_dict_names_the_axes(cnn, images, labels):
    plane = input_plane(cnn, images, labels, Ball(0.1), points=3)
    ways = dict(zip(("SL's attack", "noise"), plane.directions, strict=True))
    assert input_plane(cnn, images, labels, Ball(0.1), directions=ways, points=3).axes == ("SL's attack", "noise")


@pytest.mark.parametrize("kind", ["tensors", "arrays", "float32", "traces", "surface"])
@pytest.mark.parametrize("batch", [512, 4])
def test_loaders_take_given_directions_batch_by_batch(kind, batch, cnn, other, images, labels):
    ball = Ball(0.1)
    traces = attacks(cnn, other, images, labels, ball)
    ways = [(trace.adversarial - images) / ball.eps for trace in traces]
    plain = input_plane(cnn, images, labels, ball, directions=tuple(ways), points=3)
    given = {
        "tensors": ways,
        "arrays": [np.asfortranarray(way.numpy()) for way in ways],
        "float32": [way.float() for way in ways],
        "traces": traces,
        "surface": plain,
    }[kind]
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    for x, y in ((loader, None), (images.numpy(), labels)):
        result = input_plane(cnn, x, y, ball, directions=given, points=3, batch=batch)
        tolerance = 1e-5 if kind == "float32" else 1e-10
        torch.testing.assert_close(result.loss, plain.loss, rtol=0, atol=tolerance)
        torch.testing.assert_close(result.angle, plain.angle, rtol=0, atol=tolerance * 100)
        assert torch.equal(result.clean, images)


def test_directions_of_other_images_are_refused_by_sample(cnn, images, labels):
    trace, plane = (f(cnn, images, labels, Ball(0.1)) for f in (pgd, input_plane))
    turned = images.clone()
    turned[4:] = images[4:].flip(0)
    for given in ((trace, trace), plane):
        with pytest.raises(ValueError, match="found from other images than x, the first of them sample 4"):
            input_plane(cnn, turned, labels, Ball(0.1), directions=given, points=3, batch=3)


def test_a_shared_plane_of_another_eps_is_refused(cnn, images):
    plane = input_plane(cnn, images, None, Ball(0.1), points=3)
    with pytest.raises(ValueError, match=r"directions is a Surface in units of 0\.1 pixels, the ball's eps is 0\.2"):
        input_plane(cnn, images, None, Ball(0.2), directions=plane, points=3)


def test_a_line_of_a_surface_spans_no_plane(cnn, images):
    line = input_line(cnn, images, None, Ball(0.1), points=3)
    with pytest.raises(ValueError, match="expected 2 finite tensors of x's shape"):
        input_plane(cnn, images, None, Ball(0.1), directions=line, points=3)


@pytest.mark.parametrize("count", [4, 8])
def test_a_loader_of_fewer_or_more_images_than_directions_is_refused(count, cnn, images):
    way = torch.ones(count, 2, 5, 5)
    with pytest.raises(ValueError, match=r"directions (are for 8 images, x yields 6|have another shape than x)"):
        input_line(cnn, DataLoader(images, batch_size=3), directions=(way,), points=3)


@pytest.mark.parametrize("place", [np.inf, np.nan])
def test_one_pixel_that_is_not_finite_is_refused(place, cnn, images):
    way = torch.ones_like(images)
    way[3, 0, 2, 2] = place
    with pytest.raises(ValueError, match="expected 1 finite tensors"):
        input_line(cnn, images, directions=(way,), points=3)


def test_the_model_is_as_it_was_after_refused_directions(cnn, images, labels):
    cnn.train()
    trace = pgd(cnn, images, labels, Ball(0.1))
    state = snapshot(cnn)
    with pytest.raises(ValueError, match="other images"):
        input_line(cnn, images.flip(0), labels, Ball(0.1), directions=trace)
    assert snapshot(cnn) == state


SCRIPT = """
import numpy as np, torch, gradlens
model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
text = np.full((2, 3, 2, 2), "a")
for directions in (None, 3, (x, "adversarial"), (x, None), (), (x, x, x), (x.numpy(), x[0].numpy()), (text, text)):
    try:
        gradlens.input_plane(model, x, directions=directions)
    except ValueError as error:
        print(error)
"""


def test_what_is_no_direction_is_refused_outside_of_the_tests_type_checks(tmp_path: Path):
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    beginnings = (
        "directions is a NoneType, expected tensors",
        "directions is a int, expected tensors",
        "directions hold a str, expected tensors",
        "directions hold a NoneType, expected tensors",
        "directions have shapes [], expected 2 finite tensors",
        "directions have shapes [(2, 3, 2, 2), (2, 3, 2, 2), (2, 3, 2, 2)], expected 2 finite",
        "directions have shapes [(2, 3, 2, 2), (3, 2, 2)], expected 2 finite",
        "directions hold an array of <U1, expected numbers",
    )
    for line, beginning in zip(done.stdout.splitlines(), beginnings, strict=True):
        assert line.startswith(beginning)


def test_the_summary_is_the_band_over_the_samples_that_have_a_value(cnn, images, labels):
    plane = input_plane(cnn, images, labels, Ball(0.05), span=1.0, points=5)
    directions = tuple(d.clone() for d in plane.directions)
    directions[0][1] = torch.nan
    result = input_plane(cnn, images, labels, Ball(0.05), directions=directions, span=1.0, points=5)
    kept = [0, 2, 3, 4, 5]
    for quantity in ("loss", "margin", "entropy", "error"):
        table = result.summary(quantity)
        assert len(table) == 25
        values = getattr(plane, quantity)[:, :, kept].flatten(0, 1).numpy()
        bands = np.percentile(values, (10, 50, 90), axis=1)
        np.testing.assert_allclose(table[["low", "median", "high"]].to_numpy().T, bands)
        assert (table["samples"] == 5).all()
        np.testing.assert_allclose(table["in_box"], plane.in_box[:, :, kept].flatten(0, 1).double().mean(1))
    assert plane.in_box_share.unique().numel() > 2
    assert table["alpha"].tolist() == [a for a in plane.alpha.tolist() for _ in range(5)]
    assert table["beta"].tolist() == plane.beta.tolist() * 5


def test_errors_are_counted_where_the_margin_is_positive(cnn, images):
    labels = torch.arange(6) % 4
    result = input_plane(cnn, images, labels, Ball(0.2), points=3)
    assert torch.equal(result.error == 1, result.predicted != labels)
    assert 0 < result.error.mean() < 1


def test_the_selftest_finds_our_surfaces_right():
    assert selftest() < 1e-12


@pytest.mark.parametrize("field", ["loss", "margin", "entropy", "predicted"])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_selftest_sees_a_grid_that_is_one_cell_off(field, axis):
    def shifted(measure: Callable[..., Surface]) -> Callable[..., Surface]:
        def run(*args: object, **options: object) -> Surface:
            result = measure(*args, **options)
            return dataclasses.replace(result, **{field: getattr(result, field).roll(1, axis)})

        return run

    assert selftest(plane=shifted(input_plane)) > 1e-2
    assert axis == 1 or selftest(line=shifted(input_line)) > 1e-2


def test_the_selftest_sees_swapped_axes_other_units_and_reversed_coordinates():
    def broken(**change: Callable[[Surface], Any]) -> Callable[..., Surface]:
        def measure(*args: Any, **options: Any) -> Surface:
            result = input_plane(*args, **options)
            return dataclasses.replace(result, **{name: f(result) for name, f in change.items()})

        return measure

    assert selftest(plane=broken(margin=lambda r: r.margin.transpose(0, 1))) > 1e-2
    assert selftest(plane=broken(directions=lambda r: tuple(1.01 * d for d in r.directions))) > 1e-3
    assert selftest(plane=broken(alpha=lambda r: -r.alpha)) > 1
    assert selftest(plane=broken(loss=lambda r: r.loss.where(r.loss < r.loss.max(), torch.nan))) == float("inf")
