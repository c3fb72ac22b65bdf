"""The same numbers for any batch size, any order and any container; a model that does not fit is halved."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradlens as gl
from gradlens.ball import Ball
from gradlens.batches import add_up, fitting, join
from gradlens.provenance import Made
from tests.analytic import Wrapped

BALL = Ball(0.1)
MEASUREMENTS = {
    "pgd": lambda m, x, y, **k: gl.pgd(m, x, y, BALL, steps=4, restarts=2, generator=_seed(), **k),
    "stability": lambda m, x, y, **k: gl.stability(m, x, y, BALL, steps=3, generator=_seed(), **k),
    "gradients": lambda m, x, y, **k: gl.gradients(m, x, y, BALL, jacobian=True, generator=_seed(), **k),
    "entropy": gl.entropy,
    "input_plane": lambda m, x, y, **k: gl.input_plane(m, x, y, BALL, points=5, steps=3, generator=_seed(), **k),
    "input_path": lambda m, x, y, **k: gl.input_path(m, x, y, BALL, steps=3, points=2, **k),
}


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def tensors(result: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors of a result, by the name of their field."""
    found = {}
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        for i, item in enumerate(value if isinstance(value, tuple) else (value,)):
            name = f"{path}{field.name}{i}"
            if isinstance(item, Tensor):
                found[name] = item
            elif dataclasses.is_dataclass(item) and not isinstance(item, Ball | Made):
                found |= tensors(item, f"{name}.")
    return found


def same(a: Any, b: Any) -> None:
    first, second = tensors(a), tensors(b)
    assert first.keys() == second.keys() and first
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, equal_nan=True, rtol=1e-9, atol=1e-9, msg=name)


@pytest.fixture
def labels(images: Tensor) -> Tensor:
    return torch.arange(len(images)) % 4


@pytest.mark.parametrize("name", MEASUREMENTS)
@pytest.mark.parametrize("batch", [1, 4])
def test_batch_size_changes_no_number(name, batch, cnn, images, labels) -> None:
    measure = MEASUREMENTS[name]
    whole, cut = measure(cnn, images, labels), measure(cnn, images, labels, batch=batch)
    same(whole, cut)
    assert whole.made.data == cut.made.data


@pytest.mark.parametrize("name", ["pgd", "stability", "gradients"])
def test_order_changes_no_number(name, cnn, images, labels) -> None:
    order = torch.tensor([2, 0, 5, 1, 4, 3])
    whole, turned = (MEASUREMENTS[name](cnn, images[o], labels[o]) for o in (torch.arange(6), order))
    for field, value in tensors(whole).items():
        other = tensors(turned)[field]
        if field.endswith("direction_sum0"):
            continue  # a sum over samples has no sample axis
        axis = value.shape.index(6)
        torch.testing.assert_close(other, value.index_select(axis, order), equal_nan=True, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_loader_an_array_and_a_tensor_give_the_same(name, cnn, images, labels) -> None:
    measure = MEASUREMENTS[name]
    plain = measure(cnn, images, labels)
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    same(plain, measure(cnn, loader, None))
    same(plain, measure(cnn, images.numpy(), labels.tolist()))


def test_a_loader_of_images_alone_is_labelled_by_the_model(cnn, images) -> None:
    trace = gl.pgd(cnn, [images[:4], images[4:]], None, BALL, steps=2)
    assert torch.equal(trace.labels, gl.predict(cnn, images))


class Small(Wrapped):
    """Has no room for more than so many images."""

    def __init__(self, inner: nn.Module, room: int, error: type[Exception]) -> None:
        super().__init__(inner)
        self.room, self.error = room, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return self.inner(x)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, MemoryError])
def test_what_does_not_fit_is_halved_and_said(error, cnn, images, labels) -> None:
    with pytest.warns(RuntimeWarning, match="out of memory with 6 samples at a time; going on with 3"):
        cut = gl.pgd(Small(cnn, 3, error), images, labels, BALL, steps=3)
    same(gl.pgd(cnn, images, labels, BALL, steps=3), cut)


@pytest.mark.parametrize("name", ["pgd", "apgd", "stability", "pgd_targeted", "apgd_targeted"])
def test_an_attack_of_many_steps_takes_fewer_samples_at_a_time(name, cnn, images, labels, monkeypatch) -> None:
    """What it keeps of each step would else grow with them: here two samples of seven steps fit, three do not."""
    whole = getattr(gl, name)(cnn, images, labels, BALL, steps=7, generator=_seed())
    seen: list[int] = []
    monkeypatch.setattr("gradlens.batches.KEPT", 3 * 7 * images[0].nbytes - 1)
    with cnn.register_forward_pre_hook(lambda module, given: seen.append(len(given[0]))):
        parts = getattr(gl, name)(cnn, images, labels, BALL, steps=7, generator=_seed())
    assert max(seen) == 2 and len(images) > 2
    same(whole, parts)
    with cnn.register_forward_pre_hook(lambda module, given: seen.append(len(given[0]))):
        getattr(gl, name)(cnn, images, labels, BALL, steps=2, generator=_seed())
    assert max(seen) == 6


def test_what_is_summed_over_samples_does_not_grow_with_them(cnn, images, labels, monkeypatch) -> None:
    """Of ten chunks in thirty parts one sum is there at a time, also of a result within a result."""
    most = 0

    def counted(parts: list[Any]) -> None:
        nonlocal most
        add_up(parts)
        most = max(most, sum("direction_sum" in vars(getattr(part, "trace", part)) for part in parts))

    monkeypatch.setattr("gradlens.batches.add_up", counted)
    x, y = images.repeat(5, 1, 1, 1), labels.repeat(5)
    whole = gl.stability(cnn, x, y, BALL, steps=3, generator=_seed())
    monkeypatch.setattr("gradlens.batches.KEPT", 3 * images[0].nbytes)
    same(whole, gl.stability(cnn, x, y, BALL, steps=3, batch=3, generator=_seed()))
    assert most == 1


@pytest.mark.parametrize(("size", "fits"), [(256, 8), (200, 7), (5, 5), (1, 1)])
def test_a_chunk_is_halved_until_it_fits(size, fits, images, monkeypatch) -> None:
    monkeypatch.setattr("gradlens.batches.KEPT", 10 * 4 * images[0].nbytes)
    assert fitting(size, 4, images) == fits
    assert fitting(size, 0, images) == size
    assert fitting(3, 10**9, images) == 1


def test_a_single_sample_that_does_not_fit_is_an_error(cnn, images, labels) -> None:
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(RuntimeWarning, match="out of memory"):
        gl.pgd(Small(cnn, 0, torch.OutOfMemoryError), images[:2], labels[:2], BALL, steps=3)


def test_other_errors_of_the_model_are_not_taken_for_memory(cnn, images, labels) -> None:
    broken = Wrapped(nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match="does not go through the model"):
        gl.pgd(broken, images, labels, BALL)


def test_messages_count_samples_as_the_caller_does(cnn, images, labels) -> None:
    bad = images.clone()
    bad[5, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="sample 5"):
        gl.pgd(cnn, bad, labels, BALL, batch=2)
    with pytest.raises(ValueError, match="sample 5"):
        gl.pgd(cnn, DataLoader(TensorDataset(bad, labels), batch_size=2), None, BALL)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([], None, "x yields no images"),
        ([(torch.zeros(1, 2, 5, 5), [0], 1)], None, "x yields batches of 3 parts"),
        ([torch.zeros(1, 2, 5, 5)], [0], "x is a list, expected a tensor or array of images .* beside y"),
    ],
)
def test_bad_containers_are_refused_by_name(x, y, message, cnn) -> None:
    with pytest.raises(ValueError, match=message):
        gl.entropy(cnn, x, y)


def test_batch_below_one_is_refused(cnn, images, labels) -> None:
    with pytest.raises(ValueError, match="batch is 0"):
        gl.pgd(cnn, images, labels, BALL, batch=0)


def test_probabilities_instead_of_logits_are_refused(cnn, images) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        gl.stability(nn.Sequential(cnn, nn.Softmax(1)), images)
    gl.stability(nn.Sequential(cnn, nn.LogSoftmax(1)), images, steps=1)  # log-probabilities are logits


class Mixing(Wrapped):
    """Subtracts the mean image of the batch it happens to be in."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - 0.1 * x.mean(0, keepdim=True))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, track_running_stats=False).double(), None])
def test_a_model_that_mixes_the_samples_of_a_batch_is_refused(norm, cnn, images) -> None:
    with pytest.raises(ValueError, match="model mixes the samples of a batch"):
        gl.stability(Mixing(cnn) if norm is None else nn.Sequential(norm, cnn), images)


def test_a_loss_that_is_already_a_mean_is_refused(cnn, images, labels) -> None:
    for measure in (gl.pgd, gl.stability, gl.input_line):
        with pytest.raises(ValueError, match=r"loss returns shape \(\) for \d+ samples, expected one value a sample"):
            measure(cnn, images, labels, BALL, loss=nn.functional.cross_entropy)


@pytest.mark.parametrize("knob", [{"step_size": -1.0}, {"step_size": float("nan")}, {"momentum": -1.0}, {"steps": 0}])
def test_stability_refuses_the_knobs_that_pgd_refuses(knob, cnn, images) -> None:
    (name,) = knob
    for measure in (gl.pgd, gl.stability):
        with pytest.raises(ValueError, match=f"{name} is {knob[name]}"):
            measure(cnn, images, None, BALL, **knob)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_plane_needs_a_step(steps, cnn, images) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}"):
        gl.input_plane(cnn, images, None, BALL, steps=steps)


@pytest.mark.parametrize("bad", [torch.full((2, 2, 5, 5), 1.5).double(), torch.zeros(2, 3).double()])
def test_predict_has_the_door(bad, cnn) -> None:
    with pytest.raises(ValueError, match=r"x spans|x of shape"):
        gl.predict(cnn, bad)


def test_a_model_built_in_inference_mode_is_refused_untouched(images) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).double()
    with pytest.raises(ValueError, match="inference_mode"):
        gl.stability(model, images)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_summed_fields_add_up_and_shared_ones_stay(cnn, images, labels) -> None:
    parts = [gl.pgd(cnn, images[i], labels[i], BALL, steps=2) for i in (slice(0, 2), slice(2, 6))]
    total = parts[0].direction_sum + parts[1].direction_sum
    assert torch.equal(join(parts).direction_sum, total)  # which uses the parts up
    surface = gl.input_line(cnn, images, labels, BALL, points=5, batch=2)
    assert torch.equal(surface.alpha, torch.tensor([-3, -1.5, 0, 1.5, 3], dtype=torch.float64))
    assert np.array_equal(surface.loss.shape, (5, 1, 6))
