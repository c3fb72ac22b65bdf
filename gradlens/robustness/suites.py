"""Lists of attacks to run, from cheap to thorough."""

import functools
from collections.abc import Sequence

from ..attacks import apgd, apgd_targeted, hopskipjump, nes, pgd, rays, square
from ..attacks.queries.square import STRONGEST
from ..ball import Ball
from ..losses import margin
from ..types import Images
from . import autoattack
from .attack import Attack
from .autoattack import VERSIONS, Version
from .precise import pgd_double
from .unbroken import pgd_until_broken


def reference(version: Version) -> tuple[Attack, ...]:
    """AutoAttack's own list."""
    return tuple(
        Attack(f"aa-{name}", functools.partial(autoattack.run, name=name, version=version))
        for name in VERSIONS[version]
    )


def defined(
    attacks: Sequence[Attack], classes: int, ball: Ball, x: Images
) -> tuple[tuple[Attack, ...], dict[str, str]]:
    """The attacks that exist for so many classes, such a ball and such images, and a flag that names the others."""
    kept = []
    for attack in attacks:
        if attack.name.startswith("aa-"):
            suits = autoattack.suits(attack.name.removeprefix("aa-"), classes, ball, x)
        else:
            suits = attack.run is not rays or ball.norm == "linf"
        if suits:
            kept.append(attack)
    missing = [attack.name for attack in attacks if attack not in kept]
    return tuple(kept), {"left out": ", ".join(missing)} if missing else {}


# the margin first: it breaks most of what can be broken, and no confidence of the model's stops it
QUICK = (
    Attack("pgd-margin", pgd, {"steps": 20, "loss": margin}),
    Attack("apgd-ce", apgd, {"steps": 50}),
    Attack("apgd-t", apgd_targeted, {"steps": 50, "loss": margin}),
    Attack("pgd-double", pgd_double),
)
STANDARD = (
    *QUICK,
    *(Attack(f"aa-{name}", functools.partial(autoattack.run, name=name)) for name in VERSIONS["standard"]),
)
FULL = (
    *STANDARD,
    Attack("pgd-1000", pgd_until_broken, {"steps": 1000, "loss": margin, "restarts": 5}),
    Attack("square", square, {"queries": 10_000, **STRONGEST}),
    Attack("nes", nes),
    Attack("rays", rays, {"queries": 40_000, "until_broken": True}),
    Attack("hopskipjump", hopskipjump, {"until_broken": True}),
)
RANDOMISED = (
    Attack("pgd-ce", pgd, {"steps": 20}),
    Attack("pgd-margin", pgd, {"steps": 40, "loss": margin}),
    Attack("apgd-ce", apgd, {"steps": 50}),
)
SUITES = {"quick": QUICK, "standard": STANDARD, "full": FULL, "randomised": RANDOMISED}
