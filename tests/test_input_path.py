"""The loss along PGD's own path: the attack's numbers at its steps, the closed form between them."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gradlens import Ball, input_path, losses, pgd
from tests.analytic import Detached, Plane, Quadratic, Random, Valley, snapshot

BALLS = (Ball(0.1), Ball(0.4, "l2"))
every_ball = pytest.mark.parametrize("ball", BALLS, ids=lambda ball: ball.norm)
TRACED = ("loss", "margin", "entropy", "predicted")


@every_ball
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin])
@pytest.mark.parametrize("points", [1, 3])
def test_at_whole_steps_stand_the_values_of_the_attack_s_trace(ball, loss, points, cnn, images):
    options = {"steps": 6, "step_size": 0.03, "loss": loss}
    trace = pgd(cnn, images, None, ball, **options)
    path = input_path(cnn, images, None, ball, points=points, **options)
    assert path.step.tolist() == pytest.approx([k / points for k in range(6 * points + 1)])
    for name in TRACED:
        torch.testing.assert_close(getattr(path, name)[::points], getattr(trace, name), rtol=0, atol=1e-12)
    torch.testing.assert_close(path.distance[::points], trace.distance / ball.eps, rtol=0, atol=1e-12)


def test_between_the_steps_stand_the_values_on_the_straight_way(generator):
    """Label 0, margin q: the points are found again from two attacks, of which one stops a step earlier."""
    model, ball, points = Quadratic(8), Ball(0.4, "l2"), 4
    x = 0.3 + 0.4 * torch.rand(3, 8, generator=generator, dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.long)
    path = input_path(model, x, y, ball, steps=5, step_size=0.15, points=points)
    ends = [x, *(pgd(model, x, y, ball, steps=t, step_size=0.15).adversarial for t in range(1, 6))]
    length = torch.zeros(3, dtype=torch.float64)
    for t, (start, end) in enumerate(itertools.pairwise(ends)):
        for k in range(points + 1):
            at = start + k / points * (end - start)
            q = model.z(at).detach()
            row = t * points + k
            torch.testing.assert_close(path.margin[row], q, rtol=0, atol=1e-10)
            torch.testing.assert_close(path.loss[row], F.softplus(q), rtol=0, atol=1e-10)
            torch.testing.assert_close(path.distance[row], (at - x).norm(dim=1) / 0.4, rtol=0, atol=1e-10)
            here = length + (at - start).norm(dim=1) / 0.4
            torch.testing.assert_close(path.length[row], here, rtol=0, atol=1e-10)
        length += (end - start).norm(dim=1) / 0.4
    assert (path.distance <= 1 + 1e-9).all()
    assert (path.length[-1] > path.distance[-1] + 0.04).all()  # it turns at the surface of the ball


def test_a_step_that_leaps_over_a_ridge_is_counted():
    """The loss is log(1 + e^z), z = (m - 1/2)^2 - 1 of the mean pixel m; downhill in z, steps of 0.2 cross 1/2."""

    def towards(logits: Tensor, y: Tensor) -> Tensor:
        return -losses.margin(logits, y)

    x = torch.full((1, 4), 0.4, dtype=torch.float64)
    y = torch.zeros(1, dtype=torch.long)
    # from 0.4 to 0.6, and back: the summit at 0.5 lies within each of the four steps
    path = input_path(Valley(0.5, 1.0), x, y, Ball(0.3), steps=4, step_size=0.2, loss=towards, points=4)
    assert path.overshot.tolist() == [1.0]
    # from 0.4 to 0.45, to 0.5, to 0.55 (no gradient at the very summit is luck that rounding decides): 3 are enough
    gentle = input_path(Valley(0.5, 1.0), x, y, Ball(0.3), steps=1, step_size=0.05, loss=towards, points=4)
    assert gentle.overshot.tolist() == [0.0]
    assert input_path(Valley(0.5, 1.0), x, y, Ball(0.3), steps=4, points=1).overshot.isnan().all()


def test_without_a_gradient_the_path_is_a_single_point():
    model = Detached(Plane(torch.ones(4, dtype=torch.float64)))
    path = input_path(model, torch.full((2, 4), 0.3, dtype=torch.float64), None, Ball(0.1), steps=3, points=3)
    assert (path.length == 0).all()
    assert (path.loss == path.loss[0]).all()
    assert (path.overshot == 0).all()


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_neither_the_batch_nor_the_container_changes_a_number(batch, cnn, images):
    labels = torch.arange(6) % 4
    plain = input_path(cnn, images, labels, Ball(0.1), steps=3)
    for x, y in ((images, labels), (images.numpy(), labels.tolist()), (_loader(images, labels), None)):
        other = input_path(cnn, x, y, Ball(0.1), steps=3, batch=batch)
        for name in (*TRACED, "length", "distance", "step", "overshot", "labels"):
            torch.testing.assert_close(getattr(other, name), getattr(plain, name), rtol=0, atol=1e-12)
        assert other.made.data == plain.made.data


def _loader(images: Tensor, labels: Tensor) -> DataLoader:
    return DataLoader(TensorDataset(images, labels), batch_size=4)


def test_frame_has_a_row_a_point_and_sample(cnn, images):
    path = input_path(cnn, images, None, Ball(0.1), steps=2, points=2)
    table = path.frame()
    assert len(table) == 5 * 6
    for row in table.itertuples():
        point = (path.step == row.step).nonzero().item()
        for name in (*TRACED, "length", "distance"):
            assert getattr(row, name) == getattr(path, name)[point, row.sample].item()
    assert str(path).startswith("6 samples along 2 PGD steps: loss ")
    assert "\n" not in str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 0}, "points is 0, expected at least 1"),
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"step_size": -1.0}, "step_size is -1.0, expected a positive number"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
    ],
)
def test_a_knob_out_of_range_is_refused_by_name(options, message, cnn, images):
    with pytest.raises(ValueError, match=message):
        input_path(cnn, images, **options)


def test_the_model_is_left_alone_and_a_random_one_refused(cnn, images):
    model = nn.Sequential(cnn, nn.Dropout(0.5)).train()
    cnn[0].weight.requires_grad_(False)
    state = snapshot(model)
    input_path(model, images, None, Ball(0.1), steps=2)
    assert snapshot(model) == state
    with pytest.raises(ValueError, match="model is random between two passes"):
        input_path(Random(cnn, 0.1), images)


def test_half_precision_images_and_models_are_measured_in_float32(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 3)).bfloat16()
    path = input_path(model, images.bfloat16(), None, Ball(0.1), steps=2)
    assert path.loss.dtype == torch.float32
    assert np.isfinite(path.loss.numpy()).all()
