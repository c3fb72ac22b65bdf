"""Files in the data folder -> images and labels. What is missing or damaged is named, with the command that brings it.

The folder is $GRADLENS_DATA, or data/ in the project; inside it, each set lies as torchvision lays it.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlens.sealed import read_record
from gradlens.types import Labels
from training.moments import Moments

ROOT = Path(__file__).parents[1]
Part = tuple[Tensor, Tensor]  # uint8 (N, channels, height, width) and class numbers

# SHA-256 of the uncompressed files. torchvision knows the MD5 of Zalando's .gz only, and Debian packs the same content
# with another gzip header; a test puts the header back and finds torchvision's MD5.
FASHION = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = {"fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # in torchvision.datasets


@dataclass(frozen=True)
class Mapped:
    """ImageNet-100 as `prepare` wrote it: arrays mapped from disk, and meta.json."""

    parts: dict[str, tuple[np.ndarray, Tensor]]  # train, validation, test
    meta: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """WordNet ids in the order of the labels."""
        return self.meta["classes"]

    @property
    def moments(self) -> Moments:
        """Mean and standard deviation of each channel of the training part."""
        return tuple(self.meta["mean"]), tuple(self.meta["std"])


def folder() -> Path:
    """Where data sets lie: $GRADLENS_DATA, or data/ in the project."""
    return Path(os.environ.get("GRADLENS_DATA") or ROOT / "data")


def files(name: str) -> dict[str, tuple[str, str]]:
    """The files of a torchvision set, relative to the data folder: path -> (algorithm, checksum)."""
    if name == "fashion-mnist":
        return {f"FashionMNIST/raw/{file}": ("sha256", checksum) for file, checksum in FASHION.items()}
    source = reader(name)
    listed = [*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])]
    return {f"{source.base_folder}/{file}": ("md5", checksum) for file, checksum in listed}


def reader(name: str) -> Any:
    """torchvision's class of a data set: importing it takes a while, so only where it is needed."""
    import torchvision.datasets

    return getattr(torchvision.datasets, CLASSES[name])


def verify(name: str, root: Path) -> None:
    """Raises ValueError for the first file that is missing or not the official one, before anything in it is read."""
    for path, (algorithm, expected) in files(name).items():
        file = root / path
        if not file.is_file():
            raise ValueError(f"{name}: {file} is missing; bring it with: python -m training prepare {name}")
        found = checksum(file, algorithm)
        if found != expected:
            raise ValueError(
                f"{name}: {file} is damaged or another file: its {algorithm} is {found}, expected {expected}; "
                f"replace it with: python -m training prepare {name}"
            )


def read(name: str, classes: int) -> tuple[Part, Part]:
    """Training and test images of a torchvision set, verified."""
    root = folder()
    verify(name, root)
    train, test = (_part(name, root, is_train, classes) for is_train in (True, False))
    return train, test


def imagenet100(size: int) -> Mapped:
    """The arrays that `prepare imagenet100` wrote at `size` pixels."""
    home = folder() / f"imagenet100-{size}"
    if not (home / "meta.json").is_file():
        raise ValueError(
            f"imagenet100: {home / 'meta.json'} is missing; make it with: python -m training prepare imagenet100 "
            f"--size {size} --source ILSVRC --classes LIST"
        )
    said = meta(home)
    for file, expected in said.get("files", {}).items():  # folders from before there were hashes name none
        _unchanged(home / file, expected)
    parts = {}
    for name, count in said["counts"].items():
        images, labels = _array(home / f"{name}.npy", "r"), torch.from_numpy(_array(home / f"{name}_labels.npy", None))
        shape = (count, 3, size, size)
        if images.shape != shape or images.dtype != np.uint8 or labels.shape != (count,):
            raise ValueError(
                f"imagenet100: {home / name}.npy holds {images.dtype} {images.shape} and {len(labels)} labels, "
                f"meta.json says uint8 {shape}; delete the folder and prepare it again"
            )
        parts[name] = images, admit(labels, len(said["classes"]), f"imagenet100: {home / name}_labels.npy")
    return Mapped(parts, said)


def meta(home: Path) -> dict[str, Any]:
    """What `prepare imagenet100` says of its arrays. Raises ValueError, naming the file, where it is damaged."""
    try:
        return read_record(home / "meta.json")
    except ValueError as error:
        raise ValueError(f"imagenet100: {home / 'meta.json'} is damaged ({error}); prepare it again") from error


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, algorithm).hexdigest()


def hold_out(y: Labels, share: float = 0.1) -> tuple[Tensor, Tensor]:
    """Places of the training and of the validation images: `share` of each class validates, always the same ones."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
    validation = torch.zeros(len(y), dtype=torch.bool)
    for one in y.unique():
        members = order[y[order] == one]
        # at least one image of a class validates, unless it has only one
        validation[members[: max(round(share * len(members)), min(1, len(members) - 1))]] = True
    return (~validation).nonzero().squeeze(1), validation.nonzero().squeeze(1)


def admit(y: Labels, classes: int, source: str) -> Labels:
    """The labels; raises ValueError naming the first that is no class."""
    wrong = ((y < 0) | (y >= classes)).nonzero()
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(f"{source} has label {int(y[place])} at image {place}, expected classes 0 to {classes - 1}")
    return y


def _part(name: str, root: Path, is_train: bool, classes: int) -> Part:
    stored = reader(name)(root, train=is_train)
    images, y = torch.as_tensor(stored.data), torch.as_tensor(stored.targets)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    if len(images) != len(y):
        raise ValueError(f"{name}: {len(images)} images and {len(y)} labels in {root}, expected as many of each")
    return images, admit(y.long(), classes, f"{name}: {root}")


def _unchanged(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"imagenet100: {path} is missing; prepare it again")
    state = path.stat()
    if _hashed(path, state.st_size, state.st_mtime_ns) != expected:
        raise ValueError(f"imagenet100: {path} is damaged, its SHA-256 differs from meta.json; prepare it again")


@functools.cache
def _hashed(path: Path, size: int, changed: int) -> str:
    """Once in a process for each state of a file: a large set takes seconds."""
    return checksum(path)


def _array(path: Path, mode: Any) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"imagenet100: {path} is missing or damaged ({error}); prepare it again") from error
