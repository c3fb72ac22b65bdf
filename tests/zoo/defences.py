"""Published ways to make gradients useless while a small perturbation still fools the model."""

import math

import torch
from torch import Tensor, nn


class Before(nn.Module):
    """A defence in front of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def defend(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.defend(x))


class Through(nn.Module):
    """A defence in front of a network, backward as if it were the identity (BPDA, Athalye et al. 2018)."""

    def __init__(self, defence: Before) -> None:
        super().__init__()
        self.defence = defence

    def forward(self, x: Tensor) -> Tensor:
        return self.defence.network(x + (self.defence.defend(x) - x).detach())


class Scaled(nn.Module):
    """Logits multiplied by a constant: float32 rounds the softmax to 0 and 1, and cross-entropy loses its gradient.

    Carlini & Wagner 2017 ("Towards evaluating the robustness") explain distillation so; Guo et al. 2017 scale on
    purpose, for calibration.
    """

    def __init__(self, network: nn.Module, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.network(x)


class Winners(nn.Module):
    """Only the largest `share` of a layer's activations pass, the others are 0: a function of many jumps.

    k-winners-take-all, Xiao, Zhong & Zheng 2020, "Enhancing adversarial defense by k-winners-take-all".
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        kept = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1)
        return torch.zeros_like(flat).scatter(1, kept.indices, kept.values).view_as(x)


class Quantised(Before):
    """Pixels rounded to a few levels; rounding has the gradient 0 (feature squeezing, Xu, Evans & Qi 2018)."""

    levels = 6

    def defend(self, x: Tensor) -> Tensor:
        return (x * self.levels).round() / self.levels


class Thermometer(Before):
    """A channel a threshold, 1 where the pixel is above it: no gradient path at all (Buckman et al. 2018)."""

    levels = 10

    def above(self, x: Tensor) -> Tensor:
        thresholds = (torch.arange(self.levels, dtype=x.dtype, device=x.device) + 0.5) / self.levels
        return x - thresholds.view(1, -1, 1, 1)

    def defend(self, x: Tensor) -> Tensor:
        return (self.above(x) > 0).to(x)


class ThroughThermometer(Through):
    """Backward as through a soft threshold, as Athalye et al. 2018 did it."""

    def forward(self, x: Tensor) -> Tensor:
        soft = (self.defence.above(x) * 2 * self.defence.levels / 3).sigmoid()
        return self.defence.network(soft + (self.defence.defend(x) - soft).detach())


class Jpeg(Before):
    """The one block of 8 x 8 in the cosine basis, its coefficients rounded, and back (Guo et al. 2018; Dziugaite 2016).

    Rounding steps grow with the frequency, as in JPEG's tables.
    """

    basis: Tensor
    table: Tensor

    def __init__(self, network: nn.Module, coarseness: float = 0.12) -> None:
        super().__init__(network)
        k = torch.arange(8)
        basis = (math.pi / 8 * (k + 0.5) * k[:, None]).cos() * math.sqrt(2 / 8)
        basis[0] = math.sqrt(1 / 8)
        self.register_buffer("basis", basis)
        self.register_buffer("table", coarseness * (1 + (k + k[:, None])))

    def defend(self, x: Tensor) -> Tensor:
        coefficients = self.basis @ x @ self.basis.T
        rounded = (coefficients / self.table).round() * self.table
        return self.basis.T @ rounded @ self.basis


class Shattered(Before):
    """A wave of 0.01 pixels and steep slopes on top of each pixel: the gradient exists and points nowhere.

    Athalye et al. 2018 call such defences shattered; with a phase of its own for each pixel.
    """

    phase: Tensor

    def __init__(self, network: nn.Module, height: float = 0.01, frequency: float = 3000.0) -> None:
        super().__init__(network)
        self.height, self.frequency = height, frequency
        self.register_buffer("phase", 2 * math.pi * torch.rand(1, 1, 8, 8))

    def defend(self, x: Tensor) -> Tensor:
        return x + self.height * (self.frequency * x + self.phase).sin()


class Stairs(nn.Module):
    """A fine staircase inside the network whose treads rise and fall in turn: every slope is steep, few are right."""

    def __init__(self, step: float = 0.005, slope: float = 4.0) -> None:
        super().__init__()
        self.step, self.slope = step, slope

    def forward(self, x: Tensor) -> Tensor:
        number = (x / self.step).round().detach()
        tread = x - number * self.step
        return number * self.step + self.slope * (1 - 2 * (number % 2)) * tread


class Detached(Before):
    """The graph is cut behind the input."""

    def defend(self, x: Tensor) -> Tensor:
        return x.detach()


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


class Blocked(Before):
    """The identity forward, zero backward."""

    def defend(self, x: Tensor) -> Tensor:
        return _Blocked.apply(x)


class _Garbled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (1e4 * (x + 0.1) * torch.arange(1, x[0].numel() + 1).view(x[0].shape)).sin()


class Garbled(Before):
    """The identity forward; backward, each pixel's gradient gets a sign that has nothing to do with it."""

    def defend(self, x: Tensor) -> Tensor:
        return _Garbled.apply(x)


class Dithered(Before):
    """The wave of `Shattered` with another phase for each pixel and call: the output is random, its gradient noise.

    Dithering before a steep function, as in randomised discretisation (Zhang & Liang 2019); Athalye et al. 2018 break
    such models by averaging gradients. Plain Gaussian noise of 0.5, or random resizing (Xie et al. 2018), cost PGD
    fewer than 10 points on images of 8 x 8 (seed 0).
    """

    height, slope = 0.05, 5.0

    def defend(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * torch.rand_like(x)
        return x + self.height * (self.slope / self.height * x + phase).sin()


class Dropped(Before):
    """Only some pixels are looked at, others at each call (Hosseini, Kannan & Poovendran 2019)."""

    keep = 0.3

    def defend(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) < self.keep)


class Counted(nn.Module):
    """A random defence whose draws a call counter seeds, kept in a buffer or in a plain attribute."""

    calls: Tensor | int

    def __init__(self, defence: Before, *, is_buffer: bool) -> None:
        super().__init__()
        self.defence = defence
        if is_buffer:
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        else:
            self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(self.calls))  # torch.manual_seed would look for GPUs each time
            return self.defence(x)
