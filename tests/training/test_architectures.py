"""Wide ResNets, torchvision's classifiers on small and grey images, and names that are refused."""

import pytest
import torch
from torch import Tensor, nn

from training import foreign
from training.models import build, parameters
from training.wide_resnet import wide_resnet

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]
FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "vgg11_bn", "vit_b_16", "vit_b_32", "vit_h_14", "wide_resnet50_2",
]  # fmt: skip


def fresh(name: str, shape: tuple[int, ...], classes: int = 7) -> nn.Module:
    return build(name, classes=classes, shape=shape, mean=(0.4,) * shape[0], std=(0.2,) * shape[0]).eval()


def sizes(model: nn.Module, layer: nn.Module, x: Tensor) -> tuple[int, ...]:
    """Height and width that leave a layer."""
    seen: list[tuple[int, ...]] = []
    handle = layer.register_forward_hook(lambda module, args, answer: seen.append(tuple(answer.shape[2:])))
    model(x)
    handle.remove()
    return seen[0]


def wide_count(depth: int, width: int, classes: int, channels: int) -> int:
    """Weights of a wide ResNet, summed from the paper's table: convolutions, batch norms, ways past, linear.

    A group with inputs i, outputs o and n blocks: 9io + 9o^2 for the first block, 18 o^2 for each other; norms 2i + 2o
    and 4o; io past the first.
    """
    n, total, inputs = (depth - 4) // 6, 9 * channels * 16, 16
    for outputs in (16 * width, 32 * width, 64 * width):
        total += 9 * inputs * outputs + 9 * outputs**2 + 18 * (n - 1) * outputs**2
        total += 2 * inputs + 2 * outputs + 4 * (n - 1) * outputs
        total += inputs * outputs if inputs != outputs else 0
        inputs = outputs
    return total + 2 * inputs + inputs * classes + classes


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 4), (28, 10), (40, 2)])
@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (100, 1)])
def test_wide_resnets_have_the_papers_number_of_parameters(depth, width, classes, channels):
    with torch.device("meta"):
        model = wide_resnet(classes, (channels, 32, 32), depth=depth, width=width)
    assert parameters(model) == wide_count(depth, width, classes, channels)


@pytest.mark.parametrize(("name", "millions"), [("wrn_40_4", 8.9), ("wrn_16_8", 11.0), ("wrn_28_10", 36.5)])
def test_wide_resnets_have_the_published_size(name, millions):
    """Zagoruyko & Komodakis 2016, table 4, to the digit that is printed."""
    with torch.device("meta"):
        assert round(parameters(fresh(name, (3, 32, 32), classes=10)) / 1e6, 1) == millions


def test_a_wide_resnet_trains_and_halves_twice():
    x = torch.rand(4, 3, 32, 32)
    model = fresh("wrn_10_1", (3, 32, 32)).train()
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    last_norm = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)][-1]
    assert sizes(model, last_norm, x) == (8, 8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [*FAMILIES, "cnn_small", "cnn6", "wrn_16_4"])
def test_each_family_answers_with_logits_on_every_size(name, shape):
    with torch.device("meta"):
        model = fresh(name, shape)
        assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_so_that_training_sees_logits_too(name):
    """torchvision's own answer in training mode is a tuple of three, or two."""
    with torch.device("meta"):
        answer = fresh(name, (3, 32, 32)).train()(torch.zeros(2, 3, 32, 32))
    assert isinstance(answer, Tensor)
    assert answer.shape == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in foreign.classifiers() if "regnet" not in name])
def test_every_torchvision_classifier_answers_with_logits(name):
    """At one size; the families above are tried at all of them."""
    with torch.device("meta"):
        assert fresh(name, (3, 32, 32))(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_regnet_answers_with_logits(shape):
    """Its constructor computes with tensors, so it cannot be built without memory."""
    assert fresh("regnet_y_400mf", shape)(torch.zeros(1, *shape)).shape == (1, 7)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_pixels_of_every_place_reach_the_logits_of_small_images(name, shape):
    """The gradient of the logits is finite, and no row, column or channel is cut away by the stem."""
    x = torch.rand(1, *shape, requires_grad=True)
    model = fresh(name, shape)
    for part in model.modules():  # untrained running statistics would let some families' signal fade to nothing
        if isinstance(part, nn.BatchNorm2d):
            part.train()
    (grad,) = torch.autograd.grad(model(x).square().sum(), x)
    assert grad.isfinite().all()
    assert grad.abs().sum((0, 2, 3)).all()
    assert grad.abs().sum((0, 1, 2)).all()
    assert grad.abs().sum((0, 1, 3)).all()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_below_64_pixels_residual_networks_begin_at_full_size(name):
    with torch.device("meta"):
        small, large = fresh(name, (3, 32, 32)), fresh(name, (3, 64, 64))
        assert sizes(small, small.model.layer1, torch.zeros(1, 3, 32, 32)) == (32, 32)
        assert sizes(large, large.model.layer1, torch.zeros(1, 3, 64, 64)) == (16, 16)


def test_below_64_pixels_a_densenet_begins_at_full_size():
    with torch.device("meta"):
        small = fresh("densenet121", (1, 28, 28))
        assert sizes(small, small.model.features.denseblock1, torch.zeros(1, 1, 28, 28)) == (28, 28)


def test_an_enlarged_image_has_the_maps_of_a_stem_of_stride_one():
    """MobileNet's first convolution halves 64 pixels to the 32 that came in."""
    with torch.device("meta"):
        model = fresh("mobilenet_v3_small", (3, 32, 32))
        first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
        assert sizes(model, first, torch.zeros(1, 3, 32, 32)) == (32, 32)


@pytest.mark.parametrize(
    ("name", "side", "patch"),
    [("vit_b_16", 28, 4), ("vit_b_16", 32, 4), ("vit_b_16", 64, 8), ("vit_b_16", 224, 16), ("vit_h_14", 224, 14),
     ("vit_b_32", 224, 32), ("vit_b_16", 8, 1)],
)  # fmt: skip
def test_vit_patches_leave_seven_by_seven_of_them(name, side, patch):
    with torch.device("meta"):
        model = fresh(name, (3, side, side)).model
    assert model.patch_size == patch
    assert model.encoder.pos_embedding.shape[1] == (side // patch) ** 2 + 1


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vit_b_16", "mobilenet_v2", "convnext_tiny"])
def test_grey_images_cost_only_the_first_convolution(name):
    """One channel instead of three: two thirds of the first layer's weights go, nothing else changes."""
    with torch.device("meta"):
        grey, colour = fresh(name, (1, 32, 32)), fresh(name, (3, 32, 32))
    first = next(part for part in grey.modules() if isinstance(part, nn.Conv2d))
    assert first.in_channels == 1
    assert parameters(colour) - parameters(grey) == 2 * first.weight.numel()


def test_at_full_size_nothing_but_the_number_of_classes_differs_from_torchvision():
    import torchvision

    with torch.device("meta"):
        for name in ("resnet18", "densenet121", "vit_b_16", "mobilenet_v2"):
            ours, theirs = fresh(name, (3, 224, 224)).model, torchvision.models.get_model(name, num_classes=7)
            assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
                (k, v.shape) for k, v in theirs.state_dict().items()
            ]


@pytest.mark.parametrize(
    ("name", "task"),
    [("fcn_resnet50", "segmentation"), ("fasterrcnn_resnet50_fpn", "detection"), ("r3d_18", "video"),
     ("raft_large", "optical flow"), ("quantized_resnet18", "quantization")],
)  # fmt: skip
def test_models_for_other_tasks_are_refused(name, task):
    with pytest.raises(ValueError, match=rf"model is '{name}', which torchvision has for {task}, expected cnn_small"):
        fresh(name, (3, 32, 32))


@pytest.mark.parametrize(("name", "near"), [("wrn_28_1O", "wrn_28_10"), ("densnet121", "densenet121")])
def test_an_unknown_architecture_suggests_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"model is '{name}'.*did you mean '{near}'\?"):
        fresh(name, (3, 32, 32))


@pytest.mark.parametrize("name", ["wrn_27_10", "wrn_4_2", "wrn_16_0"])
def test_a_wide_resnet_of_impossible_size_is_refused(name):
    with pytest.raises(ValueError, match=r"expected depth 6 n \+ 4"):
        fresh(name, (3, 32, 32))


def test_vit_refuses_images_that_are_not_square():
    with pytest.raises(ValueError, match="vit_b_16 takes square images, got 32 x 48"):
        fresh("vit_b_16", (3, 32, 48))
