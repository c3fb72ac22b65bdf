"""What each sample cost until it was broken, against a model that counts the passes of each image itself."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Attack, Ball, Robustness, robustness

BALL = Ball(0.1)


class Counted(nn.Module):
    """Class 1 where the first pixel is above 0.55. Counts passes by the last pixel, which tells the images apart."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(10.0))
        self.seen: Counter[float] = Counter()
        self.back: Counter[float] = Counter()
        self.begun = False

    def forward(self, x: Tensor) -> Tensor:
        marks = x.flatten(1)[:, -1].tolist()
        self.seen.update(marks)
        if x.requires_grad:
            x.register_hook(lambda grad: self.back.update(marks))
        z = self.slope * (x.flatten(1)[:, 0] - 0.55)
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def model() -> Counted:
    return Counted()


@pytest.fixture
def x() -> Tensor:
    """The first pixel is 0.5 to 0.3, the last tells them apart."""
    x = torch.full((7, 1, 2, 2), 0.5)
    x[:, 0, 0, 0] = torch.tensor([0.50, 0.46, 0.52, 0.30, 0.47, 0.51, 0.30])
    x[:, 0, 1, 1] = torch.arange(7) / 8
    return x


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 0, 0, 0, 0, 1, 0])  # the sixth is wrong as it is


def moving(by: float, passes: int, gradients: int, is_first: bool = False) -> Attack:
    """Moves the first pixel after so many passes and gradients, alike for all samples."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        if is_first and not model.begun:
            model.begun = True  # what the door looked at is no cost of an attack
            model.seen.clear()
            model.back.clear()
        for _ in range(passes):
            model(x)
        for _ in range(gradients):
            point = x.clone().requires_grad_(True)
            model(point).sum().backward()
        moved = x.clone()
        moved[:, 0, 0, 0] += by
        return moved

    return Attack(f"by {by}", attack)


@pytest.mark.parametrize("batch", [7, 2])
@pytest.mark.parametrize("exhaustive", [False, True])
def test_each_sample_takes_its_own_passes_up_to_the_attack_that_broke_it(batch, exhaustive, model, x, y):
    attacks = [moving(0.04, 1, 0, is_first=True), moving(0.06, 3, 2), moving(0.1, 2, 5)]
    result = robustness(model, x, y, BALL, attacks=attacks, batch=batch, exhaustive=exhaustive)
    assert result.broken_by.tolist() == [1, 2, 0, -1, 2, -1, -1]
    # of the attacks' own passes and the recount's; 0.30 withstands all three, the sixth meets none
    forwards = [2 + 6, 2 + 6 + 8, 2, 2 + 6 + 8, 2 + 6 + 8, 0, 2 + 6 + 8]
    backwards = [2, 7, 0, 7, 7, 0, 7]
    assert result.spent("forwards").tolist() == pytest.approx(forwards)
    assert result.spent("backwards").tolist() == pytest.approx(backwards)
    if not exhaustive:
        marks = x[:, 0, 1, 1].tolist()
        assert [model.seen[mark] for mark in marks] == forwards
        assert [model.back[mark] for mark in marks] == backwards
        assert float(result.spent("seconds").sum()) == pytest.approx(float(result.seconds.sum()))
    assert float(result.spent("seconds")[5]) == 0
    frame = result.frame()
    for of in ("forwards", "backwards", "seconds"):
        assert frame[of].tolist() == result.spent(of).tolist()


def test_where_an_attack_lets_samples_go_early_their_sum_is_still_what_it_cost(x, y):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1, 0] = 10
        model[1].bias.copy_(torch.tensor([0.0, -5.5]))
    attacks = [Attack("square", gl.square, {"queries": 60}), Attack("pgd", gl.pgd, {"steps": 3})]
    result = robustness(model, x, y, BALL, attacks=attacks, generator=torch.Generator().manual_seed(0))
    assert 0 < (result.broken_by == 0).sum() < result.clean.sum()
    for of in ("forwards", "backwards", "seconds"):
        assert float(result.spent(of).sum()) == pytest.approx(float(getattr(result, of).sum()))


def test_no_attack_met_costs_nothing_and_another_cost_is_refused(model, x, y, tmp_path):
    result = robustness(model, x, 1 - y, BALL, attacks=[moving(0.04, 1, 1)])
    assert result.spent("forwards")[[0, 1, 2, 3, 4, 6]].tolist() == [0] * 6
    again = gl.load(gl.save(result, tmp_path / "r.safetensors"))
    assert isinstance(again, Robustness)
    assert torch.equal(again.spent("forwards"), result.spent("forwards"))
    call = getattr(Robustness.spent, "__wrapped__", Robustness.spent)
    with pytest.raises(ValueError, match="of is 'passes', expected one of 'forwards', 'backwards', 'seconds'"):
        call(result, "passes")
