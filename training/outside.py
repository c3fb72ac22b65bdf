"""Models and images that gradlens did not make: factories and named architectures, state dicts, arrays, folders."""

import difflib
import importlib
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from training import foreign, imagenet
from training.filling import fill

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights expect
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
IMAGES, LABELS = ("x", "images", "x_test", "X", "data"), ("y", "labels", "y_test", "targets", "label")


def is_outside(name: str) -> bool:
    """A model by `package.module:function`, `torchvision/NAME` or `timm/NAME`, not one of `training.models`."""
    return ":" in name or "/" in name


def full_name(name: str) -> str:
    """The name with its library where torchvision knows it alone; raises ValueError for a name that means nothing."""
    if is_outside(name):
        return name
    if name in foreign.classifiers():
        return f"torchvision/{name}"
    near = difflib.get_close_matches(name, foreign.classifiers(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"model is {name!r}, expected a factory package.module:function, a torchvision classifier or timm/NAME{hint}"
    )


def build(name: str, classes: int) -> nn.Module:
    """A model by name, with so many classes where the name leaves them open; a factory is called without arguments.

    Raises ValueError for what cannot be imported, for a library that is not installed and for what is no model.
    """
    if ":" in name:
        return _checked(name, _function(name))
    library, _, architecture = name.partition("/")
    if library == "torchvision":
        return _named(name, lambda: foreign.plain(architecture, classes))
    if library == "timm":
        timm = _import(name, "timm", "pip install timm")
        return _named(name, lambda: timm.create_model(architecture, pretrained=False, num_classes=classes))
    raise ValueError(f"model is {name!r}, expected torchvision/NAME or timm/NAME before a '/'")


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that a library's own weights expect of pixels; None where the model is a factory."""
    if name.startswith("torchvision/"):
        return IMAGENET
    if name.startswith("timm/"):
        config = getattr(build(name, 2), "default_cfg", {})
        return tuple(config.get("mean", IMAGENET[0])), tuple(config.get("std", IMAGENET[1]))
    return None


def filled(name: str, found: dict[str, Tensor] | None) -> nn.Module:
    """The model of this name with these weights, with as many classes as they have; None: as its factory makes it.

    Raises ValueError for a named architecture without weights, which would be random, and for weights of another one.
    """
    if ":" in name and found is None:
        return build(name, 0)
    if found is None:
        raise ValueError(
            f"model is {name!r} without weights, whose answers would be random; name a file with --weights"
        )
    own = build(name, 10)
    found = _fitting(found, own.state_dict().keys())
    if ":" not in name:
        last = [part for part, module in own.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
        own = build(name, len(found.get(f"{last}.weight", range(1000))))
    # saved by torch before it counted batches, or of heads that only training has
    counters = {key: t for key, t in own.state_dict().items() if key.endswith("num_batches_tracked")}
    kept = {key: t for key, t in found.items() if not key.startswith(("AuxLogits.", "aux1.", "aux2."))}
    fill(own, {**counters, **kept}, f"the weights of {name!r}")
    return own


def images(path: Path, size: int | None) -> tuple[Tensor, Tensor]:
    """Images (N, channels, height, width), uint8 or floats in [0, 1], and class numbers.

    From an npz with x and y, channels first or last, or from a folder with a folder of images a class, whose names in
    order are the classes; `size` scales their short side and keeps the centre.
    Raises ValueError naming what is missing and what is not as it should be.
    """
    if path.is_dir():
        return _folder(path, size)
    if not path.is_file():
        raise ValueError(f"data is {str(path)!r}, and there is no such file or folder")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as opened:
            found = {name: opened[name] for name in opened.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise ValueError(f"data {str(path)!r} cannot be read as an npz of arrays: {error}") from None
    x, y = (next((found[name] for name in names if name in found), None) for names in (IMAGES, LABELS))
    if x is None or y is None:
        raise ValueError(f"data {str(path)!r} holds {', '.join(found) or 'nothing'}, expected the arrays x and y")
    return pixels(x, f"data {str(path)!r}"), labels(y, len(x), f"data {str(path)!r}")


def pixels(x: np.ndarray, where: str) -> Tensor:
    """An array of images as torch has them; raises ValueError for another shape, type or range."""
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim != 4 or not len(x):
        raise ValueError(f"{where}: x has shape {x.shape}, expected (images, channels, height, width)")
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x))
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"{where}: x is of type {x.dtype}, expected uint8, or floats in [0, 1]")
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"{where}: x spans [{x.min():.3g}, {x.max():.3g}], expected pixels in [0, 1]; normalisation belongs into "
            "the model, or into --mean and --std"
        )
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def labels(y: np.ndarray, count: int, where: str) -> Tensor:
    """Class numbers, one an image; raises ValueError for anything else."""
    if y.shape != (count,) or not np.issubdtype(y.dtype, np.integer) or (count and y.min() < 0):
        raise ValueError(f"{where}: y is {y.dtype} of shape {y.shape}, expected {count} class numbers from 0")
    return torch.from_numpy(y.astype(np.int64))


def _folder(path: Path, size: int | None) -> tuple[Tensor, Tensor]:
    classes = sorted(place for place in path.iterdir() if place.is_dir())
    found = [
        (file, number)
        for number, place in enumerate(classes)
        for file in sorted(place.iterdir())
        if file.suffix.lower() in imagenet.SUFFIXES
    ]
    if not found:
        raise ValueError(f"data {str(path)!r} has no images, expected a folder a class with {imagenet.SUFFIXES} in it")
    read = [_read(file, size) for file, _ in found]
    if len({image.shape for image in read}) > 1:
        sizes = sorted({f"{image.shape[2]} x {image.shape[1]}" for image in read})
        raise ValueError(f"data {str(path)!r} has images of {', '.join(sizes[:3])}, expected one size; give --size")
    return torch.from_numpy(np.stack(read)), torch.tensor([number for _, number in found])


def _read(file: Path, size: int | None) -> np.ndarray:
    if size is not None:
        return imagenet.read_image(file, size)
    try:
        with Image.open(file) as opened:
            return np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    except OSError as error:
        raise ValueError(f"data: {file} cannot be read as an image: {error}") from None


def _function(name: str) -> Callable[[], Any]:
    place, _, function = name.partition(":")
    if not re.fullmatch(r"[\w.]+", place) or not function.isidentifier():
        raise ValueError(f"model is {name!r}, expected package.module:function")
    module = _import(name, place, "start the command where it can be imported")
    if not callable(getattr(module, function, None)):
        near = difflib.get_close_matches(function, dir(module), n=1)
        raise ValueError(
            f"model is {name!r}, and {place} has no function {function!r}{f'; {near[0]!r}?' if near else ''}"
        )
    return getattr(module, function)


def _import(name: str, module: str, remedy: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"model is {name!r}, and {error.name} is not installed or not found: {remedy}") from None


def _named(name: str, make: Callable[[], Any]) -> nn.Module:
    try:
        return make()
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"model is {name!r}: {str(error).splitlines()[0]}") from None


def _checked(name: str, factory: Callable[[], Any]) -> nn.Module:
    try:
        model = factory()
    except TypeError as error:
        raise ValueError(f"model is {name!r}, which cannot be called without arguments: {error}") from None
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {name!r}, which returns a {type(model).__name__}, expected an nn.Module")
    return model


def _fitting(found: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Without the prefixes that wrappers put before every name and that the model does not have itself."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found) and not set(found) & set(own):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found
