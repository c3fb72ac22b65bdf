"""Points made on one model, shown to another: who counts, in which order, and what the ensemble is."""

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Attack, Ball, transfer
from gradlens.robustness.transfer import ENSEMBLE, Ensemble
from tests.analytic import snapshot

BALL = Ball(0.1)


class Half(nn.Module):
    """Two classes, told apart by the mean of the first or of the second half of the pixels, above 0.5 or below."""

    def __init__(self, *, first: bool, scale: float = 10.0) -> None:
        super().__init__()
        self.w = nn.Parameter(scale * torch.tensor([1.0, 0.0] if first else [0.0, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        halves = x.flatten(1).view(len(x), 2, -1).mean(2) - 0.5
        z = halves @ self.w
        return torch.stack([-z, z], 1)


@pytest.fixture
def x() -> Tensor:
    """Both halves of each image agree, at distances 0.01 to 0.17 from 0.5."""
    offset = torch.cat([torch.linspace(0.01, 0.17, 9), -torch.linspace(0.01, 0.17, 9)])
    return (0.5 + offset)[:, None, None, None].expand(-1, 1, 2, 2).clone()


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([1] * 9 + [0] * 9)


def test_points_reach_a_model_of_the_same_half_and_no_other(x, y):
    models = {"a": Half(first=True), "twin": Half(first=True, scale=3.0), "b": Half(first=False)}
    before = {name: snapshot(model) for name, model in models.items()}
    result = transfer(models, models, x, y, BALL)
    # white box: at distance below 0.1, broken; a linear model has no other case
    left = 8 / 18
    expected = torch.tensor([[left, left, 1.0], [left, left, 1.0], [1.0, 1.0, left]], dtype=torch.float64)
    torch.testing.assert_close(result.accuracy, expected)
    assert result.right.all()
    assert {t: result.worst(t) for t in models} == pytest.approx({"a": left, "twin": left, "b": 1.0})
    assert result.asymmetry.abs().max() == 0
    assert {name: snapshot(model) for name, model in models.items()} == before
    frame = result.frame()
    assert len(frame) == 9 and frame["white_box"].sum() == 3
    row = frame[(frame["source"] == "a") & (frame["target"] == "twin")].iloc[0]
    assert row["low"] < left < row["high"]


def test_only_samples_that_the_target_is_right_on_count_for_it(x, y):
    wrong = y.clone()
    wrong[:6] = 0  # no model is right on these
    models = {"a": Half(first=True), "b": Half(first=False)}
    result = transfer(models, models, x, wrong, BALL)
    assert result.right.sum(1).tolist() == [12, 12]
    # among the twelve: three far ones of class 1, five near and four far ones of class 0
    assert float(result.accuracy[0, 0]) == pytest.approx(1 - 5 / 12)
    assert float(result.accuracy[0, 1]) == 1


def test_asymmetry_is_the_difference_of_the_two_ways(x, y):
    """Points that move both halves cross into b; b's own leave a alone."""
    both = Attack("both", lambda model, x, y, ball: x - ball.eps * (2 * y - 1).view(-1, 1, 1, 1) * model.reach)
    a, b = Half(first=True), Half(first=False)
    a.reach = torch.ones(1, 1, 2, 2)
    b.reach = torch.tensor([[[[0.0, 0.0], [1.0, 1.0]]]])
    result = transfer({"a": a, "b": b}, {"a": a, "b": b}, x, y, BALL, attack=both)
    left = 8 / 18
    torch.testing.assert_close(result.accuracy, torch.tensor([[left, left], [1.0, left]], dtype=torch.float64))
    torch.testing.assert_close(result.asymmetry, torch.tensor([[0.0, left - 1], [1 - left, 0.0]], dtype=torch.float64))


def test_the_ensemble_is_of_the_others_and_reaches_all_of_them(x, y):
    models = {"a": Half(first=True), "b": Half(first=False), "c": Half(first=True, scale=30.0)}
    result = transfer(models, models, x, y, BALL, ensemble=True)
    assert result.sources == ("a", "b", "c", ENSEMBLE)
    left = 8 / 18
    together = result.accuracy[3]
    # a's others are b and c, of which c is like a; b's others know nothing of its half
    assert float(together[0]) == pytest.approx(left)
    assert float(together[1]) == 1
    assert result.worst("a") == pytest.approx(left)
    assert result.asymmetry[3].isnan().all()


def test_an_ensemble_answers_the_log_of_the_mean_probability():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(3)]
    x = torch.rand(5, 1, 2, 2)
    mean = torch.stack([model(x).softmax(1) for model in models]).mean(0)
    torch.testing.assert_close(Ensemble(models)(x).exp(), mean)


def test_neither_batch_nor_order_changes_the_matrix(x, y):
    models = {"a": Half(first=True), "b": Half(first=False)}
    attack = Attack("pgd", gl.pgd, {"steps": 3, "restarts": 2})
    whole = transfer(models, models, x, y, BALL, attack=attack, generator=torch.Generator().manual_seed(0))
    single = transfer(models, models, x, y, BALL, attack=attack, batch=5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole.fooled, single.fooled)


def test_points_outside_the_ball_count_for_nothing(x, y):
    far = Attack("far", lambda model, x, y, ball: 1 - x)
    models = {"a": Half(first=True)}
    assert float(transfer(models, models, x, y, Ball(0.12), attack=far).accuracy) == pytest.approx(1 - 6 / 18)


def test_bad_models_are_refused_by_name(x, y):
    a = Half(first=True)
    three = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"models have different numbers of classes \(\{'a': 2, 'three': 3\}\)"):
        transfer({"a": a}, {"three": three}, x, y, BALL)
    with pytest.raises(ValueError, match="'a' is one model among the sources and another among the targets"):
        transfer({"a": a}, {"a": Half(first=False)}, x, y, BALL)
    with pytest.raises(ValueError, match="model 'wide': x of shape"):
        transfer({"a": a}, {"wide": nn.Sequential(nn.Flatten(), nn.Linear(9, 2))}, x, y, BALL)
    with pytest.raises(ValueError, match=r"ensemble is True and sources are \['a'\], expected at least two"):
        transfer({"a": a}, {"a": a, "b": Half(first=False)}, x, y, BALL, ensemble=True)
    with pytest.raises(ValueError, match="y is None and x brings no labels"):
        transfer({"a": a}, {"a": a}, x, None, BALL)
    with pytest.raises(ValueError, match=r"target is 'z', expected one of 'a'"):
        transfer({"a": a}, {"a": a}, x, y, BALL).worst("z")


def test_a_matrix_is_kept_to_the_bit(x, y, tmp_path):
    models = {"a": Half(first=True), "b": Half(first=False)}
    result = transfer(models, models, x, y, BALL)
    again = gl.load(gl.save(result, tmp_path / "t.safetensors"))
    assert str(again) == str(result) and torch.equal(again.fooled, result.fooled)
    alone = transfer({"a": models["a"]}, {"a": models["a"]}, x, y, BALL)
    assert torch.tensor(alone.worst("a")).isnan() and str(alone).endswith("under the worst other source: a undefined")
