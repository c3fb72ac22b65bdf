"""Models whose answers are known on paper."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Binary(nn.Module):
    """Logits (0, z(x)): with label 0 the margin is z and the cross-entropy log(1 + e^z)."""

    def z(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        z = self.z(x.flatten(1))
        return torch.stack([torch.zeros_like(z), z], 1)


class Plane(Binary):
    """z = scale (w.x - b): the gradient is scale w everywhere, the boundary |w.x - b| / ||w||_dual away."""

    def __init__(self, w: Tensor, b: float = 0.5, scale: float = 1.0) -> None:
        super().__init__()
        self.w, self.b, self.scale = nn.Parameter(w.clone()), b, scale

    def z(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.w - self.b)

    def distance(self, x: Tensor, norm: str) -> Tensor:
        """Shortest perturbation that reaches the boundary, in `norm`; the dual of linf is l1, that of l2 is l2."""
        dual = self.w.detach().norm(p=1 if norm == "linf" else 2)
        return (x.flatten(1) @ self.w.detach() - self.b).abs() / dual


class Quadratic(Binary):
    """z = x.A x / 2 + c.x + d, with a fixed symmetric A."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        a = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
        self.a = nn.Parameter((a + a.T) / 2)
        self.c = nn.Parameter(torch.randn(dimension, generator=generator, dtype=torch.float64))
        self.d = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def z(self, x: Tensor) -> Tensor:
        return ((x @ self.a) * x).sum(1) / 2 + x @ self.c + self.d


class Sine(Binary):
    """z = sum of sin(omega x_i) / omega: the gradient at pixel i is cos(omega x_i)."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(omega, dtype=torch.float64))

    def z(self, x: Tensor) -> Tensor:
        return (self.omega * x).sin().sum(1) / self.omega


class Steps(Binary):
    """z counts steps of the mean pixel: its derivative is 0 wherever it exists."""

    def __init__(self, steps: int = 100) -> None:
        super().__init__()
        self.steps = steps

    def z(self, x: Tensor) -> Tensor:
        return (x.mean(1) * self.steps).floor() - self.steps / 2


class Valley(Binary):
    """z falls from its value at the start to a floor and rises behind it: z = (mean pixel - bottom)^2 - depth."""

    def __init__(self, bottom: float, depth: float) -> None:
        super().__init__()
        self.bottom, self.depth = bottom, depth

    def z(self, x: Tensor) -> Tensor:
        return (x.mean(1) - self.bottom) ** 2 - self.depth


class Hinge(Binary):
    """z = mean pixel, up to a ceiling: the gradient is exactly 0 beyond it."""

    def __init__(self, ceiling: float) -> None:
        super().__init__()
        self.ceiling = ceiling

    def z(self, x: Tensor) -> Tensor:
        return x.mean(1).clamp(max=self.ceiling)


class Constant(nn.Module):
    """The same logits for every image: they do not depend on it at all."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.answer.expand(len(x), -1)


class Wrapped(nn.Module):
    """A model inside another, for the ones below."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Detached(Wrapped):
    """Right answers, no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())


class Random(Wrapped):
    """Noise on the input, drawn anew on each pass from a generator of its own, or from torch's."""

    def __init__(self, inner: nn.Module, noise: float, seed: int | None = None) -> None:
        super().__init__(inner)
        self.noise = noise
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.noise * torch.randn(x.shape, generator=self.generator, dtype=x.dtype))


class InPlace(Wrapped):
    """Its first layer overwrites what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.mul_(2).sub_(1))


class Counting(Wrapped):
    """A buffer counts the calls, by writing into it or by putting another in its place."""

    calls: Tensor

    def __init__(self, inner: nn.Module, *, is_replaced: bool) -> None:
        super().__init__(inner)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.is_replaced = is_replaced

    def forward(self, x: Tensor) -> Tensor:
        if self.is_replaced:
            self.calls = self.calls + 1
        else:
            self.calls += 1
        return self.inner(x)


class Answers(nn.Module):
    """Whatever a function makes of the images: wrong shapes, wrong types, NaN, errors."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x * self.scale)


class Bowl(Binary):
    """z = t.A t / 2 + c.t + mean pixel, t all weights that count: quadratic in them, with label 0 the margin itself.

    Of every kind: a matrix, a filter bank, a bias, a 0-d gain, a frozen matrix, one that is used twice; and an unused.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(11)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.5 * torch.randn(shape, generator=generator, dtype=torch.float64))

        self.matrix, self.filters, self.bias, self.gain = drawn(3, 2), drawn(2, 2, 1, 1), drawn(3), drawn()
        self.fixed, self.unused, self.tied = drawn(2, 2).requires_grad_(False), drawn(2, 3), nn.Linear(2, 2, bias=False)
        self.tied.weight = self.filters_twin = drawn(2, 2)
        count = sum(p.numel() for p in self.weights())
        a = torch.randn(count, count, generator=generator, dtype=torch.float64)
        self.register_buffer("a", (a + a.T) / 8)
        self.register_buffer("c", torch.randn(count, generator=generator, dtype=torch.float64) / 4)

    def weights(self) -> list[Tensor]:
        """The parameters that count, in the order of A; the tied one by both of its names."""
        return [
            self.matrix, self.filters, self.bias, self.gain, self.fixed, self.tied.weight, self.filters_twin
        ]  # fmt: skip

    def at(self, weights: list[Tensor]) -> Tensor:
        """t.A t / 2 + c.t for other weights than its own."""
        t = torch.cat([w.reshape(-1) for w in weights])
        return t @ self.a @ t / 2 + self.c @ t

    def z(self, x: Tensor) -> Tensor:
        return self.at(self.weights()) + x.mean(1)


def smooth_cnn(classes: int = 4) -> nn.Module:
    """A float64 network of 2 x 5 x 5 images without kinks, with fixed weights, so that slow versions agree closely."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(16, classes),
        ).double()
        for layer in (model[0], model[2]):
            layer.weight *= 4  # as torch draws them, the network is all but linear
    return model


def snapshot(model: nn.Module) -> dict[str, bytes | bool | None]:
    """All that a measurement must leave as it was: modes, requires_grad, weights, buffers, .grad, to the byte."""
    state: dict[str, bytes | bool | None] = {f"mode {name}": module.training for name, module in model.named_modules()}
    for name, parameter in model.named_parameters():
        state[f"requires_grad {name}"] = parameter.requires_grad
        state[f"weight {name}"] = _bytes(parameter)
        state[f"grad {name}"] = None if parameter.grad is None else _bytes(parameter.grad)
    return state | {f"buffer {name}": _bytes(buffer) for name, buffer in model.named_buffers()}


def _bytes(t: Tensor) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
