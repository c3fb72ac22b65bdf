"""The door: what every measurement relies on is checked here, once, in the caller's words."""

import math
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn

from .ball import Ball
from .model import at_least_single, forward, frozen, logits, rounding
from .types import Images, ImagesLike, Labels, LabelsLike, Logits

PROBE = 16  # samples that are run twice to see whether the model answers the same


def check_images(model: nn.Module, x: ImagesLike, ball: Ball, *, name: str = "x", offset: int = 0) -> Images:
    """Finite floating-point pixels inside the box, on the model's device, in at least float32.

    `offset` is how many samples came before these, so that messages count as the caller does. Raises ValueError.
    """
    home = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    if isinstance(x, np.ndarray):
        x = tensor_of(x, f"{name} holds {x.dtype}, expected floating-point pixels in [{ball.low}, {ball.high}]").to(
            home
        )
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is a {type(x).__name__}, expected a tensor or array of images (batch, ...)")
    if not x.is_floating_point():
        raise ValueError(
            f"{name} holds {x.dtype}, expected floating-point pixels in [{ball.low}, {ball.high}]; "
            "divide 8-bit images by 255"
        )
    if x.layout != torch.strided or (x.is_meta and home != x.device):
        kind = "without content (meta)" if x.is_meta else f"of layout {x.layout}"
        raise ValueError(f"{name} is a tensor {kind}, expected a dense one of pixels")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected a batch of at least one image, such as "
            "(batch, channels, height, width)"
        )
    if home is not None and x.device != home:
        raise ValueError(f"{name} is on {x.device}, the model on {home}; move one of them with .to(...)")
    x = x.detach().clone() if x.is_inference() else x.detach()
    lowest, highest = x.aminmax()  # of which NaN makes NaN; `isfinite` would take as much memory as the images
    if not (lowest.isfinite() and highest.isfinite()):
        bad = ~x.isfinite().flatten(1).all(1)
        raise ValueError(
            f"{name} holds NaN or infinity in {int(bad.sum())} of {len(x)} samples, the first of them "
            f"sample {offset + int(bad.nonzero()[0])}; expected finite pixels"
        )
    if lowest < ball.low or highest > ball.high:
        raise ValueError(
            f"{name} spans [{lowest:.3g}, {highest:.3g}], outside the pixel box [{ball.low}, {ball.high}]; "
            "put normalisation inside the model (gradlens.Normalized)"
        )
    return at_least_single(x)


def check_labels(y: LabelsLike, batch: int, device: torch.device, *, name: str = "y") -> Labels:
    """One class number an image. Raises ValueError."""
    labels = y if isinstance(y, Tensor) else tensor_of(y, f"{name} is {y!r:.80}, expected integer class numbers")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} holds {labels.dtype}, expected integer class numbers")
    if labels.layout != torch.strided or labels.is_meta:
        kind = "without content (meta)" if labels.is_meta else f"of layout {labels.layout}"
        raise ValueError(f"{name} is a tensor {kind}, expected integer class numbers")
    if labels.shape != (batch,):
        raise ValueError(f"{name} has shape {tuple(labels.shape)}, expected ({batch},): one class number an image")
    return labels.to(device=device, dtype=torch.long)


def check_ball(ball: Ball) -> None:
    """Raises ValueError for anything else in its place: a bare number is the usual slip."""
    if not isinstance(ball, Ball):
        raise ValueError(f"ball is {ball!r}, expected a gradlens.Ball, such as Ball(eps=8/255, norm='linf')")


def check_attack(
    ball: Ball, *, steps: int, step_size: float | None, restarts: int = 1, samples: int = 1, momentum: float = 0.0
) -> float:
    """The step size in pixels, 2.5 eps / steps where none is given, once an attack's knobs have been checked.

    Raises ValueError naming the knob.
    """
    check_ball(ball)
    for name, count in (("steps", steps), ("restarts", restarts), ("samples", samples)):
        check_count(name, count)
    if step_size is not None and not (isinstance(step_size, Real) and step_size > 0 and math.isfinite(step_size)):
        raise ValueError(f"step_size is {step_size!r}, expected a positive number of pixels")
    if not (isinstance(momentum, Real) and momentum >= 0 and math.isfinite(momentum)):
        raise ValueError(f"momentum is {momentum!r}, expected 0 or a positive number")
    return 2.5 * ball.eps / steps if step_size is None else step_size


def check_count(name: str, count: object, least: int = 1) -> None:
    """Raises ValueError for anything but a whole number of at least `least`."""
    if not isinstance(count, Integral) or isinstance(count, bool) or count < least:
        raise ValueError(f"{name} is {count!r}, expected at least {least}, a whole number")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError for anything but one of the words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r:.80}, expected one of {', '.join(map(repr, choices))}")


def check_flag(name: str, value: object) -> None:
    """Raises ValueError for anything but True and False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {value!r:.80}, expected True or False")


def is_number(value: object) -> bool:
    """Is it a finite real number? A bool is not."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_generator(generator: object) -> None:
    """Raises ValueError for anything but a torch.Generator, or nothing."""
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator is {generator!r}, expected a torch.Generator, or nothing")


def check_positive(name: str, values: object, unit: str) -> None:
    """Raises ValueError for anything but a sequence of positive finite numbers."""
    numbers = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [None]
    if not all(isinstance(v, Real) and 0 < float(v) < math.inf for v in numbers):
        raise ValueError(f"{name} are {values!r}, expected positive numbers, {unit}, such as (0.1, 1.0)")


@torch.no_grad()
def predict(model: nn.Module, x: ImagesLike, *, ball: Ball = Ball()) -> Labels:
    """The class each image gets. `ball` gives the pixel box; raises ValueError for bad images, as `pgd` does."""
    check_ball(ball)
    with frozen(model), torch.no_grad():
        return check_answer(model, check_images(model, x, ball)).argmax(1)


@torch.no_grad()
def admit(
    model: nn.Module,
    x: Images,
    y: Labels | None,
    *,
    stochastic: bool = False,
    probe: bool = True,
    offset: int = 0,
    probabilities: bool = False,
    averages: str = "",
) -> tuple[Labels, Logits]:
    """The labels, the model's own predictions if there are none, and its answers to `x`, once they have been checked.

    `stochastic` admits a model that answers differently on each pass; without `probe` that is not looked at again.
    `probabilities` admits one that ends in a softmax. `averages` is the called function, if it has an option for random
    models. To be called within `frozen`. Raises ValueError naming the argument, what came and what was expected.
    """
    answer = check_answer(model, x, offset=offset, probabilities=probabilities)
    if probe and not stochastic:
        known = answer if len(x) <= PROBE else None
        together = _refuse_random(model, x[:PROBE], known, averages or "pgd, robustness, curve or transfer")
        _refuse_mixing(model, x[:PROBE], together)
    if y is None:
        return answer.argmax(1), answer
    if y.amin() < 0 or y.amax() >= answer.shape[1]:
        raise ValueError(
            f"y spans {int(y.amin())}..{int(y.amax())}, expected class numbers in 0..{answer.shape[1] - 1}, "
            f"as the model has {answer.shape[1]} outputs"
        )
    return y, answer


def lacks_memory(error: Exception) -> bool:
    """Is this error a want of memory, on a GPU or here?"""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def check_answer(
    model: nn.Module, x: Images, *, name: str = "x", offset: int = 0, probabilities: bool = False
) -> Logits:
    """The logits of one forward pass, whose failure, shape or values are reported in the caller's words.

    `probabilities` lets them pass for logits.
    """
    try:
        answer = forward(model, x)
    except Exception as error:  # some models assert their shapes, some run into a missing key
        if lacks_memory(error):
            raise
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
            f"them sample {offset + int(bad.nonzero()[0])}; expected finite logits"
        )
    are_shares = answer.amin() >= 0 and ((answer.sum(1) - 1).abs() < 1e-4).all()
    if not probabilities and are_shares and not _is_constant(model, x, answer):
        raise ValueError(
            "model returns probabilities (each row is positive and sums to 1), expected logits; leave the softmax out, "
            "its saturation would be measured instead of the model"
        )
    return at_least_single(answer)


def _is_constant(model: nn.Module, x: Images, answer: Logits) -> bool:
    """Logits such as (0, 1), the same for any image. A softmax reaches 0 only where it rounds: not everywhere."""
    if answer.amin() > 0 or not (answer == answer[:1]).all():
        return False
    first = x[:1]
    # the images may be all of one class; these are unlike them, and in any common box
    turned = [x.amin() + x.amax() - first, first.flatten(1).flip(1).view_as(first)]
    others = torch.cat([*turned, torch.zeros_like(first), torch.full_like(first, 0.5), torch.ones_like(first)])
    return bool((forward(model, others) == answer[:1]).all())


def _refuse_random(model: nn.Module, x: Images, known: Logits | None, averages: str) -> Logits:
    """Two passes over the same images, the first of which may be known; returns what they answer."""
    first = logits(model, x) if known is None else known
    second = logits(model, x)
    gap = (first - second).abs().amax()
    # parallel sums on a GPU differ in the last digits from pass to pass; a random defence differs by far more
    if gap > 1e-5 * first.abs().amax().clamp(min=1e-30):
        raise ValueError(
            f"model is random between two passes: the same images gave logits that differ by {gap:.3g}; "
            f"expected a deterministic one (samples=k, in {averages}, averages over the randomness)"
        )
    return first


def _refuse_mixing(model: nn.Module, x: Images, together: Logits) -> None:
    """One image alone must get the answer that it gets among others, or no number is a sample's own."""
    if len(x) < 2:
        return
    try:
        gap = (logits(model, x[:1]) - together[:1]).abs().amax()
    except (RuntimeError, ValueError):  # batch statistics of a single value
        gap = torch.tensor(torch.inf)
    # other kernels for other batch sizes round differently, in half precision by up to a hundredth
    allowed = max(1e-3, min(5e-2, 10 * rounding(model, x)))
    if gap > allowed * together.abs().amax().clamp(min=1e-30):
        raise ValueError(
            f"model mixes the samples of a batch: an image alone and the same image among {len(x)} get logits that "
            f"differ by {gap:.3g}; expected answers that depend on one sample alone (batch norm: running statistics)"
        )


def tensor_of(values: object, complaint: str) -> Tensor:
    """A tensor of its own, also of arrays that are read-only, turned around or in another byte order."""
    try:
        array = np.array(values)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise ValueError(complaint) from error
