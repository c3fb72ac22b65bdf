"""One measurement over many samples, cut into shards that are measured side by side and joined, equal to the bit."""

import dataclasses
import inspect
import itertools
import pickle
from collections.abc import Callable, Iterable
from concurrent.futures import as_completed
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import gradlens
from gradlens import Ball
from gradlens.batches import BATCH, gathered, rejoined
from gradlens.door import check_choice, check_count, check_generator, tensor_of
from gradlens.model import pickled
from gradlens.types import ImagesLike, LabelsLike
from training import data
from training.checkpoint import Run, Which
from training.engines import Engine

# what works on all samples together (robustness, spectrum, masking, transfer, curve) or is about the weights is not the
# same in parts
CALLS = (
    "stability", "gradients", "entropy", "pgd", "fgsm", "apgd", "pgd_targeted", "apgd_targeted", "minimum_norm",
    "square", "nes", "rays", "hopskipjump", "input_path",
)  # fmt: skip
Piece = tuple[Any, Any]  # images and labels of one chunk; of an iterable, the chunk as a list of one batch


class Shard(NamedTuple):
    """What a task measures, and from which state of the random numbers; all shards have the same one."""

    call: str
    model: bytes  # pickled
    pieces: list[Piece]
    options: dict[str, Any]
    state: Tensor
    has_generator: bool
    on_gpu: bool


def sharded(
    call: Callable[..., Any],
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    shards: int | None = None,
    engine: Engine = Engine(),
    batch: int | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Any:
    """`call(model, x, y, ball, batch=batch, generator=generator, **options)`, its samples measured side by side.

    `call` is one of `CALLS`, such as gradlens.stability. The result, its record and the generator afterwards are those
    of the plain call, to the bit on one thread of a CPU, which is what each task has: `x` (a tensor, an array or an
    iterable of batches) is cut between chunks of `batch` images, into at most `shards` parts, and random numbers belong
    to the sample. Two exceptions, both by rounding: a machine that is short of memory halves its chunks, and a model
    whose batch norms can be folded on some images only is looked at in each part anew. Model and samples are sent from
    the CPU; where the engine asks for GPUs, tasks take them there.

    Raises ValueError as the call does, for a function that cannot be put together from parts, a model on a GPU or one
    that cannot be pickled, and for options with an entry for each sample.
    """
    name = getattr(call, "__name__", repr(call))
    if getattr(gradlens, name, None) is not call or name not in CALLS:
        raise ValueError(f"call is {name}, expected one whose results join over samples: {', '.join(CALLS)}")
    if shards is not None:
        check_count("shards", shards)
    if batch is not None:
        check_count("batch", batch)
    check_generator(generator)
    _check_options(call, model, options)
    _check_home(model, generator)
    pieces, data_of_all = _pieces(model, x, y, ball, batch or BATCH)
    source = torch.default_generator if generator is None else generator
    given = {**options, "ball": ball, "batch": batch}
    sent = pickled(model)
    tasks = [
        Shard(name, sent, part, given, source.get_state(), generator is not None, bool(engine.gpus))
        for part in _parts(pieces, shards)
    ]
    with engine.pool() as pool:
        futures = [pool.submit(_measured, task) for task in tasks]
        for future in tqdm(as_completed(futures), desc=name, unit="shard", total=len(tasks), delay=3, disable=None):
            future.result()
    done = [future.result() for future in futures]
    source.set_state(done[0][1])
    return rejoined([result for results, _ in done for result in results], data_of_all)


def measure(
    run: Run,
    what: str,
    *,
    samples: int | None = None,
    shards: int | None = None,
    seed: int = 0,
    which: Which = "last",
    engine: Engine = Engine(),
) -> Any:
    """`sharded` on test images of a run, in its data set's own ball. Raises ValueError as it does."""
    check_choice("what", what, CALLS)
    if samples is not None:
        check_count("samples", samples)
    dataset = data.load(run.config.dataset)
    x, y = data.subset(dataset.test, samples or len(dataset.test), seed)
    generator = torch.Generator().manual_seed(seed)
    return sharded(
        getattr(gradlens, what), run.model(which), x, y, dataset.ball, shards=shards, engine=engine, generator=generator
    )


def _check_options(call: Callable[..., Any], model: nn.Module, options: dict[str, Any]) -> None:
    known = set(inspect.signature(call).parameters) - {"model", "x", "y"}
    if unknown := sorted(set(options) - known):
        raise ValueError(f"{unknown[0]} is no option of {call.__name__}, expected one of {', '.join(sorted(known))}")
    for name in ("start", "targets", "adversarial"):
        if options.get(name) is not None:
            raise ValueError(f"{name} is given, expected options that are the same for all samples")
    if options.get("samples", 1) != 1:
        raise ValueError(
            f"samples is {options['samples']!r}, expected 1: the passes of a random model draw from one stream, which "
            "shards cannot share"
        )


def _check_home(model: nn.Module, generator: torch.Generator | None) -> None:
    homes = {t.device.type for t in (*model.parameters(), *model.buffers())}
    if homes - {"cpu"}:
        raise ValueError(f"model is on {', '.join(sorted(homes))}, expected it on the CPU; tasks with gpus move it")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}, expected one on the CPU")


def _pieces(model: nn.Module, x: ImagesLike, y: LabelsLike | None, ball: Ball, batch: int) -> tuple[list[Piece], str]:
    """The samples as the plain call would cut them, checked as it checks them, and the fingerprint of all."""
    if isinstance(x, Iterable) and not isinstance(x, Tensor | np.ndarray):
        x = list(x)  # read once: a loader that shuffles gives others the next time
    with gradlens.frozen(model):
        found = gathered(model, x, y, ball, batch=batch)[2]
    if isinstance(x, list):
        return [piece for item in x for piece in _cut_batch(item, batch)], found
    return _cut(x, y, batch), found


def _cut(x: Any, y: Any, batch: int) -> list[Piece]:
    labels = None if y is None else y if isinstance(y, Tensor) else tensor_of(y, "y")
    # copies: a slice of a tensor would be sent with all of the tensor
    return [
        (x[i : i + batch].copy() if isinstance(x, np.ndarray) else x[i : i + batch].clone(),
         None if labels is None else labels[i : i + batch].clone())
        for i in range(0, len(x), batch)
    ]  # fmt: skip


def _cut_batch(item: Any, batch: int) -> list[Piece]:
    x, y = item if isinstance(item, tuple | list) else (item, None)
    return [([part if labels is None else (part, labels)], None) for part, labels in _cut(x, y, batch)]


def _parts(pieces: list[Piece], shards: int | None) -> list[list[Piece]]:
    """Consecutive pieces in as many parts, of nearly the same number of pieces."""
    count = min(shards or len(pieces), len(pieces))
    cuts = [len(pieces) * i // count for i in range(count + 1)]
    return [pieces[start:stop] for start, stop in itertools.pairwise(cuts)]


def _measured(shard: Shard) -> tuple[list[Any], Tensor]:
    """In a task: a result for each chunk, on the CPU, and the state of the random numbers after one.

    Chunks are joined where all are there: what a result adds up over samples is then added in the plain call's order.
    """
    torch.set_num_threads(1)
    model = pickle.loads(shard.model)
    function, options = getattr(gradlens, shard.call), dict(shard.options)
    source = torch.Generator() if shard.has_generator else torch.default_generator
    if "generator" in inspect.signature(function).parameters:
        options["generator"] = source if shard.has_generator else None
    results = []
    for x, y in shard.pieces:
        source.set_state(shard.state)
        if shard.on_gpu:
            model = model.cuda()
        there = x.cuda() if shard.on_gpu and isinstance(x, Tensor) else x
        results.append(_home(function(model, there, y, **options)))
    return results, source.get_state()


def _home(value: Any) -> Any:
    """A result with its tensors on the CPU: the process that joins them may have no GPU."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, tuple):
        return tuple(map(_home, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: _home(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value
