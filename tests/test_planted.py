"""The active test: where an example is planted, an attack that works finds it, and one that cannot does not."""

import math

import pytest
import torch
from torch import Tensor, nn

from gradlens import Attack, Ball, Planted, losses, pgd, planted, square
from tests.analytic import Detached, snapshot

BALL = Ball(0.1)
ATTACKS = [Attack("pgd", pgd, {"loss": losses.margin}), Attack("square", square, {"queries": 300, "reach_edges": True})]


@pytest.fixture
def model() -> nn.Module:
    """Four linear classes of 3 x 3 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).requires_grad_(True)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return 0.2 + 0.6 * torch.rand(8, 1, 3, 3, generator=generator)


def plant(model: nn.Module, x: Tensor, **options) -> Planted:
    return planted(model, x, None, BALL, generator=torch.Generator().manual_seed(0), **options)


def test_on_a_plane_each_attack_finds_the_planted_example(model, x):
    before = snapshot(model)
    result = plant(model, x, attacks=ATTACKS)
    assert result.planted.all()
    assert result.rate("pgd")[0] == 1.0
    assert all(result.passed.values())
    assert snapshot(model) == before


def test_an_attack_by_gradients_fails_where_there_are_none_and_one_by_queries_does_not(model, x):
    result = plant(Detached(model), x, attacks=ATTACKS)
    assert result.rate("pgd")[0] == 0.0
    assert result.passed == {"pgd": False, "square": True}
    assert "failed: pgd" in str(result)


def test_confidence_is_kept_so_that_a_loss_that_saturates_fails(model, x):
    sure = nn.Sequential(model, nn.Linear(4, 4, bias=False))
    sure[1].weight.data = 1e5 * torch.eye(4)
    both = [Attack("ce", pgd), *ATTACKS[:1]]
    assert plant(sure, x, attacks=both).passed == {"ce": False, "pgd": True}
    assert plant(model, x, attacks=both).passed == {"ce": True, "pgd": True}


def test_what_an_attack_claims_is_counted_anew(model, x):
    def outside(model, x, y, ball):
        return x + 2 * ball.eps

    def nothing(model, x, y, ball):
        return x

    result = plant(model, x, attacks=[outside, nothing])
    assert not result.found.any()


def test_a_model_with_one_answer_has_no_place_to_plant(x):
    class Same(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0, 2.0]).expand(len(x), -1) + 0 * x.flatten(1)[:, :1]

    result = plant(Same(), x, attacks=ATTACKS)
    assert not result.planted.any()
    assert all(math.isnan(value) for value in result.rate("pgd"))
    assert result.passed == {"pgd": False, "square": False}


def test_the_frame_holds_the_rates(model, x):
    result = plant(model, x, attacks=ATTACKS)
    frame = result.frame().set_index("attack")
    assert frame.loc["pgd", "found"] == result.rate("pgd")[0]
    assert frame.loc["square", "planted"] == 8
    with pytest.raises(ValueError, match=r"attack is 'pdg', expected one of 'pgd', 'square'"):
        result.rate("pdg")


def test_neither_batch_nor_order_moves_a_plant(model, x):
    whole, parts = plant(model, x, attacks=ATTACKS), plant(model, x, attacks=ATTACKS, batch=3)
    turned = plant(model, x.flip(0), attacks=ATTACKS)
    assert torch.equal(whole.found, parts.found)
    assert torch.equal(whole.found, turned.found.flip(1))
    assert torch.equal(whole.by_chance, turned.by_chance.flip(0))


def test_random_models_are_refused(x):
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) + torch.randn_like(x.flatten(1))

    with pytest.raises(ValueError, match="model is random"):
        plant(Noisy(), x)
