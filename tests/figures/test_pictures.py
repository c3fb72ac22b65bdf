"""Pictures in the page are smaller and the same, pixel by pixel."""

import numpy as np
from PIL import Image

from figures.pictures import shrink


def test_a_picture_keeps_every_pixel_also_unseen_ones(tmp_path):
    levels = np.zeros((60, 80, 4), np.uint8)
    levels[10:50, 10:70] = (200, 30, 60, 255)
    levels[20:30, 20:30] = (1, 2, 3, 0)
    Image.fromarray(levels).save(tmp_path / "a.png")
    small = shrink(tmp_path / "a.png")
    assert small == tmp_path / "a.webp"
    assert small.stat().st_size < (tmp_path / "a.png").stat().st_size
    np.testing.assert_array_equal(np.asarray(Image.open(small)), levels)


def test_a_picture_that_would_grow_stays_as_it_is(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "save", lambda self, file, *_, **__: file.write(bytes(10_000)))
    assert shrink(tmp_path / "a.png") is None
    assert not (tmp_path / "a.webp").exists()
