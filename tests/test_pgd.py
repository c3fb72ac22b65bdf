"""PGD against closed forms: where it must arrive, how far a step goes, what a trace says about hand-made paths."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from gradlens import Ball, PGDTrace, losses, pgd
from gradlens.draws import Draws, keys, seed
from tests.analytic import Constant, Detached, Hinge, Plane, Random, Steps, Valley, smooth_cnn

NORMS = ("linf", "l2")


@pytest.fixture
def trace(cnn: nn.Module, images: Tensor) -> PGDTrace:
    return pgd(cnn, images, torch.tensor([0, 1, 2, 3, 0, 1]), Ball(0.1), steps=3)


def plane(scale: float = 1.0) -> Plane:
    """A boundary whose normal has positive, negative and small entries."""
    w = torch.tensor([0.5, -0.3, 0.2, 0.05, -0.4, 0.1])
    return Plane(w, b=float(0.5 * w.sum()), scale=scale)


def beside_the_plane(model: Plane, offsets: tuple[float, ...]) -> Tensor:
    """Images on the side of class 0, at several distances from the boundary, far from the box."""
    normal = model.w.detach() / model.w.detach().norm()
    return torch.stack([0.5 - offset * normal for offset in offsets])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1.0, 60.0, 1e3])
@pytest.mark.parametrize(("share", "reaches"), [(1.1, True), (0.9, False)])
def test_a_plane_is_reached_from_just_beyond_its_distance_and_not_from_within(norm, scale, share, reaches):
    model = plane(scale)
    y = torch.zeros(1, dtype=torch.long)
    for x in beside_the_plane(model, (0.02, 0.05, 0.1)).split(1):
        ball = Ball(share * model.distance(x, norm).item(), norm)
        assert pgd(model, x, y, ball, steps=20, loss=losses.margin).success.tolist() == [reaches]


def test_saturation_blinds_cross_entropy_but_neither_the_margin_nor_rescaled_logits():
    model = plane(1e4)
    x, y, ball = beside_the_plane(model, (0.05,)), torch.zeros(1, dtype=torch.long), Ball(0.1)
    blind = pgd(model, x, y, ball)
    assert blind.grad_norm.eq(0).all()
    assert torch.equal(blind.adversarial, x)
    assert not blind.success.any()
    assert pgd(model, x, y, ball, loss=losses.margin).success.all()
    assert pgd(model, x, y, ball, loss=losses.rescaled).success.all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-6, 1e-20, 1e-30])
def test_a_step_has_its_nominal_length_however_small_the_gradient(norm, scale):
    model = plane(scale)
    x = beside_the_plane(model, (0.05, 0.1))
    trace = pgd(
        model, x, torch.zeros(2, dtype=torch.long), Ball(1.0, norm), steps=3, step_size=0.01, loss=losses.margin
    )
    nominal = 0.01 * (6**0.5 if norm == "linf" else 1)  # linf: every one of the six pixels moves by the step
    torch.testing.assert_close(trace.moved, torch.full((3, 2), nominal), rtol=1e-4, atol=0)
    torch.testing.assert_close(trace.grad_norm, torch.full((4, 2), scale * model.w.norm().item()), rtol=1e-4, atol=0)
    torch.testing.assert_close(trace.cosine, torch.ones(3, 2))


@pytest.mark.parametrize("model", [Steps(), Detached(plane()), Constant([0.0, 2.0])], ids=lambda m: type(m).__name__)
def test_a_gradient_that_is_zero_is_counted_as_undefined_and_has_no_direction(model):
    x = torch.full((2, 6), 0.4)
    trace = pgd(model, x, None, Ball(0.1), steps=2)
    assert torch.equal(trace.undefined, torch.ones(2))
    for name in ("cosine", "cosine_first", "cosine_final", "sign_agreement"):
        assert getattr(trace, name).isnan().all(), name
    assert trace.moved.eq(0).all()
    assert torch.equal(trace.adversarial, x)


def test_undefined_is_the_share_of_points_without_a_gradient():
    """Of five points, 0.47, 0.52, 0.57 and so on, the first two have a gradient."""
    x = torch.full((1, 4), 0.47)
    trace = pgd(Hinge(0.55), x, torch.zeros(1, dtype=torch.long), Ball(0.3), steps=4, step_size=0.05)
    assert trace.undefined.item() == pytest.approx(3 / 5)
    assert trace.cosine.isnan().squeeze(1).tolist() == [False, True, True, True]


@pytest.mark.parametrize("norm", NORMS)
def test_a_shorter_attack_is_the_beginning_of_a_longer_one(norm, cnn, images):
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    ball = Ball(0.2 if norm == "linf" else 1.0, norm)
    long = pgd(cnn, images, y, ball, steps=6, step_size=0.05)
    for k in (1, 3, 5):
        short = pgd(cnn, images, y, ball, steps=k, step_size=0.05)
        for name in ("loss", "margin", "entropy", "confidence", "grad_norm", "on_surface"):
            assert torch.equal(getattr(short, name), getattr(long, name)[: k + 1]), name
        for name in ("cosine", "cosine_first", "sign_agreement", "moved"):
            assert torch.equal(getattr(short, name), getattr(long, name)[:k]), name


def test_the_default_step_is_two_and_a_half_eps_over_steps(cnn, images):
    y = torch.zeros(6, dtype=torch.long)
    given = pgd(cnn, images, y, Ball(0.1), steps=5, step_size=2.5 * 0.1 / 5)
    assert torch.equal(pgd(cnn, images, y, Ball(0.1), steps=5).adversarial, given.adversarial)


@pytest.mark.parametrize("norm", NORMS)
def test_a_start_outside_the_ball_is_brought_inside_and_one_inside_is_kept(norm, cnn, images, generator):
    ball, y = Ball(0.05, norm), torch.zeros(6, dtype=torch.long)
    inside = ball.sample(images, generator)
    far = images + torch.randn(images.shape, generator=generator, dtype=images.dtype)
    kept = pgd(cnn, images, y, ball, steps=1, start=inside)
    assert torch.equal(kept.margin[0], losses.margin(cnn(inside), y).detach())
    brought = pgd(cnn, images, y, ball, steps=1, start=far)
    torch.testing.assert_close(brought.margin[0], losses.margin(cnn(ball.project(far, images)), y).detach())
    assert ball.contains(brought.adversarial, images).all()


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("restarts", 0), ("samples", 0), ("step_size", -1.0)])
def test_a_knob_below_its_range_is_refused_by_name(name, value, cnn, images):
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        pgd(cnn, images, None, **{name: value})


@pytest.mark.parametrize("start", [torch.zeros(6, 2, 5, 4).double(), torch.full((6, 2, 5, 5), torch.nan).double()])
def test_a_start_of_another_shape_or_with_nan_is_refused(start, cnn, images):
    with pytest.raises(ValueError, match=r"start has shape .*expected finite images of x's shape"):
        pgd(cnn, images, None, start=start)


def downhill(logits: Tensor, y: Tensor) -> Tensor:
    """A loss that leads away from errors, so that the best point of a run is not its last."""
    return -losses.margin(logits, y)


@pytest.mark.parametrize("loss", [losses.cross_entropy, downhill])
def test_each_sample_keeps_the_restart_with_the_strongest_point(loss, cnn, images):
    """The first run begins at the image, the others at the points that the same generator draws from the ball."""
    ball, y = Ball(0.3), torch.tensor([0, 1, 2, 3, 0, 1])
    together = pgd(cnn, images, y, ball, steps=3, loss=loss, restarts=4, generator=torch.Generator().manual_seed(9))
    draws = Draws.of(seed(torch.Generator().manual_seed(9)), keys(images))
    starts = [images, *(ball.sample(images, draws) for _ in range(3))]
    runs = [pgd(cnn, images, y, ball, steps=3, loss=loss, start=start) for start in starts]
    winners = [max(range(4), key=lambda r: runs[r].margin[:, i].max().item()) for i in range(6)]
    assert len(set(winners)) > 1
    for i, winner in enumerate(winners):
        assert torch.equal(together.adversarial[i], runs[winner].adversarial[i])
        assert torch.equal(together.best[i], runs[winner].best[i])
        for name in ("loss", "margin", "grad_norm", "cosine", "cosine_final", "moved", "on_surface"):
            assert torch.equal(getattr(together, name)[:, i], getattr(runs[winner], name)[:, i]), name


def test_equal_generators_give_equal_attacks(cnn, images):
    first, again, other = (
        pgd(cnn, images, None, Ball(0.3), steps=2, restarts=3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first.margin, again.margin)
    assert not torch.equal(first.margin, other.margin)


def test_the_mean_gradient_of_a_random_model_is_that_of_its_passes(cnn, images):
    """Averaged over 5 passes; a twin model with the same noise, averaged by hand, must agree."""
    y, model, twin = torch.zeros(6, dtype=torch.long), Random(cnn, 0.3, seed=1), Random(cnn, 0.3, seed=1)
    trace = pgd(model, images, y, Ball(0.1, "l2"), steps=1, step_size=0.05, samples=5)
    twin(images)  # the door looks once
    x = images.clone().requires_grad_(True)
    logits = [twin(x) for _ in range(5)]
    (grad,) = torch.autograd.grad(sum(losses.cross_entropy(z, y).sum() for z in logits) / 5, x)
    torch.testing.assert_close(trace.grad_norm[0], grad.flatten(1).norm(dim=1))
    step = 0.05 * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(trace.adversarial, (images + step).clamp(0, 1))
    torch.testing.assert_close(trace.margin[0], losses.margin(sum(logits).detach() / 5, y))


def test_a_random_model_is_refused_with_the_way_out(cnn, images):
    with pytest.raises(ValueError, match=r"model is random between two passes.*samples=k"):
        pgd(Random(cnn, 1e-3), images, None)


def test_batch_size_and_order_do_not_matter(cnn, images):
    y, ball, order = torch.tensor([0, 1, 2, 3, 0, 1]), Ball(0.1), torch.tensor([4, 2, 5, 0, 3, 1])
    whole = pgd(cnn, images, y, ball, steps=4)
    single = [pgd(cnn, x[None], label[None], ball, steps=4) for x, label in zip(images, y, strict=True)]
    mixed = pgd(cnn, images[order], y[order], ball, steps=4)
    torch.testing.assert_close(torch.cat([one.adversarial for one in single]), whole.adversarial, rtol=0, atol=1e-9)
    torch.testing.assert_close(mixed.adversarial, whole.adversarial[order], rtol=0, atol=1e-9)
    for name in ("loss", "margin", "grad_norm", "cosine", "cosine_first", "cosine_final", "moved"):
        torch.testing.assert_close(torch.cat([getattr(one, name) for one in single], 1), getattr(whole, name))
        torch.testing.assert_close(getattr(mixed, name), getattr(whole, name)[:, order])


def hand_made(trace: PGDTrace, **given: Tensor) -> PGDTrace:
    """A trace of the given columns; the others are zero, of the shapes that go with them."""
    (points, batch), fields = next(iter(given.values())).shape, {}
    for field in dataclasses.fields(trace):
        value = getattr(trace, field.name)
        if isinstance(value, Tensor) and value.ndim == 2:
            fields[field.name] = torch.zeros(points - (len(value) < len(trace.loss)), batch, dtype=value.dtype)
        elif isinstance(value, Tensor) and field.name == "direction_sum":
            fields[field.name] = torch.zeros(points, *value.shape[1:], dtype=value.dtype)
        elif isinstance(value, Tensor):
            fields[field.name] = value[:1].expand(batch, *value.shape[1:])
    return dataclasses.replace(trace, **(fields | given))


def test_success_ever_and_silent_success_read_the_class(trace):
    """Samples: fooled at the end, only on the way, never, on the boundary and right as the first of equals, always."""
    margin = torch.tensor([[-1.0, -1, -1, 0, 1], [-1, 2, -3, 0, 1], [-1, 1, -2, 0, 1], [1, -1, -1, 0, 1]])
    labels = torch.zeros(5, dtype=torch.long)
    made = hand_made(trace, margin=margin, labels=labels, predicted=(margin > 0).long())
    assert made.success.tolist() == [True, False, False, False, True]
    assert made.ever.tolist() == [True, True, False, False, True]
    assert made.silent_success.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("steps", [4, 10, 40])
def test_incomplete_means_a_late_rise_of_more_than_a_twentieth(trace, steps):
    """The running best of the scaled loss, over the last ten steps or the last half of a short path."""
    window = min(10, steps // 2)
    late = torch.zeros(steps + 1)
    late[-1] = 1.0  # all of its rise in the last step
    early = torch.zeros(steps + 1)
    early[1:] = 1.0
    slow = early.clone()
    slow[steps - window + 1 :] = 1.04  # the last 0.04 of 1.04 within the window
    quick = early.clone()
    quick[steps - window + 1 :] = 1.07
    before = torch.zeros(steps + 1)
    before[steps - window :] = 1.0  # just before the window
    falling = torch.linspace(1, 0, steps + 1)
    flat = torch.ones(steps + 1)
    made = hand_made(trace, loss=torch.stack([late, early, slow, quick, before, falling, flat], 1))
    assert made.incomplete.tolist() == [True, False, False, True, False, False, False]


def test_best_is_the_visited_point_with_the_largest_margin():
    """z = 1e-3 - (mean - 0.6)^2 from 0.5 in steps of 0.07: 0.57 and 0.64 fool, the last, 0.71, does not."""

    class Hill(Valley):
        def z(self, x: Tensor) -> Tensor:
            return -super().z(x)

    x, y = torch.full((1, 4), 0.5), torch.zeros(1, dtype=torch.long)
    # an attack that walks on past the top: it climbs the mean pixel, not the margin
    trace = pgd(
        nn.Sequential(Hill(0.6, 1e-3)), x, y, Ball(0.5), steps=3, step_size=0.07, loss=lambda z, y: _towards_class_1(z)
    )
    means = [0.5, 0.57, 0.64, 0.57]
    expected = torch.tensor([[1e-3 - (m - 0.6) ** 2] for m in means])
    torch.testing.assert_close(trace.margin, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(trace.best, torch.full((1, 4), 0.57), rtol=0, atol=1e-6)


def _towards_class_1(logits: Tensor) -> Tensor:
    return logits[:, 1]


def test_frame_has_a_row_a_point_and_sample_and_the_traces_numbers(trace):
    table = trace.frame()
    assert list(table.columns[:2]) == ["step", "sample"]
    assert len(table) == 4 * 6
    for row in table.itertuples():
        for name in ("loss", "margin", "entropy", "confidence", "grad_norm", "on_surface"):
            assert getattr(row, name) == getattr(trace, name)[row.step, row.sample].item()
        for name in ("cosine", "cosine_first", "sign_agreement", "moved"):
            value = getattr(row, name)
            # of a step, stands at the point that the step leads to
            if row.step == 0:
                assert math.isnan(value), name
            else:
                assert value == getattr(trace, name)[row.step - 1, row.sample].item(), name
        if row.step == 3:
            assert math.isnan(row.cosine_final)
        else:
            assert row.cosine_final == trace.cosine_final[row.step, row.sample].item()


def test_without_labels_the_models_own_predictions_are_attacked(cnn, images):
    trace = pgd(cnn, images, None, Ball(0.1), steps=1)
    assert torch.equal(trace.labels, cnn(images).argmax(1))
    assert torch.equal(trace.clean, images)


def test_models_in_float32_are_followed_to_float32_accuracy(images):
    exact = pgd(smooth_cnn(), images, None, Ball(0.1, "l2"), steps=4)
    single = pgd(smooth_cnn().float(), images.float(), None, Ball(0.1, "l2"), steps=4)
    assert single.loss.dtype == torch.float32
    torch.testing.assert_close(single.loss.double(), exact.loss, rtol=1e-4, atol=1e-5)
