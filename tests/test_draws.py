"""Noise that belongs to a sample."""

import pytest
import torch
from scipy.stats import kstest

from gradlens import Ball
from gradlens.draws import Draws, gaussian, keys, seed, uniform

IMAGES = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(1))


def test_a_sample_keeps_its_noise_in_any_batch_and_order() -> None:
    whole = uniform(IMAGES, Draws.of(7, keys(IMAGES)))
    order = torch.tensor([3, 1, 4])
    some = uniform(IMAGES[order], Draws.of(7, keys(IMAGES[order])))
    assert torch.equal(some, whole[order])


def test_another_seed_and_another_sample_have_other_noise() -> None:
    a, b = (gaussian(IMAGES, Draws.of(number, keys(IMAGES))) for number in (7, 8))
    assert not torch.isclose(a, b).any()
    assert not torch.isclose(a[0], a[1]).any()


def test_a_stream_goes_on() -> None:
    draws = Draws.of(7, keys(IMAGES))
    assert not torch.isclose(uniform(IMAGES, draws), uniform(IMAGES, draws)).any()


@pytest.mark.parametrize(("kind", "law"), [(uniform, "uniform"), (gaussian, "norm")])
def test_noise_follows_its_law_across_samples(kind, law) -> None:
    many = torch.rand(2000, 3, generator=torch.Generator().manual_seed(2))
    noise = kind(many, Draws.of(0, keys(many)))
    assert kstest(noise.flatten().numpy(), law).pvalue > 1e-3


def test_a_seed_comes_from_the_callers_generator_alone() -> None:
    state = torch.get_rng_state()
    numbers = [seed(torch.Generator().manual_seed(3)) for _ in range(2)]
    assert numbers[0] == numbers[1] != seed(torch.Generator().manual_seed(4))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_of_a_ball_fills_it(norm) -> None:
    many = torch.full((4000, 4), 0.5)
    length = Ball(0.2, norm).length(Ball(0.2, norm).noise(many, torch.Generator().manual_seed(5)))
    # the share of a four-dimensional ball within radius r is (r / eps)^4
    assert kstest((length / 0.2).numpy() ** 4, "uniform").pvalue > 1e-3
