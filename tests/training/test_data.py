"""The digits and their parts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from gradlens import Ball
from training import data
from training.data import Split, batches, subset


@pytest.fixture(scope="module")
def digits() -> data.Data:
    return data.load("digits")


def test_the_three_parts_are_scikit_learns_digits_and_share_none(digits):
    """As a multiset of (image, label): each of the 1,797 appears in exactly one part."""
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1293, 144, 360]
    rows = sorted(
        (tuple((16 * x).flatten().tolist()), int(y)) for part in parts for x, y in zip(part.x, part.y, strict=True)
    )
    whole = load_digits()
    assert rows == sorted(zip(map(tuple, whole.data.tolist()), whole.target.tolist(), strict=True))
    assert len(set(rows)) == len(rows)  # no image is there twice: so none is shared


def test_pixels_are_in_the_box_and_labels_are_class_numbers(digits):
    for part in (digits.train, digits.validation, digits.test):
        assert part.x.shape[1:] == (1, 8, 8) == digits.shape
        assert part.x.min() == 0
        assert part.x.max() == 1
        assert part.y.unique().tolist() == list(range(digits.classes))


def test_every_part_has_the_classes_in_the_same_shares(digits):
    whole = torch.bincount(torch.cat([digits.train.y, digits.validation.y, digits.test.y]))
    for part in (digits.train, digits.validation, digits.test):
        expected = whole * len(part) / 1797
        assert (torch.bincount(part.y) - expected).abs().max() <= 1.5


def test_mean_and_deviation_are_those_of_the_training_part(digits):
    pixels = digits.train.x.double().numpy()
    assert digits.mean == pytest.approx([pixels.mean()], rel=1e-5)
    assert digits.std == pytest.approx([np.std(pixels, ddof=1)], rel=1e-5)


def test_another_eps_keeps_the_rest_of_the_ball_and_none_keeps_the_customary_one(digits):
    other = replace(digits, ball=Ball(2.0, "l2", low=-1.0))
    assert other.ball_of(0.5) == Ball(0.5, "l2", low=-1.0)
    assert other.ball_of(0.0) == other.ball
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="eps"):
            digits.ball_of(bad)


def test_a_subset_is_the_same_for_the_same_seed_and_draws_no_image_twice(digits):
    first, again, other = (subset(digits.test, 50, seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert len({x.numpy().tobytes() for x in first[0]}) == 50
    known = {(x.numpy().tobytes(), int(y)) for x, y in zip(digits.test.x, digits.test.y, strict=True)}
    assert all((x.numpy().tobytes(), int(y)) in known for x, y in zip(*first, strict=True))
    assert len(subset(digits.test, 1000, 0)[1]) == 360


@pytest.mark.parametrize(("samples", "left_out"), [(10, 0), (12, 0), (13, 1)])
def test_an_epoch_visits_every_image_once_but_for_a_batch_of_one(samples, left_out, generator):
    split = Split(torch.rand(samples, 1, 2, 2), torch.zeros(samples, dtype=torch.long))
    parts = batches(split, 4, generator)
    visited = torch.cat(parts).tolist()
    assert len(set(visited)) == len(visited) == samples - left_out
    assert max(map(len, parts)) == 4
    assert torch.cat(batches(split, 4, generator)).tolist() != visited


def test_an_unknown_data_set_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"dataset is 'digist', expected one of digits.*did you mean 'digits'\?"):
        data.load("digist")
