"""Which parameters the Hessian is of."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ..model import check_module


def chosen(model: nn.Module, names: str | Sequence[str] | None) -> dict[str, Tensor]:
    """The parameters that require gradients and match any of the patterns `names`, by name.

    A shared parameter is one parameter, under its first name; any of its names may match. Raises ValueError.
    """
    check_module(model)
    known: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known.setdefault(parameter, []).append(name)
    free = {aliases[0]: parameter for parameter, aliases in known.items() if _is_free(parameter)}
    if not free:
        raise ValueError(
            f"model ({type(model).__name__}) is a model without parameters that require gradients, {len(known)} "
            "frozen ones in all; expected at least one: call .requires_grad_(True) on what the Hessian is to be of"
        )
    if names is None:
        return free
    if not isinstance(names, str | Sequence):
        raise ValueError(f"names is {names!r}, expected patterns of parameter names, such as 'layer4.*'")
    patterns = (names,) if isinstance(names, str) else tuple(names)
    if not patterns:
        raise ValueError("names is empty, expected at least one pattern of parameter names, such as 'layer4.*'")
    for pattern in patterns:
        _refuse_idle(pattern, known)
    return {
        aliases[0]: parameter
        for parameter, aliases in known.items()
        if aliases[0] in free and any(fnmatchcase(name, pattern) for name in aliases for pattern in patterns)
    }


def _is_free(parameter: Tensor) -> bool:
    return parameter.requires_grad and parameter.is_floating_point() and parameter.numel() > 0


def _refuse_idle(pattern: object, known: dict[Tensor, list[str]]) -> None:
    """A pattern that chooses nothing is a slip of the pen, also where another one beside it matches."""
    if not isinstance(pattern, str):
        raise ValueError(f"names holds {pattern!r}, expected patterns of parameter names, such as 'layer4.*'")
    hits = [parameter for parameter, names in known.items() if any(fnmatchcase(name, pattern) for name in names)]
    if not hits:
        every = [name for names in known.values() for name in names]
        near = difflib.get_close_matches(pattern, every, n=3, cutoff=0.3) or every[:3]
        raise ValueError(
            f"names holds {pattern!r}, which matches no parameter, expected a name or a pattern such as "
            f"'{every[0].split('.')[0]}*'; the nearest names are {', '.join(map(repr, near))}"
        )
    if not any(map(_is_free, hits)):
        raise ValueError(
            f"names holds {pattern!r}, which matches only frozen parameters ({len(hits)}), expected at least one that "
            "requires gradients"
        )
