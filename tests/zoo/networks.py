"""scikit-learn's digits, small networks, and how the zoo trains them: nothing here hides a gradient."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINED_ON = 1200  # of 1797 images; the others are held out
RADIUS = 0.1  # Linf, pixels: what adversarial training defends against


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8) in [0, 1] and their labels."""
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


def split(seed: int) -> tuple[Tensor, Tensor]:
    """Which images this seed trains on, and which it holds out."""
    order = torch.randperm(len(digits()[1]), generator=torch.Generator().manual_seed(seed))
    return order[:TRAINED_ON], order[TRAINED_ON:]


def cnn(
    activation: Callable[[], nn.Module] = nn.ReLU,
    *,
    channels: int = 1,
    norm: bool = False,
    dropout: float = 0.0,
    average: bool = False,
) -> nn.Sequential:
    """Two convolutions and a linear layer; `average` pools where others stride."""
    norms = [nn.BatchNorm2d(12), nn.BatchNorm2d(24)] if norm else [nn.Identity(), nn.Identity()]
    first = [nn.Conv2d(channels, 12, 3, padding=1), norms[0], activation()]
    second = [nn.Conv2d(12, 24, 3, 1 if average else 2, padding=1), norms[1], activation()]
    narrow = [nn.AvgPool2d(2)] if average else []
    return nn.Sequential(*first, *narrow, *second, nn.Flatten(), nn.Dropout(dropout), nn.Linear(384, 10))


def mlp(width: int = 96, activation: Callable[[], nn.Module] = nn.ReLU, *, depth: int = 2) -> nn.Sequential:
    """`depth` hidden layers of `width` units."""
    widths = [64] + [width] * depth
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


def fit(
    model: nn.Module,
    seed: int,
    *,
    steps: int = 200,
    rate: float = 3e-3,
    decay: float = 0.0,
    smoothing: float = 0.0,
    attacked: bool = False,
    temperature: float = 1.0,
    teacher: nn.Module | None = None,
) -> nn.Module:
    """Train on this seed's images; ready in evaluation mode.

    `attacked` trains on points that two steps of PGD find (Madry et al. 2018). With a `teacher` its softmax at
    `temperature` takes the place of the labels.
    """
    x, y = digits()
    train = split(seed)[0]
    optimizer = torch.optim.AdamW(model.train().parameters(), rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        rows = train[torch.randint(len(train), (64,))]
        a, b = x[rows], y[rows]
        if attacked:
            a = _inner(model, a, b)
        target = b if teacher is None else (teacher(a) / temperature).softmax(1).detach()
        optimizer.zero_grad()
        F.cross_entropy(model(a) / temperature, target, label_smoothing=smoothing).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(True)


def _inner(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    point = (x + RADIUS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(2):
        point = point.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
        point = (x + (point + 0.75 * RADIUS * grad.sign() - x).clamp(-RADIUS, RADIUS)).clamp(0, 1)
    return point.detach()
