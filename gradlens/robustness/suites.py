"""Lists of attacks to run, from cheap to thorough."""

import functools

from ..attacks import apgd, apgd_targeted, nes, pgd, rays
from ..losses import margin
from . import autoattack
from .attack import Attack
from .autoattack import VERSIONS, Version
from .precise import pgd_double

REFERENCE = {
    name: Attack(f"aa-{name}", functools.partial(autoattack.run, name=name)) for name in autoattack.NAMES
}  # pyautoattack's own, under its own names

QUICK = (
    Attack("pgd-margin", pgd, {"steps": 20, "loss": margin}),
    Attack("apgd-ce", apgd, {"steps": 50}),
    Attack("apgd-t", apgd_targeted, {"steps": 50, "classes": 3}),
    Attack("pgd-double", pgd_double),
)
STANDARD = (*QUICK, *(REFERENCE[name] for name in VERSIONS["standard"]))
FULL = (
    *STANDARD,
    Attack("pgd-1000", pgd, {"steps": 1000, "loss": margin, "restarts": 3}),
    Attack("nes", nes),
    Attack("rays", rays),
)
RANDOMISED = (
    Attack("pgd-ce", pgd, {"steps": 20}),
    Attack("pgd-margin", pgd, {"steps": 40, "loss": margin}),
)
SUITES = {"quick": QUICK, "standard": STANDARD, "full": FULL, "randomised": RANDOMISED}


def reference(version: Version, classes: int) -> tuple[Attack, ...]:
    """AutoAttack's own list, as far as it is defined for so many classes."""
    return tuple(
        Attack(f"aa-{name}", functools.partial(autoattack.run, name=name, version=version))
        for name in autoattack.suited(version, classes)
    )
