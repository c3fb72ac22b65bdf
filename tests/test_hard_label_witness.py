"""HopSkipJump and RayS where the nearest error is known, on curved boundaries, and beside foolbox's HopSkipJump."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from gradlens import Ball, QueryTrace, hopskipjump, rays
from tests.analytic import Binary
from tests.test_query_attacks import digits_model

CENTRE = torch.tensor([0.55, 0.45, 0.5, 0.6, 0.4, 0.5, 0.45, 0.55, 0.5])


class Round(Binary):
    """Class 0 inside a ball of pixels, class 1 outside; or the other way round: z = +-(||x - centre||^2 - radius^2)."""

    def __init__(self, radius: float, *, is_inside: bool) -> None:
        super().__init__()
        self.centre, self.radius, self.sign = nn.Parameter(CENTRE.clone()), radius, 1 if is_inside else -1

    def z(self, x: Tensor) -> Tensor:
        return self.sign * ((x - self.centre).square().sum(1) - self.radius**2)

    def distance(self, x: Tensor, norm: str) -> Tensor:
        """Nearest point of the sphere, in `norm`: along the radius under l2; under linf all pixels move as far."""
        offset = (x.flatten(1) - self.centre.detach()).abs()
        if norm == "l2":
            return (self.radius - offset.norm(dim=1)).abs()
        return torch.stack([_shrunk(row, self.radius, self.sign) for row in offset])


def _shrunk(offset: Tensor, radius: float, sign: int) -> Tensor:
    """How far all entries must grow, or shrink but not below 0, for the length to be `radius`: by bisection."""
    low, high = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        is_short = (offset + sign * middle).clamp(min=0).norm() * sign < radius * sign
        low, high = (middle, high) if is_short else (low, middle)
    return high.to(offset)


def seen(attack, model: nn.Module, x: Tensor, norm: str) -> QueryTrace:
    y = torch.zeros(len(x), dtype=torch.long)
    assert (model(x).argmax(1) == y).all()
    return attack(model, x, y, Ball(0.01, norm), queries=3000, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("attack", "norm", "is_inside"),
    # RayS looks for errors in the corners of the box first, and this region has none there
    [(rays, "linf", True), *((hopskipjump, norm, inside) for norm in ("linf", "l2") for inside in (True, False))],
)
def test_a_sphere_is_reached_within_a_tenth_of_its_distance_and_never_from_nearer(attack, norm, is_inside):
    model = Round(0.5 if is_inside else 0.7, is_inside=is_inside)
    way = torch.tensor([1.0, -0.5, 0.7, 0.3, -0.9, 0.6, -0.4, 0.8, -0.2])
    # not near the centre, where under linf each combination of signs leads to a nearest point of its own
    far = (0.3, 0.4) if is_inside else (0.75, 0.85)
    x = torch.stack([CENTRE + size * way / way.norm() for size in far]).view(2, 1, 3, 3)
    exact = model.distance(x, norm)
    assert x.amin() >= 0 and x.amax() <= 1
    trace = seen(attack, model, x, norm)
    assert (trace.distance >= 0.9999 * exact).all()
    assert (trace.distance <= 1.1 * exact).all(), trace.distance / exact


class Tally(nn.Module):
    """Counts images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.images = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.inner(x)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_at_equal_queries_distances_are_those_of_foolboxs_hopskipjump(norm):
    """Medians over 16 digits that a trained network gets right: within a quarter either way."""
    model, x, y = digits_model()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero()[:16, 0]
    x, y, ball = x[right], y[right], Ball(0.1, norm)
    tally = Tally(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox's own imports
        import foolbox

        attack = foolbox.attacks.HopSkipJumpAttack(steps=15, constraint=norm)
        found, _, is_found = attack(foolbox.PyTorchModel(tally, bounds=(0, 1)), x, y, epsilons=None)
    assert is_found.all()
    theirs = ball.length(found - x)
    trace = hopskipjump(model, x, y, ball, queries=tally.images // len(x), generator=torch.Generator().manual_seed(0))
    ours = trace.distance
    assert 0.8 < float(ours.median() / theirs.median()) < 1.25, (ours.median(), theirs.median(), tally.images)
