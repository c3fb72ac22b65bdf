"""The Wilson interval against its formula."""

import pytest
from scipy.stats import norm

from gradlens.compare import wilson


@pytest.mark.parametrize(("count", "samples"), [(0, 10), (10, 10), (3, 7), (180, 360), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_wilsons(count, samples, level):
    z, p, n = norm.ppf((1 + level) / 2), count / samples, samples
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert wilson(count, samples, level) == pytest.approx((centre - half, centre + half), abs=1e-12)


@pytest.mark.parametrize(("count", "samples"), [(-1, 10), (11, 10), (0, 0)])
def test_a_count_that_is_no_share_is_refused(count, samples):
    with pytest.raises(ValueError, match=f"count is {count} of {samples} samples, expected"):
        wilson(count, samples)
