"""Classifiers of pixels in [0, 1]: normalisation is the first layer, logits come out."""

import difflib
from collections.abc import Callable

import torchvision
from torch import Tensor, nn

from gradlens import Normalized


def build(
    name: str, *, classes: int, shape: tuple[int, ...], mean: tuple[float, ...], std: tuple[float, ...]
) -> nn.Module:
    """A fresh classifier for images of `shape` (channels, height, width), drawing its weights from torch's global seed.

    Raises ValueError for an unknown name, with the nearest known one.
    """
    check(name)
    body = MODELS[name](classes, shape) if name in MODELS else _torchvision(name, classes, shape)
    return Normalized(body, mean, std)


def check(name: str) -> None:
    """Raises ValueError for an unknown name, with the nearest known one."""
    known = [*MODELS, *torchvision.models.list_models(module=torchvision.models)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"model is {name!r}, expected {', '.join(MODELS)} or a torchvision classifier{hint}")


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
    layers = [nn.BatchNorm2d(outputs), nn.ReLU()]
    if size % 2:
        return [nn.Conv2d(inputs, outputs, size, padding="same"), *layers]
    # what padding="same" does for an even window, without its warning
    low, high = size // 2 - 1, size // 2
    return [nn.ZeroPad2d((low, high, low, high)), nn.Conv2d(inputs, outputs, size), *layers]


def _torchvision(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """A torchvision classifier without weights, with a stem that keeps the size of images below 64 pixels."""
    model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if isinstance(model, torchvision.models.ResNet) and shape[1] < 64:
        model.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
        return model
    return nn.Sequential(_Colour(), model) if shape[0] == 1 else model


class _Colour(nn.Module):
    """Grey images as three equal channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)


def parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in model.parameters())


MODELS: dict[str, Callable[[int, tuple[int, ...]], nn.Module]] = {"cnn_small": cnn_small, "cnn6": cnn6}
