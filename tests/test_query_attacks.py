"""Query attacks against closed forms, planted errors and the reference's own Square."""

import copy
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from gradlens import Ball, hopskipjump, losses, nes, rays, square
from gradlens.attacks.queries import BlackBox
from gradlens.attacks.queries.mass import _hills, turn
from gradlens.attacks.queries.square import STRONGEST, search
from gradlens.draws import Draws
from tests.analytic import Binary, Detached, Plane

NORMS = ("linf", "l2")
SCALES = (1.0, 1e3)


def plane(scale: float) -> Plane:
    """A boundary whose normal has positive, negative and small entries."""
    w = torch.tensor([0.5, -0.3, 0.2, 0.05, -0.4, 0.1, -0.25, 0.35, 0.15])
    return Plane(w, b=float(0.5 * w.sum()), scale=scale)


def beside(model: Plane) -> tuple[Tensor, Tensor]:
    """Images of 3 x 3 on the side of class 0, at two distances from the boundary, far from the box."""
    normal = model.w.detach() / model.w.detach().norm()
    x = torch.stack([(0.5 - offset * normal).view(1, 3, 3) for offset in (0.05, 0.15)])
    return x, torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("attack", "norm"), [(rays, "linf"), (hopskipjump, "linf"), (hopskipjump, "l2")])
def test_hard_label_attacks_find_a_plane_within_a_tenth_of_its_distance(attack, norm, scale):
    model = plane(scale)
    x, y = beside(model)
    exact = model.distance(x, norm)
    trace = attack(Detached(model), x, y, Ball(0.01, norm), queries=2000)
    assert (trace.distance >= 0.9999 * exact).all()
    assert (trace.distance <= 1.1 * exact).all()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [square, nes])
def test_score_attacks_break_from_a_tenth_beyond_a_planes_distance_and_not_from_within(attack, norm, scale, generator):
    """Square with its last steps between pairs of pixels: its hills meet a normal only so far, see below."""
    w = torch.randn(36, generator=generator)
    model, y = Plane(w, b=float(0.5 * w.sum()), scale=scale), torch.zeros(2, dtype=torch.long)
    x = (0.5 - 0.1 * w / w.norm()).view(1, 1, 6, 6).repeat(2, 1, 1, 1)
    distance = model.distance(x, norm)[0].item()
    options = {"reach_edges": True, "pairs": 0.5} if attack is square else {}
    assert attack(model, x, y, Ball(1.1 * distance, norm), queries=1500, generator=generator, **options).success.all()
    within = attack(model, x, y, Ball(0.99 * distance, norm), queries=300, generator=generator, **options)
    assert not within.success.any()
    assert (within.queries >= 298).all()


@pytest.mark.parametrize(("side", "there", "queries"), [(6, 36, 1500), (6, 4, 4000), (3, 1, 1500), (8, 64, 4000)])
def test_square_meets_planes_of_any_kind_under_l2_given_a_hundred_queries_a_pixel(side, there, queries, generator):
    """Normals that lean on all pixels, on some and on one; three of each, from a tenth beyond the distance."""
    for _ in range(3):
        w = torch.randn(side * side, generator=generator)
        w[torch.randperm(len(w), generator=generator)[there:]] = 0.0
        model, y = Plane(w, b=float(0.5 * w.sum())), torch.zeros(2, dtype=torch.long)
        x = (0.5 - 0.1 * w / w.norm()).view(1, 1, side, side).repeat(2, 1, 1, 1)
        ball = Ball(1.1 * model.distance(x, "l2")[0].item(), "l2")
        assert square(model, x, y, ball, queries=queries, generator=generator, **STRONGEST).success.all()


def test_on_a_plane_under_l2_square_comes_closer_than_the_references(generator):
    """By windows alone neither comes within a tenth: ours breaks all at 1.5 x, where windows reach the edges too."""
    w = torch.randn(36, generator=generator)
    model, y = Plane(w, b=float(0.5 * w.sum())), torch.zeros(4, dtype=torch.long)
    x = (0.5 - 0.1 * w / w.norm()).view(1, 1, 6, 6).repeat(4, 1, 1, 1)
    ball = Ball(1.5 * model.distance(x, "l2")[0].item(), "l2")
    ours = square(model, x, y, ball, queries=1000, reach_edges=True, generator=generator)
    with torch.random.fork_rng(devices=[]):
        theirs = SquareAttack(model, norm="L2", n_queries=1000, eps=ball.eps, device="cpu", seed=0).perturb(x, y)
    assert ours.success.all()
    assert ours.success.sum() >= (model(theirs).argmax(1) != y).sum()


class Planted(Binary):
    """Right by far everywhere, wrong in one region: where four neighbouring pixels are all bright."""

    def z(self, x: Tensor) -> Tensor:
        bright = x.view(-1, 8, 8)[:, 2:4, 3:5].flatten(1).amin(1) > 0.57
        return torch.where(bright, 5.0, -5.0) + 0 * x.sum(1)


def test_a_planted_region_is_found_and_is_what_is_reported():
    x, y, ball = torch.full((3, 1, 8, 8), 0.5), torch.zeros(3, dtype=torch.long), Ball(0.1)
    traces = [
        square(Planted(), x, y, ball, queries=300),
        rays(Planted(), x, y, ball, queries=1000),
        hopskipjump(Planted(), x, y, ball, queries=2000),
    ]
    for trace in traces:
        assert trace.success.all(), trace
        assert (trace.adversarial[:, 0, 2:4, 3:5] > 0.57).all()
    assert traces[1].distance.amin() >= 0.07 - 1e-6
    assert traces[1].distance.amax() <= 0.07 + 1e-3
    # from within reach of nothing, nothing is found
    assert not square(Planted(), x, y, Ball(0.06), queries=100).success.any()


class References:
    """The numbers of `Numbers`, drawn from torch's global stream in the order of the reference's Square."""

    def __init__(self, kind: object, size: int, draws: object, x: Tensor) -> None:
        self.shape = x.shape[1:]

    def block(self, who: Tensor, steps: int) -> Tensor:
        """For the start: stripes of each sample or, under L2, tile after tile, of which those off the grid are lost."""
        c, h, w = self.shape
        if self.norm == "linf":
            return torch.rand(len(who), c, 1, w).view(len(who), 1, -1)
        tiles = []
        for i in range(h // (h // 5)):
            for j in range(w // (w // 5)):
                way, signs = torch.rand(1), torch.rand(len(who), c)
                if (h - h // 5 * 5) // 2 + i < h and (w - w // 5 * 5) // 2 + j < w:
                    tiles.append(torch.cat([way.expand(len(who), 1), signs], 1))
        return torch.cat(tiles, 1)[:, None]

    def step(self, who: Tensor) -> Tensor:
        """All samples share their windows; under L2 each has signs of its own."""
        if self.norm == "linf":
            return torch.rand(2 + self.shape[0]).expand(len(who), -1)
        shared = torch.rand(5)
        return torch.cat([shared.expand(len(who), -1), torch.rand(len(who), self.shape[0])], 1)


@pytest.fixture
def in_float64() -> Iterator[None]:
    digits_model()  # is trained in float32
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("norm", NORMS)
def test_square_breaks_what_the_reference_breaks_given_its_random_numbers(norm, monkeypatch):
    """Within 1 sample in 128, on a trained model of real digits, and at the very same query.

    In float64, and under L2 all but a few end at the very same point: where a window holds next to nothing, the move
    scales up what rounding left of it, and paths part on the last digit.
    """
    model, x, y = digits_model()
    model, x = copy.deepcopy(model).double(), x.double()
    ball = Ball(0.1 if norm == "linf" else 0.5, norm)
    monkeypatch.setattr(References, "norm", norm, raising=False)
    monkeypatch.setattr(import_module("gradlens.attacks.queries.square"), "Numbers", References)
    theirs = SquareAttack(model, norm={"linf": "Linf", "l2": "L2"}[norm], n_queries=198, eps=ball.eps, device="cpu")
    right = model(x).argmax(1) == y
    theirs.init_hyperparam(x)
    torch.manual_seed(0)
    queries, points = theirs.attack_single_run(x[right], y[right])
    robust = model(points).argmax(1) == y[right]
    with torch.no_grad():
        box = BlackBox(model, x[right], y[right], ball, queries=200, width=128, until_broken=True)
        torch.manual_seed(0)
        search(box, Draws(()), 0.8, is_edged=False)
    assert 20 < robust.sum() < 110
    assert (box.found_at.isnan() != robust).sum() <= 1
    assert torch.equal(box.used - 1, queries.long())  # ours counts the clean image
    apart = ball.length(box.best - points) > 1e-6
    assert apart.double().mean() < (0.05 if norm == "l2" else 1e-9)


def test_windows_along_the_last_row_and_column_break_more(generator):
    model, x, y = digits_model()
    plain, edged = (
        square(model, x, y, Ball(0.1), queries=200, reach_edges=edges, generator=generator.manual_seed(1))
        for edges in (False, True)
    )
    assert edged.success.sum() > plain.success.sum()


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 2, 2), (1, 1, 2), (7,)])
def test_a_turn_moves_two_pixels_and_keeps_the_length(shape, generator):
    """By no more than an eighth of a circle, at all pairs and angles, in any direction."""
    x, ball = torch.full((400, *shape), 0.5), Ball(0.2, "l2")
    x = x.view(400, -1, *shape[-2:]) if len(shape) > 1 else x[:, None, None, :]
    best = x + 0.2 * torch.nn.functional.normalize(torch.randn(x.shape, generator=generator).flatten(1)).view_as(x)
    before, after = best - x, turn(best, x, torch.rand(400, 5, generator=generator), ball) - x
    torch.testing.assert_close(ball.length(after), torch.full((400,), 0.2))
    moved = (after - before).abs().flatten(1) > 1e-7
    assert (moved.sum(1) == 2).double().mean() > 0.99 and (moved.sum(1) <= 2).all()
    assert moved.any(0).all()
    pairs = [rows[mask].view(-1, 2) for rows, mask in ((t.flatten(1), moved & (moved.sum(1) == 2)[:, None])
                                                       for t in (before, after))]  # fmt: skip
    torch.testing.assert_close(*(pair.square().sum(1) for pair in pairs))
    cosine = torch.nn.functional.cosine_similarity(*pairs)
    assert cosine.amin() > 0.5**0.5 - 1e-4 and cosine.amin() < 0.75
    way = pairs[0][:, 0] * pairs[1][:, 1] - pairs[0][:, 1] * pairs[1][:, 0]
    assert 0.4 < (way > 0).double().mean() < 0.6


def test_turns_stay_inside_box_and_ball_and_a_single_pixel_has_none(generator):
    model, x, y = digits_model()
    ball = Ball(0.4, "l2")
    trace = square(model, x, y, ball, queries=140, pairs=1.0, generator=generator)
    assert ball.contains(trace.adversarial, x).all() and trace.success.any() and not trace.success.all()
    one = Plane(torch.tensor([1.0]), b=0.6)
    assert square(one, torch.tensor([[0.5]]), [0], Ball(0.2, "l2"), queries=50, pairs=1.0).success.all()
    black = Plane(torch.tensor([1.0, 0.5]), b=0.35)  # a start towards the box leaves nothing to turn
    start = torch.zeros(20, 2)
    assert square(black, start, [0] * 20, Ball(0.4, "l2"), queries=60, pairs=1.0, generator=generator).success.all()


@pytest.mark.parametrize(("queries", "eps"), [(150, 0.5), (600, 0.5), (600, 0.35)])
def test_what_suites_run_under_l2_breaks_no_less_than_the_reference(queries, eps, generator):
    """On a trained model, on a budget too short for turns and on one that has them; two seeds each."""
    model, x, y = digits_model()
    right, ball = model(x).argmax(1) == y, Ball(eps, "l2")
    x, y = x[right], y[right]
    ours, theirs = 0, 0
    for seed in range(2):
        ours += square(
            model, x, y, ball, queries=queries, generator=generator.manual_seed(seed), **STRONGEST
        ).success.sum()
        with torch.random.fork_rng(devices=[]):
            attack = SquareAttack(model, norm="L2", n_queries=queries - 2, eps=eps, device="cpu", seed=seed)
            theirs += (model(attack.perturb(x, y)).argmax(1) != y).sum()
    assert 10 < theirs <= ours


@cache
def digits_model() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network trained for a second on scikit-learn's digits, and 128 others."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16, torch.tensor(bunch.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
        )  # fmt: skip
        adam = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(60):
            adam.zero_grad()
            nn.functional.cross_entropy(model(images[:1200]), labels[:1200]).backward()
            adam.step()
    return model.eval(), images[1200:1328], labels[1200:1328]


@pytest.mark.parametrize("side", [3, 4, 5, 7])
def test_hills_are_the_references(side):
    theirs = SquareAttack(nn.Identity(), norm="L2", eps=1.0, device="cpu")
    shapes = [theirs.eta(side) for _ in range(20)]
    for ours in _hills(side, side):
        assert any(torch.allclose(ours.float(), shape, atol=1e-6) for shape in shapes)


@pytest.mark.parametrize("attack", [rays, hopskipjump])
def test_a_sample_may_leave_once_it_is_broken(attack):
    model = plane(1.0)
    x, y = beside(model)
    ball = Ball(1.5 * float(model.distance(x, "linf").amax()))
    short = attack(model, x, y, ball, queries=3000, until_broken=True)
    assert short.success.all()
    assert torch.equal(short.found_at, short.queries.to(x)) or attack is hopskipjump  # whose last block is asked whole
    assert (short.queries < 1500).all()
    assert (losses.margin(model(short.adversarial), y) > 0).all()
