"""What the gradients at and near the images show, before any attack: a mark for each sample, nan where undefined."""

import torch
from torch import Tensor, nn

from ..ball import Ball, cosine, l2
from ..draws import Draws
from ..losses import cross_entropy, margin
from ..model import input_gradient, logits
from ..types import Images, Labels, Logits, PerSample
from .subject import SAME, Scores, Subject

Marks = dict[str, Tensor]  # 1 where the sample shows it, 0 where it does not, nan where that cannot be said

FLOAT32 = 6e-8  # 1 - p below which float32 rounds p to 1, and cross-entropy's gradient loses the true logit
NEAR = 0.1  # eps: where a gradient is compared with that at the image
WIDTH = 8 / 255  # of the pixel box: how wide the box is in which predictions are to be stable (Pintor et al. 2022, I2)
SCALES = (0.1, 10.0)
FLAT = 1e-3  # of one logit's gradient: all that is left of the other's at the end of a sigmoid
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
        "pinned": _is_pinned(subject.scores, x, y),
    }
    if subject.is_steady:
        marks["wrong slope"] = _is_wrong(subject.scores, subject.twin, x, y, ball, slope, answer.abs().amax(1))
        near = input_gradient(subject.scores, ball.shell(x, NEAR, streams["near"]), y, margin)[2]
        turns = cosine(slope, near)
        marks["turning"] = torch.where(turns.isnan(), torch.nan, (turns < 0.5).to(x.dtype))
        marks["unstable"] = _is_unstable(subject.scores, x, y, ball, streams["unstable"])
    return {name: mark.detach().cpu().float() for name, mark in marks.items()}


def true_logit(answer: Logits, y: Labels) -> PerSample:
    """The logit of the label."""
    return answer.gather(1, y[:, None])[:, 0]


def wrong_logit(answer: Logits, y: Labels) -> PerSample:
    """The best of the others."""
    return margin(answer, y) + true_logit(answer, y)


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


def _is_pinned(model: nn.Module, x: Images, y: Labels) -> PerSample:
    """Is the true logit flat, or the best wrong one, and the other not? nan where both are.

    nan too where nothing is lost with it: the logarithm of a share near 1 is flat in every model, and of two classes
    one may be the constant that the other is compared with.
    """
    answer, _, true = input_gradient(model, x, y, true_logit)
    wrong = input_gradient(model, x, y, wrong_logit)[2]
    a, b = l2(true), l2(wrong)
    pinned = (torch.minimum(a, b) < FLAT * torch.maximum(a, b)).to(x.dtype)
    is_harmless = (answer.logsumexp(1).abs() < 1e-4) | (answer.shape[1] == 2)
    return torch.where(is_harmless | (_is_missing(true) & _is_missing(wrong)), torch.nan, pinned)


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
    reach = Ball(WIDTH / 2 * (ball.high - ball.low), "linf", ball.low, ball.high)
    for _ in range(10):
        there = margin(logits(model, reach.sample(x, draws)), y)
        total += ((there - here).abs() / here.abs()).clamp(max=1).nan_to_num(1.0)
    return (total / 10 > 0.1).to(x.dtype)
