"""Results on disk: equal to the bit, whole or not at all, refused by name where damaged."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gradlens import (
    Attack,
    Ball,
    apgd,
    entropy,
    input_line,
    input_path,
    input_plane,
    load,
    losses,
    minimum_norm,
    pgd,
    planted,
    rays,
    save,
    spectrum,
    square,
    stability,
    store,
    trajectory,
    weight_plane,
)
from tests.analytic import Detached, smooth_cnn


def noisy(model: nn.Module, seed: int) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return {name: t + torch.randn(t.shape, generator=stream).to(t) for name, t in model.state_dict().items()}


RESULTS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "trace": lambda model, x: pgd(model, x, None, Ball(0.1), steps=2, restarts=2),
    "trace full of nan": lambda model, x: pgd(Detached(model), x, None, Ball(0.1, "l2"), steps=1),
    "trace of halved steps": lambda model, x: apgd(model, x, None, Ball(0.1), steps=8),
    "distances": lambda model, x: minimum_norm(model, x, [0, 1, 2, 3, 0, 1], Ball(norm="l2"), steps=4),
    "distances full of nan": lambda model, x: minimum_norm(Detached(model), x, None, steps=2),
    "stability": lambda model, x: stability(model, x, None, Ball(0.1), steps=2),
    "entropy": entropy,
    "entropy with labels and attack": lambda model, x: entropy(model, x, [0] * 6, x.flip(0)),
    "plane": lambda model, x: input_plane(model, x, None, Ball(0.1), points=3, loss=losses.margin),
    "line": lambda model, x: input_line(model, x, None, Ball(0.1), points=3, box="project"),
    "two adversaries": lambda model, x: input_plane(
        model,
        x,
        None,
        Ball(0.1),
        points=3,
        directions={"pgd": pgd(model, x, None, Ball(0.1)), "up": torch.ones_like(x)},
    ),
    "path": lambda model, x: input_path(model, x, None, Ball(0.1), steps=2, points=2),
    "query trace": lambda model, x: square(model, x, [0] * 6, Ball(0.1), queries=4),
    "query trace with distances": lambda model, x: rays(model, x, [0] * 6, Ball(0.1), queries=9),
    "spectrum": lambda model, x: spectrum(model, x, k=2, steps=8),
    "spectrum of inputs": lambda model, x: spectrum(model, x, of="inputs", k=2, steps=8),
    "weight plane": lambda model, x: weight_plane(model, x, [0] * 6, points=3, metrics=("loss", "attacked"), steps=1),
    "adaptive weight plane": lambda model, x: weight_plane(model, x, [0] * 6, points=9, adaptive=0.1),
    "trajectory": lambda model, x: trajectory(model, [noisy(model, i) for i in range(3)]),
    "planted": lambda model, x: planted(model, x[:2], None, Ball(0.1), attacks=[Attack("pgd", pgd, {"steps": 1})]),
    "ball": lambda *_: Ball(0.3, "l2", low=-1.0),
    "made": lambda model, x: entropy(model, x).made,
}
every_result = pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)


def same(a: Any, b: Any) -> bool:
    """Equal in type, shape and every bit."""
    if isinstance(a, Tensor):
        raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if dataclasses.is_dataclass(a):
        names = [field.name for field in dataclasses.fields(a)]
        return type(a) is type(b) and all(same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@every_result
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_loaded_is_what_was_saved_to_the_bit(make, dtype, images, tmp_path):
    result = make(smooth_cnn().to(dtype), images.to(dtype))
    path = save(result, tmp_path / "deep" / "result.safetensors")
    assert same(load(path), result)
    assert load(str(path)) is not result
    assert os.listdir(path.parent) == ["result.safetensors"]


def test_the_comparison_tells_results_apart(cnn, images):
    """The test above can fail: a bit, a nan or a field more makes another result."""
    trace = pgd(cnn, images, None, Ball(0.1), steps=1)
    assert same(trace, pgd(cnn, images, None, Ball(0.1), steps=1))
    loss = trace.loss.clone()
    loss[0, 0] = torch.nextafter(loss[0, 0], loss[0, 0] + 1)
    assert not same(trace, dataclasses.replace(trace, loss=loss))
    assert not same(trace, dataclasses.replace(trace, ball=Ball(0.2)))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of a few kilobytes, so that every byte of it can be damaged in turn."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    return save(entropy(model, torch.tensor([[0.2, 0.9]]), [1]), tmp_path / "small.safetensors")


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_a_file_with_any_one_byte_changed_is_refused_by_name(mask, small):
    """Also where the byte belongs to the record, not to a tensor: a changed eps is a changed result."""
    content = small.read_bytes()
    for i in range(len(content)):
        small.write_bytes(content[:i] + bytes([content[i] ^ mask]) + content[i + 1 :])
        with pytest.raises(ValueError, match=r"path .*small\.safetensors'"):
            load(small)


def test_a_file_that_ends_early_or_goes_on_is_refused_by_name(small):
    content = small.read_bytes()
    for length in range(0, len(content), 7):
        small.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"path .*small\.safetensors'.*damaged"):
            load(small)
    small.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"path .*small\.safetensors'.*damaged"):
        load(small)


FOREIGN = {
    "empty": b"",
    "text": b"a text, and a long one so that it could hold a header",
    "zip": b"PK\x03\x04" + bytes(1000),
    "weights": safetensors.torch.save({"weight": torch.ones(3)}),
    "weights with metadata": safetensors.torch.save({"weight": torch.ones(3)}, {"format": "pt"}),
    "no result": safetensors.torch.save({}, {"format": store.FORMAT}),
    "half a result": safetensors.torch.save({}, {"format": store.FORMAT, "result": "[", "sha256": ""}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused_by_name(content, tmp_path):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path .*foreign\.safetensors'"):
        load(path)


def test_a_result_with_other_fields_than_today_s_is_refused_by_name(small, monkeypatch):
    today = dict(store.RESULTS)
    fields = [(field.name, field.type) for field in dataclasses.fields(today["Entropy"])]
    for others in ([*fields, ("new", int)], fields[1:]):
        monkeypatch.setattr(store, "RESULTS", today | {"Entropy": dataclasses.make_dataclass("Entropy", others)})
        with pytest.raises(ValueError, match=r"path .*small\.safetensors' was written by another version of gradlens"):
            load(small)
    monkeypatch.setattr(store, "RESULTS", {"Made": today["Made"]})
    with pytest.raises(ValueError, match=r"another version of gradlens, whose results have other fields: 'Entropy'"):
        load(small)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path .*nowhere' is not a file, expected a result"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("thing", [{"a": 1}, torch.ones(3), None, Ball])
def test_only_results_are_saved(thing, tmp_path):
    with pytest.raises(ValueError, match=r"result is a .*, expected one of Ball, Curve, Distances"):
        save(thing, tmp_path / "thing")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize(
    "error", [OSError("no space left on device"), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_a_write_that_fails_leaves_nothing_behind_and_the_old_file_in_place(call, error, monkeypatch, small):
    old = small.read_bytes()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(store.os, call, fail)
    for path in (small, small.parent / "new"):
        with pytest.raises(type(error)):
            save(Ball(), path)
    monkeypatch.undo()
    assert os.listdir(small.parent) == [small.name]
    assert small.read_bytes() == old


def test_a_second_save_replaces_the_first(small):
    save(Ball(0.25), small)
    assert load(small) == Ball(0.25)
