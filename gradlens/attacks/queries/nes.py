"""NES: the margin's gradient, estimated from scores around the point."""

from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor, nn

from ...ball import Ball
from ...door import check_count
from ...draws import Draws, gaussian
from ...types import Images, ImagesLike, Labels, LabelsLike
from .blackbox import BlackBox
from .record import QueryTrace
from .run import Numbers, queried

MOMENTUM = 0.9


def nes(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    queries: int = 10_000,
    population: int = 50,
    sigma: float = 0.001,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> QueryTrace:
    """Climb the margin along gradients that are estimated from scores, at most `queries` images a sample.

    Natural evolution strategies with antithetic samples (Ilyas et al. 2018): `population` images a step stand at
    +-`sigma` (pixels) times Gaussian noise around the point, cut by the box. The estimates are averaged with momentum
    0.9, as theirs are; the step along them is as long in the ball's norm for any of them and shrinks linearly from
    eps / 2 to 0 over the budget. Chosen before SPSA (Uesato et al. 2018), whose samples are as many and whose published
    batches, 8192 images a step, leave one step in this budget. A sample leaves once it is broken.

    `x`, `y`, `batch` as in `pgd`. Raises ValueError as `pgd` does, for random models, for a budget that is not a
    whole number of at least one query, a population that is not even, and a sigma that is not positive.
    """
    check_count("population", population, least=2)
    if population % 2:
        raise ValueError(f"population is {population}, expected an even number: samples come in pairs")
    if not (isinstance(sigma, Real) and 0 < sigma < float("inf")):
        raise ValueError(f"sigma is {sigma!r}, expected a positive number of pixels")

    def attack(box: BlackBox, draws: Callable[[], Draws]) -> None:
        climb(box, draws(), population // 2, sigma)

    options = {"population": population, "sigma": sigma}
    return queried(
        attack, model, x, y, ball, call="nes", queries=queries, options=options, batch=batch, generator=generator
    )


def climb(box: BlackBox, draws: Draws, pairs: int, sigma: float) -> None:
    """The attack itself, until each sample of the box is broken or out of queries."""
    ball, point = box.ball, box.x.clone()
    numbers = Numbers(gaussian, box.x[0].numel(), draws, box.x)
    velocity = torch.zeros_like(point)
    spent = 1
    while spent + 3 <= box.queries and len(who := box.active()):
        size = ball.eps / 2 * (1 - spent / box.queries)
        # the last step takes what is left
        now = min(pairs, (box.queries - spent - 1) // 2)
        slope = _slope(box, point[who], who, numbers, now, sigma)
        spent += 2 * now + 1
        who, slope = _still(box, who, slope)
        velocity[who] = MOMENTUM * velocity[who] + (1 - MOMENTUM) * slope
        point[who] = ball.project(point[who] + size * ball.steepest(velocity[who]), box.x[who])
        if len(who):
            box.margins(point[who], who)


def _slope(box: BlackBox, point: Images, who: Labels, numbers: Numbers, pairs: int, sigma: float) -> Images:
    """The margin's gradient at each point up to a factor, from this many pairs of queries a sample.

    A sample that a pair breaks has no part in the next block of pairs.
    """
    slope = torch.zeros_like(point)
    for begun in range(0, pairs, numbers.ahead):
        kept = box.left[who] > 0
        if not kept.any():
            break
        noise = numbers.block(who[kept], min(pairs - begun, numbers.ahead)).unflatten(2, point.shape[1:])
        centre = point[kept][:, None]
        both = torch.stack([centre + sigma * noise, centre - sigma * noise], 2).clamp(box.ball.low, box.ball.high)
        asked = who[kept].repeat_interleave(2 * noise.shape[1])
        values = box.margins(both.flatten(0, 2), asked).view(*noise.shape[:2], 2)
        rise = (values[..., 0] - values[..., 1]).nan_to_num(0.0, posinf=0.0, neginf=0.0)
        slope[kept] += (rise.view(*rise.shape, *[1] * (noise.ndim - 2)) * noise).sum(1)
    return slope


def _still(box: BlackBox, who: Labels, slope: Tensor) -> tuple[Labels, Tensor]:
    kept = box.left[who] > 0
    return who[kept], slope[kept]
