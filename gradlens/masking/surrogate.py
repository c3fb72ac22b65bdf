"""A model of one's own, trained on another's answers: what an attacker without its gradients would make."""

import torch
import torch.nn.functional as F
from torch import nn

from ..ball import Ball
from ..batches import Room, answers
from ..draws import keys
from ..model import logits
from ..types import Images
from .subject import seeded

STEPS, RATE, WIDTH, BATCH = 300, 2e-3, 256, 128


def distilled(model: nn.Module, x: Images, ball: Ball, number: int) -> nn.Module:
    """A perceptron that gives `model`'s labels at points up to 2 eps around `x` (Papernot et al. 2017).

    Labels alone: what the model does to its scores does not carry over. The order of `x` does not matter.
    """
    marks = keys(x)
    x = x[sorted(range(len(x)), key=marks.__getitem__)]
    wide = Ball(2 * ball.eps, ball.norm, ball.low, ball.high)
    with seeded(number), torch.enable_grad():
        size, classes = x[0].numel(), logits(model, x[:1]).shape[1]
        student = nn.Sequential(
            nn.Flatten(), nn.Linear(size, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(),
            nn.Linear(WIDTH, classes),
        ).to(x)  # fmt: skip
        room = Room(BATCH)
        optimizer = torch.optim.Adam(student.parameters(), RATE)
        for _ in range(STEPS):
            part = x[torch.randint(len(x), (BATCH,)).to(x.device)]
            points = wide.sample(part)
            with torch.no_grad():
                labels = answers(model, points, room).argmax(1)
            loss = F.cross_entropy(student(points), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student.eval().requires_grad_(False)
