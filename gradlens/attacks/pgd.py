"""Projected gradient descent, told as a trace of what it met on the way."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..ball import Ball, expand, l1, l2, linf, unit
from ..batches import Chunk, measured
from ..door import check_attack, check_labels
from ..losses import cross_entropy, margin
from ..model import input_gradient, logits, mean_gradient
from ..provenance import UNSIGNED
from ..types import Images, ImagesLike, Labels, LabelsLike, Logits, Loss, PerSample
from .trace import PGDTrace, Point, Step, strongest


def pgd(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball = Ball(),
    *,
    steps: int = 10,
    step_size: float | None = None,
    loss: Loss = cross_entropy,
    start: ImagesLike | None = None,
    restarts: int = 1,
    samples: int = 1,
    momentum: float = 0.0,
    targets: LabelsLike | None = None,
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> PGDTrace:
    """Climb `loss` inside `ball` around `x`, record every point (Madry et al. 2018).

    `x` is (batch, ...) with pixels in the ball's box, or an iterable of (images, labels) such as a DataLoader; `y`
    (batch,) class numbers, None takes the model's predictions. `step_size` is in pixels, of the ball's norm, and
    defaults to 2.5 eps / steps; every step has that length unless the gradient is exactly zero. `start` defaults to
    `x` itself; further `restarts` begin at points drawn uniformly from the ball, and each sample keeps the run that
    led by most (`PGDTrace.lead`). `samples` > 1 averages the gradient over that many passes of a random model
    (EOT, Athalye et al. 2018). `momentum` is the decay of MI-FGSM (Dong et al. 2018). With `targets` (batch,) the
    loss towards them is descended. `batch` images are in the model at a time.

    Raises ValueError for inputs outside the box, wrong shapes or labels, a random model with samples=1, steps,
    restarts or samples below 1.
    """
    size = check_attack(ball, steps=steps, step_size=step_size, restarts=restarts, samples=samples, momentum=momentum)

    for name, given in (("start", start), ("targets", targets)):
        if given is not None and not isinstance(given, Tensor | np.ndarray | Sequence):
            raise ValueError(f"{name} is {given!r:.80}, expected a tensor or array with an entry for each image")
        if isinstance(x, Tensor | np.ndarray) and given is not None and len(given) != len(x):
            raise ValueError(f"{name} has {len(given)} entries, expected one for each of the {len(x)} images")

    def run(chunk: Chunk) -> PGDTrace:
        wanted = None if targets is None else _targets(model, targets, chunk)
        starts = [chunk.x if start is None else _start(start, chunk, ball)]
        if restarts > 1:
            draws = chunk.draws()
            starts += [ball.sample(chunk.x, draws) for _ in range(restarts - 1)]
        with chunk.folded():
            runs = [
                climb(model, chunk.x, chunk.y, ball, point, steps, size, loss, samples, momentum, wanted)
                for point in starts
            ]
        return runs[0] if restarts == 1 else strongest(runs)

    options = {
        "ball": ball, "steps": steps, "step_size": size, "loss": loss, "start": start, "restarts": restarts,
        "samples": samples, "momentum": momentum, "targets": targets,
    }  # fmt: skip
    return measured(
        run, model, x, y, ball, call="pgd", options=options, batch=batch, generator=generator, stochastic=samples > 1
    )


def climb(
    model: nn.Module,
    x: Images,
    y: Labels,
    ball: Ball,
    point: Images,
    steps: int,
    step_size: float,
    loss: Loss,
    samples: int = 1,
    momentum: float = 0.0,
    targets: Labels | None = None,
) -> PGDTrace:
    """One run on checked samples, from `point`, recorded."""

    def climbed(logits: Tensor, y: Tensor) -> Tensor:  # as the caller gave it; its shape is checked where it is used
        return loss(logits, y) if targets is None else -loss(logits, targets)

    points: list[Point] = []
    moves: list[Step] = []
    directions: list[Images] = []
    best, lead = point, torch.full_like(x.flatten(1)[:, 0], -torch.inf)
    grad, velocity = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(steps + 1):
        before = point
        if step > 0:
            velocity = grad if momentum == 0 else momentum * velocity + _shape(grad)
            point = ball.project(point + step_size * ball.steepest(velocity), x)
        logits, value, grad = mean_gradient(model, point, y, climbed, samples)
        points.append(_read(logits, value, grad, point, x, y, ball))
        directions.append(unit(grad))
        if step == 0:
            first = grad
        else:
            moves.append(_turn(directions, l2(point - before)))
        now = points[-1].margin if targets is None else -margin(logits, targets)
        best = torch.where(expand(now > lead, x), point, best)
        lead = torch.where(now > lead, now, lead)
    way = unit(point - x)
    count = torch.full_like(y, samples * (steps + 1))
    sums = [d.nan_to_num(0.0) for d in directions]
    return PGDTrace(
        clean=x, adversarial=point, best=best, gradient=first, labels=y, targets=targets, ball=ball, made=UNSIGNED,
        cosine_final=torch.stack([_dot(d, way) for d in directions[:-1]]),
        path_dispersion=1 - l2(torch.stack(sums).sum(0)) / sum((d != 0).flatten(1).any(1) for d in sums),
        direction_sum=torch.stack([d.sum(0) for d in sums]),
        lead=lead, restart_agreement=torch.full_like(lead, torch.nan), forwards=count, backwards=count,
        **{name: torch.stack(values) for name, values in zip(Point._fields, zip(*points, strict=True), strict=True)},
        **{name: torch.stack(values) for name, values in zip(Step._fields, zip(*moves, strict=True), strict=True)},
    )  # fmt: skip


def perturb(
    model: nn.Module, x: Images, y: Labels, ball: Ball, *, steps: int, step_size: float, loss: Loss, start: Images
) -> Images:
    """The bare loop of `pgd`: the last point alone, nothing recorded, nothing checked, the model's mode left alone.

    For the inner problem of adversarial training, where the caller owns the model and the batch.
    """
    point = start
    for _ in range(steps):
        grad = input_gradient(model, point, y, loss)[2]
        point = ball.project(point + step_size * ball.steepest(grad), x)
    return point


def _read(logits: Logits, loss: PerSample, grad: Images, point: Images, x: Images, y: Labels, ball: Ball) -> Point:
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    delta = point - x
    largest = linf(grad)
    return Point(
        loss=loss, margin=margin(logits, y), entropy=-(p * log_p).sum(1), confidence=p.amax(1),
        predicted=logits.argmax(1), grad_norm=l2(grad), grad_norm_l1=l1(grad), grad_norm_linf=largest,
        vanished=largest == 0, on_surface=ball.on_surface(point, x), distance=ball.length(delta),
    )  # fmt: skip


def _turn(directions: list[Images], moved: PerSample) -> Step:
    first, before, now = directions[0], directions[-2], directions[-1]
    return Step(_dot(before, now), _dot(first, now), _sign_agreement(before, now), moved)


def _dot(a: Images, b: Images) -> PerSample:
    """Cosine of unit directions; nan where one of them is."""
    return (a * b).flatten(1).sum(1).clamp(-1, 1)


def _sign_agreement(a: Images, b: Images) -> PerSample:
    # signs are multiplied, not values: a product of two tiny values may underflow to 0
    signs = a.flatten(1).nan_to_num(0.0).sign() * b.flatten(1).nan_to_num(0.0).sign()
    kept, compared = (mask.sum(1).to(a.dtype) for mask in (signs > 0, signs != 0))
    return kept / compared  # 0 / 0 is nan: no pixel to compare


def _shape(grad: Images) -> Images:
    """The gradient scaled to sum of absolute values 1, as MI-FGSM adds it up; zero where it is zero."""
    scaled = grad / expand(linf(grad), grad)
    return (scaled / expand(l1(scaled), grad)).nan_to_num(0.0)


def _start(start: ImagesLike, chunk: Chunk, ball: Ball) -> Images:
    point = torch.as_tensor(start)[chunk.where].to(chunk.x)
    if point.shape != chunk.x.shape or not point.isfinite().all():
        raise ValueError(
            f"start has shape {tuple(point.shape)}, expected finite images of x's shape {tuple(chunk.x.shape)}"
        )
    return ball.project(point, chunk.x)


def _targets(model: nn.Module, targets: LabelsLike, chunk: Chunk) -> Labels:
    wanted = check_labels(targets[chunk.where], len(chunk.x), chunk.x.device, name="targets")
    classes = logits(model, chunk.x[:1]).shape[1]
    if wanted.amin() < 0 or wanted.amax() >= classes:
        raise ValueError(
            f"targets span {int(wanted.amin())}..{int(wanted.amax())}, expected classes in 0..{classes - 1}"
        )
    return wanted
