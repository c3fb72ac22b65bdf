"""The walk over a grid in weight space, common to lines, planes and interpolations."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..batches import Room, in_parts
from ..folding import LOOK, Folding, folding, unfolded
from ..model import logits
from ..provenance import digest, made
from ..types import Images, MetricPlaces, PerMetric
from . import adaptive
from .ledger import Ledger
from .metrics import Data, Gauge
from .plane import Plane
from .walk import batch_norms, moving, reestimating
from .weight_surface import WeightSurface

File = str | os.PathLike[str]


def alone(model: nn.Module, data: Data, gauge: Gauge, batchnorm: str) -> PerMetric:
    """The metrics of a model where it is; for use within `frozen`."""
    with moving(model, (), guarded=gauge.is_foreign), reestimating(model) as reestimate:
        if batchnorm == "reestimated":
            reestimate([x for x, _ in data.batches])
        return gauge.read(model, data).cpu()


def survey(
    model: nn.Module,
    data: Data,
    plane: Plane,
    gauge: Gauge,
    *,
    batchnorm: str,
    tolerance: float | None,
    resume: File | None,
    call: str,
    options: Mapping[str, object],
    plain: PerMetric,
    path_values: MetricPlaces,
    generator: torch.Generator | None = None,
    folds: bool = False,
) -> WeightSurface:
    """Measure the plane and say how it was made; for use within `frozen`.

    `folds`: nobody but our own metrics looks at the model, and batch norm stays, so it may be folded away.
    """
    device = str(data.batches[0][0].device)
    record = made(call, model, data.fingerprint, device, generator, **options, adaptive=tolerance)
    drawn = digest(*(part for d in plane.directions for name, t in d.items() for part in (name, t)))
    key = {
        # cells do not depend on how many of them are measured
        "call": record.call.removesuffix(f", adaptive={tolerance!r})"),
        "model": record.model,
        "data": record.data,
        "directions": drawn,
        "coordinates": digest(plane.alpha, plane.beta),
        # the caller's own metrics have no more than a name: what they say of the model itself tells them apart
        "plain": str([f"{v:.4g}" for v, unit in zip(plain.tolist(), gauge.units, strict=True) if not unit]),
    }
    shape = (len(plane.alpha), len(plane.beta))
    total = math.prod(shape) if tolerance is None else None
    fold = folding(model, data.batches[0][0][:LOOK]).along(model, plane.directions) if folds else unfolded(model)
    if not all(_holds(fold, model, x, data.room) for x, _ in data.batches):
        fold = unfolded(model)
    record = dataclasses.replace(record, folded=len(fold.pairs))
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(resume, key, (len(gauge.names), *shape)))
        stack.enter_context(fold())
        place = stack.enter_context(
            moving(model, [fold.turned(model, d) for d in plane.directions], guarded=gauge.is_foreign)
        )
        reestimate = stack.enter_context(reestimating(model))
        bar = stack.enter_context(tqdm(desc=call, unit="cell", delay=3, disable=None, total=total))

        def ask(cells: Sequence[tuple[int, int]]) -> np.ndarray:
            for cell in cells:
                if cell not in ledger:
                    place(float(plane.alpha[cell[0]]), float(plane.beta[cell[1]]))
                    if batchnorm == "reestimated":
                        reestimate([x for x, _ in data.batches])
                    ledger.add(cell, gauge.read(model, data))
                bar.update()
            return np.stack([ledger[cell] for cell in cells])

        if tolerance is None:
            ask([(r, c) for r in range(shape[0]) for c in range(shape[1])])
            values, measured = torch.from_numpy(ledger.values), torch.ones(shape, dtype=torch.bool)
            bound = torch.zeros(len(gauge.names), dtype=torch.float64)
        else:
            values, measured, bound = map(torch.from_numpy, adaptive.fill(ask, shape, tolerance))

    return WeightSurface(
        values=values, metrics=gauge.names, units=gauge.units, alpha=plane.alpha, beta=plane.beta,
        directions=plane.directions, axes=plane.axes, meaning=plane.meaning,
        batchnorm=batchnorm if batch_norms(model) else "none", samples=data.samples, plain=plain, path=plane.path,
        path_values=path_values, measured=measured, tolerance=tolerance, bound=bound, made=record,
    )  # fmt: skip


def _holds(fold: Folding, model: nn.Module, x: Images, room: Room) -> bool:
    return all(in_parts(lambda where: fold.holds(model, x[where], logits(model, x[where])), len(x), room))
