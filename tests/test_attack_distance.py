"""Every attack by gradients on a plane: it finds what is just beyond the boundary, and nothing within."""

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball, PGDTrace, losses
from tests.analytic import Plane

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
W = torch.tensor([0.5, -0.3, 0.2, 0.05, -0.4, 0.1])
OFFSETS = (0.005, 0.02, 0.1)


class Padded(nn.Module):
    """A plane between two classes, and two more classes far below both: dlr needs four."""

    def __init__(self, plane: Plane) -> None:
        super().__init__()
        self.plane = plane

    def forward(self, x: Tensor) -> Tensor:
        z = self.plane(x)
        return torch.cat([z, torch.full_like(z, -2 * self.plane.scale)], 1)


def placed(scale: float, classes: int = 2) -> tuple[Plane, nn.Module, Tensor, Tensor]:
    """The plane, the model it is part of, and images on the side of class 0, far from the box."""
    plane = Plane(W, b=float(0.5 * W.sum()), scale=scale)
    x = torch.stack([0.5 - offset * W / W.norm() for offset in OFFSETS])
    return plane, plane if classes == 2 else Padded(plane), x, torch.zeros(len(x), dtype=torch.long)


ATTACKS: dict[str, Callable[..., PGDTrace]] = {
    "pgd": lambda *given, loss: gl.pgd(*given, steps=12, loss=loss),
    "apgd": lambda *given, loss: gl.apgd(*given, steps=12, loss=loss),
    "fgsm": lambda *given, loss: gl.fgsm(*given, loss=loss),
    "pgd_targeted": lambda *given, loss: gl.pgd_targeted(*given, steps=12, loss=loss),
    "apgd_targeted": lambda *given, loss: gl.apgd_targeted(*given, steps=12, loss=loss),
}
LOSSES = {
    "margin": losses.margin,
    "dlr": losses.dlr,
    "rescaled": losses.rescaled,
    "rescaled to 10": functools.partial(losses.rescaled, t=10.0),
    "probability_margin": losses.probability_margin,
    "cross_entropy": losses.cross_entropy,
    "targeted_dlr": losses.targeted_dlr,  # takes targets
}


@NORMS
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize(
    ("attack", "loss"),
    [
        *itertools.product(ATTACKS, list(LOSSES)[:-1]),
        ("pgd_targeted", "targeted_dlr"),
        ("apgd_targeted", "targeted_dlr"),
    ],
)
def test_each_attack_breaks_at_a_tenth_beyond_the_distance_and_none_at_a_hundredth_within(attack, loss, scale, norm):
    plane, model, x, y = placed(scale, 4 if "dlr" in loss else 2)
    x, y = x[1:2], y[1:2]  # margin -15 at the largest scale: cross-entropy has a gradient left
    distance = plane.distance(x, norm).item()
    beyond = Ball(1.1 * distance, norm)
    found = ATTACKS[attack](model, x, y, beyond, loss=LOSSES[loss])
    assert found.ever.all()
    assert model(found.best).argmax(1).item() == 1 and beyond.contains(found.best, x).all()
    within = ATTACKS[attack](model, x, y, Ball(0.99 * distance, norm), loss=LOSSES[loss])
    assert not within.ever.any() and model(within.best).argmax(1).item() == 0


@NORMS
def test_cross_entropy_is_blind_where_the_model_is_sure_and_the_losses_made_for_it_are_not(norm):
    plane, model, x, y = placed(1e3, 4)
    x, y = x[-1:], y[-1:]  # margin -75
    x = x - 0.2 * W / W.norm()
    ball = Ball(1.1 * plane.distance(x, norm).item(), norm)
    assert gl.apgd(model, x, y, ball).vanished.all()
    for loss in (losses.margin, losses.dlr, losses.rescaled, losses.probability_margin):
        assert gl.apgd(model, x, y, ball, loss=loss).ever.all()


@NORMS
@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0, 1e3])
def test_the_minimum_norm_is_within_a_tenth_above_the_distance_and_never_below(scale, norm):
    plane, model, x, y = placed(scale)
    found = gl.minimum_norm(model, x, y, Ball(norm=norm))
    ratio = found.distance / plane.distance(x, norm)
    assert (ratio < 1.1).all() and (ratio > 1 - 1e-4).all()
    assert (model(found.adversarial).argmax(1) == 1).all()


@NORMS
def test_the_minimum_norm_on_many_pixels_and_beside_the_box(norm):
    """784 pixels; then a pixel that stands at the box and would have to leave it, and so can do nothing."""
    w = torch.randn(784, generator=torch.Generator().manual_seed(1))
    plane = Plane(w, b=float(0.5 * w.sum()))
    x = 0.5 - 0.002 * w / w.norm() * torch.tensor([[1.0], [100.0], [1000.0]])
    found = gl.minimum_norm(plane, x, torch.zeros(3, dtype=torch.long), Ball(norm=norm))
    assert (found.distance / plane.distance(x, norm) < 1.1).all()
    edge = torch.full((1, 6), 0.45)
    edge[0, 0] = 1.0
    free = W.clone()
    free[0] = 0
    level = float(edge @ W) + 0.02
    plane, rest = Plane(W, b=level), Plane(free, b=level - 0.5)
    found = gl.minimum_norm(plane, edge, [0], Ball(norm=norm))
    assert found.distance.item() == pytest.approx(rest.distance(edge, norm).item(), rel=0.1)
    assert found.distance.item() > 1.05 * plane.distance(edge, norm).item()
    assert found.adversarial.amax() <= 1
