"""How sure is a number, and do two models differ? Paired over samples, or over training seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .door import check_choice, check_count, is_number

if TYPE_CHECKING:
    from pandas import DataFrame

Metric = str | Callable[[Any], Any]


def compare(
    results: Mapping[str, Any],
    metric: Metric,
    *,
    pair: str = "sample",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> DataFrame:
    """Every two models compared in one metric, a row a pair.

    `results` maps a model's name to its result, or to a list of results, one a training seed. `metric` is the name of
    a per-sample field or a function of a result that gives one value a sample. nan is left out, pair by pair.

    pair="sample": the same samples under each model (with several seeds, each sample's mean over seeds). Medians and
    the median difference a - b with percentile-bootstrap intervals over samples, Wilcoxon's signed-rank and the sign
    test, both Holm-adjusted over the pairs, and the matched-pairs rank-biserial correlation as effect size in [-1, 1].

    pair="seed": the unit is a training seed. Each seed gives one number, the median over its samples; the difference
    of their means has Welch's t interval and test, the effect size is Cliff's delta. With one seed, the interval is
    nan: a single training run says nothing about another.

    Raises ValueError for fewer than two models, different numbers of samples, an unknown metric or pair.
    """
    if not isinstance(results, Mapping):
        raise ValueError(f"results is a {type(results).__name__}, expected a dict of results by the model's name")
    if not isinstance(metric, str) and not callable(metric):
        raise ValueError(f"metric is {metric!r:.80}, expected the name of a field or a function of a result")
    if len(results) < 2:
        raise ValueError(f"results holds {len(results)} model(s), expected at least two to compare")
    check_choice("pair", pair, ("sample", "seed"))
    if not (is_number(level) and 0 < level < 1):
        raise ValueError(f"level is {level!r:.80}, expected a share between 0 and 1")
    check_count("resamples", resamples, 100)
    check_count("seed", seed, 0)
    values = {name: [values_of(result, metric) for result in _several(given)] for name, given in results.items()}
    sizes = {name: {len(v) for v in seeds} for name, seeds in values.items()}
    if pair == "sample" and len(set().union(*sizes.values())) > 1:
        raise ValueError(f"results have different numbers of samples ({sizes}), expected the same samples in each")
    rows = []
    for a, b in itertools.combinations(values, 2):
        rng = np.random.default_rng(seed)
        row = (
            _by_sample(values[a], values[b], level, resamples, rng)
            if pair == "sample"
            else _by_seed(values[a], values[b], level)
        )
        rows.append({"a": a, "b": b, **row})
    return _holm(rows)


def _by_sample(
    a: list[np.ndarray], b: list[np.ndarray], level: float, resamples: int, rng: np.random.Generator
) -> dict[str, Any]:
    from scipy.stats import binomtest, rankdata, wilcoxon

    first, second = np.mean(a, axis=0), np.mean(b, axis=0)
    kept = np.isfinite(first) & np.isfinite(second)
    first, second = first[kept], second[kept]
    n = len(first)
    row: dict[str, Any] = {"samples": n}
    picks = rng.integers(0, n, (resamples, n)) if n else np.zeros((0, 0), int)
    tails = [(1 - level) / 2, (1 + level) / 2]
    for name, part in (("a", first), ("b", second), ("difference", first - second)):
        low, high = np.quantile(np.median(part[picks], axis=1), tails) if n > 1 else (np.nan, np.nan)
        centre = float(np.median(part)) if n else np.nan
        row |= {name if name == "difference" else f"median_{name}": centre, f"{name}_low": low, f"{name}_high": high}
    moved = (first - second)[first != second]
    if not len(moved):  # no sample differs: nothing speaks against equality
        return row | {
            "p_wilcoxon": 1.0 if n else np.nan,
            "p_sign": 1.0 if n else np.nan,
            "effect": 0.0 if n else np.nan,
        }
    ranks = rankdata(np.abs(moved))
    return row | {
        "p_wilcoxon": float(wilcoxon(moved).pvalue),
        "p_sign": float(binomtest(int((moved > 0).sum()), len(moved)).pvalue),
        "effect": float((ranks[moved > 0].sum() - ranks[moved < 0].sum()) / ranks.sum()),
    }


def _by_seed(a: list[np.ndarray], b: list[np.ndarray], level: float) -> dict[str, Any]:
    from scipy.stats import ttest_ind

    first, second = (np.array([np.nanmedian(v) for v in seeds]) for seeds in (a, b))
    row = {
        "seeds_a": len(first), "seeds_b": len(second), "mean_a": first.mean(), "mean_b": second.mean(),
        "difference": first.mean() - second.mean(), "difference_low": np.nan, "difference_high": np.nan,
        "p_welch": np.nan, "effect": float(np.sign(first[:, None] - second).mean()),
    }  # fmt: skip
    if min(len(first), len(second)) > 1 and (np.ptp(first) > 0 or np.ptp(second) > 0):
        test = ttest_ind(first, second, equal_var=False)
        low, high = test.confidence_interval(level)
        row |= {"difference_low": low, "difference_high": high, "p_welch": float(test.pvalue)}
    return row


def _holm(rows: list[dict[str, Any]]) -> DataFrame:
    """Every column of p values, adjusted for the number of pairs (Holm 1979)."""
    import pandas as pd

    table = pd.DataFrame(rows)
    for column in [name for name in map(str, table) if name.startswith("p_")]:
        p = table[column].to_numpy(float)
        order = np.argsort(p)  # nan goes last
        tested = np.isfinite(p).sum()
        adjusted = np.full(len(p), np.nan)
        factors = tested - np.arange(tested)
        adjusted[order[:tested]] = np.minimum(1, np.maximum.accumulate(p[order[:tested]] * factors))
        table[column] = adjusted
    return table


def _several(given: Any) -> Sequence[Any]:
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise ValueError("results holds an empty list of seeds, expected at least one result a model")
    return several


def values_of(result: Any, metric: Metric) -> np.ndarray:
    """A metric of a result, as float64, one value a sample; raises ValueError where it has none."""
    if isinstance(metric, str):
        if not hasattr(result, metric):
            raise ValueError(f"metric is {metric!r}, which a {type(result).__name__} does not have")
        found = getattr(result, metric)
    else:
        found = metric(result)
    try:
        array = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metric {metric!r:.80} gives a {type(found).__name__}, expected a value a sample") from error
    if array.ndim != 1:
        raise ValueError(f"metric {metric!r} has shape {array.shape}, expected one value a sample; "
                         "give a function, such as lambda r: r.local_cosine[0]")  # fmt: skip
    return array
