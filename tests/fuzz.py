"""Nonsense for the public functions: python -m tests.fuzz [--examples 2000] [--seed 0]

Each example calls one of them with a model, images, labels and knobs, of which some are out of their mind. Allowed are
a result, or a ValueError or TypeError whose message names an argument; the model and the images stay as they were, to
the byte. All violations are listed, one of each kind.
"""

import argparse
import functools
import inspect
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import gradlens as gl
from tests.analytic import Constant, Detached, Random, snapshot

Call = Callable[..., Any]
SIDE, CLASSES = 4, 3
JUNK: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "0": lambda: 0, "-1": lambda: -1, "True": lambda: True, "2.5": lambda: 2.5,
    "'x'": lambda: "x", "''": lambda: "",
    "()": tuple, "[]": list, "{}": dict, "nan": lambda: float("nan"),
    "inf": lambda: float("inf"), "object()": object, "int": lambda: int,
    "tensor": lambda: torch.rand(3), "array": lambda: np.zeros(2),
    "b'x'": lambda: b"x", "1j": lambda: 1j, "[nan]": lambda: [float("nan")], "['x']": lambda: ["x"],
}  # fmt: skip


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return make()

    return made


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, CLASSES)
    ).eval()


def linear(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, outputs))


def scaled(by: float) -> nn.Module:
    model = linear()
    with torch.no_grad():
        model[1].weight.mul_(by)
    return model


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


class Says(nn.Module):
    """Whatever is made of its logits."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.make = linear(), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.inner(x))


class Mine(Exception):
    """Of the caller's own function: it is not for us to change."""


def mine(z: Tensor, y: Tensor) -> Tensor:
    raise Mine


def raises(x: Tensor) -> Tensor:
    raise KeyError("lost")


MODELS: dict[str, Callable[[], Any]] = {
    "network": network, "linear": linear, "in train mode": lambda: network().train(),
    "frozen": lambda: frozen(network()), "half frozen": lambda: nn.Sequential(frozen(nn.Flatten()), linear()[1]),
    "float64": lambda: network().double(), "float16": lambda: linear().half(), "bfloat16": lambda: network().bfloat16(),
    "two classes": lambda: linear(2), "one class": lambda: linear(1), "no class": lambda: linear(0),
    "times 1e3": lambda: scaled(1e3), "times 1e30": lambda: scaled(1e30), "times 1e-30": lambda: scaled(1e-30),
    "nan": lambda: scaled(float("nan")), "inf": lambda: scaled(float("inf")), "zero": lambda: scaled(0),
    "constant": lambda: Constant([0.0, 1.0, 2.0]), "tied": lambda: Constant([1.0, 1.0, 1.0]),
    "detached": lambda: Detached(linear()), "random": lambda: Random(linear(), 0.1),
    "softmax": lambda: Says(lambda z: z.softmax(1)), "whole numbers": lambda: Says(lambda z: z.long()),
    "tuple": lambda: Says(lambda z: (z, z)), "mean": lambda: Says(lambda z: z.mean()), "raises": lambda: Says(raises),
    "dict": lambda: Says(lambda z: {"logits": z}), "fewer rows": lambda: Says(lambda z: z[:1]),
    "no grad": lambda: Says(lambda z: torch.tensor(z.tolist())), "numpy": lambda: Says(lambda z: z.detach().numpy()),
    "no parameters": nn.Flatten, "a class": lambda: nn.Linear,
    "a function": lambda: (lambda x: x.flatten(1)),
}  # fmt: skip


def images(count: int = 4, *shape: int) -> Tensor:
    return torch.rand(count, *(shape or (1, SIDE, SIDE)), generator=torch.Generator().manual_seed(2))


def batched() -> list[tuple[Tensor, Tensor]]:
    return [(images(2), torch.tensor([0, 1])), (images(1), torch.tensor([2]))]


def put(value: float) -> Tensor:
    x = images()
    x[1, 0, 2, 2] = value
    return x


PLAIN = {"four": images, "one": lambda: images(1), "float64": lambda: images().double()}
IMAGES: dict[str, Callable[[], Any]] = {
    **PLAIN, "float16": lambda: images().half(), "bfloat16": lambda: images().bfloat16(),
    "array": lambda: images().numpy(), "array of float64": lambda: images().double().numpy(),
    "bytes": lambda: images().mul(255).byte(), "complex": lambda: images() + 0j, "bool": lambda: images() > 0.5,
    "empty": lambda: images(0), "no pixels": lambda: images(4, 1, 0, SIDE), "flat": lambda: images(4, SIDE**2),
    "other size": lambda: images(4, 1, 5, 5), "three channels": lambda: images(4, 3, SIDE, SIDE),
    "one image": lambda: images()[0], "a number": lambda: torch.tensor(0.5), "row": lambda: torch.rand(4),
    "nan": lambda: put(float("nan")), "inf": lambda: put(float("inf")), "above": lambda: put(1.5),
    "below": lambda: put(-0.1), "denormal": lambda: images() * 0 + 1e-42, "black": lambda: images() * 0,
    "white": lambda: images() * 0 + 1, "requires grad": lambda: images().requires_grad_(),
    "strided": lambda: images(8)[::2].transpose(2, 3), "expanded": lambda: images(1).expand(4, 1, SIDE, SIDE),
    "sparse": lambda: images().to_sparse(), "meta": lambda: images().to("meta"), "objects": lambda: np.array([{}, 1]),
    "quantized": lambda: torch.quantize_per_tensor(images(), 0.1, 0, torch.quint8),
    "csr": lambda: images(4, 16).to_sparse_csr(),
    "loader": batched, "loader of images": lambda: [images(2)], "three parts": lambda: [(1, 2, 3)],
    "loader of shapes": lambda: [(images(2), torch.tensor([0, 1])), (images(2, 1, 5, 5), torch.tensor([0, 1]))],
    "generator": lambda: iter(batched()), "list": lambda: images().tolist(), "text": lambda: "images", **JUNK,
}  # fmt: skip
LABELS: dict[str, Callable[[], Any]] = {
    "none": lambda: None, "right": lambda: torch.tensor([0, 1, 2, 0]), "list": lambda: [0, 1, 2, 0],
    "array": lambda: np.array([0, 1, 2, 0], np.uint8), "one": lambda: torch.tensor([1]),
    "floats": lambda: torch.rand(4), "too high": lambda: torch.tensor([0, 1, 2, 9]),
    "negative": lambda: torch.tensor([0, -1, 2, 0]), "too few": lambda: torch.tensor([0, 1]),
    "one hot": lambda: torch.eye(4, 3).long(), "bool": lambda: torch.tensor([True] * 4), "huge": lambda: [2**62] * 4,
    "bigger": lambda: [2**70] * 4, "ragged": lambda: [[0], [1, 2], 3, 4], "column": lambda: torch.zeros(4, 1).long(),
    "int8": lambda: torch.tensor([0, 1, 2, 0], dtype=torch.int8), "meta": lambda: torch.zeros(4).long().to("meta"),
    **JUNK,
}  # fmt: skip
BALLS: dict[str, Callable[[], Any]] = {
    "linf": lambda: gl.Ball(0.1), "l2": lambda: gl.Ball(0.5, "l2"), "tiny": lambda: gl.Ball(1e-30),
    "huge": lambda: gl.Ball(1e30), "wide box": lambda: gl.Ball(0.1, low=-5, high=5),
    "thin box": lambda: gl.Ball(0.1, low=0.4, high=0.400001), **JUNK,
}  # fmt: skip
COUNTS = {
    **{str(n): (lambda n=n: n) for n in (1, 2, 3, 5)}, "np 2": lambda: np.int64(2), "'3'": lambda: "3",
    "2.0": lambda: 2.0, "tensor 2": lambda: torch.tensor(2), **JUNK,
}  # fmt: skip
NUMBERS = {
    **{str(n): (lambda n=n: n) for n in (0.1, 0.5, 1.0, 1e-30, 1e30)}, "np 0.1": lambda: np.float32(0.1),
    "'0.1'": lambda: "0.1", "tensor 0.1": lambda: torch.tensor(0.1), **JUNK,
}  # fmt: skip
FLAGS = {"True": lambda: True, "False": lambda: False, **JUNK}
SERIES = {
    "(0.1, 0.5)": lambda: (0.1, 0.5), "[1]": lambda: [1], "[1, 2]": lambda: [1, 2], "[0]": lambda: [0],
    "[-1]": lambda: [-1], "[[1]]": lambda: [[1]], **JUNK,
}  # fmt: skip
LOSSES = {
    "cross_entropy": lambda: gl.losses.cross_entropy, "margin": lambda: gl.losses.margin,
    "sum": lambda: lambda z, y: z.sum(), "rows": lambda: lambda z, y: z,
    "nan": lambda: lambda z, y: z[:, 0] * torch.nan,
    "constant": lambda: lambda z, y: torch.zeros(len(z)), "text": lambda: lambda z, y: "loss",
    "no arguments": lambda: lambda: 0, "raises": lambda: mine, **JUNK,
}  # fmt: skip
GENERATORS = {"seeded": lambda: torch.Generator().manual_seed(3), **JUNK}
WORDS = {
    name: (lambda name=name: name)
    for name in (
        "filter", "layer", "model", "hessian", "frozen", "reestimated", "interpolated", "weights", "inputs", "loss",
        "error", "attacked", "reward", "project", "clip", "mask", "eps", "steps", "restarts", "queries", "quick",
        "standard", "plus", "rand", "random", "gradient", "margin", "logits",
    )
} | {**JUNK, "images": images, "lists of them": lambda: [images()], "a dict": lambda: {"up": images()}}  # fmt: skip
NUMERIC = ("step_size", "momentum", "sigma", "p_init", "pairs", "span", "beyond", "precision", "adaptive")
COUNTED = (
    "steps", "restarts", "samples", "draws", "points", "queries", "population", "k", "count", "classes", "probes",
    "depth", "batch",
)  # fmt: skip
SERIAL = ("radii", "scales", "values")
FLAGGED = ("until_broken", "reach_edges", "exhaustive", "ensemble")
SMALL = {"steps": 2, "points": 3, "queries": 20, "draws": 2, "k": 1, "probes": 2, "depth": 2, "population": 2}
DIRECT = (
    "fgsm", "pgd", "apgd", "pgd_targeted", "apgd_targeted", "minimum_norm", "square", "nes", "rays", "hopskipjump",
    "stability", "gradients", "entropy", "input_plane", "input_line", "input_path", "weight_plane", "weight_line",
    "spectrum", "predict", "target_classes",
)  # fmt: skip
TARGETS: dict[str, Call] = {name: getattr(gl, name) for name in DIRECT} | {
    "interpolate": lambda model, x, y=None, ball=gl.Ball(), **knobs: gl.interpolate(
        [model, network()], x, y, ball, **knobs
    ),
    "trajectory": lambda model, x, y=None, ball=gl.Ball(): gl.trajectory(model, [network(), model, network()]),
    "robustness": lambda model, x, y=None, ball=gl.Ball(), **knobs: gl.robustness(
        model, x, y, ball, **{"attacks": [gl.Attack("fgsm", gl.fgsm)], **knobs}
    ),
    "curve": lambda model, x, y=None, ball=gl.Ball(), **knobs: gl.curve(
        model, x, y, ball, **{"values": [0.05, 0.1], **knobs}
    ),
    "transfer": lambda model, x, y=None, ball=gl.Ball(), **knobs: gl.transfer(
        {"a": model}, {"a": model, "b": network()}, x, y, ball, **knobs
    ),
    "planted": lambda model, x, y=None, ball=gl.Ball(), **knobs: gl.planted(
        model, x, y, ball, **{"attacks": [gl.Attack("fgsm", gl.fgsm)], **knobs}
    ),
    "masking": gl.masking,
}


@functools.cache
def measured() -> dict[str, Any]:
    """A result of some kinds, to be handed over."""
    model, x = seeded(network)(), images()
    robust = gl.robustness(model, x, [0, 1, 2, 0], attacks=[gl.Attack("fgsm", gl.fgsm)])
    return {"robustness": robust, "stability": gl.stability(model, x, steps=2, generator=torch.Generator())}


def entered(model: Any) -> None:
    with gl.frozen(model):
        pass


def arms() -> dict[str, Any]:
    return {arm: {0: seeded(network)()} for arm in ("SL", "RL")}


# What does not take a model and images as the others do: plain values of its arguments, each of which may be odd.
OTHERS: dict[str, tuple[Call, dict[str, Callable[[], Any]]]] = {
    "Ball": (gl.Ball, {"eps": lambda: 0.1, "norm": lambda: "l2", "low": lambda: 0.0, "high": lambda: 1.0}),
    "Normalized": (gl.Normalized, {"model": network, "mean": lambda: [0.5], "std": lambda: (0.2,)}),
    "Attack": (gl.Attack, {"name": lambda: "fgsm", "run": lambda: gl.fgsm, "options": dict}),
    "frozen": (entered, {"model": network}),
    "prepare": (gl.prepare, {"model": network, "precision": lambda: "bfloat16"}),
    "save": (gl.save, {"result": lambda: measured()["stability"], "path": lambda: "result"}),
    "load": (gl.load, {"path": lambda: "none"}),
    "compare": (
        gl.compare,
        {
            "results": lambda: dict.fromkeys("ab", measured()["stability"]), "metric": lambda: "undefined",
            "pair": lambda: "seed", "level": lambda: 0.9, "resamples": lambda: 100, "seed": lambda: 1,
        },
    ),
    "exchange": (
        gl.exchange,
        {
            "models": lambda: dict.fromkeys("ab", seeded(network)()),
            "results": lambda: dict.fromkeys("ab", measured()["robustness"]), "batch": lambda: 2,
        },
    ),
    "judge": (gl.claims.judge, {"readings": dict, "sl": lambda: "SL", "rl": lambda: "RL", "hybrids": tuple}),
    "measure": (gl.claims.measure, {"models": arms, "x": lambda: images(0), "steps": lambda: 2, "longest": lambda: 2}),
}  # fmt: skip
ODD: dict[str, Callable[[], Any]] = {
    **JUNK, "a model": network, "a result": lambda: measured()["stability"], "a function": lambda: lambda z: z,
    "models": lambda: {"a": network()}, "results": lambda: {"a": measured()["stability"], "b": 1},
    "{1: 2}": lambda: {1: 2},
}  # fmt: skip
SIGNATURES = {name: inspect.signature(getattr(gl, name)) for name in TARGETS} | {
    name: inspect.signature(call) for name, (call, _) in OTHERS.items()
}
NAMES = {"eps", "norm", "low", "high", "models", "checkpoints", "sources", "targets", "out", "path", "result"}


def choices(name: str) -> dict[str, Callable[[], Any]]:
    """What a knob may be given."""
    for names, kinds in ((NUMERIC, NUMBERS), (COUNTED, COUNTS), (SERIAL, SERIES), (FLAGGED, FLAGS)):
        if name in names:
            return kinds
    return {"loss": LOSSES, "generator": GENERATORS}.get(name, WORDS)


@st.composite
def examples(draw: Any, names: list[str]) -> tuple[str, dict[str, str]]:
    """A function and what each of its arguments is, in words."""
    name = draw(st.sampled_from(names))
    odd = draw(st.integers(0, 3))  # arguments that are not plain
    if name in OTHERS:
        knobs = draw(st.lists(st.sampled_from(list(OTHERS[name][1])), max_size=odd, unique=True))
        return name, {knob: draw(st.sampled_from(list(ODD))) for knob in knobs}
    words = {"model": "network", "x": "four", "y": "none", "ball": "linf"}
    knobs = [one for one in SIGNATURES[name].parameters if one not in ("models", "sources", "targets", "checkpoints")]
    tables = {"model": MODELS, "x": IMAGES, "y": LABELS, "ball": BALLS}
    for _ in range(odd):
        knob = draw(st.sampled_from(sorted({*knobs, "model", "x"})))
        words[knob] = draw(st.sampled_from(list(tables.get(knob) or choices(knob))))
    kept = {knob: word for knob, word in words.items() if knob in knobs or knob in ("model", "x")}
    return name, kept


def arguments(name: str, words: dict[str, str]) -> dict[str, Any]:
    if name in OTHERS:
        given = {knob: (ODD[words[knob]] if knob in words else make)() for knob, make in OTHERS[name][1].items()}
        if isinstance(given.get("path"), str) and given["path"]:
            given["path"] = str(Path(tempfile.mkdtemp()) / given["path"])
        return given
    tables = {"model": MODELS, "x": IMAGES, "y": LABELS, "ball": BALLS}
    given = {}
    for knob in SIGNATURES[name].parameters:
        if knob in SMALL:
            given[knob] = SMALL[knob]
    for knob, word in words.items():
        make = (tables.get(knob) or choices(knob))[word]
        given[knob] = seeded(make)() if knob == "model" else make()
    if isinstance(given.get("resume"), str) and given["resume"]:
        given["resume"] = str(Path(tempfile.mkdtemp()) / "resume")
    return given


def violation(name: str, words: dict[str, str]) -> str | None:
    """What is wrong about how a call ended; nothing where it is as allowed."""
    given = arguments(name, words)
    model, x = given.get("model"), given.get("x")
    is_module = isinstance(model, nn.Module)
    before = snapshot(model) if is_module else None
    pixels = x.clone() if isinstance(x, Tensor) and not x.is_meta and x.layout == torch.strided else None
    said = None
    torch.manual_seed(4)
    try:
        if name in OTHERS:
            OTHERS[name][0](**given)
        else:
            TARGETS[name](given.pop("model"), given.pop("x"), **given)
    except Mine:
        pass
    except FileNotFoundError as error:
        said = None if name == "load" and "path" in str(error) else str(error)
    except (ValueError, TypeError) as error:
        known = {*SIGNATURES[name].parameters, *NAMES, "model", "x", "y", "ball"}
        where = traceback.extract_tb(error.__traceback__)[-1]
        if (
            not any(re.search(rf"\b{re.escape(one)}\b", str(error)) for one in known)
            or "gradlens" not in where.filename
        ):
            said = f"{type(error).__name__} without an argument, at {where.filename}:{where.lineno}: {error}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        ours = next((f for f in reversed(where) if "/gradlens/" in f.filename), where[-1])
        said = f"{type(error).__name__} at {ours.filename}:{ours.lineno}: {str(error)[:200]}"
    if is_module and snapshot(model) != before:
        return f"the model is not as it was ({said or 'a result'})"
    if pixels is not None and not same(pixels, x):
        return f"the images are not as they were ({said or 'a result'})"
    return said


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and (torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def hunt(count: int, seed: int, names: list[str]) -> tuple[int, dict[str, str]]:
    """How many calls were tried, and the first example of each kind of violation."""
    wrong: dict[str, str] = {}
    tried = 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(examples(names))
    def run(example: tuple[str, dict[str, str]]) -> None:
        nonlocal tried
        tried += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = violation(*example)
        if found:
            kind = f"{example[0]}: {re.sub(r'[0-9.e+-]+', '#', found)}"
            odd = {
                k: v for k, v in example[1].items() if (k, v) not in {("x", "four"), ("y", "none"), ("ball", "linf")}
            }
            wrong.setdefault(kind, f"{example[0]}({odd}): {found}")

    run()
    return tried, wrong


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="functions; all if none is given")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    tried, wrong = hunt(given.examples, given.seed, given.names or [*TARGETS, *OTHERS])
    for line in wrong.values():
        print(line, file=sys.stderr)
    print(f"{tried} calls, {len(wrong)} kinds of violation")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
