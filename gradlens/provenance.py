"""How a result was made: enough to make it again, or to see that two results are not comparable."""

import functools
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Made:
    """The call that made a result, and what it ran on."""

    call: str  # the function and its options, as one would type them
    model: str  # class name and the first 16 hex digits of the SHA-256 of all parameters and buffers
    data: str  # first 16 hex digits of a SHA-256 over the samples and labels, one by one
    seed: int  # initial seed of the generator used; torch's global one where none was given
    device: str
    versions: dict[str, str]
    folded: int = 0  # batch norms that were folded into the layer before them meanwhile: the same to rounding

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.call} on {self.model}, data {self.data}, seed {self.seed}, {self.device}; {versions}"


# what results on models that were wrong from the start say
NOTHING_LEFT = "; nothing was left to attack, since every sample is misclassified as it is"
UNSIGNED = Made(call="", model="", data="", seed=0, device="", versions={})  # a part, before it is joined and signed


def made(
    call: str, model: nn.Module, data: str, device: str, generator: torch.Generator | None = None, **options: object
) -> Made:
    """Record a call; functions among the options are written by name, tensors by shape."""
    return Made(
        call=f"{call}({', '.join(f'{name}={written(value)}' for name, value in options.items())})",
        model=named(model),
        data=data,
        seed=torch.initial_seed() if generator is None else generator.initial_seed(),
        device=device,
        versions=versions(),
    )


def named(model: nn.Module) -> str:
    """Class name, how it was prepared, and the first 16 hex digits of the SHA-256 of all parameters and buffers."""
    return f"{model._get_name()}:{digest(*model.state_dict().values())}"


def digest(*tensors: object) -> str:
    """First 16 hex digits of a SHA-256 over types, shapes and bytes; what is no tensor goes in as text."""
    sha = hashlib.sha256()
    for t in tensors:
        if not isinstance(t, Tensor):
            sha.update(repr(t).encode())
            continue
        sha.update(f"{t.dtype}{tuple(t.shape)}".encode())
        sha.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def digest_named(tensors: Mapping[str, Tensor], *first: object) -> str:
    """`digest` of tensors with their names, whatever their order, after other things."""
    return digest(*first, *(part for name in sorted(tensors) for part in (name, tensors[name])))


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    try:
        own = version("gradlens")
    except PackageNotFoundError:  # run from a checkout that nobody has installed
        own = "not installed"
    return {"python": platform.python_version(), "torch": str(torch.__version__), "gradlens": own}


def written(value: object) -> str:
    """As one would type it: a function by its name, a tensor by its shape."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, functools.partial):  # its own repr has an address, which no other process shares
        given = [*map(written, value.args), *(f"{name}={written(one)}" for name, one in value.keywords.items())]
        return f"{written(value.func)}({', '.join(given)})"
    return getattr(value, "__name__", None) or repr(value)
