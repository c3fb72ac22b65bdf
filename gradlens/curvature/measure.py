"""The Hessian's spectrum, in the weights or in the input."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..ball import Ball
from ..batches import BATCH, Chunk, measured
from ..door import check_choice, check_count, check_generator, is_number
from ..losses import cross_entropy
from ..model import frozen, logits, per_sample
from ..prepared import uncompiled
from ..provenance import UNSIGNED, Made
from ..types import Images, ImagesLike, Labels, LabelsLike, Loss, PerRise, PerRow
from .estimates import Ends, Estimates, estimate
from .lanczos import unit
from .parameters import chosen
from .products import Hessian, InputHessian, WeightHessian
from .record import Of, Spectrum

RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
STEPS = {"weights": 60, "inputs": 20}
EXACT = {"weights": 512, "inputs": 64}  # numbers up to which Lanczos goes all the way, unless told how far


def spectrum(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    *,
    of: Of = "weights",
    k: int = 5,
    loss: Loss = cross_entropy,
    names: str | Sequence[str] | None = None,
    steps: int | None = None,
    probes: int = 4,
    depth: int = 15,
    precision: float = 0.01,
    ball: Ball = Ball(),
    batch: int | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """The k largest and k smallest eigenvalues of the loss's Hessian, its trace and its density of eigenvalues.

    of="weights": of the mean loss over all samples, in the parameters that require gradients; `names` are patterns
    ("layer4.*") that choose among them, a shared parameter counts once, an unused one has rows of zeros. of="inputs":
    of each sample's own loss, in its pixels. The model is in evaluation mode throughout; one in half precision is
    computed in float32, as a Hessian needs digits (its weights are those of the half-precision model).

    `x` is (batch, ...), or a DataLoader of images or (images, labels), which is read once and held; without labels the
    model's own predictions are used. `loss` maps (logits, labels) to one value a sample.

    `steps` Lanczos steps with full reorthogonalisation find the ends (60; 20 for inputs; all there are for up to 512
    weights or 64 pixels, which makes everything exact), at one product of the Hessian with a vector each. `depth`
    steps from each of `probes` random vectors give the density of what is left (stochastic Lanczos quadrature:
    Ghorbani et al. 2019). Memory: `steps` + `probes` x `depth` vectors. Further vectors, 400 at most, follow until the
    standard error of the weights' trace is within `precision` of it; `is_trace_exact` says whether they sufficed.
    `batch` samples go through the model at a time; the result does not depend on it. `ball` gives the pixel box.

    Raises ValueError as `pgd` does, also for a random model or loss; for a model without parameters that require
    gradients, a pattern that matches none, more eigenvalues than there are, and a part of the model that has no second
    derivative.
    """
    check_choice("of", of, get_args(Of))
    _check_knobs(k, steps, probes, depth, precision)
    check_generator(generator)
    model = uncompiled(model)
    options = {
        "of": of, "k": k, "loss": loss, "names": names, "steps": steps, "probes": probes, "depth": depth,
        "precision": precision, "ball": ball,
    }  # fmt: skip
    knobs = {"k": k, "probes": probes, "depth": depth}
    if of == "inputs":
        if names is not None:
            raise ValueError(f"names is {names!r}, expected None: it chooses parameters, and of is 'inputs'")
        return measured(
            lambda chunk: _of_inputs(model, chunk, loss, steps, knobs), model, x, y, ball, call="spectrum",
            options=options, batch=batch, generator=generator, kept=(steps or STEPS["inputs"]) + probes * depth,
        )  # fmt: skip
    weights = chosen(model, names)
    steps = _steps(of, k, steps, sum(w.numel() for w in weights.values()), "the chosen parameters")
    samples = measured(
        lambda chunk: _held(model, chunk, loss), model, x, y, ball,
        call="spectrum", options=options, batch=batch, generator=generator,
    )  # fmt: skip
    with (
        frozen(model),
        tqdm(desc="spectrum", unit="product", delay=3, disable=None, total=steps + probes * depth) as bar,
    ):
        hessian = WeightHessian(model, weights, samples.x, samples.y, loss, batch or BATCH)
        found = estimate(hessian, generator, **knobs, steps=steps, precision=precision, bar=bar)
        return _record("weights", hessian, found, tuple(weights), samples.made, precision)


@dataclass(frozen=True)
class _Samples:
    """All samples, checked at the door."""

    x: Images
    y: Labels
    made: Made


def _held(model: nn.Module, chunk: Chunk, loss: Loss) -> _Samples:
    if chunk.where.start == 0:
        _refuse_random_loss(model, chunk, loss)
    return _Samples(chunk.x, chunk.y, UNSIGNED)


def _of_inputs(model: nn.Module, chunk: Chunk, loss: Loss, steps: int | None, knobs: dict[str, Any]) -> Spectrum:
    steps = _steps("inputs", knobs["k"], steps, chunk.x[0].numel(), "the pixels of an image")
    if chunk.where.start == 0:
        _refuse_random_loss(model, chunk, loss)
    hessian = InputHessian(model, chunk.x, chunk.y, loss)
    found = estimate(hessian, chunk.draws(), steps=steps, precision=None, **knobs)
    return _record("inputs", hessian, found, ("x",), UNSIGNED, None)


def _record(
    of: Of, hessian: Hessian, found: Estimates, names: tuple[str, ...], made: Made, precision: float | None
) -> Spectrum:
    """The estimates in the caller's shapes: of the weights, without the axis over rows."""
    loss, gradient, rise = _climb(hessian)
    top, bottom = found.top, found.bottom
    each = {
        "eigenvalues": top.values, "residuals": top.residuals, "converged": top.converged,
        "bottom": bottom.values, "bottom_residuals": bottom.residuals, "bottom_converged": bottom.converged,
        "trace": found.trace, "trace_error": found.trace_error, "ritz": found.ritz, "weights": found.weights,
        "loss": loss, "gradient_norm": gradient, "rise": rise,
    }  # fmt: skip
    return Spectrum(
        **(each if of == "inputs" else {name: t[0] for name, t in each.items()}),
        of=of, vectors=_shaped(hessian, top), bottom_vectors=_shaped(hessian, bottom),
        radii=torch.tensor(RADII, dtype=torch.float64, device=loss.device), names=names, size=hessian.size,
        products=found.products, precision=precision, made=made,
    )  # fmt: skip


def _climb(hessian: Hessian) -> tuple[PerRow, PerRow, PerRise]:
    """Loss, length of the gradient, and rise of the loss at RADII along it, in each row."""
    gradient = hessian.gradient()
    direction = unit(gradient)
    loss = hessian.loss(torch.zeros_like(gradient))
    rises = [hessian.loss(radius * direction) - loss for radius in RADII]
    none = (direction == 0).all(1)
    return (
        loss.double(),
        gradient.double().norm(dim=1),
        torch.stack(rises, 1).double().masked_fill(none[:, None], torch.nan),
    )


def _shaped(hessian: Hessian, ends: Ends) -> tuple[dict[str, Tensor], ...] | tuple[Images, ...]:
    if isinstance(hessian, WeightHessian):
        return tuple(dict(zip(hessian.weights, hessian.split(v), strict=True)) for v in ends.vectors[0])
    return tuple(v.reshape(hessian.x.shape) for v in ends.vectors.unbind(1))


def _refuse_random_loss(model: nn.Module, chunk: Chunk, loss: Loss) -> None:
    """The door has seen that the logits do not change; a loss that samples actions is random all the same."""
    with torch.no_grad():
        answer = logits(model, chunk.x[:16])
        first, second = (per_sample(loss, answer, chunk.y[:16]) for _ in range(2))
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise ValueError(
            f"loss is random between two passes: the same logits gave losses that differ by "
            f"{(first - second).abs().amax():.3g}; expected a deterministic one, such as its expectation over actions"
        )


def _check_knobs(k: int, steps: int | None, probes: int, depth: int, precision: float) -> None:
    for name, count, least in (
        ("k", k, 1),
        ("steps", k if steps is None else steps, 1),
        ("probes", probes, 2),
        ("depth", depth, 1),
    ):
        check_count(name, count, least)
    if steps is not None and steps < k:
        raise ValueError(f"steps is {steps}, expected at least k = {k}: a step finds one eigenvalue at most")
    if not (is_number(precision) and precision > 0):
        raise ValueError(f"precision is {precision!r}, expected a positive share of the trace, such as 0.01")


def _steps(of: Of, k: int, steps: int | None, size: int, what: str) -> int:
    """How far Lanczos goes: at least 2k + 10 steps, so that both ends have room."""
    if k > size:
        raise ValueError(f"k is {k}, expected at most {size}, as {what} are that many numbers")
    if steps is not None:
        return steps
    return size if size <= EXACT[of] else max(STEPS[of], 2 * k + 10)
