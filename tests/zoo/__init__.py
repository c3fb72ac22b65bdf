"""Models that are known to be honest and models that are known to mask their gradients, trained on digits in seconds.

`tests/test_zoo.py` proves each label without the verdict that is to be judged by them.
"""

import functools
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradlens import Ball

from . import defences
from .attacks import knowing
from .networks import cnn, digits, fit, mlp, split

BALL = Ball(0.1)  # Linf, pixels in [0, 1]

NONE = "none"
SATURATES, PINNED, SHATTERS, RANDOM, CHANGES, ABSENT, WRONG = (
    "the loss saturates", "the output saturates", "the direction shatters", "the output is random",
    "the output changes from call to call", "no gradient arrives", "the backward pass is not the derivative",
)  # fmt: skip

UNSURE = ("weak cnn", "label smoothing cnn")  # honest, but cross-entropy climbs the wrong way where logits are small


@dataclass(frozen=True)
class Case:
    """A model and what may rightly be said of it.

    `right(x, y, ball)` is a mask of the samples that an attack breaks which knows the trick; of an honest model, which
    has none, those that PGD on its own gradients breaks, with two losses and restarts.
    """

    name: str
    model: nn.Module
    kind: str  # "honest" | "masked"
    verdicts: frozenset[str]  # of "usable", "suspect", "masked"
    layers: frozenset[str]  # what in the defence does it
    right: Callable[[Tensor, Tensor, Ball], Tensor]
    is_random: bool = False


def images(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 8, 8) in [0, 1] that this seed's models have not seen, and their labels."""
    x, y = digits()
    rows = split(seed)[1][:count]
    return x[rows], y[rows]


def cases(seed: int) -> list[Case]:
    """The whole zoo, trained for this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [*_honest(seed), *_masked(seed)]


def first(seed: int) -> Case:
    """The honest CNN alone, the first that is trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return next(_honest(seed))


trained = functools.cache(cases)  # once a process, for tests that do not change the models


def _honest(seed: int) -> Iterator[Case]:
    fresh: dict[str, tuple[Callable[[], nn.Module], dict[str, float]]] = {
        "cnn": (cnn, {}),
        "mlp": (mlp, {}),
        "wide mlp": (lambda: mlp(512, depth=1), {}),
        "batch norm cnn": (lambda: cnn(norm=True), {}),
        "adversarial cnn": (cnn, {"attacked": True}),
        "adversarial mlp": (mlp, {"attacked": True}),
        "softplus cnn": (lambda: cnn(nn.Softplus), {}),
        "silu mlp": (lambda: mlp(activation=nn.SiLU), {}),
        "weak cnn": (cnn, {"steps": 20}),
        "weight decay cnn": (cnn, {"decay": 0.3}),
        "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"steps": 400, "rate": 0.1}),
        "dropout cnn": (lambda: cnn(dropout=0.3), {}),
        "tanh mlp": (lambda: mlp(activation=nn.Tanh), {}),
        "average pooling cnn": (lambda: cnn(average=True), {}),
        "label smoothing cnn": (cnn, {"smoothing": 0.1}),
    }
    for name, (make, options) in fresh.items():
        model = fit(make(), seed, **options)
        verdicts, layers = {"usable"}, {NONE}
        if name in UNSURE:
            verdicts, layers = verdicts | {"suspect"}, layers | {SATURATES}
        yield Case(name, model, "honest", frozenset(verdicts), frozenset(layers), knowing(model, model))


def _masked(seed: int) -> Iterator[Case]:
    def masked(name: str, model: nn.Module, within: nn.Module, *layers: str, **options: int) -> Case:
        is_random = RANDOM in layers
        verdicts = frozenset({"masked", "suspect"} if is_random else {"masked"})
        right = knowing(model, within, is_random=is_random, **options)
        return Case(name, model.eval(), "masked", verdicts, frozenset(layers), right, is_random)

    network = fit(cnn(), seed)

    def own() -> nn.Module:
        return deepcopy(network)

    yield masked("scaled logits", defences.Scaled(own(), 1e3), network, SATURATES)
    student = distilled(seed)
    yield masked("distillation", student, defences.Scaled(student, 1e-2), SATURATES)
    # only where the model is sure does the softmax hide anything: logits times 3 cost PGD 2 points on seed 0
    yield masked("softmax", nn.Sequential(defences.Scaled(own(), 100), nn.Softmax(1)), network, SATURATES)
    yield masked("sigmoid", nn.Sequential(defences.Scaled(own(), 5), nn.Sigmoid()), network, PINNED)

    # averaging the gradient over points nearby also works, and so does random search, but a substitute is faster
    winners = fit(mlp(256, lambda: defences.Winners(0.1)), seed)
    yield masked("k winners", winners, fit(mlp(), seed, teacher=winners), SHATTERS)
    for name, kind in {"quantised": defences.Quantised, "jpeg": defences.Jpeg}.items():
        model = kind(own())
        yield masked(name, model, defences.Through(model), ABSENT)
    thermometer = fit(defences.Thermometer(cnn(channels=defences.Thermometer.levels)), seed)
    yield masked("thermometer", thermometer, defences.ThroughThermometer(thermometer), ABSENT)

    shattered = defences.Shattered(own())
    yield masked("shattered", shattered, defences.Through(shattered), SHATTERS)
    steep = own()
    steep[2] = nn.Sequential(defences.Stairs(), nn.ReLU())
    yield masked("stairs", steep, network, SHATTERS)
    yield masked("garbled", defences.Garbled(own()), network, SHATTERS, WRONG)
    yield masked("blocked", defences.Blocked(own()), network, ABSENT)
    yield masked("detached", defences.Detached(own()), network, ABSENT)

    # the mean over all phases of the wave's slope is 1: the network's own gradient is that of the expected answer
    yield masked("dithered", defences.Dithered(own()), network, RANDOM)
    dropped = fit(defences.Dropped(cnn(norm=True)), seed, steps=400, rate=1e-2)
    yield masked("dropped pixels", dropped, dropped, RANDOM, draws=20, steps=15, starts=1)
    for is_buffer in (True, False):
        counted = defences.Counted(defences.Dithered(own()), is_buffer=is_buffer)
        yield masked(f"stateful {'buffer' if is_buffer else 'attribute'}", counted, network, CHANGES, RANDOM)


def distilled(seed: int) -> nn.Module:
    """Defensive distillation (Papernot et al. 2016): teacher and student at T = 100, the student used at T = 1."""

    def hot() -> nn.Module:
        model = cnn()
        with torch.no_grad():
            model[-1].weight *= 100  # at T = 100 it starts where others start at T = 1
            model[-1].bias *= 100
        return model

    teacher = fit(hot(), seed, temperature=100.0, steps=300)
    return fit(hot(), seed, temperature=100.0, teacher=teacher, steps=300)
