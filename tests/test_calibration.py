"""Calibration and divergences, against slow versions and scipy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

import gradlens as gl
from tests.analytic import Answers


class Table(nn.Module):
    """Logits that are read out of the first pixel, which holds the row's number / 1000."""

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(probabilities.double().log())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[(x.flatten(1)[:, 0] * 1000).round().long()]


def entropy_of(probabilities: Tensor, y: Tensor | None = None) -> gl.Entropy:
    x = torch.arange(len(probabilities), dtype=torch.float64)[:, None] / 1000
    return gl.entropy(Table(probabilities), x, y)


def confident(levels: list[float]) -> Tensor:
    """Two-class rows whose first class has these probabilities."""
    p = torch.tensor(levels, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1)


@pytest.mark.parametrize("right", [0.0, 0.25, 0.7, 1.0])
def test_one_level_of_confidence_is_one_bin(right) -> None:
    y = torch.ones(100, dtype=torch.long)
    y[: round(100 * right)] = 0
    e = entropy_of(confident([0.7] * 100), y)
    for value in (e.ece, e.mce, e.adaptive_ece):
        assert value == pytest.approx(abs(right - 0.7))


def test_confidence_of_exactly_one_is_in_the_last_bin() -> None:
    rows = torch.tensor([[1.0, 0.0]] * 4 + [[0.6, 0.4]], dtype=torch.float64)
    rows[rows == 0] = 1e-300
    e = entropy_of(rows, torch.tensor([0, 0, 0, 1, 0]))
    assert (e.confidence[:4] == 1).all()
    bins = e.reliability()
    assert len(bins) == 15
    assert bins["samples"].tolist()[-1] == 4
    assert bins["accuracy"].tolist()[-1] == 0.75
    assert e.ece == pytest.approx(0.8 * 0.25 + 0.2 * 0.4)
    assert e.mce == pytest.approx(0.4)


def test_a_bins_upper_edge_belongs_to_it() -> None:
    e = entropy_of(confident([0.8, 0.8]), torch.tensor([0, 0]))
    assert e.reliability(bins=5)["samples"].tolist() == [0, 0, 0, 2, 0]


def test_adaptive_bins_do_not_depend_on_the_order_of_ties() -> None:
    levels, y = [0.6] * 20 + [1 - 1e-12] * 30, torch.cat([torch.zeros(25), torch.ones(25)]).long()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    a = entropy_of(confident(levels), y)
    b = entropy_of(confident(levels)[order], y[order])
    assert a.adaptive_ece == pytest.approx(b.adaptive_ece)
    assert a.adaptive_ece == pytest.approx(0.4 * abs(1 - 0.6) + 0.6 * abs(5 / 30 - 1))


def test_adaptive_bins_hold_equally_many() -> None:
    levels = torch.linspace(0.51, 0.99, 47).tolist()
    y = torch.randint(0, 2, (47,), generator=torch.Generator().manual_seed(0))
    e = entropy_of(confident(levels), y)
    bins = e.reliability(bins=5, adaptive=True)
    assert bins["samples"].sum() == 47
    assert bins["samples"].max() - bins["samples"].min() <= 1
    order = np.array_split(np.arange(47), [10, 19, 29, 38])
    slow = sum(len(part) / 47 * abs((y[part] == 0).double().mean() - np.mean(np.array(levels)[part])) for part in order)
    gaps = (bins["accuracy"] - bins["confidence"]).abs()
    assert np.average(gaps, weights=bins["samples"]) == pytest.approx(float(slow))


def test_js_and_kl_are_those_of_scipy(cnn, images) -> None:
    moved = (images + 0.04).clamp(0, 1)
    e = gl.entropy(cnn, images, None, moved)
    with torch.no_grad():
        p, q = (cnn(x).softmax(1).numpy() for x in (images, moved))
    assert e.js.numpy() == pytest.approx(jensenshannon(p, q, axis=1) ** 2)
    assert e.kl.numpy() == pytest.approx((p * np.log(p / q)).sum(1))


def test_js_of_certain_opposites_is_log_two() -> None:
    model = Answers(lambda x: torch.stack([x[:, 0] * 2000 - 1000, 1000 - x[:, 0] * 2000], 1))
    e = gl.entropy(model, torch.zeros(1, 1), None, torch.ones(1, 1))
    assert e.js.item() == pytest.approx(np.log(2))
    assert e.clean.item() == e.adversarial.item() == 0


def test_entropy_along_the_attack_is_the_traces(cnn, images) -> None:
    trace = gl.pgd(cnn, images, None, gl.Ball(0.1), steps=3)
    e = gl.entropy(cnn, images, None, trace, batch=4)
    assert torch.equal(e.along, trace.entropy)
    torch.testing.assert_close(e.along[0], e.clean)
    torch.testing.assert_close(e.along[-1], e.adversarial)


def test_without_labels_nothing_is_right_or_wrong() -> None:
    e = entropy_of(confident([0.7, 0.9]))
    assert e.correct is None
    assert np.isnan([e.ece, e.mce, e.adaptive_ece]).all()


def test_bins_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="bins is 0"):
        entropy_of(confident([0.7]), torch.tensor([0])).reliability(0)
