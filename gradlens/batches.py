"""A measurement over many samples: cut into chunks, checked, joined, signed. Memory stays flat, numbers the same."""

import dataclasses
import functools
import hashlib
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from .ball import Ball
from .door import admit, check_ball, check_count, check_generator, check_images, check_labels, lacks_memory
from .draws import Draws, keys, seed
from .folding import LOOK, Folding, folding, unfolded
from .model import frozen, logits
from .provenance import Made, made
from .types import Images, ImagesLike, Labels, LabelsLike, Logits

Result = TypeVar("Result")
Part = TypeVar("Part")
BATCH = 256  # images in the model at a time, where the caller does not say
KEPT = 64 * 2**20  # bytes of directions that an attack may keep on a processor; on a GPU, a quarter of what is free


class Chunk(NamedTuple):
    """Checked samples, on the model's device, and where they stand among all."""

    x: Images
    y: Labels
    where: slice
    draws: Callable[[], Draws]  # random streams of these samples; asking for them advances the caller's generator
    folded: Callable[
        [], AbstractContextManager[None]
    ]  # within `with chunk.folded():` the model is the same, but faster


class Room:
    """How many samples go at a time: halved where they do not fit into memory, which holds for all that comes after."""

    def __init__(self, size: int) -> None:
        self.size = size

    def less(self, samples: int, error: Exception) -> None:
        """Half as many as those that did not fit; raises the error where it is another, or nothing can be halved."""
        self.size = smaller(self.size, samples, error)


class Folder:
    """Folds batch norms away for chunk after chunk, where a chunk's own answers stay what they are."""

    def __init__(self, model: nn.Module, *, may_fold: bool) -> None:
        self.model = model
        self.found: Folding | None = None if may_fold else unfolded(model)
        self.fits: tuple[Images, Folding] | None = None  # the last chunk, and what of `found` suits it
        self.folded = 0  # batch norms that were folded in some chunk

    def __call__(self, x: Images, answer: Logits) -> AbstractContextManager[None]:
        """To be entered while `x` is measured, to which the model as it is gives this answer."""
        if self.found is None:
            self.found = folding(self.model, x[:LOOK])
        if self.fits is None or self.fits[0] is not x:
            self.fits = (x, self.found if self.found.holds(self.model, x, answer) else unfolded(self.model))
            self.folded = max(self.folded, len(self.fits[1].pairs))
        return self.fits[1]()


def measured(
    run: Callable[[Chunk], Result],
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball,
    *,
    call: str,
    options: Mapping[str, object],
    batch: int | None,
    generator: torch.Generator | None,
    stochastic: bool = False,
    kept: int = 0,
) -> Result:
    """Run a measurement on all samples, at most `batch` at a time, and say in the result how it was made.

    `x` is a tensor, an array, or an iterable such as a DataLoader of images or (images, labels). `run` holds `kept`
    images for each sample, such as a direction a step of an attack: with many of them fewer samples go at a time, so
    that memory stays flat. A chunk that does not fit all the same is halved, which is said once. Raises ValueError as
    the door does.
    """
    check_ball(ball)
    if not callable(options.get("loss", len)):
        raise ValueError(f"loss is {options['loss']!r}, expected a function (logits, y) -> one value a sample")
    check_generator(generator)
    if batch is not None:
        check_count("batch", batch)
    seeded = functools.cache(lambda: seed(generator))
    parts: list[Result] = []
    fingerprint = hashlib.sha256()
    offset, whole = 0, batch or BATCH
    most = whole  # samples at a time, as far as memory is known
    folder = Folder(model, may_fold=not stochastic)
    with frozen(model), tqdm(desc=call, unit="sample", delay=3, disable=None, total=_length(x)) as bar:
        for images, labels in _blocks(model, x, y, ball):
            start, fits, pieces = 0, fitting(whole, kept, images), list[Result]()
            while start < len(images):
                # a chunk of `batch` samples is cut within itself, so that sums over chunks are the same sums
                end = min(start + min(most, fits), start - start % whole + whole, len(images))
                part = images[start:end]
                where = slice(offset + start, offset + end)
                try:
                    given = None if labels is None else labels[start:end]
                    given, answer = admit(
                        model, part, given, stochastic=stochastic, probe=not parts + pieces, offset=where.start,
                        averages=call if "samples" in options else "",
                    )  # fmt: skip
                    host = part.detach().cpu()  # before a GPU is busy; hashed while it is
                    hashes = functools.cache(lambda host=host: keys(host))
                    draws = functools.cache(lambda hashes=hashes: Draws.of(seeded(), hashes()))
                    folded = functools.partial(folder, part, answer)
                    pieces.append(run(Chunk(part, given, where, draws, folded)))
                except (RuntimeError, MemoryError) as error:
                    most = smaller(min(most, fits), len(part), error)
                    continue
                for mark, label in zip(hashes(), given.tolist(), strict=True):
                    fingerprint.update(mark + label.to_bytes(8, "little", signed=True))
                start = end
                bar.update(len(part))
                add_up(pieces)
                if end % whole == 0 or end == len(images):
                    parts.append(join(pieces))
                    add_up(parts)
                    pieces = []
            offset += len(images)
        if not parts:
            raise ValueError("x yields no images, expected at least one batch")
        record = made(call, model, fingerprint.hexdigest()[:16], str(part.device), generator, **options)
        record = dataclasses.replace(record, folded=folder.folded)
    return _signed(join(parts), record)


def gathered(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball,
    *,
    batch: int,
    is_labelled: bool = False,
    stochastic: bool = False,
    probabilities: bool = False,
    averages: str = "",
) -> tuple[Images, Labels, str]:
    """All samples at once, checked as `measured` checks them, and their fingerprint; for use within `frozen`.

    For what passes over the data many times: an iterable is read once, so that each pass sees the same samples, also
    where it shuffles or augments. With `is_labelled` the model's own predictions do not stand in for labels.
    `stochastic`, `probabilities` and `averages` as in `admit`.
    """
    check_ball(ball)
    images: list[Images] = []
    labels: list[Labels] = []
    fingerprint = hashlib.sha256()
    offset = 0
    for block, given in _blocks(model, x, y, ball):
        if given is None and is_labelled:
            raise ValueError("y is None and x brings no labels, expected class numbers: models may disagree on them")
        if images and block.shape[1:] != images[0].shape[1:]:
            came, expected = tuple(block.shape[1:]), tuple(images[0].shape[1:])
            raise ValueError(f"x yields an image of shape {came} after others of {expected}, expected one shape")

        def admitted(where: slice, block: Images = block, given: Labels | None = given, seen: int = offset) -> Labels:
            part = block[where]
            known, _ = admit(
                model, part, None if given is None else given[where], stochastic=stochastic,
                probe=seen + where.start == 0, offset=seen + where.start, probabilities=probabilities,
                averages=averages,
            )  # fmt: skip
            for mark, label in zip(keys(part), known.tolist(), strict=True):
                fingerprint.update(mark + label.to_bytes(8, "little", signed=True))
            return known

        labels += in_parts(admitted, len(block), batch)
        offset += len(block)
        images.append(block)
    if not images:
        raise ValueError("x yields no images, expected at least one batch")
    return images[0] if len(images) == 1 else torch.cat(images), torch.cat(labels), fingerprint.hexdigest()[:16]


def join(parts: list[Result]) -> Result:
    """Results on parts of the samples as one result on all: tensors are joined along the axis named batch.

    The parts are used up, field by field: both they and the whole would be twice the memory.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    hints = typing.get_type_hints(type(first), include_extras=True)
    fields = {}
    for field in dataclasses.fields(first):  # type: ignore[arg-type]
        values = [vars(part).pop(field.name) for part in parts if field.name in vars(part)]
        fields[field.name] = _joined(values, hints[field.name])
    return dataclasses.replace(first, **fields)  # type: ignore[type-var]


def add_up(parts: list[Result]) -> None:
    """What is summed over samples goes from the last part into the first: it must not grow with their number."""
    if len(parts) == 1:
        return
    first, last = vars(parts[0]), vars(parts[-1])
    for name, hint in typing.get_type_hints(type(parts[0]), include_extras=True).items():
        if isinstance(first[name], Tensor) and "*summed" in _dimensions(hint):
            first[name] = first[name] + last.pop(name)
        elif dataclasses.is_dataclass(first[name]) and not isinstance(first[name], Ball | Made):
            add_up([first[name], last[name]])


def rejoined(parts: list[Result], data: str) -> Result:
    """Results of one call on consecutive parts of the samples as the call's own result on all, its record included.

    `data` is the fingerprint of all samples (`gathered`). It is the same to the bit where each part is a chunk of the
    whole call (its sums over samples are sums of chunks) and all were given the same state of the generator.
    Raises ValueError for records that differ in more than their data, such as the device.
    """
    records = [dataclasses.replace(part.made, data=data, folded=0) for part in parts]  # type: ignore[attr-defined]
    if others := [record for record in records if record != records[0]]:
        raise ValueError(f"parts are of different calls, {records[0]} and {others[0]}; expected parts of one")
    folded = max(part.made.folded for part in parts)  # type: ignore[attr-defined]
    return _signed(join(parts), dataclasses.replace(records[0], folded=folded))


def _joined(values: list[Any], hint: Any) -> Any:
    if isinstance(values[0], tuple) and values[0] and isinstance(values[0][0], Tensor):
        # of a union of tuples, the one that holds tensors
        inners = [typing.get_args(kind)[0] for kind in (hint, *typing.get_args(hint)) if _is_tuple(kind)]
        inner = next(kind for kind in inners if hasattr(kind, "dim_str"))
        return tuple(_joined(list(items), inner) for items in zip(*values, strict=True))
    if isinstance(values[0], Tensor):
        names = _dimensions(hint)
        if "*summed" in names:
            return functools.reduce(torch.add, values)
        if names[:1] == ["*batch"]:
            return torch.cat(values, 0)
        return torch.cat(values, names.index("batch")) if "batch" in names else values[0]
    if dataclasses.is_dataclass(values[0]) and not isinstance(values[0], Ball | Made):
        return join(values)
    return values[0]


def _dimensions(hint: Any) -> list[str]:
    """The names of a tensor's axes; an optional tensor is a union, whose member with dimensions is the tensor."""
    kind = next((k for k in (hint, *typing.get_args(hint)) if hasattr(k, "dim_str")), None)
    return kind.dim_str.split() if kind is not None else []


def _is_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _signed(result: Any, record: Made) -> Any:
    """The result, and the results within it, with their record."""
    changes = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Made):
            changes[field.name] = record
        elif dataclasses.is_dataclass(value) and not isinstance(value, Ball):
            changes[field.name] = _signed(value, record)
    return dataclasses.replace(result, **changes)


def _blocks(
    model: nn.Module, x: ImagesLike, y: LabelsLike | None, ball: Ball
) -> Iterator[tuple[Images, Labels | None]]:
    """The samples as the caller hands them over, checked: one tensor, or one batch after the other."""
    if isinstance(x, Tensor | np.ndarray) or not isinstance(x, Iterable):
        images = check_images(model, x, ball)
        yield images, None if y is None else check_labels(y, len(images), images.device)
        return
    if y is not None:
        raise ValueError(
            f"x is a {type(x).__name__}, expected a tensor or array of images (batch, ...) beside y; "
            "an iterable of batches brings its own labels, with y=None"
        )
    home = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    seen = 0
    for item in x:
        pair = item if isinstance(item, tuple | list) else (item, None)
        if len(pair) != 2:
            raise ValueError(f"x yields batches of {len(pair)} parts, expected images or (images, labels)")
        batch = pair[0].to(home) if isinstance(pair[0], Tensor) else pair[0]
        images = check_images(model, batch, ball, offset=seen)
        seen += len(images)
        yield images, None if pair[1] is None else check_labels(pair[1], len(images), images.device)


def fitting(size: int, kept: int, images: Images) -> int:
    """`size`, halved until `kept` images for each of so many samples fit; two halves are a chunk."""
    each = kept * images[:1].nbytes
    limit = _free(images.device) // 4 if images.is_cuda else KEPT
    while size > 1 and size * each > limit:
        size = (size + 1) // 2
    return size


def _free(device: torch.device) -> int:
    """Bytes of a GPU that are left to this process, what torch holds for later included."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _length(x: ImagesLike) -> int | None:
    if isinstance(x, Tensor | np.ndarray):
        return len(x) if x.ndim else None
    try:
        return len(x.dataset)  # type: ignore[union-attr]
    except (AttributeError, TypeError):
        return None


def in_parts(work: Callable[[slice], Part], count: int, size: int | Room) -> list[Part]:
    """`work` on slices of at most `size` of `count` samples, on smaller ones where these do not fit into memory.

    What does the same again and again gives a `Room`, so that it runs out of memory once and not each time.
    """
    room = size if isinstance(size, Room) else Room(size)
    done, parts = 0, []
    while done < count:
        where = slice(done, min(done + room.size, count))
        try:
            parts.append(work(where))
        except (RuntimeError, MemoryError) as error:
            room.less(where.stop - done, error)
            continue
        done = where.stop
    return parts


def answers(model: nn.Module, x: Images, size: int | Room) -> Logits:
    """The model's logits for all images, at most `size` of them in it at a time."""
    return torch.cat(in_parts(lambda where: logits(model, x[where]), len(x), size))


def smaller(size: int, samples: int, error: Exception) -> int:
    """Half the chunk, if the error is a lack of memory and there is something to halve."""
    if not lacks_memory(error) or samples == 1:
        raise error
    half = max(1, min(size, samples) // 2)
    warnings.warn(f"out of memory with {samples} samples at a time; going on with {half}", RuntimeWarning, stacklevel=4)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return half
