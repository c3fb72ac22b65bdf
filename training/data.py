"""Data sets as tensors: pixels in [0, 1], labels, and the threat model that is customary on them."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from gradlens import Ball
from gradlens.types import Images, Labels


@dataclass(frozen=True)
class Split:
    """Images (N, channels, height, width) in [0, 1] and their class numbers."""

    x: Images
    y: Labels

    def __len__(self) -> int:
        return len(self.y)

    def at(self, index: Tensor) -> tuple[Images, Labels]:
        """Images in [0, 1] and labels at these places."""
        return self.x[index], self.y[index]


@dataclass(frozen=True)
class Data:
    """A data set in three parts, none of which shares an image with another."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    ball: Ball

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self.train.x.shape[1:])

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the training part."""
        return tuple(self.train.x.mean((0, 2, 3)).tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over the training part."""
        return tuple(self.train.x.std((0, 2, 3)).tolist())


def load(name: str) -> Data:
    """A data set by name; raises ValueError for an unknown one, with the nearest."""
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
    bunch = load_digits()
    x = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(bunch.target, dtype=torch.long)
    rest, test = train_test_split(range(len(y)), test_size=360, stratify=y, random_state=0)
    train, validation = train_test_split(rest, test_size=144, stratify=y[rest], random_state=0)
    first, second, third = (Split(x[part], y[part]) for part in (train, validation, test))
    return Data("digits", train=first, validation=second, test=third, classes=10, ball=Ball(0.1))


def subset(split: Split, samples: int, seed: int) -> tuple[Images, Labels]:
    """`samples` images drawn without replacement, the same for every model; all of them where there are no more."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:samples]
    return split.at(order)


def batches(split: Split, size: int, generator: torch.Generator) -> list[Tensor]:
    """One epoch's shuffled index batches. A last batch of a single image is left out: batch norm cannot use it."""
    order = torch.randperm(len(split), generator=generator)
    return [batch for batch in order.split(size) if len(batch) > 1]


DATASETS: dict[str, Callable[[], Data]] = {"digits": digits}
