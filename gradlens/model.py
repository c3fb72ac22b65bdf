"""What gradlens asks of a model: logits, and gradients with respect to the input."""

import math
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .prepared import Prepared, may_round
from .types import Images, Labels, Logits, Loss, PerSample

TF32 = 2.0**-10  # TensorFloat-32 keeps ten bits after the leading one


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode without parameter gradients; the caller's model is exactly as it was on the way out.

    Modes and `requires_grad` are put back for each submodule and parameter on its own, since layers may be frozen on
    purpose; buffers that a forward pass rewrites (counters, caches) get their old values. `.grad` is never touched.
    Gradients work inside even where the caller has switched them off.
    """
    check_module(model)
    tensors = (*model.parameters(), *model.buffers())
    if any(t.is_inference() for t in tensors):
        raise ValueError(
            f"model ({type(model).__name__}) was built in torch.inference_mode(), expected ordinary parameters and "
            "buffers; build or load it outside"
        )
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    held = [(module, name, b) for module in model.modules() for name, b in module.named_buffers(recurse=False)]
    buffers = {buffer: buffer.detach().clone() for _, _, buffer in held}
    try:
        model.eval()
        for parameter in flags:
            parameter.requires_grad_(False)
        arithmetic = model.arithmetic() if isinstance(model, Prepared) else nullcontext()
        with torch.inference_mode(False), torch.enable_grad(), arithmetic:
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


def check_module(model: nn.Module, name: str = "model") -> None:
    """Raises ValueError for anything but a module, and for one whose weights have no shape yet."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} is a {type(model).__name__}, expected a torch.nn.Module that maps images to logits")
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        raise ValueError(
            f"{name} ({type(model).__name__}) has lazy layers whose weights have no shape yet, expected a model that "
            "has seen a batch: call it once"
        )


class Normalized(nn.Module):
    """A classifier of pixels in [0, 1]: subtracts `mean`, divides by `std` (one number a channel), then `model`.

    Attacks and balls are in pixels, so normalisation belongs inside the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
        first, second = _channels("mean", mean), _channels("std", std)
        if len(first) != len(second) or not len(second) or min(second) <= 0:
            raise ValueError(f"mean {first} and std {second}: expected as many of each, every std positive")
        self.register_buffer("mean", torch.tensor(first).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(second).view(-1, 1, 1))
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


def _channels(name: str, values: object) -> list[float]:
    """The numbers of a sequence. Raises ValueError for anything else."""
    plain = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    numbers: list[Any] = list(plain) if isinstance(plain, list | tuple) else [None]
    if not all(isinstance(one, Real) and math.isfinite(one) for one in numbers):
        raise ValueError(f"{name} is {values!r:.80}, expected a sequence of finite numbers, one a channel")
    return [float(one) for one in numbers]


def logits(model: nn.Module, x: Images) -> Logits:
    """The model's answer to `x`, in at least float32.

    The model sees a copy, since some begin with an in-place layer; a half-precision model sees it in its own type.
    """
    return at_least_single(forward(model, x))


def forward(model: nn.Module, x: Images) -> Any:
    """What the model makes of a copy of `x`, whatever that is."""
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    return model(x.to(kind) if x.dtype != kind else x.clone())


def arithmetic(model: nn.Module, x: Images) -> torch.dtype:
    """The type in which the model multiplies matrices: that of its parameters, unless it was prepared for another."""
    if isinstance(model, Prepared) and model.precision == "bfloat16" and x.dtype == torch.float32:
        return torch.bfloat16
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)


def rounding(model: nn.Module, x: Images) -> float:
    """Distance from 1 to the next number in that arithmetic; a GPU may round the factors of float32 to TF32."""
    kind = arithmetic(model, x)
    return TF32 if kind == torch.float32 and x.is_cuda and may_round() else torch.finfo(kind).eps


def predictive_entropy(answer: Logits) -> PerSample:
    """Entropy of the softmax of these logits, in nats."""
    log_p = answer.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def pickled(content: object, what: str = "model") -> bytes:
    """For another process. Raises ValueError, naming `what`, for hooks, closures, handles: whatever it may hold."""
    try:
        return pickle.dumps(content)
    except Exception as error:
        raise ValueError(f"{what} cannot be sent to other processes ({error}), expected one that pickles") from error


def at_least_single(t: Tensor) -> Tensor:
    """Half precision as float32, other types as they are."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def input_gradient(model: nn.Module, x: Images, y: Labels, loss: Loss) -> tuple[Logits, PerSample, Images]:
    """Logits, per-sample loss and its gradient in `x`. Samples never mix: losses are summed, not averaged.

    The gradient is zero, and so counted as undefined, where the loss does not depend on `x` at all.
    """
    x = x.detach().clone().requires_grad_(True)
    answer = logits(model, x)
    losses = per_sample(loss, answer, y)
    if losses.requires_grad:
        (grad,) = torch.autograd.grad(losses.sum(), x, materialize_grads=True)
    else:
        grad = torch.zeros_like(x)
    return answer.detach(), losses.detach(), grad


def per_sample(loss: Loss, answer: Logits, y: Labels) -> PerSample:
    """The loss of each sample; raises ValueError for a loss that has already been averaged or summed, or is none."""
    try:
        losses = loss(answer, y)
    except TypeError as error:
        raise ValueError(
            f"loss cannot be called with (logits, y): {error}; expected a function of these two"
        ) from error
    if not isinstance(losses, Tensor):
        raise ValueError(f"loss returns a {type(losses).__name__}, expected a tensor with one value a sample")
    if losses.shape != y.shape:
        raise ValueError(
            f"loss returns shape {tuple(losses.shape)} for {len(y)} samples, expected one value a sample, as "
            "gradlens.losses.cross_entropy gives: a mean would divide every gradient by the batch size"
        )
    return losses


def mean_gradient(
    model: nn.Module, x: Images, y: Labels, loss: Loss, samples: int = 1
) -> tuple[Logits, PerSample, Images]:
    """Mean over `samples` passes of logits, loss and gradient: of a random model, the gradient of the expected loss."""
    passes = [input_gradient(model, x, y, loss) for _ in range(samples)]
    if samples == 1:
        return passes[0]
    answer, value, grad = (torch.stack(parts).mean(0) for parts in zip(*passes, strict=True))
    return answer, value, grad


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool((a.isnan() & b.isnan() | (a == b)).all())
