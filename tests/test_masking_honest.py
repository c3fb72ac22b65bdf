"""Honest models that are easily accused, and what hides behind another row: luck, quantised training, a thin band."""

import functools

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball
from gradlens.masking.subject import introduced
from tests.zoo import BALL, cnn, fit, images


@functools.cache
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return fit(cnn(), 0)


@pytest.fixture
def shown() -> tuple[Tensor, Tensor]:
    return images(0, 80)


class Noisy(nn.Module):
    """Random, and as accurate under any attack on so small a ball as without one."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.inner, self.sigma = network(), sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.sigma * torch.randn_like(x))


@pytest.mark.slow
def test_luck_is_no_gap(shown):
    """The worst of many draws errs where the mean answer is near a boundary; judged anew, it does so no more often."""
    x, y = shown
    found = gl.masking(Noisy(0.3), x[:64], y[:64], Ball(1e-7), generator=torch.Generator().manual_seed(0))
    assert found.gap[0] <= 0.05
    assert found.verdict != "masked"
    assert found.row("random forward pass").fired


class StraightThrough(nn.Module):
    """Rounded in the forward pass, as after training for 8 bits, with the gradient of what was not rounded."""

    def __init__(self, levels: int, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.levels, self.scale = network(), levels, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x + ((x * self.levels).round() / self.levels - x).detach())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_a_straight_through_gradient_leads_well(scale, shown):
    found = gl.masking(StraightThrough(255, scale), *shown, BALL, generator=torch.Generator().manual_seed(0))
    assert not found.row("backward is not the slope").fired
    assert found.verdict == "usable" if scale == 1 else found.verdict in ("usable", "suspect")


class Band(nn.Module):
    """Errs in a thin band of mean brightness alone, which PGD walks through: margin 20 (0.004 - |mean - 0.56|)."""

    def forward(self, x: Tensor) -> Tensor:
        z = 20 * (0.004 - (x.flatten(1).mean(1) - 0.56).abs())
        return torch.stack([torch.zeros_like(z), z], 1)


def test_what_was_fooled_on_the_way_is_told_once():
    """Half of the images lie below the band, some of which the attack steps over; nothing else gains from them."""
    x = torch.linspace(0.4, 0.54, 96)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    found = gl.masking(Band(), x, torch.zeros(96, dtype=torch.long), BALL, generator=torch.Generator().manual_seed(0))
    assert found.row("silent success").value > 0.1
    for other in ("float64 gains", "averaged gradients gain"):
        assert found.row(other).value < 0.05, other
    assert "the direction shatters" not in found.layers
    assert "the optimiser stops early" in found.layers


def test_a_twin_with_other_gradients_is_a_surrogate_and_a_wrapper_is_not(shown):
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.other(x)

    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.other((x * 8).round() / 8)

    x, y = shown
    with pytest.raises(ValueError, match="surrogate 'w' is the model itself"):
        gl.masking(network(), x[:48], y[:48], BALL, surrogates={"w": Wrapper()})
    found = gl.masking(Stepped(), x[:64], y[:64], BALL, surrogates={"through": StraightThrough(8)})
    assert found.verdict == "masked"


def test_randomness_off_the_first_samples_is_seen(shown):
    class Some(nn.Module):
        """Random on bright images alone."""

        def forward(self, x: Tensor) -> Tensor:
            bright = (x.flatten(1).mean(1) > 0.32)[:, None].to(x)
            answer: Tensor = network()(x)
            return answer + bright * torch.randn_like(answer)

    x, y = (part[:44] for part in shown)
    order = x.flatten(1).mean(1).argsort()
    assert [introduced(Some(), x[o], y[o], BALL, 8).is_random for o in (order, order.flip(0))] == [True, True]
    dark = order[:16]
    assert not introduced(Some(), 0.5 * x[dark], y[dark], BALL, 8).is_random


class Decoy(nn.Module):
    """The bare label of a network on larger images, and a slope that is true and leads nowhere: towards brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            label = nn.functional.one_hot(self.inner(nn.functional.avg_pool2d(x, 4)).argmax(1), 10).to(x)
        away = torch.zeros_like(label)
        away[:, 8] = 1
        return 10 * label + 0.5 * away * x.flatten(1).mean(1, keepdim=True)


@pytest.mark.slow
def test_a_label_with_a_decoy_for_a_slope_is_not_called_usable(shown):
    x, y = shown
    x, y = x[y != 8][:56], y[y != 8][:56]
    large = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = gl.masking(Decoy(), large, y, Ball(0.06), generator=torch.Generator().manual_seed(0))
    assert found.verdict in ("suspect", "masked"), found
    assert found.row("RayS gains").fired
