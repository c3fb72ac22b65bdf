"""What the gradients at and near the images show, before any attack: a mark for each sample, nan where undefined."""

import torch
from torch import Tensor, nn

from ..ball import Ball, cosine, l2
from ..draws import Draws
from ..losses import cross_entropy, margin
from ..model import input_gradient, logits
from ..types import Images, Labels, PerSample
from .subject import SAME, Scores, Subject

Marks = dict[str, Tensor]  # 1 where the sample shows it, 0 where it does not, nan where that cannot be said

FLOAT32 = 6e-8  # 1 - p below which float32 rounds p to 1, and cross-entropy's gradient loses the true logit
NEAR = 0.1  # eps: where a gradient is compared with that at the image
WIDTH = 8 / 255  # of the box in which predictions are to be stable (Pintor et al. 2022, I2)
SCALES = (0.1, 10.0)
STRETCHES = (0.1, 0.5)  # of eps, over which a gradient that leads well may be right where it is wrong close by


def look(subject: Subject, x: Images, y: Labels, ball: Ball, streams: dict[str, Draws]) -> Marks:
    """All marks that need no attack."""
    ce = input_gradient(subject.plain, x, y, cross_entropy)[2]
    answer, _, slope = input_gradient(subject.scores, x, y, margin)
    no_ce, no_slope = _is_missing(ce), _is_missing(slope)
    marks: Marks = {
        "random": _changes(subject, x) if subject.is_random else torch.zeros(len(x)),
        "state": _changes(subject, x) if subject.is_stateful else torch.zeros(len(x)),
        "probabilities": torch.full((len(x),), float(subject.is_probability)),
        "missing": no_ce & no_slope,
        "saturated": (no_ce | (l2(ce) < FLOAT32 * l2(slope))) & ~no_slope,
        "underflow": no_ce & (~no_slope | ~_twin_misses(subject.twin, x, y, no_ce)),
        "drift": _drift(subject.scores, x, y),
    }
    if subject.is_steady:
        marks["wrong slope"] = _is_wrong(subject.scores, subject.twin, x, y, ball, slope, answer.abs().amax(1))
        near = input_gradient(subject.scores, ball.shell(x, NEAR, streams["near"]), y, margin)[2]
        turns = cosine(slope, near)
        marks["turning"] = torch.where(turns.isnan(), torch.nan, (turns < 0.5).to(x.dtype))
        marks["unstable"] = _is_unstable(subject.scores, x, y, ball, streams["unstable"])
    return {name: mark.detach().cpu().float() for name, mark in marks.items()}


def _is_missing(grad: Images) -> Tensor:
    """Zero in every pixel, or not a number in some: no direction."""
    flat = grad.flatten(1)
    return (flat == 0).all(1) | ~flat.isfinite().all(1)


@torch.no_grad()
def _changes(subject: Subject, x: Images) -> PerSample:
    first, second = logits(subject.plain, x), logits(subject.plain, x)
    return ((first - second).abs().amax(1) > SAME * first.abs().amax()).to(x.dtype)


def _twin_misses(twin: Scores | None, x: Images, y: Labels, otherwise: Tensor) -> Tensor:
    """Has the cross-entropy no gradient in float64 either? `otherwise` where the model has no such copy."""
    return otherwise if twin is None else _is_missing(input_gradient(twin, x.double(), y, cross_entropy)[2])


def _drift(model: nn.Module, x: Images, y: Labels) -> PerSample:
    """Does the cross-entropy gradient's size, per unit of scale, change more than tenfold with the logits' scale?"""
    sizes = []
    for scale in SCALES:

        def scaled(answer: Tensor, y: Tensor, scale: float = scale) -> PerSample:
            return cross_entropy(scale * answer, y)

        sizes.append(l2(input_gradient(model, x, y, scaled)[2]) / scale)
    ratio = sizes[1] / sizes[0]
    return torch.where(ratio.isnan(), torch.nan, ((ratio < 0.1) | (ratio > 10)).to(x.dtype))


@torch.no_grad()
def _is_wrong(
    model: nn.Module, twin: nn.Module | None, x: Images, y: Labels, ball: Ball, slope: Images, size: PerSample
) -> PerSample:
    """Is the margin's central difference along its own gradient off by more than half, over short ways and long ones?

    Over short ways alone a quantised model that was trained straight through is off, whose gradient leads well. In
    float64 where the model has such a copy; nan where there is no gradient, or rounding would drown the difference.
    """
    inner, kind = (model, x.dtype) if twin is None else (twin, torch.float64)
    # the first as short as rounding allows: a staircase has its derivative between the steps
    shortest = 1e-3 if kind != torch.float64 else 1e-6
    step = ball.steepest(slope).to(kind)
    expected = (slope * step).flatten(1).sum(1).to(x.dtype)
    off = torch.ones_like(expected)
    for h in (shortest * ball.eps, *(share * ball.eps for share in STRETCHES)):
        ends = [margin(logits(inner, x.to(kind) + sign * h * step), y) for sign in (1, -1)]
        met = ((ends[0] - ends[1]) / (2 * h)).to(x.dtype)
        off *= ((met - expected).abs() > 0.5 * expected).to(x.dtype)
    drowned = 2 * shortest * ball.eps * expected < 50 * torch.finfo(kind).eps * size
    return torch.where(drowned | _is_missing(slope), torch.nan, off)


@torch.no_grad()
def _is_unstable(model: nn.Module, x: Images, y: Labels, ball: Ball, draws: Draws) -> PerSample:
    """I2 of Pintor et al. (2022), on the margin: of the cross-entropy, a sure model's rounding noise would be told."""
    here = margin(logits(model, x), y)
    total = torch.zeros_like(here)
    reach = Ball(WIDTH / 2, "linf", ball.low, ball.high)
    for _ in range(10):
        there = margin(logits(model, reach.sample(x, draws)), y)
        total += ((there - here).abs() / here.abs()).clamp(max=1).nan_to_num(1.0)
    return (total / 10 > 0.1).to(x.dtype)
