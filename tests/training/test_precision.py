"""How weights move: optimisers, clipping, the average of the weights, precision, layout, compilation."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import data, loop, optimize
from training.config import Config
from training.loop import Training, moment
from training.randomness import Generators


def training(**config: Any) -> Training:
    return loop.start(Config(**{"schedule": "sl:2", "batch": 128, **config}), data.load("digits"))


def steps(run: Training, count: int) -> list[list[float]]:
    """Loss, reward and entropy of some steps on consecutive images."""
    generators = Generators.of(run.config.seed, 0)
    run.trainee.module.train()
    size = run.config.batch
    batches = [torch.arange(i * size, (i + 1) * size) for i in range(count)]
    return [loop.step(run, moment(run, 0, 0.0), batch, generators).tolist() for batch in batches]


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def test_sgd_is_nesterovs() -> None:
    """v <- 0.9 v + g + decay w, w <- w - lr (g + decay w + 0.9 v), in the words of Sutskever et al. (2013)."""
    layer = nn.Linear(1, 1, bias=False)
    weight, velocity = layer.weight.item(), 0.0
    sgd = optimize.optimizer(layer, Config(optimizer="sgd", lr=0.1, weight_decay=0.01))
    for grad in (1.0, -0.5, 0.3):
        layer.weight.grad = torch.tensor([[grad]])
        sgd.step()
        slope = grad + 0.01 * weight
        velocity = 0.9 * velocity + slope
        weight -= 0.1 * (slope + 0.9 * velocity)
    assert layer.weight.item() == pytest.approx(weight, rel=1e-5)


def test_adamw_is_adam_with_decoupled_decay() -> None:
    layer = nn.Linear(1, 1, bias=False)
    weight, first, second = layer.weight.item(), 0.0, 0.0
    adamw = optimize.optimizer(layer, Config(lr=0.1, weight_decay=0.01))
    for t, grad in enumerate((1.0, -0.5, 0.3), start=1):
        layer.weight.grad = torch.tensor([[grad]])
        adamw.step()
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        weight -= 0.1 * 0.01 * weight
        weight -= 0.1 * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)) ** 0.5 + 1e-8)
    assert layer.weight.item() == pytest.approx(weight, rel=1e-4)


def test_clipping_bounds_the_gradient_of_all_weights_together() -> None:
    """SGD without momentum and decay moves the weights by lr times the gradient: by lr x clip where it binds."""
    moved = {}
    for clip in (None, 0.01):
        run = training(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.5, clip=clip)
        before = flat(run.trainee.model)
        steps(run, 1)
        moved[clip] = flat(run.trainee.model) - before
    assert moved[0.01].norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert moved[None].norm() > 0.5 * 0.1
    torch.testing.assert_close(moved[0.01] / moved[0.01].norm(), moved[None] / moved[None].norm(), atol=1e-4, rtol=1e-3)


def test_the_average_is_the_recursion_and_what_is_kept() -> None:
    run = training(ema=0.75)
    average = None
    for _ in range(4):
        steps(run, 1)
        weights = flat(run.trainee.model).double()
        average = weights if average is None else 0.75 * average + 0.25 * weights
    assert run.trainee.averaged is not None
    assert run.trainee.product is run.trainee.averaged.module
    torch.testing.assert_close(flat(run.trainee.product).double(), average, rtol=1e-5, atol=1e-6)
    means = [dict(m.named_buffers())["model.1.running_mean"] for m in (run.trainee.product, run.trainee.model)]
    assert torch.equal(*means)


def test_bfloat16_trains_float32_weights_to_nearly_the_same_loss() -> None:
    exact, rough = (training(precision=precision) for precision in ("float32", "bfloat16"))
    dtypes: list[torch.dtype] = []
    rough.trainee.model.model[0].register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    a, b = steps(exact, 5), steps(rough, 5)
    assert set(dtypes) == {torch.bfloat16}
    assert {p.dtype for p in rough.trainee.model.parameters()} == {torch.float32}
    for one, other in zip(a, b, strict=True):
        assert other == pytest.approx(one, rel=0.05)
    assert a != b


def test_layout_changes_nothing_but_rounding() -> None:
    plain, last = training(), training(channels_last=True)
    weight = last.trainee.model.model[4].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(steps(plain, 3), steps(last, 3), strict=True):
        assert other == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, on its way to a C++ compiler
def test_compiled_training_is_the_same_training() -> None:
    plain, compiled = training(), training(compile=True)
    for one, other in zip(steps(plain, 3), steps(compiled, 3), strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    assert set(compiled.trainee.model.state_dict()) == set(plain.trainee.model.state_dict())


def test_a_step_minimises_the_mean_over_the_batch() -> None:
    """Against plain autograd of the mean cross-entropy: SGD at lr 1 moves the weights by minus its gradient."""
    run = training(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=1.0)
    twin = copy.deepcopy(run.trainee.model).train()
    before = flat(run.trainee.model)
    x, y = run.dataset.train.at(torch.arange(128))
    nn.functional.cross_entropy(twin(x), y).backward()
    steps(run, 1)
    slope = torch.cat([p.grad.flatten() for p in twin.parameters() if p.grad is not None])
    torch.testing.assert_close(flat(run.trainee.model), before - slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", 1), ("lr", 0.0), ("lr_end", 2.0), ("clip", 0.0), ("ema", 1.0), ("epsilon", 1.5), ("attack_steps", 0)],
)
def test_refuses_numbers_without_meaning(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}, expected"):
        Config(**{field: value})


def test_an_unknown_augmentation_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"augment is 'papr', expected one of .*did you mean 'paper'"):
        Config(augment="papr")
