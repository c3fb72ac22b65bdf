"""The caller's model stays as it was, and the door refuses what no measurement could use, in the caller's words."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pandas import DataFrame
from torch import Tensor, nn

import gradlens
from gradlens import Ball, Normalized, frozen, losses, predict
from gradlens.model import input_gradient
from tests.analytic import Answers, Counting, InPlace, Plane, Random, smooth_cnn, snapshot

DOORS: dict[str, Callable[..., Any]] = {
    "pgd": lambda model, x, y=None: gradlens.pgd(model, x, y, Ball(0.1), steps=2),
    "stability": lambda model, x, y=None: gradlens.stability(model, x, y, Ball(0.1), steps=2),
    "entropy": gradlens.entropy,
    "input_plane": lambda model, x, y=None: gradlens.input_plane(model, x, y, Ball(0.1), points=3, steps=2),
    "input_line": lambda model, x, y=None: gradlens.input_line(model, x, y, Ball(0.1), points=3, steps=2),
    "input_path": lambda model, x, y=None: gradlens.input_path(model, x, y, Ball(0.1), points=2, steps=2),
}
every_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


def with_grad(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def batch_norm() -> nn.Module:
    """Modes and flags that differ from layer to layer: a norm frozen in evaluation, one weight without gradient."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 8), nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )  # fmt: skip
    with_grad(model)
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[0].weight.grad = None
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm, dropout, frozen layers": batch_norm,
    "counting in place": lambda: with_grad(Counting(smooth_cnn().float(), is_replaced=False)),
    "counting by another buffer": lambda: with_grad(Counting(smooth_cnn().float(), is_replaced=True)),
    "in-place first layer": lambda: with_grad(InPlace(smooth_cnn().float())),
    "in half precision": lambda: with_grad(smooth_cnn().bfloat16()),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 2, 5, 5)


@every_door
@every_model
def test_model_and_images_are_left_as_they_were(door, make, x):
    model, before = make(), x.clone()
    state = snapshot(model)
    door(model, x)
    assert snapshot(model) == state
    assert torch.equal(x, before)
    assert not x.requires_grad


@every_model
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_measured_even_where_the_caller_has_switched_them_off(make, mode, x):
    model = make()
    state, expected = snapshot(model), gradlens.pgd(model, x, None, Ball(0.1), steps=2)
    with mode():
        trace = gradlens.pgd(model, x.clone(), None, Ball(0.1), steps=2)
    assert snapshot(model) == state
    assert torch.equal(trace.grad_norm, expected.grad_norm)
    assert trace.grad_norm.max() > 0


@every_model
def test_an_exception_inside_leaves_no_trace_on_the_model(make, x):
    model = make()
    state = snapshot(model)

    def stumble() -> None:
        with frozen(model):
            model(x.to(next(model.parameters()).dtype))
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        stumble()
    assert snapshot(model) == state


def test_inside_frozen_the_model_is_in_evaluation_mode_without_parameter_gradients():
    model = batch_norm()
    with torch.no_grad(), frozen(model) as inside:
        assert inside is model
        assert torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.training


def test_models_are_measured_in_evaluation_mode(x):
    """Batch norm and dropout in training mode would mix samples and draw at random."""
    model = batch_norm().train()
    trace = gradlens.pgd(model, x, None, Ball(0.1), steps=2)
    alone = gradlens.pgd(model, x[:1], None, Ball(0.1), steps=2)
    torch.testing.assert_close(trace.margin[:, :1], alone.margin, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trace.margin[-1], losses.margin(model.eval()(trace.adversarial), trace.labels))


def test_normalized_is_the_model_of_the_normalised_image(cnn, images):
    mean, std = (0.2, 0.7), (0.5, 0.1)
    by_hand = torch.stack([(images[:, 0] - 0.2) / 0.5, (images[:, 1] - 0.7) / 0.1], 1)
    torch.testing.assert_close(Normalized(cnn, mean, std).double()(images), cnn(by_hand), rtol=1e-6, atol=1e-6)
    assert torch.equal(predict(Normalized(cnn, mean, std), images), cnn(by_hand).argmax(1))


@pytest.mark.parametrize(("mean", "std"), [((0.1,), (1.0, 1.0)), ((0.1, 0.2), (1.0, 0.0))])
def test_normalisation_that_does_not_fit_is_refused(mean, std):
    with pytest.raises(ValueError, match="expected as many of each, every std positive"):
        Normalized(nn.Identity(), mean, std)


def test_the_input_gradient_is_that_of_finite_differences(cnn, images):
    y, h = torch.tensor([0, 1, 2, 3, 0, 1]), 1e-6
    _, value, grad = input_gradient(cnn, images, y, losses.cross_entropy)
    torch.testing.assert_close(value, losses.cross_entropy(cnn(images), y).detach())
    for pixel in ((0, 0, 0), (1, 2, 3), (0, 4, 4)):
        shift = torch.zeros_like(images)
        shift[(slice(None), *pixel)] = h
        up, down = (losses.cross_entropy(cnn(images + sign * shift), y).detach() for sign in (1, -1))
        torch.testing.assert_close(grad[(slice(None), *pixel)], (up - down) / (2 * h), rtol=1e-5, atol=1e-8)


def changed(value: float) -> Tensor:
    x = torch.rand(5, 2, 5, 5)
    x[3, 1, 2, 2] = value
    return x


GOOD = torch.full((5, 2, 5, 5), 0.5)
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "above the box": (changed(1.5), None, r"x spans \[.*, 1.5\], outside the pixel box \[0.0, 1.0\].*Normalized"),
    "below the box": (changed(-0.1), None, r"x spans \[-0.1, .*\], outside the pixel box"),
    "nan": (changed(torch.nan), None, "x holds NaN or infinity in 1 of 5 samples.*sample 3; expected finite"),
    "infinite": (changed(torch.inf), None, "x holds NaN or infinity in 1 of 5 samples.*sample 3; expected finite"),
    "integers": (GOOD.mul(255).to(torch.uint8), None, "x holds torch.uint8, expected floating-point.*divide"),
    "an integer array": (np.ones((5, 2, 5, 5), np.int64), None, "x holds torch.int64, expected floating-point"),
    "one image": (torch.rand(7), None, r"x has shape \(7,\), expected a batch"),
    "no images": (torch.rand(0, 2, 5, 5), None, r"x has shape \(0, 2, 5, 5\), expected a batch of at least one"),
    "no pixels": (torch.rand(5, 2, 0, 5), None, r"x has shape \(5, 2, 0, 5\), expected a batch"),
    "other channels": (torch.rand(5, 3, 5, 5), None, r"x of shape \(5, 3, 5, 5\).*does not go through the model"),
    "labels too large": (GOOD, torch.tensor([0, 1, 2, 3, 4]), r"y spans 0..4, expected class numbers in 0..3"),
    "negative labels": (GOOD, torch.tensor([0, 1, 2, 3, -1]), r"y spans -1..3, expected class numbers in 0..3"),
    "too few labels": (GOOD, torch.tensor([0, 1]), r"y has shape \(2,\), expected \(5,\)"),
    "one-hot labels": (GOOD, torch.zeros(5, 4).long(), r"y has shape \(5, 4\), expected \(5,\)"),
    "float labels": (GOOD, torch.zeros(5), "y holds torch.float32, expected integer class numbers"),
    "boolean labels": (GOOD, torch.zeros(5).bool(), "y holds torch.bool, expected integer class numbers"),
}


@every_door
@pytest.mark.parametrize(("x", "y", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_images_and_labels_are_refused_by_name_and_the_model_is_unchanged(door, x, y, message):
    model = with_grad(smooth_cnn())
    model[1].eval()
    state = snapshot(model)
    with pytest.raises(ValueError, match=message):
        door(model, x, y)
    assert snapshot(model) == state


def poisoned(x: Tensor) -> Tensor:
    return torch.zeros(len(x), 3).index_fill(0, torch.tensor([1]), torch.nan)


def unfit(x: Tensor) -> Tensor:
    raise AssertionError("for 32 x 32")


UNFIT: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a feature map": (lambda x: x, r"model returns shape \(5, 2, 5, 5\) for 5 images, expected logits"),
    "a vector": (lambda x: x.flatten(1).sum(1), r"model returns shape \(5,\) for 5 images, expected logits"),
    "one class": (lambda x: x.flatten(1)[:, :1], r"model returns shape \(5, 1\) for 5 images.*at least two classes"),
    "another batch": (lambda x: x.flatten(1)[:2], r"model returns shape \(2, 50\) for 5 images, expected logits"),
    "a tuple": (lambda x: (x.flatten(1), x), r"model returns a tuple for 5 images, expected logits"),
    "nothing": (lambda _: None, r"model returns a NoneType for 5 images, expected logits"),
    "class numbers": (lambda x: x.flatten(1)[:, :3].long(), r"model returns torch.int64, expected floating-point"),
    "nan": (poisoned, "model returns NaN or infinite logits for 1 of 5 samples.*sample 1; expected finite logits"),
    "noise": (lambda x: x.flatten(1)[:, :3] + torch.rand(5, 3), "model is random between two passes.*samples=k"),
    "an error": (lambda x: x @ torch.ones(7), r"x of shape \(5, 2, 5, 5\).*does not go through the model \(Answers\)"),
    "an assertion": (unfit, r"x of shape \(5, 2, 5, 5\).*does not go through the model \(Answers\): for 32 x 32"),
}  # fmt: skip


@every_door
@pytest.mark.parametrize(("answer", "message"), UNFIT.values(), ids=UNFIT)
def test_a_model_that_does_not_answer_with_logits_is_refused_and_unchanged(door, answer, message, x):
    model = with_grad(Answers(answer))
    state = snapshot(model)
    with pytest.raises(ValueError, match=message):
        door(model, x)
    assert snapshot(model) == state


@every_door
@pytest.mark.parametrize("noise", [1e-3, 1.0])
def test_a_random_model_is_refused(door, noise, x):
    with pytest.raises(ValueError, match="model is random between two passes"):
        door(Random(smooth_cnn().float(), noise), x)


def test_wrong_python_types_are_refused_by_name_outside_of_the_tests_type_checks(tmp_path: Path):
    """In a process of its own, since the tests' type checker would speak first."""
    script = """
import torch, gradlens
model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
for door in (gradlens.pgd, gradlens.stability, gradlens.entropy, gradlens.input_plane, gradlens.input_line,
             gradlens.input_path):
    for arguments in ((len, x, [0, 1]), (model, x.tolist(), [0, 1]), (model, x, ["a", "b"]), (model, x, [[0], [1, 2]])):
        try:
            door(*arguments)
        except ValueError as error:
            print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = [
        "model is a builtin_function_or_method, expected a torch.nn.Module",
        "x is a list, expected a tensor or array",
        "y .*expected integer class numbers",
        "y .*expected integer class numbers",
    ] * len(DOORS)
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected), done.stdout
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line


def numbers(table: DataFrame) -> np.ndarray:
    return table.select_dtypes("number").to_numpy()


@every_door
def test_arrays_and_lists_are_welcome(door, x):
    model, y = smooth_cnn().float(), [0, 1, 2, 3, 0]
    torch.manual_seed(1)
    expected = door(model, x, torch.tensor(y)).frame()
    read_only = x.numpy().copy()
    read_only.setflags(write=False)
    flipped = np.ascontiguousarray(x.numpy()[::-1])[::-1]  # negative strides, as of an image turned upside down
    for images, labels in (
        (x.numpy(), y),
        (read_only, np.array(y, np.int32)),
        (flipped, np.array(y, np.uint8)),
        (x.numpy().astype(">f4"), np.array(y, np.uint16)),
        (x, torch.tensor(y, dtype=torch.int32)),
    ):
        torch.manual_seed(1)
        np.testing.assert_array_equal(numbers(door(model, images, labels).frame()), numbers(expected))


@pytest.mark.parametrize("door", [DOORS[name] for name in ("pgd", "entropy", "input_line")])
def test_float64_images_of_a_float32_model_are_welcome(door, x):
    model, y = smooth_cnn().float(), [0, 1, 2, 3, 0]
    double, single = (numbers(door(model, images, y).frame()) for images in (x.double(), x))
    np.testing.assert_allclose(double, single, rtol=1e-3, atol=1e-4)


@every_door
def test_a_bfloat16_model_is_measured_in_its_own_precision_and_reported_in_float32(door, x):
    result = door(smooth_cnn().bfloat16(), x, [0, 1, 2, 3, 0])
    table = result.frame()
    assert len(table) > 0
    assert not (set(map(str, table.dtypes)) & {"object", "float16"})


def test_the_box_is_the_balls(images):
    """Images in [-1, 1] are welcome where the ball says so, and refused where it does not."""
    wide = Ball(0.1, low=-1.0, high=1.0)
    trace = gradlens.pgd(smooth_cnn(), 2 * images - 1, None, wide, steps=3)
    assert trace.adversarial.min() < 0
    assert wide.contains(trace.adversarial, 2 * images - 1).all()
    with pytest.raises(ValueError, match="outside the pixel box"):
        gradlens.pgd(smooth_cnn(), 2 * images - 1, None, Ball(0.1))


def test_flat_inputs_are_images_too():
    trace = gradlens.pgd(Plane(torch.ones(6)), torch.full((3, 6), 0.5), None, Ball(0.1), steps=2)
    assert trace.adversarial.shape == (3, 6)


def test_a_bare_number_is_no_ball(tmp_path: Path):
    """In a process of its own, as above."""
    script = """
import torch, gradlens
model, x = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch.rand(2, 3, 2, 2)
for door in (gradlens.pgd, gradlens.stability, gradlens.gradients, gradlens.input_plane, gradlens.input_line,
             gradlens.input_path):
    try:
        door(model, x, [0, 1], 0.03)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ball is 0.03, expected a gradlens.Ball") == 6
