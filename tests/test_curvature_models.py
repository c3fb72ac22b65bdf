"""The spectrum of messy models: shared, frozen, unused, 0-d weights, attention, half precision, batch norm, noise."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlens as gl
from gradlens import reference
from tests.analytic import Answers, Counting, Detached, InPlace, Random, smooth_cnn, snapshot
from tests.test_curvature import exact


class Messy(nn.Module):
    """A shared matrix, a 0-d scale, a frozen bias, a layer that is never used, dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.5)
        self.first.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(torch.tanh(self.norm(self.first(x))))
        return self.scale * self.second(hidden)


@pytest.fixture
def messy() -> nn.Module:
    torch.manual_seed(1)
    model = Messy().double().train()
    model.norm.running_mean.uniform_(-0.2, 0.2)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


@pytest.fixture
def x() -> Tensor:
    return torch.rand(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(12) % 4


def tied(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The exact Hessian in the free parameters, the shared matrix once, written out by hand."""
    norm, bias = model.norm, model.first.bias.detach()
    sizes = [16, 4, 4, 1]

    def mean_loss(flat: Tensor) -> Tensor:
        matrix, weight, shift, scale = flat.split(sizes)
        hidden = x @ matrix.view(4, 4).T + bias
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * weight + shift
        return F.cross_entropy(scale * (torch.tanh(hidden) @ matrix.view(4, 4).T), y)

    start = [model.first.weight, norm.weight, norm.bias, model.scale]
    return torch.autograd.functional.hessian(mean_loss, torch.cat([p.detach().flatten() for p in start]))


def test_shared_frozen_unused_and_scalar_parameters(messy, x, y):
    h = tied(messy, x, y)
    state = snapshot(messy)
    s = gl.spectrum(messy, x, y, k=3)
    assert s.names == ("scale", "first.weight", "norm.weight", "norm.bias", "unused.weight", "unused.bias")
    assert s.size == 25 + 8
    values = torch.cat([torch.linalg.eigvalsh(h), torch.zeros(8).double()]).sort().values  # the unused layer's rows
    torch.testing.assert_close(s.eigenvalues, values.flip(0)[:3])
    torch.testing.assert_close(s.bottom, values[:3])
    torch.testing.assert_close(s.trace, h.trace())
    assert s.vectors[0]["scale"].shape == ()
    assert not s.vectors[0]["unused.weight"].abs().max() > 1e-9
    assert snapshot(messy) == state


@pytest.mark.parametrize("names", ["second.*", ["second.weight"], ["first.*"], ("*rst.weight",)])
def test_a_pattern_chooses_parameters_by_any_of_their_names_frozen_ones_stay_out(names, messy, x, y):
    s = gl.spectrum(messy, x, y, names=names, k=2)
    assert s.names == ("first.weight",) and s.size == 16
    values = torch.linalg.eigvalsh(tied(messy, x, y)[:16, :16])
    torch.testing.assert_close(s.eigenvalues, values.flip(0)[:2])
    assert f"names={names!r}" in s.made.call


def test_the_reference_knows_the_same_messy_model(messy, x, y):
    ours = gl.spectrum(messy, x, y, k=2)
    state = snapshot(messy)
    theirs = reference.spectrum(messy, x, y, ours, tolerance=1e-6, batch=5, probes=200)
    torch.testing.assert_close(theirs.eigenvalues, ours.eigenvalues, rtol=0.02, atol=0)
    assert abs(theirs.trace - ours.trace) < 4 * theirs.trace_error
    assert snapshot(messy) == state
    assert theirs.ritz is ours.ritz  # its own density cannot run


class Attentive(nn.Module):
    """A vision transformer in small: patches, a transformer layer with fused attention, and one of our own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).flatten(1, 3)
        tokens = self.layer(self.embed(patches))
        tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.head(tokens.mean(1))


@pytest.mark.parametrize("names", [None, "head.*", "embed.weight"])
def test_attention_has_second_derivatives(names):
    torch.manual_seed(0)
    model = Attentive().double()
    x, y = torch.rand(4, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    s = gl.spectrum(model, x, y, names=names, k=2)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        values = torch.linalg.eigvalsh(exact(model.eval(), x, y, names=s.names))
    torch.testing.assert_close(s.eigenvalues, values.flip(0)[:2], rtol=1e-6, atol=1e-9)
    assert s.converged.all() and s.eigenvalues[0] > 0.01
    inputs = gl.spectrum(model, x, y, of="inputs", k=1)
    assert inputs.converged.all() and (inputs.eigenvalues.abs() > 0).all()


@pytest.mark.parametrize("of", ["weights", "inputs"])
def test_half_precision_is_computed_in_single(of, images):
    rough = smooth_cnn().bfloat16()
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    x = images.bfloat16()
    single = copy.deepcopy(rough).float()
    state = snapshot(rough)
    ours = gl.spectrum(rough, x, y, of=of, k=2, steps=30)
    same = gl.spectrum(single, x.float(), y, of=of, k=2, steps=30)
    torch.testing.assert_close(ours.eigenvalues, same.eigenvalues, rtol=1e-3, atol=1e-4)
    first = ours.vectors[0]["0.weight"] if of == "weights" else ours.vectors[0]
    assert first.dtype == torch.float32
    assert snapshot(rough) == state


@pytest.mark.parametrize("of", ["weights", "inputs"])
@pytest.mark.parametrize(
    "wrap", [InPlace, lambda m: Counting(m, is_replaced=True), lambda m: Counting(m, is_replaced=False)]
)
def test_the_model_is_as_it_was(of, wrap, images):
    model = wrap(smooth_cnn()).train()
    next(model.parameters()).requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = snapshot(model)
    with torch.no_grad():  # as a caller who only evaluates may have set it
        s = gl.spectrum(model, images, None, of=of, k=1, steps=10)
    assert s.eigenvalues.isfinite().all()
    assert snapshot(model) == state


def test_the_model_is_as_it_was_after_an_exception(images):
    model = smooth_cnn().train()
    state, calls = snapshot(model), []

    def breaks(logits: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise KeyError("reward")
        return F.cross_entropy(logits, y, reduction="none")

    with pytest.raises(KeyError):
        gl.spectrum(model, images, None, loss=breaks)
    assert snapshot(model) == state


@pytest.mark.parametrize("of", ["weights", "inputs"])
def test_a_random_model_or_loss_is_refused(of, images):
    y = [0, 1, 2, 3, 0, 1]
    with pytest.raises(ValueError, match="model is random between two passes"):
        gl.spectrum(Random(smooth_cnn(), 0.1), images, y, of=of)

    def sampled(logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, reduction="none") * torch.rand(len(y))

    with pytest.raises(ValueError, match="loss is random between two passes"):
        gl.spectrum(smooth_cnn(), images, y, of=of, loss=sampled)


def test_no_way_from_input_or_weights_to_the_loss_is_no_curvature(images):
    s = gl.spectrum(Detached(smooth_cnn()), images, None, of="inputs", k=2)
    assert (s.eigenvalues == 0).all() and (s.trace == 0).all() and s.rise.isnan().all()

    def constant(logits: Tensor, y: Tensor) -> Tensor:
        return torch.ones(len(y), dtype=logits.dtype)

    assert (gl.spectrum(smooth_cnn(), images, None, loss=constant, k=2).eigenvalues == 0).all()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class Rough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return Once.apply(self.linear(x))


@pytest.mark.parametrize("of", ["weights", "inputs"])
def test_a_layer_without_second_derivative_is_named_as_the_reason(of):
    with pytest.raises(ValueError, match=r"model \(Rough\) or loss has a part without second derivatives"):
        gl.spectrum(Rough(), torch.rand(3, 2), [0, 1, 0], of=of, k=1)


def test_a_curvature_that_is_undefined_is_nan(images):
    """The derivative of the square root at 0 is infinite: no number is made of that."""
    model = Answers(lambda x: torch.stack([x.sum((1, 2, 3)), (x - x.detach()).square().sum((1, 2, 3)).sqrt()], 1))
    s = gl.spectrum(model, images.float(), [0] * 6, of="inputs", k=2)
    assert s.eigenvalues.isnan().all() and s.trace.isnan().all() and not s.converged.any()


def frozen_model() -> nn.Module:
    return smooth_cnn().requires_grad_(False)


BAD = {
    "frozen": (frozen_model, {}, r"a model without parameters that require gradients"),
    "k": (smooth_cnn, {"k": 300}, r"k is 300, expected at most 292"),
    "k pixels": (smooth_cnn, {"k": 51, "of": "inputs"}, r"k is 51, expected at most 50"),
    "k 0": (smooth_cnn, {"k": 0}, r"k is 0, expected at least 1, a whole number"),
    "few steps": (smooth_cnn, {"steps": 4}, r"steps is 4, expected at least k = 5"),
    "probes": (smooth_cnn, {"probes": 1}, r"probes is 1, expected at least 2, a whole number"),
    "depth": (smooth_cnn, {"depth": 0}, r"depth is 0, expected at least 1"),
    "precision": (smooth_cnn, {"precision": 0.0}, r"precision is 0\.0, expected a positive share"),
    "names": (smooth_cnn, {"names": "0.wieght"}, r"names holds '0\.wieght', which matches no .*nearest.*'0\.weight'"),
    "one of names": (smooth_cnn, {"names": ["0.*", "layer4.*"]}, r"names holds 'layer4\.\*', which matches no"),
    "no names": (smooth_cnn, {"names": []}, r"names is empty"),
    "names of inputs": (smooth_cnn, {"names": "0.*", "of": "inputs"}, r"names is '0\.\*', expected None"),
    "batch": (smooth_cnn, {"batch": 0}, r"batch is 0, expected at least 1"),
    "mean loss": (smooth_cnn, {"loss": F.cross_entropy}, r"loss returns shape \(\)"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "options", "message"), BAD.values(), ids=BAD)
def test_bad_knobs_are_refused_by_name(model, options, message, images):
    with pytest.raises(ValueError, match=message):
        gl.spectrum(model(), images, [0, 1, 2, 3, 0, 1], **options)


def test_other_types_are_refused_by_name_where_no_type_checker_is_before(images):
    plain = gl.spectrum
    while hasattr(plain, "__wrapped__"):
        plain = plain.__wrapped__
    for options, message in (
        ({"of": "logits"}, "of is 'logits', expected one of 'weights', 'inputs'"),
        ({"k": True}, "k is True, expected at least 1, a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            plain(smooth_cnn(), images, **options)


def test_a_pattern_of_frozen_parameters_says_so(messy, x, y):
    with pytest.raises(ValueError, match=r"names holds 'first\.bias', which matches only frozen parameters"):
        gl.spectrum(messy, x, y, names="first.bias")


@pytest.mark.parametrize("of", ["weights", "inputs"])
def test_no_samples_and_bad_samples_are_refused(of, images):
    with pytest.raises(ValueError, match="x has shape"):
        gl.spectrum(smooth_cnn(), images[:0], [], of=of)
    with pytest.raises(ValueError, match="x yields no images"):
        gl.spectrum(smooth_cnn(), [], of=of)
    with pytest.raises(ValueError, match=r"x holds torch\.uint8"):
        gl.spectrum(smooth_cnn(), (images * 255).byte(), of=of)
    with pytest.raises(ValueError, match="outside the pixel box"):
        gl.spectrum(smooth_cnn(), images * 3, of=of)


def test_the_reference_refuses_a_spectrum_of_inputs_and_impossible_readings_are_refused(images):
    s = gl.spectrum(smooth_cnn(), images, [0] * 6, of="inputs", k=1, steps=5)
    with pytest.raises(ValueError, match="ours is a spectrum of the inputs"):
        reference.spectrum(smooth_cnn(), images, [0] * 6, s)
    with pytest.raises(ValueError, match="rise is 0"):
        s.basin_width(0.0)
    with pytest.raises(ValueError, match="width is -1"):
        s.density(torch.linspace(0, 1, 3), -1.0)


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(images, monkeypatch):
    from gradlens.curvature import products

    y = [0, 1, 2, 3, 0, 1]
    whole = gl.spectrum(smooth_cnn(), images, y, k=1, steps=10, generator=torch.Generator().manual_seed(0))
    build = products._Graph.__init__

    def scarce(self, model, run, leaves):
        def watched() -> Tensor:
            losses = run()
            if len(losses) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return losses

        build(self, model, watched, leaves)

    monkeypatch.setattr(products._Graph, "__init__", scarce)
    with pytest.warns(RuntimeWarning, match="out of memory with"):
        halved = gl.spectrum(smooth_cnn(), images, y, k=1, steps=10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(halved.eigenvalues, whole.eigenvalues)
    torch.testing.assert_close(halved.trace, whole.trace)
