"""Mean and standard deviation of a channel, exactly, from how often each level occurs."""

import math

import numpy as np
from torch import Tensor

LEVELS = 256
CHUNK = 1 << 24  # pixels that are counted at a time

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel


def histogram(images: np.ndarray) -> np.ndarray:
    """How often each channel has each level: uint8 (N, channels, height, width) -> (channels, 256)."""
    return np.stack([np.bincount(images[:, c].ravel(), minlength=LEVELS) for c in range(images.shape[1])])


def from_counts(counts: np.ndarray, scale: int) -> Moments:
    """Mean and standard deviation (dividing by n - 1) of levels / scale; the sums are taken in whole numbers."""
    levels = range(LEVELS)
    mean, std = [], []
    for row in counts.tolist():
        n = sum(row)
        first = sum(level * count for level, count in zip(levels, row, strict=True))
        second = sum(level**2 * count for level, count in zip(levels, row, strict=True))
        mean.append(first / n / scale)
        std.append(math.sqrt((n * second - first**2) / (n * (n - 1))) / scale)
    return tuple(mean), tuple(std)


def of(images: Tensor | np.ndarray, scale: int) -> Moments:
    """Mean and standard deviation of each channel of a set, of which little is in memory at a time."""
    if isinstance(images, Tensor) and images.is_floating_point():
        pixels = images.double()
        return tuple(pixels.mean((0, 2, 3)).tolist()), tuple(pixels.std((0, 2, 3)).tolist())
    rows = max(1, CHUNK // math.prod(images.shape[1:]))
    counts = np.zeros((images.shape[1], LEVELS), np.int64)
    for start in range(0, len(images), rows):
        part = images[start : start + rows]
        counts += histogram(part.cpu().numpy() if isinstance(part, Tensor) else part)
    return from_counts(counts, scale)
