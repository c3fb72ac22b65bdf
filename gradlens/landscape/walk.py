"""A model on a walk through weight space: moved, its batch norm re-estimated, and put back to the bit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..model import check_module, forward
from ..types import Direction, Images


def trainable(model: nn.Module) -> list[str]:
    """Names of the parameters that require gradients; tied ones once.

    Raises ValueError where there are none, or where two of them share memory without being one parameter.
    """
    check_module(model)
    names = [name for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point() and p.numel()]
    if not names:
        raise ValueError(
            f"model ({type(model).__name__}) has no parameter that requires gradients, expected at least one to move"
        )
    starts: dict[int, str] = {}
    for name, p in model.named_parameters():
        if p.numel() and starts.setdefault(p.data_ptr(), name) != name:
            raise ValueError(
                f"model's parameters {starts[p.data_ptr()]!r} and {name!r} share memory without being one parameter, "
                "so they cannot move apart; tie them by assigning one to the other"
            )
    return names


def movable(model: nn.Module) -> dict[str, Tensor]:
    """All that a point in weight space consists of: parameters and floating-point buffers by name, tied ones once."""
    return {
        name: t
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if t.is_floating_point() and t.numel()
    }


@contextmanager
def moving(
    model: nn.Module, directions: Sequence[Direction], *, guarded: bool = False
) -> Iterator[Callable[[float, float], None]]:
    """A function that puts the model at its own weights + alpha d1 + beta d2, each time anew, without a sum of steps.

    The model's tensors are not written to: copies stand in their place meanwhile, so that whatever ends the walk, the
    weights are the same bits as before. `guarded` does so with those that do not move too, as somebody else's code
    sees the model and may write to it.
    """
    first, second = (*directions, {}, {})[:2]
    here = movable(model)
    own = {name: here[name].data for name in here if guarded or name in first or name in second}
    copies = {name: t.clone() for name, t in own.items()}
    # cells come row by row: what alpha adds is added once a row
    row = {name: torch.empty_like(t, dtype=first[name].dtype) if name in first else t for name, t in own.items()}
    reached = [float("nan")]
    kinds = {name: {t.dtype for t in (copies[name], row[name], second[name])} for name in copies if name in second}
    together = [name for name, kind in kinds.items() if len(kind) == 1]  # the others are rounded once, at the end

    def place(alpha: float, beta: float) -> None:
        if alpha != reached[0]:
            for name, direction in first.items():
                torch.add(own[name], direction, alpha=alpha, out=row[name])
            reached[0] = alpha
        for name, copy in copies.items():
            here[name].data = copy  # a caller's metric may have put something else there
            if name not in together:
                _put(copy, row[name], second.get(name), beta)
        if together:  # small tensors cost their calls, not their numbers
            torch._foreach_copy_([copies[name] for name in together], [row[name] for name in together])
            torch._foreach_add_([copies[name] for name in together], [second[name] for name in together], alpha=beta)

    try:
        for name, copy in copies.items():
            here[name].data = copy
        yield place
    finally:
        for name, t in own.items():
            here[name].data = t


def _put(copy: Tensor, row: Tensor, direction: Tensor | None, beta: float) -> None:
    if direction is None:
        copy.copy_(row)
    else:
        torch.add(row, direction, alpha=beta, out=copy)


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Batch-norm layers that keep running statistics."""
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]


@contextmanager
def reestimating(model: nn.Module) -> Iterator[Callable[[Sequence[Images]], None]]:
    """A function that sets batch norm's running statistics to the plain average over the batches it is given.

    As torch.optim.swa_utils.update_bn does; dropout and the like stay switched off. For use within `frozen`, which
    puts the old statistics and modes back.
    """
    layers = batch_norms(model)
    momenta = [layer.momentum for layer in layers]

    @torch.no_grad()
    def reestimate(batches: Sequence[Images]) -> None:
        for layer in layers:
            layer.reset_running_stats()
            layer.training = True
        for x in batches:
            forward(model, x)
        for layer in layers:
            layer.training = False

    try:
        for layer in layers:
            layer.momentum = None  # torch's word for the average over all batches with equal weight
        yield reestimate
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
