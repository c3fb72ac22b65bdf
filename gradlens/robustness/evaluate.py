"""Worst case per sample over several attacks: cheap ones first, later ones on what is left, counted anew."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from ..ball import Ball
from ..batches import BATCH, gathered
from ..door import PROBE, check_ball, check_count, check_flag, check_generator
from ..draws import seed
from ..model import frozen, logits
from ..provenance import made
from ..types import Images, ImagesLike, LabelsLike, Logits
from . import autoattack
from .attack import Attack, named, refuse_single_pass
from .autoattack import Version
from .known import known
from .record import Robustness
from .rounds import Bout
from .state import File, State
from .suites import RANDOMISED, STANDARD, SUITES, defined, reference

Attacks = str | Sequence[Any]


def robustness(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    attacks: Attacks | None = None,
    exhaustive: bool = False,
    found: Mapping[str, Images | Robustness] | None = None,
    samples: int = 1,
    resume: File | None = None,
    batch: int = BATCH,
    generator: torch.Generator | None = None,
) -> Robustness:
    """Robust accuracy as a worst case per sample over `attacks`, with the cost of each beside it.

    `x`, `y` as in `pgd`. `attacks`: "quick", "standard" (ends with AutoAttack), "full", or a list of `Attack`s and
    functions (model, x, y, ball) -> points; "standard" if not given, "randomised" where samples > 1. They run in their
    order, each on the samples that are right and that withstood all before it; `exhaustive` shows each attack all that
    are right. Attacks that are not defined for such images, ball or classes are left out, and a flag names them. Those
    of the reference package ("aa-...") draw a batch at a time: their points depend on `batch` and order.
    `found` are points from elsewhere, by name, such as another model's evaluation: they are tried first.
    `samples` > 1 is for a random model: attacks average the gradient, and its class is that of the mean logits, over
    so many passes (Athalye et al. 2018).

    A point counts where it is finite, in the ball and in the pixel box, and where the unchanged model, in a pass of its
    own, gives another class than `y`. Each attack draws from its own stream, seeded by `generator` and its name.
    `resume` names a file that results are written to after each batch, as long as that takes no more than a twentieth
    of the time, and taken from; without a `generator` the seed is 0 then.

    Raises ValueError as `pgd` does, for unknown attacks, points of another shape, and a `resume` file of another call.
    """
    default = RANDOMISED if samples != 1 else STANDARD
    chosen = named(default if attacks is None else attacks, SUITES)
    options = {"exhaustive": exhaustive, "samples": samples}
    return _evaluate("robustness", model, x, y, ball, chosen, options, found, resume, batch, generator)


def auto_attack(
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None = None,
    ball: Ball = Ball(),
    *,
    version: Version = "standard",
    resume: File | None = None,
    batch: int = BATCH,
    generator: torch.Generator | None = None,
) -> Robustness:
    """AutoAttack (Croce & Hein 2020) by its reference package, attack by attack, as `robustness` counts.

    "standard": APGD-CE, targeted APGD and FAB, Square; "plus" adds restarts and untargeted ones; "rand" is for random
    models: APGD with gradients averaged over 20 passes, whose mean logits give the class. The package's own warnings
    come as `flags`. Random models and models that end in a softmax are let in, for it to warn of. Attacks that are
    not defined, DLR for few classes and Square in L2 on images below 5 x 5, are left out, and a flag says so.

    Raises ValueError as `robustness` does, and for an unknown version.
    """
    autoattack.check_version(version)
    options = {"exhaustive": False, "samples": autoattack.EOT if version == "rand" else 1}
    return _evaluate("auto_attack", model, x, y, ball, version, options, None, resume, batch, generator)


def _evaluate(
    call: str,
    model: nn.Module,
    x: ImagesLike,
    y: LabelsLike | None,
    ball: Ball,
    chosen: Sequence[Attack] | Version,
    options: dict[str, Any],
    found: Mapping[str, Any] | None,
    resume: File | None,
    batch: int,
    generator: torch.Generator | None,
) -> Robustness:
    check_ball(ball)
    check_generator(generator)
    if resume is not None and generator is None:
        generator = torch.Generator().manual_seed(0)  # else no later call could be the same
    for name, count in (("batch", batch), ("samples", options["samples"])):
        check_count(name, count)
    batch = int(batch)  # torch splits by none of numpy's numbers
    check_flag("exhaustive", options["exhaustive"])
    is_reference = isinstance(chosen, str)
    with frozen(model):
        images, labels, fingerprint = gathered(
            model, x, y, ball, batch=batch, stochastic=is_reference or options["samples"] > 1,
            probabilities=is_reference, averages=call,
        )  # fmt: skip
        flags: dict[str, str] = {}
        if isinstance(chosen, str):
            flags = autoattack.check(model, images[:batch], labels[:batch], chosen)
            chosen = reference(chosen)
        chosen, left_out = defined(chosen, logits(model, images[:1]).shape[1], ball, images)
        flags |= left_out
        if not chosen:
            raise ValueError(f"attacks are all left out, since none is defined here: {left_out['left out']}")
        refuse_single_pass(chosen, options["samples"])
        attacks = named((*known(found, images), *chosen), SUITES)
        record = made(
            call, model, fingerprint, str(images.device), generator, ball=ball, **options,
            attacks=", ".join(map(str, attacks)),
        )  # fmt: skip
        if any(attack.name.startswith("aa-") for attack in attacks):
            record = dataclasses.replace(record, versions={**record.versions, "pyautoattack": version("pyautoattack")})
        key = {
            "attacks": ", ".join(attack.identity for attack in attacks), "call": record.call, "model": record.model,
            "data": record.data, "seed": str(seed(generator)),
            # two models may differ in what is neither weight nor buffer, such as a temperature
            "answers": "" if is_reference or options["samples"] > 1 else _spoken(logits(model, images[:PROBE])),
        }  # fmt: skip
        bout = Bout(model, images, labels, ball, options["samples"], batch)
        state = State.start(images, bout.right(), [attack.name for attack in attacks], key, resume)
        with state, autoattack.heard() as heard:
            bout.run(attacks, state, key["seed"], exhaustive=options["exhaustive"])
    result = Robustness(
        images=images, labels=labels, clean=state.clean, attacks=state.attacks, distance=bout.distance(state),
        flags=flags | heard, ball=ball, made=record, samples=options["samples"], **state.results(),
    )  # fmt: skip
    return dataclasses.replace(
        result, flags=result.flags | autoattack.about_square(result.clean_accuracy, result.table())
    )


def _spoken(answers: Logits) -> str:
    """The first logits of some samples, to fewer digits than differ from batch to batch."""
    return " ".join(f"{value:.3g}" for value in answers[:, :4].flatten().tolist())
