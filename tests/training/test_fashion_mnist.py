"""Fashion-MNIST itself, from Debian's package dataset-fashion-mnist: apt-get install dataset-fashion-mnist."""

import gzip
import hashlib
import struct
from pathlib import Path

import pytest
import torch

from training import data, readers
from training.prepare import prepare

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
STAMPS = {"train": 1504176606, "t10k": 1504176627}  # seconds in Zalando's gzip headers: 31 August 2017, 10:50 UTC

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"),
]


@pytest.fixture(scope="module")
def fashion(tmp_path_factory) -> data.Data:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADLENS_DATA", str(tmp_path_factory.mktemp("data")))
        prepare("fashion-mnist", source=DEBIAN)
        return data.load("fashion-mnist")


@pytest.mark.parametrize("name", readers.FASHION)
def test_the_hashed_content_is_zalandos(name):
    """Debian's .gz with the name and the time put back into its header has the MD5 that torchvision lists."""
    packed = (DEBIAN / f"{name}.gz").read_bytes()
    assert packed[:4] == b"\x1f\x8b\x08\x00"
    header = b"\x1f\x8b\x08\x08" + struct.pack("<I", STAMPS[name.split("-")[0]]) + b"\x00\x03" + name.encode() + b"\x00"
    official = dict(readers.reader("fashion-mnist").resources)
    assert hashlib.md5(header + packed[10:]).hexdigest() == official[f"{name}.gz"]
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == readers.FASHION[name]


def test_it_has_its_published_size_and_balance(fashion):
    """Xiao et al. 2017: 60,000 and 10,000 images of 28 x 28, 7,000 a class."""
    assert (len(fashion.train), len(fashion.validation), len(fashion.test)) == (54000, 6000, 10000)
    assert fashion.shape == (1, 28, 28)
    for part, each in ((fashion.train, 5400), (fashion.validation, 600), (fashion.test, 1000)):
        assert torch.bincount(part.y).tolist() == [each] * 10


def test_its_pixels_are_those_of_the_files(fashion):
    raw = gzip.decompress((DEBIAN / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert struct.unpack(">4I", raw[:16]) == (0x803, 10000, 28, 28)
    assert (255 * fashion.test.x).round().byte().numpy().tobytes() == raw[16:]
    for part in (fashion.train, fashion.validation, fashion.test):
        x = part.at(torch.arange(len(part)))[0]
        assert (x.min(), x.max()) == (0, 1)


def test_mean_and_deviation_are_the_ones_everybody_uses(fashion):
    """0.2860 and 0.3530 over the 60,000; a training part of 54,000 draws differs by chance."""
    assert fashion.mean == pytest.approx([0.2860], abs=5e-4)
    assert fashion.std == pytest.approx([0.3530], abs=5e-4)


def test_no_image_is_in_two_parts_of_the_training_files(fashion):
    """As many images as places, up to the few that Zalando has twice."""
    seen = {image.numpy().tobytes() for part in (fashion.train, fashion.validation) for image in part.images}
    assert len(seen) > 59900


def test_a_linear_classifier_learns_what_linear_classifiers_learn(fashion, generator):
    """About 84% in the publishers' own benchmark: images and labels belong together."""
    x, y = data.subset(fashion.train, 20000, 0)
    model = torch.nn.Linear(784, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(5):
        for batch in torch.randperm(len(x), generator=generator).split(100):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch].flatten(1)), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(fashion.test.x.flatten(1)).argmax(1) == fashion.test.y).float().mean()
    assert 0.80 < right < 0.87
