"""Attack losses against their formulas, worked out slowly in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gradlens import losses

ALL = (losses.cross_entropy, losses.margin, losses.dlr, losses.rescaled, losses.probability_margin)


@pytest.fixture
def logits(generator: torch.Generator) -> Tensor:
    return 3 * torch.randn(50, 5, generator=generator)


@pytest.fixture
def labels(generator: torch.Generator) -> Tensor:
    return torch.randint(5, (50,), generator=generator)


def gradient(loss, logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_(True)
    return torch.autograd.grad(loss(logits, labels).sum(), logits)[0]


def test_margin_is_positive_exactly_where_the_model_errs(logits, labels):
    margin = losses.margin(logits, labels)
    slow = [
        max(z for j, z in enumerate(row) if j != y) - row[y] for row, y in zip(logits.tolist(), labels, strict=True)
    ]
    torch.testing.assert_close(margin.double(), torch.tensor(slow, dtype=torch.float64))
    assert torch.equal(margin > 0, logits.argmax(1) != labels)
    assert 0 < (margin > 0).sum() < len(labels)


def test_cross_entropy_is_minus_log_softmax(logits, labels):
    slow = [
        math.log(sum(math.exp(z) for z in row)) - row[y]
        for row, y in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    torch.testing.assert_close(losses.cross_entropy(logits.double(), labels), torch.tensor(slow, dtype=torch.float64))
    torch.testing.assert_close(losses.cross_entropy(logits, labels), torch.tensor(slow))


def test_dlr_is_the_difference_of_logits_ratio(logits, labels):
    slow = []
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        ordered = sorted(row, reverse=True)
        slow.append((max(z for j, z in enumerate(row) if j != y) - row[y]) / (ordered[0] - ordered[2]))
    torch.testing.assert_close(losses.dlr(logits, labels).double(), torch.tensor(slow).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 1e3])
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_dlr_does_not_change_when_logits_are_shifted_and_scaled(scale, shift, logits, labels):
    moved = losses.dlr(scale * (logits.double() + shift), labels)
    torch.testing.assert_close(moved, losses.dlr(logits.double(), labels))


@pytest.mark.parametrize("classes", [2, 3])
def test_dlr_needs_four_classes(classes):
    with pytest.raises(ValueError, match=rf"dlr needs at least 4 classes, the model has {classes}.*losses\.margin"):
        losses.dlr(torch.zeros(1, classes), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_targeted_dlr_is_the_targets_lead_over_the_spread(scale, logits, labels):
    targets = (labels + 1) % 5
    slow = []
    for row, y, t in zip(logits.tolist(), labels.tolist(), targets.tolist(), strict=True):
        ordered = sorted(row, reverse=True)
        slow.append((row[t] - row[y]) / (ordered[0] - (ordered[2] + ordered[3]) / 2))
    found = losses.targeted_dlr(scale * (logits.double() + 7), labels, targets)
    torch.testing.assert_close(found, torch.tensor(slow).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_targeted_dlr_needs_four_classes(classes):
    label = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=rf"targeted_dlr needs at least 4 classes, the model has {classes}"):
        losses.targeted_dlr(torch.zeros(1, classes), label, label + 1)


def softmax_margin(logits: Tensor, labels: Tensor) -> Tensor:
    p = logits.softmax(1)
    return p.scatter(1, labels[:, None], -1).amax(1) - p.gather(1, labels[:, None])[:, 0]


def test_probability_margin_is_the_log_of_one_more_and_climbs_the_same_way(logits, labels):
    exact = logits.double()
    found = losses.probability_margin(exact, labels)
    torch.testing.assert_close(found.exp() - 1, softmax_margin(exact, labels))
    assert torch.equal(found > 0, exact.argmax(1) != labels)
    ways = [gradient(f, exact, labels) for f in (losses.probability_margin, softmax_margin)]
    torch.testing.assert_close(*(way / way.norm(dim=1, keepdim=True) for way in ways))


@pytest.mark.parametrize("scale", [10.0, 1e3])
def test_probability_margin_keeps_its_direction_in_float32_where_the_softmax_has_lost_it(scale):
    """Gaps of 10 and of 1,000 logits, against the gradient on paper."""
    logits, labels = scale * torch.tensor([[1.0, 0.0, -0.05, -0.5]]), torch.tensor([0])
    # p_y is 1 to many digits: the gradient of log(1 + p_j - p_y) is that of log(2 p_1 + p_2 + p_3)
    weights = torch.tensor([2.0, 1.0, 1.0]).double() * (logits[0, 1:].double() - logits[0, 1].double()).exp()
    expected = torch.cat([torch.tensor([-1.0]).double(), weights / weights.sum()])
    found = gradient(losses.probability_margin, logits, labels)[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    if scale == 1e3:
        assert gradient(softmax_margin, logits, labels).eq(0).all()


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e3])
def test_rescaled_is_the_cross_entropy_of_logits_whose_gap_is_one(scale, logits, labels):
    logits = scale * logits.double()
    top = logits.sort(dim=1, descending=True).values
    slow = F.cross_entropy(logits / (top[:, :1] - top[:, 1:2]), labels, reduction="none")
    torch.testing.assert_close(losses.rescaled(logits, labels), slow)
    tenfold = F.cross_entropy(10 * logits / (top[:, :1] - top[:, 1:2]), labels, reduction="none")
    torch.testing.assert_close(losses.rescaled(logits, labels, t=10.0), tenfold)


def test_rescaled_keeps_a_gradient_where_cross_entropy_has_lost_its_own():
    """At logits (1000, 0, -500) float32 cannot tell the softmax from (1, 0, 0)."""
    logits, labels = torch.tensor([[1000.0, 0.0, -500.0]]), torch.tensor([0])
    assert (gradient(losses.cross_entropy, logits, labels) == 0).all()
    # by hand: softmax of (1, 0, -0.5) minus the one-hot label, over the gap of 1000
    weights = [math.exp(1), 1.0, math.exp(-0.5)]
    p = torch.tensor([w / sum(weights) for w in weights])
    expected = (p - torch.tensor([1.0, 0, 0]))[None] / 1000
    torch.testing.assert_close(gradient(losses.rescaled, logits, labels), expected)


def test_rescaled_leaves_logits_without_a_gap_alone():
    logits, labels = torch.tensor([[2.0, 2.0, -1.0]]), torch.tensor([2])
    assert torch.equal(losses.rescaled(logits, labels), losses.cross_entropy(logits, labels))


@pytest.mark.parametrize("loss", ALL)
def test_samples_do_not_mix(loss, logits, labels):
    """The gradient of one sample's loss is the same alone as in the batch, and a batch is its samples."""
    alone = torch.cat([loss(z[None], y[None]) for z, y in zip(logits, labels, strict=True)])
    torch.testing.assert_close(loss(logits, labels), alone)
    parts = torch.cat([gradient(loss, z[None], y[None]) for z, y in zip(logits, labels, strict=True)])
    torch.testing.assert_close(gradient(loss, logits, labels), parts)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr, losses.probability_margin])
def test_raising_a_wrong_logit_past_the_true_one_raises_every_loss(loss):
    labels = torch.tensor([0])
    values = [loss(torch.tensor([[1.0, z, -3.0, -4.0]]), labels).item() for z in (-1.0, 0.0, 2.0)]
    assert values == sorted(values)
    assert len(set(values)) == 3
