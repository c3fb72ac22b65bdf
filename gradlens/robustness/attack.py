"""An attack by name, whoever wrote it, and what it costs."""

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks import Distances, PGDTrace, QueryTrace
from ..ball import Ball
from ..model import frozen
from ..provenance import digest, written
from ..types import Images, Labels
from .record import Robustness

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
FIXED = (bool, int, float, str, bytes, tuple, Tensor, types.FunctionType, functools.partial, type(None))


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
        with _guarded(model, self.name), frozen(model):  # modes and buffers too are what they were before it
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
        """What tells it from another one of its name, in another process too: code, options, and what they hold."""
        return f"{self.name}={_written(self.run)}({', '.join(f'{k}={_written(v)}' for k, v in self.options.items())})"

    def __str__(self) -> str:
        options = ", ".join(f"{k}={written(v)}" for k, v in self.options.items())
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


def refuse_single_pass(attacks: Sequence[Attack], samples: int) -> None:
    """Raises ValueError for an attack that cannot average over `samples` passes of a random model."""
    for attack in attacks if samples > 1 else ():
        if not attack.averages:
            raise ValueError(
                f"attack {attack.name!r} takes one pass for the truth, and samples is {samples}; expected attacks with "
                "a `samples` parameter, such as those of the suite 'randomised'"
            )


@contextmanager
def metered(model: nn.Module) -> Iterator[Cost]:
    """Counts what passes through the model within, whoever sends it."""
    cost = Cost()

    def back(grad: Tensor) -> None:
        cost.backwards += len(grad)

    def seen(_: nn.Module, args: tuple[Any, ...], words: dict[str, Any], answer: Any) -> None:
        cost.forwards += len(next(iter((*args, *words.values()))))
        if isinstance(answer, Tensor) and answer.requires_grad:
            answer.register_hook(back)

    handle = model.register_forward_hook(seen, with_kwargs=True)
    try:
        yield cost
    finally:
        handle.remove()


@contextmanager
def _guarded(model: nn.Module, name: str) -> Iterator[None]:
    """Weights are what they were after it, however it ends; raises ValueError for an attack that wrote to them."""
    kept = [(p, p.detach().clone()) for p in model.parameters()]
    try:
        yield
    finally:
        changed = [(p, t) for p, t in kept if p.shape != t.shape or not torch.equal(p.nan_to_num(), t.nan_to_num())]
        for p, old in changed:
            p.data = old
    if changed:
        raise ValueError(f"attack {name!r} changed the model's weights, expected it to leave the model as it is")


def _written(value: Any) -> str:
    """A value in words that mean the same in another process: no address, and of functions what they do."""
    match value:
        case Tensor():
            said = digest(value)
        case _ if hasattr(value, "identity"):
            said = str(value.identity)
        case functools.partial():
            given = (*map(_written, value.args), *(f"{k}={_written(v)}" for k, v in value.keywords.items()))
            said = f"{_written(value.func)}({', '.join(given)})"
        case types.MethodType():
            said = f"{_written(value.__self__)}.{_written(value.__func__)}"
        case types.FunctionType():
            # lists and the like are where functions keep what changes from call to call
            held = [c.cell_contents for c in value.__closure__ or () if isinstance(c.cell_contents, FIXED)]
            does = digest(_code(value.__code__), *map(_written, (*(value.__defaults__ or ()), *held)))
            said = f"{value.__module__}.{value.__qualname__}:{does}"
        case tuple() | list():
            said = f"[{', '.join(map(_written, value))}]"
        case dict():
            said = f"[{', '.join(f'{k}={_written(v)}' for k, v in value.items())}]"
        case _:
            said = ADDRESS.sub("", repr(value))
    return said


def _code(code: types.CodeType) -> str:
    inner = [_code(const) if isinstance(const, types.CodeType) else repr(const) for const in code.co_consts]
    return repr((code.co_code, code.co_names, inner))


def _parameters(run: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(run).parameters
    except (TypeError, ValueError):  # some built-in functions do not tell
        return {}


def _points(result: Any) -> Any:
    match result:
        case PGDTrace():
            return result.best
        case QueryTrace() | Distances() | Robustness():
            return result.adversarial
    return result
