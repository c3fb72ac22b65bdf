"""What is measured at each point of weight space, in one pass over the data."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..attacks.pgd import perturb
from ..ball import Ball
from ..batches import Room, in_parts
from ..losses import cross_entropy
from ..model import at_least_single, logits
from ..types import Images, Labels, Logits, PerMetric, PerSample

BuiltIn = Literal["loss", "error", "reward", "attacked"]
Metric = BuiltIn | Callable[..., Any]
UNITS = {"loss": "nats", "error": "share", "reward": "probability", "attacked loss": "nats", "attacked error": "share"}
ROWS = {"loss": ("loss",), "error": ("error",), "reward": ("reward",), "attacked": ("attacked loss", "attacked error")}


class Data(NamedTuple):
    """Checked samples in batches of equal size, to within one, and their fingerprint."""

    batches: Sequence[tuple[Images, Labels]]
    fingerprint: str
    is_left_alone: bool  # the model does not write into the images, so they need not be copied for each pass
    room: Room  # for as many of a batch as fit into memory, in all cells alike

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(len(y) for _, y in self.batches)


@torch.no_grad()
def split(model: nn.Module, x: Images, y: Labels, fingerprint: str, batch: int) -> Data:
    """Batches of nearly equal size: an average over them is then one over samples, up to that last one.

    For use within `frozen`.
    """
    parts = math.ceil(len(x) / batch)
    batches = list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))
    probe = x[:2].clone()
    version = probe._version
    try:
        model(probe)
        is_left_alone = probe._version == version and torch.equal(probe, x[:2])
    except RuntimeError:  # the model is of another precision than the images: `logits` casts them, which is a copy
        is_left_alone = False
    return Data(batches, fingerprint, is_left_alone, Room(len(batches[0][1])))


class Wrapper:
    """A model as loss-landscapes' metrics see it: its ModelWrapper, but for the parameters as a vector space."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [model]

    def __call__(self, x: Tensor) -> Any:
        return self.modules[0](x)

    forward = __call__

    def train(self, mode: bool = True) -> "Wrapper":
        """The model's mode, until the metric returns; it comes in evaluation mode."""
        self.modules[0].train(mode)
        return self

    def eval(self) -> "Wrapper":
        """Evaluation mode."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> "Wrapper":
        """For metrics that take gradients in the weights, which come without."""
        self.modules[0].requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> "Wrapper":
        """Forget what gradients the metric has left so far."""
        self.modules[0].zero_grad()
        return self

    def get_modules(self) -> list[nn.Module]:
        """The model, as the single entry of a list."""
        return self.modules

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters at the point that is being measured; not to be written to."""
        return self.modules[0].parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same by name."""
        return self.modules[0].named_parameters()


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """Somebody else's code may write weights, switch modes and flags and leave gradients: the next metric sees none.

    Nor does the caller, whose own `.grad` is laid aside meanwhile.
    """
    modes = {module: module.training for module in model.modules()}
    flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    tensors = [(t, t.data, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    try:
        for p, _, _ in flags:
            p.grad = None
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for t, home, value in tensors:
            t.data = home.copy_(value)
        for p, flag, grad in flags:
            p.requires_grad_(flag)
            p.grad = grad


@dataclass(frozen=True)
class Gauge:
    """The metrics of one call, by name, and the attack that one of them may need."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    per_sample: dict[str, Callable[..., Tensor]]  # the caller's, (model, x, y) -> one value a sample
    whole: dict[str, Callable[[Any], Any]]  # the caller's, wrapped model -> one number
    ball: Ball
    steps: int
    step_size: float

    @property
    def is_foreign(self) -> bool:
        """Does code that is not ours see the model?"""
        return bool(self.per_sample or self.whole)

    def read(self, model: nn.Module, data: Data) -> PerMetric:
        """Each metric's mean over all samples, in float64. NaN where a single sample's value is undefined."""
        sums: dict[str, Tensor] = {}
        for x, y in data.batches:

            def read(where: slice, x: Images = x, y: Labels = y) -> list[tuple[str, PerSample]]:
                return self._values(model, x[where], y[where], data.is_left_alone)

            for name, values in chain.from_iterable(in_parts(read, len(y), data.room)):
                sums[name] = sums.get(name, 0.0) + values.sum(dtype=torch.float64)
        numbers = {name: total / data.samples for name, total in sums.items()}
        for name, metric in self.whole.items():
            with lent(model):
                numbers[name] = _number(name, metric(Wrapper(model)))
        home = data.batches[0][0].device
        return torch.stack([numbers[name].to(home) for name in self.names])

    def _values(self, model: nn.Module, x: Images, y: Labels, is_left_alone: bool) -> list[tuple[str, PerSample]]:
        values: list[tuple[str, PerSample]] = []
        clean = [name for name in self.names if name in READINGS]
        if clean:
            with torch.inference_mode():  # some 2% faster than no_grad; nothing of it leaves `read` but numbers
                answer = at_least_single(model(x)) if is_left_alone else logits(model, x)
                values += [(name, READINGS[name](answer, y)) for name in clean]
        if "attacked loss" in self.names:
            end = perturb(
                model, x, y, self.ball, steps=self.steps, step_size=self.step_size, loss=cross_entropy, start=x
            )
            with torch.no_grad():
                answer = logits(model, end)
            values.append(("attacked loss", cross_entropy(answer, y)))
            values.append(("attacked error", _error(answer, y)))
        for name, metric in self.per_sample.items():
            with lent(model):
                values.append((name, _each(name, metric(model, x, y), y)))
        return values


def gauge(metrics: Sequence[Metric], ball: Ball, steps: int, step_size: float) -> Gauge:
    """The caller's choice, checked. Raises ValueError for an unknown name, none, one twice, a strange signature."""
    if isinstance(metrics, str) or not isinstance(metrics, Sequence) or not metrics:
        raise ValueError(f"metrics is {metrics!r}, expected a sequence such as ('loss', 'error')")
    names: list[str] = []
    per_sample: dict[str, Callable[..., Tensor]] = {}
    whole: dict[str, Callable[[Any], Any]] = {}
    for metric in metrics:
        if isinstance(metric, str):
            if metric not in ROWS:
                raise ValueError(
                    f"metrics holds {metric!r}, expected one of {', '.join(map(repr, ROWS))} or a callable"
                )
            names += ROWS[metric]
            continue
        if not callable(metric):
            raise ValueError(f"metrics holds {metric!r}, expected one of {', '.join(map(repr, ROWS))} or a callable")
        name = getattr(metric, "__name__", type(metric).__name__)
        arity = _arity(metric)
        if arity not in (1, 3):
            came = "an unknown number of" if arity is None else arity
            raise ValueError(
                f"metric {name!r} takes {came} arguments, expected three, (model, x, y) -> one value a sample, or "
                "one, (model_wrapper) -> a number, as loss-landscapes' Metric does"
            )
        (whole if arity == 1 else per_sample)[name] = metric
        names.append(name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"metrics holds {twice[0]!r} twice, expected each name once (a function's is its __name__)")
    units = tuple(UNITS.get(name, "") for name in names)
    return Gauge(tuple(names), units, per_sample, whole, ball, steps, step_size)


def _error(answer: Logits, y: Labels) -> PerSample:
    # a diverged model's argmax would still name a class: without finite logits there is no error
    return (answer.argmax(1) != y).to(answer.dtype).where(answer.isfinite().all(1), torch.nan)


def _reward(answer: Logits, y: Labels) -> PerSample:
    """Expected reward of drawing the class from the softmax, 1 for the right one: p(y)."""
    return (-cross_entropy(answer, y)).exp()


READINGS: dict[str, Callable[[Logits, Labels], PerSample]] = {
    "loss": cross_entropy,
    "error": _error,
    "reward": _reward,
}


def _each(name: str, values: Any, y: Labels) -> PerSample:
    if not isinstance(values, Tensor) or values.shape != y.shape:
        came = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"metric {name!r} returns {came} for {len(y)} samples, expected one value a sample")
    return values.detach().double()


def _number(name: str, value: Any) -> Tensor:
    try:
        number = torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError):
        number = torch.empty(0)
    if number.numel() != 1:
        raise ValueError(f"metric {name!r} returns {value!r:.80}, expected a single number")
    return number.reshape(())


def _arity(metric: Callable[..., Any]) -> int | None:
    """Positional arguments without a default; None for a builtin that does not say."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):
        return None
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
