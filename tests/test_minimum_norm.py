"""Distances beyond the plane: foolbox's own, what was never found, what was broken already, bad input."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball, losses
from tests.analytic import Constant, Detached, Plane, Random, smooth_cnn

BALLS = pytest.mark.parametrize("ball", [Ball(0.1), Ball(0.1, "l2")], ids=lambda ball: ball.norm)


@pytest.fixture
def right(cnn: nn.Module, images: Tensor) -> Tensor:
    return cnn(images).argmax(1)


def foolbox_distances(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, steps: int) -> Tensor:
    """FMN under linf; under l2 foolbox's FMN forgets to project (it divides a norm by itself), so DDN stands in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox's own imports
        import foolbox

        attack = {"linf": foolbox.attacks.LInfFMNAttack, "l2": foolbox.attacks.DDNAttack}[ball.norm](steps=steps)
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
        found = attack.run(wrapped, x, foolbox.criteria.Misclassification(y))
    assert (model(found).argmax(1) != y).all()
    return ball.length(found - x)


@BALLS
def test_it_comes_as_close_as_foolboxs_minimum_norm_attacks(ball, cnn, images, right):
    ours = gl.minimum_norm(cnn, images, right, ball, steps=100)
    theirs = foolbox_distances(cnn, images, right, ball, 100)
    assert (ours.distance < 1.02 * theirs).all() and (ours.distance > 0.9 * theirs).all()


@BALLS
def test_what_it_says_of_a_point_is_what_a_fresh_pass_says(ball, cnn, images, right):
    found = gl.minimum_norm(cnn, images, right, ball, steps=30)
    assert found.found.all() and (cnn(found.adversarial).argmax(1) != right).all()
    torch.testing.assert_close(found.distance, ball.length(found.adversarial - images))
    torch.testing.assert_close(found.margin, losses.margin(cnn(found.adversarial), right))
    assert found.adversarial.amin() >= 0 and found.adversarial.amax() <= 1
    # no point much closer errs: pgd with a tenth less room finds none
    for x, y, distance in zip(images.split(1), right.split(1), found.distance.tolist(), strict=True):
        assert not gl.pgd(cnn, x, y, Ball(0.9 * distance, ball.norm), steps=40, loss=losses.margin).ever.any()


def test_the_share_that_stands_falls_with_eps_from_the_clean_accuracy(cnn, images, right):
    y = right.clone()
    y[0] = (y[0] + 1) % 4
    found = gl.minimum_norm(cnn, images, y)
    assert found.distance[0] == 0 and torch.equal(found.adversarial[0], images[0])
    assert found.accuracy(0.0) == pytest.approx(5 / 6)
    grid = [0.0, *found.distance.sort().values.tolist(), 1.0]
    shares = [found.accuracy(eps) for eps in grid]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0
    assert found.accuracy(found.distance.median().item()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("model", [Detached(Plane(torch.ones(4), b=3.0)), Constant([2.0, 0.0])], ids=["flat", "same"])
def test_what_was_never_found_is_nan_and_stands_at_every_eps(model):
    x = torch.full((2, 4), 0.4)
    found = gl.minimum_norm(model, x, [0, 1], Ball(norm="l2"), steps=10)
    assert found.distance[0].isnan() and found.distance[1] == 0  # the second errs by itself
    assert torch.equal(found.adversarial, x) and found.found.tolist() == [False, True]
    assert found.accuracy(1e9) == 0.5 and "not found 1" in str(found)


def test_eps_bounds_nothing_and_the_box_does(cnn, images, right):
    a, b = (gl.minimum_norm(cnn, images, right, Ball(eps), steps=20) for eps in (1e-6, 0.5))
    assert torch.equal(a.distance, b.distance)
    narrow = gl.minimum_norm(cnn, images, right, Ball(low=0.0, high=0.96), steps=20)
    assert narrow.adversarial.amax() <= 0.96


def test_another_scale_of_pixels_only_scales_the_distance(cnn, images, right):
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return cnn(x / 255)

    plain = gl.minimum_norm(cnn, images, right, Ball(norm="l2"), steps=30).distance
    wide = gl.minimum_norm(Wide(), 255 * images, right, Ball(norm="l2", high=255.0), steps=30).distance
    torch.testing.assert_close(wide, 255 * plain)


def test_batch_size_and_order_do_not_matter_and_passes_are_counted(cnn, images, right):
    order, calls = torch.tensor([4, 2, 5, 0, 3, 1]), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    whole = gl.minimum_norm(cnn, images, right, steps=20)
    parts = gl.minimum_norm(cnn, images, right, steps=20, batch=1)
    mixed = gl.minimum_norm(cnn, images[order], right[order], steps=20)
    torch.testing.assert_close(parts.distance, whole.distance)
    torch.testing.assert_close(mixed.distance, whole.distance[order])
    with cnn.register_forward_hook(count):
        one = gl.minimum_norm(cnn, images[:1], right[:1], steps=20)
    assert one.forwards.item() == calls - 2 and one.backwards.item() == 21  # the door looks twice


def test_it_reads_as_a_line_and_a_table(cnn, images, right):
    found = gl.minimum_norm(cnn, images, right, steps=20)
    assert str(found).startswith("6 samples, minimum_norm, linf: clean accuracy 100.0%  median distance 0.")
    table = found.frame()
    assert list(table.columns) == ["sample", "labels", "distance", "found", "margin", "forwards", "backwards"]
    assert table["distance"].tolist() == found.distance.tolist() and len(table) == 6


def test_half_precision_train_mode_and_single_images_are_taken(images):
    model = smooth_cnn().bfloat16().train()
    found = gl.minimum_norm(model, images[:1].float(), None, steps=20)
    assert model.training and (found.found == (found.margin > 0)).all()


@pytest.mark.parametrize("eps", [-0.1, float("nan"), float("inf")])
def test_an_eps_that_is_none_is_refused(eps, cnn, images, right):
    found = gl.minimum_norm(cnn, images, right, steps=1)
    with pytest.raises(ValueError, match=r"eps is .*, expected 0 or a positive"):
        found.accuracy(eps)


def test_bad_input_is_named(cnn, images, right):
    with pytest.raises(ValueError, match="steps is 0, expected"):
        gl.minimum_norm(cnn, images, right, steps=0)
    with pytest.raises(ValueError, match="model is random"):
        gl.minimum_norm(Random(cnn, 0.1), images, right)
    with pytest.raises(ValueError, match="x spans"):
        gl.minimum_norm(cnn, 2 * images, right)
