"""Numbers that go wrong: not finite, subnormal, rounded, constant, alone. What is undefined is nan, never a number."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball
from gradlens.masking import surrogate, tries
from tests.analytic import Constant, Plane, Wrapped, smooth_cnn, snapshot
from tests.test_batches import Small

BALL = Ball(0.1)
Call = Callable[..., Any]
TRACES: dict[str, Call] = {
    "fgsm": lambda model, x, y: gl.fgsm(model, x, y, BALL),
    "pgd": lambda model, x, y: gl.pgd(model, x, y, BALL, steps=3),
    "apgd": lambda model, x, y: gl.apgd(model, x, y, BALL, steps=5),
    "pgd_targeted": lambda model, x, y: gl.pgd_targeted(model, x, y, BALL, steps=3),
    "apgd_targeted": lambda model, x, y: gl.apgd_targeted(model, x, y, BALL, steps=5),
}
QUERIES: dict[str, Call] = {
    "square": lambda model, x, y: gl.square(model, x, y, BALL, queries=20),
    "nes": lambda model, x, y: gl.nes(model, x, y, BALL, queries=30, population=4),
    "rays": lambda model, x, y: gl.rays(model, x, y, BALL, queries=20),
    "hopskipjump": lambda model, x, y: gl.hopskipjump(model, x, y, BALL, queries=30),
}
STILL: dict[str, Call] = {
    "entropy": gl.entropy,
    "gradients": lambda model, x, y: gl.gradients(model, x, y, BALL),
}
PER_SAMPLE: dict[str, Call] = {
    **TRACES,
    **QUERIES,
    **STILL,
    "minimum_norm": lambda model, x, y: gl.minimum_norm(model, x, y, BALL, steps=5),
    "stability": lambda model, x, y: gl.stability(model, x, y, BALL, steps=3),
    "input_plane": lambda model, x, y: gl.input_plane(model, x, y, BALL, points=3, steps=2),
    "input_path": lambda model, x, y: gl.input_path(model, x, y, BALL, points=2, steps=2),
    "spectrum": lambda model, x, y: gl.spectrum(model, x, y, of="inputs", k=2, steps=5, probes=2),
}
ALL: dict[str, Call] = {
    **PER_SAMPLE,
    "robustness": lambda model, x, y: gl.robustness(model, x, y, BALL, attacks="quick"),
    "curve": lambda model, x, y: gl.curve(model, x, y, BALL, values=[0.05, 0.1], steps=2),
    "transfer": lambda model, x, y: gl.transfer({"a": model}, {"a": model}, x, y, BALL),
    "weight_line": lambda model, x, y: gl.weight_line(
        model, x, y, BALL, points=3, metrics=("loss", "attacked"), generator=torch.Generator().manual_seed(0)
    ),
    "spectrum of weights": lambda model, x, y: gl.spectrum(model, x, y, k=2, steps=5, probes=2),
    "planted": lambda model, x, y: gl.planted(model, x, y, BALL, attacks=[gl.Attack("pgd", gl.pgd, {"steps": 3})]),
    "masking": lambda model, x, y: gl.masking(model, x, y, BALL),
}
LABELS = [0, 1, 2, 3, 0]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 2, 5, 5)


def calls(table: dict[str, Call]) -> Any:
    return pytest.mark.parametrize("call", table.values(), ids=table)


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.full_like(grads[0], torch.nan)


class Poisoned(Wrapped):
    """Finite logits, and a backward pass that is nan."""

    def forward(self, x: Tensor) -> Tensor:
        return _Poison.apply(self.inner(x))


@calls(TRACES)
def test_attacks_along_a_nan_gradient_stay_where_they_are_and_say_so(call, x):
    model = Poisoned(smooth_cnn().float())
    trace = call(model, x, LABELS)
    assert trace.undefined.float().mean() == 1
    assert trace.grad_norm.isnan().all()
    assert trace.cosine.isnan().all()
    assert torch.equal(trace.adversarial, x)
    assert torch.equal(trace.success, model(x).argmax(1) != torch.tensor(LABELS))


def test_a_nan_gradient_has_no_norm_no_slope_and_no_curvature(x):
    model = Poisoned(smooth_cnn().float())
    static = gl.gradients(model, x, LABELS, BALL)
    for field in ("norm_l1", "norm_l2", "norm_linf", "saturation", "curvature", "signal_to_noise"):
        assert getattr(static, field).isnan().all(), field
    dynamic = gl.stability(model, x, LABELS, BALL, steps=3)
    assert dynamic.local_cosine.isnan().all()
    plane = gl.input_plane(model, x, LABELS, BALL, directions="gradient", points=3, steps=2)
    assert plane.loss.isnan().all()
    for of in ("weights", "inputs"):
        spectrum = gl.spectrum(model, x, LABELS, of=of, k=1, steps=3, probes=2)
        assert spectrum.eigenvalues.isnan().all()
        assert not spectrum.converged.any()


@calls(QUERIES)
def test_attacks_without_gradients_do_not_mind_a_nan_gradient(call, x):
    sound = smooth_cnn().float()
    torch.manual_seed(0)
    expected = call(sound, x, LABELS)
    torch.manual_seed(0)
    found = call(Poisoned(sound), x, LABELS)
    assert torch.equal(found.adversarial, expected.adversarial)
    assert torch.equal(found.queries, expected.queries)


@calls(ALL)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_every_call(call, value, x):
    model = smooth_cnn().float()
    with torch.no_grad():
        model[-1].bias[2] = value
    state = snapshot(model)
    with pytest.raises(ValueError, match=r"model returns NaN or infinite logits for 5 of 5 samples"):
        call(model, x, LABELS)
    assert snapshot(model) == state


@calls(ALL)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_pixels_that_are_not_finite_are_refused_by_every_call(call, value, x):
    x[3, 1, 2, 2] = value
    with pytest.raises(ValueError, match=r"x holds NaN or infinity in 1 of 5 samples.*sample 3; expected finite"):
        call(smooth_cnn().float(), x, LABELS)


@calls(ALL)
def test_no_images_are_refused_by_every_call(call, x):
    with pytest.raises(ValueError, match=r"x has shape \(0, 2, 5, 5\), expected a batch of at least one"):
        call(smooth_cnn().float(), x[:0], [])


@calls(ALL)
def test_one_class_is_refused_by_every_call(call, x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 1))
    with pytest.raises(ValueError, match=r"model returns shape .*, expected logits .*at least two classes"):
        call(model, x, [0] * 5)


MOST = {name: call for name, call in ALL.items() if name != "masking"}  # which wants more than five


@calls(MOST)
def test_what_does_not_fit_into_memory_is_halved_and_the_same_comes_out(call):
    """Room for no more than the 16 images that are looked at first."""
    model, x = smooth_cnn(), torch.rand(20, 2, 5, 5, dtype=torch.float64)
    torch.manual_seed(0)
    expected = call(model, x, 4 * LABELS).frame()
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match=r"out of memory with \d+ samples at a time; going on with \d+"):
        found = call(Small(model, 16, torch.OutOfMemoryError), x, 4 * LABELS).frame()
    timed = {"seconds", "forwards", "backwards"}  # a pass that failed was paid for
    for column in set(expected.select_dtypes("number")) - timed:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-6, atol=1e-9, err_msg=column)


@calls({name: ALL[name] for name in ("weight_line", "input_plane", "square")})
def test_what_does_not_fit_once_is_not_tried_again_and_again(call):
    """A grid measures the same images in each of its cells: of the same size twice at most, at the door and within."""
    model, x = Small(smooth_cnn(), 16, torch.OutOfMemoryError), torch.rand(40, 2, 5, 5, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="out of memory") as said:
        call(model, x, 8 * LABELS)
    assert max(Counter(str(one.message) for one in said).values()) <= 2


def test_a_verdict_that_does_not_fit_into_memory_is_the_same_verdict(monkeypatch):
    """Of a plane, with attacks as short as they get: each stage of `masking` has the whole batch in the model."""
    monkeypatch.setitem(tries.EFFORTS, "quick", tries.Effort(3, 4, 6, 1, 3, 2, 2, 5, 5, 5, 2))
    monkeypatch.setattr(surrogate, "STEPS", 5)
    mean = 0.5 + 0.2 * torch.linspace(-1, 1, 40)  # of the pixels; none lies on the boundary, at 1/2
    x, y = mean[:, None, None, None].expand(-1, 1, 2, 2).clone(), (mean > 0.5).long()
    plane = Plane(torch.full((4,), 0.25), 0.5, 10.0)
    whole, parts = (torch.Generator().manual_seed(0) for _ in range(2))
    expected = gl.masking(plane, x, y, BALL, surrogates="distil", generator=whole)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        found = gl.masking(Small(plane, 16, torch.OutOfMemoryError), x, y, BALL, surrogates="distil", generator=parts)
    assert torch.equal(found.robust, expected.robust)
    assert (found.verdict, found.layers) == (expected.verdict, expected.layers)
    assert found.evidence == expected.evidence


@calls(PER_SAMPLE)
def test_a_sample_alone_is_measured_as_among_others(call, x):
    model = smooth_cnn().float()
    torch.manual_seed(0)
    together = call(model, x, LABELS).frame()
    torch.manual_seed(0)
    alone = call(model, x[:1], LABELS[:1]).frame()
    first = together[together["sample"] == 0].reset_index(drop=True)
    assert len(alone) == len(first) > 0
    for column in alone.select_dtypes("number"):
        np.testing.assert_allclose(alone[column], first[column], rtol=2e-3, atol=1e-5, err_msg=column)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@calls(STILL)
def test_other_precisions_agree_with_float32_to_their_rounding(call, dtype, x):
    """Forward and backward through four layers: a few hundred roundings of 2^-8 to 2^-24, most of which cancel."""
    model = smooth_cnn().float()
    torch.manual_seed(0)
    expected = call(model, x, LABELS).frame()
    torch.manual_seed(0)
    found = call(smooth_cnn().to(dtype), x, LABELS).frame()
    assert list(found.columns) == list(expected.columns)
    tolerance = 16 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    # a difference of two near values, or a share of exact zeros, keeps no digit of its rounding
    noisy = {"curvature", "linearity", "gradalign", "signal_to_noise", *(c for c in expected if c.startswith("zero_"))}
    compared = [c for c in expected.select_dtypes("number") if c not in noisy]
    assert len(compared) >= 4
    for column in compared:
        np.testing.assert_allclose(
            found[column], expected[column], rtol=tolerance, atol=tolerance, err_msg=column, equal_nan=True
        )


@calls({**STILL, "fgsm": TRACES["fgsm"], "input_path": PER_SAMPLE["input_path"]})
def test_subnormal_pixels_are_nearly_black_ones(call, x):
    """1e-42 is below the smallest normal float32, and moves no logit of a smooth network."""
    model, black = smooth_cnn().float(), torch.zeros_like(x)
    torch.manual_seed(0)
    expected = call(model, black, LABELS).frame()
    torch.manual_seed(0)
    found = call(model, black + 1e-42, LABELS).frame()
    # only a black pixel lies at the end of the box; random points belong to the pixels' bytes
    other = {"on_surface", "gradalign", "signal_to_noise", "linearity_cross_entropy", "linearity_margin"}
    for column in set(expected.select_dtypes("number")) - other:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-4, atol=1e-5, err_msg=column)


def test_a_constant_model_has_a_zero_gradient_without_direction(x):
    model = Constant([0.0, 1.0, 2.0, 3.0])
    static = gl.gradients(model, x, LABELS, BALL)
    assert (static.norm_l2[:2] == 0).all()
    assert static.saturation.isnan().all()
    dynamic = gl.stability(model, x, LABELS, BALL, steps=3)
    assert (dynamic.trace.grad_norm == 0).all()
    assert dynamic.trace.undefined.float().mean() == 1
    assert dynamic.trace.cosine.isnan().all()
    assert dynamic.local_cosine.isnan().all()
    broken = gl.robustness(model, x, LABELS, BALL, attacks="quick")
    assert torch.equal(broken.robust, torch.tensor(LABELS) == 3)
    assert torch.equal(broken.adversarial[broken.robust], x[broken.robust])
    inputs = gl.spectrum(model, x, LABELS, of="inputs", k=1, steps=3, probes=2)
    assert (inputs.eigenvalues == 0).all()
