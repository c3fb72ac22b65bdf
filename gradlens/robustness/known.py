"""Points from elsewhere as attacks that cost a forward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..ball import Ball
from ..provenance import digest
from ..types import Images, Labels
from .attack import Attack
from .record import Robustness


class Known:
    """Gives each image the point that was found for it, however the images are cut into batches."""

    def __init__(self, images: Images, points: Images) -> None:
        self.identity = digest(points)
        self.points: dict[bytes, Images] = {}
        for image, point in zip(images, points, strict=True):
            # of an image that is there twice, the point that was moved: the other one was not broken
            if _key(image) not in self.points or not torch.equal(point, image):
                self.points[_key(image)] = point

    def __call__(self, model: nn.Module, x: Images, y: Labels, ball: Ball) -> Images:
        return torch.stack([self.points[_key(image)] for image in x])


def known(found: Mapping[str, Any] | None, images: Images) -> list[Attack]:
    """An attack for each origin. Raises ValueError for points of another shape than the images."""
    if found is None:
        return []
    if not isinstance(found, Mapping):
        raise ValueError(f"found is a {type(found).__name__}, expected a dict of points by the name of their origin")
    attacks = []
    for name, given in found.items():
        if isinstance(given, Robustness) and not (
            given.images.shape == images.shape and torch.equal(given.images.to(images), images)
        ):
            raise ValueError(f"found[{name!r}] is of other images than x, expected a record on the same ones")
        points = given.adversarial if isinstance(given, Robustness) else given
        if not isinstance(points, Tensor) or points.shape != images.shape:
            came = f"shape {tuple(points.shape)}" if isinstance(points, Tensor) else f"a {type(points).__name__}"
            raise ValueError(f"found[{name!r}] has {came}, expected points for all images, {tuple(images.shape)}")
        attacks.append(Attack(f"found on {name}", Known(images, points.to(images))))
    return attacks


def _key(image: Tensor) -> bytes:
    return image.numpy(force=True).tobytes()
