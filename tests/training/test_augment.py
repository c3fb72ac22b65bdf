"""Batched augmentation against one image at a time."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as pil

from training import augment
from training.augment import AUGMENTATIONS


def pictures(batch: int = 12, channels: int = 3, height: int = 20, width: int = 30) -> Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def twin(seed: int = 0) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)


def slow_flip(x: Tensor, generator: torch.Generator, axis: int = 3) -> Tensor:
    coins = torch.rand(len(x), generator=generator) < 0.5
    mirror = pil.hflip if axis == 3 else pil.vflip
    return torch.stack([mirror(one) if coin else one for one, coin in zip(x, coins, strict=True)])


def offsets(x: Tensor, generator: torch.Generator, reach: tuple[int, int]) -> list[tuple[int, int]]:
    """How far each image moves down and right: the window's start runs the other way."""
    down = torch.randint(2 * reach[0] + 1, (len(x), 1), generator=generator)
    right = torch.randint(2 * reach[1] + 1, (len(x), 1), generator=generator)
    return [(reach[0] - int(i), reach[1] - int(j)) for i, j in zip(down, right, strict=True)]


def slow_translate(x: Tensor, generator: torch.Generator) -> Tensor:
    """torchvision's affine map with whole-pixel moves."""
    moves = offsets(x, generator, (2, 3))
    return torch.stack([pil.affine(one, 0.0, [j, i], 1.0, [0.0, 0.0]) for one, (i, j) in zip(x, moves, strict=True)])


def slow_crop(x: Tensor, generator: torch.Generator) -> Tensor:
    """A pixel outside is the pixel as far inside, the edge itself not repeated."""
    height, width = x.shape[2:]
    moved = torch.empty_like(x)
    for n, (down, right) in enumerate(offsets(x, generator, (2, 4))):
        for i in range(height):
            for j in range(width):
                source = [abs(place) for place in (i - down, j - right)]
                source = [
                    min(place, 2 * (side - 1) - place) for place, side in zip(source, (height, width), strict=True)
                ]
                moved[n, :, i, j] = x[n, :, source[0], source[1]]
    return moved


@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        (augment.flip, slow_flip),
        (lambda x, g: augment.flip(x, g, axis=2), lambda x, g: slow_flip(x, g, axis=2)),
        (augment.translate, slow_translate),
        (augment.crop, slow_crop),
        (augment.flip_translate, lambda x, g: slow_translate(slow_flip(x, g), g)),
        (augment.flip_crop, lambda x, g: slow_crop(slow_flip(x, g), g)),
        (augment.paper, lambda x, g: slow_translate(slow_flip(slow_flip(x, g), g, axis=2), g)),
    ],
    ids=["flip", "upside down", "translate", "crop", "flip-translate", "flip-crop", "paper"],
)
def test_a_batch_is_augmented_as_image_by_image(fast, slow):
    x = pictures()
    first, second = twin()
    assert torch.equal(fast(x, first), slow(x, second))
    assert torch.equal(first.get_state(), second.get_state())  # no draw more


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_only_the_given_generator_decides(name):
    x, before = pictures(), torch.random.get_rng_state()
    first, second = twin()
    one, again, other = AUGMENTATIONS[name](x, first), AUGMENTATIONS[name](x, second), AUGMENTATIONS[name](x, first)
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (name == "none")
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(x, pictures())  # what came in is left alone


def test_half_of_the_images_are_mirrored_and_moves_are_uniform(generator):
    """4,000 images with one white pixel in the middle: where it goes is what was drawn. Five standard errors."""
    x = torch.zeros(4000, 1, 21, 21)
    x[:, :, 10, 10] = 1
    y, z = (augment.translate(x, generator)[:, 0].nonzero()[:, 1:] - 10).unbind(1)
    for moves in (y, z):
        counts = torch.bincount(moves + 2, minlength=5)
        assert len(counts) == 5  # up to two pixels of 21, each way
        assert (counts / 4000 - 0.2).abs().max() < 5 * (0.2 * 0.8 / 4000) ** 0.5
    edge = torch.zeros(4000, 1, 3, 3)
    edge[:, :, 1, 0] = 1
    share = augment.flip(edge, generator)[:, 0, 1, 2].mean()
    assert share == pytest.approx(0.5, abs=5 * (0.25 / 4000) ** 0.5)


def test_images_smaller_than_a_move_stay(generator):
    """A tenth of three pixels is none."""
    x = pictures(height=3, width=3)
    assert torch.equal(augment.translate(x, generator), x)
