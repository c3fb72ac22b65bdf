"""Steadiness of gradients that are known on paper: straight, turning with a known frequency, absent."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gradlens import Ball, losses, pgd, stability
from gradlens.ball import cosine
from gradlens.draws import Draws, keys, seed
from tests.analytic import Detached, Hinge, Plane, Sine

NORMS = ("linf", "l2")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-30])
def test_a_plane_has_a_steady_gradient_at_every_distance(norm, scale, generator):
    model = Plane(torch.tensor([0.5, -0.3, 0.2, -0.4]), scale=scale)
    x = 0.2 + 0.6 * torch.rand(5, 4, generator=generator)
    result = stability(model, x, None, Ball(0.1, norm), steps=4, loss=losses.margin, generator=generator)
    torch.testing.assert_close(result.cosine, torch.ones(5))
    torch.testing.assert_close(result.sign_agreement, torch.ones(5))
    torch.testing.assert_close(result.local_cosine, torch.ones(4, 5))
    torch.testing.assert_close(result.grad_norm, torch.full((5,), scale * model.w.norm().item()), rtol=1e-5, atol=0)
    assert result.undefined.eq(0).all()


def test_a_sines_cosine_from_step_to_step_is_that_of_its_derivative():
    """Two pixels at 0.3 and 0.5, z = sum sin(w x) / w with w = 20: the gradient at x is (cos 20 x_1, cos 20 x_2).

    By hand: at the start (0.960, -0.839), so the step of 0.04 goes (+, -), and so on.
    """
    omega, size = 20.0, 0.04
    x, point = torch.tensor([[0.3, 0.5]], dtype=torch.float64), [0.3, 0.5]
    gradients = [[math.cos(omega * pixel) for pixel in point]]
    for _ in range(4):
        point = [pixel + math.copysign(size, g) for pixel, g in zip(point, gradients[-1], strict=True)]
        gradients.append([math.cos(omega * pixel) for pixel in point])
    expected = [
        sum(a * b for a, b in zip(g, h, strict=True)) / (math.hypot(*g) * math.hypot(*h))
        for g, h in pairwise(gradients)
    ]
    agreement = [sum(a * b > 0 for a, b in zip(g, h, strict=True)) / 2 for g, h in pairwise(gradients)]
    result = stability(
        Sine(omega), x, torch.tensor([0]), Ball(0.3), steps=4, step_size=size, loss=losses.margin, radii=()
    )
    assert min(expected) < 0 < max(expected)
    np.testing.assert_allclose(result.trace.cosine[:, 0], expected, rtol=1e-9)
    np.testing.assert_allclose(result.trace.sign_agreement[:, 0], agreement)
    assert result.cosine.item() == pytest.approx(sum(expected) / 4)
    assert result.sign_agreement.item() == pytest.approx(sum(agreement) / 4)
    assert result.grad_norm.item() == pytest.approx(sum(math.hypot(*g) for g in gradients) / 5)


@pytest.mark.parametrize("norm", NORMS)
def test_local_cosines_compare_the_image_with_points_at_the_given_radii(norm):
    """The points are those that the same generator draws; the gradient there is known."""
    omega, ball, radii = 30.0, Ball(0.05, norm), (0.01, 0.5, 1.0)
    x = 0.3 + 0.4 * torch.rand(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    result = stability(
        Sine(omega), x, None, ball, steps=1, loss=losses.margin, radii=radii, generator=torch.Generator().manual_seed(3)
    )
    draws = Draws.of(seed(torch.Generator().manual_seed(3)), keys(x))
    for i, radius in enumerate(radii):
        there = ball.shell(x, radius, draws)
        by_hand = torch.nn.functional.cosine_similarity((omega * x).cos(), (omega * there).cos(), dim=1)
        torch.testing.assert_close(result.local_cosine[i], by_hand)
    assert result.local_cosine[0].min() > 0.99 > result.local_cosine[2].min()


@pytest.mark.parametrize("norm", NORMS)
def test_far_apart_on_a_fast_sine_gradients_have_nothing_in_common(norm, generator):
    """cos(1e4 x) at two points 0.05 apart are as good as random: cosines scatter around 0 by 1 / sqrt(400)."""
    x = 0.3 + 0.4 * torch.rand(50, 400, generator=generator, dtype=torch.float64)
    ball = Ball(0.05 if norm == "linf" else 1.0, norm)
    result = stability(Sine(1e4), x, None, ball, steps=1, loss=losses.margin, radii=(1.0,), generator=generator)
    assert result.local_cosine.mean().abs() < 4 / (400 * 50) ** 0.5
    assert result.local_cosine.std() == pytest.approx(1 / 400**0.5, rel=0.5)


def test_summaries_are_means_over_what_is_defined(cnn, images):
    result = stability(cnn, images, None, Ball(0.2), steps=5)
    trace = pgd(cnn, images, None, Ball(0.2), steps=5)
    for i in range(len(images)):
        assert result.grad_norm[i].item() == pytest.approx(sum(trace.grad_norm[:, i].tolist()) / 6)
        assert result.cosine[i].item() == pytest.approx(sum(trace.cosine[:, i].tolist()) / 5)
    here, there = (pgd(cnn, x, trace.labels, Ball(0.2), steps=1) for x in (images, trace.adversarial))
    assert torch.equal(result.trace.adversarial, trace.adversarial)
    assert not torch.equal(here.loss[0], there.loss[0])


def test_means_skip_what_is_undefined():
    """Of the points 0.47, 0.52, 0.57 and so on the first two have a gradient, and between those it does not turn."""
    x, y = torch.full((1, 4), 0.47), torch.zeros(1, dtype=torch.long)
    result = stability(Hinge(0.55), x, y, Ball(0.3), steps=4, step_size=0.05, loss=losses.margin)
    assert result.trace.cosine.isnan().sum() == 3
    assert result.cosine.item() == pytest.approx(1)
    assert result.sign_agreement.item() == 1
    assert result.undefined.item() == pytest.approx(3 / 5)
    assert result.grad_norm.item() == pytest.approx(2 / 5 * 0.5)  # (1/4, 1/4, 1/4, 1/4) has length 1/2


def test_without_a_gradient_everything_but_the_norm_is_undefined():
    result = stability(Detached(Plane(torch.ones(4))), torch.full((3, 4), 0.4))
    assert torch.equal(result.undefined, torch.ones(3))
    assert torch.equal(result.grad_norm, torch.zeros(3))
    for values in (result.cosine, result.sign_agreement, result.local_cosine):
        assert values.isnan().all()
    assert "undefined 100.0%" in str(result)


def test_a_sample_without_a_gradient_does_not_touch_the_others(generator):
    """The plane is flat for the first image, whose first pixel is 0: the others keep their cosine of 1."""

    class Partly(Plane):
        def z(self, x: Tensor) -> Tensor:
            return super().z(x) * (x[:, 0] > 0)

    x = 0.3 + 0.2 * torch.rand(3, 4, generator=generator)
    x[0, 0] = 0
    model = Partly(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    result = stability(
        model, x, torch.zeros(3, dtype=torch.long), Ball(0.01), steps=3, loss=losses.margin, radii=(1.0,)
    )
    assert result.cosine.isnan().tolist() == [True, False, False]
    assert result.undefined.tolist() == [1, 0, 0]
    torch.testing.assert_close(result.cosine[1:], torch.ones(2))


def test_frame_has_a_row_a_sample(cnn, images):
    result = stability(cnn, images, None, Ball(0.5), steps=2, radii=(0.1, 1.0))
    table = result.frame()
    assert list(table.columns) == [
        "sample", "grad_norm", "cosine", "sign_agreement", "undefined", "local_cosine_0.1", "local_cosine_1", "fooled",
    ]  # fmt: skip
    assert table["sample"].tolist() == list(range(6))
    np.testing.assert_array_equal(table["grad_norm"], result.grad_norm)
    np.testing.assert_array_equal(table["local_cosine_1"], result.local_cosine[1])
    assert table["fooled"].tolist() == result.trace.success.tolist()


@pytest.mark.parametrize("radii", [(0.0,), (0.1, -1.0)])
def test_radii_that_are_not_positive_are_refused(radii, cnn, images):
    with pytest.raises(ValueError, match=r"radii are .*expected positive numbers"):
        stability(cnn, images, radii=radii)


def test_equal_generators_give_equal_results(cnn, images):
    first, again, other = (
        stability(cnn, images, None, Ball(0.3), steps=1, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.local_cosine, again.local_cosine)
    assert not torch.equal(first.local_cosine, other.local_cosine)
    assert first.made == again.made
    assert first.made.seed == 1


def test_any_module_is_measured_from_an_empty_folder_and_prints_one_line(tmp_path: Path):
    script = """
import torch, gradlens
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))
print(gradlens.stability(model, torch.rand(7, 3, 4, 4)))
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("7 samples, linf eps 0.0314: |g| ")
    assert "undefined 0.0%" in line
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_the_cosine_of_a_stability_is_the_cosine_of_torch(generator):
    a, b = torch.randn(2, 9, 3, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(cosine(a, b), torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)))
