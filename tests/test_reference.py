"""Our numbers and other packages': loss-landscapes and pyhessian, met in one room."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from gradlens import Ball, input_line, input_plane, losses, reference
from tests.analytic import smooth_cnn, snapshot


@pytest.mark.parametrize("ball", [Ball(0.1), Ball(0.5, "l2")], ids=lambda ball: ball.norm)
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin])
@pytest.mark.parametrize("box", ["mark", "project"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_line_is_the_one_that_loss_landscapes_walks(ball, loss, box, dtype, images):
    model, x = smooth_cnn().to(dtype), images.to(dtype)
    ours = input_line(model, x, None, ball, loss=loss, points=21, box=box)
    state, before = snapshot(model), [d.clone() for d in ours.directions]
    theirs = reference.input_line(model, x, ours, loss=loss)
    torch.testing.assert_close(theirs.loss, ours.loss, rtol=0, atol=1e-5)
    assert (theirs.loss.amax(0) - theirs.loss.amin(0)).min() > 0.1
    assert snapshot(model) == state
    assert torch.equal(ours.directions[0], before[0])


def test_loss_landscapes_walks_a_wrong_line_elsewhere(images):
    """The comparison above can fail: a surface whose direction is turned around is told apart."""
    model = smooth_cnn()
    ours = input_line(model, images, None, Ball(0.1), points=5)
    other = input_line(model, images, None, Ball(0.1), points=5, directions=(-ours.directions[0],))
    assert (reference.input_line(model, images, other).loss - ours.loss).abs().max() > 0.1


def test_only_a_line_can_be_walked(cnn, images):
    plane = input_plane(cnn, images, None, Ball(0.1), points=3)
    with pytest.raises(ValueError, match="surface has 3 columns, expected the single one of input_line"):
        reference.input_line(cnn, images, plane)


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 3))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    model[0].bias.requires_grad_(False)
    return model


def exact_top_eigenvalue(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """By the full Hessian of the mean cross-entropy in all weights, in float64."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().double().flatten() for p in model.parameters()])

    def mean_loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, weights, (x.double(),)), y)

    return torch.linalg.eigvalsh(jacrev(jacrev(mean_loss))(flat)).max().item()


def test_sharpness_is_the_top_eigenvalue_of_the_full_hessian(tiny, generator):
    x, y = torch.rand(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)
    exact = exact_top_eigenvalue(tiny.eval(), x, y)
    assert exact > 0.1
    # its own stopping rule, a change below 1e-3, leaves up to 1e-3 here and far more where eigenvalues are close
    assert reference.sharpness(tiny, x, y) == pytest.approx(exact, rel=1e-4)


def test_sharpness_leaves_the_model_and_the_global_random_states_alone(tiny, generator):
    x, y = torch.rand(20, 4, generator=generator), torch.randint(3, (20,), generator=generator)
    tiny.train()
    state = snapshot(tiny)
    states = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    first = reference.sharpness(tiny, x, y, seed=5)
    assert snapshot(tiny) == state
    assert torch.equal(torch.get_rng_state(), states[0])
    assert repr(np.random.get_state()) == states[1]  # noqa: NPY002
    torch.rand(3)
    assert reference.sharpness(tiny, x, y, seed=5) == first


def test_sharpness_refuses_what_pgd_refuses(tiny):
    with pytest.raises(ValueError, match=r"x spans .*outside the pixel box"):
        reference.sharpness(tiny, torch.full((2, 4), 2.0), [0, 1])
    with pytest.raises(ValueError, match=r"y spans 0\.\.7, expected class numbers in 0\.\.2"):
        reference.sharpness(tiny, torch.rand(2, 4), [0, 7])
