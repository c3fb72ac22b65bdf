"""prepare: from packed files and folders of photographs to a data folder that is right or untouched."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tests.training.sources import cifar, fashion, ilsvrc, packed, photograph
from training import data, imagenet, readers
from training.__main__ import main
from training.prepare import prepare

IDS = ["n02000001", "n01000002", "n03000003", "n01000001"]  # not in order


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GRADLENS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """The address of a server on this machine, and of the folder tmp_path/served."""
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "served")
    ) as running:
        running.handle_error = lambda *args: None  # torchvision hangs up in the middle of a first look
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def class_list(folder: Path, ids: list[str] = IDS, text: str = " some name, another") -> Path:
    (folder / "list.txt").write_text("\n".join(one + text for one in ids) + "\n\n")
    return folder / "list.txt"


def left(folder: Path) -> list[str]:
    """What is in the data folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ---- Fashion-MNIST and CIFAR


def test_packed_idx_files_become_a_data_set(root, tmp_path, monkeypatch):
    train, test = fashion(monkeypatch), fashion(monkeypatch, part="t10k", seed=1)
    answer = prepare("fashion-mnist", source=packed(tmp_path / "source", train, test))
    assert data.load("fashion-mnist").test.images[:, 0].numpy().tobytes() == test.images.tobytes()
    assert answer.count("packed differently from Zalando's") == 4  # these .gz are not his
    assert left(root) == ["FashionMNIST"]
    assert "already in" in prepare("fashion-mnist")


def test_a_gz_of_the_publisher_is_not_remarked_upon(root, tmp_path, monkeypatch):
    source = packed(tmp_path / "source", fashion(monkeypatch), fashion(monkeypatch, part="t10k"))
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in source.iterdir()]
    monkeypatch.setattr(readers.reader("fashion-mnist"), "resources", sums)
    assert "packed differently" not in prepare("fashion-mnist", source=source)


def test_idx_files_that_are_unpacked_already_are_copied(root, tmp_path, monkeypatch):
    for part in (fashion(monkeypatch), fashion(monkeypatch, part="t10k")):
        for name, content in part.files.items():
            (tmp_path / name).write_bytes(content)
    prepare("fashion-mnist", source=tmp_path)
    assert len(data.load("fashion-mnist").test) == 40


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("shape", ["archive", "folder of the archive", "unpacked", "folder of the unpacked"])
def test_cifar_comes_from_its_archive_or_its_folder(root, tmp_path, monkeypatch, name, shape):
    source, kind = cifar(monkeypatch, name), readers.reader(name)
    (tmp_path / "source").mkdir()
    if "archive" in shape:
        (tmp_path / "source" / kind.filename).write_bytes(source.archive())
    else:
        (tmp_path / "source" / kind.base_folder).mkdir()
        for path, content in source.files.items():
            (tmp_path / "source" / path).write_bytes(content)
    inside = {"archive": kind.filename, "unpacked": kind.base_folder}.get(shape, "")
    prepare(name, source=tmp_path / "source" / inside)
    assert data.load(name).test.images.numpy().tobytes() == source.test[0].tobytes()
    assert left(root) == [kind.base_folder]


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default:DeprecationWarning")  # torchvision's extractall
def test_cifar_is_downloaded_and_compared_with_its_checksum(root, tmp_path, monkeypatch, server):
    archive, kind = cifar(monkeypatch, "cifar10").archive(), readers.reader("cifar10")
    (tmp_path / "served" / kind.filename).write_bytes(archive)
    monkeypatch.setattr(kind, "url", server + kind.filename)
    with pytest.raises(ValueError, match=r"cifar10 could not be downloaded .*--source"):  # the real archive's checksum
        prepare("cifar10")
    assert left(root) == []
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive).hexdigest())
    prepare("cifar10")
    assert left(root) == [kind.base_folder]
    assert len(data.load("cifar10").test) == 20


def test_fashion_mnist_is_downloaded_and_compared_with_its_checksum(root, tmp_path, monkeypatch, server):
    source = packed(tmp_path / "served", fashion(monkeypatch), fashion(monkeypatch, part="t10k"))
    kind = readers.reader("fashion-mnist")
    monkeypatch.setattr(kind, "mirrors", [server])
    with pytest.raises(ValueError, match="fashion-mnist could not be downloaded"):
        prepare("fashion-mnist")
    assert left(root) == []
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in source.iterdir()]
    monkeypatch.setattr(kind, "resources", sums)
    prepare("fashion-mnist")
    assert len(data.load("fashion-mnist").test) == 40


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_truncated_archive_is_refused_by_name(root, tmp_path, monkeypatch, name):
    content = cifar(monkeypatch, name).archive()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut.tar.gz is truncated or no archive"):
        prepare(name, source=tmp_path / "cut.tar.gz")
    assert left(root) == []


def test_a_truncated_gz_is_refused_by_name(root, tmp_path, monkeypatch):
    source = packed(tmp_path / "source", fashion(monkeypatch), fashion(monkeypatch, part="t10k"))
    victim = source / "t10k-images-idx3-ubyte.gz"
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz is truncated or no archive"):
        prepare("fashion-mnist", source=source)
    assert left(root) == []


def test_a_wrong_checksum_is_refused_by_name_and_nothing_is_left(root, tmp_path, monkeypatch):
    source = packed(tmp_path / "source", fashion(monkeypatch), fashion(monkeypatch, part="t10k"))
    monkeypatch.setitem(readers.FASHION, "train-images-idx3-ubyte", "0" * 64)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is damaged or another file.*expected 0000"):
        prepare("fashion-mnist", source=source)
    assert left(root) == []


def test_the_archive_of_the_other_cifar_is_refused(root, tmp_path, monkeypatch):
    (tmp_path / "a.tar.gz").write_bytes(cifar(monkeypatch, "cifar100").archive())
    with pytest.raises(ValueError, match=r"a.tar.gz has no cifar-10-batches-py/data_batch_1, expected cifar-10-python"):
        prepare("cifar10", source=tmp_path / "a.tar.gz")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_a_source_without_the_files_is_refused_by_name(root, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: --source .* (has no|is neither) (train-images|cifar-10-python)"):
        prepare(name, source=tmp_path)
    assert left(root) == []


def test_damaged_files_are_replaced(root, tmp_path, monkeypatch):
    source = packed(tmp_path / "source", fashion(monkeypatch), fashion(monkeypatch, part="t10k"))
    prepare("fashion-mnist", source=source)
    (root / "FashionMNIST/raw/t10k-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="replace it with: python -m training prepare fashion-mnist"):
        data.load("fashion-mnist")
    prepare("fashion-mnist", source=source)
    assert len(data.load("fashion-mnist").test) == 40


def test_the_command_line_says_what_it_did_and_what_is_wrong(root, tmp_path, monkeypatch, capsys):
    source = packed(tmp_path / "source", fashion(monkeypatch), fashion(monkeypatch, part="t10k"))
    assert main(["prepare", "fashion-mnist", "--source", str(source)]) == 0
    assert "checksums right" in capsys.readouterr().out
    assert main(["prepare", "imagenet100", "--size", "32"]) == 2
    assert "give --source, an ILSVRC folder, and --classes" in capsys.readouterr().err
    assert main(["prepare", "cifar10", "--classes", str(source)]) == 2
    assert "--classes and --val-labels are for imagenet100" in capsys.readouterr().err


# ---- ImageNet-100


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet_has_torchvisions_pixels_and_image_folders_labels(root, tmp_path, flat):
    """One class of the tree is not in the list. Witness: ImageFolder, Resize and CenterCrop."""
    source = ilsvrc(tmp_path / "ilsvrc", IDS, flat=flat)
    chosen = [IDS[0], IDS[3], IDS[2]]
    answer = prepare("imagenet100", source=source, classes=class_list(tmp_path, chosen), size=32)
    assert "3 classes, 27 train, 3 validation, 9 test" in answer
    assert "is not CMC's" in answer
    loaded = data.load("imagenet100-32")
    scale = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.PILToTensor()])
    labels = {one: number for number, one in enumerate(sorted(chosen))}
    tree = ImageFolder(source / "train", scale)
    expected = {(image.numpy().tobytes(), labels[tree.classes[y]]) for image, y in tree if tree.classes[y] in labels}
    found = [
        (image.tobytes(), int(y))
        for part in (loaded.train, loaded.validation)
        for image, y in zip(part.images, part.y, strict=True)
    ]
    assert set(found) == expected
    assert len(found) == len(expected) == 30
    lines = (IDS * 3) if flat else None
    files = sorted((source / "val").rglob("*.JPEG"))
    true = [lines[i] for i in range(len(files))] if lines else [file.parent.name for file in files]
    wanted = [(file, labels[one]) for file, one in zip(files, true, strict=True) if one in labels]
    got = {(image.tobytes(), int(y)) for image, y in zip(loaded.test.images, loaded.test.y, strict=True)}
    assert got == {(scale(Image.open(file).convert("RGB")).numpy().tobytes(), y) for file, y in wanted}


def test_the_record_says_what_was_made_of_what(root, tmp_path):
    source, listed = ilsvrc(tmp_path / "ilsvrc", IDS), class_list(tmp_path)
    prepare("imagenet100", source=source, classes=listed, size=32)
    meta = json.loads((root / "imagenet100-32" / "meta.json").read_text())
    assert meta["classes"] == sorted(IDS)
    assert meta["list_sha256"] == hashlib.sha256(listed.read_bytes()).hexdigest()
    assert meta["list_is_cmc"] is False
    pixels = np.load(root / "imagenet100-32" / "train.npy") / 255
    assert meta["mean"] == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-12)
    assert meta["std"] == pytest.approx(pixels.std((0, 2, 3), ddof=1), rel=1e-12)
    assert str(tmp_path) not in json.dumps(meta)
    assert left(root) == ["imagenet100-32"]


def test_a_list_with_cmcs_hash_is_recognised(root, tmp_path, monkeypatch):
    listed = class_list(tmp_path)
    monkeypatch.setattr(imagenet, "CMC", hashlib.sha256(listed.read_bytes()).hexdigest())
    answer = prepare("imagenet100", source=ilsvrc(tmp_path / "ilsvrc", IDS), classes=listed, size=32)
    assert "is CMC's imagenet100.txt" in answer


def test_what_is_prepared_is_not_prepared_again_unless_the_list_differs(root, tmp_path):
    source, listed = ilsvrc(tmp_path / "ilsvrc", IDS), class_list(tmp_path)
    prepare("imagenet100", source=source, classes=listed, size=32)
    assert "already in" in prepare("imagenet100", source=source, classes=listed, size=32)
    with pytest.raises(ValueError, match="imagenet100-32 was made from another class list"):
        prepare("imagenet100", source=source, classes=class_list(tmp_path, IDS[:3]), size=32)


@pytest.mark.parametrize("style", ["{id}", "{name}.JPEG {id}", "{name},{id} 10 20 30 40 {id} 1 2 3 4"])
def test_labels_of_a_flat_folder_come_by_order_or_by_name(tmp_path, style):
    """The last is Kaggle's table, which has a header; with names, the order of the lines is free."""
    source = ilsvrc(tmp_path, IDS, flat=True)
    names = sorted(path.stem for path in (source / "val").iterdir())
    lines = [style.format(id=one, name=name) for name, one in zip(names, IDS * 3, strict=True)]
    if "name" in style:
        lines = ["ImageId,PredictionString", *reversed(lines)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    files = imagenet.validation_files(source, sorted(IDS), tmp_path / "labels.csv")
    truth = dict(zip(names, IDS * 3, strict=True))
    assert [sorted(IDS)[y] for y in files.y.tolist()] == [truth[path.stem] for path in files.paths]
    assert len(files.paths) == 12


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("n01000001\nn09999999 unicorn\nn08888888", r"train has no images of n08888888, n09999999, which the class list"),
     ("n01000001\nn02000001\nn01000001 again", "has n01000001 more than once"),
     ("n01000001\ntench", "line 2: 'tench' is no WordNet id"),
     ("n01000001\nn0100000", "line 2: 'n0100000' is no WordNet id"),
     ("\n", "has 0 ids, expected at least two")],
)  # fmt: skip
def test_a_class_list_that_does_not_fit_is_refused_by_name(root, tmp_path, text, complaint):
    source = ilsvrc(tmp_path / "ilsvrc", IDS, train=1, val=1)
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        prepare("imagenet100", source=source, classes=tmp_path / "list.txt", size=32)
    assert left(root) == []


def test_missing_folders_lists_and_labels_are_named(root, tmp_path):
    listed, source = class_list(tmp_path), tmp_path / "ilsvrc"
    with pytest.raises(ValueError, match=r"class list .*other.txt is missing"):
        prepare("imagenet100", source=source, classes=tmp_path / "other.txt")
    with pytest.raises(ValueError, match="has no folder train"):
        prepare("imagenet100", source=source, classes=listed)
    ilsvrc(source, IDS, train=1, flat=True)
    (source / "val_labels.txt").unlink()
    with pytest.raises(ValueError, match=r"val is flat, and .*val_labels.txt is missing"):
        prepare("imagenet100", source=source, classes=listed)
    (source / "val_labels.txt").write_text("490\n361\n")
    with pytest.raises(ValueError, match=r"0 lines with a WordNet id for 12 images .*numbers instead"):
        prepare("imagenet100", source=source, classes=listed)
    (source / "val_labels.txt").write_text("\n".join(f"ILSVRC2012_val_{i:08}.JPEG n01000001" for i in range(12)))
    with pytest.raises(ValueError, match=r"names 'ILSVRC2012_val_00000000.JPEG', which is not in val"):
        prepare("imagenet100", source=source, classes=listed)
    assert left(root) == []


def test_a_damaged_photograph_is_named_and_nothing_is_left(root, tmp_path):
    source = ilsvrc(tmp_path / "ilsvrc", IDS)
    victim = source / "train" / IDS[2] / f"{IDS[2]}_4.JPEG"
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"{victim.name} cannot be read as an image"):
        prepare("imagenet100", source=source, classes=class_list(tmp_path), size=32)
    assert left(root) == []


def test_an_interruption_leaves_nothing(root, tmp_path, monkeypatch):
    calls = []

    def interrupted(path, size):
        calls.append(path)
        if len(calls) > 20:
            raise KeyboardInterrupt
        return np.zeros((3, size, size), np.uint8)

    monkeypatch.setattr(imagenet, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("imagenet100", source=ilsvrc(tmp_path / "ilsvrc", IDS), classes=class_list(tmp_path), size=32)
    assert left(root) == []


@pytest.mark.parametrize(("width", "height"), [(32, 32), (33, 32), (32, 77), (500, 31), (100, 101), (20, 10)])
@pytest.mark.parametrize("size", [32, 31])
def test_scaling_and_cutting_are_torchvisions_to_the_bit(tmp_path, width, height, size):
    Image.effect_noise((width, height), 80).convert("RGB").save(tmp_path / "a.png")
    scale = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()])
    with Image.open(tmp_path / "a.png") as image:
        expected = scale(image)
    assert torch.equal(torch.from_numpy(imagenet.read_image(tmp_path / "a.png", size).copy()), expected)


PEAK = """
import sys
from pathlib import Path
from training.prepare import prepare
prepare("imagenet100", source=Path(sys.argv[1]), classes=Path(sys.argv[2]), size=224)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system has no /proc")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """Peak resident memory of a process, MiB, for 200 and for 1,200 images of 224 pixels: the arrays differ by 143 MiB.

    Linux's VmHWM, since getrusage's maximum begins at that of the process that started this one.
    """
    photograph(tmp_path / "one.JPEG", np.random.default_rng(0))
    peaks = []
    for count in (100, 600):
        source = tmp_path / str(count)
        for part, number in (("train", count), ("val", 1)):
            for one in IDS[:2]:
                (source / part / one).mkdir(parents=True)
                for i in range(number):
                    os.link(tmp_path / "one.JPEG", source / part / one / f"{i}.JPEG")
        environment = {**os.environ, "GRADLENS_DATA": str(tmp_path / f"data{count}")}
        answer = subprocess.run(
            [sys.executable, "-c", PEAK, source, class_list(tmp_path, IDS[:2])],
            env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(answer.stdout) / 1024)
    print(f"peak resident memory: {peaks[0]:.0f} and {peaks[1]:.0f} MiB")
    assert peaks[1] - peaks[0] < 40
    assert peaks[1] < 2048
