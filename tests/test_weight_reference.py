"""Weight landscapes by loss-landscapes, and its metrics in ours."""

import loss_landscapes
import pytest
import torch
from torch import Tensor, nn

from gradlens import interpolate, reference, weight_line, weight_plane
from tests.analytic import smooth_cnn, snapshot


@pytest.fixture
def y() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("measure", [weight_line, weight_plane])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_landscapes_gives_the_same_surface_on_all_points(measure, dtype, images, y, generator):
    model, x = smooth_cnn().to(dtype), images.to(dtype)
    ours = measure(model, x, y, points=7, span=1.5, metrics=("error", "loss"), generator=generator)
    before = snapshot(model)
    theirs = reference.weight_surface(model, x, y, ours)
    assert theirs.metrics == ("loss",) and theirs.values.shape == (1, *ours.values.shape[1:])
    torch.testing.assert_close(theirs.values[0], ours.of("loss"), rtol=0, atol=1e-5)
    assert theirs.centre_error.max() < 1e-5
    assert ours.of("loss").std() > 0.1 and ours.of("loss").unique().numel() > 6
    assert snapshot(model) == before


def test_an_interpolation_is_the_one_that_loss_landscapes_walks(images, y):
    """Its own call between two models, as its documentation has it, on copies: it leaves out the first model."""
    ends = [smooth_cnn().float(), smooth_cnn().float()]
    with torch.no_grad():
        for parameter in ends[1].parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = images.float()
    ours = interpolate(ends, x, y, points=11, metrics=("loss",))
    metric = loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), x, y)
    theirs = loss_landscapes.linear_interpolation(*ends, metric, steps=10, deepcopy_model=True)
    torch.testing.assert_close(torch.as_tensor(theirs), ours.values[0, 1:, 0], rtol=0, atol=1e-5)
    walked = reference.weight_surface(ends[0], x, y, ours)
    torch.testing.assert_close(walked.values, ours.values, rtol=0, atol=1e-5)


def test_the_comparison_tells_another_plane_apart(cnn, images, y, generator):
    ours = weight_plane(cnn, images, y, points=3, generator=generator)
    turned = weight_plane(cnn, images, y, points=3, directions=ours.directions[::-1])
    gap = reference.weight_surface(cnn, images, y, turned).values[0] - ours.of("loss")
    assert gap.abs().max() > 0.01
    torch.testing.assert_close(turned.values.mT, ours.values, rtol=0, atol=1e-9)


def test_metrics_of_loss_landscapes_plug_in(cnn, images, y, generator):
    metric = loss_landscapes.metrics.Loss(nn.CrossEntropyLoss(), images, y)
    metric.__name__ = "their loss"
    result = weight_plane(cnn, images, y, points=3, metrics=("loss", metric), generator=generator)
    assert result.metrics == ("loss", "their loss")
    torch.testing.assert_close(result.of("their loss"), result.of("loss"))


def test_a_walk_that_loss_landscapes_cannot_take_is_refused(images, y):
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 4), nn.BatchNorm1d(4)).double().eval()
    surface = weight_line(model, images, y, points=3, batchnorm="reestimated")
    with pytest.raises(ValueError, match="surface has batchnorm 'reestimated', expected 'frozen'"):
        reference.weight_surface(model, images, y, surface)
