"""Other packages' answers to the same questions: loss-landscapes and pyhessian, with their traps repaired.

They are witnesses: a number of ours that they also give is a number that two programs agree on.
"""

import copy
import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import loss_landscapes
import numpy as np
import torch
from loss_landscapes.metrics.metric import Metric
from loss_landscapes.model_interface.model_wrapper import ModelWrapper
from pyhessian import hessian
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .ball import Ball
from .curvature import Spectrum
from .door import admit, check_images, check_labels
from .landscape import Surface, WeightSurface
from .losses import cross_entropy
from .model import frozen, logits
from .types import Images, ImagesLike, LabelsLike, Loss


class _Picture(nn.Module):
    """An image batch as the parameters of a module, so that a tool for weights walks through images."""

    def __init__(self, images: Images) -> None:
        super().__init__()
        self.images = nn.Parameter(images.clone())


class _PerSampleLoss(Metric):
    """loss-landscapes' metric protocol: the loss of each sample at the images that the walk has reached."""

    def __init__(self, model: nn.Module, surface: Surface, loss: Loss) -> None:
        super().__init__()
        self.model, self.surface, self.loss = model, surface, loss

    def __call__(self, model_wrapper: ModelWrapper) -> np.ndarray:
        (picture,) = model_wrapper.get_modules()
        images = picture.images.detach()
        if self.surface.projected is not None:
            images = images.clamp(*self.surface.projected)
        return self.loss(logits(self.model, images), self.surface.labels).cpu().numpy()


def input_line(model: nn.Module, x: ImagesLike, surface: Surface, *, loss: Loss = cross_entropy) -> Surface:
    """The losses of `gradlens.input_line`'s `surface` of the images `x`, measured anew by loss-landscapes.

    Only its `linear_interpolation` is sound, and it steps before it first measures: so the walk begins one step
    before the line, on copies. Its steps add up in float32, which costs about 1e-6 of the images.
    """
    if surface.loss.shape[1] != 1:
        raise ValueError(f"surface has {surface.loss.shape[1]} columns, expected the single one of input_line")
    x = torch.as_tensor(x)
    step = surface.alpha[1] - surface.alpha[0]
    ends = (surface.alpha[0] - step, surface.alpha[-1])
    start, end = (_Picture(x + surface.unit * alpha * surface.directions[0]) for alpha in ends)
    with frozen(model), torch.no_grad():
        metric = _PerSampleLoss(model, surface, loss)
        values = loss_landscapes.linear_interpolation(start, end, metric, steps=len(surface.alpha))
    return dataclasses.replace(surface, loss=torch.as_tensor(values).to(surface.loss)[:, None])


def weight_surface(model: nn.Module, x: ImagesLike, y: LabelsLike, surface: WeightSurface) -> WeightSurface:
    """The loss of `gradlens.weight_line`'s or `weight_plane`'s `surface`, measured anew by loss-landscapes.

    On copies of `model`, all images at once. Its plane functions walk a zigzag and its walks step before they measure:
    so each row (a line: the column) is a `linear_interpolation` of its own that begins one step before the grid. Its
    steps add up in the model's precision. Raises ValueError as `gradlens.pgd` does, for batch norm that is not frozen,
    and for coordinates that are not evenly spaced.
    """
    if surface.batchnorm not in ("frozen", "none"):
        raise ValueError(
            f"surface has batchnorm {surface.batchnorm!r}, expected 'frozen': the walk moves parameters only"
        )
    with frozen(model):
        images = check_images(model, x, Ball(low=-torch.inf, high=torch.inf))
        labels, _ = admit(model, images, check_labels(y, len(images), images.device))
    metric = loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), images, labels)
    walked, rows = (surface.alpha, [None]) if len(surface.beta) == 1 else (surface.beta, surface.alpha.tolist())
    step = float(walked[1] - walked[0])
    if not torch.allclose(walked.diff(), walked.diff()[:1], rtol=1e-6, atol=0):
        raise ValueError(f"surface has coordinates {walked.tolist()}, expected even steps")
    ends = (float(walked[0]) - step, float(walked[-1]))
    lines = []
    with torch.no_grad():
        for row in rows:
            places = [(end, 0.0) if row is None else (row, end) for end in ends]
            start, end = (_moved(model, surface, *place) for place in places)
            lines.append(torch.as_tensor(loss_landscapes.linear_interpolation(start, end, metric, steps=len(walked))))
    values = torch.stack(lines).reshape(1, len(surface.alpha), len(surface.beta)).double()
    kept = surface.metrics.index("loss") if "loss" in surface.metrics else None
    plain, path, bound = (
        torch.full_like(t[:1], torch.nan) if kept is None else t[kept : kept + 1]
        for t in (surface.plain, surface.path_values, surface.bound)
    )
    return dataclasses.replace(
        surface, values=values, metrics=("loss",), units=("nats",), plain=plain, path_values=path,
        measured=torch.ones_like(surface.measured), tolerance=None, bound=bound.new_zeros(1),
    )  # fmt: skip


def _moved(model: nn.Module, surface: WeightSurface, alpha: float, beta: float) -> nn.Module:
    """A copy of the model, in evaluation mode, with its parameters at a point of the surface."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    parameters: dict[str, Tensor] = dict(twin.named_parameters())
    for share, direction in zip((alpha, beta), surface.directions, strict=False):
        for name, d in direction.items():
            parameters[name].data += (share * d).to(parameters[name].dtype)
    return twin


def spectrum(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike,
    ours: Spectrum,
    *,
    loss: Loss = cross_entropy,
    tolerance: float = 1e-3,
    iterations: int = 200,
    probes: int = 100,
    batch: int = 256,
    seed: int = 0,
    ball: Ball = Ball(),
) -> Spectrum:
    """The weights' spectrum `ours`, with eigenvalues and trace measured anew by pyhessian.

    Power iteration finds the eigenvalues of largest size, one after the other, each until a step changes less than
    `tolerance` of it or for `iterations`: its own 1e-3 stops short where eigenvalues are close (`sharpness`). Where a
    negative one is among them, nan takes the place of the last of the k largest. The trace is Hutchinson's, over all
    `probes` vectors: pyhessian's own rule would stop at once where it is negative. pyhessian gives no residuals: they
    are nan, `converged` says which values are there. Its density cannot run (it needs torch.eig, which is gone):
    density, smallest eigenvalues and all else stay ours.

    Runs on a float32 or float64 copy, since pyhessian leaves a model in evaluation mode and with gradients that the
    next call would add to. Unused parameters and attention, which crash it, are seen to. `seed` decides the random
    vectors, torch's own state is put back. Raises ValueError for a spectrum of inputs and for bad images or labels.
    """
    if ours.of != "weights":
        raise ValueError(f"ours is a spectrum of the {ours.of}, expected one of the weights: pyhessian knows no other")
    k = len(ours.eigenvalues)
    with _estimator(model, x, y, loss, ours.names, batch, seed, ball) as (estimator, twin):
        found, directions = estimator.eigenvalues(maxIter=iterations, tol=tolerance, top_n=k)
        samples = torch.tensor(estimator.trace(maxIter=probes, tol=-torch.inf), dtype=torch.float64)
        names = [name for name, parameter in twin.named_parameters() if parameter.requires_grad]
        pairs = sorted(zip(found, directions, strict=True), key=lambda pair: -pair[0])
        values = torch.tensor([value if value > 0 else torch.nan for value, _ in pairs], dtype=torch.float64)
        vectors = tuple({n: t.detach() for n, t in zip(names, tensors, strict=True)} for _, tensors in pairs)
    return dataclasses.replace(
        ours, eigenvalues=values, residuals=torch.full_like(values, torch.nan), converged=values.isfinite(),
        vectors=vectors, trace=samples.mean(), trace_error=samples.std() / len(samples) ** 0.5,
        products={"trace": len(samples)},
    )  # fmt: skip


def sharpness(model: nn.Module, x: ImagesLike, y: LabelsLike, *, seed: int = 0, ball: Ball = Ball()) -> float:
    """Eigenvalue of largest size of the Hessian of the mean cross-entropy in all weights, by pyhessian.

    The largest one, unless a negative one is larger in size. In nats per squared weight. Its power iteration goes on
    until a step changes less than 1e-5: at its own 1e-3 it stops short where the second eigenvalue is close, a fifth
    too low on one trained network. Runs on a copy of the model as `spectrum` does. Raises ValueError for bad images
    or labels, as `gradlens.pgd` does.
    """
    with _estimator(model, x, y, cross_entropy, None, None, seed, ball) as (estimator, _):
        values, _ = estimator.eigenvalues(maxIter=1000, tol=1e-5, top_n=1)
    return float(values[0])


@contextmanager
def _estimator(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike,
    loss: Loss,
    names: tuple[str, ...] | None,
    batch: int | None,
    seed: int,
    ball: Ball,
) -> Iterator[tuple[Any, nn.Module]]:
    """pyhessian on a copy of the model, over batches where the samples are more than one."""
    with frozen(model):
        images = check_images(model, x, ball)
        labels, _ = admit(model, images, check_labels(y, len(images), images.device))
    twin = copy.deepcopy(model).eval().requires_grad_(names is None)
    twin = twin.float() if images.dtype == torch.float32 else twin
    weights = {name: p for name, p in twin.named_parameters() if names is None or name in names}
    for parameter in weights.values():
        parameter.requires_grad_(True)
    twin.zero_grad(set_to_none=True)

    def criterion(answer: Tensor, y: Tensor) -> Tensor:
        # a parameter that is not used has no gradient, on which pyhessian fails: a term of 0 gives it one of zeros
        return loss(answer, y).mean() + sum(0 * parameter.square().sum() for parameter in weights.values())

    size = batch or len(images)
    chunks = list(zip(images.split(size), labels.split(size), strict=True))
    data: dict[str, Any] = {"data": chunks[0]} if len(chunks) == 1 else {"dataloader": chunks}
    fork = torch.random.fork_rng([images.device.index] if images.is_cuda else [])
    with fork, warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        # pyhessian keeps a graph through .grad on purpose; the twin and its graph are dropped together below
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        torch.manual_seed(seed)
        yield hessian(twin, criterion, **data, cuda=images.is_cuda), twin
        twin.zero_grad(set_to_none=True)
