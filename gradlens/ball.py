"""The threat model: an Lp ball around each image, cut by the pixel box."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor

from .draws import Source, gaussian, uniform
from .types import Images, Norm, PerSample, SampleMask


def l2(t: Images) -> PerSample:
    """Euclidean length of each sample; exactly 0 only where every entry is.

    Dividing by the largest entry first keeps the squares from underflowing: gradients of 1e-30 are common in
    over-confident models and still point somewhere.
    """
    largest = linf(t)
    return largest * (t / expand(largest.where(largest > 0, 1.0), t)).flatten(1).norm(dim=1)


def linf(t: Images) -> PerSample:
    """Largest absolute entry of each sample."""
    return t.flatten(1).abs().amax(1)


def expand(per_sample: Tensor, like: Tensor) -> Tensor:
    """View one number per sample so that it broadcasts over that sample's pixels."""
    return per_sample.view(-1, *[1] * (like.ndim - 1))


def unit(t: Images) -> Images:
    """Each sample scaled to Euclidean length 1, however small it is; nan for a sample that is all zero."""
    scaled = t / expand(linf(t), t)
    return scaled / expand(scaled.flatten(1).norm(dim=1), t)


def l1(t: Images) -> PerSample:
    """Sum of absolute entries of each sample."""
    return t.flatten(1).abs().sum(1)


def cosine(a: Images, b: Images) -> PerSample:
    """Cosine between two directions, sample by sample; nan where either is exactly zero: no vector, no direction."""
    return (unit(a) * unit(b)).flatten(1).sum(1).clamp(-1, 1)


@dataclass(frozen=True)
class Ball:
    """All images within `eps` of the clean one in `norm`, and within [low, high].

    `eps`, `low` and `high` are in the units of the images, normally pixels in [0, 1]. The default is the convention
    of RobustBench for CIFAR-10: Linf, 8/255. Raises ValueError for an eps that is not positive and finite, an unknown
    norm or an empty pixel box.
    """

    eps: float = 8 / 255
    norm: Norm = "linf"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.eps, Real) and math.isfinite(self.eps) and self.eps > 0):
            raise ValueError(f"eps is {self.eps!r}, expected a positive finite number of pixels, such as 8/255")
        if not isinstance(self.norm, str) or self.norm not in get_args(Norm):
            raise ValueError(f"norm is {self.norm!r}, expected one of {', '.join(map(repr, get_args(Norm)))}")
        if not (isinstance(self.low, Real) and isinstance(self.high, Real) and self.low < self.high):
            raise ValueError(f"the pixel box [low, high] is [{self.low!r}, {self.high!r}], expected low < high")

    def length(self, delta: Images) -> PerSample:
        """Size of a perturbation in this ball's norm, in pixels."""
        return linf(delta) if self.norm == "linf" else l2(delta)

    def dual(self, grad: Images) -> PerSample:
        """By how much a linear function with gradient `grad` rises at most, for a step of length 1 in this norm."""
        return l1(grad) if self.norm == "linf" else l2(grad)

    def project(self, x: Images, centre: Images, radius: PerSample | None = None) -> Images:
        """Bring `x` back inside: ball first, then box. `centre` is in the box, so clamping never leaves the ball.

        A `radius` for each sample, in pixels, stands in for eps.
        """
        delta = x - centre
        eps: Any = self.eps if radius is None else expand(radius, delta)
        if self.norm == "linf":
            delta = delta.clamp(-eps, eps)
        else:
            length = expand(l2(delta), delta)
            delta = torch.where(length > eps, delta * (eps / length), delta)
        return (centre + delta).clamp(self.low, self.high)

    def contains(self, x: Images, centre: Images) -> SampleMask:
        """Is `x` within the ball around `centre` and within the box? Allows for float32 rounding of pixels."""
        rounding = 1e-6 * max(1.0, abs(self.low), abs(self.high))
        boxed = (x >= self.low - rounding) & (x <= self.high + rounding)
        return (self.length(x - centre) <= self.eps * (1 + 1e-5) + rounding) & boxed.flatten(1).all(1)

    def steepest(self, grad: Images) -> Images:
        """The unit step that raises a linear function with gradient `grad` fastest.

        Its length is 1 in this norm for every gradient that is finite and not exactly zero, however small; else it
        is no step at all. Under "l2", and for a pixel whose gradient is nan under "linf", the step is 0.
        """
        if self.norm == "linf":
            return grad.sign().nan_to_num(0.0)
        return unit(grad).nan_to_num(0.0, posinf=0.0, neginf=0.0)

    def sample(self, centre: Images, source: Source = None) -> Images:
        """A random start: uniform in the ball around `centre`, then clamped to the box."""
        return (centre + self.noise(centre, source)).clamp(self.low, self.high)

    def noise(self, like: Images, source: Source = None) -> Images:
        """A random perturbation, uniform in the ball; the box is not looked at."""
        if self.norm == "linf":
            return self.eps * (2 * uniform(like, source) - 1)
        # the share of a d-dimensional ball's volume within radius r grows as r^d
        radius = uniform(like.flatten(1)[:, :1], source).view(-1) ** (1 / like[0].numel())
        return unit(gaussian(like, source)) * expand(self.eps * radius, like)

    def shell(self, centre: Images, radius: float, source: Source = None) -> Images:
        """A random point at distance `radius` (in eps) from `centre`, uniform on the surface of the smaller ball.

        A pixel that would leave the box gets the opposite sign, which keeps the distance exact; only where the box is
        narrower than twice the radius is it clamped.
        """
        if self.norm == "linf":
            delta = 2 * uniform(centre, source) - 1
            delta = delta / expand(linf(delta), delta)
        else:
            delta = unit(gaussian(centre, source))
        delta = radius * self.eps * delta
        outside = (centre + delta < self.low) | (centre + delta > self.high)
        return (centre + torch.where(outside, -delta, delta)).clamp(self.low, self.high)

    def on_surface(self, x: Images, centre: Images) -> PerSample:
        """Share of a sample's pixels on the surface of the ball or of the pixel box.

        A black or white pixel is on the box's surface from the start, though it can still move inwards.

        Under "l2" the ball's surface binds all pixels together or none.
        """
        boxed = (x <= self.low) | (x >= self.high)
        rounding = 1e-6 * max(1.0, abs(self.low), abs(self.high))
        if self.norm == "linf":
            bound = (x - centre).abs() >= self.eps - rounding
        else:
            bound = expand(l2(x - centre) >= self.eps - rounding, x)
        return (boxed | bound).flatten(1).to(x.dtype).mean(1)
