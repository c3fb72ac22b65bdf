"""The verdict on a model's gradients: each row of evidence against what is known on paper, and the rules themselves."""

import dataclasses
import importlib
import json
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball, Evidence, Masking, masking, plots
from gradlens.draws import Draws, keys
from gradlens.intervals import wilson
from gradlens.masking.evidence import LARGE, TESTS, weigh
from gradlens.masking.looks import look
from gradlens.masking.subject import introduced
from gradlens.masking.surrogate import distilled
from gradlens.masking.tries import EFFORTS
from gradlens.masking.verdict import judge
from tests.analytic import Binary, Plane, Wrapped, snapshot

BALL = Ball(0.1)
ROWS = [test.name for test in TESTS]


@pytest.fixture
def x() -> Tensor:
    """64 images of 1 x 2 x 2, of mean 0.3 to 0.7, none at 0.1 from 0.5, where the plane below has its boundary."""
    offset = (torch.arange(32) + 0.5) * 0.2 / 32
    mean = 0.5 + torch.cat([-offset.flip(0), offset])
    return mean[:, None, None, None].expand(-1, 1, 2, 2).clone()


@pytest.fixture
def y(x: Tensor) -> Tensor:
    return (x.flatten(1).mean(1) > 0.5).long()


def plane(scale: float = 10.0) -> Plane:
    """Margin scale (mean pixel - 1/2): at distance |mean - 1/2| under linf."""
    return Plane(torch.full((4,), 0.25), 0.5, scale)


def verdict(model: nn.Module, x: Tensor, y: Tensor, **options) -> Masking:
    return masking(model, x, y, BALL, generator=torch.Generator().manual_seed(0), **options)


def test_on_a_plane_every_attack_finds_what_there_is_and_nothing_is_suspect(x, y):
    model = plane()
    before = snapshot(model)
    result = verdict(model, x, y)
    beyond = (x.flatten(1).mean(1) - 0.5).abs() > BALL.eps
    assert torch.equal(result.robust, beyond)  # the distance to a plane, in closed form
    assert torch.equal(result.naive, beyond)
    assert result.right.all()
    assert (result.verdict, result.layers, result.gap[0]) == ("usable", (), 0.0)
    assert snapshot(model) == before
    assert [row.name for row in result.evidence] == ROWS
    broken = ~result.robust
    assert BALL.contains(result.adversarial, x).all()
    assert (model(result.adversarial).argmax(1) != y)[broken].all()
    assert torch.equal(result.adversarial[~broken], x[~broken])


def test_confidence_beyond_float32_is_counted_sample_by_sample(x, y):
    # with logits (0, z), float32 rounds p - 1 to 0 for label 1 where e^-margin < 2^-25, and p for label 0 only where
    # e^-margin < 2^-150
    scale = 1000.0
    size = scale * (x.flatten(1).mean(1) - 0.5).abs()
    result = verdict(plane(scale), x, y)
    lost = size > torch.where(y == 1, 25 * math.log(2), 150 * math.log(2))
    assert result.row("underflow").value == float(lost.double().mean())
    # and 1 - p below 6e-8 where the margin is above 16.6
    assert result.row("saturation").value == float((size > -math.log(6e-8)).double().mean())
    assert result.best_accuracy == float((size > scale * BALL.eps).double().mean())
    assert result.layers[:1] == ("the loss saturates",)


def test_size_follows_confidence_where_the_closed_form_says_so(x, y):
    # per unit of scale the size is 1 - p = 1 / (1 + e^(s m)); its ratio between s = 10 and 0.1 is below a tenth
    scale = 10.0
    m = scale * (x.flatten(1).mean(1) - 0.5).abs().double()
    ratio = (1 + (0.1 * m).exp()) / (1 + (10 * m).exp())
    assert verdict(plane(scale), x, y).row("size follows confidence").value == pytest.approx(
        (ratio < 0.1).double().mean()
    )


class Clipped(nn.Module):
    """Three logits: of the offset k (mean - 1/2), its negative and its double, cut off at -1 and 1; and -2."""

    k = 15.0

    def forward(self, x: Tensor) -> Tensor:
        offset = self.k * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([(-offset).clamp(-1, 1), (2 * offset).clamp(-1, 1), 0 * offset - 2], 1)


def seen(model: nn.Module, x: Tensor, y: Tensor, ball: Ball = BALL) -> dict[str, Tensor]:
    """The marks of a look alone."""
    streams = {name: Draws.of(0, keys(x)) for name in ("near", "unstable")}
    return look(introduced(model, x, y, ball, 1), x, y, ball, streams)


def test_a_logit_is_flat_where_it_is_cut_off_and_the_other_is_not(x, y):
    offset = Clipped.k * (x.flatten(1).mean(1) - 0.5).abs()
    mark = seen(Clipped(), x, y)["pinned"]
    assert torch.equal(mark == 1, (offset > 0.5) & (offset < 1))
    assert torch.equal(mark.isnan(), offset > 1)  # both are
    assert torch.equal(mark == 0, offset < 0.5)
    for harmless in (plane(), nn.Sequential(Clipped(), nn.LogSoftmax(1))):  # a constant 0 beside z; shares, logarithms
        assert seen(harmless, x, y)["pinned"].isnan().all()


class Wrong(torch.autograd.Function):
    """The identity, whose backward pass multiplies by a factor."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class Bent(Wrapped):
    """A plane whose gradient is multiplied by a factor on its way back."""

    def __init__(self, factor: float) -> None:
        super().__init__(plane())
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(Wrong.apply(x, self.factor))


@pytest.mark.parametrize(("factor", "share"), [(1.2, 0.0), (3.0, 1.0), (-1.0, 1.0)])
def test_a_backward_pass_that_is_not_the_derivative_is_met_with_differences(x, y, factor, share):
    assert verdict(Bent(factor), x, y).row("backward is not the slope").value == share


def test_a_gradient_that_points_back_is_masked_and_said_to_be_wrong(x, y):
    result = verdict(Bent(-1.0), x, y)
    assert result.naive_accuracy == 1.0
    # points of random search and Square reach every corner of four pixels
    assert result.best_accuracy == 0.5
    assert (result.verdict, result.layers) == ("masked", ("the backward pass is not the derivative",))


class Detached(Wrapped):
    """Right answers, no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


class Broken(Wrapped):
    """A backward pass that raises."""

    def forward(self, x: Tensor) -> Tensor:
        answer = self.inner(x)
        answer.register_hook(self.fail) if answer.requires_grad else None
        return answer

    @staticmethod
    def fail(grad: Tensor) -> Tensor:
        raise NotImplementedError("no backward here")


class Undefined(Wrapped):
    """A gradient that is no number, sqrt at 0, in an answer that is one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + (0 * x).sqrt())


class Bytes(Wrapped):
    """A plane of pixels in 0..255."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x / 255)


def test_how_far_predictions_are_looked_at_is_a_share_of_the_pixel_box(x, y):
    shares = [
        seen(model, images, y, ball)["unstable"].mean().item()
        for model, images, ball in ((plane(), x, BALL), (Bytes(plane()), 255 * x, Ball(25.5, high=255.0)))
    ]
    assert 0.1 < shares[0] < 0.9
    assert shares[1] == pytest.approx(shares[0], abs=0.1)  # other images get other draws


class Tallied(Wrapped):
    """Counts the images that pass: with a gradient, one in float64 for two, and without."""

    gradients = queries = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            type(self).gradients += len(x) * (2 if x.dtype == torch.float64 else 1)
        else:
            type(self).queries += len(x)
        return self.inner(x)


def test_what_a_budget_is_said_to_take_is_what_it_takes_where_nothing_breaks(x, y):
    Tallied.gradients = Tallied.queries = 0
    still = masking(Tallied(plane()), x[:40], y[:40], Ball(0.001), generator=torch.Generator().manual_seed(0))
    assert still.best_accuracy == 1.0
    effort = EFFORTS["quick"]
    without_dlr = effort.gradients - (effort.loss + 1)  # two classes have none
    assert Tallied.gradients / 40 == pytest.approx(without_dlr, rel=0.03)
    assert Tallied.queries / 40 <= effort.queries  # on so few pixels queries run out of new points


@pytest.mark.parametrize("kind", [Detached, Broken, Undefined])
def test_gradients_that_do_not_come_are_missing_whatever_the_reason(x, y, kind):
    result = verdict(kind(plane()), x, y)
    assert result.row("gradient missing").value == 1.0
    assert result.row("backward is not the slope").samples == 0
    assert (result.verdict, result.layers) == ("masked", ("no gradient arrives",))
    assert result.best_accuracy < 0.55


class Noisy(Wrapped):
    """A plane whose images get noise."""

    def __init__(self, sigma: float) -> None:
        super().__init__(plane())
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.sigma * torch.randn_like(x))


class Counting(Wrapped):
    """Answers that change from call to call, in a buffer or in a plain attribute."""

    def __init__(self, *, is_buffer: bool) -> None:
        super().__init__(plane())
        self.is_buffer, self.calls = is_buffer, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_buffer:
            self.count += 1
        else:
            self.calls += 1
        number = float(self.count) if self.is_buffer else self.calls
        return self.inner(x) * (1 + 0.1 * (number % 3))


def test_random_and_stateful_models_are_told_apart_and_left_as_they_were(x, y):
    x, y = x[12:52], y[12:52]
    noisy = verdict(Noisy(0.01), x, y)
    assert noisy.row("random forward pass").value == 1.0
    assert noisy.row("state between calls").value == 0.0
    assert "the output is random" in noisy.layers
    for is_buffer in (True, False):
        model = Counting(is_buffer=is_buffer)
        result = verdict(model, x, y)
        assert result.row("state between calls").value == 1.0
        assert result.row("random forward pass").value == 0.0
        assert float(model.count) == 0
        assert "the output changes from call to call" in result.layers
    assert verdict(plane(), x, y).row("random forward pass").value == 0.0


def test_a_softmax_at_the_end_is_seen_and_attacked_through_its_logarithm(x, y):
    result = verdict(nn.Sequential(plane(1000.0), nn.Softmax(1)), x, y)
    assert result.row("probabilities, not logits").value == 1.0
    assert result.best_accuracy == 0.5
    assert result.verdict == "masked"
    assert result.layers[0] == "the loss saturates"
    # logits that happen to be shares, for every image the same, are none
    assert not introduced(Flat(), x, y, BALL, 1).is_probability


class Flat(Binary):
    """The logits (0, 1) for every image."""

    def z(self, x: Tensor) -> Tensor:
        return torch.ones_like(x[:, 0]) + 0 * x[:, 0]


class Walled(Binary):
    """A plane behind a staircase whose slope points the wrong way between the steps."""

    def z(self, x: Tensor) -> Tensor:
        mean = x.mean(1)
        width = 0.01
        steps = (mean / width).floor() * width
        return 10 * (steps - (mean - steps) - 0.5)


def test_a_staircase_with_slopes_that_point_back_shatters_the_direction(x, y):
    result = verdict(Walled(), x, y)
    assert result.verdict == "masked"
    assert result.layers == ("the direction shatters",)
    assert result.naive_accuracy - result.best_accuracy > 0.3


def test_neither_batch_nor_order_changes_a_sample(x, y):
    whole = verdict(Walled(), x, y)
    parts = verdict(Walled(), x, y, batch=24)
    turned = verdict(Walled(), x.flip(0), y.flip(0))
    for other, order in ((parts, slice(None)), (turned, torch.arange(63, -1, -1))):
        assert (other.verdict, other.layers) == (whole.verdict, whole.layers)
        assert torch.equal(other.naive[order], whole.naive)
        assert torch.equal(other.robust[order], whole.robust)
        assert [row.value for row in other.evidence] == pytest.approx(
            [row.value for row in whole.evidence], nan_ok=True
        )


def test_points_of_a_surrogate_break_what_own_gradients_do_not(x, y):
    model = Detached(plane())
    result = verdict(model, x, y, surrogates={"twin": plane(3.0)})
    beyond = (x.flatten(1).mean(1) - 0.5).abs() > BALL.eps
    assert result.row("transfer gains").value == float((~beyond).double().mean())
    assert torch.equal(result.robust, beyond)


def test_a_surrogate_distilled_on_the_spot_finds_the_plane_by_labels_alone(x, y):
    result = verdict(Detached(plane()), x, y, surrogates="distil")
    assert result.row("transfer gains").value > 0.4
    assert "distilled" in result.made.call


def test_a_surrogate_may_be_of_another_type_and_is_known_as_the_model_itself_in_it(x, y):
    model = Detached(plane())
    result = verdict(model, x, y, surrogates={"double": plane(3.0).double()})
    assert torch.equal(result.robust, (x.flatten(1).mean(1) - 0.5).abs() > BALL.eps)
    with pytest.raises(ValueError, match=r"surrogate 'double' is the model itself"):
        verdict(plane(), x, y, surrogates={"double": plane().double()})


def test_a_distilled_surrogate_is_the_same_whatever_the_order_of_the_images(x):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    first, second = (distilled(plane(), images, BALL, 0) for images in (x, x[order]))
    assert torch.equal(first(x), second(x))


def rows(**values: tuple[float, float]) -> tuple[Evidence, ...]:
    """Evidence with these marks, by share and number of samples, all of them right."""
    marks = {
        name: (torch.arange(count) < share * count).float() for name, (share, count) in values.items()
    }  # fmt: skip
    return weigh(marks, max((count for _, count in values.values()), default=100))


@pytest.mark.parametrize(
    ("gap", "evidence", "expected"),
    [
        ((0.0, 0.0, 0.03), rows(square=(0.0, 100)), "usable"),
        ((0.04, 0.02, 0.08), rows(loss=(0.04, 256)), "usable"),
        ((0.3, 0.2, 0.4), rows(loss=(0.3, 256)), "suspect"),
        ((0.3, 0.2, 0.4), rows(square=(0.3, 256)), "masked"),
        ((0.04, 0.02, 0.08), rows(square=(0.3, 256)), "suspect"),  # what PGD loses elsewhere is no gap
        ((0.3, 0.2, 0.4), rows(underflow=(0.3, 256)), "suspect"),  # most samples still have a gradient
        ((0.3, 0.2, 0.4), rows(underflow=(0.9, 256)), "masked"),
        ((0.0, 0.0, 0.03), rows(random=(1.0, 256)), "suspect"),
        ((0.3, 0.2, 0.4), rows(random=(1.0, 256)), "masked"),
        ((0.0, 0.0, 0.03), rows(saturated=(1.0, 256), drift=(1.0, 256), incomplete=(1.0, 256)), "usable"),
        ((0.3, 0.2, 0.4), rows(), "suspect"),
    ],
)
def test_the_rules(gap, evidence, expected):
    assert judge(gap, evidence)[0] == expected


def test_the_first_layer_is_the_one_that_explains():
    gap = (0.5, 0.4, 0.6)
    assert judge(gap, rows(missing=(1.0, 100), square=(0.5, 100)))[1] == ("no gradient arrives",)
    assert judge(gap, rows(underflow=(1.0, 100), loss=(0.5, 100)))[1] == ("the loss saturates",)
    assert judge(gap, rows(loss=(0.5, 100)))[1] == ("the loss misleads",)
    assert judge(gap, rows(loss=(0.5, 100), saturated=(1.0, 100)))[1] == ("the loss saturates",)
    assert judge(gap, rows(steps=(0.5, 100)))[1] == ("the optimiser stops early",)
    assert judge(gap, rows(averaged=(0.5, 100)))[1] == ("the direction shatters",)
    assert judge(gap, rows(averaged=(0.5, 100), random=(1.0, 100)))[1] == ("the output is random",)
    assert judge(gap, rows(pinned=(0.9, 100), square=(0.5, 100)))[1] == ("the output saturates",)


def test_a_cause_explains_the_gap_that_is_no_wider_than_it():
    half, few = (rows(missing=(share, 100), square=(0.3, 100)) for share in (0.4, 0.1))
    assert not any(row.is_strong for row in half if row.name == "gradient missing")
    gap = (0.3, 0.2, 0.4)
    assert judge(gap, half) == ("masked", ("no gradient arrives",))
    assert judge(gap, few) == ("masked", ("the direction shatters",))
    sure = rows(saturated=(1.0, 100), square=(0.3, 100))  # confident models are not masked by it alone
    assert judge(gap, sure) == ("masked", ("the direction shatters",))


def test_a_row_fires_on_the_lower_end_of_its_interval():
    few, many = rows(loss=(0.1, 20)), rows(loss=(0.1, 400))
    row = {
        name: next(r for r in found if r.name == "another loss gains") for name, found in (("few", few), ("many", many))
    }
    assert row["few"].value == row["many"].value == 0.1
    assert not row["few"].fired
    assert row["many"].fired
    assert row["many"].threshold == LARGE
    assert all(math.isnan(r.value) and not r.fired for r in rows())


def test_print_frame_row_and_budget(x, y, capsys, monkeypatch):
    result = verdict(plane(1000.0), x, y)
    text = str(result)
    assert text.startswith(f"{result.verdict}: the loss saturates")
    for row in result.fired:
        assert row.name in text
    frame = result.frame()
    assert list(frame["name"]) == ROWS
    assert frame.set_index("name").loc["underflow", "fired"]
    with pytest.raises(ValueError, match=r"name is 'underfloe', expected one of 'state between calls'"):
        result.row("underfloe")
    assert "budget='quick'" in result.made.call
    monkeypatch.setattr(importlib.import_module("gradlens.masking.evaluate"), "WORTH", 0.0)
    verdict(plane(), x, y)
    assert "quick" in (said := capsys.readouterr().err)
    assert "thorough" in said


def test_a_usable_model_that_few_samples_show_is_not_said_to_be_more(x, y):
    result = verdict(plane(), x[12:52], y[12:52])
    assert "so few samples" not in str(result)  # 0 of 40: below a tenth
    some = dataclasses.replace(result, naive=result.right, robust=torch.arange(40) >= 3)
    assert some.gap[2] == pytest.approx(wilson(3, 40)[1])
    assert f"so few samples do not exclude that PGD misses {wilson(3, 40)[1]:.0%}" in str(some)
    assert "so few samples" not in str(dataclasses.replace(some, verdict="suspect"))


def test_the_notebook_explains_each_row():
    notebook = json.loads((Path(__file__).parents[1] / "notebooks" / "masking.ipynb").read_text())
    told = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown").lower()
    bold = " ".join(re.findall(r"\*\*(.*?)\*\*", told))
    missing = [name for name in ROWS if name.lower().removesuffix(" gains").removesuffix(" gain") not in bold]
    assert not missing, missing


def test_what_cannot_be_judged_is_refused(x, y):
    model = plane()
    with pytest.raises(ValueError, match=r"x holds 34 samples, of 34, that the model gets right, expected at least 35"):
        verdict(model, x[:34], y[:34])
    with pytest.raises(ValueError, match=r"x holds 16 samples, of 64, .* about 140 samples at this accuracy"):
        verdict(model, x, torch.where(torch.arange(64) % 4 == 0, y, 1 - y))
    with pytest.raises(ValueError, match=r"x holds 0 samples, of 64, .* a model that is right at times"):
        verdict(model, x, 1 - y)
    with pytest.raises(ValueError, match=r"surrogate 'me' is the model itself"):
        verdict(model, x, y, surrogates={"me": model})
    with pytest.raises(ValueError, match=r"surrogate 'copy' is the model itself"):
        verdict(model, x, y, surrogates={"copy": plane()})
    with pytest.raises(ValueError, match=r"surrogate 'three' has 3 classes, the model has 2"):
        verdict(model, x, y, surrogates={"three": nn.Sequential(nn.Flatten(), nn.Linear(4, 3))})
    with pytest.raises(
        ValueError, match=r"surrogate 'wide': x of shape \(8, 1, 2, 2\) .* does not go through the model"
    ):
        verdict(model, x, y, surrogates={"wide": nn.Sequential(nn.Flatten(), nn.Linear(5, 2))})
    with pytest.raises(ValueError, match=r"surrogate 'nan': model returns NaN"):
        verdict(model, x, y, surrogates={"nan": plane(math.nan)})


def test_a_mask_is_found_in_float64_too(x, y):
    result = verdict(plane().double(), x.double(), y)
    assert result.verdict == "usable"
    assert result.row("float64 gains").samples == 0


def test_results_say_how_they_were_made(x, y):
    result = verdict(plane(), x, y)
    again = verdict(plane(), x, y)
    assert result.made == again.made
    assert dataclasses.replace(result, seconds=0.0).frame().equals(again.frame())
    assert gl.Masking is Masking


def test_a_verdict_on_disk_is_the_same_verdict(x, y, tmp_path):
    result = verdict(plane(1000.0), x, y)
    again = gl.load(gl.save(result, tmp_path / "masking.safetensors"))
    assert str(again) == str(result)
    assert again.frame().equals(result.frame())
    assert torch.equal(again.adversarial, result.adversarial)


def test_pictures_show_the_rows_and_the_gap(x, y):
    results = {"SL": verdict(plane(), x, y), "sure": verdict(plane(1000.0), x, y)}
    fig, axes = plt.subplots(1, 2)
    plots.evidence(results, axes[0])
    shown = {text.get_position(): text.get_text() for text in axes[0].texts}
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ROWS
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["SL\nusable", "sure\nmasked"]
    assert shown[1, ROWS.index("underflow")] == f"{results['sure'].row('underflow').value:.0%}"
    few = [
        dataclasses.replace(row, value=1.0, samples=1) if row.name == "underflow" else row
        for row in results["SL"].evidence
    ]
    plots.evidence({"SL": dataclasses.replace(results["SL"], evidence=tuple(few))}, fig.add_subplot())
    assert "1 of 1" in {text.get_text() for text in fig.axes[2].texts} - set(shown.values())
    framed = [p for p in axes[0].patches if not p.get_fill()]
    assert len(framed) == sum(len(result.fired) for result in results.values())
    plots.gaps(results, axes[1])
    ends = [line.get_xdata().tolist() for line in axes[1].lines if len(line.get_xdata()) == 2]
    assert ends == [[result.best_accuracy, result.naive_accuracy] for result in results.values()]
    for draw in (plots.evidence, plots.gaps):
        with pytest.raises(ValueError, match="results are empty"):
            draw({}, axes[0])
    plt.close(fig)
