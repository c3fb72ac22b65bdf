"""An attack by name, whoever wrote it, and what it costs."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import Distances, PGDTrace, QueryTrace
from ..ball import Ball
from ..provenance import digest
from ..types import Images, Labels


@dataclass(frozen=True)
class Attack:
    """A function (model, x, y, ball, **options) with a name. It returns points, or a gradlens result that holds some.

    Where the function takes a `generator`, it is given one; likewise `samples`, for models that are random.
    """

    name: str
    run: Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(
        self, model: nn.Module, x: Images, y: Labels, ball: Ball, *, samples: int, generator: torch.Generator
    ) -> Images:
        """The strongest point that the attack found for each image, checked for its shape alone."""
        given = {"generator": generator, "samples": samples}
        known = _parameters(self.run)
        chosen = {k: v for k, v in given.items() if k in known}
        # copies: what an attack writes into must not be what judges it
        with _guarded(model, self.name):
            result = self.run(model, x.clone(), y.clone(), ball, **self.options, **chosen)
        points = _points(result)
        if not isinstance(points, Tensor) or points.shape != x.shape:
            came = f"shape {tuple(points.shape)}" if isinstance(points, Tensor) else f"a {type(points).__name__}"
            raise ValueError(f"attack {self.name!r} returns {came}, expected images of shape {tuple(x.shape)}")
        return points.detach().to(x)

    @property
    def averages(self) -> bool:
        """Can it attack a model that is random, by averaging over passes?"""
        return "samples" in _parameters(self.run)

    @property
    def identity(self) -> str:
        """What tells it from another one of its name: function, options, and what they hold."""
        run = self.run.func if isinstance(self.run, functools.partial) else self.run
        words = {**self.run.keywords, **self.options} if isinstance(self.run, functools.partial) else self.options
        made = getattr(run, "identity", f"{getattr(run, '__module__', '')}.{getattr(run, '__qualname__', type(run))}")
        return f"{self.name}={made}({', '.join(f'{k}={_written(v)}' for k, v in words.items())})"

    def __str__(self) -> str:
        options = ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in self.options.items())
        return f"{self.name}({options})" if options else self.name


@dataclass
class Cost:
    """Samples that went through the model, and samples whose gradient came back."""

    forwards: int = 0
    backwards: int = 0


def named(attacks: str | Sequence[Any], suites: Mapping[str, Sequence[Attack]]) -> tuple[Attack, ...]:
    """A suite by its name, or a list of attacks, functions among them. Raises ValueError naming what is not one."""
    if isinstance(attacks, str):
        if attacks not in suites:
            raise ValueError(f"attacks is {attacks!r}, expected one of {', '.join(map(repr, suites))}, or a list")
        return tuple(suites[attacks])
    if not isinstance(attacks, Sequence) or not attacks:
        raise ValueError(f"attacks is {attacks!r:.80}, expected a suite such as 'standard', or a list of attacks")
    chosen = []
    for attack in attacks:
        if not isinstance(attack, Attack) and not callable(attack):
            raise ValueError(f"attacks holds {attack!r:.80}, expected an Attack or a function (model, x, y, ball)")
        name = getattr(attack, "__name__", type(attack).__name__)
        chosen.append(attack if isinstance(attack, Attack) else Attack(name, attack))
    names = [attack.name for attack in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"attacks holds {twice[0]!r} twice, expected each name once")
    return tuple(chosen)


@contextmanager
def metered(model: nn.Module) -> Iterator[Cost]:
    """Counts what passes through the model within, whoever sends it."""
    cost = Cost()

    def back(grad: Tensor) -> None:
        cost.backwards += len(grad)

    def seen(_: nn.Module, args: tuple[Any, ...], answer: Any) -> None:
        cost.forwards += len(args[0])
        if isinstance(answer, Tensor) and answer.requires_grad:
            answer.register_hook(back)

    handle = model.register_forward_hook(seen)
    try:
        yield cost
    finally:
        handle.remove()


@contextmanager
def _guarded(model: nn.Module, name: str) -> Iterator[None]:
    """Weights are what they were after it; raises ValueError for an attack that wrote to them."""
    kept = [(p, p.detach().clone()) for p in model.parameters()]
    yield
    changed = [(p, old) for p, old in kept if p.shape != old.shape or not torch.equal(p.nan_to_num(), old.nan_to_num())]
    for p, old in changed:
        p.data = old
    if changed:
        raise ValueError(f"attack {name!r} changed the model's weights, expected it to leave the model as it is")


def _written(value: Any) -> str:
    return digest(value) if isinstance(value, Tensor) else getattr(value, "__qualname__", None) or repr(value)


def _parameters(run: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(run).parameters
    except (TypeError, ValueError):  # some built-in functions do not tell
        return {}


def _points(result: Any) -> Any:
    match result:
        case PGDTrace():
            return result.best
        case QueryTrace() | Distances():
            return result.adversarial
    return result
