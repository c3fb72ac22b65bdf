"""All that the claims are judged by, read from each model on the same images, one value an image."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..attacks import minimum_norm, pgd, square
from ..attacks.queries.square import STRONGEST
from ..ball import Ball
from ..batches import BATCH
from ..door import check_count
from ..draws import mixed
from ..gradients import gradients
from ..landscape import weight_line
from ..losses import margin
from ..model import pickled
from ..provenance import digest
from ..robustness import Attack, Robustness, Transfer, exchange, robustness, transfer
from ..robustness.unbroken import pgd_until_broken
from ..sealed import hold, read_sealed, write_sealed
from ..stability import stability
from ..types import ImagesLike, LabelsLike, PerSample
from .controls import Scaled

if TYPE_CHECKING:
    from pandas import DataFrame

HUNDRED = 100  # steps of PGD between the customary number and very many
DIRECTIONS, FAR = 4, 0.5  # random directions in weight space, and how far to go, in norms of each filter
Models = Mapping[str, Mapping[int, nn.Module]]  # of each arm, by training seed
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Readings:
    """One model on B images. Shares are 1 or 0 an image, lengths are logarithms; nan is undefined."""

    clean: PerSample  # 1 where the model is right
    pgd: PerSample  # 1 where PGD on the cross-entropy left it right at every point
    pgd_margin: PerSample  # the same on the margin
    hundred: PerSample  # the same after a hundred steps on the cross-entropy
    hundred_margin: PerSample  # on the margin
    longest: PerSample  # after many steps on the cross-entropy
    longest_margin: PerSample  # on the margin
    square: PerSample  # 1 where it withstood Square, which asks for scores alone
    transfer: PerSample  # 1 where points of no other model fool it; nan where it errs by itself
    worst: PerSample  # 1 where it withstood everything, points of all other models included
    norm: PerSample  # log10 of ||grad CE||_2 in nats / pixel; nan where the gradient is exactly zero
    norm_margin: PerSample  # log10 of ||grad margin||_2 in logits / pixel
    norm_free: PerSample  # the same after division by the length of the centred logits: no matter of their scale
    cosine: PerSample  # mean cos(g_t, g_t+1) of the cross-entropy along PGD
    local_cosine: PerSample  # cos(g(x), g(x + u)) of the margin, ||u||_2 as long as the ball is wide
    bend: PerSample  # log10 of the largest |CE(x + d) - CE(x) - d.g| met in the ball, nats
    bend_free: PerSample  # the same of the margin, over the length of the centred logits
    weights: PerSample  # rise of the error at half a filter norm from the weights; one number, over all images
    entropy: PerSample  # of the softmax at the image, nats
    entropy_attacked: PerSample  # where PGD ended
    distance: PerSample  # log2 of the length of the smallest perturbation found, in eps; nan where none was

    def frame(self) -> DataFrame:
        """Tidy table, one row an image."""
        import pandas as pd

        columns = {field.name: getattr(self, field.name).cpu().numpy() for field in fields(self)}
        return pd.DataFrame({"sample": range(len(self.clean)), **columns})


def measure(
    models: Models,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    steps: int = 20,
    longest: int = 1000,
    queries: int = 1000,
    suite: str = "quick",
    resume: str | Path | None = None,
    batch: int = BATCH,
    seed: int = 0,
    executor: Executor | None = None,
) -> dict[str, dict[int, Readings]]:
    """Read every model on the same images `x` (batch, ...) with labels `y`; for `judge`.

    `models` maps arms ("SL", "RL", "SL-adv", "RL-adv", hybrids, controls) to models by training seed. `steps` of PGD
    are the customary number, `longest` those of the long runs, between which stand runs of a hundred; steps are 2.5 eps
    over their number. `queries` are Square's; `suite` is run by `robustness` on what all of these left. With a folder
    `resume`, what a stopped call had read is not read again. Models are read one after the other, or side by side by
    the workers of an `executor` (of concurrent.futures), each on one thread and on the model's own device: small ones
    gain more from that than from threads. Where one fails, those that have begun go on to their end.

    Raises ValueError as `robustness` does, naming the model, for fewer than two models, for an executor of another
    kind, and with one for images or a model that cannot be pickled.
    """
    check_count("steps", steps)
    check_count("longest", longest)
    if not isinstance(models, Mapping) or not all(isinstance(seeds, Mapping) for seeds in models.values()):
        raise ValueError(f"models are {models!r:.80}, expected arms by name, each a dict of models by training seed")
    if executor is not None and not isinstance(executor, Executor):
        raise ValueError(f"executor is {executor!r:.80}, expected one of concurrent.futures, or None")
    named = {f"{arm} {number}": model for arm, seeds in models.items() for number, model in seeds.items()}
    if len(named) < 2:
        raise ValueError(f"models are {list(named)}, expected at least two to hold against each other")
    task = _Task(x, y, ball, steps, longest, queries, suite, batch, seed, resume)
    each = _each(task, named, executor)
    whole = dict(tqdm(each, desc="claims", total=len(named), unit="model", delay=3, disable=None))
    final = exchange(named, {name: whole[name].final for name in named}, batch=batch)
    crossed = transfer(named, named, x, y, ball, batch=batch, generator=_stream(seed, "transfer"))
    read = {
        name: Readings(
            **_attacked(whole[name].alone), **whole[name].rest,
            worst=final[name].robust.double(), transfer=_withstood(crossed, named, name),
        )
        for name in named
    }  # fmt: skip
    return {arm: {number: read[f"{arm} {number}"] for number in seeds} for arm, seeds in models.items()}


class _Task(NamedTuple):
    """What is read from every model."""

    x: ImagesLike
    y: LabelsLike | None
    ball: Ball
    steps: int
    longest: int
    queries: int
    suite: str
    batch: int
    seed: int
    resume: str | Path | None


class _Read(NamedTuple):
    """What is read from a model without the others."""

    alone: Robustness
    final: Robustness
    rest: Tensors


def _each(task: _Task, models: Mapping[str, nn.Module], executor: Executor | None) -> Iterator[tuple[str, _Read]]:
    """The models' readings, as they are done. Raises ValueError naming the model."""
    if executor is None:
        for name, model in models.items():
            with _naming(name):
                yield name, _read(task, name, model)
        return
    running: dict[Future[bytes], str] = {}
    sent = pickled(task, "x or y")
    try:
        for name, model in models.items():
            running[executor.submit(_read_there, sent, name, pickled(model, f"model {name!r}"))] = name
        for future in as_completed(running):
            with _naming(running[future]):
                yield running[future], pickle.loads(future.result())
    finally:
        for future in running:
            future.cancel()


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"model {name!r}: {error}") from error


def _read_there(task: bytes, name: str, model: bytes) -> bytes:
    """In a worker. Bytes both ways: torch would have processes share tensors, which end with the one that made them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return pickle.dumps(_read(pickle.loads(task), name, pickle.loads(model)))
    finally:
        torch.set_num_threads(threads)  # a thread of the caller's own process may do the work


def _read(task: _Task, name: str, model: nn.Module) -> _Read:
    x, y, ball, steps, longest, queries, suite, batch, seed, resume = task
    families = [
        Attack("pgd", pgd, {"steps": steps}),
        Attack("pgd_margin", pgd, {"steps": steps, "loss": margin}),
        Attack("hundred", pgd_until_broken, {"steps": HUNDRED}),
        Attack("hundred_margin", pgd_until_broken, {"steps": HUNDRED, "loss": margin}),
        Attack("longest", pgd_until_broken, {"steps": longest}),
        Attack("longest_margin", pgd_until_broken, {"steps": longest, "loss": margin}),
        Attack("square", square, {"queries": queries, **STRONGEST}),
    ]
    alone = robustness(
        model, x, y, ball, attacks=families, exhaustive=True, batch=batch, generator=_stream(seed, "attacks"),
        resume=_file(resume, name, "alone"),
    )  # fmt: skip
    final = robustness(
        model, x, y, ball, attacks=suite, found={"families": alone}, batch=batch, generator=_stream(seed, "suite"),
        resume=_file(resume, name, "suite"),
    )  # fmt: skip
    key = {
        "model": alone.made.model, "data": alone.made.data, "ball": str(ball), "steps": str(steps), "seed": str(seed),
        # two models may differ in what is neither weight nor buffer: what was read belongs to what broke it
        "attacks": digest(alone.broke, alone.adversarial),
    }  # fmt: skip
    rest = _once(_file(resume, name, "rest"), key, partial(_rest, model, x, y, ball, steps, batch, seed))
    return _Read(alone, final, {part: values.to(alone.clean.device) for part, values in rest.items()})


def _once(path: Path | None, key: Mapping[str, str], read: Callable[[], Tensors]) -> Tensors:
    """What a stopped call of the same `key` left at `path`, or what is read now, and left there."""
    if path is None:
        return read()
    lock = hold(path)
    try:
        if path.exists():
            return read_sealed(path, "reading", key)
        found = read()
        write_sealed(path, "reading", key, found)
        return found
    finally:
        lock.release()


def _attacked(alone: Robustness) -> dict[str, Tensor]:
    left = (alone.clean & ~alone.broke).double()
    return {"clean": alone.clean.double(), **dict(zip(alone.attacks, left, strict=True))}


def _withstood(crossed: Transfer, models: Mapping[str, nn.Module], name: str) -> PerSample:
    """1 where no other source's point fools a target, 0 where one does, nan where it errs by itself or there is none.

    A copy with other logits is no other model: its points are those of a white-box attack on the target.
    """
    t = crossed.targets.index(name)
    others = [s for s, source in enumerate(crossed.sources) if _plain(models[source]) is not _plain(models[name])]
    fooled = crossed.fooled[others, t].any(0)
    return (~fooled).double().where(crossed.right[t] & bool(others), torch.nan)


def _plain(model: nn.Module) -> nn.Module:
    """The model whose logits a control multiplies."""
    return _plain(model.model) if isinstance(model, Scaled) else model


def _rest(
    model: nn.Module, x: ImagesLike, y: LabelsLike | None, ball: Ball, steps: int, batch: int, seed: int
) -> dict[str, Tensor]:
    """What needs no other model and no suite."""
    path = stability(model, x, y, ball, steps=steps, radii=(), batch=batch, generator=_stream(seed, "path"))
    near = stability(
        model, x, y, ball, steps=1, loss=margin, radii=(1.0,), batch=batch, generator=_stream(seed, "near")
    )
    still = gradients(model, x, y, ball, batch=batch, generator=_stream(seed, "still"))
    found = minimum_norm(model, x, y, ball, batch=batch, generator=_stream(seed, "distance"))
    size = still.norm("margin")
    return {
        "norm": _log(still.norm()), "norm_margin": _log(size), "norm_free": _log(size / still.logit_norm),
        "cosine": path.cosine, "local_cosine": near.local_cosine[0],
        "bend": _log(still.linearity[0]), "bend_free": _log(still.linearity[1] / still.logit_norm),
        "weights": _rise(model, x, y, ball, batch, seed).expand(len(size)),
        "entropy": path.trace.entropy[0], "entropy_attacked": path.trace.entropy[-1],
        "distance": _log(found.distance / ball.eps) / torch.tensor(2.0).log10(),
    }  # fmt: skip


def _rise(model: nn.Module, x: ImagesLike, y: LabelsLike | None, ball: Ball, batch: int, seed: int) -> Tensor:
    """Mean rise of the error on both sides of the weights, over a few random directions (Li et al. 2018)."""
    rises = []
    for number in range(DIRECTIONS):
        line = weight_line(
            model, x, y, ball, span=FAR, points=3, metrics=("error",), batch=batch,
            generator=_stream(seed, f"direction {number}"),
        )  # fmt: skip
        ends = line.of("error")[[0, -1], 0]
        rises.append(ends.mean() - line.plain[0])
    return torch.stack(rises).mean()


def _log(values: Tensor) -> Tensor:
    """log10, nan where there is nothing to take it of."""
    return values.double().where(values > 0, torch.nan).log10()


def _stream(seed: int, use: str) -> torch.Generator:
    return torch.Generator().manual_seed(mixed(str(seed), use))


def _file(folder: str | Path | None, name: str, part: str) -> Path | None:
    if folder is None:
        return None
    # the digest tells "SL, RL" from "SL>RL"
    return Path(folder) / f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{digest(name)}-{part}"
