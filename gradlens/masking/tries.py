"""The attacks whose outcomes are compared: what each breaks of what those before it left."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import nn

from ..attacks.pgd import climb as traced
from ..attacks.queries.rays import search as rays_search
from ..attacks.queries.square import STRONGEST
from ..attacks.queries.square import search as square_search
from ..ball import Ball, expand
from ..draws import Draws
from ..losses import cross_entropy, dlr, margin, rescaled
from ..types import Images, Labels, Loss, SampleMask
from .climb import Best, along, asked, averaged, climb, errs, scatter
from .looks import Marks
from .subject import Subject

Budget = Literal["quick", "standard", "thorough"]
Attack = Callable[[Images, Labels, Draws], Best]
WHOLE = 50  # steps of the attack that may go anywhere in the box
P_INIT = 0.8  # share of pixels in Square's first squares, its paper's choice


class Effort(NamedTuple):
    """How much each attack may do."""

    naive: int  # steps
    loss: int
    long: int
    restarts: int
    restart_steps: int
    average_steps: int
    average: int  # draws a step
    random: int  # points
    square: int  # queries
    rays: int
    passes: int  # of a random model, for each answer

    @property
    def gradients(self) -> int:
        """Gradients a sample takes if nothing breaks it; one in float64 counts twice."""
        looks, whole, losses = 7, WHOLE + 1, 4
        naive = 2 * (self.naive + 1) + 2 + whole  # at eps, at twice eps, in one step, in the whole box
        precise = max(2 * (self.naive + 1), self.loss + 1)  # of a random model, the mean of passes in its place
        longer = self.long + 1 + self.restarts * (self.restart_steps + 1)
        averages = (self.naive + 1 + self.average_steps + 1) * self.average
        return looks + naive + losses * (self.loss + 1) + precise + longer + averages

    @property
    def queries(self) -> int:
        """Forward passes besides: by queries, of averaged gradients at the point itself, and to judge."""
        return self.random + self.square + self.rays + self.naive + self.average_steps + 60


EFFORTS: dict[Budget, Effort] = {
    "quick": Effort(20, 40, 100, 3, 20, 15, 8, 100, 500, 500, 8),
    "standard": Effort(20, 60, 300, 5, 50, 30, 25, 500, 2000, 2000, 16),
    "thorough": Effort(20, 100, 1000, 10, 100, 50, 50, 2000, 5000, 10_000, 32),
}


class Trial:
    """Samples that the model gets right, and what has broken them so far."""

    def __init__(
        self, subject: Subject, x: Images, y: Labels, ball: Ball, effort: Effort, stream: Callable[[str], Draws]
    ) -> None:
        self.subject, self.x, self.y, self.ball, self.effort, self.stream = subject, x, y, ball, effort, stream
        self.points = x.clone()
        self.broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.marks: Marks = {}

    def run(self, surrogates: Mapping[str, nn.Module]) -> Iterator[str]:
        """One attack after the other; yields the name of the one that comes next."""
        yield "naive attack"
        survivors = self._naive()
        yield "other losses"
        left = self._losses(survivors)
        model, effort = self.subject.scores, self.effort
        yield "more steps"
        longer = self._tried(
            "steps",
            left,
            lambda x, y, _: climb(along(model, y, margin), x, self.ball, x, effort.long, best=Best.none(x)),
        )
        self.marks["steps"] = self.marks["steps"] | longer
        yield "restarts"
        self._note("restarts", left, self._restarted)
        stubborn = left & ~longer & ~self.marks["restarts"]  # no gradient at the points found an error, nor a start
        yield "precision"
        self._precision(survivors)
        if not self.subject.is_steady:
            yield "averaged passes"
            self._note("passes", survivors, self._climbing(along_loss=cross_entropy))
        yield "averaged gradients"
        self._averaged(survivors, left)
        yield "random search"
        self._note("random search", stubborn, lambda x, y, draws: scatter(model, x, y, self.ball, draws, effort.random))
        yield "square"
        self._note("square", stubborn, self._square)
        # thousands of passes a sample where each answer is a mean: of random models, from "standard" on
        is_short = self.subject.is_steady or effort.rays > EFFORTS["quick"].rays
        if effort.rays and is_short and self.ball.norm == "linf":
            yield "rays"
            self._note("rays", stubborn, self._rays)
        if surrogates:
            yield "transfer"
            self._transfer(left, surrogates)

    def _naive(self) -> SampleMask:
        """PGD on the cross-entropy as everybody runs it, and its variants; who withstands it."""
        plain, x, y, ball, steps = self.subject.plain, self.x, self.y, self.ball, self.effort.naive
        trace = traced(plain, x, y, ball, x, steps, 2.5 * ball.eps / steps, cross_entropy)
        ends = self._breaks(trace.adversarial)
        ever = self._breaks(trace.best)
        self.marks["silent"] = ever & ~ends
        self.marks["incomplete"] = trace.incomplete
        one = traced(plain, x, y, ball, x, 1, ball.eps, cross_entropy)
        self.marks["one step"] = self._breaks(one.adversarial) & ~ends & ~ever
        twice = Ball(2 * ball.eps, ball.norm, ball.low, ball.high)
        wide = traced(plain, x, y, twice, x, steps, 2.5 * twice.eps / steps, cross_entropy)
        at_twice = errs(self.subject.judge, wide.adversarial, x, y, twice) | errs(
            self.subject.judge, wide.best, x, y, twice
        )
        self.marks["not monotone"] = ends & ~at_twice
        span = (ball.high - ball.low) * (1 if ball.norm == "linf" else x[0].numel() ** 0.5)
        whole = Ball(span, ball.norm, ball.low, ball.high)
        far = climb(along(plain, y, cross_entropy), x, whole, x, WHOLE, best=Best.none(x))
        self.marks["unbounded"] = ~errs(self.subject.judge, far.points, x, y, whole)
        self.marks["naive"], self.ends = ends, trace.adversarial
        return ~ends & ~ever  # what was fooled on the way is the row "silent success" and no other

    def _losses(self, survivors: SampleMask) -> SampleMask:
        """Losses that no confidence stops; who withstands them all.

        The cross-entropy goes first, in as many steps of the same lengths: what it gains is not the loss's doing.
        """
        classes = self.subject.scores(self.x[:1]).shape[1]
        slower = self._tried("loss cross_entropy", survivors, self._climbing(along_loss=cross_entropy))
        self.marks["steps"], survivors = slower, survivors & ~slower
        gained = torch.zeros_like(survivors)
        for loss in (margin, rescaled, *([dlr] if classes > 3 else [])):
            gained |= self._tried(f"loss {loss.__name__}", survivors & ~gained, self._climbing(along_loss=loss))
        self.marks["loss"] = gained
        return survivors & ~gained

    def _climbing(self, along_loss: Loss) -> Attack:
        steps, model = self.effort.loss, self.subject.scores

        def attack(x: Images, y: Labels, draws: Draws) -> Best:
            return climb(along(model, y, along_loss), x, self.ball, x, steps, best=Best.none(x), shrink=True)

        return attack

    def _restarted(self, x: Images, y: Labels, draws: Draws) -> Best:
        best, gradient = Best.none(x), along(self.subject.scores, y, margin)
        for _ in range(self.effort.restarts):
            climb(gradient, x, self.ball, self.ball.sample(x, draws), self.effort.restart_steps, best=best)
        return best

    def _averaged(self, survivors: SampleMask, left: SampleMask) -> None:
        """The naive attack with nothing changed but where its gradient is taken; then the margin, on what is left."""

        def attack(x: Images, y: Labels, draws: Draws, loss: Loss, steps: int) -> Best:
            gradient = averaged(self.subject.scores, y, loss, self.ball, draws, self.effort.average)
            return climb(gradient, x, self.ball, x, steps, best=Best.none(x))

        plain = functools.partial(attack, loss=cross_entropy, steps=self.effort.naive)
        late = functools.partial(attack, loss=margin, steps=self.effort.average_steps)
        gained = self._tried("averaged", survivors, plain)
        self.marks["averaged"] = gained | self._tried("averaged margin", left & ~gained, late)

    def _precision(self, survivors: SampleMask) -> None:
        twin = self.subject.twin
        if twin is None or not self.subject.is_steady or self.x.dtype == torch.float64:
            return

        def attack(x: Images, y: Labels, draws: Draws) -> Best:
            wide = x.double()
            best = climb(along(twin, y, cross_entropy), wide, self.ball, wide, self.effort.naive, best=Best.none(wide))
            return Best(best.points.to(x), best.margins.to(x))

        self._note("precision", survivors, attack)

    def _square(self, x: Images, y: Labels, draws: Draws) -> Best:
        search = functools.partial(
            square_search, draws=draws, p_init=P_INIT, is_edged=STRONGEST["reach_edges"], pairs=STRONGEST["pairs"]
        )
        return asked(search, self.subject.scores, x, y, self.ball, self.effort.square)

    def _rays(self, x: Images, y: Labels, draws: Draws) -> Best:
        return asked(
            functools.partial(rays_search, draws=draws), self.subject.scores, x, y, self.ball, self.effort.rays
        )

    def _transfer(self, left: SampleMask, surrogates: Mapping[str, nn.Module]) -> None:
        gained = torch.zeros_like(left)
        for name, surrogate in surrogates.items():

            def attack(x: Images, y: Labels, draws: Draws, model: nn.Module = surrogate) -> Best:
                return climb(along(model, y, margin), x, self.ball, x, self.effort.loss, best=Best.none(x), shrink=True)

            gained |= self._tried(f"transfer {name}", left & ~gained, attack)
        self.marks["transfer"] = gained

    def _note(self, name: str, todo: SampleMask, attack: Attack) -> None:
        self.marks[name] = self._tried(name, todo, attack)

    def _tried(self, name: str, todo: SampleMask, attack: Attack) -> SampleMask:
        """Which of `todo` an attack breaks, counted anew."""
        gained = torch.zeros_like(todo)
        rows = todo.nonzero().flatten()
        if len(rows):
            streams = self.stream(name).streams
            draws = Draws(tuple(streams[i] for i in rows.tolist()))
            found = self.x.clone()
            found[rows] = attack(self.x[rows], self.y[rows], draws).points
            gained = self._breaks(found) & todo
        return gained

    def recount(self) -> None:
        """Of a random model, what broke has to break again, and what is compared with it has the same one chance.

        The worst of many draws is found by luck as well. The clean image, the end of the naive attack and the best
        point are each judged anew; a sample whose clean image errs now counts for no attack.
        """
        if self.subject.is_steady:
            return
        lost, naive, best = (
            errs(self.subject.judge, points, self.x, self.y, self.ball) for points in (self.x, self.ends, self.points)
        )
        self.marks["naive"] = naive | lost
        self.broken = naive | lost | (best & self.broken)

    def _breaks(self, points: Images) -> SampleMask:
        hits = errs(self.subject.judge, points, self.x, self.y, self.ball)
        news = hits & ~self.broken
        self.points = torch.where(expand(news, points), points, self.points)
        self.broken = self.broken | hits
        return hits
