"""Is this robustness real? Everything that could show plain PGD to be blind, on the same samples."""

import functools
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..ball import Ball
from ..batches import BATCH, Room, gathered, in_parts
from ..door import PROBE, admit, check_ball, check_choice, check_count, check_generator
from ..draws import Draws, keys, mixed, seed
from ..losses import cross_entropy, margin
from ..model import forward, frozen, input_gradient, logits
from ..provenance import made
from ..types import Images, ImagesLike, Labels, LabelsLike
from .climb import errs
from .evidence import weigh
from .looks import Marks, look
from .record import Masking
from .subject import Subject, introduced, seeded
from .surrogate import distilled
from .tries import EFFORTS, Budget, Effort, Trial
from .verdict import judge

Surrogates = Mapping[str, nn.Module] | Literal["distil"]
WORTH = 5.0  # seconds from which on an estimate is said
LEAST = 35  # right samples: with fewer, finding nothing does not exclude a gap of a tenth


def masking(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    budget: Budget = "quick",
    surrogates: Surrogates | None = None,
    batch: int = BATCH,
    generator: torch.Generator | None = None,
) -> Masking:
    """Does the model resist gradient attacks, or can they not use its gradients? A verdict, and the evidence.

    `x`, `y` as in `pgd`. PGD on the cross-entropy, as everybody runs it (20 steps from the image, the last point), is
    set against everything that should not beat it: other losses, precisions, more steps, random starts, averaged
    gradients, one step, random points, queries (Square, and RayS under "linf", in "quick" of models that always answer
    the same), and points made on `surrogates`, models by name, or "distil" for one that is trained here on the model's
    own answers. Before that the gradients themselves are looked at. What an attack gains is a share of all samples, as
    accuracies are; what the images show is one of those that the model gets right. Each row has its interval,
    threshold, source and remedy (Athalye et al. 2018; Carlini et al. 2019; Croce & Hein 2020; Pintor et al. 2022).

    Of a random model the answer is the mean of passes; what broke has to break again in the end, judged by as many
    fresh passes as the clean image and the end of the naive attack.

    `budget`: "quick", "standard" or "thorough"; what each would take is said on stderr before a longer one begins.
    Models that are random, keep state or end in a softmax are let in: that is evidence. A copy of the model is looked
    at, where it can be copied.

    Raises ValueError as `pgd` does, for an unknown budget, a surrogate that is the model itself or has another number
    of classes, and where the model is right on fewer than 35 samples, too few for an interval.
    """
    check_ball(ball)
    check_generator(generator)
    check_count("batch", batch)
    room = Room(int(batch))  # torch splits by none of numpy's numbers
    check_choice("budget", budget, get_args(Budget))
    effort, number, begun = EFFORTS[budget], str(seed(generator)), time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        stack.enter_context(seeded(mixed(number, "passes")))
        images, labels, fingerprint = gathered(model, x, y, ball, batch=room.size, stochastic=True, probabilities=True)
        subject = introduced(model, images, labels, ball, effort.passes)
        if subject.is_steady:
            admit(model, images[:PROBE], labels[:PROBE], probabilities=True)  # one that mixes samples is refused
        right = ~_by_parts(lambda x, y: errs(subject.judge, x, x, y, ball), images, labels, room)
        _refuse_few(right)
        others = _others(surrogates, model, images[right], labels[right], ball, number)
        for other in others.values():
            stack.enter_context(frozen(other))
        _announce(subject, images[right], labels[right], budget, room)
        marks, points, broken = _examined(subject, images[right], labels[right], ball, effort, number, others, room)
        options = {"ball": ball, "budget": budget, "surrogates": ", ".join(others) or None, "batch": batch}
        record = made("masking", model, fingerprint, str(images.device), generator, **options)
    robust, naive, adversarial = right.clone(), right.clone(), images.clone()
    robust[right], naive[right], adversarial[right] = ~broken, ~marks["naive"].bool().to(right.device), points
    result = functools.partial(
        Masking, labels=labels, right=right, naive=naive, robust=robust, adversarial=adversarial,
        seconds=time.perf_counter() - begun, budget=budget, ball=ball, made=record, evidence=weigh(marks, len(right)),
    )  # fmt: skip
    unjudged = result(verdict="usable", layers=())
    verdict, layers = judge(unjudged.gap, unjudged.evidence)
    return result(verdict=verdict, layers=layers)


def _examined(
    subject: Subject, x: Images, y: Labels, ball: Ball, effort: Effort, number: str,
    surrogates: Mapping[str, nn.Module], room: Room,
) -> tuple[Marks, Images, Tensor]:  # fmt: skip
    """Marks, points and what is broken, chunk by chunk."""
    parts: list[tuple[Marks, Images, Tensor]] = []
    start = 0
    bar = tqdm(desc="masking", unit="sample", delay=3, disable=None, total=len(x))
    while start < len(x):
        part, named = x[start : start + room.size], y[start : start + room.size]
        hashes = keys(part)

        def stream(name: str, hashes: list[bytes] = hashes) -> Draws:
            return Draws.of(mixed(number, name), hashes)

        trial = Trial(subject, part, named, ball, effort, stream)
        try:
            marks = look(subject, part, named, ball, {name: stream(name) for name in ("near", "unstable")})
            for stage in trial.run(surrogates):
                bar.set_postfix_str(stage)
        except (RuntimeError, MemoryError) as error:
            room.less(len(part), error)
            continue
        trial.recount()
        marks |= {name: mark.detach().cpu().float() for name, mark in trial.marks.items()}
        parts.append((marks, trial.points, trial.broken))
        start += len(part)
        bar.update(len(part))
    bar.close()
    joined = {name: torch.cat([marks[name] for marks, _, _ in parts]) for name in parts[0][0]}
    return joined, torch.cat([points for _, points, _ in parts]), torch.cat([broken for _, _, broken in parts])


def _by_parts(run, x: Images, y: Labels, room: Room) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.cat(in_parts(lambda where: run(x[where], y[where]), len(x), room))


def _refuse_few(right: Tensor) -> None:
    count, total = int(right.sum()), len(right)
    if count >= LEAST:
        return
    needed = (
        f"about {-(-LEAST * total // count)} samples at this accuracy" if count else "a model that is right at times"
    )
    raise ValueError(
        f"x holds {count} samples, of {total}, that the model gets right, expected at least {LEAST}: with fewer, "
        f"finding nothing would not exclude a gap of a tenth; bring {needed}"
    )


def _others(
    surrogates: Surrogates | None, model: nn.Module, x: Images, y: Labels, ball: Ball, number: str
) -> dict[str, nn.Module]:
    """The surrogates by name, checked."""
    if surrogates is None:
        return {}
    if isinstance(surrogates, str) and surrogates == "distil":
        return {"distilled": distilled(model, x, ball, mixed(number, "distil"))}
    if not isinstance(surrogates, Mapping) or not surrogates:
        came = repr(surrogates) if isinstance(surrogates, str | Mapping) else f"a {type(surrogates).__name__}"
        raise ValueError(f"surrogates are {came}, expected a dict of models by name, or 'distil'")
    classes = logits(model, x[:1]).shape[1]
    found = {}
    for name, other in surrogates.items():
        if not isinstance(other, nn.Module):
            raise ValueError(f"surrogate {name!r} is a {type(other).__name__}, expected a torch.nn.Module")
        try:
            with frozen(other):
                answer = admit(other, x[:8], None, probabilities=True, stochastic=True)[1]
        except ValueError as error:
            raise ValueError(f"surrogate {name!r}: {error}") from error
        if answer.shape[1] != classes:
            raise ValueError(f"surrogate {name!r} has {answer.shape[1]} classes, the model has {classes}")
        if _is_same(other, model, x[:8]):
            raise ValueError(f"surrogate {name!r} is the model itself, expected another one: its points prove nothing")
        found[str(name)] = other
    return found


def _is_same(other: nn.Module, model: nn.Module, x: Images) -> bool:
    """The same answers and gradients. A twin of a model with other gradients, straight through a step, is welcome."""
    if other is model:
        return True
    with frozen(other):
        try:
            sides = [list(input_gradient(one, x, forward(model, x).argmax(1), margin)) for one in (model, other)]
        except Exception:  # whatever a backward pass of the caller's raises: the answers have to do
            sides = [[logits(one, x)] for one in (model, other)]
    return all(torch.allclose(a.double(), b.double()) for a, b in zip(*sides, strict=True))


def _announce(subject: Subject, x: Images, y: Labels, budget: Budget, room: Room) -> None:
    """Say what each budget would take on this machine, if nothing breaks early, where it is worth saying."""
    times = []
    first = min(room.size, len(x))
    for run in (  # a number, since a GPU is still at work when a tensor comes back
        lambda where: input_gradient(subject.plain, x[where], y[where], cross_entropy)[2].amax().item(),
        lambda where: logits(subject.plain, x[where]).amax().item(),
    ):
        in_parts(run, first, room)
        begun = time.perf_counter()
        in_parts(run, first, room)
        times.append((time.perf_counter() - begun) / first * len(x) * subject.scores.passes)
    estimates = {name: e.gradients * times[0] + e.queries * times[1] for name, e in EFFORTS.items()}
    if estimates[budget] > WORTH:
        said = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in estimates.items())
        tqdm.write(f"masking: at most about {said}; running {budget}", file=sys.stderr)
