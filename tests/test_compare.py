"""Paired statistics against scipy, by hand, and on worlds whose truth is known."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from gradlens.compare import compare
from gradlens.intervals import wilson


def result(values) -> SimpleNamespace:
    return SimpleNamespace(metric=torch.as_tensor(np.asarray(values, dtype=float)))


RNG = np.random.default_rng(0)
BASE = RNG.normal(size=60)


def test_differences_medians_and_tests_are_those_of_scipy() -> None:
    a, b = BASE, BASE + RNG.normal(0.3, 0.5, 60)
    (row,) = compare({"A": result(a), "B": result(b)}, "metric").to_dict("records")
    assert row["samples"] == 60
    assert row["median_a"] == np.median(a) and row["difference"] == np.median(a - b)
    assert row["p_wilcoxon"] == stats.wilcoxon(a, b).pvalue
    assert row["p_sign"] == stats.binomtest(int((a > b).sum()), 60).pvalue
    signed = np.sign(a - b) * stats.rankdata(abs(a - b))
    assert row["effect"] == pytest.approx(signed.sum() / abs(signed).sum())
    assert row["difference_low"] < np.median(a - b) < row["difference_high"] < 0


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        a = rng.normal(size=40)
        b = a - rng.normal(0.5, 1, 40)
        (row,) = compare({"A": result(a), "B": result(b)}, "metric", resamples=300, seed=trial).to_dict("records")
        covered += row["difference_low"] <= 0.5 <= row["difference_high"]
    # a percentile bootstrap of a median of 40 is somewhat conservative; far outside this it would be broken
    assert stats.binomtest(covered, 200, 0.95).pvalue > 1e-3 or covered / 200 > 0.95


def test_holm_adjusts_over_the_pairs() -> None:
    models = {name: result(BASE + shift + RNG.normal(0, 0.4, 60)) for name, shift in (("A", 0), ("B", 0.1), ("C", 0.2))}
    raw = [stats.wilcoxon(models[a].metric, models[b].metric).pvalue for a, b in itertools.combinations("ABC", 2)]
    order = np.argsort(raw)
    expected, running = np.zeros(3), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (3 - rank) * raw[index]))
        expected[index] = running
    assert compare(models, "metric")["p_wilcoxon"].to_numpy() == pytest.approx(expected)


def test_undefined_samples_leave_in_pairs() -> None:
    a, b = BASE.copy(), BASE + 1
    a[3], b[5] = np.nan, np.nan
    (row,) = compare({"A": result(a), "B": result(b)}, "metric").to_dict("records")
    assert row["samples"] == 58 and row["difference"] == pytest.approx(-1)


def test_equal_models_do_not_differ() -> None:
    (row,) = compare({"A": result(BASE), "B": result(BASE)}, "metric").to_dict("records")
    assert row["difference"] == 0 and row["p_wilcoxon"] == row["p_sign"] == 1 and row["effect"] == 0


def test_the_seed_is_the_unit_over_seeds() -> None:
    a = [result(BASE + s) for s in (0.0, 0.2, 0.1)]
    b = [result(BASE + s) for s in (1.0, 1.3, 0.9)]
    (row,) = compare({"A": a, "B": b}, "metric", pair="seed").to_dict("records")
    first, second = ([np.median(r.metric) for r in part] for part in (a, b))
    test = stats.ttest_ind(first, second, equal_var=False)
    assert row["p_welch"] == pytest.approx(test.pvalue)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert row["effect"] == -1 and row["seeds_a"] == 3


def test_many_samples_do_not_stand_in_for_seeds() -> None:
    """Two seeds that differ by chance: 10,000 samples a seed must not make that a finding."""
    a = [result(np.full(10_000, s)) for s in (0.0, 1.0)]
    b = [result(np.full(10_000, s)) for s in (0.4, 1.1)]
    (row,) = compare({"A": a, "B": b}, "metric", pair="seed").to_dict("records")
    assert row["difference_low"] < 0 < row["difference_high"]


def test_one_seed_has_no_interval() -> None:
    (row,) = compare({"A": result(BASE), "B": result(BASE + 1)}, "metric", pair="seed").to_dict("records")
    assert np.isnan(row["difference_low"]) and np.isnan(row["p_welch"]) and row["difference"] == pytest.approx(-1)


def test_a_metric_may_be_a_function() -> None:
    pair = {"A": SimpleNamespace(grid=torch.zeros(2, 5)), "B": SimpleNamespace(grid=torch.ones(2, 5))}
    (row,) = compare(pair, lambda r: r.grid[1]).to_dict("records")
    assert row["difference"] == -1


@pytest.mark.parametrize(
    ("results", "options", "message"),
    [
        ({"A": result(BASE)}, {}, "results holds 1"),
        ({"A": result(BASE), "B": result(BASE[:5])}, {}, "different numbers of samples"),
        ({"A": result(BASE), "B": result(BASE)}, {"metric": "nothing"}, "metric is 'nothing'"),
        ({"A": result(BASE), "B": result(BASE)}, {"pair": "image"}, "pair is 'image'"),
        ({"A": result(BASE[:, None]), "B": result(BASE[:, None])}, {}, "expected one value a sample"),
        ({"A": [], "B": result(BASE)}, {}, "empty list"),
        ({"A": result(BASE), "B": result(BASE)}, {"level": 95.0}, "level is 95"),
    ],
)
def test_bad_input_is_named(results, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        compare(results, **{"metric": "metric", **options})


@pytest.mark.parametrize(("count", "samples"), [(0, 10), (7, 10), (10, 10), (353, 360)])
def test_wilson_is_the_formula(count, samples) -> None:
    z = stats.norm.ppf(0.975)
    p = count / samples
    centre = (p + z**2 / (2 * samples)) / (1 + z**2 / samples)
    half = z / (1 + z**2 / samples) * np.sqrt(p * (1 - p) / samples + z**2 / (4 * samples**2))
    assert wilson(count, samples) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)


@pytest.mark.parametrize(("count", "samples"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(count, samples) -> None:
    with pytest.raises(ValueError, match=f"count is {count}"):
        wilson(count, samples)
