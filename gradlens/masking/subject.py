"""The model in question, as attacks meet it: what it returns, whether twice the same, whether gradients come."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ball import Ball
from ..door import PROBE, check_answer, lacks_memory
from ..losses import cross_entropy
from ..model import forward, input_gradient, logits
from ..types import Images, Labels, Logits

SPREAD = 64  # samples that are looked at for randomness
JUDGED = 4  # times as many passes judge a point of a random model as attack it
SAME = 1e-5  # of the largest logit: parallel sums differ by less from pass to pass, random defences by far more


class Scores(nn.Module):
    """The mean answer of several passes, as logits: of a model that returns probabilities, their logarithm.

    The gradient of the mean is the mean gradient (EOT, Athalye et al. 2018). A softmax of the logarithms gives the
    probabilities back.
    """

    def __init__(self, inner: nn.Module, passes: int, *, is_probability: bool) -> None:
        super().__init__()
        self.inner, self.passes, self.is_probability = inner, passes, is_probability

    def forward(self, x: Tensor) -> Logits:
        # a list, since a model may answer the same images differently within one pass and in the next
        mean = torch.stack([logits(self.inner, x) for _ in range(self.passes)]).mean(0)
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log() if self.is_probability else mean


class Severed(nn.Module):
    """A model whose backward pass fails: its answers, without a gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @torch.no_grad()
    def forward(self, x: Tensor) -> Logits:
        return logits(self.inner, x)


class Subject(NamedTuple):
    """A copy of the caller's model, and what a first look at it found."""

    plain: nn.Module  # as others would attack it: one pass, whatever it returns taken for logits
    scores: Scores  # as it should be attacked
    judge: Scores  # as it is judged: of a random model the mean of many passes, so that luck breaks little
    twin: Scores | None  # the same in float64; nothing where the model has no such copy
    is_random: bool
    is_stateful: bool
    is_probability: bool

    @property
    def is_steady(self) -> bool:
        """Does it answer the same images in the same way each time?"""
        return not (self.is_random or self.is_stateful)


def introduced(model: nn.Module, x: Images, y: Labels, ball: Ball, passes: int) -> Subject:
    """A first look at a frozen model, on a copy: a counter that the look moves on is not the caller's.

    Randomness is looked for at samples from all over the data and at points half an eps beside them, since a defence
    may be random on some inputs alone, or off the grid of the data.
    """
    try:
        model = copy.deepcopy(model)
    except Exception as error:  # some models hold what cannot be copied; then they are looked at as they are
        if lacks_memory(error):
            raise
    spread = x[:: -(-len(x) // SPREAD)]
    x, y = x[:PROBE], y[:PROBE]
    is_probability = _looks_like_probabilities(check_answer(model, x, probabilities=True))
    beside = (spread + 0.5 * ball.eps * (1 - 2 * (spread > (ball.low + ball.high) / 2).to(x))).clamp(
        ball.low, ball.high
    )
    is_random, is_stateful = _changes(model, torch.cat([x, spread, beside]))
    try:
        input_gradient(model, x, y, cross_entropy)
        plain = model
    except Exception as error:  # whatever a backward pass of the caller's raises
        if lacks_memory(error):
            raise
        plain = Severed(model)
    count = passes if is_random or is_stateful else 1
    scores = Scores(plain, count, is_probability=is_probability)
    judge = scores if count == 1 else Scores(plain, JUDGED * count, is_probability=is_probability)
    return Subject(plain, scores, judge, _twin(scores, x), is_random, is_stateful, is_probability)


@contextmanager
def seeded(number: int) -> Iterator[None]:
    """Torch's global random numbers start at `number` within, and are what they were on the way out."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(number)
        yield


def _changes(model: nn.Module, x: Images) -> tuple[bool, bool]:
    """Do its answers depend on torch's random numbers; on the calls before? Each part is looked at by itself: state
    that comes back after so many calls would else hide in their number."""
    looks = [_changes_on(model, part) for part in x.split(PROBE)]
    is_stateful = any(stateful for _, stateful in looks)
    return not is_stateful and any(random for random, _ in looks), is_stateful


def _changes_on(model: nn.Module, x: Images) -> tuple[bool, bool]:
    answers = []
    for number in (0, 0, 1, 0):
        with seeded(number), torch.no_grad():
            answers.append(forward(model, x))
    allowed = SAME * max(float(answer.abs().amax()) for answer in answers)

    def differ(a: int, b: int) -> bool:
        return float((answers[a] - answers[b]).abs().amax()) > allowed

    is_stateful = differ(0, 1) or differ(0, 3)
    return not is_stateful and differ(1, 2), is_stateful


def _looks_like_probabilities(answer: Logits) -> bool:
    is_share = answer.amin() >= 0 and ((answer.sum(1) - 1).abs() < 1e-4).all()
    return bool(is_share and not (answer == answer[:1]).all())  # a constant such as (1, 0, 0) says nothing


def _twin(scores: Scores, x: Images) -> Scores | None:
    try:
        twin = copy.deepcopy(scores).double()
        with torch.no_grad():
            answer = twin(x.double())
    except Exception as error:  # a model may hold what has no double, or cannot be copied
        if lacks_memory(error):
            raise
        return None
    return twin if answer.dtype == torch.float64 and answer.isfinite().all() else None
