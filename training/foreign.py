"""torchvision's classifiers, made to fit images that are smaller than ImageNet's, or grey.

- ResNet, ResNeXt, Wide ResNet, DenseNet: below 64 pixels the stem is a 3x3 convolution of stride 1, without pooling.
- ViT: patches are at most as large as the name says, and small enough for 7 x 7 of them.
- All others see smaller images enlarged to 64 pixels (Inception 96, MaxViT 224, which they need): with their strided
  stems, feature maps are then as large as those of a stride-1 stem on 32 pixels. Attacks still move the small pixels.
- Grey images enter through a first convolution of one channel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 64  # pixels a side, below which the stem changes
SMALLEST = {"inception_v3": 96, "maxvit_t": 224}  # what a model needs, where it is more than SMALL
WITHOUT = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}  # their auxiliary heads would make the answer a tuple
TASKS = ("segmentation", "detection", "video", "optical_flow", "quantization")


def _zoo() -> Any:
    """torchvision.models, which takes two seconds to load: only where it is needed."""
    import torchvision.models

    return torchvision.models


def classifiers() -> list[str]:
    """Names of torchvision's image classifiers."""
    return _zoo().list_models(module=_zoo())


def task(name: str) -> str | None:
    """What a torchvision model is for that is no plain image classifier; None for all other names."""
    for one in TASKS:
        if name in _zoo().list_models(module=getattr(_zoo(), one)):
            return one.replace("_", " ")
    return None


def plain(name: str, classes: int) -> nn.Module:
    """A torchvision classifier as torchvision makes it, without weights."""
    return _zoo().get_model(name, weights=None, num_classes=classes, **WITHOUT.get(name, {}))


def classifier(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """A torchvision classifier without weights, for images of `shape` (channels, height, width)."""
    channels, height, width = shape
    side = min(height, width)
    if name.startswith("vit_"):
        return _take(channels, _vision_transformer(name, classes, shape))
    model = plain(name, classes)
    if side < SMALL and isinstance(model, _zoo().ResNet):
        model.conv1, model.maxpool = _stem(channels), nn.Identity()
        return model
    if side < SMALL and isinstance(model, _zoo().DenseNet):
        model.features.conv0 = _stem(channels, model.features.conv0.out_channels)
        model.features.pool0 = nn.Identity()
        return model
    smallest = SMALLEST.get(name, SMALL)
    model = _take(channels, model)
    return nn.Sequential(Enlarge(smallest), model) if side < smallest else model


class Enlarge(nn.Module):
    """Images scaled bilinearly to `side` x `side` pixels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"side={self.side}"


def _vision_transformer(name: str, classes: int, shape: tuple[int, ...]) -> nn.Module:
    with torch.device("meta"):
        named = _zoo().get_model(name, weights=None)
    side = shape[1]
    if shape[1] != shape[2]:
        raise ValueError(f"model {name} takes square images, got {shape[1]} x {shape[2]}")
    largest = min(named.patch_size, max(1, side // 7))
    return _zoo().VisionTransformer(
        image_size=side,
        patch_size=max(patch for patch in range(1, largest + 1) if side % patch == 0),
        num_layers=len(named.encoder.layers),
        num_heads=named.encoder.layers[0].num_heads,
        hidden_dim=named.hidden_dim,
        mlp_dim=named.mlp_dim,
        num_classes=classes,
    )


def _stem(channels: int, outputs: int = 64) -> nn.Conv2d:
    stem = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    return stem


def _take(channels: int, model: nn.Module) -> nn.Module:
    """The model with a first convolution of so many channels, where it has three."""
    name, first = next((name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d))
    if first.in_channels != channels:
        assert first.groups == 1
        fitting = nn.Conv2d(
            channels,
            first.out_channels,
            first.kernel_size,  # type: ignore[arg-type]
            first.stride,  # type: ignore[arg-type]
            first.padding,  # type: ignore[arg-type]
            bias=first.bias is not None,
        )
        model.set_submodule(name, fitting)
    return model
