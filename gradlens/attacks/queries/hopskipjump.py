"""HopSkipJump: along the boundary towards the image, from labels alone."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...ball import Ball, expand
from ...draws import Draws, gaussian, uniform
from ...types import Images, ImagesLike, LabelsLike, PerSample
from .blackbox import BlackBox
from .record import QueryTrace
from .run import Numbers, queried

FIRST, MOST = 100, 10_000  # questions for the first estimate of a gradient, and for any
RESERVE = 25  # questions kept for the step along the last normal and the way back to the boundary
HALVINGS = 20  # of a step that leads to no error
FINEST = 1e-6  # relative tolerance of a bisection: float32 knows no finer points


def hopskipjump(
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
    """Distance to the closest error, by walking along the boundary, from right or wrong of `queries` images a sample.

    Chen, Jordan & Wainwright (2020), with the constants of their code: from a random image that errs, bisect to the
    boundary, estimate its normal from 100 sqrt(step) questions around the point, step along it (along its sign under
    Linf) as far as the model errs, and again until the budget is spent. Random images are of random brightness, since
    a model may have one class for all that are evenly grey. A sample for which none errs spends its budget on them.
    With `until_broken`, for robust accuracy alone, a sample leaves once it is broken inside the ball.

    `x`, `y`, `batch` as in `pgd`. Raises ValueError as `pgd` does, for random models, and for a budget that is not a
    whole number of at least one query.
    """

    def attack(box: BlackBox, draws: Callable[[], Draws]) -> None:
        walk(box, draws())

    return queried(
        attack, model, x, y, ball, call="hopskipjump", queries=queries, options={"until_broken": until_broken},
        batch=batch, generator=generator, is_hard=True, until_broken=until_broken,
    )  # fmt: skip


def walk(box: BlackBox, draws: Draws) -> None:
    """The attack itself, until each sample of the box is out of queries."""
    d = box.x[0].numel()
    theta = max(1 / d**1.5 if box.ball.norm == "l2" else 1 / d**2, FINEST)
    numbers = Numbers(gaussian if box.ball.norm == "l2" else uniform, d, draws, box.x)
    point, who = _start(box, draws)
    gap = box.ball.length(point - box.x)  # of the point before it was brought to the boundary
    _bisect(box, point, who, theta)
    step = 1
    while len(who := who[box.left[who] > 0]):
        if step == 1:
            delta = torch.full_like(gap, 0.1 * (box.ball.high - box.ball.low))
        else:
            delta = (d**0.5 if box.ball.norm == "l2" else d) * theta * gap
        normal = _normal(box, point, who, delta, int(min(FIRST * math.sqrt(step), MOST)), numbers)
        _jump(box, point, who, box.ball.steepest(normal), step)
        gap[who] = box.ball.length(point[who] - box.x[who])
        _bisect(box, point, who, theta)
        step += 1


def _start(box: BlackBox, draws: Draws) -> tuple[Images, Tensor]:
    """An image that errs for each sample where one was found, and which samples these are."""
    ball, point = box.ball, box.x.clone()
    numbers = Numbers(uniform, box.x[0].numel() + 1, draws, box.x)
    is_found, is_first = torch.zeros_like(box.y, dtype=torch.bool), True
    while len(who := (~is_found & (box.left > 0)).nonzero().flatten()):
        now = numbers.step(who)
        # the first is of even brightness, as in the paper
        power = torch.ones_like(now[:, :1]) if is_first else 8 ** (2 * now[:, :1] - 1)
        noise, is_first = (now[:, 1:] ** power).view(len(who), *point.shape[1:]), False
        tried = ball.low + (ball.high - ball.low) * noise
        errs = box.errs(tried, who)
        point[who[errs]] = tried[errs]
        is_found[who[errs]] = True
    return point, is_found.nonzero().flatten()


def _bisect(box: BlackBox, point: Images, who: Tensor, theta: float) -> None:
    """Bring each point as close to its clean image as it errs, on the way that is straight in the ball's norm."""
    x, far = box.x[who], point[who]
    low, high = x.new_zeros(len(who)), x.new_ones(len(who))
    while len(on := ((high - low > theta) & (box.left[who] > 0)).nonzero().flatten()):
        middle = (low[on] + high[on]) / 2
        errs = box.errs(_towards(x[on], far[on], middle, box.ball), who[on])
        low[on], high[on] = torch.where(errs, low[on], middle), torch.where(errs, middle, high[on])
    point[who] = torch.where(expand(high < 1, x), _towards(x, far, high, box.ball), far)


def _towards(x: Images, far: Images, share: PerSample, ball: Ball) -> Images:
    """The point at this share of the distance."""
    if ball.norm == "l2":
        return x + expand(share, x) * (far - x)
    reach = expand(share * ball.length(far - x), x)
    return torch.minimum(torch.maximum(far, x - reach), x + reach)


def _normal(box: BlackBox, point: Images, who: Tensor, delta: Tensor, count: int, numbers: Numbers) -> Tensor:
    """Normal of the boundary at each point, from `count` questions at distance `delta`, fewer where few are left."""
    asks = (box.left[who] - RESERVE).clamp(1, count)
    votes, drift, pull = torch.zeros_like(delta[who]), torch.zeros_like(point[who]), torch.zeros_like(point[who])
    for begun in range(0, count, numbers.ahead):
        on = ((asks > begun) & (box.left[who] > 0)).nonzero().flatten()
        if not len(on):
            break
        noise = numbers.block(who[on], min(count - begun, numbers.ahead))
        noise = noise if box.ball.norm == "l2" else 2 * noise - 1
        noise = (noise / noise.norm(dim=2, keepdim=True)).unflatten(2, point.shape[1:])
        centre, radius = point[who[on]][:, None], delta[who[on]].view(-1, *[1] * point.ndim)
        tried = (centre + radius * noise).clamp(box.ball.low, box.ball.high)
        noise = (tried - centre) / radius
        is_asked = begun + torch.arange(noise.shape[1], device=who.device) < asks[on, None]
        vote = is_asked.to(noise)
        vote[is_asked] *= 2 * box.errs(tried[is_asked], who[on, None].expand_as(is_asked)[is_asked]).to(noise) - 1
        votes[on] += vote.sum(1)
        drift[on] += torch.einsum("nk,nk...->n...", is_asked.to(noise), noise)
        pull[on] += torch.einsum("nk,nk...->n...", vote, noise)
    mean = votes / asks
    # votes are taken from their mean, which costs nothing and steadies the estimate; unanimous ones would be lost
    return pull - expand(torch.where(mean.abs() < 1, mean, 0.0), pull) * drift


def _jump(box: BlackBox, point: Images, who: Tensor, direction: Tensor, step: int) -> None:
    """Move each point along its direction, by half as much again and again, until it errs; else it stays."""
    size = box.ball.length(point[who] - box.x[who]) / math.sqrt(step)
    is_open = torch.ones_like(who, dtype=torch.bool)
    for _ in range(HALVINGS):
        on = (is_open & (box.left[who] > 0)).nonzero().flatten()
        if not len(on):
            return
        tried = point[who[on]] + expand(size[on], direction) * direction[on]
        tried = tried.clamp(box.ball.low, box.ball.high)
        errs = box.errs(tried, who[on])
        point[who[on[errs]]] = tried[errs]
        is_open[on[errs]] = False
        size[on] /= 2
