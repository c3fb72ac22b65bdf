"""Windows of pixels, one a sample, each at a place of its own."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...types import Labels


class Size(NamedTuple):
    """Of a window; `is_edged` lets it lie along the last row and column."""

    height: int
    width: int
    is_edged: bool = True


def corners(numbers: Tensor, size: Size, x: Tensor) -> tuple[Labels, Labels]:
    """First row and column of each sample's window, from two uniform numbers a sample."""
    room = zip(numbers.T, x.shape[-2:], size[:2], strict=True)
    top, left = ((number * (long - side + size.is_edged)).long().clamp(max=long - side) for number, long, side in room)
    return top, left


def inside(numbers: Tensor, size: Size, x: Tensor) -> Tensor:
    """(n, 1, height, width): which pixels lie in each sample's window."""
    spans = []
    for first, side, long in zip(corners(numbers, size, x), size[:2], x.shape[-2:], strict=True):
        place = torch.arange(long, device=x.device)
        spans.append((place >= first[:, None]) & (place < first[:, None] + side))
    return (spans[0][:, :, None] & spans[1][:, None, :])[:, None]


def cells(numbers: Tensor, size: Size, x: Tensor) -> tuple[Tensor, ...]:
    """Indices of the pixels of each sample's window, which take (n, channels, height, width) out of `x`."""
    n, c = x.shape[:2]
    top, left = corners(numbers, size, x)
    rows = top[:, None] + torch.arange(size.height, device=x.device)
    columns = left[:, None] + torch.arange(size.width, device=x.device)
    sample, channel = torch.arange(n, device=x.device), torch.arange(c, device=x.device)
    return (
        sample[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None, :],
    )  # fmt: skip


def signs(numbers: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) as -1 and 1."""
    return torch.where(numbers < 0.5, -1.0, 1.0).to(numbers)
