"""Landscapes of a loss that is known in closed form at every coordinate."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gradlens import Ball, Surface, input_line, input_plane, losses, pgd
from tests.analytic import Detached, Plane, Quadratic, Steps

BALLS = (Ball(0.1), Ball(0.4, "l2"))
every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)
every_slice = pytest.mark.parametrize("measure", [input_plane, input_line])


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    """Three images for `Quadratic(8)`, the first of them close to the edge of the box."""
    x = 0.3 + 0.4 * torch.rand(3, 2, 2, 2, generator=generator, dtype=torch.float64)
    x[0, 0, 0, 0] = 0.99
    return x


@pytest.fixture
def quadratic() -> Quadratic:
    return Quadratic(8)


LABEL_0 = torch.zeros(3, dtype=torch.long)


def places(result: Surface, x: Tensor) -> Tensor:
    """Where each cell says that it was measured: (R, C, B, pixels), from the result's own coordinates."""
    flat = [d.flatten(1) for d in result.directions]
    cells = []
    for alpha in result.alpha:
        for beta in result.beta:
            point = x.flatten(1) + result.unit * alpha * flat[0]
            cells.append(point + result.unit * beta * flat[1] if len(flat) > 1 else point)
    return torch.stack(cells).view(len(result.alpha), len(result.beta), *x.flatten(1).shape)


def closed_form(model: Quadratic, at: Tensor) -> Tensor:
    a, c, d = (p.detach() for p in (model.a, model.c, model.d))
    return torch.einsum("rcbi,ij,rcbj->rcb", at, a, at) / 2 + at @ c + d


@every_ball
@every_slice
@pytest.mark.parametrize("directions", ["adversarial", "gradient"])
@pytest.mark.parametrize("box", ["mark", "project"])
def test_each_cell_holds_the_loss_at_exactly_its_own_coordinates(
    measure, ball, directions, box, quadratic, x, generator
):
    """With label 0 the margin is the quadratic q, the cross-entropy log(1 + e^q), the class that of q > 0."""
    result = measure(
        quadratic, x, LABEL_0, ball, directions=directions, span=4.0, points=9, box=box, generator=generator
    )
    at = places(result, x)
    if box == "project":
        assert result.projected == (0, 1)
        at = at.clamp(0, 1)
    q = closed_form(quadratic, at)
    assert result.loss.shape == (9, 9 if measure is input_plane else 1, 3)
    torch.testing.assert_close(result.margin, q, rtol=0, atol=1e-9)
    torch.testing.assert_close(result.loss, F.softplus(q), rtol=0, atol=1e-9)
    assert torch.equal(result.predicted, (q > 0).long())
    p = q.sigmoid()
    torch.testing.assert_close(result.entropy, -p * p.log() - (1 - p) * (1 - p).log(), rtol=0, atol=1e-9)
    torch.testing.assert_close(result.alpha, torch.linspace(-4, 4, 9, dtype=torch.float64))


@every_slice
def test_the_centre_is_the_image_itself(measure, quadratic, x, generator):
    result = measure(quadratic, x, LABEL_0, Ball(0.1), points=5, loss=losses.margin, generator=generator)
    plain = closed_form(quadratic, x.view(1, 1, 3, 8))[0, 0]
    torch.testing.assert_close(result.loss[result.centre], plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.centre_loss, plain, rtol=0, atol=1e-12)
    assert result.alpha[result.centre[0]] == 0
    assert result.beta[result.centre[1]] == 0
    assert result.centre_error < 1e-12


@every_ball
@pytest.mark.parametrize("directions", ["adversarial", "gradient"])
def test_the_first_direction_is_eps_long_and_the_second_orthogonal_and_as_long(
    ball, directions, quadratic, x, generator
):
    result = input_plane(quadratic, x, LABEL_0, ball, directions=directions, points=3, generator=generator)
    first, second = (result.unit * d.flatten(1) for d in result.directions)
    length = first.abs().amax(1) if ball.norm == "linf" else first.norm(dim=1)
    torch.testing.assert_close(length, torch.full((3,), ball.eps, dtype=torch.float64))
    torch.testing.assert_close(first.norm(dim=1), second.norm(dim=1))
    assert ((first * second).sum(1) / first.norm(dim=1) / second.norm(dim=1)).abs().max() < 1e-12
    assert result.axes == (directions, "random orthogonal")


@every_ball
def test_the_adversarial_direction_points_to_where_pgd_on_the_margin_ends(ball, quadratic, x):
    result = input_line(quadratic, x, LABEL_0, ball, points=3, steps=7)
    end = pgd(quadratic, x, LABEL_0, ball, steps=7, loss=losses.margin).adversarial - x
    torch.testing.assert_close(
        F.normalize(result.directions[0].flatten(1)), F.normalize(end.flatten(1)), rtol=0, atol=1e-12
    )


def test_the_gradient_direction_climbs_the_loss_fastest(quadratic, x):
    """grad q = A x + c; under linf the steepest step is its sign, under l2 the gradient at length 1."""
    grad = x.flatten(1) @ quadratic.a.detach() + quadratic.c.detach()
    for ball, expected in ((BALLS[0], grad.sign()), (BALLS[1], F.normalize(grad))):
        result = input_line(quadratic, x, LABEL_0, ball, directions="gradient", points=3)
        torch.testing.assert_close(result.directions[0].flatten(1), expected)


@every_slice
def test_cells_off_the_pixel_box_are_marked(measure, quadratic, x, generator):
    result = measure(quadratic, x, LABEL_0, Ball(0.1), points=7, generator=generator)
    at = places(result, x)
    assert torch.equal(result.in_box, ((at >= -1e-6) & (at <= 1 + 1e-6)).all(3))
    assert result.in_box.any()
    assert not result.in_box.all()


def test_a_line_is_the_column_of_the_plane_through_the_image(quadratic, x, generator):
    line = input_line(quadratic, x, LABEL_0, Ball(0.1), points=7)
    plane = input_plane(quadratic, x, LABEL_0, Ball(0.1), points=7, generator=generator)
    for name in ("loss", "margin", "entropy", "predicted", "in_box"):
        torch.testing.assert_close(getattr(line, name)[:, 0], getattr(plane, name)[:, 3], rtol=0, atol=1e-12)
    assert line.beta.tolist() == [0]
    assert line.axes == ("adversarial", "none")


def test_given_directions_are_taken_as_they_are(quadratic, x):
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    first[:, 0, 0, 0], second[:, 1, 1, 1] = 1, 2
    result = input_plane(quadratic, x, LABEL_0, Ball(0.1), directions=(first, second), span=1.0, points=3)
    corner = x.clone()
    corner[:, 0, 0, 0] += 0.1
    corner[:, 1, 1, 1] -= 0.2
    torch.testing.assert_close(result.margin[2, 0], closed_form(quadratic, corner.view(1, 1, 3, 8))[0, 0])


@every_slice
@pytest.mark.parametrize("batch", [1, 7])
def test_how_many_images_go_through_the_model_at_a_time_does_not_matter(measure, batch, quadratic, x):
    whole, pieces = (
        measure(
            quadratic, x, LABEL_0, Ball(0.1), points=5, batch=size, generator=torch.Generator().manual_seed(1)
        )
        for size in (512, batch)
    )  # fmt: skip
    for name in ("loss", "margin", "entropy", "predicted", "in_box"):
        torch.testing.assert_close(getattr(whole, name), getattr(pieces, name), rtol=0, atol=1e-12)


@every_slice
@pytest.mark.parametrize("model", [Detached(Plane(torch.ones(4))), Steps()], ids=["detached", "steps"])
def test_a_sample_without_a_direction_is_nan_everywhere(measure, model):
    result = measure(model, torch.full((2, 4), 0.3), None, Ball(0.1), points=3)
    assert result.loss.isnan().all()
    assert result.margin.isnan().all()
    assert result.entropy.isnan().all()
    assert result.error.isnan().all()
    assert (result.predicted == -1).all()
    assert not result.in_box.any()
    assert result.in_box_share.isnan().all()
    assert np.isnan(result.centre_error)


def test_a_sample_without_a_direction_does_not_touch_the_others(generator):
    class Partly(Plane):
        def z(self, x: Tensor) -> Tensor:
            return super().z(x) * (x[:, 0] > 0)

    x = 0.3 + 0.2 * torch.rand(3, 4, generator=generator)
    x[1, 0] = 0
    model = Partly(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    result = input_plane(model, x, LABEL_0, Ball(0.01), points=3, span=1.0, generator=generator)
    assert result.loss.isnan().all((0, 1)).tolist() == [False, True, False]
    assert result.sharpness.isnan().tolist() == [False, True, False]
    assert result.centre_error < 1e-6
    assert not result.loss[:, :, [0, 2]].isnan().any()


def test_sharpness_is_undefined_where_the_grid_does_not_reach_one_eps(quadratic, x):
    assert input_plane(quadratic, x, LABEL_0, BALLS[0], points=5, span=3.0).sharpness.isnan().all()
    assert input_plane(quadratic, x, LABEL_0, BALLS[0], points=7, span=3.0).sharpness.isfinite().all()
    assert input_plane(quadratic, x, LABEL_0, BALLS[0], span=0.5).sharpness.isnan().all()


def test_sharpness_is_the_largest_rise_within_one_eps(quadratic, x, generator):
    result = input_plane(quadratic, x, LABEL_0, Ball(0.1), span=2.0, points=9, generator=generator)
    for b in range(3):
        near = [
            result.loss[r, c, b].item()
            for r in range(9)
            for c in range(9)
            if abs(result.alpha[r]) <= 1 and abs(result.beta[c]) <= 1
        ]
        assert len(near) == 25
        assert result.sharpness[b].item() == pytest.approx(max(near) - result.centre_loss[b].item())


def test_frame_has_a_row_a_cell_and_sample(quadratic, x, generator):
    result = input_plane(quadratic, x, LABEL_0, Ball(0.1), points=3, generator=generator)
    table = result.frame()
    assert len(table) == 27
    for row in table.itertuples():
        r, c = (result.alpha == row.alpha).nonzero().item(), (result.beta == row.beta).nonzero().item()
        for name in ("loss", "margin", "entropy", "predicted", "in_box"):
            assert getattr(row, name) == getattr(result, name)[r, c, row.sample].item()


@every_slice
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 4}, "points is 4, expected an odd number"),
        ({"points": 1}, "points is 1, expected an odd number of at least 3"),
        ({"span": 0.0}, "span is 0.0, expected a positive number"),
        ({"span": -1.0}, "span is -1.0, expected a positive number"),
        ({"span": float("inf")}, "span is inf, expected a positive number"),
        ({"span": float("nan")}, "span is nan, expected a positive number"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
    ],
)
def test_a_knob_out_of_range_is_refused_by_name(measure, options, message, cnn, images):
    with pytest.raises(ValueError, match=message):
        measure(cnn, images, **options)


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_directions_that_are_zero_or_nan_are_refused(value, cnn, images):
    directions = (images, torch.full_like(images, value))
    with pytest.raises(ValueError, match=r"directions have shapes .*expected 2 finite tensors .*none of them all zero"):
        input_plane(cnn, images, directions=directions)


def test_directions_of_another_number_shape_or_name_are_refused_outside_of_the_tests_type_checks(tmp_path: Path):
    script = """
import torch, gradlens
model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
for directions in ((x, x[:1]), (x,), "sideways"):
    try:
        gradlens.input_plane(model, x, directions=directions)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith(
        "directions have shapes [(2, 3, 2, 2), (1, 3, 2, 2)], expected 2 finite tensors of x's shape"
    )
    assert second.startswith("directions have shapes [(2, 3, 2, 2)], expected 2 finite tensors of x's shape")
    assert third.startswith("directions is 'sideways', expected 'adversarial', 'gradient', tensors of x's shape")
