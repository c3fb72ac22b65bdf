"""The record of how a result was made tells different origins apart."""

import functools
import hashlib
import platform
from importlib.metadata import version

import pytest
import torch

from gradlens import Ball, losses, pgd
from gradlens.provenance import digest
from tests.analytic import smooth_cnn


def test_the_call_is_recorded_as_one_would_type_it(cnn, images):
    made = pgd(
        cnn,
        images,
        None,
        Ball(0.1, "l2"),
        steps=3,
        loss=losses.margin,
        start=images,
        generator=torch.Generator().manual_seed(42),
    ).made
    assert made.call == (
        "pgd(ball=Ball(eps=0.1, norm='l2', low=0.0, high=1.0), steps=3, step_size=0.08333333333333333, loss=margin, "
        "start=Tensor(6, 2, 5, 5), restarts=1, samples=1, momentum=0.0, targets=None)"
    )
    assert made.seed == 42
    assert made.device == "cpu"
    assert made.versions == {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gradlens": version("gradlens"),
    }
    assert made.call in str(made)
    assert "\n" not in str(made)


def test_without_a_generator_the_seed_is_torchs_own(cnn, images):
    torch.manual_seed(77)
    assert pgd(cnn, images, None, steps=1).made.seed == 77


def test_one_weight_one_pixel_or_one_label_makes_another_record(images):
    def record(model, x, y):
        made = pgd(model, x, y, steps=1).made
        return made.model, made.data

    labels = torch.zeros(6, dtype=torch.long)
    model, data = record(smooth_cnn(), images, labels)
    assert record(smooth_cnn(), images, labels) == (model, data)
    other = smooth_cnn()
    with torch.no_grad():
        other[0].bias[0] += 1e-12
    assert record(other, images, labels)[0] != model
    pixel = images.clone()
    pixel[0, 0, 0, 0] += 1e-12
    assert record(smooth_cnn(), pixel, labels)[1] != data
    label = labels.clone()
    label[5] = 1
    assert record(smooth_cnn(), images, label)[1] != data


def test_a_digest_is_the_start_of_a_sha256_over_type_shape_and_bytes():
    t = torch.tensor([[1.5, -2.0]])
    assert digest(t) == hashlib.sha256(b"torch.float32(1, 2)" + t.numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.long, torch.bool])
def test_types_shapes_and_order_of_memory(dtype):
    t = torch.tensor([[0, 1, 1], [1, 0, 0]]).to(dtype)
    assert digest(t) != digest(t.view(3, 2))
    assert digest(t.T) == digest(t.T.contiguous())
    assert digest(t) != digest(t.to(torch.float32))
    assert digest(t, t[:1]) != digest(t[:1], t)


def test_a_loss_with_an_argument_is_written_the_same_in_every_process(cnn, images):
    loss = functools.partial(losses.rescaled, t=10.0)
    assert "loss=rescaled(t=10.0)" in pgd(cnn, images, None, Ball(0.1), steps=1, loss=loss).made.call
