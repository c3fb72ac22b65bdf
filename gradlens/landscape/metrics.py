"""What is measured at each point of weight space, in one pass over the data."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..attacks.pgd import perturb
from ..ball import Ball
from ..losses import cross_entropy
from ..model import logits
from ..types import Images, Labels, Logits, PerMetric, PerSample

BuiltIn = Literal["loss", "error", "reward", "attacked"]
Metric = BuiltIn | Callable[..., Any]
Batches = Sequence[tuple[Images, Labels]]

UNITS = {"loss": "nats", "error": "share", "reward": "probability", "attacked loss": "nats", "attacked error": "share"}
ROWS = {"loss": ("loss",), "error": ("error",), "reward": ("reward",), "attacked": ("attacked loss", "attacked error")}


class Wrapper:
    """A model as loss-landscapes' metrics see it: what they read of its ModelWrapper, and no more."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = [model]

    def __call__(self, x: Tensor) -> Any:
        return self.modules[0](x)

    forward = __call__

    def eval(self) -> "Wrapper":
        """The model is in evaluation mode already."""
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

    def read(self, model: nn.Module, batches: Batches) -> PerMetric:
        """Each metric's mean over all samples, in float64. NaN where a single sample's value is undefined."""
        sums: dict[str, Tensor] = {}
        for x, y in batches:
            for name, values in self._values(model, x, y):
                sums[name] = sums.get(name, 0.0) + values.detach().double().sum()
        count = sum(len(y) for _, y in batches)
        numbers = {name: total / count for name, total in sums.items()}
        for name, metric in self.whole.items():
            numbers[name] = _number(name, metric(Wrapper(model)))
        home = batches[0][0].device
        return torch.stack([numbers[name].to(home) for name in self.names])

    def _values(self, model: nn.Module, x: Images, y: Labels) -> list[tuple[str, PerSample]]:
        values: list[tuple[str, PerSample]] = []
        clean = [name for name in self.names if name in READINGS]
        if clean:
            with torch.no_grad():
                answer = logits(model, x)
                values += [(name, _defined(answer, READINGS[name](answer, y))) for name in clean]
        if "attacked loss" in self.names:
            end = perturb(
                model, x, y, self.ball, steps=self.steps, step_size=self.step_size, loss=cross_entropy, start=x
            )
            with torch.no_grad():
                answer = logits(model, end)
            values.append(("attacked loss", _defined(answer, cross_entropy(answer, y))))
            values.append(("attacked error", _defined(answer, _error(answer, y))))
        return values + [(name, _each(name, metric(model, x, y), y)) for name, metric in self.per_sample.items()]


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
            raise ValueError(
                f"metric {name!r} takes {arity} arguments, expected three, (model, x, y) -> one value a sample, or "
                "one, (model_wrapper) -> a number, as loss-landscapes' Metric does"
            )
        (whole if arity == 1 else per_sample)[name] = metric
        names.append(name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"metrics holds {twice[0]!r} twice, expected each name once")
    units = tuple(UNITS.get(name, "") for name in names)
    return Gauge(tuple(names), units, per_sample, whole, ball, steps, step_size)


def _error(answer: Logits, y: Labels) -> PerSample:
    return (answer.argmax(1) != y).to(answer.dtype)


def _reward(answer: Logits, y: Labels) -> PerSample:
    """Expected reward of drawing the class from the softmax, 1 for the right one: p(y)."""
    return (-cross_entropy(answer, y)).exp()


READINGS: dict[str, Callable[[Logits, Labels], PerSample]] = {
    "loss": cross_entropy,
    "error": _error,
    "reward": _reward,
}


def _defined(answer: Logits, values: PerSample) -> PerSample:
    """A diverged model's argmax would still name a class: without finite logits there is no value."""
    return values.where(answer.isfinite().all(1), torch.nan)


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


def _arity(metric: Callable[..., Any]) -> int:
    """Positional arguments without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(metric).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)
