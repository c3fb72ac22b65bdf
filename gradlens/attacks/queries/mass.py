"""Moves of the Square attack under L2: the length of a perturbation is shifted from window to window."""

import math
from functools import cache

import torch
from torch import Tensor

from ...ball import Ball, unit
from .windows import Size, cells, inside, signs


def tiles(x: Tensor, numbers: Tensor, ball: Ball) -> Tensor:
    """The start: about five by five tiles, each a hill beside a hollow, on the ball's surface."""
    n, c, h, w = x.shape
    size = Size(max(1, h // 5), max(1, w // 5))
    delta, hills = torch.zeros_like(x), _hills(size.height, size.width).to(x)
    places = tile_places(h, w)
    numbers = numbers.view(n, len(places), c + 1)
    for k, (i, j) in enumerate(places):
        shape = hills[(numbers[:, k, 0] > 0.5).long()][:, None]
        delta[:, :, i : i + size.height, j : j + size.width] = shape * signs(numbers[:, k, 1:])[:, :, None, None]
    return (x + ball.eps * unit(delta)).clamp(ball.low, ball.high)


def tile_places(h: int, w: int) -> list[tuple[int, int]]:
    """First row and column of each tile."""
    rows, columns = (
        range(max(0, long - 5 * side) // 2, long - side + 1, side) for long in (h, w) for side in [max(1, long // 5)]
    )
    return [(i, j) for i in rows for j in columns]


def shift(best: Tensor, x: Tensor, numbers: Tensor, size: Size, ball: Ball) -> Tensor:
    """What one window holds goes to another, which gets a new hill or hollow on top of what it holds.

    `numbers`: a place for each of the two windows, which way the hill lies, a sign for each channel.
    """
    delta = best - x
    to, off = inside(numbers[:, :2], size, x), inside(numbers[:, 2:4], size, x)
    where = cells(numbers[:, :2], size, x)
    held = _length(delta * (to | off))
    spare = (ball.eps**2 - delta.flatten(1).square().sum(1)).clamp(min=0)[:, None, None, None]
    hill = (
        _hills(size.height, size.width).to(x)[(numbers[:, 4] > 0.5).long()][:, None]
        * signs(numbers[:, 5:])[:, :, None, None]
    )
    new = _scaled(hill + _scaled(delta[where])) * (spare / x.shape[1] + held.square()).sqrt()
    delta = delta.masked_fill(off, 0.0)
    delta[where] = new
    return (x + ball.eps * unit(delta).nan_to_num(0.0)).clamp(ball.low, ball.high)


def turn(best: Tensor, x: Tensor, numbers: Tensor, ball: Ball) -> Tensor:
    """The perturbation turned in the plane of two pixels, by up to an eighth of a turn either way.

    `numbers`: the first pixel, the other one, the angle. Away from the pixel box the length stays, and where the margin
    is linear a perturbation that no such step improves lies along its gradient.
    """
    delta = (best - x).flatten(1)
    sample, size = torch.arange(len(delta), device=delta.device), delta.shape[1]
    one = (numbers[:, 0] * size).long().clamp(max=size - 1)
    other = (one + 1 + (numbers[:, 1] * (size - 1)).long().clamp(max=size - 2)) % size
    angle = (2 * numbers[:, 2] - 1) * (math.pi / 4)
    a, b = delta[sample, one], delta[sample, other]
    delta[sample, one] = a * angle.cos() - b * angle.sin()
    delta[sample, other] = a * angle.sin() + b * angle.cos()
    return (x + ball.eps * unit(delta.view_as(x)).nan_to_num(0.0)).clamp(ball.low, ball.high)


def _length(t: Tensor) -> Tensor:
    return t.square().sum((-2, -1), keepdim=True).sqrt()


def _scaled(t: Tensor) -> Tensor:
    """Each channel's window at length 1, or 0 where it holds nothing."""
    return (t / _length(t)).nan_to_num(0.0)


@cache
def _hills(h: int, w: int) -> Tensor:
    """(2, height, width): a hill beside a hollow, one above the other and side by side, each of length 1."""
    lying = torch.cat([_hill(h // 2, w), -_hill(h - h // 2, w)], 0)
    standing = torch.cat([_hill(h, w // 2), -_hill(h, w - w // 2)], 1)
    pair = [standing if h == 1 else lying, lying if w == 1 else standing]
    return torch.stack([shape / shape.norm() for shape in pair])


def _hill(h: int, w: int) -> Tensor:
    """Rings around the middle of the window; ring k adds 1 / (k + 1)^2 to all within it. Of length 1."""
    hill = torch.zeros(h, w, dtype=torch.float64)
    for k in range(max(h // 2 + 1, w // 2 + 1)):
        rows, columns = (slice(max(long // 2 - k, 0), long // 2 + k + 1) for long in (h, w))
        hill[rows, columns] += 1 / (k + 1) ** 2
    return hill / hill.norm() if hill.numel() else hill
