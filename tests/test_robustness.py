"""Worst case per sample: who broke what, counted anew; costs, files, the reference package, bad input."""

import copy
import dataclasses
import logging
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from sklearn.datasets import load_digits
from torch import Tensor, nn

import gradlens as gl
from gradlens import Attack, Ball, Robustness, auto_attack, robustness
from gradlens.robustness import autoattack
from gradlens.robustness.precise import pgd_double
from tests.analytic import Constant, Counting, Plane, Random, smooth_cnn, snapshot
from tests.test_attack_distance import Padded

BALL = Ball(0.1)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A convolutional network trained against PGD on scikit-learn's digits for some seconds, and 64 other images."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(384, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(120):
            rows = torch.randint(1500, (96,))
            a, b = x[rows], y[rows]
            delta = (a + BALL.eps * gl.pgd(model, a, b, BALL, steps=1, step_size=0.1).gradient.sign()).clamp(0, 1)
            optimizer.zero_grad()
            F.cross_entropy(model(delta), b).backward()
            optimizer.step()
    return model.eval(), x[1500:1564], y[1500:1564]


def square_of_reference(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, generator: torch.Generator) -> Tensor:
    """The package's Square on three images: thousands of queries take their time."""
    points = x.clone()
    points[:3] = autoattack.run(model, x[:3], y[:3], ball, name="square", generator=generator)
    return points


@pytest.fixture
def labels(cnn: nn.Module, images: Tensor) -> Tensor:
    """The model's own classes, but for the last two images."""
    y = gl.predict(cnn, images)
    y[4:] = (y[4:] + 1) % 4
    return y


def answers(points: Tensor, where: dict[int, Tensor]) -> Callable[..., Tensor]:
    """An attack that knows its points: `where` maps a sample's number to what it returns for it."""

    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        model(x)  # a pass, so that there is a cost
        found = x.clone()
        for row, image in enumerate(x):
            for number, point in where.items():
                if torch.equal(image, points[number]):
                    found[row] = point
        return found

    return attack


class Striped(nn.Module):
    """Class 0, unless the first pixel has moved up by 0.05 from 0.5: then class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        z = 10 * (x.flatten(1)[:, 0] - 0.55)
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.fixture
def striped() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The model, five images told apart by their last pixel, labels of which the fifth is wrong, broken versions."""
    x = torch.full((5, 1, 2, 2), 0.5)
    x[:, 0, 1, 1] = torch.linspace(0.1, 0.9, 5)
    broken = x.clone()
    broken[:, 0, 0, 0] = 0.58
    return Striped(), x, torch.tensor([0, 0, 0, 0, 1]), broken


def test_each_sample_belongs_to_the_first_attack_that_breaks_it(striped):
    model, x, y, broken = striped
    first, second, third = (Attack(name, answers(x, {i: broken[i] for i in which})) for name, which in
                            (("first", [1]), ("second", [1, 2]), ("third", [3, 4])))  # fmt: skip
    result = robustness(model, x, y, BALL, attacks=[first, second, third], batch=2)
    assert result.attacks == ("first", "second", "third")
    assert result.clean.tolist() == [True, True, True, True, False]
    assert result.broken_by.tolist() == [-1, 0, 1, 2, -1]
    assert result.tried.tolist() == [[True, True, True, True, False], [True, False, True, True, False],
                                     [True, False, False, True, False]]  # fmt: skip
    assert result.robust.tolist() == [True, False, False, False, False]
    assert (result.clean_accuracy, result.robust_accuracy) == (0.8, 0.2)
    assert torch.equal(result.adversarial[1:4], broken[1:4])
    assert torch.equal(result.adversarial[[0, 4]], x[[0, 4]])
    assert result.distance[1:4].tolist() == pytest.approx([0.08] * 3)
    assert result.distance[[0, 4]].isnan().all()
    # of each image met: one pass of the attack's own, one of the recount
    assert result.forwards.tolist() == [8, 6, 4]
    assert result.backwards.tolist() == [0, 0, 0]
    table = result.table()
    assert table["robust_accuracy"].tolist() == pytest.approx([0.6, 0.4, 0.2])
    assert table["met"].tolist() == [4, 3, 2]
    assert result.frame()["broken_by"].tolist() == ["", "first", "second", "third", ""]


def test_exhaustive_shows_every_attack_all_that_is_right(striped):
    model, x, y, broken = striped
    attacks = [Attack("a", answers(x, {1: broken[1]})), Attack("b", answers(x, {1: broken[1], 2: broken[2]}))]
    result = robustness(model, x, y, BALL, attacks=attacks, exhaustive=True)
    assert result.tried[:, :4].all() and not result.tried[:, 4].any()
    assert result.broke.tolist() == [[False, True, False, False, False], [False, True, True, False, False]]
    assert result.broken_by.tolist() == [-1, 0, 1, -1, -1]
    assert (result.under("a"), result.under("b"), result.under("a", "b")) == pytest.approx((0.6, 0.4, 0.4))
    survivors = robustness(model, x, y, BALL, attacks=attacks)
    assert survivors.under("a") == pytest.approx(0.6)
    assert torch.tensor(survivors.under("b")).isnan()  # it never met what the first one broke
    with pytest.raises(ValueError, match="attack is 'c', expected one of 'a', 'b'"):
        survivors.under("c")


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_point_outside_the_ball_or_the_box_counts(striped, norm):
    model, x, y, broken = striped
    far, outside, undefined = broken.clone(), broken.clone(), broken.clone()
    far[:, 0, 0, 0] = 0.5 + 0.1 * 1.01
    x = x.clone()
    outside[:, 0, 0, 1] = 1.05  # within 0.1 of 0.95, and above the box
    x[:, 0, 0, 1] = outside[:, 0, 0, 1] - 0.1
    far[:, 0, 0, 1] = undefined[:, 0, 0, 1] = 0.95
    undefined[:, 0, 1, 0] = torch.nan
    lies = [Attack(name, answers(x, dict(enumerate(points)))) for name, points in
            (("far", far), ("outside", outside), ("undefined", undefined), ("nothing", x))]  # fmt: skip
    result = robustness(model, x, y, Ball(0.1, norm), attacks=lies)
    assert not result.broke.any()
    assert result.robust_accuracy == 0.8


def test_what_was_found_elsewhere_is_tried_first(striped):
    model, x, y, broken = striped
    other = robustness(model, x, y, BALL, attacks=[Attack("a", answers(x, {2: broken[2]}))])
    result = robustness(model, x, y, BALL, attacks=[Attack("b", answers(x, {}))], found={"twin": other, "file": broken})
    assert result.attacks == ("found on twin", "found on file", "b")
    assert result.broken_by.tolist() == [1, 1, 0, 1, -1]
    assert result.tried[2].sum() == 0
    with pytest.raises(ValueError, match=r"found\['short'\] has shape \(2, 1, 2, 2\), expected points for all images"):
        robustness(model, x, y, BALL, attacks=[Attack("b", answers(x, {}))], found={"short": broken[:2]})


def test_what_was_found_on_one_model_is_shown_to_the_others(striped):
    model, x, y, broken = striped
    models = {name: Striped() for name in ("a", "b", "c")}
    first = {
        name: robustness(models[name], x, y, BALL, attacks=[Attack("own", answers(x, {i: broken[i]}))])
        for name, i in (("a", 0), ("b", 1), ("c", 1))
    }
    after = gl.exchange(models, first)
    assert after["a"].attacks == ("own", "found on b", "found on c")
    assert after["a"].broken_by.tolist() == [0, 1, -1, -1, -1]
    assert after["b"].broken_by.tolist() == [1, 0, -1, -1, -1]
    assert after["c"].broken_by.tolist() == [1, 0, -1, -1, -1]
    assert after["a"].tried.sum(1).tolist() == [4, 3, 2]
    assert after["a"].robust_accuracy == pytest.approx(0.4) and first["a"].robust_accuracy == pytest.approx(0.6)
    assert after["b"].distance[0] == pytest.approx(0.08)
    assert first["a"].attacks == ("own",)  # the record that was given stays
    assert len(after["a"].table()) == 3 and "exchange" in after["a"].made.call
    with pytest.raises(ValueError, match="expected dicts of the same names"):
        gl.exchange({"a": model}, first)
    with pytest.raises(ValueError, match=r"results\['b'\] is of other samples or another ball"):
        gl.exchange(models, {**first, "b": robustness(model, x, y, Ball(0.2), attacks=[answers(x, {})])})
    with pytest.raises(ValueError, match="expected at least two models"):
        gl.exchange({"a": model}, {"a": first["a"]})


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_on_a_plane_what_lies_nearer_than_eps_is_broken_and_nothing_else(norm, scale):
    w = torch.randn(25, generator=torch.Generator().manual_seed(1))
    plane = Plane(w, b=float(0.5 * w.sum()), scale=scale)
    x = 0.5 + 0.2 * (torch.rand(40, 1, 5, 5, generator=torch.Generator().manual_seed(2)) - 0.5)
    y = gl.predict(plane, x)
    distance = plane.distance(x, norm)
    ball = Ball(float(distance.median()), norm)
    for result in (robustness(plane, x, y, ball, attacks="quick"), auto_attack(plane, x, y, ball)):
        near, far = distance < ball.eps / 1.1, distance > ball.eps * 1.001
        assert not result.robust[near].any()
        assert result.robust[far].all()
        assert near.sum() > 5 and far.sum() > 5


def test_an_evaluation_is_an_attack_too(striped):
    """AutoAttack alone as one attack among others: it breaks what it breaks by itself, at the cost of all its parts."""
    model, x, y, broken = striped
    parts = [Attack("a", answers(x, {1: broken[1]})), Attack("b", answers(x, {2: broken[2], 3: broken[3]}))]

    def together(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Robustness:
        return robustness(model, x, y, ball, attacks=parts)

    result = robustness(model, x, y, BALL, attacks=[*parts, Attack("both", together)], exhaustive=True)
    assert result.broke[2].tolist() == [False, True, True, True, False]
    assert (result.under("a"), result.under("b"), result.under("both")) == pytest.approx((0.6, 0.4, 0.2))
    w = torch.randn(25, generator=torch.Generator().manual_seed(1))
    plane = Plane(w, b=float(0.5 * w.sum()))
    x = (0.5 - torch.tensor([[0.01], [0.02]]) * w / w.norm()).view(2, 1, 5, 5)
    ball, y = Ball(1.2 * plane.distance(x, "linf").amax().item()), torch.zeros(2, dtype=torch.long)
    alone = robustness(plane, x, y, ball, attacks=[Attack("AutoAttack", auto_attack)])
    itself = auto_attack(plane, x, y, ball)
    assert alone.broke[0].all() and not itself.robust.any()
    assert alone.forwards.sum() >= itself.forwards.sum() > 0
    assert "only 2 classes" in alone.flags["classes"]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_attack_of_the_full_suite_breaks_a_plane_alone(norm):
    """At twice the distance, with fewer steps; and the suites hold what they are said to hold, in this order."""
    names = [attack.name for attack in gl.FULL]
    assert [attack.name for attack in gl.QUICK] == names[:4]
    assert [attack.name for attack in gl.STANDARD] == names[:8]
    assert names[4:8] == ["aa-apgd-ce", "aa-apgd-t", "aa-fab-t", "aa-square"]
    assert names[8:] == ["pgd-1000", "square", "nes", "rays", "hopskipjump"]
    assert gl.FULL[8].options == {"steps": 1000, "loss": gl.losses.margin, "restarts": 5}
    w = torch.randn(36, generator=torch.Generator().manual_seed(1))
    plane = Plane(w, b=float(0.5 * w.sum()))
    model = Padded(plane)
    x = (0.5 - 0.02 * w / w.norm()).view(1, 1, 6, 6).repeat(2, 1, 1, 1)
    ball = Ball(2 * plane.distance(x, norm)[0].item(), norm)
    attacks = [
        dataclasses.replace(attack, options={k: 20 if k == "steps" else v for k, v in attack.options.items()})
        for attack in gl.FULL
    ]
    result = robustness(model, x, torch.zeros(2, dtype=torch.long), ball, attacks=attacks, exhaustive=True,
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    left_out = ["rays"] if norm == "l2" else []
    assert result.flags.get("left out", "") == ", ".join(left_out)
    broken = {name: int(result.broke[i].sum()) for i, name in enumerate(result.attacks)}
    assert broken.pop("pgd-double") == 0  # of normal gradients it takes no second look
    assert broken == {name: 2 for name in names if name not in ("pgd-double", *left_out)}


def test_an_evaluation_that_was_stopped_goes_on_without_repeating_a_batch(digits, tmp_path, monkeypatch):
    model, x, y = digits
    attacks = [Attack("pgd", gl.pgd, {"steps": 3, "restarts": 2}), Attack("square", gl.square, {"queries": 30})]
    seeded = {"batch": 16, "attacks": attacks}
    whole = robustness(model, x, y, BALL, **seeded, generator=torch.Generator().manual_seed(3))
    calls: list[int] = []

    def stops(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, generator: torch.Generator) -> gl.PGDTrace:
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return gl.pgd(model, x, y, ball, steps=3, restarts=2, generator=generator)

    monkeypatch.setattr(import_module("gradlens.robustness.state"), "PAUSE", 0)
    path = tmp_path / "evaluation"
    cut = [Attack("pgd", stops), attacks[1]]
    monkeypatch.setattr(Attack, "__str__", lambda self: self.name)  # the same call, whoever counts
    with pytest.raises(KeyboardInterrupt):
        robustness(model, x, y, BALL, batch=16, attacks=cut, resume=path, generator=torch.Generator().manual_seed(3))
    result = robustness(
        model, x, y, BALL, batch=16, attacks=cut, resume=path, generator=torch.Generator().manual_seed(3)
    )
    assert calls == [16, 16, 16, *([16] * ((int(result.clean.sum()) - 32) // 16)), *_rest(int(result.clean.sum()))]
    for name in ("broken_by", "adversarial", "tried", "broke", "forwards", "backwards"):
        assert torch.equal(getattr(result, name), getattr(whole, name)), name
    with pytest.raises(ValueError, match=r"resume is '.*evaluation', which holds the evaluation of another call"):
        robustness(model, x[:32], y[:32], BALL, batch=16, attacks=cut, resume=path)
    path.write_bytes(path.read_bytes()[:-9] + b"123456789")
    with pytest.raises(ValueError, match=r"resume is '.*evaluation', damaged"):
        robustness(model, x, y, BALL, batch=16, attacks=cut, resume=path, generator=torch.Generator().manual_seed(3))


def _rest(count: int) -> list[int]:
    return [count % 16] if count % 16 else []


def test_neither_batch_nor_order_changes_who_is_broken(cnn, images, labels):
    attacks = [Attack("pgd", gl.pgd, {"steps": 3, "restarts": 3}), Attack("square", gl.square, {"queries": 40}),
               Attack("nes", gl.nes, {"queries": 120})]  # fmt: skip
    ball = Ball(0.05)
    seeds = [torch.Generator().manual_seed(1) for _ in range(3)]
    whole = robustness(cnn, images, labels, ball, attacks=attacks, generator=seeds[0])
    single = robustness(cnn, images, labels, ball, attacks=attacks, batch=1, generator=seeds[1])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    turned = robustness(cnn, images[order], labels[order], ball, attacks=attacks, generator=seeds[2])
    assert torch.equal(whole.broken_by, single.broken_by)
    assert torch.equal(whole.broken_by[order], turned.broken_by)
    torch.testing.assert_close(whole.adversarial, single.adversarial)
    torch.testing.assert_close(whole.adversarial[order], turned.adversarial)


def test_the_model_is_left_as_it_was_and_costs_are_what_passed_through_it(cnn, images, labels):
    model = Counting(cnn, is_replaced=True).train()
    before = snapshot(model)
    result = robustness(model, images, labels, Ball(0.05), attacks="quick")
    assert snapshot(model) == before
    assert not model._forward_hooks
    seen: list[int] = []
    cnn.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    again = robustness(model, images, labels, Ball(0.05), attacks="quick")
    outside = int(sum(seen)) - int(again.forwards.sum())
    # the door's own look at all samples, at those it tries twice and in parts, and the first recount
    assert 0 < outside < 10 * len(images)
    assert torch.equal(again.forwards, result.forwards)
    assert (result.backwards > 0).any() and (result.backwards <= result.forwards).all()


@pytest.mark.slow
def test_the_reference_breaks_what_it_breaks_by_itself(digits):
    """The package's own loop over its attacks against ours, on a model with some robustness. Seeds differ."""
    model, x, y = digits
    x, y = x[:48], y[:48]
    ours = auto_attack(model, x, y, BALL, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        theirs = AutoAttack(model, eps=0.1, norm="Linf", seed=0, version="standard", device="cpu")
        points, _ = theirs.run_standard_evaluation(x, y, batch_size=256)
    with torch.no_grad():
        left = (model(points).argmax(1) == y) & (model(x).argmax(1) == y)
    assert 0.2 < float(left.double().mean()) < 0.95  # else there would be nothing to compare
    assert int((ours.robust ^ left).sum()) <= 1
    assert ours.attacks == ("aa-apgd-ce", "aa-apgd-t", "aa-fab-t", "aa-square")
    assert not ours.flags.keys() & {"randomised", "softmax", "dynamic", "classes"}
    quick = robustness(model, x, y, BALL, attacks="quick", generator=torch.Generator().manual_seed(0))
    assert abs(quick.robust_accuracy - ours.robust_accuracy) <= 1.01 / 48
    # our own Auto-PGD on the cross-entropy and the reference's, each alone
    alone = robustness(model, x, y, BALL, attacks=[Attack("apgd", gl.apgd, {"steps": 100}), gl.STANDARD[4]],
                       exhaustive=True)  # fmt: skip
    assert alone.attacks[1] == "aa-apgd-ce"
    assert abs(alone.under("apgd") - alone.under("aa-apgd-ce")) <= 1.01 / 48


def test_another_box_is_the_same_evaluation(digits):
    model, x, y = digits

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x + 1) / 2)

    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    attacks = [*gl.STANDARD[4:5], Attack("square", square_of_reference)]
    plain = robustness(model, x[:24], y[:24], BALL, attacks=attacks, generator=seeds[0])
    box = Ball(0.2, low=-1.0, high=1.0)
    wide = robustness(Shifted(), 2 * x[:24] - 1, y[:24], box, attacks=attacks, generator=seeds[1])
    assert int((plain.robust ^ wide.robust).sum()) <= 1  # rounding of the pixels may turn one
    assert (wide.adversarial >= -1).all() and (wide.adversarial <= 1).all()
    assert (wide.adversarial < 0).any()


class Softmax(nn.Module):
    def __init__(self, inner: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * self.inner(x)).softmax(1)


class Dynamic(nn.Module):
    """Defends itself by a gradient step on its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            start = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(self.inner(start).amax(1).sum(), start)
        return self.inner(x + 0.01 * grad.sign())


def test_the_references_warnings_come_as_data(digits, caplog):
    model, x, y = digits
    x, y = x[:3], y[:3]
    with caplog.at_level(logging.DEBUG):
        for made, kind in ((Softmax(model), "softmax"), (Dynamic(model), "dynamic"),
                           (Softmax(model, 1e4), "zero gradients")):  # fmt: skip
            found = auto_attack(made, x, y, Ball(0.02), version="rand")
            assert kind in found.flags, (kind, found.flags)
            assert found.flags[kind] in str(found)
            assert "flags_doc" not in str(found)
        # its counters do not remember the dynamic one
        assert auto_attack(model, x, y, Ball(0.02), version="rand").flags == {}
        assert autoattack.check(Random(model, 0.05), x, y, "standard").keys() == {"randomised"}
        assert autoattack.check(Random(model, 0.05), x, y, "rand") == {}
        noisy = auto_attack(Random(model, 0.05), x, y, Ball(0.9))  # all are broken at once
        assert "randomised" in noisy.flags and noisy.robust_accuracy == 0
    assert not [record for record in caplog.records if record.name == "auto-attack" and record.levelno >= 30]


def test_few_classes_leave_out_what_is_not_defined():
    plane = Plane(torch.tensor([0.5, -0.3, 0.2, 0.4]), b=0.4)
    x = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    y = gl.predict(plane, x)
    result = auto_attack(plane, x, y, Ball(0.5))
    assert result.attacks == ("aa-apgd-ce", "aa-fab-t", "aa-square")
    assert "only 2 classes" in result.flags["classes"]
    three = smooth_cnn(classes=3).float()
    x = torch.rand(4, 2, 5, 5)
    assert auto_attack(three, x, ball=Ball(0.9)).attacks == result.attacks
    assert result.flags["left out"] == "aa-apgd-t"
    tiny = Plane(torch.tensor([0.5, -0.3, 0.2, 0.4]), b=0.4)
    small = auto_attack(tiny, torch.rand(3, 1, 2, 2), ball=Ball(0.9, "l2"))
    assert small.flags["left out"] == "aa-apgd-t, aa-square"
    standard = robustness(three, x, ball=Ball(0.9))
    assert standard.attacks[-3:] == ("aa-apgd-ce", "aa-fab-t", "aa-square")
    assert standard.flags["left out"] == "aa-apgd-t"
    flat = nn.Sequential(nn.Linear(9, 4))
    assert auto_attack(flat, torch.rand(3, 9), ball=Ball(0.9)).flags["left out"] == "aa-square"
    two = [Attack("rays", gl.rays), Attack("pgd", gl.pgd)]
    assert robustness(plane, torch.rand(3, 1, 2, 2), ball=Ball(0.1, "l2"), attacks=two).attacks == ("pgd",)
    with pytest.raises(ValueError, match="attacks are all left out, since none is defined here: rays"):
        robustness(plane, torch.rand(3, 1, 2, 2), ball=Ball(0.1, "l2"), attacks=two[:1])


def test_the_package_leaves_the_callers_random_numbers_and_trace_alone(digits):
    model, x, y = digits
    state = torch.random.get_rng_state()
    seen: list[str] = []

    def watch(frame: object, event: str, argument: object) -> None:
        seen.append(event)

    old = sys.gettrace()
    sys.settrace(watch)
    try:
        auto_attack(model, x[:2], y[:2], BALL, version="rand", generator=torch.Generator().manual_seed(0))
        assert sys.gettrace() is watch
    finally:
        sys.settrace(old)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_random_model_is_judged_by_its_mean(digits):
    model, x, y = digits
    noisy = Random(model, 0.02)
    with pytest.raises(ValueError, match="samples"):
        robustness(noisy, x, y, BALL, attacks="quick")
    with pytest.raises(ValueError, match=r"attack 'square' takes one pass for the truth, and samples is 4"):
        robustness(noisy, x, y, BALL, attacks=[Attack("square", gl.square)], samples=4)
    result = robustness(noisy, x[:6], y[:6], BALL, samples=8)
    assert result.attacks == ("pgd-ce", "pgd-margin", "apgd-ce")
    plain = robustness(model, x[:6], y[:6], BALL, attacks="randomised")
    assert abs(result.robust_accuracy - plain.robust_accuracy) <= 0.2  # the noise of `Random` is small
    rand = auto_attack(noisy, x[:4], y[:4], BALL, version="rand")
    assert rand.attacks == ("aa-apgd-ce", "aa-apgd-dlr")
    assert "randomised" not in rand.flags


class Confident(nn.Module):
    """Three classes; float32's softmax says 1 and 0, so that the cross-entropy has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return 300 * x.flatten(1) @ self.w.T


def test_double_precision_finds_the_gradient_that_single_precision_loses():
    model = Confident()
    x = torch.tensor([[0.9, 0.2], [0.95, 0.3]])[:, None, None]
    y = torch.zeros(2, dtype=torch.long)
    ball = Ball(0.45)
    single = robustness(model, x, y, ball, attacks=[Attack("pgd", gl.pgd, {"steps": 20})])
    assert single.robust.tolist() == [True, True]
    both = robustness(model, x, y, ball, attacks=[Attack("pgd", gl.pgd, {"steps": 20}), Attack("double", pgd_double)])
    assert both.broken_by.tolist() == [1, 1]
    ordinary = smooth_cnn().float()
    images = torch.rand(2, 2, 5, 5)
    assert torch.equal(pgd_double(ordinary, images, gl.predict(ordinary, images), BALL), images)  # nothing was lost


class Sure(nn.Module):
    """z = (100 x0, 10 x1 + 15): at (0.5, 0.5) the margin is -30, and float32 knows 1 - p(y) as 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor([100.0, 10.0])), nn.Parameter(torch.tensor([0.0, 15.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.w + self.b


def test_double_precision_finds_the_part_of_the_gradient_that_single_precision_loses():
    """Darkening pixel 0 by 0.35 is enough; float32 sees that pixel 1 matters alone, which is not."""
    model, x, y, ball = Sure(), torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.long), Ball(0.35)
    trace = gl.pgd(model, x, y, ball, steps=20)
    assert not trace.ever.any() and not trace.vanished.any()
    assert trace.adversarial.flatten().tolist() == pytest.approx([0.5, 0.85])
    found = pgd_double(model, x, y, ball)
    assert found.flatten().tolist() == pytest.approx([0.15, 0.85]) and model(found).argmax(1).item() == 1
    assert robustness(model, x, y, ball, attacks=[Attack("double", pgd_double)]).broken_by.tolist() == [0]


class Uncopied(Confident):
    """Holds what cannot be copied, as a lock or an open file."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise copy.Error("this one is unique")


class Single(Confident):
    """Has numbers in float32 that `double` does not reach."""

    def forward(self, x: Tensor) -> Tensor:
        return 300 * x.flatten(1) @ torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])


@pytest.mark.parametrize(
    ("model", "reason"), [(Uncopied(), "this one is unique"), (Single(), ".*type Float.*Double|.*dtype")]
)
def test_a_model_without_a_copy_in_double_precision_is_left_out_and_said_so(model, reason):
    x = torch.tensor([[0.9, 0.2], [0.95, 0.3]])[:, None, None]
    y = torch.zeros(2, dtype=torch.long)
    before = snapshot(model)
    with pytest.warns(
        RuntimeWarning, match=rf"pgd-double was left out, the model has no copy in float64: (?:{reason})"
    ):
        result = robustness(model, x, y, Ball(0.45), attacks=[Attack("pgd-double", pgd_double)])
    assert result.robust.tolist() == [True, True]
    assert torch.equal(result.adversarial, x)
    assert snapshot(model) == before


def test_constant_models_and_labels_that_are_all_wrong(images):
    model = Constant([0.3, 0.1, 0.2, 0.0]).double()
    y = gl.predict(model, images)
    result = robustness(model, images, y, Ball(0.1), attacks="quick")
    assert result.robust_accuracy == 1
    wrong = robustness(model, images, (y + 1) % 4, Ball(0.1), attacks="quick")
    assert (wrong.clean_accuracy, wrong.robust_accuracy) == (0, 0)
    assert wrong.forwards.tolist() == [0] * 4
    assert "nothing was left to attack" in str(wrong)
    assert not wrong.tried.any()


def test_an_attack_that_needs_too_much_memory_gets_smaller_batches(striped):
    model, x, y, broken = striped

    def greedy(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        if len(x) > 2:
            raise MemoryError
        return answers(striped[1], dict(enumerate(broken)))(model, x, y, ball)

    with pytest.warns(RuntimeWarning, match="out of memory with 4 samples at a time; going on with 2"):
        result = robustness(model, x, y, BALL, attacks=[greedy])
    assert result.broken_by.tolist() == [0, 0, 0, 0, -1]


def test_a_dataloader_is_read_once(digits):
    model, x, y = digits
    pairs = iter([(x[:10], y[:10]), (x[10:16], y[10:16])])
    result = robustness(model, pairs, ball=BALL, attacks="quick", generator=torch.Generator().manual_seed(0))
    plain = robustness(model, x[:16], y[:16], BALL, attacks="quick", generator=torch.Generator().manual_seed(0))
    assert torch.equal(result.broken_by, plain.broken_by)


BAD = {
    "suite": ({"attacks": "strong"}, r"attacks is 'strong', expected one of 'quick', 'standard', 'full', 'randomised'"),
    "none": ({"attacks": []}, r"attacks is \[\], expected a suite"),
    "no attack": ({"attacks": [3]}, r"attacks holds 3, expected an Attack or a function"),
    "twice": ({"attacks": [Attack("a", gl.pgd), Attack("a", gl.pgd)]}, r"attacks holds 'a' twice"),
    "batch": ({"batch": 0}, r"batch is 0, expected at least 1"),
    "samples": ({"samples": 0}, r"samples is 0, expected at least 1"),
    "shape": ({"attacks": [lambda m, x, y, b: x[:1]]}, r"attack '<lambda>' returns shape \(1, 2, 5, 5\), expected"),
    "type": ({"attacks": [lambda m, x, y, b: None]}, r"attack '<lambda>' returns a NoneType, expected images of shape"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(options, message, cnn, images, labels):
    call = getattr(robustness, "__wrapped__", robustness)
    with pytest.raises(ValueError, match=message):
        call(cnn, images, labels, BALL, **options)


def test_versions_are_checked(cnn, images):
    call = getattr(auto_attack, "__wrapped__", auto_attack)
    with pytest.raises(ValueError, match=r"version is 'best', expected one of 'standard', 'plus', 'rand'"):
        call(cnn, images, version="best")


def test_a_result_is_kept_to_the_bit(striped, tmp_path):
    model, x, y, broken = striped
    result = robustness(model, x, y, BALL, attacks=[Attack("a", answers(x, {1: broken[1]}))])
    again = gl.load(gl.save(result, tmp_path / "r.safetensors"))
    assert isinstance(again, Robustness)
    assert str(again) == str(result)
    assert torch.equal(again.broken_by, result.broken_by) and again.attacks == result.attacks


def test_an_attack_that_writes_into_what_it_is_given_is_judged_by_the_originals(striped):
    model, x, y, _ = striped
    kept = (x.clone(), y.clone())

    def moves(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        return x.add_(0.5).clamp_(0, 1)

    def relabels(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        y.add_(1).remainder_(2)
        return x

    def rewrites(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        with torch.no_grad():
            model.unused.add_(1)
        return x

    result = robustness(model, x, y, BALL, attacks=[moves, relabels])
    assert result.robust_accuracy == result.clean_accuracy == 0.8
    for attack in (moves, relabels):
        found = gl.transfer({"a": model}, {"a": model}, x, y, BALL, attack=Attack("in place", attack))
        assert float(found.accuracy) == 1
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])
    with pytest.raises(ValueError, match="attack 'rewrites' changed the model's weights, expected it to leave"):
        robustness(model, x, y, BALL, attacks=[rewrites])
    assert float(model.unused.detach()) == 0

    def breaks_off(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        rewrites(model, x, y, ball)
        raise KeyError("of the caller's own")

    with pytest.raises(KeyError, match="of the caller's own"):
        robustness(model, x, y, BALL, attacks=[breaks_off])
    assert float(model.unused.detach()) == 0


def test_an_answer_that_is_no_number_is_no_break(striped):
    _, x, y, _ = striped

    class Fragile(Striped):
        def forward(self, x: Tensor) -> Tensor:
            answer = super().forward(x)
            return torch.where((x.flatten(1)[:, 1:2] != 0.5), torch.nan, answer)

    off = Attack("off", lambda model, x, y, ball: (x + 0.01).clamp(0, 1))
    assert robustness(Fragile(), x, 1 - y, BALL, attacks=[off]).robust_accuracy == pytest.approx(0.2)
    assert robustness(Fragile(), x, y, BALL, attacks=[off]).robust_accuracy == pytest.approx(0.8)


def test_a_file_of_other_points_or_another_function_is_refused(striped, tmp_path):
    model, x, y, broken = striped
    nothing = Attack("a", answers(x, {}))
    path = tmp_path / "r"
    assert robustness(model, x, y, BALL, attacks=[nothing], found={"s": x}, resume=path).robust_accuracy == 0.8
    assert robustness(model, x, y, BALL, attacks=[nothing], found={"s": x}, resume=path).robust_accuracy == 0.8
    for found, attack in (({"s": broken}, nothing), ({"s": x}, Attack("a", gl.pgd))):
        with pytest.raises(ValueError, match=r"which holds the evaluation of another call: its attacks"):
            robustness(model, x, y, BALL, attacks=[attack], found=found, resume=path)


@pytest.mark.slow
def test_kill_9_repeats_no_batch_that_was_written(tmp_path):
    """Six batches, the fourth of which waits for `gate`; killed in it, the second call does what is left.

    Each batch is written at once here; otherwise those of the last 20 writes' length may have to be repeated.
    """
    script = """
import importlib, sys, time, torch, gradlens as gl
from pathlib import Path
from torch import nn
importlib.import_module("gradlens.robustness.state").PAUSE = 0
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
x = torch.rand(12, 1, 2, 2)
calls = []
def slow(model, x, y, ball):
    calls.append(print("batch", flush=True))
    while len(calls) == 4 and not Path(sys.argv[2]).exists():
        time.sleep(0.1)
    return x
print("left", gl.robustness(model, x, ball=gl.Ball(0.1), attacks=[slow], resume=sys.argv[1], batch=2).robust_accuracy)
"""
    gate = tmp_path / "gate"
    command = [sys.executable, "-c", script, str(tmp_path / "r"), str(gate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as killed:
        assert killed.stdout is not None
        for _ in range(4):
            assert killed.stdout.readline() == "batch\n"
        killed.kill()
    gate.touch()
    again = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert again.stdout.splitlines() == ["batch"] * 3 + ["left 1.0"]


def test_models_without_a_gradient_or_in_half_precision_go_through_the_reference():
    class Constants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.arange(5.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.p.expand(len(x), 5)

    x = torch.rand(2, 1, 5, 5)
    result = robustness(Constants(), x, ball=BALL, attacks=gl.STANDARD[4:7])
    assert result.robust_accuracy == 1
    assert "zero gradients" in result.flags
    half = nn.Sequential(nn.Flatten(), nn.Linear(25, 5)).to(torch.bfloat16)
    assert robustness(half, x.to(torch.bfloat16), ball=Ball(0.9), attacks=gl.STANDARD[4:]).robust_accuracy < 1


def test_squares_warning_looks_at_what_came_before_it(striped):
    model, x, y, broken = striped
    names = ["pgd", "aa-apgd-ce", "aa-apgd-t", "aa-square", "square", "rays"]
    which: list[list[int]] = [[], [], [], [0, 1, 2], [], [3]]
    attacks = [Attack(name, answers(x, {i: broken[i] for i in rows})) for name, rows in zip(names, which, strict=True)]
    found = robustness(model, x, y, BALL, attacks=[attacks[0], *attacks[3:]]).flags  # the tiny model has two classes
    assert "decreased the robust accuracy of 60" in found["square"]
    late = [Attack("pgd", answers(x, {i: broken[i] for i in range(4)})), *attacks[3:]]
    assert "square" not in robustness(model, x, y, BALL, attacks=late).flags
