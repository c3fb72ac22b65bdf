"""Classifiers of pixels: their size, and where their normalisation stands."""

import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradlens import Normalized
from training.models import MODELS, build, parameters


def colour(name: str, classes: int = 10, size: int = 32, channels: int = 3) -> nn.Module:
    shape = (channels, size, size)
    return build(name, classes=classes, shape=shape, mean=(0.4,) * channels, std=(0.2,) * channels).eval()


def test_the_studys_network_has_the_studys_number_of_parameters():
    """4x4 convolutions 3-264-128, 512-128, 128-128 with batch norm, then 2048-256 with batch norm, then the classes."""
    widths = [3, 264, 128, 512, 128, 128, 128]
    convolutions = sum(16 * i * o + o + 2 * o for i, o in pairwise(widths))
    linear = 2048 * 256 + 256 + 2 * 256 + 256 * 10 + 10
    count = parameters(colour("cnn6"))
    assert count == convolutions + linear
    assert count == pytest.approx(3.7e6, rel=0.02)


@pytest.mark.parametrize("name", [*MODELS, "resnet18"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_models_map_images_of_any_size_to_finite_logits(name, channels, size):
    x = torch.rand(2, channels, size, size)
    answer = colour(name, classes=7, size=size, channels=channels)(x)
    assert answer.shape == (2, 7)
    assert answer.isfinite().all()


@pytest.mark.parametrize("name", [*MODELS, "resnet18"])
def test_normalisation_is_the_first_layer(name):
    model, x = colour(name), torch.rand(2, 3, 32, 32)
    assert isinstance(model, Normalized)
    torch.testing.assert_close(model(x), model.model((x - 0.4) / 0.2))


def test_the_studys_four_by_four_convolutions_keep_the_size_as_torch_would(generator):
    pad, convolution = next(
        (a, b) for a, b in pairwise(colour("cnn6").model) if isinstance(b, nn.Conv2d) and b.kernel_size == (4, 4)
    )
    x = torch.rand(2, 3, 9, 9, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an even window may cost a copy
        same = F.conv2d(x, convolution.weight, convolution.bias, padding="same")
    torch.testing.assert_close(convolution(pad(x)), same)


def test_a_torchvision_stem_keeps_the_size_of_small_images():
    """torchvision's ResNet halves the image twice before its first block: 32 pixels would be 8."""
    sizes = []
    model = colour("resnet18")
    model.model.layer1.register_forward_hook(lambda *args: sizes.append(args[2].shape[-1]))
    model(torch.rand(1, 3, 32, 32))
    assert sizes == [32]


def test_the_global_seed_decides_the_weights():
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(torch.cat([p.detach().flatten() for p in colour("cnn_small").parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("name", "near"), [("resnet81", "resnet1"), ("cnn_smal", "cnn_small"), ("cnn7", "cnn6")])
def test_an_unknown_name_is_refused_with_the_nearest_one(name, near):
    with pytest.raises(
        ValueError, match=rf"model is '{name}', expected cnn_small, cnn6, mlp or .*did you mean '{near}"
    ):
        colour(name)
