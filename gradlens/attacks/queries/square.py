"""Square attack: random search with squares at the surface of the ball."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ...ball import Ball
from ...door import check_flag
from ...draws import Draws, uniform
from ...types import Images, ImagesLike, LabelsLike
from .blackbox import BlackBox
from .mass import shift, tile_places, tiles, turn
from .record import QueryTrace
from .run import Numbers, queried
from .windows import Size, inside, signs

STRONGEST: dict[str, Any] = {"reach_edges": True, "pairs": 0.5}  # for suites: no less than the reference breaks
TURNS = 2  # at least, a pixel: fewer gain less than the windows in whose place they come
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of p, in steps of an attack of 10,000


def square(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    queries: int = 5000,
    p_init: float = 0.8,
    reach_edges: bool = False,
    pairs: float = 0.0,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> QueryTrace:
    """Random search on the margin, square by square, with the scores of at most `queries` images a sample.

    Andriushchenko et al. (2020), as AutoAttack runs it: each step puts one square of pixels on the ball's surface and
    keeps it where the margin rises; `p_init` is the share of pixels in the first squares, and its schedule is scaled
    to the budget. Images are (batch, ..., height, width), with anything between counted as channels; flat ones,
    (batch, pixels), get stretches in place of squares. The reference's squares never lie along the last row and
    column, and so neither do these, unless `reach_edges`, which is stronger on small images. Under L2 the squares'
    hills and hollows meet a direction only so far (a plane of 36 pixels at 1.5 times its distance). `pairs` is the
    share of steps, the last ones, that turn the perturbation between two random pixels by a random angle instead; the
    reference has none, and Linf has no use for them. With half of the steps a plane is broken from a tenth beyond its
    distance, given some hundred queries a pixel. There are none where they would be fewer than two a pixel. A sample
    leaves once it is broken.

    `x`, `y`, `batch` as in `pgd`. Raises ValueError as `pgd` does, for random models, for a budget that is not a
    whole number of at least one query, for a p_init outside (0, 1], and for pairs outside [0, 1].
    """
    if not (isinstance(p_init, Real) and 0 < p_init <= 1):
        raise ValueError(f"p_init is {p_init!r}, expected a share of pixels in (0, 1]")
    if not (isinstance(pairs, Real) and 0 <= pairs <= 1):
        raise ValueError(f"pairs is {pairs!r}, expected a share of steps in [0, 1]")

    check_flag("reach_edges", reach_edges)

    def attack(box: BlackBox, draws: Callable[[], Draws]) -> None:
        search(box, draws(), p_init, is_edged=reach_edges, pairs=pairs)

    options = {"p_init": p_init, "reach_edges": reach_edges, "pairs": pairs}
    return queried(
        attack, model, x, y, ball, call="square", queries=queries, options=options, batch=batch, generator=generator
    )


def search(box: BlackBox, draws: Draws, p_init: float, *, is_edged: bool, pairs: float = 0.0) -> None:
    """The attack itself, until each sample of the box is broken or out of queries."""
    x = _planes(box.x)
    c, h, w = x.shape[1:]
    is_linf = box.ball.norm == "linf"
    begin = Numbers(uniform, c * w if is_linf else (c + 1) * len(tile_places(h, w)), draws, x)
    numbers = Numbers(uniform, c + 2 if is_linf else c + 5, draws, x)
    steps = box.queries - 2  # the clean image and the start are asked already
    turns = 0 if is_linf or x[0].numel() < 2 else round(pairs * steps)
    windows = steps - turns if turns >= TURNS * x[0].numel() else steps
    for step in range(-1, steps):
        who = box.active()
        if not len(who):
            return
        now = x[who]
        if step < 0:
            point = (_stripes if is_linf else tiles)(now, begin.block(who, 1)[:, 0], box.ball)
        else:
            best, drawn = box.best[who].view_as(now), numbers.step(who)
            share = _share(p_init, min(step, windows), max(windows, 1))
            size = Size(*_sides(share, h, w, least=1 if is_linf else 3), is_edged)
            move = _turned if step >= windows else _recolour if is_linf else shift
            point = move(best, now, drawn, size, box.ball)
        box.margins(point.view(len(who), *box.x.shape[1:]), who)


def _planes(x: Images) -> Tensor:
    """View as (batch, channels, height, width); flat images as one row."""
    if x.ndim == 2:
        return x[:, None, None, :]
    return x.reshape(len(x), -1, *x.shape[-2:])


def _share(p_init: float, step: int, steps: int) -> float:
    scaled = int(step / steps * 10_000)
    return p_init / 2 ** sum(scaled > edge for edge in HALVINGS)


def _sides(share: float, h: int, w: int, *, least: int) -> tuple[int, int]:
    """Height and width of the window for this share of pixels."""
    is_line = min(h, w) == 1
    long = max(round(share * h * w if is_line else math.sqrt(share * h * w)), least)
    if least > 1 and long % 2 == 0:
        long += 1
    if not is_line:
        long = min(long, h, w)
    return min(long, h), min(long, w)


def _stripes(x: Tensor, numbers: Tensor, ball: Ball) -> Tensor:
    """Vertical stripes of +-eps, a sign for each column and channel."""
    n, c, _, w = x.shape
    return (x + ball.eps * signs(numbers).view(n, c, 1, w)).clamp(ball.low, ball.high)


def _turned(best: Tensor, x: Tensor, numbers: Tensor, size: Size, ball: Ball) -> Tensor:
    """A turn, or a window where the pixel box left the best point at the image itself: nothing to turn."""
    is_there = (best != x).flatten(1).any(1)[:, None, None, None]
    point = turn(best, x, numbers, ball)
    return point if is_there.all() else point.where(is_there, shift(best, x, numbers, size, ball))


def _recolour(best: Tensor, x: Tensor, numbers: Tensor, size: Size, ball: Ball) -> Tensor:
    """One window goes to +-eps from the clean image, a sign for each channel."""
    flat = (x + ball.eps * signs(numbers[:, 2:])[:, :, None, None]).clamp(ball.low, ball.high)
    return torch.where(inside(numbers[:, :2], size, x), flat, best)
