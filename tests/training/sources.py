"""Small data sets in the formats of the real ones, as their publishers pack them, with checksums to match."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import readers


@dataclass(frozen=True)
class Fashion:
    """One part of Fashion-MNIST: arrays, and the two unpacked idx files."""

    images: np.ndarray
    labels: np.ndarray
    files: dict[str, bytes]


@dataclass(frozen=True)
class Cifar:
    """Rows of 3,072 bytes and labels, and the files by path."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    files: dict[str, bytes]

    def archive(self) -> bytes:
        """The .tar.gz, with a file that nobody asks for, as the real one has."""
        content = io.BytesIO()
        folder = Path(next(iter(self.files))).parent
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            for path, one in {**self.files, f"{folder}/readme.html": b"<html>"}.items():
                member = tarfile.TarInfo(path)
                member.size = len(one)
                tar.addfile(member, io.BytesIO(one))
        return content.getvalue()


def idx(array: np.ndarray) -> bytes:
    """LeCun's format: two zero bytes, type 8 (unsigned byte), number of axes, their lengths big-endian, the bytes."""
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def fashion(monkeypatch: pytest.MonkeyPatch, *, part: str = "train", samples: int = 40, seed: int = 0) -> Fashion:
    """One part, whose checksums take the place of the real ones."""
    random = np.random.default_rng(seed)
    images, labels = random.integers(0, 256, (samples, 28, 28), dtype=np.uint8), np.arange(samples) % 10
    files = {f"{part}-images-idx3-ubyte": idx(images), f"{part}-labels-idx1-ubyte": idx(labels)}
    for name, content in files.items():
        monkeypatch.setitem(readers.FASHION, name, hashlib.sha256(content).hexdigest())
    return Fashion(images, labels, files)


def packed(folder: Path, *parts: Fashion) -> Path:
    """The parts as .gz files in a folder."""
    folder.mkdir(exist_ok=True)
    for part in parts:
        for name, content in part.files.items():
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


def cifar(monkeypatch: pytest.MonkeyPatch, name: str) -> Cifar:
    """CIFAR-10 in five batches, or CIFAR-100 in one, whose checksums take the place of the real ones."""
    random, classes = np.random.default_rng(0), {"cifar10": 10, "cifar100": 100}[name]
    per_batch = 2 * classes
    kind = readers.reader(name)
    files, rows, labels = {}, [], []
    for file in [file for file, _ in (*kind.train_list, *kind.test_list)]:
        rows.append(random.integers(0, 256, (per_batch, 3072), dtype=np.uint8))
        labels.append(random.permutation(np.arange(per_batch) % classes))
        content = {"data": rows[-1], "batch_label": file, "filenames": [f"{i}.png" for i in range(per_batch)]}
        if name == "cifar10":
            content["labels"] = labels[-1].tolist()
        else:
            content |= {"fine_labels": labels[-1].tolist(), "coarse_labels": (labels[-1] % 20).tolist()}
        files[file] = pickle.dumps(content, protocol=2)
    files[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: [f"thing {i}" for i in range(classes)]}, protocol=2)
    sums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(kind, listed, [[file, sums[file]] for file, _ in getattr(kind, listed)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    train = np.concatenate(rows[:-1]), np.concatenate(labels[:-1])
    paths = {f"{kind.base_folder}/{file}": content for file, content in files.items()}
    return Cifar(train, (rows[-1], labels[-1]), paths)


def ilsvrc(root: Path, ids: list[str], *, train: int = 10, val: int = 3, flat: bool = False) -> Path:
    """train/<id>/*.JPEG and val, in folders or flat with val_labels.txt: small photographs of all shapes."""
    random = np.random.default_rng(0)
    for one in ids:
        (root / "train" / one).mkdir(parents=True)
        for i in range(train):
            photograph(root / "train" / one / f"{one}_{i}.JPEG", random)
    for number, one in enumerate(ids * val, 1):
        place = root / "val" if flat else root / "val" / one
        place.mkdir(parents=True, exist_ok=True)
        photograph(place / f"ILSVRC2012_val_{number:08}.JPEG", random)
    if flat:
        (root / "val_labels.txt").write_text("\n".join(ids * val) + "\n")
    return root


def photograph(path: Path, random: np.random.Generator) -> None:
    """A JPEG of random size; every fifth or so is grey, as in ILSVRC."""
    height, width = random.integers(40, 120, 2)
    coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    image = coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC)
    (image.convert("L") if random.random() < 0.2 else image).save(path, "JPEG", quality=90)
