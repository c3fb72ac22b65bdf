"""The geometry of the threat model, against its definitions."""

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from gradlens import Ball
from gradlens.ball import cosine, gaussian, l2, linf, unit

NORMS = ("linf", "l2")


def centres(generator: torch.Generator, batch: int = 40) -> Tensor:
    """Images whose pixels reach the very edge of the box."""
    x = torch.rand(batch, 3, 4, 4, generator=generator)
    x[:, 0] = x[:, 0].round()
    return x


def slow_length(delta: Tensor, norm: str) -> Tensor:
    """By the definition, one sample after the other, in float64."""
    rows = [row.double().flatten() for row in delta]
    return torch.stack([row.abs().max() if norm == "linf" else row.square().sum().sqrt() for row in rows])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [8 / 255, 0.5, 3.0])
@pytest.mark.parametrize("far", [0.01, 1.0, 100.0])
def test_projection_is_inside_ball_and_box_and_leaves_inside_points_alone(norm, eps, far, generator):
    ball, x = Ball(eps, norm), centres(generator)
    point = ball.project(x + far * torch.randn(x.shape, generator=generator), x)
    assert (slow_length(point - x, norm) <= eps * (1 + 1e-5) + 1e-6).all()
    assert point.min() >= 0
    assert point.max() <= 1
    assert ball.contains(point, x).all()
    torch.testing.assert_close(ball.project(point, x), point, rtol=0, atol=5e-7)


def test_projection_onto_the_l2_ball_is_the_nearest_point(generator):
    ball, x = Ball(0.5, "l2", low=-100.0, high=100.0), centres(generator)
    outside = x + torch.randn(x.shape, generator=generator)
    nearest = ball.project(outside, x)
    inside = ball.sample(x, generator)
    assert (slow_length(outside - inside, "l2") >= slow_length(outside - nearest, "l2") - 1e-5).all()
    # the nearest point lies on the straight line to the centre
    torch.testing.assert_close(cosine(nearest - x, outside - x), torch.ones(len(x)))


@pytest.mark.parametrize("norm", NORMS)
def test_contains_refuses_what_is_outside_the_ball_or_the_box(norm):
    ball, x = Ball(0.1, norm), torch.full((3, 4), 0.95)
    point = x.clone()
    point[0, 0] -= 0.11  # outside the ball
    point[1, 0] += 0.06  # outside the box
    point[2, 0] -= 0.09
    assert ball.contains(point, x).tolist() == [False, False, True]


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_inside_and_repeat_with_their_generator(norm):
    ball, x = Ball(0.4, norm), centres(torch.Generator().manual_seed(3))
    first, again = (ball.sample(x, torch.Generator().manual_seed(4)) for _ in range(2))
    assert ball.contains(first, x).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, ball.sample(x, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", [2, 5])
def test_random_starts_are_uniform_in_the_ball(norm, dimension, generator):
    """In d dimensions the share of volume within radius r is r^d; any direction's sign is a fair coin."""
    centre = torch.zeros(20_000, dimension)
    delta = Ball(1.0, norm, low=-9.0, high=9.0).sample(centre, generator)
    volume = slow_length(delta, norm) ** dimension
    assert kstest(volume.numpy(), "uniform").pvalue > 0.01
    assert ((delta > 0).double().mean(0) - 0.5).abs().max() < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("dimension", [2, 3])
def test_random_directions_on_the_l2_shell_are_uniform(dimension, generator):
    """On a circle the angle is uniform, on a sphere any one coordinate is (Archimedes)."""
    delta = Ball(1.0, "l2", low=-9.0, high=9.0).shell(torch.zeros(20_000, dimension), 1.0, generator)
    flat = torch.atan2(delta[:, 0], delta[:, 1]) / torch.pi if dimension == 2 else delta[:, 0]
    assert kstest(flat.numpy(), "uniform", args=(-1, 2)).pvalue > 0.01


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("radius", [0.01, 0.5, 1.0])
def test_shell_points_are_at_the_exact_distance_and_in_the_box(norm, radius, generator):
    ball, x = Ball(0.3, norm), centres(generator)
    point = ball.shell(x, radius, generator)
    torch.testing.assert_close(
        slow_length(point - x, norm), torch.full((len(x),), 0.3 * radius).double(), rtol=1e-4, atol=1e-7
    )
    assert ball.contains(point, x).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_no_unit_step_climbs_a_linear_function_faster_than_the_steepest(norm, scale, generator):
    ball, grad = Ball(1.0, norm), scale * torch.randn(20, 6, generator=generator)
    steepest = ball.steepest(grad)
    torch.testing.assert_close(slow_length(steepest, norm), torch.ones(20).double())
    gain = (steepest.double() * grad.double()).sum(1)
    for _ in range(500):
        other = torch.randn(20, 6, generator=generator)
        other = other.double() / slow_length(other, norm)[:, None]
        assert ((other * grad.double()).sum(1) <= gain * (1 + 1e-6)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_that_is_zero_or_not_finite_is_no_step_at_all(norm):
    grad = torch.tensor([[0.0, 0.0], [torch.nan, torch.nan], [1.0, torch.nan]])
    steps = Ball(1.0, norm).steepest(grad)
    assert steps[:2].eq(0).all()
    assert steps[2].tolist() == ([1, 0] if norm == "linf" else [0, 0])


@pytest.mark.parametrize("scale", [1e30, 1.0, 1e-30])
def test_lengths_and_directions_neither_underflow_nor_overflow(scale):
    t = scale * torch.tensor([[3.0, -4.0]])
    assert l2(t).item() == pytest.approx(5 * scale, rel=1e-6)
    assert linf(t).item() == pytest.approx(4 * scale, rel=1e-6)
    torch.testing.assert_close(unit(t), torch.tensor([[0.6, -0.8]]))
    torch.testing.assert_close(cosine(t, torch.tensor([[1.0, 0.0]])), torch.tensor([0.6]))


def test_the_zero_vector_has_length_zero_and_no_direction():
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert l2(zero).item() == 0
    assert unit(zero).isnan().all()
    assert cosine(zero, one).isnan().all()
    assert cosine(one, zero).isnan().all()


@pytest.mark.parametrize("norm", NORMS)
def test_on_surface_counts_the_pixels_that_cannot_move_out(norm):
    ball, x = Ball(0.1, norm), torch.tensor([[0.5, 0.5, 0.5, 0.95], [0.5, 0.5, 0.5, 0.5]])
    point = torch.tensor([[0.6, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 0.55]])
    # linf: one pixel on the ball, one on the box; l2: the first sample is beyond 0.1 as a whole, the second is not
    expected = [0.5, 0.0] if norm == "linf" else [1.0, 0.0]
    assert ball.on_surface(point, x).tolist() == expected


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), float("inf")])
def test_an_eps_that_is_no_radius_is_refused(eps):
    with pytest.raises(ValueError, match=r"eps is .*expected a positive finite number"):
        Ball(eps)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.5, 0.5), (0.0, float("nan"))])
def test_an_empty_pixel_box_is_refused(low, high):
    with pytest.raises(ValueError, match=r"pixel box.*expected low < high"):
        Ball(low=low, high=high)


def test_gaussian_numbers_have_the_type_asked_for_and_are_normal(generator):
    numbers = gaussian(torch.zeros(20_000, dtype=torch.float64), generator)
    assert numbers.dtype == torch.float64
    assert kstest(numbers.numpy(), "norm").pvalue > 0.01
