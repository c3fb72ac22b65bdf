"""Batch norms folded into the layers before them, channels laid out together: the same function, in less time.

The caller's own forward pass runs, hooks and all, while a measurement does; only the numbers in the two layers of a
pair change places, or those of a convolution their order in memory, and are back afterwards. A pair is folded where the
pass itself shows that nothing else can tell, and the whole is used only for images on which it then answers as before,
to rounding. Rounding can decide the sign of a gradient near 0, and so the way of a single sample's attack, as another
batch size or another machine can.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from .door import lacks_memory
from .model import arithmetic, forward, logits, rounding
from .prepared import Prepared, products
from .types import Direction, Images, Logits, PerSample

NORMS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d, nn.Linear: nn.BatchNorm1d}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Widest convolution from which on channels-last weights are faster on a CPU, as measured in turns: ResNet-18 and cnn6
# take 0.87 to 0.95 of the time with them, networks of 32 to 64 channels 1.0 to 1.1. In bfloat16 all gain.
WIDE = 128
IMAGES = 4  # dimensions of the weight of a convolution of images
ROUNDING = 100  # how many units in the last place the largest logit may move
TURNED, MOST_TURNED = 0.01, 0.2  # by how much of its length rounding may move a gradient in float32: the median, any
LOOK = 4  # images on which a model is looked into; whether what is found suits a chunk, all of its images say
COARSE, FINE = 10, 1e-4  # the same where a unit is larger than this: a thousandth in TF32, a hundredth in bfloat16


@dataclass(frozen=True)
class Pair:
    """A layer, the batch norm after it, and the weights of the two in one."""

    layer: nn.Module
    norm: nn.Module
    weight: nn.Parameter
    bias: nn.Parameter
    scale: Tensor  # what the norm multiplies each of the layer's outputs by


@dataclass(frozen=True)
class Laid:
    """A convolution, and its weights with the channels of a place side by side."""

    layer: nn.Module
    weight: nn.Parameter


@dataclass(frozen=True)
class Folding:
    """What can be folded and laid out anew in one model; nothing, by default."""

    pairs: tuple[Pair, ...] = ()
    laid: tuple[Laid, ...] = ()
    prepared: Prepared | None = None  # whose compiled code runs meanwhile

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Folded within, as it was on the way out."""
        layers = [*(part.layer for part in self.laid), *(pair.layer for pair in self.pairs)]
        held = [(layer, dict(layer._parameters)) for layer in layers]
        try:
            for other in self.laid:
                other.layer._parameters["weight"] = other.weight
            for pair in self.pairs:
                pair.layer._parameters.update(weight=pair.weight, bias=pair.bias)
                pair.norm.forward = _same
            with nullcontext() if self.prepared is None else self.prepared.hot():
                yield
        finally:
            for layer, parameters in held:
                layer._parameters.update(parameters)
            for pair in self.pairs:
                vars(pair.norm).pop("forward", None)

    @torch.no_grad()
    def holds(self, model: nn.Module, x: Images, before: Logits) -> bool:
        """Does the folded model give `x` these logits, to rounding? Its pairs were found on other images."""
        if not self.pairs and not self.laid:
            return True
        try:
            with replace(self, prepared=None)():
                return same_answer(logits(model, x), before, rounding(model, x))
        except Exception as error:  # the model looks at what was folded away
            if lacks_memory(error):
                raise
            return False

    def along(self, model: nn.Module, directions: Sequence[Direction]) -> "Folding":
        """Without the pairs whose batch norm moves along these directions through weight space."""
        moved = {name.rpartition(".")[0] for direction in directions for name in direction}
        norms = {module for name, module in model.named_modules() if name in moved}
        return replace(self, pairs=tuple(pair for pair in self.pairs if pair.norm not in norms))

    def turned(self, model: nn.Module, direction: Direction) -> Direction:
        """A direction through weight space as the folded layers take it: what multiplies the weights, multiplies it."""
        scales = {pair.layer: pair.scale for pair in self.pairs}
        layers = {name: scales[module] for name, module in model.named_modules() if module in scales}
        found = {name: layers.get(name.rpartition(".")[0]) for name in direction}
        return {
            name: d if (s := found[name]) is None else d * s.to(d).view(-1, *[1] * (d.ndim - 1))
            for name, d in direction.items()
        }


def folding(model: nn.Module, x: Images) -> Folding:
    """What of a frozen `model` can be folded, as its answers to the images `x` show."""
    kinds = {p.dtype for p in model.parameters()}
    compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())
    is_half = arithmetic(model, x) == torch.bfloat16
    plain = unfolded(model)
    if isinstance(model, Prepared):  # whether it is the same to rounding shows where rounding is small
        model = model.model
    if compiled or not kinds <= {torch.float32, torch.float64}:
        return plain  # half precision would be rounded elsewhere; what somebody compiled would be compiled again
    with products("ieee"):
        try:
            found = _found(model, x)
        except Exception:  # a model that cannot be looked into is measured as it is
            return plain
        wanted = _layouts(model, is_half=is_half)
        for laid in (wanted, ()) if wanted else ((),):  # some models look at how their numbers lie in memory
            format = torch.channels_last if laid else torch.preserve_format
            fold = replace(plain, pairs=tuple(_pair(layer, norm, format) for layer, norm in found), laid=laid)
            if (found or laid) and _agrees(model, fold, x):
                return _at_home(fold)
    return plain


def unfolded(model: nn.Module) -> Folding:
    """The model as it is, compiled where it was prepared so."""
    return Folding(prepared=model if isinstance(model, Prepared) else None)


def _at_home(fold: Folding) -> Folding:
    """The same weights where compiled code met those of an earlier call: it knows them by their place in memory."""
    if fold.prepared is None or not fold.prepared.is_compiled:
        return fold
    places = fold.prepared.places

    def kept(layer: nn.Module, *new: nn.Parameter) -> tuple[nn.Parameter, ...]:
        old = places.setdefault(layer, new)
        if [_form(p) for p in old] != [_form(p) for p in new]:
            places[layer] = old = new
        with torch.no_grad():
            for place, values in zip(old, new, strict=True):
                place.copy_(values)
        return old

    pairs = []
    for pair in fold.pairs:
        weight, bias = kept(pair.layer, pair.weight, pair.bias)
        pairs.append(replace(pair, weight=weight, bias=bias))
    paired = {pair.layer for pair in pairs}
    laid = [replace(part, weight=kept(part.layer, part.weight)[0]) for part in fold.laid if part.layer not in paired]
    return replace(fold, pairs=tuple(pairs), laid=tuple(laid))


def _form(t: Tensor) -> tuple[object, ...]:
    return t.shape, t.stride(), t.dtype, t.device


def _layouts(model: nn.Module, *, is_half: bool) -> tuple[Laid, ...]:
    """Every convolution of images in a network that is wide enough to gain, with its weights laid out anew."""
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    layers: Any = _candidates(model, owners, (nn.Conv2d,))
    if not is_half and max((layer.in_channels for layer in layers), default=0) < WIDE:
        return ()
    weights = [layer.weight.detach().contiguous(memory_format=torch.channels_last) for layer in layers]
    return tuple(Laid(m, nn.Parameter(w, requires_grad=False)) for m, w in zip(layers, weights, strict=True))


def _found(model: nn.Module, x: Images) -> list[tuple[nn.Module, nn.Module]]:
    """Layers whose output one batch norm takes as it is, and nothing else, in one forward pass."""
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    layers, norms = _candidates(model, owners, tuple(NORMS)), _candidates(model, owners, tuple(NORMS.values()))
    outputs: dict[nn.Module, list[tuple[Tensor, Node | None]]] = {layer: [] for layer in layers}
    inputs: dict[nn.Module, list[tuple[Tensor, Node | None]]] = {norm: [] for norm in norms}

    def leaves(layer: nn.Module, args: Any, out: Tensor) -> None:
        outputs[layer].append((out, out.grad_fn))

    def enters(norm: nn.Module, args: Any) -> None:
        inputs[norm].append((args[0], args[0].grad_fn))

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(leaves))
        for norm in norms:
            stack.enter_context(norm.register_forward_pre_hook(enters))
        answer = forward(model, x.detach().clone().requires_grad_(True))
    users = _users(answer.grad_fn)
    pairs: list[tuple[nn.Module, nn.Module]] = []
    for layer, made in outputs.items():
        for norm, taken in inputs.items():
            if len(made) == len(taken) == 1 and type(norm) is NORMS[type(layer)]:
                (out, node), (into, now) = made[0], taken[0]
                if (
                    out is into and node is now is not None and users[node] == 1
                ):  # nobody wrote into it, nobody else reads
                    pairs.append((layer, norm))
    return pairs


def _candidates(model: nn.Module, owners: Counter[int], kinds: Sequence[type[nn.Module]]) -> list[nn.Module]:
    """Modules of exactly these types that nobody has hooked, overridden or tied to another."""
    return [
        m
        for m in dict.fromkeys(model.modules())
        if type(m) in kinds
        and not any(getattr(m, hooks) for hooks in HOOKS)
        and "forward" not in vars(m)
        and all(owners[id(p)] == 1 for p in m.parameters(recurse=False))
        and getattr(m, "running_mean", m) is not None
    ]


def _users(last: Node | None) -> Counter[Node | None]:
    """How many nodes of the graph read each node's result."""
    users: Counter[Node | None] = Counter()
    seen, todo = {last}, [last] if last is not None else []
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is None:
                continue
            users[node] += 1
            if node not in seen:
                seen.add(node)
                todo.append(node)
    return users


def _pair(layer: Any, norm: Any, format: torch.memory_format = torch.preserve_format) -> Pair:
    def wide(t: Tensor | None) -> Any:
        return None if t is None else t.detach().double()

    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    parts = (wide(layer.weight), wide(layer.bias), wide(norm.running_mean), wide(norm.running_var))
    fused = fuse(*parts, norm.eps, wide(norm.weight), wide(norm.bias))
    weight, bias = (t.detach().to(layer.weight.dtype) for t in fused)
    # a kernel of other than two dimensions lies as it lay
    format = format if weight.ndim == IMAGES else torch.preserve_format
    weight = torch.empty_like(layer.weight, memory_format=format).copy_(weight)
    scale = (wide(norm.running_var) + norm.eps).rsqrt() * (1.0 if norm.weight is None else wide(norm.weight))
    return Pair(layer, norm, nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False), scale)


def _agrees(model: nn.Module, fold: Folding, x: Images) -> bool:
    """Does the folded model answer as before, to rounding, and has its answer the gradient it had?"""
    before, slope = _answer(model, x)
    try:
        with fold():
            after, turned = _answer(model, x)
    except Exception:  # the model looks at what was folded away
        return False
    gaps = _gaps(turned, slope)
    if x.dtype == torch.float64:
        return same_answer(after, before) and bool(gaps.amax() <= 10 * ROUNDING * torch.finfo(x.dtype).eps)
    # in a deep network one of a million units may be so near its kink that rounding turns it, and a sample's gradient
    # by a hundredth, folded or not; another function would turn all of them
    return same_answer(after, before) and bool(gaps.median() <= TURNED and gaps.amax() <= MOST_TURNED)


def _answer(model: nn.Module, x: Images) -> tuple[Logits, Images]:
    """Logits, and the gradient of a sum of them that no softmax can flatten."""
    x = x.detach().clone().requires_grad_(True)
    answer = logits(model, x)
    mix = torch.linspace(-1, 1, answer.shape[1], device=answer.device, dtype=answer.dtype).cos()
    (slope,) = torch.autograd.grad((answer * mix).sum(), x, materialize_grads=True)
    return answer.detach(), slope


def same_answer(after: Logits, before: Logits, eps: float | None = None) -> bool:
    """Do these logits differ by rounding only, sample by sample? What all classes have in common does not count.

    `eps` is that of the arithmetic that they come from, if it is not their own type's (`model.rounding`).
    """
    size = before.abs().amax(1, keepdim=True)
    spread = (before - before.mean(1, keepdim=True)).abs().amax(1, keepdim=True)
    # logits far from 0 are rounded by their size, which may be all that their differences are
    eps = eps or torch.finfo(before.dtype).eps
    units = COARSE if eps > FINE else ROUNDING
    allowed = units * eps * torch.maximum(spread, 0.01 * size)
    return bool(((after - before).abs() <= allowed).all())


def _gaps(after: Images, before: Images) -> PerSample:
    """Distances of two gradients, in lengths of the second; where that is zero, in pixels."""
    length = before.flatten(1).norm(dim=1)
    return (after - before).flatten(1).norm(dim=1) / length.where(length > 0, 1.0)


def _same(x: Tensor) -> Tensor:
    return x
