"""What gradlens asks of a model: logits, and gradients with respect to the input. And the door: what it refuses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .ball import Ball
from .types import Images, ImagesLike, Labels, LabelsLike, Logits, Loss, PerSample

PROBE = 16  # samples that are run twice to see whether the model answers the same


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without parameter gradients; the caller's model is exactly as it was on the way out.

    Modes and `requires_grad` are put back for each submodule and parameter on its own, since layers may be frozen on
    purpose; buffers that a forward pass rewrites (counters, caches) get their old values. `.grad` is never touched.
    Gradients work inside even where the caller has switched them off.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}, expected a torch.nn.Module that maps images to logits")
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    held = [(module, name, b) for module in model.modules() for name, b in module.named_buffers(recurse=False)]
    buffers = {buffer: buffer.detach().clone() for _, _, buffer in held}
    try:
        model.eval().requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, name, buffer in held:
            if getattr(module, name) is not buffer:  # a forward pass put another in its place
                setattr(module, name, buffer)
        with torch.no_grad():
            for buffer, value in buffers.items():
                if not _same_bits(buffer, value):
                    buffer.copy_(value)


class Normalized(nn.Module):
    """A classifier of pixels in [0, 1]: subtracts `mean`, divides by `std` (one number a channel), then `model`.

    Attacks and balls are in pixels, so normalisation belongs inside the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"mean {list(mean)} and std {list(std)}: expected as many of each, every std positive")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


def logits(model: nn.Module, x: Images) -> Logits:
    """The model's answer to `x`, in at least float32.

    The model sees a copy, since some begin with an in-place layer; a half-precision model sees it in its own type.
    """
    return _at_least_single(_forward(model, x))


def input_gradient(model: nn.Module, x: Images, y: Labels, loss: Loss) -> tuple[Logits, PerSample, Images]:
    """Logits, per-sample loss and its gradient in `x`. Samples never mix: losses are summed, not averaged.

    The gradient is zero, and so counted as undefined, where the loss does not depend on `x` at all.
    """
    x = x.detach().clone().requires_grad_(True)
    answer = logits(model, x)
    losses = loss(answer, y)
    if losses.requires_grad:
        (grad,) = torch.autograd.grad(losses.sum(), x, materialize_grads=True)
    else:
        grad = torch.zeros_like(x)
    return answer.detach(), losses.detach(), grad


@torch.no_grad()
def predict(model: nn.Module, x: Images) -> Labels:
    """The class each image gets."""
    with frozen(model), torch.no_grad():
        return logits(model, x).argmax(1)


def admit(
    model: nn.Module, x: ImagesLike, y: LabelsLike | None, ball: Ball, *, stochastic: bool = False, name: str = "x"
) -> tuple[Images, Labels]:
    """Check at the door, once, what every measurement relies on; without labels, the model's own predictions are used.

    Arrays become tensors on the model's device, half-precision images float32. `stochastic` admits a model that
    answers differently on each pass; `name` is what the caller calls the images. To be called within `frozen`.

    Raises ValueError naming the argument, what came and what was expected.
    """
    images = _images(model, x, ball, name)
    with torch.no_grad():
        answer = _answer(model, images, name)
        if not stochastic:
            _refuse_random(model, images[:PROBE])
    if y is None:
        return images, answer.argmax(1)
    return images, _labels(y, len(images), answer.shape[1], images.device)


def _forward(model: nn.Module, x: Images) -> Any:
    """What the model makes of a copy of `x`, whatever that is."""
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    return model(x.to(kind) if x.dtype != kind else x.clone())


def _at_least_single(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def _images(model: nn.Module, x: ImagesLike, ball: Ball, name: str) -> Images:
    home = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    if isinstance(x, np.ndarray):
        x = _tensor(x, f"{name} holds {x.dtype}, expected floating-point pixels in [{ball.low}, {ball.high}]").to(home)
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is a {type(x).__name__}, expected a tensor or array of images (batch, ...)")
    if not x.is_floating_point():
        raise ValueError(
            f"{name} holds {x.dtype}, expected floating-point pixels in [{ball.low}, {ball.high}]; "
            "divide 8-bit images by 255"
        )
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected a batch of at least one image, such as "
            "(batch, channels, height, width)"
        )
    if home is not None and x.device != home:
        raise ValueError(f"{name} is on {x.device}, the model on {home}; move one of them with .to(...)")
    x = x.detach().clone() if x.is_inference() else x.detach()
    bad = ~x.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(
            f"{name} holds NaN or infinity in {int(bad.sum())} of {len(x)} samples, the first of them "
            f"sample {int(bad.nonzero()[0])}; expected finite pixels"
        )
    if x.amin() < ball.low or x.amax() > ball.high:
        raise ValueError(
            f"{name} spans [{x.amin():.3g}, {x.amax():.3g}], outside the pixel box [{ball.low}, {ball.high}]; "
            "put normalisation inside the model (gradlens.Normalized)"
        )
    return _at_least_single(x)


def _answer(model: nn.Module, x: Images, name: str) -> Logits:
    """One forward pass whose failure, shape or values are reported in the caller's words."""
    try:
        answer = _forward(model, x)
    except Exception as error:  # some models assert their shapes, some run into a missing key
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} and type {x.dtype} does not go through the model "
            f"({type(model).__name__}): {error}"
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or answer.shape[0] != len(x) or answer.shape[1] < 2:
        came = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise ValueError(
            f"model returns {came} for {len(x)} images, expected logits (batch, classes) with at least two classes"
        )
    if not answer.is_floating_point():
        raise ValueError(f"model returns {answer.dtype}, expected floating-point logits (batch, classes)")
    bad = ~answer.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f"model returns NaN or infinite logits for {int(bad.sum())} of {len(x)} samples, the first of "
            f"them sample {int(bad.nonzero()[0])}; expected finite logits"
        )
    return _at_least_single(answer)


def _refuse_random(model: nn.Module, x: Images) -> None:
    first, second = logits(model, x), logits(model, x)
    gap = (first - second).abs().amax()
    # parallel sums on a GPU differ in the last digits from pass to pass; a random defence differs by far more
    if gap > 1e-5 * first.abs().amax().clamp(min=1e-30):
        raise ValueError(
            f"model is random between two passes: the same images gave logits that differ by {gap:.3g}; "
            "expected a deterministic one (pgd takes samples=k to average over the randomness)"
        )


def _labels(y: LabelsLike, batch: int, classes: int, device: torch.device) -> Labels:
    labels = y if isinstance(y, Tensor) else _tensor(y, f"y is {y!r:.80}, expected integer class numbers")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"y holds {labels.dtype}, expected integer class numbers")
    if labels.shape != (batch,):
        raise ValueError(f"y has shape {tuple(labels.shape)}, expected ({batch},): one class number an image")
    labels = labels.to(device=device, dtype=torch.long)
    if labels.amin() < 0 or labels.amax() >= classes:
        raise ValueError(
            f"y spans {int(labels.amin())}..{int(labels.amax())}, expected class numbers in "
            f"0..{classes - 1}, as the model has {classes} outputs"
        )
    return labels


def _tensor(values: object, complaint: str) -> Tensor:
    """A tensor of its own, also of arrays that are read-only, turned around or in another byte order."""
    try:
        array = np.array(values)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise ValueError(complaint) from error


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool((a.isnan() & b.isnan() | (a == b)).all())
