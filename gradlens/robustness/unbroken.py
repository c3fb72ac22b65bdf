"""PGD for those who ask only what it breaks: nothing is recorded, and what is broken rests."""

import torch
from torch import Tensor, nn

from ..ball import Ball, expand
from ..batches import Folder
from ..door import check_attack
from ..draws import Draws, keys, seed
from ..folding import COARSE
from ..losses import cross_entropy, errs, margin
from ..model import input_gradient, logits, rounding
from ..types import Images, Labels, Loss

CLEAR = 1e-4  # lead of a wrong class, in shares of the largest logit, that no other batch or order of sums undoes
FEWER = 0.75  # so few of a batch are left when it is made smaller: each new size costs a processor some preparation


def pgd_until_broken(
    model: nn.Module,
    x: Images,
    y: Labels,
    ball: Ball,
    *,
    steps: int,
    step_size: float | None = None,
    loss: Loss = cross_entropy,
    restarts: int = 1,
    generator: torch.Generator | None = None,
) -> Images:
    """Points of `pgd`, whose options these are: the strongest of each sample until a wrong class clearly leads.

    Samples rest from then on, or soon after, since a batch is made smaller only where that pays. It breaks what the
    whole runs break, at the full price only for samples that withstand them; and since no path is kept, memory does not
    grow with the steps. Raises ValueError as `pgd` does, for its options.
    """
    size = check_attack(ball, steps=steps, step_size=step_size, restarts=restarts)
    fold, walk = Folder(model, may_fold=True), _Walk(model, x, y, ball, loss)
    draws = Draws.of(seed(generator), keys(x)) if restarts > 1 else None
    for run in range(restarts):
        start = x if run == 0 or draws is None else ball.sample(x, draws)
        with fold(x, logits(model, x)):
            walk.climb(start, steps, size)
    return walk.best


class _Walk:
    """The strongest point of each sample, as `Path` has it, over all that has been visited."""

    def __init__(self, model: nn.Module, x: Images, y: Labels, ball: Ball, loss: Loss) -> None:
        self.model, self.x, self.y, self.ball, self.loss = model, x, y, ball, loss
        self.best, self.lead = x.clone(), x.new_full((len(x),), -torch.inf)
        self.erred = torch.zeros_like(y, dtype=torch.bool)  # at `best`
        self.clear = torch.zeros_like(self.erred)
        self.least = max(CLEAR, COARSE * rounding(model, x))  # TF32 and bfloat16 undo more

    def climb(self, start: Images, steps: int, step_size: float) -> None:
        """One run, of the samples that are not broken."""
        left = (~self.clear).nonzero()[:, 0]
        point = start[left]
        for step in range(steps + 1):
            if not len(left):
                return
            grad = self._visit(point, left)
            on = ~self.clear[left]
            if on.sum() <= FEWER * len(left):
                left, point, grad = left[on], point[on], grad[on]
            if step < steps:
                point = self.ball.project(point + step_size * self.ball.steepest(grad), self.x[left])

    def _visit(self, point: Images, where: Tensor) -> Images:
        """The gradient there."""
        y = self.y[where]
        answer, _, grad = input_gradient(self.model, point, y, self.loss)
        lead, now = margin(answer, y), errs(answer, y)
        better = (now & ~self.erred[where]) | ((now == self.erred[where]) & (lead > self.lead[where]))
        self.best[where] = torch.where(expand(better, point), point, self.best[where])
        self.lead[where] = torch.where(better, lead.to(self.lead), self.lead[where])
        self.erred[where] |= now
        self.clear[where] |= now & (lead > self.least * answer.abs().amax(1))
        return grad
