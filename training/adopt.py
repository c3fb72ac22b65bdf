"""A classifier that was trained elsewhere, as a run that the notebooks can read: python -m training adopt."""

import dataclasses
import hashlib
import importlib.util
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import gradlens
from gradlens import Ball, Normalized
from gradlens.disk import load_weights, write
from training import checkpoint, data, outside
from training.config import Config

IDENTITY = (0.0,), (1.0,)


@dataclass(frozen=True)
class Adoption:
    """Somebody's own classifier and images."""

    model: str
    """Factory package.module:function without arguments, a torchvision classifier by name, or timm/NAME."""
    data: Path
    """npz with x (images; uint8, or floats in [0, 1]; channels first or last) and y, or a folder of images a class."""
    weights: Path | None = None
    """safetensors, or a state dict from torch.save; not needed where the factory loads them itself."""
    eps: float = 8 / 255
    """Radius of the ball, pixels."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball."""
    mean: tuple[float, ...] = ()
    """Mean that is taken off pixels before the model sees them, a number a channel; ImageNet's for a torchvision
    model, none for a factory."""
    std: tuple[float, ...] = ()
    """What they are then divided by."""
    size: int | None = None
    """Pixels a side of a folder's images: scaled to it, centre kept; as they are if not given."""
    images: int = 512
    """Images kept, at most, drawn by seed."""
    seed: int = 0
    """Draws them."""
    name: str = ""
    """What figures call the model; made of its own name if not given."""


def adopt(asked: Adoption, out: Path) -> checkpoint.Run:
    """Write a run folder with the model's weights, and its images beside the data sets, for `checkpoint.load`.

    Doing it again writes the same bytes. The model's code is not copied: a factory has to be importable wherever the
    run is read, and reading the run imports it.
    Raises ValueError naming what is missing or does not fit, before anything is written.
    """
    name = outside.full_name(asked.model)
    x, y = outside.images(asked.data, asked.size)
    chosen = torch.randperm(len(y), generator=torch.Generator().manual_seed(asked.seed))[: asked.images].sort().values
    x, y = x[chosen], y[chosen]
    moments = _moments(asked, name, x.shape[1])
    inner = outside.filled(name, None if asked.weights is None else load_weights(asked.weights))
    model = Normalized(inner, *moments)
    classes = _classes(model, x, y, name)
    ball = Ball(asked.eps, asked.norm)
    content = _packed(x=x, y=y, eps=ball.eps, norm=ball.norm, mean=moments[0], std=moments[1], classes=classes)
    digest = hashlib.sha256(content).hexdigest()
    dataset = f"{slug(asked.data.stem)}-{digest[:6]}"
    write(data.adopted_file(dataset), content)
    record: dict[str, Any] = {
        "adopted": {
            **{key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(asked).items()},
            "called": asked.name or name.rpartition(":" if ":" in name else "/")[2],
            "mean": moments[0],
            "std": moments[1],
            "classes": classes,
            "data_sha256": digest,
            "source_sha256": _source(name),
        }
    }
    checkpoint.save(out, model, Config(dataset=dataset, model=name), record)
    return checkpoint.load(out)  # as anybody reads it later


def slug(name: str) -> str:
    """A name in letters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "own"


def _moments(asked: Adoption, name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if bool(asked.mean) != bool(asked.std):
        raise ValueError(f"mean is {asked.mean} and std is {asked.std}, expected both or neither")
    given = (asked.mean, asked.std) if asked.mean else outside.normalisation(name)
    mean, std = given or (IDENTITY[0] * channels, IDENTITY[1] * channels)
    if len(mean) != channels or len(std) != channels:
        raise ValueError(f"mean is {mean} and std is {std}, expected a number for each of {channels} channels")
    return mean, std


def _classes(model: nn.Module, x: Tensor, y: Tensor, name: str) -> int:
    """How many classes the model tells apart, asked of one image; raises ValueError where labels are no such."""
    first = x[:1].float().div(255) if x.dtype == torch.uint8 else x[:1]
    try:
        with gradlens.frozen(model), torch.no_grad():
            answer = model(first)
    except (RuntimeError, ValueError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"model {name!r} refuses images of shape {tuple(first.shape[1:])}: {said}") from None
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != 1:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"model {name!r} answers one image with {shape}, expected logits of shape (1, classes)")
    if int(y.max()) >= answer.shape[1]:
        raise ValueError(
            f"y has the class {int(y.max())}, and model {name!r} tells {answer.shape[1]} classes apart, from 0"
        )
    return answer.shape[1]


def _packed(**arrays: Any) -> bytes:
    """An npz; its bytes depend on the content alone."""
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
    return packed.getvalue()


def _source(name: str) -> str | None:
    """The hash of the file that a factory lies in; None for a library's models."""
    if ":" not in name:
        return None
    found = importlib.util.find_spec(name.partition(":")[0])
    if found is None or found.origin is None or not Path(found.origin).is_file():
        return None
    return hashlib.sha256(Path(found.origin).read_bytes()).hexdigest()
