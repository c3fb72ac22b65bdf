"""Batch norms folded away: the same function, only where nothing else can tell, and everything back afterwards."""

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import gradlens as gl
from gradlens import batches
from gradlens.folding import WIDE, Folding, folding
from gradlens.landscape import survey
from gradlens.losses import cross_entropy
from gradlens.model import TF32, frozen, input_gradient
from gradlens.prepared import may_round


def trained(model: nn.Module) -> nn.Module:
    """The model in evaluation mode and float64, its batch norms as if training had moved them."""
    generator = torch.Generator().manual_seed(4)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean.normal_(generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
            if m.affine:
                nn.init.uniform_(m.weight, -2, 2, generator=generator)
                nn.init.normal_(m.bias, generator=generator)
    return model.double().eval()


def pixels(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small(*middle: nn.Module, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5))


class Read(nn.Module):
    """A convolution whose answer is read by a batch norm and, `also`, by something else."""

    def __init__(self, also: str) -> None:
        super().__init__()
        self.also = also
        self.conv, self.norm, self.end = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        if self.also == "skip":
            out = self.norm(out) + out
        elif self.also == "in place":
            out = self.norm(out.mul_(2))
        elif self.also == "twice":
            out = self.norm(out) + self.norm(self.conv(x.flip(-1)))
        elif self.also == "detached":
            out = self.norm(out) * out.detach().mean()
        return self.end(out.mean((2, 3)))


class Viewed(nn.Module):
    """Calls .view() on what a convolution made, as old models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.norm(self.conv(x)).view(len(x), -1))


FOLDED = {
    "conv2d": (small(nn.BatchNorm2d(6)), (3, 8, 8), 1),
    "without bias": (small(nn.BatchNorm2d(6), bias=False), (3, 8, 8), 1),
    "not affine": (small(nn.BatchNorm2d(6, affine=False)), (3, 8, 8), 1),
    "conv1d": (nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(24, 5)), (2, 8), 1),
    "conv3d": (nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Flatten(), nn.Linear(54, 5)), (1, 4, 4, 4), 1),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5)), (12,), 1),
    "view": (Viewed(), (3, 8, 8), 1),
    "resnet18": (torchvision.models.resnet18(num_classes=5), (3, 32, 32), 20),
}
KEPT = {
    "in training batch norm keeps no statistics": small(nn.BatchNorm2d(6, track_running_stats=False)),
    "something between": small(nn.ReLU(), nn.BatchNorm2d(6)),
    **{also: Read(also) for also in ("skip", "in place", "twice", "detached")},
}


@pytest.mark.parametrize("case", FOLDED)
def test_a_folded_model_is_the_same_function(case) -> None:
    model, shape, count = FOLDED[case]
    x, y = pixels(4, *shape), torch.arange(4)
    with frozen(trained(model)):
        plain = input_gradient(model, x, y, cross_entropy)
        fold = folding(model, x)
        with fold():
            norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            assert all(torch.equal(norm(x), x) for norm in norms)  # nothing is left of them
            folded = input_gradient(model, x, y, cross_entropy)
    assert len(fold.pairs) == count == len(norms)
    for was, now in zip(plain, folded, strict=True):
        torch.testing.assert_close(now, was, rtol=1e-9, atol=1e-10)


class Views(nn.Module):
    """Wide enough for another layout, of which the second part of it takes no other."""

    def __init__(self, *, views: bool) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, WIDE, 3), nn.BatchNorm2d(WIDE), nn.Conv2d(WIDE, 8, 3)
        self.views, self.end = views, nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.norm(self.first(x)).relu())
        return self.end(out.view(len(x), -1) if self.views else out.flatten(1))


@pytest.mark.parametrize("views", [False, True])
def test_wide_convolutions_are_laid_out_anew_where_the_model_takes_it(views) -> None:
    model = trained(Views(views=views))
    x, y, held = pixels(4, 3, 8, 8), torch.arange(4), dict(model.first._parameters)
    with frozen(model):
        plain = input_gradient(model, x, y, cross_entropy)
        fold = folding(model, x)
        assert (len(fold.pairs), len(fold.laid)) == (1, 0 if views else 2)
        with fold():
            layout = torch.contiguous_format if views else torch.channels_last
            assert model.second.weight.is_contiguous(memory_format=layout)
            assert model.first.weight.is_contiguous(memory_format=layout)
            after = input_gradient(model, x, y, cross_entropy)
    for was, now in zip(plain, after, strict=True):
        torch.testing.assert_close(now, was, rtol=1e-9, atol=1e-10)
    assert all(model.first._parameters[name] is t for name, t in held.items())
    assert model.second.weight.is_contiguous()


def test_narrow_networks_keep_their_layout_which_is_faster_there_but_not_in_bfloat16() -> None:
    model, x = trained(small(nn.BatchNorm2d(6))).float(), pixels(4, 3, 8, 8).float()
    with frozen(model):
        assert folding(model, x).laid == ()
        assert len(folding(gl.prepare(model, precision="bfloat16"), x).laid) == 1


def test_a_deep_network_is_folded_though_rounding_turns_some_of_its_units() -> None:
    """In float32, where a few gradients move by more than rounding, as they do in the unfolded one."""
    torch.manual_seed(0)
    model = trained(torchvision.models.resnet18(num_classes=10)).float()
    x = pixels(4, 3, 64, 64).float()
    with frozen(model):
        assert len(folding(model, x).pairs) == 20


def test_another_gradient_behind_the_same_answers_is_not_folded_in_float32_either() -> None:
    class Steep(torch.autograd.Function):
        """Its backward pass looks at the numbers that folding changes."""

        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(weight)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0].abs().mean(), None

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.end = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(Steep.apply(self.norm(self.conv(x)), self.conv.weight).mean((2, 3)))

    model, x = trained(Looks()).float(), pixels(4, 3, 8, 8).float()
    with frozen(model):
        assert folding(model, x).pairs == ()


@pytest.mark.parametrize("case", KEPT)
def test_a_pair_that_something_else_looks_into_is_kept(case) -> None:
    model, x = KEPT[case], pixels(4, 3, 8, 8)
    with frozen(trained(model) if "statistics" not in case else model.double()):
        assert folding(model, x) == Folding()


@pytest.mark.parametrize("touch", ["hook", "pre-hook", "norm's hook", "weight norm", "tied", "half", "forward"])
def test_a_layer_that_the_caller_has_touched_is_kept(touch) -> None:
    model = trained(small(nn.BatchNorm2d(6)))
    conv, norm = model[0], model[1]
    match touch:
        case "hook":
            conv.register_forward_hook(lambda *_: None)
        case "pre-hook":
            conv.register_forward_pre_hook(lambda *_: None)
        case "norm's hook":
            norm.register_full_backward_hook(lambda *_: None)
        case "weight norm":
            parametrizations.weight_norm(conv)
        case "tied":
            twin = nn.Conv2d(3, 6, 3)
            twin.weight = conv.weight
            model.add_module("9", nn.Identity())
            model[-1].twin = twin
        case "half":
            model.bfloat16()
        case "forward":
            norm.forward = lambda x: 2 * x
    with frozen(model):
        assert folding(model, pixels(4, 3, 8, 8)).pairs == ()


def test_all_is_back_afterwards_also_after_an_exception() -> None:
    model = trained(small(nn.BatchNorm2d(6)))
    before, parameters = copy.deepcopy(model.state_dict()), list(model.parameters())
    with frozen(model):
        fold = folding(model, pixels(4, 3, 8, 8))
        with pytest.raises(KeyboardInterrupt), fold():
            _interrupt(model, before)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "forward" not in vars(model[1])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _interrupt(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert not torch.equal(model[0].weight, before["0.weight"])
    raise KeyboardInterrupt


@pytest.mark.parametrize("measure", [gl.pgd, gl.stability, gl.gradients])
def test_measurements_do_not_notice_and_say_so(measure, monkeypatch) -> None:
    model, x, y = trained(small(nn.BatchNorm2d(6))), pixels(5, 3, 8, 8), torch.arange(5)

    def table() -> object:
        return measure(model, x, y, gl.Ball(0.05), generator=torch.Generator().manual_seed(1))

    folded = table()
    monkeypatch.setattr(batches, "folding", lambda *_: Folding())
    plain = table()
    assert [getattr(result, "trace", result).made.folded for result in (folded, plain)] == [1, 0]
    left, right = folded.frame(), plain.frame()
    for name in left:
        torch.testing.assert_close(
            torch.tensor(left[name].to_numpy(float)), torch.tensor(right[name].to_numpy(float)),
            rtol=1e-6, atol=1e-8, equal_nan=True, msg=name,
        )  # fmt: skip


@pytest.mark.parametrize("way", ["filter", "bias", "norm"])
def test_planes_through_weight_space_do_not_notice(way, monkeypatch) -> None:
    """Filters, biases of folded layers, and a batch norm's own weight, which cannot be folded away where it moves."""
    model, x, y = trained(small(nn.BatchNorm2d(6))), pixels(5, 3, 8, 8), torch.arange(5)
    model.requires_grad_(True)
    weight, bias, gain = model[0].weight.detach(), model[0].bias.detach(), model[1].weight.detach()
    directions = {
        "filter": "filter",
        "bias": [{"0.bias": bias.flip(0)}, {"0.weight": weight.flip(0), "4.bias": torch.arange(5.0).double()}],
        "norm": [{"1.weight": gain.flip(0)}, {"0.weight": weight.flip(0)}],
    }[way]

    def plane() -> gl.WeightSurface:
        return gl.weight_plane(
            model, x, y, directions=directions, points=3, metrics=("loss", "error"),
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip

    folded = plane()
    assert folded.made.folded == (0 if way == "norm" else 1)
    assert folded.centre_error.max() < 1e-12
    monkeypatch.setattr(survey, "folding", lambda *_: Folding())
    plain = plane()
    assert plain.values.amax() - plain.values.amin() > 0.1
    torch.testing.assert_close(folded.values, plain.values, rtol=1e-9, atol=1e-10)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(folded.directions, plain.directions, strict=True) for k in a)


def test_a_user_s_metric_sees_the_model_s_own_weights() -> None:
    model, x, y = trained(small(nn.BatchNorm2d(6))), pixels(5, 3, 8, 8), torch.arange(5)
    model.requires_grad_(True)

    def size(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return model[0].weight.norm().expand(len(x))

    line = gl.weight_line(
        model, x, y, directions=[{"4.bias": torch.ones(5).double()}], points=3, metrics=("loss", size)
    )
    torch.testing.assert_close(line.of("size"), model[0].weight.detach().norm().expand(3, 1))


class Dark(nn.Module):
    """Lets the bare convolution through where an image is dark."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        bare = self.conv(x)
        out, dark = self.norm(bare), x.mean((1, 2, 3)) < 0.5
        if dark.any():
            out = out + torch.where(dark[:, None, None, None], bare, torch.zeros_like(bare))
        return self.end(out.mean((2, 3)))


def test_images_on_which_the_folded_model_is_another_are_measured_as_it_is() -> None:
    model, bright = trained(Dark()), 0.6 + 0.3 * pixels(20, 3, 8, 8)
    x, y = torch.cat([bright, 0.3 * pixels(4, 3, 8, 8)]), torch.arange(24) % 5
    together, apart = gl.pgd(model, x, y, batch=8), gl.pgd(model, x[20:], y[20:])
    assert (gl.pgd(model, bright, y[:20]).made.folded, together.made.folded, apart.made.folded) == (1, 1, 0)
    torch.testing.assert_close(together.margin[:, 20:], apart.margin, rtol=1e-9, atol=1e-9)
    whole = gl.pgd(model, x, y)
    torch.testing.assert_close(whole.margin[:, 20:], apart.margin, rtol=1e-9, atol=1e-9)


class Strict(nn.Module):
    """Insists on a convolution without a bias, which a folded one has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        assert self.conv.bias is None
        return self.norm(self.conv(x)).mean((2, 3))


def test_a_model_that_looks_at_its_layers_is_measured_as_it_is() -> None:
    assert gl.pgd(trained(Strict()), pixels(3, 3, 8, 8), [0, 1, 2]).made.folded == 0


def test_a_compiled_model_is_kept() -> None:
    model = trained(small(nn.BatchNorm2d(6)))
    model.compile()
    with frozen(model):
        assert folding(model, pixels(4, 3, 8, 8)).pairs == ()


def test_what_a_gpu_rounds_to_tf32_is_folded_all_the_same(monkeypatch):
    """A GPU rounds the factors of a convolution to ten bits, unless told otherwise; here it is done by hand."""

    def rounded(t: Tensor) -> Tensor:
        bits = t.detach().view(torch.int32)
        near = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
        return t + (near - t).detach()

    def product(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if may_round():
            x, weight = rounded(x), rounded(weight)
        return nn.functional.conv2d(x, weight, bias, layer.stride, layer.padding)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", product)
    model = trained(small(nn.BatchNorm2d(6))).float()
    x, ball = pixels(8, 3, 8, 8).float(), gl.Ball(0.1)
    assert gl.pgd(model, x, None, ball, steps=1).made.folded == 0, "more than float32 rounds"
    monkeypatch.setattr("gradlens.folding.rounding", lambda model, x: TF32)
    assert gl.pgd(model, x, None, ball, steps=1).made.folded == 1
    with frozen(model):
        fold = folding(model, x)
        answer = model(x).detach()
        assert fold.holds(model, x, answer)
        assert not fold.holds(model, x, answer + 0.1 * answer.abs().amax() * torch.eye(5)[0]), "no rounding is so large"
