"""RayS: the shortest ray to an error among the corners' directions, from labels alone."""

from collections.abc import Callable

import torch
from torch import nn

from ...ball import Ball
from ...door import check_ball
from ...draws import Draws, uniform
from ...types import ImagesLike, LabelsLike
from .blackbox import BlackBox
from .record import QueryTrace
from .run import Numbers, queried

LEVELS = 6  # of blocks, halved from level to level, before random signs are tried in their place
TOLERANCE = 1e-3  # of a ray's length in L2, pixels


def rays(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    queries: int = 10_000,
    until_broken: bool = False,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> QueryTrace:
    """Distance to the closest error along rays with a sign for each pixel, from right or wrong of `queries` images.

    RayS (Chen & Gu 2020): the signs of ever smaller blocks of pixels are turned, and where the model still errs at the
    distance known, the new ray is bisected. Hard label: no scores. Where none of the first rays, all pixels brighter
    but for one block, leads to an error, random signs take the place of these, again and again; a sample for which
    none does spends its budget on them. One is finished before its budget when no single pixel's turn helps any more,
    since every further question would be one already asked; with `until_broken`, for robust accuracy alone, once it is
    broken inside the ball.

    `x`, `y`, `batch` as in `pgd`. Raises ValueError as `pgd` does, for random models, for a budget that is not a
    whole number of at least one query, and for an L2 ball, for which RayS is not made: take `hopskipjump`.
    """
    check_ball(ball)
    if ball.norm != "linf":
        raise ValueError(f"ball has norm {ball.norm!r}, expected 'linf': RayS knows no other; take hopskipjump instead")

    def attack(box: BlackBox, draws: Callable[[], Draws]) -> None:
        search(box, draws())

    return queried(
        attack, model, x, y, ball, call="rays", queries=queries, options={"until_broken": until_broken}, batch=batch,
        generator=generator, is_hard=True, until_broken=until_broken,
    )  # fmt: skip


def search(box: BlackBox, draws: Draws) -> None:
    """The attack itself. Samples are at stages of their own: each pass asks one question for each of them."""
    ball, x = box.ball, box.x.flatten(1)
    (n, d), device = x.shape, x.device
    signs, numbers = torch.ones_like(x), Numbers(uniform, d, draws, x)
    radius = x.new_full((n,), ball.high - ball.low)  # of the best ray; from here every pixel is at the box's edge
    low, high = torch.zeros_like(radius), radius.clone()  # of the bisection
    level, block = torch.zeros(2, n, dtype=torch.long, device=device)
    is_found, is_bisecting, has_turned, is_exhausted = torch.zeros(4, n, dtype=torch.bool, device=device)
    pixels = torch.arange(d, device=device)
    while True:
        who = box.active()
        who = who[~is_exhausted[who]]
        if not len(who):
            return
        side = -(-d // 2 ** level[who])
        turned = pixels // side[:, None] == block[who][:, None]
        ray = torch.where(turned, -signs[who], signs[who])
        length = torch.where(is_bisecting, (low + high) / 2, radius)[who]
        point = (x[who] + length[:, None] * ray).clamp(ball.low, ball.high)
        errs, was_bisecting = box.errs(point.view(len(who), *box.x.shape[1:]), who), is_bisecting[who]

        high[who] = torch.where(errs, length, high[who])
        low[who] = torch.where(was_bisecting, torch.where(errs, low[who], length), 0.0)
        has_begun = errs | was_bisecting
        goes_on = has_begun & (high[who] - low[who] > TOLERANCE / d**0.5)
        is_bisecting[who] = goes_on

        is_better = has_begun & ~goes_on & ((high[who] < radius[who]) | ~is_found[who])
        signs[who] = torch.where(is_better[:, None], ray, signs[who])
        radius[who] = torch.where(is_better, high[who], radius[who])
        is_found[who] |= is_better
        has_turned[who] |= is_better

        is_last = ~goes_on & ((block[who] + 1) * side >= d)
        is_lost = is_last & ~is_found[who] & ((side == 1) | (level[who] == LEVELS - 1))
        is_exhausted[who] = is_last & (side == 1) & ~has_turned[who] & ~is_lost
        has_turned[who] &= ~is_last
        block[who] = torch.where(is_last, 0, block[who] + ~goes_on)
        level[who] = torch.where(is_lost, 0, level[who] + (is_last & (side > 1)))
        if is_lost.any():  # all that have found nothing so far have asked as much
            signs[who[is_lost]] = torch.where(numbers.step(who[is_lost]) < 0.5, -1.0, 1.0).to(x)
