"""Data sets read from small files in their real formats on disk, and what is refused of them."""

import dataclasses
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

from gradlens import Ball
from tests.training.sources import cifar, fashion, idx
from training import augment, data, moments, readers
from training.data import Split


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRADLENS_DATA", str(tmp_path))
    return tmp_path


def unpacked(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def test_fashion_mnist_has_the_pixels_and_labels_of_its_idx_files(root, monkeypatch):
    train, test = fashion(monkeypatch, samples=100), fashion(monkeypatch, samples=30, seed=1, part="t10k")
    unpacked(root, {f"FashionMNIST/raw/{name}": one for name, one in {**train.files, **test.files}.items()})
    loaded = data.load("fashion-mnist")
    assert loaded.shape == (1, 28, 28)
    assert torch.equal(loaded.test.x, torch.tensor(test.images / 255, dtype=torch.float32)[:, None])
    assert loaded.test.y.tolist() == test.labels.tolist()
    rest = [one for part in (loaded.train, loaded.validation) for one in zip(part.x, part.y.tolist(), strict=True)]
    whole = {(image.tobytes(), label) for image, label in zip(train.images, train.labels.tolist(), strict=True)}
    assert {((255 * x).round().byte().numpy().tobytes(), y) for x, y in rest} == whole


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_has_the_pixels_and_labels_of_its_batches(root, monkeypatch, name, classes):
    """A row is 1,024 red, 1,024 green and 1,024 blue pixels. CIFAR-100 has the fine labels."""
    source = cifar(monkeypatch, name)
    unpacked(root, source.files)
    loaded = data.load(name)
    assert loaded.classes == classes
    assert torch.equal(loaded.test.x, torch.tensor(source.test[0].reshape(-1, 3, 32, 32) / 255, dtype=torch.float32))
    assert loaded.test.y.tolist() == source.test[1].tolist()
    rest = [one for part in (loaded.train, loaded.validation) for one in zip(part.images, part.y.tolist(), strict=True)]
    assert len(rest) == len(source.train[1])
    whole = {(row.tobytes(), label) for row, label in zip(*source.train, strict=True)}
    assert {(x.numpy().tobytes(), y) for x, y in rest} == {(row, int(label)) for row, label in whole}


@pytest.mark.parametrize(
    ("name", "ball", "augmentation"),
    [("fashion-mnist", Ball(0.1), augment.flip), ("cifar10", Ball(8 / 255), augment.flip_translate),
     ("cifar100", Ball(8 / 255), augment.flip_translate)],
)  # fmt: skip
def test_each_set_has_its_customary_ball_and_augmentation(root, monkeypatch, name, ball, augmentation):
    if name == "fashion-mnist":
        parts = [fashion(monkeypatch), fashion(monkeypatch, part="t10k")]
        unpacked(root, {f"FashionMNIST/raw/{file}": one for part in parts for file, one in part.files.items()})
    else:
        unpacked(root, cifar(monkeypatch, name).files)
    loaded = data.load(name)
    assert (loaded.name, loaded.ball) == (name, ball)
    x, seeds = loaded.train.x, [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(loaded.augment(x, seeds[0]), augmentation(x, seeds[1]))


def test_digits_are_sixteenths_to_the_bit_and_are_not_augmented(generator):
    digits = data.load("digits")
    levels = 16 * digits.train.x
    assert torch.equal(levels, levels.round())
    assert levels.unique().tolist() == list(range(17))
    assert digits.augment(digits.train.x, generator).equal(digits.train.x)
    assert digits.ball == Ball(0.1)


@pytest.mark.parametrize("size", [1, 7, 1 << 24])
def test_moments_do_not_depend_on_chunks_and_are_exact(monkeypatch, size):
    """Against numpy in float64 on the same pixels, and a two-valued channel in closed form."""
    monkeypatch.setattr(moments, "CHUNK", size)
    levels = np.random.default_rng(0).integers(0, 256, (11, 3, 4, 5), dtype=np.uint8)
    levels[:, 2] = np.where(np.arange(20).reshape(4, 5) < 5, 255, 0)
    pixels = levels / 255
    for images in (levels, torch.from_numpy(levels)):
        mean, std = moments.of(images, 255)
        assert mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-14)
        assert std == pytest.approx(pixels.std((0, 2, 3), ddof=1), rel=1e-12)
    assert mean[2] == 0.25
    assert std[2] ** 2 == pytest.approx(0.25 * 0.75 * 220 / 219, rel=1e-14)


def test_a_tenth_of_each_class_validates_and_always_the_same():
    y = torch.tensor([0] * 100 + [1] * 57 + [2] * 4 + [3])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    train, validation = readers.hold_out(y)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(y)))
    assert torch.bincount(y[validation], minlength=4).tolist() == [10, 6, 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(readers.hold_out(y), (train, validation), strict=True))


def test_a_split_on_disk_reads_the_rows_that_are_asked_for(tmp_path):
    """The same batches as in memory, and moving it to a device leaves it on disk."""
    levels = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", levels)
    y = torch.arange(50) % 5
    here, there = Split(torch.from_numpy(levels), y), Split(np.load(tmp_path / "x.npy", mmap_mode="r"), y)
    for index in (torch.tensor([3, 49, 3]), torch.arange(50), torch.tensor([], dtype=torch.long)):
        for one, other in zip(here.at(index), there.at(index), strict=True):
            assert torch.equal(one, other)
    assert there.to("cpu") is there
    assert torch.equal(data.subset(here, 20, seed=3)[0], data.subset(there, 20, seed=3)[0])
    x, _ = there.at(torch.arange(3))
    x.zero_()  # a copy: the map is read-only
    assert torch.equal(there.x, here.x)


def test_a_split_moves_with_its_pixels_and_its_scale():
    split = Split(torch.tensor([[[[0, 8, 16]]]], dtype=torch.uint8), torch.tensor([1]), scale=16)
    moved = split.to("meta")
    assert (moved.images.device.type, moved.y.device.type) == ("meta", "meta")
    assert split.to("cpu").x.tolist() == [[[[0, 0.5, 1]]]]


# ---- what is refused


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_missing_files_are_named_with_the_command_that_brings_them(root, name):
    first = root / next(iter(readers.files(name)))
    with pytest.raises(ValueError, match="is missing") as refusal:
        data.load(name)
    assert str(first) in str(refusal.value)
    assert f"python -m training prepare {name}" in str(refusal.value)


@pytest.mark.parametrize("size", [32, 64, 224])
def test_imagenet_that_was_not_prepared_says_how(root, size):
    name = "imagenet100" if size == 64 else f"imagenet100-{size}"
    with pytest.raises(
        ValueError, match=rf"imagenet100-{size}/meta.json is missing.*prepare imagenet100 --size {size}"
    ):
        data.load(name)


def test_a_changed_byte_is_refused_before_anything_is_unpickled(root, monkeypatch):
    """The damaged batch is a pickle that would create a file."""
    source = cifar(monkeypatch, "cifar10")
    unpacked(root, source.files)
    victim, trace = root / "cifar-10-batches-py/data_batch_2", root / "executed"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (trace,)

    victim.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match=r"data_batch_2 is damaged or another file: its md5 is [0-9a-f]{32}, expected"):
        data.load("cifar10")
    assert not trace.exists()


def test_a_truncated_idx_file_is_refused_by_name(root, monkeypatch):
    parts = [fashion(monkeypatch), fashion(monkeypatch, part="t10k")]
    unpacked(root, {f"FashionMNIST/raw/{file}": one for part in parts for file, one in part.files.items()})
    victim = root / "FashionMNIST/raw/train-labels-idx1-ubyte"
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte is damaged or another file: its sha256 is"):
        data.load("fashion-mnist")


def test_labels_outside_the_classes_are_refused(root, monkeypatch):
    parts = [fashion(monkeypatch), fashion(monkeypatch, part="t10k")]
    files = {file: one for part in parts for file, one in part.files.items()}
    labels = parts[0].labels.copy()
    labels[5] = 10
    files["train-labels-idx1-ubyte"] = idx(labels)
    monkeypatch.setitem(
        readers.FASHION, "train-labels-idx1-ubyte", hashlib.sha256(files["train-labels-idx1-ubyte"]).hexdigest()
    )
    unpacked(root, {f"FashionMNIST/raw/{file}": one for file, one in files.items()})
    with pytest.raises(ValueError, match="has label 10 at image 5, expected classes 0 to 9"):
        data.load("fashion-mnist")


def test_unequal_numbers_of_images_and_labels_are_refused(root, monkeypatch):
    parts = [fashion(monkeypatch), fashion(monkeypatch, part="t10k")]
    files = {file: one for part in parts for file, one in part.files.items()}
    files["t10k-labels-idx1-ubyte"] = idx(parts[1].labels[:-1])
    monkeypatch.setitem(
        readers.FASHION, "t10k-labels-idx1-ubyte", hashlib.sha256(files["t10k-labels-idx1-ubyte"]).hexdigest()
    )
    unpacked(root, {f"FashionMNIST/raw/{file}": one for file, one in files.items()})
    with pytest.raises(ValueError, match="40 images and 39 labels"):
        data.load("fashion-mnist")


def prepared(root: Path, size: int = 64) -> Path:
    """What `prepare imagenet100` leaves, for two classes."""
    home = root / f"imagenet100-{size}"
    home.mkdir()
    counts = {"train": 4, "validation": 2, "test": 2}
    for part, count in counts.items():
        np.save(home / f"{part}.npy", np.full((count, 3, size, size), 7, np.uint8))
        np.save(home / f"{part}_labels.npy", np.arange(count) % 2)
    meta = {"size": size, "classes": ["n01440764", "n01443537"], "counts": counts, "mean": [0.1] * 3, "std": [0.2] * 3}
    (home / "meta.json").write_text(json.dumps(meta))
    return home


def test_imagenet_is_mapped_and_takes_its_moments_from_its_record(root):
    prepared(root)
    loaded = data.load("imagenet100")
    assert isinstance(loaded.train.images, np.memmap)
    assert (loaded.shape, loaded.classes, loaded.ball) == ((3, 64, 64), 2, Ball(4 / 255))
    assert (loaded.mean, loaded.std) == ((0.1,) * 3, (0.2,) * 3)
    assert loaded.train.at(torch.tensor([1]))[0].unique().tolist() == pytest.approx([7 / 255])
    assert dataclasses.replace(loaded, known=None).mean == pytest.approx([7 / 255] * 3)


def test_a_truncated_array_is_refused_by_name(root):
    victim = prepared(root) / "train.npy"
    victim.write_bytes(victim.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"imagenet100-64/train.npy is missing or damaged .*; prepare it again"):
        data.load("imagenet100")


def test_arrays_that_are_not_what_their_record_says_are_refused(root):
    np.save(prepared(root) / "test.npy", np.zeros((3, 3, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"test.npy holds uint8 \(3, 3, 64, 64\) and 2 labels, meta.json says uint8"):
        data.load("imagenet100")


def test_a_label_array_with_a_class_too_many_is_refused(root):
    np.save(prepared(root) / "test_labels.npy", np.array([0, 2]))
    with pytest.raises(ValueError, match=r"test_labels.npy has label 2 at image 1, expected classes 0 to 1"):
        data.load("imagenet100")


def test_an_array_of_objects_is_refused_and_not_unpickled(root):
    np.save(prepared(root) / "test_labels.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"test_labels.npy is missing or damaged"):
        data.load("imagenet100")


@pytest.mark.parametrize(("name", "near"), [("fashon-mnist", "fashion-mnist"), ("cifar-10", "cifar10")])
def test_an_unknown_set_suggests_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"dataset is '{name}', expected one of digits.*did you mean '{near}'\?"):
        data.load(name)


def test_torchvision_still_knows_the_files_that_are_hashed_here():
    assert {name.removesuffix(".gz") for name, _ in torchvision.datasets.FashionMNIST.resources} == set(readers.FASHION)
