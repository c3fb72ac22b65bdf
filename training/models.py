"""Classifiers of pixels in [0, 1]: normalisation is the first layer, logits come out."""

import difflib
import math
import re
from collections.abc import Callable

from torch import nn

from gradlens import Normalized
from training import foreign, outside
from training.wide_resnet import wide_resnet


def build(
    name: str, *, classes: int, shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> nn.Module:
    """A fresh classifier for images of `shape` (channels, height, width), drawing its weights from torch's global seed.

    A factory package.module:function, torchvision/NAME and timm/NAME are models from outside, see `training.adopt`.
    Raises ValueError for an unknown name, with the nearest known one, and for a model that does not classify images.
    """
    if outside.is_outside(name):
        return Normalized(outside.build(name, classes), mean, std)
    check(name)
    if name in MODELS:
        body = MODELS[name](classes, shape)
    elif match := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        body = wide_resnet(classes, shape, depth=int(match[1]), width=int(match[2]))
    else:
        body = foreign.classifier(name, classes, shape)
    return Normalized(body, mean, std)


def check(name: str) -> None:
    """Raises ValueError for an unknown name, with the nearest known one, and for one of another task."""
    if name in MODELS or re.fullmatch(r"wrn_(\d+)_(\d+)", name) or name in foreign.classifiers():
        return
    expected = "expected cnn_small, cnn6, mlp or wrn_DEPTH_WIDTH, or a torchvision classifier"
    if task := foreign.task(name):
        raise ValueError(f"model is {name!r}, which torchvision has for {task}, {expected}")
    near = difflib.get_close_matches(name, [*MODELS, "wrn_28_10", *foreign.classifiers()], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"model is {name!r}, {expected}{hint}")


def cnn_small(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Three convolutions and a linear layer: trains in seconds on small images."""
    return nn.Sequential(
        *_convolution(shape[0], 32),
        nn.MaxPool2d(2),
        *_convolution(32, 64),
        *_convolution(64, 64),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def mlp(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """Two hidden layers of 256 units, without convolutions: what points made on the others meet as a stranger."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, classes),
    )  # fmt: skip


def cnn6(classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The study's 6-layer network for 32x32 images: 4x4 convolutions, batch norm, dropout, about 3.7 M parameters."""
    channels, height, width = shape
    features = 128 * (height // 8) * (width // 8)
    return nn.Sequential(
        *_convolution(channels, 264, 4),
        *_convolution(264, 128, 4),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        *_convolution(128, 512, 4),
        *_convolution(512, 128, 4),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        *_convolution(128, 128, 4),
        *_convolution(128, 128, 4),
        nn.MaxPool2d(2),
        nn.Dropout(0.35),
        nn.Flatten(),
        nn.Linear(features, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(256, classes),
    )


def _convolution(inputs: int, outputs: int, size: int = 3) -> list[nn.Module]:
    """A convolution that keeps the size, batch norm and ReLU. An even kernel has its odd zero row below and right."""
    before, after = (size - 1) // 2, size // 2
    if before == after:
        convolution: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, padding=before)]
    else:  # padding="same" would do as much, and warn of the copy
        convolution = [nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(inputs, outputs, size)]
    return [*convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters())


MODELS: dict[str, Callable[[int, tuple[int, ...]], nn.Module]] = {"cnn_small": cnn_small, "cnn6": cnn6, "mlp": mlp}
