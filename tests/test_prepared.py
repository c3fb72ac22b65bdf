"""A prepared model is the same model in another arithmetic, which each result names."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import gradlens as gl
from gradlens.folding import folding
from gradlens.model import frozen, input_gradient
from gradlens.provenance import named

BALL = gl.Ball(0.1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip
        for norm in (made[1], made[4]):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return made.eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def bits(model: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in model.state_dict().values()]


def test_bfloat16_of_one_layer_is_the_product_of_rounded_numbers():
    layer = nn.Linear(6, 4, bias=False)
    x, y = torch.rand(5, 6), torch.tensor([0, 1, 2, 3, 0])
    rounded = layer.weight.detach().bfloat16().double()
    answer, _, grad = input_gradient(gl.prepare(layer, precision="bfloat16"), x, y, gl.losses.margin)
    exact = x.bfloat16().double() @ rounded.T
    torch.testing.assert_close(answer.double(), exact, rtol=2**-8, atol=0)  # the sum, rounded once more
    others = answer.clone()
    others[range(5), y] = -torch.inf
    torch.testing.assert_close(grad.double(), rounded[others.argmax(1)] - rounded[y], rtol=2**-7, atol=2**-9)
    assert answer.dtype == grad.dtype == torch.float32


def test_float32_on_a_cpu_is_the_model_itself_to_the_bit(model, x):
    plain, ready = gl.stability(model, x, ball=BALL, steps=3), gl.stability(gl.prepare(model), x, ball=BALL, steps=3)
    assert torch.equal(plain.trace.adversarial, ready.trace.adversarial)
    assert torch.equal(plain.trace.loss, ready.trace.loss)
    assert plain.made.folded == ready.made.folded == 2
    assert named(model).split(":")[1] == ready.made.model.split(":")[1], "the parameters are the caller's"
    assert ready.made.model.startswith("Sequential in float32:")


def test_bfloat16_folds_batch_norms_too_and_says_what_it_was(model, x):
    ready = gl.prepare(model, precision="bfloat16")
    result = gl.stability(ready, x, ball=BALL, steps=3)
    assert result.made.folded == 2
    assert result.made.model == named(model).replace("Sequential", "Sequential in bfloat16")
    exact = gl.stability(model, x, ball=BALL, steps=3)
    gap = (result.trace.grad_norm[0] / exact.trace.grad_norm[0] - 1).abs()
    assert 0 < gap.amax() < 0.2
    assert gap.median() < 0.02
    assert gl.stability(ready, x, ball=BALL, steps=1).trace.clean.dtype == torch.float32


def test_folded_answers_in_bfloat16_are_as_near_the_truth_as_unfolded_ones(model, x):
    ready = gl.prepare(model, precision="bfloat16")
    with frozen(ready):
        truth, as_it_is = copy.deepcopy(model).double()(x.double()), ready(x)
        with folding(ready, x)():
            folded = ready(x)
    assert not torch.equal(folded, as_it_is)
    assert (folded - truth).square().mean() < 2 * (as_it_is - truth).square().mean()


def test_what_the_model_looks_at_keeps_it_unfolded_in_bfloat16_too(model, x):
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(model)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + 0.1 * self.inner[0](x).mean((1, 2, 3))[:, None] * torch.arange(10)

    assert gl.stability(gl.prepare(Peeks(), precision="bfloat16"), x, ball=BALL, steps=1).made.folded < 2


def test_the_model_is_left_as_it_was_and_is_not_copied(model, x):
    own = copy.deepcopy(model).train()
    before, ready = bits(own), gl.prepare(own, precision="bfloat16")
    gl.gradients(ready, x, ball=BALL)
    assert own.training
    assert all(p.requires_grad for p in own.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, bits(own), strict=True))
    with torch.no_grad():
        own[-1].bias.add_(1.0)
        own.eval()
        assert torch.allclose(ready(x), own(x), atol=0.2)
    assert gl.prepare(ready, precision="tf32").model is own, "prepared anew, not twice"


def test_a_copy_in_float64_calculates_in_float64(model, x):
    for compiled in (False, True):
        twin = copy.deepcopy(gl.prepare(model, precision="bfloat16", compile=compiled)).double()
        assert torch.equal(twin(x.double()), copy.deepcopy(model).double()(x.double()))


def test_a_gpus_rules_hold_within_a_measurement_and_are_put_back(model):
    rules = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [rule.fp32_precision for rule in rules]
    for precision, expected in (("float32", "ieee"), ("tf32", "tf32"), ("bfloat16", "ieee")):
        with frozen(gl.prepare(model, precision=precision)):
            assert [rule.fp32_precision for rule in rules] == [expected] * 2
        assert [rule.fp32_precision for rule in rules] == before


COMPILED = """
import torch
from torch import nn
import gradlens as gl

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
x, ball = torch.rand(6, 3, 8, 8), gl.Ball(0.1)
y, ready = gl.predict(model, x), gl.prepare(model, compile=True)
result, plain = (gl.stability(m, x, y, ball, steps=3) for m in (ready, model))
torch.testing.assert_close(result.trace.loss[0], plain.trace.loss[0], rtol=1e-4, atol=1e-5)
torch.testing.assert_close(result.trace.gradient, plain.trace.gradient, rtol=1e-3, atol=1e-5)
assert result.made.folded == 1
assert result.made.model.startswith("Sequential in float32, compiled:")
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
assert graphs > 0
with torch.no_grad():
    model[0].weight.mul_(2)
again, plain = (gl.pgd(m, x, y, ball, steps=3) for m in (ready, model))
torch.testing.assert_close(again.loss[0], plain.loss[0], rtol=1e-4, atol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "compiled anew for the same model"
ready(x[:2])
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "one look at a model is not worth compiling"
bent, plain = (gl.spectrum(m, x, y, k=1, generator=torch.Generator().manual_seed(0)) for m in (ready, model))
torch.testing.assert_close(bent.eigenvalues, plain.eigenvalues)
assert bent.made.model.startswith("Sequential in float32:")
"""


@pytest.mark.slow
def test_a_compiled_model_answers_and_slopes_as_before_and_is_differentiated_twice_without():
    """In a process of its own: the type checks that the tests add are no code for a compiler."""
    command = [sys.executable, "-W", "error::UserWarning:gradlens", "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_kind_of_measurement_takes_one(model, x):
    ready, y = gl.prepare(model, precision="bfloat16"), gl.predict(model, x)
    assert gl.robustness(ready, x, y, BALL, attacks="quick").made.model.startswith("Sequential in bfloat16")
    assert "bfloat16" in str(gl.weight_line(ready, x, y, BALL, points=3).made)
    assert gl.entropy(ready, x, y).made.model.startswith("Sequential in bfloat16")
