"""How sure is a share?"""


def wilson(count: int, samples: int, level: float = 0.95) -> tuple[float, float]:
    """Interval for a share, such as a robust accuracy, of which `count` of `samples` were seen (Wilson 1927).

    It says how the share may vary over samples, not over training seeds.
    """
    from scipy.stats import binomtest

    if not 0 <= count <= samples or samples < 1:
        raise ValueError(f"count is {count} of {samples} samples, expected 0 <= count <= samples, samples >= 1")
    ends = binomtest(count, samples).proportion_ci(level, method="wilson")
    return float(ends.low), float(ends.high)
