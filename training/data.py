"""Data sets: pixels in [0, 1], labels, the threat model that is customary on them, and how they are augmented."""

import difflib
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlens import Ball
from gradlens.types import Images, Labels
from training import augment, devices, moments, readers
from training.augment import Augmentation
from training.moments import Moments

ADOPTED = re.compile(r"[a-z0-9-]+-[0-9a-f]{6}")  # names of images that came with a model (training.adopt)


@dataclass(frozen=True)
class Split:
    """Images and their class numbers. Pixels are kept as they were stored and become floats when they are asked for.

    A small set is a tensor, on any device; a large one an array mapped from disk, of which `at` reads only the rows
    that are asked for.
    """

    images: Tensor | np.ndarray  # (N, channels, height, width): whole levels 0..scale in uint8, or floats in [0, 1]
    y: Labels
    scale: int = 255  # the level that is white

    def __len__(self) -> int:
        return len(self.y)

    def at(self, index: Tensor) -> tuple[Images, Labels]:
        """Images in [0, 1] and labels at these places, on the device of the split."""
        if isinstance(self.images, np.ndarray):
            return self._pixels(torch.from_numpy(np.asarray(self.images[index.cpu().numpy()]))), self.y[index]
        return self._pixels(self.images[index]), self.y[index]

    @property
    def x(self) -> Images:
        """All images at once, as floats: for small sets."""
        return self.at(torch.arange(len(self)))[0]

    def to(self, device: torch.device | str) -> "Split":
        """The split on a device. Images mapped from disk stay there."""
        if isinstance(self.images, np.ndarray):
            return self
        return Split(self.images.to(device), self.y.to(device), self.scale)

    def _pixels(self, levels: Tensor) -> Tensor:
        return levels if levels.is_floating_point() else levels.float().div_(self.scale)


@dataclass(frozen=True)
class Data:
    """A data set in three parts, none of which shares an image with another."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    ball: Ball
    augment: Augmentation = augment.none
    known: Moments | None = None  # mean and std of the training part, where counting would read a whole disk

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self.train.images.shape[1:])

    def ball_of(self, eps: float) -> Ball:
        """The ball of this data set with another `eps`, in pixels, or the customary one where `eps` is 0.

        Raises ValueError for any other `eps` that is not positive and finite.
        """
        return replace(self.ball, eps=eps) if eps else self.ball

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the training part, in [0, 1]."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over the training part, in [0, 1]."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> Moments:
        return self.known or moments.of(self.train.images, self.train.scale)


def load(name: str) -> Data:
    """A data set by name.

    Raises ValueError for an unknown one, with the nearest, and for missing or damaged files, with the command that
    brings them.
    """
    if name not in DATASETS and ADOPTED.fullmatch(name) and (found := adopted_file(name)).is_file():
        return _adopted(name, found)
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"dataset is {name!r}, expected one of {', '.join(DATASETS)}{hint}")
    return DATASETS[name]()


def digits() -> Data:
    """scikit-learn's 1,797 digits, 8 x 8, 17 grey levels: 1,293 to train, 144 to validate, 360 to test.

    The split is fixed and stratified, so that all runs share their test images. Linf 0.1, as is usual for MNIST-like
    images at this size.
    """
    from sklearn.datasets import load_digits  # a second, which other sets need not wait
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.uint8)[:, None]
    y = torch.tensor(bunch.target, dtype=torch.long)
    rest, test = train_test_split(range(len(y)), test_size=360, stratify=y, random_state=0)
    train, validation = train_test_split(rest, test_size=144, stratify=y[rest], random_state=0)
    first, second, third = (Split(images[part], y[part], scale=16) for part in (train, validation, test))
    return Data("digits", train=first, validation=second, test=third, classes=10, ball=Ball(0.1))


def fashion_mnist() -> Data:
    """Zalando's 70,000 articles of clothing, 28 x 28, grey (Xiao et al. 2017): 54,000, 6,000 and 10,000. Linf 0.1."""
    return _torchvision("fashion-mnist", 10, Ball(0.1), augment.flip)


def cifar10() -> Data:
    """60,000 small photographs, 32 x 32, of ten things (Krizhevsky 2009): 45,000, 5,000 and 10,000. Linf 8/255."""
    return _torchvision("cifar10", 10, Ball(8 / 255), augment.flip_translate)


def cifar100() -> Data:
    """As CIFAR-10, of a hundred things (the fine labels)."""
    return _torchvision("cifar100", 100, Ball(8 / 255), augment.flip_translate)


def imagenet100(size: int = 64) -> Data:
    """A hundred classes of ILSVRC at `size` pixels, mapped from disk as `prepare` wrote them. Linf 4/255.

    A tenth of the training images validates; the ILSVRC validation images of these classes test.
    """
    mapped = readers.imagenet100(size)
    train, validation, test = (Split(*mapped.parts[name]) for name in ("train", "validation", "test"))
    name = "imagenet100" if size == 64 else f"imagenet100-{size}"
    return Data(
        name, train, validation, test, len(mapped.classes), Ball(4 / 255), augment.flip_crop, known=mapped.moments
    )


def adopted_file(name: str) -> Path:
    """Where `training.adopt` keeps the images of somebody's own under this name."""
    return readers.folder() / "own" / f"{name}.npz"


def _adopted(name: str, path: Path) -> Data:
    """Images that came with a model: nothing was trained on them, so that all three parts are the same.

    Their name ends with the start of their file's hash.
    """
    content = path.read_bytes()
    if not hashlib.sha256(content).hexdigest().startswith(name.rpartition("-")[2]):
        raise ValueError(f"{name}: {path} is damaged: its SHA-256 is not the one in its name; adopt the model again")
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        norm: Any = str(found["norm"])
        split = Split(torch.from_numpy(found["x"]), torch.from_numpy(found["y"]))
        ball = Ball(float(found["eps"]), norm)
        known = tuple(found["mean"].tolist()), tuple(found["std"].tolist())
        return Data(name, split, split, split, int(found["classes"]), ball, known=known)


def _torchvision(name: str, classes: int, ball: Ball, augmentation: Augmentation) -> Data:
    """A tenth of each class of the training images validates: always the same images, whatever the seed of a run."""
    (images, y), test = readers.read(name, classes)
    train, validation = readers.hold_out(y)
    return Data(
        name,
        train=Split(images[train], y[train]),
        validation=Split(images[validation], y[validation]),
        test=Split(*test),
        classes=classes,
        ball=ball,
        augment=augmentation,
    )


def subset(split: Split, samples: int, seed: int, device: str = "cpu") -> tuple[Images, Labels]:
    """`samples` images drawn without replacement, the same for every model; all of them where there are no more.

    They and their labels come on the `device` (see `devices.find`).
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:samples]
    x, y = split.at(order)
    place = devices.find(device)
    return x.to(place), y.to(place)


def part(split: Split, images: int) -> Split:
    """The first `images` of a fixed shuffle, the same for every run, in their old order.

    Raises ValueError where there are not as many.
    """
    if images > len(split):
        raise ValueError(f"images is {images}, expected at most the {len(split)} of the training part")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:images].sort().values
    kept = order.numpy() if isinstance(split.images, np.ndarray) else order
    return Split(split.images[kept], split.y[order], split.scale)


def batches(split: Split, size: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch's shuffled index batches. A last batch of a single image is left out: batch norm cannot use it."""
    order = torch.randperm(len(split), generator=generator)
    return [batch for batch in order.split(size) if len(batch) > 1]


DATASETS: dict[str, Callable[[], Data]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenet100": imagenet100,
    "imagenet100-32": partial(imagenet100, 32),
    "imagenet100-224": partial(imagenet100, 224),
}
