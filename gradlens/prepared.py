"""A model made ready to be measured fast: in another arithmetic, or compiled. What it does is said in each result."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from .types import Precision

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Prepared(nn.Module):
    """A model in another arithmetic; its parameters are the caller's own, and answers leave in float32."""

    def __init__(self, model: nn.Module, precision: Precision, *, compiled: bool) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        # not registered: it is the same model once more
        self._runs: Any = (_compiled(model),) if compiled else ()
        self._is_hot = False
        # folded weights by layer, always in the same memory: compiled code, and the graphs of a GPU, know it by address
        self.places: dict[nn.Module, tuple[nn.Parameter, ...]] = {}
        self.train(model.training)

    @property
    def is_compiled(self) -> bool:
        """Does torch.compile's code run in place of the model's own?"""
        return bool(self._runs)

    def forward(self, x: Tensor) -> Any:
        """The model's answer; a tensor in half precision as float32."""
        if x.dtype != torch.float32:  # a copy in float64, against which float32 is held
            return self.model(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            answer = self._run(x)
        return answer.float() if isinstance(answer, Tensor) and answer.dtype == torch.bfloat16 else answer

    @contextlib.contextmanager
    def hot(self) -> Iterator[None]:
        """Compiled code runs within, the model's own elsewhere: what looks at a few images once is not worth it."""
        before, self._is_hot = self._is_hot, self.is_compiled
        try:
            yield
        finally:
            self._is_hot = before

    def _run(self, x: Tensor) -> Any:
        if not self._is_hot:
            return self.model(x)
        with warnings.catch_warnings():  # the compiler looks at the gradient of the copy, which has none
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            answer = self._runs[0](_Copied.apply(x))
        return _Copied.apply(answer) if isinstance(answer, Tensor) else answer

    def __deepcopy__(self, memo: dict[int, Any]) -> "Prepared":
        return Prepared(copy.deepcopy(self.model, memo), self.precision, compiled=self.is_compiled)

    def arithmetic(self) -> contextlib.AbstractContextManager[None]:
        """On a GPU, products of matrices in float32 or in TensorFloat-32, whichever was asked for, backward too."""
        return products("tf32" if self.precision == "tf32" else "ieee")

    def _get_name(self) -> str:
        """As results name it, beside the hash of the model's own parameters."""
        return f"{self.model._get_name()} in {self.precision}{', compiled' if self.is_compiled else ''}"


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """A GPU's products of float32, in matrices and in convolutions, in "ieee" or in "tf32"."""
    rules = _rules()
    before = [rule.fp32_precision for rule in rules]
    try:
        for rule in rules:
            rule.fp32_precision = precision
        yield
    finally:
        for rule, old in zip(rules, before, strict=True):
            rule.fp32_precision = old


def may_round() -> bool:
    """May a GPU round float32 to TensorFloat-32 in some products? torch lets convolutions, unless told otherwise."""
    return any(rule.fp32_precision == "tf32" for rule in _rules())


def _rules() -> tuple[Any, ...]:
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]


def prepare(model: nn.Module, *, precision: Precision = "float32", compile: bool = False) -> Prepared:
    """The same model, to be measured in less time: `gradlens.stability(gradlens.prepare(model, precision=...), x)`.

    Every measurement freezes a model and folds its batch norms by itself, since that is the same to float32 rounding.
    What is not the same is asked for here. "bfloat16" has 8 significant bits: layers that torch.autocast takes for safe
    run in it, softmax and norms stay in float32, pixels, logits and gradients are float32 outside. Robust accuracies
    are upper bounds as ever (each success is counted on this model), indicators carry the rounding: a gradient near
    zero, a cosine of small steps, an eigenvalue. "tf32" does the same with 11 bits in a GPU's matrix products, and
    "float32" makes sure that a GPU does not do so by itself. `compile` hands the folded model to torch.compile, on a
    GPU with CUDA graphs; the first call takes a minute. What looks at the model a few times only runs its own code, and
    so does `spectrum`, which needs second derivatives.

    Nothing is copied: parameters are the model's own. Results name it, as in "ResNet in bfloat16:1a2b3c4d5e6f7081".
    Raises ValueError for anything but a module and these choices.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}, expected a torch.nn.Module that maps images to logits")
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r:.80}, expected one of {', '.join(map(repr, PRECISIONS))}")
    if not isinstance(compile, bool):
        raise ValueError(f"compile is {compile!r:.80}, expected True or False")
    return Prepared(model.model if isinstance(model, Prepared) else model, precision, compiled=compile)


def uncompiled(model: nn.Module) -> nn.Module:
    """The same model run by its own code, as what takes second derivatives needs it."""
    if isinstance(model, Prepared) and model.is_compiled:
        return Prepared(model.model, model.precision, compiled=False)
    return getattr(model, "_orig_mod", model)


def _compiled(model: nn.Module) -> Any:
    on_gpu = any(p.is_cuda for p in model.parameters())
    return torch.compile(model, mode="reduce-overhead" if on_gpu else None)


class _Copied(torch.autograd.Function):
    """A copy on the way in and on the way back: CUDA graphs write each answer and gradient to the same place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clone()
