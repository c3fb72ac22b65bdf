"""What every gradient attack writes down: each point it visits, read in the same way."""

import torch
from torch import Tensor, nn

from ..ball import Ball, expand, l1, l2, linf, unit
from ..losses import errs, margin, towards
from ..model import mean_gradient
from ..provenance import UNSIGNED
from ..types import Images, Labels, Logits, Loss, PerSample
from .trace import PGDTrace, Point, Step


class Path:
    """The points that an attack on `x` visits, in order; the attack itself only says which is next.

    With `targets` the loss is climbed towards them (`losses.towards`). `samples` passes of a random model are averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        ball: Ball,
        loss: Loss,
        samples: int = 1,
        targets: Labels | None = None,
    ) -> None:
        self.model, self.x, self.y, self.ball, self.samples, self.targets = model, x, y, ball, samples, targets
        self.loss = loss if targets is None else towards(loss, targets)
        self.points: list[Point] = []
        self.steps: list[Step] = []
        self.directions: list[Images] = []
        self.sums: list[Tensor] = []
        self.total, self.defined = torch.zeros_like(x), torch.zeros_like(y)
        self.best, self.end, self.lead = x, x, torch.full_like(x.flatten(1)[:, 0], -torch.inf)
        self.erred = torch.zeros_like(y, dtype=torch.bool)  # at `best`

    def visit(self, point: Images, step_size: float | PerSample = torch.nan) -> tuple[PerSample, Images]:
        """The loss that is climbed and its gradient at `point`, to which a step of nominally `step_size` led."""
        logits, value, grad = mean_gradient(self.model, point, self.y, self.loss, self.samples)
        direction = unit(grad)
        if self.points:
            nominal = step_size if isinstance(step_size, Tensor) else torch.full_like(value, step_size)
            moved = l2(point - self.end)
            self.steps.append(_turn(self.directions[0], self.directions[-1], direction, moved, nominal))
        else:
            self.best, self.gradient = point, grad
        self.points.append(_read(logits, value, grad, point, self.x, self.y, self.ball))
        self.directions.append(direction)
        known = direction.nan_to_num(0.0)
        self.sums.append(known.sum(0))
        self.total = self.total + known
        self.defined = self.defined + (known != 0).flatten(1).any(1)
        lead = self.points[-1].margin if self.targets is None else -margin(logits, self.targets)
        now = errs(logits, self.y)  # with targets, a point that errs may lead by less than one that does not
        better = (now & ~self.erred) | ((now == self.erred) & (lead > self.lead))
        self.best = torch.where(expand(better, point), point, self.best)
        self.lead, self.erred = torch.where(better, lead, self.lead), self.erred | now
        self.end = point
        return value, grad

    def trace(self) -> PGDTrace:
        """All that was met, once the attack has made at least one step."""
        way = unit(self.end - self.x)
        count = torch.full_like(self.y, self.samples * len(self.points))
        return PGDTrace(
            clean=self.x, adversarial=self.end, best=self.best, gradient=self.gradient, labels=self.y,
            targets=self.targets, ball=self.ball, made=UNSIGNED,
            cosine_final=torch.stack([_dot(direction, way) for direction in self.directions[:-1]]),
            path_dispersion=1 - l2(self.total) / self.defined,
            direction_sum=torch.stack(self.sums),
            lead=self.lead, restart_agreement=torch.full_like(self.lead, torch.nan), forwards=count, backwards=count,
            **{name: torch.stack(column) for name, column in _columns(Point, self.points)},
            **{name: torch.stack(column) for name, column in _columns(Step, self.steps)},
        )  # fmt: skip


def _columns(kind: type[Point] | type[Step], rows: list) -> list[tuple[str, tuple[Tensor, ...]]]:
    return list(zip(kind._fields, zip(*rows, strict=True), strict=True))


def _read(logits: Logits, loss: PerSample, grad: Images, point: Images, x: Images, y: Labels, ball: Ball) -> Point:
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    delta = point - x
    largest = linf(grad)
    return Point(
        loss=loss, margin=margin(logits, y), entropy=-(p * log_p).sum(1), confidence=p.amax(1),
        predicted=logits.argmax(1), grad_norm=l2(grad), grad_norm_l1=l1(grad), grad_norm_linf=largest,
        vanished=largest == 0, on_surface=ball.on_surface(point, x), distance=ball.length(delta),
    )  # fmt: skip


def _turn(first: Images, before: Images, now: Images, moved: PerSample, step_size: PerSample) -> Step:
    return Step(_dot(before, now), _dot(first, now), _sign_agreement(before, now), moved, step_size)


def _dot(a: Images, b: Images) -> PerSample:
    """Cosine of unit directions; nan where one of them is."""
    return (a * b).flatten(1).sum(1).clamp(-1, 1)


def _sign_agreement(a: Images, b: Images) -> PerSample:
    # signs are multiplied, not values: a product of two tiny values may underflow to 0
    signs = a.flatten(1).nan_to_num(0.0).sign() * b.flatten(1).nan_to_num(0.0).sign()
    kept, compared = (mask.sum(1).to(a.dtype) for mask in (signs > 0, signs != 0))
    return kept / compared  # 0 / 0 is nan: no pixel to compare
