"""Hessian-vector products, of the mean loss in the weights and of each sample's loss in its input.

Both Hessians speak one language. There are R rows, each with an operator of its own on n numbers: a single row for
the weights, a row a sample for the inputs. `products` takes m vectors for each row, (m, R, n), and applies them all.

The gradient's graph is kept and walked backwards once a vector (a retained double backward), which on a CPU costs
less than half of a product that builds the graph again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..batches import smaller
from ..door import lacks_memory
from ..model import at_least_single, per_sample
from ..types import Images, Labels, Loss, PerRow, Rows, Stack

GRAPHS = 2**30  # bytes of graphs that are kept over products; what goes beyond is built anew for each block of vectors


class WeightHessian:
    """Of the mean loss over all samples in `weights` (cast copies; the model's own are not touched). One row.

    Samples go through `batch` at a time. The graphs of as many micro-batches as fit into GRAPHS bytes are kept,
    at least one's memory is needed; the others' are built for each call, and serve all vectors of that call.
    """

    rows = 1

    def __init__(
        self, model: nn.Module, weights: dict[str, Tensor], x: Images, y: Labels, loss: Loss, batch: int
    ) -> None:
        self.like = _widest(model, x)
        self.weights = {name: w.detach().to(self.like.dtype, copy=True) for name, w in weights.items()}
        self.others = {name: t for name, t in cast_state(model, self.like).items() if name not in weights}
        self.shapes = [w.shape for w in self.weights.values()]
        self.size = sum(shape.numel() for shape in self.shapes)
        self.model, self.x, self.y, self.objective, self.batch = model, x, y, loss, batch
        self.kept: dict[int, _Graph] = {}
        self.room: int | None = None  # how many graphs are kept; None until there is a second one

    def products(self, vectors: Stack) -> Stack:
        return self._summed(lambda graph: torch.stack([graph.product(v) for v in vectors[:, 0]])[:, None])

    def gradient(self) -> Rows:
        return self._summed(lambda graph: graph.gradient()[None])

    @torch.no_grad()
    def loss(self, step: Rows) -> PerRow:
        moved = {name: w + d for (name, w), d in zip(self.weights.items(), self.split(step[0]), strict=True)}
        parts = zip(self.x.split(self.batch), self.y.split(self.batch), strict=True)
        return sum(self._losses(moved, x, y).sum(0, keepdim=True) for x, y in parts) / len(self.x)  # type: ignore[return-value]

    def split(self, flat: Tensor) -> list[Tensor]:
        """A flat vector as tensors of the parameters' shapes."""
        pieces = flat.split([shape.numel() for shape in self.shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def _summed(self, part: Callable[["_Graph"], Tensor]) -> Tensor:
        while True:
            try:
                return sum(map(part, self._graphs())) / len(self.x)  # type: ignore[return-value]
            except (RuntimeError, MemoryError) as error:
                self.kept.clear()
                self.room = None
                self.batch = smaller(self.batch, len(self.x), error)

    def _graphs(self) -> Iterator["_Graph"]:
        for i, (x, y) in enumerate(zip(self.x.split(self.batch), self.y.split(self.batch), strict=True)):
            if i in self.kept:
                yield self.kept[i]
                continue
            if self.room is None and len(self.x) > self.batch:
                self.room = GRAPHS // max(1, _bytes(partial(self._graph, x, y)))
            graph = self._graph(x, y)
            if self.room is None or i < self.room:
                self.kept[i] = graph
            yield graph

    def _graph(self, x: Images, y: Labels) -> "_Graph":
        weights = {name: w.detach().requires_grad_(True) for name, w in self.weights.items()}
        return _Graph(self.model, lambda: self._losses(weights, x, y), tuple(weights.values()))

    def _losses(self, weights: dict[str, Tensor], x: Images, y: Labels) -> Tensor:
        return losses({**self.others, **weights}, self.model, x.to(self.like.dtype), y, self.objective)


class InputHessian:
    """Of each sample's loss in its own input: a row a sample. Samples do not mix, so one backward serves them all."""

    def __init__(self, model: nn.Module, x: Images, y: Labels, loss: Loss) -> None:
        self.like = _widest(model, x)
        self.state = cast_state(model, self.like)
        self.model, self.x, self.y, self.objective = model, x.to(self.like.dtype), y, loss
        self.rows, self.size = len(x), x[0].numel()
        at = self.x.clone().requires_grad_(True)
        self.graph = _Graph(model, lambda: losses(self.state, model, at, y, loss), (at,))

    def products(self, vectors: Stack) -> Stack:
        return torch.stack([self.graph.product(v.flatten()).view_as(v) for v in vectors])

    def gradient(self) -> Rows:
        return self.graph.gradient().view(self.rows, self.size)

    @torch.no_grad()
    def loss(self, step: Rows) -> PerRow:
        return losses(self.state, self.model, self.x + step.view_as(self.x), self.y, self.objective)


Hessian = WeightHessian | InputHessian


class _Graph:
    """The gradient of summed losses at some leaves, with the graph that a second derivative needs."""

    def __init__(self, model: nn.Module, run: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> None:
        self.model, self.leaves = model, leaves
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        with _explained(model):
            total = run().sum()
            if total.requires_grad:
                grads = torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True)
            _refuse_dead_ends(grads)
        self.grads = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, leaves, strict=True)]

    def gradient(self) -> Tensor:
        return torch.cat([g.detach().flatten() for g in self.grads])

    def product(self, flat: Tensor) -> Tensor:
        """A parameter that is not used, or in which the loss is linear, has rows of zeros."""
        pieces = flat.split([leaf.numel() for leaf in self.leaves])
        pairs = [(g, v.view_as(g)) for g, v in zip(self.grads, pieces, strict=True) if g.requires_grad]
        if not pairs:
            return torch.zeros_like(flat)
        outputs, vectors = zip(*pairs, strict=True)
        with _explained(self.model):
            seconds = torch.autograd.grad(
                outputs, self.leaves, vectors, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        return torch.cat([second.flatten() for second in seconds])


def losses(state: dict[str, Tensor], model: nn.Module, x: Images, y: Labels, loss: Loss) -> Tensor:
    """The loss of each sample, with `state` in place of the model's own tensors of these names.

    Attention runs in its plain form: the fused kernels have no second derivative.
    """
    with sdpa_kernel(SDPBackend.MATH):
        answer = functional_call(model, state, (x.clone(),))
        return per_sample(loss, at_least_single(answer), y)


def cast_state(model: nn.Module, like: Tensor) -> dict[str, Tensor]:
    """The model's floating-point tensors of another type than `like`, cast: a Hessian needs digits."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: t.detach().to(like.dtype) for name, t in state.items() if t.is_floating_point() and t.dtype != like.dtype
    }


def _widest(model: nn.Module, x: Images) -> Tensor:
    """An empty tensor of the type that the Hessian is computed in: the model's, but float32 at least."""
    kind = next((p for p in model.parameters() if p.is_floating_point()), x)
    return at_least_single(kind.detach().new_empty(0)).to(x.device)


def _bytes(build: Callable[[], _Graph]) -> int:
    """What one graph holds on to. The graph is thrown away: hooks would slow each product down."""
    storages: dict[int, int] = {}

    def weigh(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t.detach()

    with saved_tensors_hooks(weigh, lambda t: t):
        build()
    return sum(storages.values())


def _refuse_dead_ends(grads: Sequence[Tensor | None]) -> None:
    """A function marked once_differentiable cuts the graph: its share of the Hessian would silently be zero."""
    seen: set[object] = set()
    left = [g.grad_fn for g in grads if g is not None]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            if node.name().endswith("::Error"):
                raise RuntimeError("a function is marked once_differentiable")
            seen.add(node)
            left += [parent for parent, _ in node.next_functions]


@contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    words = ("derivative", "once_differentiable", "differentiate twice", "double backward", "not implemented")
    try:
        yield
    except RuntimeError as error:
        if lacks_memory(error) or not any(word in str(error) for word in words):
            raise
        raise ValueError(
            f"model ({type(model).__name__}) or loss has a part without second derivatives, expected one that can be "
            f"differentiated twice: {error}"
        ) from error
