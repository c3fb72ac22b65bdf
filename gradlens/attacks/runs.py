"""What the attacks by gradients share at the door: starts, restarts, targets, and the joined record."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..ball import Ball
from ..batches import Chunk, measured
from ..door import check_labels, tensor_of
from ..losses import targeted_dlr
from ..model import logits
from ..types import Images, ImagesLike, Labels, LabelsLike
from .trace import PGDTrace, strongest

Walk = Callable[[Images, Labels, Images, Labels | None], PGDTrace]  # images, labels, start, targets: one recorded run


def attacked(
    walk: Walk,
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball,
    *,
    call: str,
    options: Mapping[str, object],
    steps: int,
    start: ImagesLike | None,
    restarts: int = 1,
    targets: LabelsLike | None = None,
    batch: int | None,
    generator: torch.Generator | None,
    samples: int = 1,
) -> PGDTrace:
    """`walk` from `start` and from `restarts` - 1 random points of the ball; the strongest run of each sample."""
    check_beside("start", start, x)
    check_beside("targets", targets, x)
    if options.get("loss") is targeted_dlr and targets is None:
        raise ValueError("loss is targeted_dlr, expected targets beside it; apgd_targeted chooses its own")

    def run(chunk: Chunk) -> PGDTrace:
        wanted = None if targets is None else _targets(model, targets, chunk)
        starts = [start_of(start, chunk, ball)]
        if restarts > 1:
            draws = chunk.draws()
            starts += [ball.sample(chunk.x, draws) for _ in range(restarts - 1)]
        with chunk.folded():
            runs = [walk(chunk.x, chunk.y, point, wanted) for point in starts]
        return runs[0] if restarts == 1 else strongest(runs)

    return measured(
        run,
        model,
        x,
        y,
        ball,
        call=call,
        options=options,
        batch=batch,
        generator=generator,
        stochastic=samples > 1,
        kept=steps,
    )


def check_beside(name: str, given: object, x: ImagesLike) -> None:
    """Raises ValueError for what cannot go beside the images, an entry for each."""
    if given is None:
        return
    is_single = isinstance(given, str | bytes) or getattr(given, "ndim", 1) == 0
    if is_single or not isinstance(given, Tensor | np.ndarray | Sequence):
        raise ValueError(f"{name} is {given!r:.80}, expected a tensor or array with an entry for each image")
    if isinstance(x, Tensor | np.ndarray) and x.ndim and len(given) != len(x):
        raise ValueError(f"{name} has {len(given)} entries, expected one for each of the {len(x)} images")


def start_of(start: ImagesLike | None, chunk: Chunk, ball: Ball) -> Images:
    """Where the attack begins: at the images themselves, or at the caller's points, brought inside the ball."""
    if start is None:
        return chunk.x
    complaint = f"start is {start!r:.80}, expected a tensor or array of images of x's shape"
    given = start if isinstance(start, Tensor) else tensor_of(start, complaint)
    if given.is_meta or given.is_complex():
        raise ValueError(complaint)
    point = given[chunk.where].to(chunk.x)
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
