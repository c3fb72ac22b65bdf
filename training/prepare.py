"""python -m training prepare: brings a data set's files into the data folder, verified, all of them or none."""

import gzip
import hashlib
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import tyro

from training import imagenet, readers
from training.staging import staged

Name = Literal["fashion-mnist", "cifar10", "cifar100", "imagenet100"]


def prepare_command(
    name: tyro.conf.Positional[Name],
    source: Path | None = None,
    classes: Path | None = None,
    val_labels: Path | None = None,
    size: Literal[32, 64, 224] = 64,
) -> None:
    """Bring a data set into the data folder ($GRADLENS_DATA, or data/ in the project).

    Args:
        name: Data set.
        source: Files already there, instead of a download. fashion-mnist: folder of the idx files, as Debian's package
            dataset-fashion-mnist has under /usr/share/datasets/fashion-mnist. cifar: the .tar.gz, or its folder.
            imagenet100: the ILSVRC folder, with train/ and val/.
        classes: imagenet100's class list, a WordNet id a line.
        val_labels: Where val/ is flat: text file of WordNet ids, a line an image; val_labels.txt in the source if not
            given.
        size: Pixels a side of imagenet100.
    """
    print(prepare(name, source=source, classes=classes, val_labels=val_labels, size=size))  # noqa: T201 - a command


def prepare(
    name: Name,
    *,
    source: Path | None = None,
    classes: Path | None = None,
    val_labels: Path | None = None,
    size: int = 64,
) -> str:
    """Bring a data set into the data folder; what was done, in words.

    Raises ValueError naming what is missing, damaged or not what it should be; the data folder is then as it was.
    """
    if name == "imagenet100":
        if source is None or classes is None:
            raise ValueError("imagenet100 cannot be downloaded: give --source, an ILSVRC folder, and --classes, a list")
        return imagenet.prepare(source, classes, size, val_labels)
    if classes is not None or val_labels is not None:
        raise ValueError(f"--classes and --val-labels are for imagenet100, {name} has its own")
    root = readers.folder()
    top = Path(next(iter(readers.files(name)))).parts[0]
    try:
        readers.verify(name, root)
        return f"{name}: already in {root / top}, checksums right"
    except ValueError:
        pass  # missing or damaged: that is what this is for
    with staged(root / top) as stage:
        if source is None:
            notes = _download(name, stage.parent)
        elif name == "fashion-mnist":
            notes = _idx(source, stage.parent)
        else:
            notes = _batches(name, source, stage.parent)
        readers.verify(name, stage.parent)
    return "\n".join([*notes, f"{name}: in {root / top}, checksums right"])


def _download(name: str, root: Path) -> list[str]:
    """torchvision's download, which compares MD5 sums."""
    try:
        readers.reader(name)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{name} could not be downloaded ({error}); with the files at hand, name their folder with --source"
        ) from error
    return [f"{name}: downloaded"]


def _idx(source: Path, root: Path) -> list[str]:
    """Unpack the four idx files, from .gz or as they are, and say which .gz is not Zalando's own."""
    official = dict(readers.reader("fashion-mnist").resources)
    notes = []
    for path in readers.files("fashion-mnist"):
        file = Path(path).name
        packed, target = source / f"{file}.gz", root / path
        if not packed.is_file() and not (source / file).is_file():
            raise ValueError(f"fashion-mnist: --source {source} has no {packed.name}, expected four idx files")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not packed.is_file():
            shutil.copyfile(source / file, target)
            continue
        with refusing_damage(packed), gzip.open(packed) as opened, target.open("wb") as unpacked:
            shutil.copyfileobj(opened, unpacked)
        found = hashlib.md5(packed.read_bytes(), usedforsecurity=False).hexdigest()
        if found != official.get(packed.name):
            notes.append(f"{packed.name}: packed differently from Zalando's (MD5 {found}); what counts is its content")
    return notes


def _batches(name: str, source: Path, root: Path) -> list[str]:
    """Copy the batches of CIFAR out of the archive, the folder that holds it, or the folder it unpacks to."""
    kind = readers.reader(name)
    inside = [Path(path) for path in readers.files(name)]
    folders = [place for place in (source / kind.base_folder, source) if (place / inside[0].name).is_file()]
    archives = [place for place in (source, source / kind.filename) if place.is_file()]
    (root / kind.base_folder).mkdir()
    if folders:
        for path in inside:
            if not (folders[0] / path.name).is_file():
                raise ValueError(f"{name}: --source {source} has no {path.name}")
            shutil.copyfile(folders[0] / path.name, root / path)
        return []
    if not archives:
        raise ValueError(f"{name}: --source {source} is neither {kind.filename} nor a folder with {kind.base_folder}")
    with refusing_damage(archives[0]), tarfile.open(archives[0]) as archive:
        for path in inside:
            try:
                member = archive.extractfile(path.as_posix())
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"{name}: {archives[0]} has no {path.as_posix()}, expected {kind.filename}")
            (root / path).write_bytes(member.read())
    return []


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """What gzip and tar raise for a truncated or broken file, as a ValueError that names it."""
    try:
        yield
    except (EOFError, OSError, zlib.error, tarfile.TarError) as error:
        raise ValueError(f"{path} is truncated or no archive: {error}") from error
