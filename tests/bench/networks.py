"""Networks to measure with, and what makes them more than noise: a few steps of training on patterns."""

from itertools import pairwise

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


def resnet18() -> nn.Module:
    """ResNet-18 as it is built for images of 32 x 32: a first convolution of 3 x 3 without stride, no pooling."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def small() -> nn.Module:
    """Three convolutions with batch norm for images of 1 x 28 x 28."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for wide, wider in pairwise((1, 16, 32, 32)):
        layers += [nn.Conv2d(wide, wider, 3, stride=2, padding=1), nn.BatchNorm2d(wider), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def patterns(images: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Ten patterns under noise, and which of them each image is."""
    stream = torch.Generator().manual_seed(0)
    y = torch.arange(images) % 10
    noise = torch.rand(images, *shape, generator=stream)
    return (0.5 * torch.rand(10, *shape, generator=stream)[y] + 0.5 * noise).clamp(0, 1), y


def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float = 3e-3) -> nn.Module:
    """The model after some steps of Adam on all of `x`, frozen as for use: the loss has a valley."""
    optimizer = torch.optim.Adam(model.train().parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()
