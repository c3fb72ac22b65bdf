"""What was found on one model, shown to the others: the worst case over all that anybody found."""

import dataclasses
import itertools
from collections.abc import Mapping

import torch
from torch import nn

from ..batches import BATCH
from ..door import check_count
from ..model import frozen
from ..provenance import named
from .known import known
from .record import Robustness
from .rounds import Bout
from .state import State


def exchange(
    models: Mapping[str, nn.Module], results: Mapping[str, Robustness], *, batch: int = BATCH
) -> dict[str, Robustness]:
    """Each model's record after the points that broke the others were shown to it, one more attack a model.

    `results` are records of `robustness` by the same names, on the same samples and in the same ball. It costs two
    passes a point and model. A model that points from elsewhere break, where its own attacks did not, hides its
    gradient.

    Raises ValueError for other names, for records on other samples, in another ball or of another model, and for fewer
    than two.
    """
    check_count("batch", batch)
    batch = int(batch)  # torch splits by none of numpy's numbers
    for called, given, kind in (("models", models, nn.Module), ("results", results, Robustness)):
        if not isinstance(given, Mapping) or not all(isinstance(one, kind) for one in given.values()):
            raise ValueError(f"{called} are {given!r:.80}, expected a dict of {kind.__name__} by name")
    if set(models) != set(results):
        raise ValueError(f"models are {list(models)} and results are {list(results)}, expected dicts of the same names")
    if len(results) < 2:
        raise ValueError(f"results are of {list(results)}, expected at least two models")
    first = next(iter(results.values()))
    for name, result in results.items():
        same = torch.equal(result.images, first.images) and torch.equal(result.labels, first.labels)
        if result.ball != first.ball or not same:
            raise ValueError(f"results[{name!r}] is of other samples or another ball, expected those of the others")
        if named(models[name]) != result.made.model:
            raise ValueError(
                f"models[{name!r}] is {named(models[name])}, expected that of results[{name!r}], {result.made.model}"
            )
    shown = {}
    for name, result in results.items():
        others = known({other: one for other, one in results.items() if other != name}, result.images)
        others = [dataclasses.replace(one, name=_unused(one.name, result.attacks)) for one in others]
        state = State.further(result, [attack.name for attack in others])
        bout = Bout(models[name], result.images, result.labels, result.ball, result.samples, batch)
        with frozen(models[name]):
            bout.run(others, state, "", exhaustive=False)
        made = dataclasses.replace(result.made, call=f"{result.made.call}, then exchange with {len(others)} models")
        shown[name] = dataclasses.replace(
            result, attacks=state.attacks, distance=bout.distance(state), made=made, **state.results()
        )
    return shown


def _unused(name: str, taken: tuple[str, ...]) -> str:
    """The name, with a number where an earlier exchange has it."""
    further = (f"{name} ({i})" for i in itertools.count(2))
    return next(one for one in itertools.chain([name], further) if one not in taken)
