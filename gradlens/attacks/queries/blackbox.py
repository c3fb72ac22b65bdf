"""A model as an attacker without gradients meets it: points in, answers out, each one counted."""

import torch
from torch import Tensor, nn

from ...ball import Ball, expand
from ...batches import answers
from ...losses import errs, margin
from ...model import rounding
from ...types import Images, Labels, PerSample, SampleMask

# units in the last place of the largest logit by which an error must be clear: in bfloat16 6% of it
ROUNDING = 8


class BlackBox:
    """Answers for B samples, `queries` each and no more; what it was asked and found is on record.

    One image through the model is one query of the sample that it stands for. The first is the clean image itself,
    asked on the way in: a sample that is wrong from the start is broken at query 1, at distance 0, and done.

    A point errs where its margin is above 0 by more than the rounding of the logits, so that it errs again when
    success is recounted among other images.
    """

    def __init__(
        self, model: nn.Module, x: Images, y: Labels, ball: Ball, *, queries: int, width: int, until_broken: bool
    ) -> None:
        self.x, self.y, self.ball, self.queries = x, y, ball, queries
        self._model, self._width, self._until_broken = model, width, until_broken
        self._rounding = ROUNDING * max(rounding(model, x), torch.finfo(x.dtype).eps)
        self.used = torch.ones_like(y)
        self.clean_margin, _, self._is_wrong = self._answer(x, y)
        nothing = torch.full_like(self.clean_margin, torch.nan)
        self.found_at = torch.where(self._is_wrong, 1.0, nothing)  # number of the first query that broke the sample
        self.best, self.margin = x.clone(), torch.full_like(nothing, -torch.inf)  # of the perturbed, inside the ball
        self.closest = x.clone()
        self.distance = torch.where(self._is_wrong, 0.0, x.new_full((), torch.inf))

    @property
    def left(self) -> Labels:
        """Queries that each sample may still ask: none once it is finished."""
        done = self._is_wrong | (self.found_at.isfinite() & self._until_broken)
        return torch.where(done, 0, self.queries - self.used)

    def active(self, least: int = 1) -> Labels:
        """Indices of the samples that may still ask `least` queries."""
        return (self.left >= least).nonzero().flatten()

    def margins(self, points: Images, who: Labels) -> PerSample:
        """Best wrong logit minus true logit at each point; point i stands for sample `who[i]`, in ascending order."""
        return self._ask(points, who)[0]

    def errs(self, points: Images, who: Labels) -> SampleMask:
        """Does the model err at each point? All that a hard-label attack is told."""
        return self._ask(points, who)[1]

    @torch.no_grad()
    def _ask(self, points: Images, who: Labels) -> tuple[PerSample, SampleMask]:
        asked = torch.bincount(who, minlength=len(self.y))
        if (self.used + asked > self.queries).any():
            raise RuntimeError(f"a sample was asked beyond its budget of {self.queries} queries")
        value, errs, _ = self._answer(points, self.y[who])
        # rows of a sample stand together: the place among them says the number of the query
        number = self.used[who] + torch.arange(len(who), device=who.device) - (asked.cumsum(0) - asked)[who] + 1
        self._note_inside(points, who, value, errs, number)
        self._note_closest(points, who, errs)
        self.used += asked
        return value, errs

    @torch.no_grad()
    def _answer(self, points: Images, y: Labels) -> tuple[PerSample, SampleMask, SampleMask]:
        """Margins, whether the model errs by more than rounding, and whether it errs as it stands.

        Logits that tie exactly do so by rounding of the model's own, such as a quantised one's, and do so again.
        """
        answer = answers(self._model, points, self._width)
        value, wrong = margin(answer, y), errs(answer, y)
        return value, wrong & ((value == 0) | (value > self._rounding * answer.abs().amax(1))), wrong

    def _note_inside(self, points: Images, who: Labels, value: PerSample, errs: SampleMask, number: Labels) -> None:
        news = (value > self.margin[who]) | (errs & self.found_at[who].isnan())
        rows = news.nonzero().flatten()
        rows = rows[self.ball.contains(points[rows], self.x[who[rows]])] if len(rows) else rows
        if not len(rows):
            return
        broken = rows[errs[rows]]
        first = torch.full_like(self.found_at, torch.inf)
        first.scatter_reduce_(0, who[broken], number[broken].to(first), "amin")
        self.found_at = torch.where(self.found_at.isnan() & first.isfinite(), first, self.found_at)
        rows = _winners(rows, who, value)
        rows = rows[value[rows] > self.margin[who[rows]]]
        self.margin[who[rows]], self.best[who[rows]] = value[rows], points[rows]

    def _note_closest(self, points: Images, who: Labels, errs: SampleMask) -> None:
        rows = errs.nonzero().flatten()
        if not len(rows):
            return
        length = torch.full_like(errs, torch.inf, dtype=self.distance.dtype)
        length[rows] = self.ball.length(points[rows] - self.x[who[rows]])
        rows = _winners(rows, who, -length)
        rows = rows[length[rows] < self.distance[who[rows]]]
        self.distance[who[rows]], self.closest[who[rows]] = length[rows], points[rows]

    def recount(self) -> tuple[Images, PerSample, SampleMask, Images, PerSample]:
        """The best point, its margin, whether it breaks the sample, the closest and its distance: by passes of its own.

        These are the evaluator's passes, not the attacker's queries. A sample for which no perturbed point was asked
        keeps its clean image; distance is nan where no point errs.
        """
        best = torch.where(expand(self._is_wrong, self.x), self.x, self.best)
        value, _, is_broken = self._answer(best, self.y)
        is_broken &= self.ball.contains(best, self.x)
        is_closest = self._answer(self.closest, self.y)[2]
        inside = self.ball.length(best - self.x).where(is_broken, torch.nan)
        distance = torch.where(is_closest, self.distance, inside)
        closest = torch.where(expand(is_closest, self.x), self.closest, best)
        return best, value, is_broken, torch.where(expand(distance.isnan(), self.x), self.x, closest), distance


def _winners(rows: Tensor, who: Labels, value: PerSample) -> Tensor:
    """Of these rows, the one of largest value for each sample, the first of equals."""
    top = value.new_full((int(who[-1]) + 1,), -torch.inf).scatter_reduce_(0, who[rows], value[rows], "amax")
    rows = rows[value[rows] == top[who[rows]]]
    first = torch.full_like(top, len(who), dtype=torch.long).scatter_reduce_(0, who[rows], rows, "amin")
    return first[first < len(who)]
