"""The adaptive grid against the full one, on surfaces that are known everywhere."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from gradlens.landscape.adaptive import Cell, fill

Function = Callable[[np.ndarray, np.ndarray], np.ndarray]
SMOOTH: dict[str, Function] = {
    "quadratic": lambda a, b: 3 * a**2 + b**2 - a * b,
    "bowl": lambda a, b: (a**2 + 2 * b**2) ** 2,
    "hinge": lambda a, b: np.log1p(np.exp(20 * (a + 0.3 * b))),
    "well": lambda a, b: 1 - np.exp(-(a**2 + b**2) / 0.1),
    "steep": lambda a, b: np.exp(5 * a + 3 * b),
    "cross-entropy": lambda a, b: np.log(np.exp(8 * a) + np.exp(-6 * b) + np.exp(5 * b - 3 * a)),
    "ripple": lambda a, b: np.cos(6 * a) * np.cos(6 * b),
    "cone": np.hypot,
}
ROUGH: dict[str, Function] = {
    "cliff": lambda a, b: np.tanh(30 * (a**2 + b**2 - 0.5)),
    "ripple in step with the grid": lambda a, b: np.cos(6 * np.pi * a) * np.cos(6 * np.pi * b),
    "noise": lambda a, b: np.random.default_rng(1).normal(size=a.shape),
}


def whole(*functions: Function, rows: int = 51, columns: int = 51) -> np.ndarray:
    axes = (np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in (rows, columns))
    a, b = np.meshgrid(*axes, indexing="ij")
    return np.stack([f(a, b) for f in functions])


def asked(values: np.ndarray) -> tuple[Callable[[Sequence[Cell]], np.ndarray], list[Cell]]:
    log: list[Cell] = []

    def ask(cells: Sequence[Cell]) -> np.ndarray:
        log.extend(cells)
        return np.array([values[:, r, c] for r, c in cells])

    return ask, log


@pytest.mark.parametrize("function", SMOOTH.values(), ids=SMOOTH)
def test_smooth_surfaces_are_within_one_percent_for_a_third_of_the_cells(function):
    truth = whole(function)
    ask, log = asked(truth)
    values, measured, bound = fill(ask, (51, 51), 0.01)
    assert len(log) == len(set(log)) == measured.sum() <= 51 * 51 / 3
    assert np.array_equal(values[:, measured], truth[:, measured])
    error, span = np.abs(values - truth).max(), np.ptp(truth)
    assert error <= bound[0] + 1e-12 * span
    assert bound[0] <= 0.01 * span


@pytest.mark.parametrize("function", ROUGH.values(), ids=ROUGH)
def test_rough_surfaces_cost_more_and_are_right(function):
    truth = whole(function)
    values, measured, bound = fill(asked(truth)[0], (51, 51), 0.01)
    assert measured.mean() > 0.5
    assert np.abs(values - truth).max() <= max(bound[0], 0.01 * np.ptp(truth))


def test_a_finer_tolerance_measures_more_and_errs_less():
    truth = whole(SMOOTH["steep"])
    runs = [fill(asked(truth)[0], (51, 51), tolerance) for tolerance in (0.05, 0.005)]
    (coarse, few, wide), (fine, many, narrow) = runs
    assert few.sum() < many.sum() and narrow[0] < wide[0]
    assert np.abs(fine - truth).max() < np.abs(coarse - truth).max()


def test_each_metric_has_its_own_range_and_bound():
    truth = whole(SMOOTH["steep"], lambda a, b: 1e-6 * SMOOTH["well"](a, b))
    values, _, bound = fill(asked(truth)[0], (51, 51), 0.01)
    for i in range(2):
        assert np.abs(values[i] - truth[i]).max() <= bound[i] <= 0.01 * np.ptp(truth[i])


def test_nan_stays_where_it_is():
    truth = whole(lambda a, b: np.where(a + b > 0.8, np.nan, a**2 + b**2))
    values, measured, _ = fill(asked(truth)[0], (51, 51), 0.01)
    assert np.array_equal(np.isnan(values), np.isnan(truth))
    assert np.nanmax(np.abs(values - truth)) < 1e-9
    assert 0.05 < measured.mean() < 0.5
    everywhere = np.full((1, 21, 21), np.nan)
    values, measured, _ = fill(asked(everywhere)[0], (21, 21), 0.01)
    assert measured.all() and np.isnan(values).all()


@pytest.mark.parametrize("shape", [(51, 1), (5, 3), (3, 3), (9, 31), (51, 3)])
def test_lines_and_small_or_narrow_grids(shape):
    truth = whole(SMOOTH["bowl"], rows=shape[0], columns=shape[1])
    values, measured, bound = fill(asked(truth)[0], shape, 0.01)
    assert np.abs(values - truth).max() <= bound[0] + 1e-12 <= 0.01 * np.ptp(truth) + 1e-12
    assert measured.shape == shape
    if shape == (51, 1):
        assert measured.sum() < 40


def test_a_flat_surface_is_measured_sparsely():
    values, measured, _ = fill(asked(whole(lambda a, b: 0 * a + 3.3))[0], (51, 51), 0.01)
    assert measured.mean() < 0.06
    np.testing.assert_allclose(values, 3.3, rtol=1e-9)
