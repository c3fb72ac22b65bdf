"""Augmentation of whole batches: (images, generator) -> images. The generator decides all, each image draws its own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlens.types import Images

Augmentation = Callable[[Images, torch.Generator], Images]


def none(x: Images, generator: torch.Generator) -> Images:
    """The images as they are. Draws nothing."""
    return x


def flip(x: Images, generator: torch.Generator, axis: int = 3) -> Images:
    """Each image mirrored with chance 1/2: left to right, or upside down along axis 2."""
    mirrored = torch.rand(len(x), generator=generator, device=generator.device).to(x.device) < 0.5
    return x.flip(axis).where(mirrored[:, None, None, None], x)


def translate(x: Images, generator: torch.Generator, share: float = 0.1) -> Images:
    """Each image moved by up to `share` of its height and width, in whole pixels, uniformly; black comes in.

    As torchvision's RandomAffine(0, translate=(share, share)), up to its rounding.
    """
    return _window(x, generator, share, "constant")


def crop(x: Images, generator: torch.Generator, share: float = 0.125) -> Images:
    """Each image widened on all sides by its own reflection, `share` of the side, and cut back at a random place."""
    return _window(x, generator, share, "reflect")


def flip_translate(x: Images, generator: torch.Generator) -> Images:
    """Left to right and 10% moves: CIFAR."""
    return translate(flip(x, generator), generator)


def flip_crop(x: Images, generator: torch.Generator) -> Images:
    """Left to right and crops: ImageNet-100."""
    return crop(flip(x, generator), generator)


def paper(x: Images, generator: torch.Generator) -> Images:
    """What the study does on CIFAR: left to right, upside down and 10% moves."""
    return translate(flip(flip(x, generator), generator, axis=2), generator)


def _window(x: Tensor, generator: torch.Generator, share: float, padding: str) -> Tensor:
    """A window of the image's own size out of the padded image, at a place of its own for each image."""
    height, width = x.shape[2:]
    rows, columns = (
        _starts(len(x), round(share * side), generator, x.device) + torch.arange(side, device=x.device)
        for side in (height, width)
    )
    down, right = round(share * height), round(share * width)
    padded = F.pad(x, (right, right, down, down), mode=padding)
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _starts(batch: int, reach: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(2 * reach + 1, (batch, 1), generator=generator, device=generator.device).to(device)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": none,
    "flip": flip,
    "flip-translate": flip_translate,
    "flip-crop": flip_crop,
    "paper": paper,
}
