"""Measurements in parts are the whole one, to the bit, and what is not the same in parts is refused."""

import inspect
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradlens
from gradlens import Ball
from training import shards
from training.data import digits
from training.engines import Engine
from training.models import build
from training.shards import CALLS, sharded

SMALL: dict[str, dict[str, Any]] = {
    "stability": {"steps": 3, "radii": (0.5,)}, "pgd": {"steps": 3, "restarts": 2}, "apgd": {"steps": 4},
    "pgd_targeted": {"steps": 3}, "apgd_targeted": {"steps": 4}, "minimum_norm": {"steps": 4},
    "square": {"queries": 20}, "nes": {"queries": 110}, "rays": {"queries": 20}, "hopskipjump": {"queries": 60},
    "input_path": {"steps": 3},
}  # fmt: skip


class Here(Executor):
    """Runs tasks at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "pool", lambda self: Here())


@pytest.fixture
def samples(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = 0.05 + 0.9 * torch.rand(11, 2, 5, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (11,), generator=generator)


def content(result: Any, folder: Path) -> bytes:
    """All that a result says, its record included: the bytes of its file."""
    return gradlens.save(result, folder / "result").read_bytes()


def normed() -> tuple[nn.Module, Tensor, Tensor]:
    """A network with batch norms, which are folded away while it is measured, and 75 images for it."""
    torch.manual_seed(1)
    split = digits().train
    model = build("cnn_small", classes=10, shape=(1, 8, 8), mean=(0.3,), std=(0.3,))
    model(split.x[:200])
    return model.eval(), *split.at(torch.arange(75))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("count", "kept"), [(2, 2**26), (None, 2**26), (None, 700)])
def test_parts_are_the_whole(name, count, kept, here, cnn, samples, tmp_path, monkeypatch):
    """Also in the record, in what is left of the caller's random numbers, and where a chunk's steps do not fit."""
    monkeypatch.setattr("gradlens.batches.KEPT", kept)
    call, options = getattr(gradlens, name), dict(SMALL.get(name, {}))
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    given = {"generator": first} if "generator" in inspect.signature(call).parameters else {}
    x, y = samples
    whole = call(cnn, x, y, ball=Ball(0.1), batch=4, **options, **given)
    parts = sharded(call, cnn, x, y, Ball(0.1), batch=4, shards=count, generator=second, **options)
    assert content(parts, tmp_path) == content(whole, tmp_path)
    assert torch.equal(first.get_state(), second.get_state())


def test_the_global_random_numbers_serve_where_no_generator_is_given(here, cnn, samples, tmp_path):
    torch.manual_seed(5)
    whole, left = gradlens.stability(cnn, *samples, batch=4, steps=2), torch.rand(3)
    torch.manual_seed(5)
    parts = sharded(gradlens.stability, cnn, *samples, batch=4, steps=2)
    assert content(parts, tmp_path) == content(whole, tmp_path)
    assert torch.equal(torch.rand(3), left)


@pytest.mark.parametrize("labelled", [True, False])
def test_arrays_loaders_and_missing_labels_are_as_in_the_whole(labelled, here, cnn, samples, tmp_path):
    x, y = samples[0], samples[1] if labelled else None
    whole = gradlens.gradients(cnn, x, y, batch=3, generator=torch.Generator().manual_seed(2))
    again = torch.Generator().manual_seed(2)
    parts = sharded(gradlens.gradients, cnn, x.numpy(), None if y is None else y.tolist(), batch=3, generator=again)
    assert content(parts, tmp_path) == content(whole, tmp_path)
    loader = [(x[i : i + 3], y[i : i + 3]) if labelled else x[i : i + 3] for i in range(0, len(x), 3)]
    again = torch.Generator().manual_seed(2)
    parts = sharded(gradlens.gradients, cnn, loader, shards=2, generator=again)
    assert content(parts, tmp_path) == content(whole, tmp_path)


def test_folded_batch_norms_and_the_callers_model(here, tmp_path):
    model, x, y = normed()
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    whole = gradlens.stability(model, x, y, Ball(0.1), batch=32, steps=3, generator=torch.Generator().manual_seed(0))
    parts = sharded(
        gradlens.stability, model, x, y, Ball(0.1), batch=32, steps=3, generator=torch.Generator().manual_seed(0)
    )
    assert whole.made.folded > 0
    assert content(parts, tmp_path) == content(whole, tmp_path)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        (gradlens.spectrum, {}, "call is spectrum, expected one whose results join over samples: stability, "),
        (gradlens.robustness, {}, "call is robustness, expected one whose"),
        (print, {}, "call is print, expected one whose"),
        (gradlens.pgd, {"shards": 0}, "shards is 0, expected at least 1"),
        (gradlens.pgd, {"stepz": 3}, "stepz is no option of pgd, expected one of ball, batch"),
        (gradlens.pgd, {"targets": [0] * 11}, "targets is given, expected options that are the same for all samples"),
        (gradlens.pgd, {"samples": 2}, "samples is 2, expected 1"),
        (gradlens.pgd, {"steps": 0}, "steps is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_put_together_is_refused_by_name(call, options, message, here, cnn, samples):
    with pytest.raises(ValueError, match=message):
        sharded(call, cnn, *samples, batch=4, **options)


def test_bad_samples_are_named_as_the_whole_call_names_them(here, cnn, samples):
    x, y = samples[0].clone(), samples[1]
    x[9, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="the first of them sample 9"):
        sharded(gradlens.pgd, cnn, x, y, batch=4)


def test_a_model_that_does_not_pickle_is_refused_before_anything_runs(cnn, samples):
    cnn.register_forward_hook(lambda module, args, out: out)
    with pytest.raises(ValueError, match="model cannot be sent to other processes"):
        sharded(gradlens.pgd, cnn, *samples)


@pytest.mark.slow
def test_processes_of_this_machine_give_the_same(tmp_path):
    model, x, y = normed()
    whole = gradlens.stability(model, x, y, Ball(0.1), batch=32, generator=torch.Generator().manual_seed(0))
    parts = sharded(
        gradlens.stability, model, x, y, Ball(0.1), batch=32, generator=torch.Generator().manual_seed(0),
        engine=Engine(jobs=2),
    )  # fmt: skip
    assert content(parts, tmp_path) == content(whole, tmp_path)
    with pytest.raises(ValueError, match="steps is 0"):
        sharded(gradlens.pgd, model, x, y, steps=0, engine=Engine(jobs=1))


def test_calls_are_functions_of_the_library():
    assert all(callable(getattr(gradlens, name)) for name in shards.CALLS)
