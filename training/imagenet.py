"""ImageNet-100: from ILSVRC's folders and a list of classes to uint8 arrays, an image in memory at a time."""

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from tqdm import tqdm

from gradlens.sealed import write_record
from training import moments, readers
from training.staging import staged

WORDNET = re.compile(r"\bn\d{8}\b")
SUFFIXES = (".jpeg", ".jpg", ".png")
CMC = "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"  # SHA-256 of CMC's imagenet100.txt
READ_AHEAD = 64  # decoded images that wait for their turn


@dataclass(frozen=True)
class Files:
    """Image files and their class numbers."""

    paths: list[Path]
    y: torch.Tensor

    def at(self, index: torch.Tensor) -> "Files":
        """The files at these places."""
        return Files([self.paths[i] for i in index.tolist()], self.y[index])


def prepare(source: Path, classes: Path, size: int, val_labels: Path | None = None) -> str:
    """Write train, validation and test arrays and meta.json to the data folder; what was done, in words.

    Labels follow the sorted ids, as in torchvision's ImageFolder. Each image is scaled with antialiasing until its
    short side has `size` pixels, and its centre kept. A tenth of each class of the training images validates, the
    ILSVRC validation images test.
    """
    ids = read_list(classes)
    digest = hashlib.sha256(classes.read_bytes()).hexdigest()
    home = readers.folder() / f"imagenet100-{size}"
    verdict = "is CMC's imagenet100.txt" if digest == CMC else "is not CMC's imagenet100.txt, the most used"
    if (home / "meta.json").is_file():
        if readers.meta(home)["list_sha256"] != digest:
            raise ValueError(f"imagenet100: {home} was made from another class list; move it away first")
        return f"imagenet100: already in {home}; the list (SHA-256 {digest}) {verdict}"
    training, test = training_files(source, ids), validation_files(source, ids, val_labels)
    first, second = readers.hold_out(training.y)
    parts = {"train": training.at(first), "validation": training.at(second), "test": test}
    with staged(home) as stage:
        stage.mkdir()
        counts = {name: write(stage, name, files, size) for name, files in parts.items()}
        mean, std = moments.from_counts(counts["train"], 255)
        meta = {
            "size": size,
            "classes": ids,
            "list_sha256": digest,
            "list_is_cmc": digest == CMC,
            "counts": {name: len(files.paths) for name, files in parts.items()},
            "mean": mean,
            "std": std,
            "pillow": PIL.__version__,
            "files": {path.name: readers.checksum(path) for path in sorted(stage.glob("*.npy"))},
        }
        write_record(stage / "meta.json", "images", meta)
    numbers = ", ".join(f"{len(files.paths)} {name}" for name, files in parts.items())
    return f"imagenet100: {len(ids)} classes, {numbers} in {home}\nthe class list (SHA-256 {digest}) {verdict}"


def read_list(path: Path) -> list[str]:
    """The WordNet ids that begin the lines of a class list, sorted; empty lines count for nothing.

    Raises ValueError for a missing file, a line that begins otherwise and ids that come twice, naming them.
    """
    if not path.is_file():
        raise ValueError(f"class list {path} is missing, expected a text file with a WordNet id a line")
    ids = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        match = WORDNET.match(line.strip())
        if match is None:
            raise ValueError(f"class list {path}, line {number}: {line.strip()[:40]!r} is no WordNet id like n01440764")
        ids.append(match[0])
    if doubles := sorted({one for one in ids if ids.count(one) > 1}):
        raise ValueError(f"class list {path} has {', '.join(doubles)} more than once")
    if len(ids) < 2:
        raise ValueError(f"class list {path} has {len(ids)} ids, expected at least two")
    return sorted(ids)


def training_files(source: Path, ids: list[str]) -> Files:
    """train/<id>/*: raises ValueError naming the ids without images."""
    if not (source / "train").is_dir():
        raise ValueError(f"imagenet100: --source {source} has no folder train, expected train/<WordNet id>/*.JPEG")
    return _collect({one: _images(source / "train" / one) for one in ids}, source / "train")


def validation_files(source: Path, ids: list[str], val_labels: Path | None = None) -> Files:
    """val/<id>/*, or a flat val/ with a file of WordNet ids.

    That file has a line an image: an id alone, in the order of the file names, or an image's name and its id, as in
    Kaggle's LOC_val_solution.csv.
    """
    val = source / "val"
    if not val.is_dir():
        raise ValueError(f"imagenet100: --source {source} has no folder val, expected ILSVRC's validation images")
    if any(place.is_dir() for place in val.iterdir()):
        return _collect({one: _images(val / one) for one in ids}, val)
    listed = val_labels or source / "val_labels.txt"
    if not listed.is_file():
        raise ValueError(f"imagenet100: {val} is flat, and {listed} is missing: a text file with a WordNet id an image")
    found: dict[str, list[Path]] = {one: [] for one in ids}
    for path, one in _labelled(_images(val), listed):
        if one in found:
            found[one].append(path)
    return _collect(found, val)


def _labelled(images: list[Path], listed: Path) -> Iterator[tuple[Path, str]]:
    lines = [line for line in listed.read_text().splitlines() if WORDNET.search(line)]
    if len(lines) != len(images):
        raise ValueError(
            f"{listed} has {len(lines)} lines with a WordNet id for {len(images)} images in val, expected one each "
            "(the devkit's ground truth has numbers instead, which mean nothing without its meta.mat)"
        )
    stems = {path.stem: path for path in images}
    for path, line in zip(images, lines, strict=True):
        match, word = WORDNET.search(line), re.split(r"[\s,]", line.strip())[0]
        assert match is not None
        named = word != match[0]
        if named and Path(word).stem not in stems:
            raise ValueError(f"{listed} names {word!r}, which is not in val")
        yield (stems[Path(word).stem] if named else path), match[0]


def write(folder: Path, name: str, files: Files, size: int) -> np.ndarray:
    """Write name.npy, image after image, and name_labels.npy; how often each channel has each level.

    Written as a stream: pages of a map that is written to would count as this process's memory.
    """
    np.save(folder / f"{name}_labels.npy", files.y.numpy())
    counts = np.zeros((3, moments.LEVELS), np.int64)
    shape = (len(files.paths), 3, size, size)
    with (folder / f"{name}.npy").open("wb") as out, ThreadPoolExecutor(os.cpu_count()) as pool:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        with tqdm(total=len(files.paths), desc=name, unit="image", disable=None) as bar:
            for start in range(0, len(files.paths), READ_AHEAD):
                group = files.paths[start : start + READ_AHEAD]
                images = np.stack(list(pool.map(read_image, group, itertools.repeat(size))))
                counts += moments.histogram(images)
                out.write(images.tobytes())
                bar.update(len(group))
    return counts


def read_image(path: Path, size: int) -> np.ndarray:
    """An image's centre as (3, size, size), after scaling its short side to `size` with antialiasing.

    torchvision's Resize(size) and CenterCrop(size) on a PIL image, to the bit.
    """
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise ValueError(f"imagenet100: {path} cannot be read as an image: {error}") from error
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _collect(found: dict[str, list[Path]], folder: Path) -> Files:
    if absent := [one for one, paths in found.items() if not paths]:
        raise ValueError(f"imagenet100: {folder} has no images of {', '.join(absent)}, which the class list names")
    paths = [path for one in sorted(found) for path in found[one]]
    y = [number for number, one in enumerate(sorted(found)) for _ in found[one]]
    return Files(paths, torch.tensor(y, dtype=torch.long))
