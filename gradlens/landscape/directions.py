"""Directions through weight space: drawn and normalised as Li et al. do, or given."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..door import check_choice, check_count
from ..draws import gaussian, seed
from ..model import check_module
from ..types import Direction
from .walk import movable

Normalization = Literal["filter", "layer", "model"]
PARALLEL = 0.01  # degrees between two directions that count as one
# what one unit of a coordinate means
MEANINGS = {
    "filter": "norm of each filter of the model",
    "layer": "norm of each layer of the model",
    "model": "norm of the model's weights",
}


def random_directions(
    model: nn.Module, by: Normalization = "filter", *, count: int = 2, generator: torch.Generator | None = None
) -> tuple[Direction, ...]:
    """Independent Gaussian directions, each normalised to `model` by filter, layer or model (Li et al. 2018).

    One tensor a parameter that is moved, by name. Frozen parameters are not moved, biases and the weights of
    normalisation layers (one dimension or none) neither. Drawn on the CPU in float32 from one number of `generator`,
    so that a seed means the same directions on every device and in every precision, whichever parameters are frozen.
    Raises ValueError for an unknown normalisation and for a model without a trainable parameter of two dimensions.
    """
    check_module(model)
    check_count("count", count)
    stream = torch.Generator().manual_seed(seed(generator))
    directions = []
    for _ in range(count):
        drawn = {name: gaussian(torch.empty(p.shape), stream) for name, p in model.named_parameters()}
        kept = {name: drawn[name] for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
        directions.append(normalize(kept, model, by))
    return tuple(directions)


def normalize(direction: Direction, model: nn.Module, by: Normalization = "filter") -> Direction:
    """`direction` scaled to the weights of `model`, so that one unit changes them by as much as they are large.

    "filter": each slice along the first axis (a filter of a convolution, a row of a linear layer) to the norm of the
    model's slice; "layer": each tensor to the norm of the model's; "model": all of it to the norm of all that it
    moves. Parameters of less than two dimensions are left out, so they stay (Li et al. 2018, who set biases and batch
    norm to zero). A direction that was normalised to one model can be normalised to another of its architecture.
    Raises ValueError for an unknown `by`, another architecture, and where nothing is left to move.
    """
    check_choice("by", by, get_args(Normalization))
    check_module(model)
    if not isinstance(direction, Mapping):
        raise ValueError(f"direction is a {type(direction).__name__}, expected a dict of tensors by parameter name")
    weights = dict(model.named_parameters())
    _check_shapes(direction, weights)
    kept = {name: d for name, d in direction.items() if d.ndim > 1 and d.numel()}
    scaled = {name: _scaled(d, weights[name].detach(), by) for name, d in kept.items()}
    if not any(d.any() for d in scaled.values()):
        raise ValueError(
            f"model ({type(model).__name__}) has no weights that {by} normalisation moves, expected a trainable "
            "parameter of two dimensions or more that is not all zero; give directions as tensors"
        )
    if by == "model":
        ratio = _length(weights[name].detach() for name in scaled) / _length(scaled.values())
        scaled = {name: d * ratio for name, d in scaled.items()}
    return scaled


def given_directions(given: Any, model: nn.Module, names: Sequence[str], count: int) -> tuple[Direction, ...]:
    """The caller's directions by parameter name, on the model's device. Raises ValueError where they do not fit.

    A direction is a dict by name; or a tensor for each of the parameters `names` (those that require gradients), or
    of all; or one flat vector of all their entries, in the same order. Those of another shape, all zero, or not finite
    are refused; more than `count` are cut.
    """
    if not isinstance(given, Mapping | Tensor | Sequence):
        raise ValueError(
            f"directions is {given!r:.80}, expected a name, a WeightSurface, a Trajectory, a Spectrum, or tensors"
        )
    items = [given] if isinstance(given, Mapping | Tensor) else list(given)
    if not count <= len(items) <= 2:
        raise ValueError(f"directions holds {len(items)}, expected {count}: a dict by parameter name for each")
    here = movable(model)
    chosen = []
    for i, item in enumerate(items[:count]):
        named = _named(item, model, names, i)
        _check_shapes(named, here, f"directions[{i}]")
        if not all(d.isfinite().all() for d in named.values()) or not any(d.any() for d in named.values()):
            raise ValueError(f"directions[{i}] is all zero or holds NaN or infinity, expected a finite direction")
        chosen.append({name: _alike(d, here[name]) for name, d in named.items() if d.any()})
    return tuple(chosen)


def differences(models: Sequence[nn.Module]) -> tuple[Direction, ...]:
    """From the first of two or three models to the others, buffers too, in float64, so that the ends are met.

    Raises ValueError for another number of models, for architectures that differ and for models that do not.
    """
    if len(models) not in (2, 3):
        raise ValueError(f"models holds {len(models)}, expected two, for a line, or three, for a plane")
    for i, model in enumerate(models):
        check_module(model, f"models[{i}]")
    here, *others = (movable(model) for model in models)
    ways = []
    for i, there in enumerate(others, start=1):
        if _layers(models[i]) != _layers(models[0]):
            raise ValueError(f"models[{i}] has another architecture than models[0]: its layers are of other types")
        for name in (*here, *there):
            shapes: list[object] = [tuple(t[name].shape) if name in t else "nothing" for t in (here, there)]
            if shapes[0] == shapes[1]:
                shapes = [t[name].dtype for t in (here, there)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"models[{i}] has another architecture than models[0]: {name!r} has {shapes[1]}, expected "
                    f"{shapes[0]}"
                )
        way = {name: there[name].detach().double().to(t.device) - t.detach().double() for name, t in here.items()}
        way = {name: d for name, d in way.items() if d.any()}
        if not all(d.isfinite().all() for d in way.values()):
            raise ValueError(f"models[0] or models[{i}] holds NaN or infinity, expected finite weights")
        if not way:
            raise ValueError(f"models[{i}] has the weights of models[0], expected another point to go to")
        ways.append(way)
    return tuple(ways)


def _layers(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


def angle(a: Direction, b: Direction) -> float:
    """Degrees between two directions, over all parameters together."""
    product = sum(float((d.double() * b[name].to(d.device).double()).sum()) for name, d in a.items() if name in b)
    return math.degrees(math.acos(max(-1.0, min(1.0, product / (length(a) * length(b))))))


def refuse_parallel(vectors: Sequence[Direction], name: str) -> None:
    """Raises ValueError for two directions on one line: they span no plane."""
    if len(vectors) == 2 and not PARALLEL < angle(*vectors) < 180 - PARALLEL:
        raise ValueError(f"{name} are parallel, {angle(*vectors):.3g} degrees apart, expected two that span a plane")


def length(direction: Direction) -> float:
    """Euclidean length over all parameters together."""
    return _length(direction.values())


def _named(item: Any, model: nn.Module, names: Sequence[str], i: int) -> Direction:
    if isinstance(item, Mapping):
        return dict(item)
    everything = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    options = [{name: everything[name] for name in names}, everything]
    for parameters in options:
        shapes = [p.shape for p in parameters.values()]
        if isinstance(item, Tensor) and item.ndim == 1 and len(item) == sum(shape.numel() for shape in shapes):
            item = [
                part.view(shape)
                for part, shape in zip(item.split([shape.numel() for shape in shapes]), shapes, strict=True)
            ]
        if isinstance(item, Sequence) and [getattr(d, "shape", None) for d in item] == shapes:
            return dict(zip(parameters, item, strict=True))
    came: object = f"a {type(item).__name__}"
    if isinstance(item, Tensor):
        came = f"shape {tuple(item.shape)}"
    elif isinstance(item, Sequence):
        came = [tuple(getattr(d, "shape", ())) for d in item]
    raise ValueError(
        f"directions[{i}] has {came}, expected a dict by parameter name, or tensors of the shapes of the {len(names)} "
        f"trainable parameters {[tuple(p.shape) for p in options[0].values()]}"
    )


def _check_shapes(direction: Direction, here: Mapping[str, Tensor], name: str = "direction") -> None:
    for key, d in direction.items():
        if key not in here:
            raise ValueError(f"{name} names {key!r}, which the model does not have, expected one of its parameters")
        if not isinstance(d, Tensor):
            raise ValueError(f"{name} holds a {type(d).__name__} for {key!r}, expected a tensor")
        if d.shape != here[key].shape or not d.is_floating_point():
            raise ValueError(
                f"{name} has shape {tuple(d.shape)} and type {d.dtype} for {key!r}, expected floating-point numbers of "
                f"shape {tuple(here[key].shape)}"
            )


def _scaled(direction: Tensor, weights: Tensor, by: Normalization) -> Tensor:
    direction = _alike(direction, weights)
    if by == "model":
        return direction
    rows = 1 if by == "layer" else len(direction)
    lengths = [t.to(direction.dtype).reshape(rows, -1).norm(dim=1) for t in (weights, direction)]
    # a filter of zeros, in the model or in the direction, stays where it is
    ratio = (lengths[0] / lengths[1]).where(lengths[1] > 0, 0.0)
    return (direction.reshape(rows, -1) * ratio[:, None]).reshape(direction.shape)


def _alike(direction: Tensor, weights: Tensor) -> Tensor:
    """On the weights' device, in their precision or better, at least float32."""
    kind = torch.promote_types(torch.promote_types(weights.dtype, torch.float32), direction.dtype)
    return direction.detach().to(weights.device, kind)


def _length(tensors: Any) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))
