"""The attacks of the reference package of AutoAttack, one by one, and its checks as data."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from ..ball import Ball
from ..door import check_choice
from ..model import logits
from ..types import Images, Labels

if TYPE_CHECKING:
    from pandas import DataFrame

Version = Literal["standard", "plus", "rand"]
NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")
VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# what its messages say, and what they are about
KINDS = {
    "randomized defense": "randomised",
    "probability distribution": "softmax",
    "zero gradient": "zero gradients",
    "dynamic defense": "dynamic",
    "classes": "classes",
    "Square Attack has decreased": "square",
}
EOT = 20  # passes over which version "rand" averages the gradient


class Unit(nn.Module):
    """A model of pixels in [0, 1], which the package takes for granted, whatever the box is."""

    def __init__(self, model: nn.Module, ball: Ball) -> None:
        super().__init__()
        self.model, self.low, self.width = model, ball.low, ball.high - ball.low

    def forward(self, x: Tensor) -> Tensor:
        answer = logits(self.model, x if (self.low, self.width) == (0, 1) else self.low + self.width * x)
        if x.requires_grad and not answer.requires_grad:  # a constant: the package needs a gradient, be it zero
            answer = answer + 0 * x.flatten(1).sum(1, keepdim=True)
        return answer


def run(
    model: nn.Module,
    x: Images,
    y: Labels,
    ball: Ball,
    *,
    name: str,
    version: Version = "standard",
    samples: int = 1,
    generator: torch.Generator,
) -> Images:
    """One attack as pyautoattack runs it (Croce & Hein 2020), with the settings of its `version`.

    With fewer classes than it has targets for, it aims at all there are; where it is not defined (`suits`), it does
    nothing. `samples` > 1 averages APGD's gradient. Returns points in the box of `ball`; the image itself where the
    attack has none.
    """
    from pyautoattack import AutoAttack

    with torch.no_grad():
        classes = logits(model, x[:1]).shape[1]
    if not suits(name, classes, ball, x):
        return x
    width = ball.high - ball.low
    number = generator.initial_seed() % 2**31
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):  # the package seeds torch's global generator
        all_of_them = AutoAttack(
            Unit(model, ball), norm="Linf" if ball.norm == "linf" else "L2", eps=ball.eps / width, seed=number,
            version=version, device=x.device,
        )  # fmt: skip
        attack = {
            "apgd-ce": all_of_them.apgd, "apgd-dlr": all_of_them.apgd, "apgd-t": all_of_them.apgd_targeted,
            "fab": all_of_them.fab, "fab-t": all_of_them.fab, "square": all_of_them.square,
        }[name]  # fmt: skip
        attack.seed = number
        if name in ("apgd-ce", "apgd-dlr"):
            attack.loss, attack.eot_iter = name.removeprefix("apgd-"), samples
        if name in ("fab", "fab-t"):
            attack.targeted = name == "fab-t"
            attack.n_restarts = 1 if attack.targeted else attack.n_restarts
        with torch.no_grad():
            if name in ("apgd-t", "fab", "fab-t"):
                attack.n_target_classes = min(attack.n_target_classes, classes - 1)
            points = attack.perturb(((x - ball.low) / width).clone(), y.clone())
    return ball.low + width * points.detach().to(x)


def suits(name: str, classes: int, ball: Ball, x: Images) -> bool:
    """Is an attack defined? DLR takes three classes, its targeted form four; Square images, in L2 of 5 x 5 at least."""
    if name == "square":
        return x.ndim == 4 and (ball.norm == "linf" or min(x.shape[2:]) >= 5)
    return classes >= {"apgd-dlr": 3, "apgd-t": 4}.get(name, 2)


def check(model: nn.Module, x: Images, y: Labels, version: Version) -> dict[str, str]:
    """The package's looks at a model before it attacks, by kind; empty where it finds nothing. For use in `frozen`."""
    from pyautoattack import checks

    traced = sys.gettrace()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # it counts over all models that it has ever seen
    with heard() as flags, torch.no_grad():
        log = logging.getLogger("auto-attack")
        if version != "rand":
            checks.check_randomized(model, x, y, bs=len(x), logger=log)
        classes = checks.check_range_output(model, x, logger=log)
        try:
            checks.check_dynamic(model, x, False, logger=log)
        finally:
            sys.settrace(traced)  # it would end a debugger's or a coverage tool's trace
        checks.check_n_classes(classes, list(VERSIONS[version]), 9, 9, logger=log)
    return flags


@contextmanager
def heard() -> Iterator[dict[str, str]]:
    """What the package warns of within, by kind, the last message of each; not printed."""
    flags: dict[str, str] = {}

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage().partition(" See flags_doc.md")[0]
            flags[next((kind for part, kind in KINDS.items() if part in said), "other")] = said

    log, ear = logging.getLogger("auto-attack"), Ear(logging.WARNING)
    propagates, log.propagate = log.propagate, False
    log.addHandler(ear)
    try:
        yield flags
    finally:
        log.removeHandler(ear)
        log.propagate = propagates


def about_square(clean: float, table: "DataFrame") -> dict[str, str]:
    """The package's last check: random search that finds what gradients missed is a sign of masking."""
    from pyautoattack import checks

    names = table["attack"].tolist()
    before = names[: names.index("aa-square") + 1] if "aa-square" in names else []
    after = zip(before, table["robust_accuracy"], strict=False)
    accuracy = {"clean": clean} | {name: value for name, value in after if name != "square"}
    accuracy["square"] = accuracy.pop("aa-square", 1.0)
    with heard() as flags:
        checks.check_square_sr(accuracy, logger=logging.getLogger("auto-attack"))
    return flags


def check_version(version: object) -> None:
    """Raises ValueError for an unknown one."""
    check_choice("version", version, get_args(Version))
