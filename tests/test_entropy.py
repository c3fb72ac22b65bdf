"""Predictive entropy against scipy, calibration error against its definition."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from gradlens import Ball, Entropy, entropy, pgd
from gradlens.entropy import BINS
from tests.analytic import Answers, Constant

BOX = torch.full((1, 1, 1, 1), 0.5)


class Table(nn.Module):
    """Logits by heart: row i for the image whose only pixel says i / 1000."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows[(x.flatten(1)[:, 0] * 1000).round().long()]


def numbered(start: int, stop: int) -> Tensor:
    return (torch.arange(start, stop).double() / 1000).view(-1, 1, 1, 1)


@pytest.fixture
def logits(generator: torch.Generator) -> Tensor:
    return 3 * torch.randn(60, 5, generator=generator, dtype=torch.float64)


def test_entropies_and_divergence_are_scipys(logits):
    p = logits.softmax(1).numpy()
    result = entropy(Table(logits), numbered(0, 30), None, numbered(30, 60))
    np.testing.assert_allclose(result.clean, [scipy.stats.entropy(row) for row in p[:30]], rtol=1e-9)
    np.testing.assert_allclose(result.adversarial, [scipy.stats.entropy(row) for row in p[30:]], rtol=1e-9)
    np.testing.assert_allclose(
        result.kl, [scipy.stats.entropy(a, b) for a, b in zip(p[:30], p[30:], strict=True)], rtol=1e-9
    )
    np.testing.assert_allclose(result.confidence, p[:30].max(1))
    np.testing.assert_allclose(result.confidence_adversarial, p[30:].max(1))
    assert result.correct is None
    assert np.isnan(result.ece)


@pytest.mark.parametrize("classes", [2, 10])
def test_entropy_spans_zero_to_log_classes(classes):
    sure = [1e4] + [0.0] * (classes - 1)
    assert entropy(Constant(sure), BOX).clean.item() == 0
    assert entropy(Constant([0.0] * classes), BOX).clean.item() == pytest.approx(np.log(classes))


def test_right_and_wrong_are_told_apart_on_both_inputs(logits):
    y = logits[:30].argmax(1)
    y[:7] = (y[:7] + 1) % 5
    result = entropy(Table(logits), numbered(0, 30), y, numbered(30, 60))
    assert result.correct is not None
    assert result.correct_adversarial is not None
    assert result.correct.tolist() == [False] * 7 + [True] * 23
    assert result.correct_adversarial.tolist() == (logits[30:].argmax(1) == y).tolist()


def test_a_trace_stands_for_its_last_points(cnn, images):
    trace = pgd(cnn, images, None, Ball(0.2), steps=3)
    by_trace = entropy(cnn, images, trace.labels, trace)
    by_images = entropy(cnn, images, trace.labels, trace.adversarial)
    assert torch.equal(by_trace.adversarial, by_images.adversarial)
    torch.testing.assert_close(by_trace.adversarial, trace.entropy[-1])
    torch.testing.assert_close(by_trace.clean, trace.entropy[0])


def slow_ece(confidence: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """sum over bins (low, high] of n_b / n |accuracy_b - confidence_b|, exactly as Guo et al. 2017 write it."""
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean)
    return total


def test_calibration_error_is_the_slow_sum_over_bins(logits, generator):
    y = torch.randint(5, (60,), generator=generator)
    result = entropy(Table(logits), numbered(0, 60), y)
    correct = (logits.argmax(1) == y).numpy()
    assert result.ece == pytest.approx(slow_ece(result.confidence.numpy(), correct, BINS))
    assert result.ece > 0.1


def replaced(result: Entropy, confidence: list[float], correct: list[bool]) -> Entropy:
    values = torch.tensor(confidence)
    return Entropy(
        clean=values,
        adversarial=values,
        along=None,
        kl=values,
        js=values,
        confidence=values,
        confidence_adversarial=values,
        correct=torch.tensor(correct),
        correct_adversarial=None,
        made=result.made,
    )


def test_confidence_of_exactly_one_counts_in_the_last_bin():
    """By hand: two sure samples, one of them wrong: gap 0.5; one at 0.5, right: gap 0.5. ece = 0.5."""
    result = replaced(entropy(Constant([0.0, 1.0]), BOX), [1.0, 1.0, 0.5], [True, False, True])
    bins = result.reliability()
    assert bins["samples"].tolist() == [0] * 7 + [1] + [0] * 6 + [2]
    assert bins["accuracy"].iloc[-1] == 0.5
    assert bins["confidence"].iloc[-1] == 1.0
    assert bins["accuracy"].isna().sum() == BINS - 2
    assert result.ece == pytest.approx(0.5)


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one():
    result = replaced(entropy(Constant([0.0, 1.0]), BOX), [0.5, 0.75, 0.8, 1.0], [True] * 4)
    assert result.reliability(bins=4)["samples"].tolist() == [0, 1, 1, 2]


def test_calibration_error_is_zero_where_confidence_is_accuracy():
    """Four of five right at 0.8, three of four right at 0.75."""
    confidence, correct = [0.8] * 5 + [0.75] * 4, [True] * 4 + [False] + [True] * 3 + [False]
    assert replaced(entropy(Constant([0.0, 1.0]), BOX), confidence, correct).ece == pytest.approx(0, abs=1e-7)


def test_reliability_bins_cover_zero_to_one_and_every_sample(logits):
    result = entropy(Table(logits), numbered(0, 60), logits.argmax(1))
    bins = result.reliability(bins=4)
    assert bins["low"].tolist() == [0, 0.25, 0.5, 0.75]
    assert bins["high"].tolist() == [0.25, 0.5, 0.75, 1]
    assert bins["samples"].sum() == 60
    assert bins["accuracy"].dropna().eq(1).all()


@pytest.mark.parametrize("is_attacked", [True, False])
def test_frame_has_a_row_a_sample_and_input(is_attacked, logits):
    y = logits[:30].argmax(1)
    result = entropy(Table(logits), numbered(0, 30), y, numbered(30, 60) if is_attacked else None)
    table = result.frame()
    assert table["input"].tolist() == ["clean"] * 30 + (["attacked"] * 30 if is_attacked else [])
    np.testing.assert_array_equal(table["entropy"][:30], result.clean)
    assert table["correct"][:30].all()
    if is_attacked:
        np.testing.assert_array_equal(table["entropy"][30:], result.adversarial)
        assert f"attacked {result.adversarial.mean():.3g}" in str(result)
    else:
        assert result.adversarial.isnan().all()
        assert result.kl.isnan().all()


@pytest.mark.parametrize(
    ("attacked", "message"),
    [
        (torch.rand(5, 2, 5, 5), r"adversarial has shape \(5, 2, 5, 5\), expected x's shape \(6, 2, 5, 5\)"),
        (torch.full((6, 2, 5, 5), 1.5), r"adversarial spans \[1.5, 1.5\], outside the pixel box"),
        (torch.full((6, 2, 5, 5), torch.nan), "adversarial holds NaN or infinity in 6 of 6 samples"),
        (torch.zeros(6, 2, 5, 5).int(), "adversarial holds torch.int32, expected floating-point pixels"),
    ],
)
def test_attacked_images_that_do_not_fit_are_refused_by_their_own_name(attacked, message, cnn, images):
    with pytest.raises(ValueError, match=message):
        entropy(cnn, images, None, attacked)


def test_a_model_that_breaks_down_on_the_attacked_images_is_refused():
    model = Answers(lambda x: torch.where(x > 0.5, torch.nan, x).flatten(1))
    with pytest.raises(ValueError, match="model returns NaN"):
        entropy(model, torch.full((2, 3), 0.2), None, torch.full((2, 3), 0.7))
