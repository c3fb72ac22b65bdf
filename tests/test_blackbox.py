"""The black box: exact counts, a budget that holds, no gradients, success only inside the ball and the box."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball, QueryTrace, hopskipjump, load, nes, rays, save, square
from gradlens.attacks.queries import BlackBox
from tests.analytic import Answers, Constant, Plane, Random, Steps, smooth_cnn, snapshot


def turning(*args: Any, **options: Any) -> QueryTrace:
    """Square that turns pairs of pixels in most steps, on any budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("gradlens.attacks.queries.square"), "TURNS", 0)
        return square(*args, pairs=0.8, **options)


turning.__name__ = "square"  # which its records are by


ATTACKS: dict[str, tuple[Any, Ball]] = {
    "square": (square, Ball(0.1)),
    "square l2": (square, Ball(0.5, "l2")),
    "square l2, pairs": (turning, Ball(0.5, "l2")),
    "nes": (nes, Ball(0.1)),
    "nes l2": (nes, Ball(0.5, "l2")),
    "rays": (rays, Ball(0.1)),
    "hopskipjump": (hopskipjump, Ball(0.1)),
    "hopskipjump l2": (hopskipjump, Ball(0.5, "l2")),
}
HARD = {name: ATTACKS[name] for name in ATTACKS if name.startswith(("rays", "hop"))}
every_attack = pytest.mark.parametrize(("attack", "ball"), ATTACKS.values(), ids=ATTACKS)
every_hard = pytest.mark.parametrize(("attack", "ball"), HARD.values(), ids=HARD)


def seeded(attack: Any, *args: Any, seed: int = 3, **options: Any) -> QueryTrace:
    return attack(*args, generator=torch.Generator().manual_seed(seed), **options)


@pytest.fixture
def labels(cnn: nn.Module, images: Tensor) -> Tensor:
    """The model's own answers, but for one."""
    y = cnn(images).argmax(1)
    y[2] = (y[2] + 1) % 4
    return y


@pytest.fixture
def linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(50, 4)).double()


@pytest.fixture
def answers(linear: nn.Module, images: Tensor) -> Tensor:
    """The linear model's own answers, but for one."""
    y = linear(images).argmax(1)
    y[2] = (y[2] + 1) % 4
    return y


def box(model: nn.Module, x: Tensor, y: Tensor, queries: int = 10, ball: Ball = Ball(0.1)) -> BlackBox:
    return BlackBox(model, x, y, ball, queries=queries, width=4, until_broken=True)


def test_a_question_beyond_the_budget_is_refused_and_not_put_to_the_model(cnn, images, labels):
    asked = box(cnn, images, labels, queries=3)
    who = torch.tensor([0, 0, 1])
    asked.margins(images[who], who)
    assert asked.used.tolist() == [3, 2, 1, 1, 1, 1]
    seen: list[int] = []
    cnn.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    with pytest.raises(RuntimeError, match="beyond its budget of 3"):
        asked.errs(images[:1], torch.tensor([0]))
    assert seen == []
    assert asked.used.tolist() == [3, 2, 1, 1, 1, 1]


def test_an_error_is_clear_by_the_rounding_of_the_arithmetic_that_the_model_was_prepared_for():
    """A lead of half a percent is beyond the rounding of float32 and within that of bfloat16."""
    model = Answers(lambda x: 10 + torch.stack([0 * x.mean((1, 2, 3)), 0.05 * (x.mean((1, 2, 3)) - 0.5).sign()], 1))
    x, y = torch.full((2, 1, 2, 2), 0.45), torch.zeros(2, dtype=torch.long)
    for precision, is_clear in (("float32", True), ("bfloat16", False)):
        asked = box(gl.prepare(model, precision=precision), x, y)
        assert not asked.errs(x, torch.arange(2)).any()
        assert asked.errs(x + 0.1, torch.arange(2)).tolist() == [is_clear] * 2


def test_no_gradient_comes_out_of_the_box(cnn, images, labels):
    asked = box(cnn, images, labels)
    points = images.clone().requires_grad_(True)
    assert not asked.margins(points, torch.arange(6)).requires_grad
    with pytest.raises(RuntimeError):
        asked.margins(points, torch.arange(6)).sum().backward()


def test_answers_are_the_models_and_at_most_width_images_are_in_it_at_a_time(cnn, images, labels):
    seen: list[int] = []
    cnn.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    asked = box(cnn, images, labels)
    values = asked.margins(images, torch.arange(6))
    assert seen == [4, 2, 4, 2]
    torch.testing.assert_close(values, gl.losses.margin(cnn(images), labels).detach())


@every_attack
@pytest.mark.parametrize(("kind", "queries"), [("cnn", 2), ("cnn", 3), ("cnn", 60), ("constant", 30)])
def test_queries_are_the_images_that_the_model_saw_sample_by_sample(attack, ball, kind, queries, cnn, images, labels):
    """Less what the door looks at and the recount, which a run of one query shows."""
    model = cnn if kind == "cnn" else Constant([0.0, 3.0, 1.0, 0.5]).double()
    y = labels if kind == "cnn" else torch.tensor([1, 1, 0, 1, 1, 2])
    seen: list[int] = []
    model.register_forward_hook(lambda module, args, out: seen.append(len(out)))

    def spent(x: Tensor, y: Tensor, queries: int) -> tuple[int, Tensor]:
        seen.clear()
        trace = seeded(attack, model, x, y, ball, queries=queries)
        assert trace.queries.amax() <= queries
        return sum(seen), trace.queries

    together, counted = spent(images, y, queries)
    assert together - spent(images, y, 1)[0] == int(counted.sum()) - 6
    for i in (0, 2):
        alone, own = spent(images[i : i + 1], y[i : i + 1], queries)
        assert alone - spent(images[i : i + 1], y[i : i + 1], 1)[0] == int(own) - 1
        assert own.item() == counted[i].item()


@every_attack
def test_a_sample_wrong_from_the_start_costs_one_query(attack, ball, cnn, images, labels):
    trace = seeded(attack, cnn, images, labels, ball, queries=50)
    assert trace.queries[2] == trace.found_at[2] == 1
    assert torch.equal(trace.adversarial[2], images[2])
    assert trace.accuracy(1) == pytest.approx(5 / 6)
    if trace.closest is not None:
        assert trace.distance[2] == 0 and torch.equal(trace.closest[2], images[2])
    wrong = seeded(attack, cnn, images, (cnn(images).argmax(1) + 1) % 4, ball, queries=50)
    assert wrong.queries.eq(1).all() and wrong.success.all() and wrong.accuracy(50) == 0


@every_attack
def test_success_is_an_error_inside_the_ball_and_the_box_and_comes_at_its_query(attack, ball, linear, images, answers):
    trace = seeded(attack, linear, images, answers, ball, queries=200)
    value = gl.losses.margin(linear(trace.adversarial), answers).detach()
    torch.testing.assert_close(trace.margin, value)
    assert torch.equal(trace.success, value > 0)
    assert trace.success.sum() > 1
    assert ball.contains(trace.adversarial, images).all()
    assert (trace.found_at[trace.success] <= trace.queries[trace.success]).all()
    if trace.closest is None:
        assert torch.equal(trace.found_at[trace.success], trace.queries[trace.success].to(value))  # it leaves at once


def test_found_at_is_the_query_that_a_smaller_budget_lacks(linear, images, answers):
    """RayS has no schedule: a shorter run is the beginning of a longer one."""
    number = seeded(rays, linear, images, answers, Ball(0.1), queries=200).found_at
    sample = int(number.where(number > 1, torch.inf).argmin())
    one, number = slice(sample, sample + 1), int(number[sample])
    short, enough = (
        seeded(rays, linear, images[one], answers[one], Ball(0.1), queries=n) for n in (number - 1, number)
    )
    assert enough.success.all() and not short.success.any()


@every_hard
def test_a_distance_is_that_of_an_error_in_the_box_however_far(attack, ball, linear, images, answers):
    tiny = Ball(1e-4, ball.norm)
    trace = seeded(attack, linear, images, answers, tiny, queries=400)
    found = trace.distance.isfinite()
    assert found.sum() > 3 and trace.success.sum() == 1
    assert (gl.losses.margin(linear(trace.closest), answers)[found] > 0).all()
    torch.testing.assert_close(trace.distance[found], ball.length(trace.closest - images)[found])
    assert trace.closest.amin() >= 0 and trace.closest.amax() <= 1


@every_attack
def test_batch_size_and_order_change_nothing(attack, ball, cnn, images, labels):
    whole = seeded(attack, cnn, images, labels, ball, queries=40)
    turned = torch.tensor([3, 0, 5, 1, 4, 2])
    runs = [
        (slice(None), seeded(attack, cnn, images, labels, ball, queries=40, batch=1)),
        (turned, seeded(attack, cnn, images[turned], labels[turned], ball, queries=40)),
    ]
    for where, run in runs:
        assert torch.equal(run.queries, whole.queries[where])
        torch.testing.assert_close(run.found_at, whole.found_at[where], equal_nan=True, rtol=0, atol=0)
        torch.testing.assert_close(run.adversarial, whole.adversarial[where], rtol=0, atol=1e-9)
        torch.testing.assert_close(run.distance, whole.distance[where], equal_nan=True, rtol=0, atol=1e-9)


@every_attack
def test_a_constant_model_is_all_unbroken_or_all_wrong(attack, ball, images):
    for logits, label in (([0.0, 2.0], 1), ([1.0, 1.0], 0)):  # of classes that tie, the first is the answer
        model = Constant(logits).double()
        right = seeded(attack, model, images, torch.full((6,), label), ball, queries=50)
        assert not right.success.any() and right.accuracy(50) == 1
        assert right.found_at.isnan().all() and right.distance.isnan().all()
        assert right.margin.isfinite().all() and right.adversarial.isfinite().all()
    for logits, label in (([0.0, 2.0], 0), ([1.0, 1.0], 1)):
        wrong = seeded(attack, Constant(logits).double(), images, torch.full((6,), label), ball, queries=200)
        assert wrong.success.all() and wrong.queries.eq(1).all()


@every_attack
def test_nan_beyond_the_clean_images_is_no_error_and_stops_nothing(attack, ball):
    """Half of all points get nan; the other half is a plane, and is broken there."""
    plane = Plane(torch.tensor([1.0, 0.5, -0.25, 0.5, 1.0, -0.5, 0.1, 0.3, 0.2]), b=1.15)

    def answer(x: Tensor) -> Tensor:
        return torch.where((x.flatten(1).sum(1) > 4.52)[:, None], torch.nan, plane(x))

    x = torch.full((2, 1, 3, 3), 0.4)
    trace = seeded(attack, Answers(answer), x, [0, 0], Ball(0.3, ball.norm), queries=100)
    assert trace.margin.isfinite().all() and trace.adversarial.isfinite().all()
    assert torch.equal(trace.success, trace.margin > 0)


@every_attack
def test_the_model_is_left_as_it_was(attack, ball, images):
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(27, 3)
    )
    model[0].weight.requires_grad_(False)
    before = snapshot(model)
    trace = seeded(attack, model.train(), images.float(), None, ball, queries=30)
    assert snapshot(model) == before
    assert trace.made.call.startswith(f"{attack.__name__}(ball=Ball(eps={ball.eps}")
    assert "queries=30" in trace.made.call


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_attack
def test_half_precision(attack, ball, dtype, images, labels):
    trace = seeded(attack, smooth_cnn().to(dtype), images.to(dtype), labels, ball, queries=100)
    assert trace.queries.amax() <= 100 and not trace.success[trace.margin <= 0].any()
    assert trace.success[trace.margin > 0.1].all()  # below, an error may be one of rounding, which does not count


@every_attack
def test_one_sample_and_flat_images_and_a_loader(attack, ball):
    model = nn.Sequential(nn.Linear(6, 3))
    x = torch.rand(5, 6)
    trace = seeded(attack, model, ((part, part[:, 0].long()) for part in x.split(2)), None, ball, queries=40)
    assert trace.queries.shape == (5,) and trace.labels.eq(0).all()
    assert seeded(attack, model, x[:1].view(1, 1, 1, 2, 3).flatten(1), [0], ball, queries=40).queries.shape == (1,)


@every_attack
def test_a_random_model_is_refused(attack, ball, cnn, images, labels):
    with pytest.raises(ValueError, match="model is random"):
        seeded(attack, Random(cnn, 0.1), images, labels, ball)


def test_accuracy_falls_with_queries_and_is_not_made_up_beyond_the_budget(cnn, images, labels):
    trace = square(cnn, images, labels, Ball(0.1), queries=100)
    curve = [trace.accuracy(n) for n in range(1, 101)]
    assert curve == sorted(curve, reverse=True) and curve[0] > curve[-1]
    assert curve == [1 - sum(f <= n for f in trace.found_at.tolist()) / 6 for n in range(1, 101)]
    for bad, said in ((0, "queries is 0"), (101, "queries is 101"), (True, "queries is True")):
        with pytest.raises(ValueError, match=said):
            trace.accuracy(bad)


@every_attack
def test_table_line_and_file(attack, ball, cnn, images, labels, tmp_path):
    trace = seeded(attack, cnn, images, labels, ball, queries=60)
    table = trace.frame()
    assert len(table) == 6 and table["queries"].tolist() == trace.queries.tolist()
    assert table["success"].tolist() == trace.success.tolist()
    assert f"{attack.__name__}: accuracy 83.3% -> {trace.accuracy(60):.1%} after 60 queries" in str(trace)
    assert "\n" not in str(trace)
    again = load(save(trace, tmp_path / "trace.safetensors"))
    assert str(again) == str(trace) and torch.equal(again.adversarial, trace.adversarial)


@pytest.mark.parametrize(("attack", "options", "said"), [
    (square, {"queries": 0}, "queries is 0"),
    (nes, {"queries": -5}, "queries is -5"),
    (rays, {"queries": 0}, "queries is 0"),
    (hopskipjump, {"queries": 0}, "queries is 0"),
    (square, {"p_init": 0.0}, r"p_init is 0\.0"),
    (square, {"p_init": 1.5}, r"p_init is 1\.5"),
    (square, {"p_init": math.nan}, "p_init is nan"),
    (square, {"pairs": -0.1}, r"pairs is -0\.1, expected a share of steps"),
    (square, {"pairs": 1.1}, r"pairs is 1\.1"),
    (square, {"pairs": math.nan}, "pairs is nan"),
    (nes, {"population": 7}, "population is 7"),
    (nes, {"population": 0}, "population is 0"),
    (nes, {"sigma": 0.0}, r"sigma is 0\.0"),
    (nes, {"sigma": math.inf}, "sigma is inf"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_named(attack, options, said, cnn, images):
    with pytest.raises(ValueError, match=said):
        attack(cnn, images, None, Ball(0.1), **options)


def test_rays_says_that_it_knows_no_l2(cnn, images):
    with pytest.raises(ValueError, match=r"ball has norm 'l2', expected 'linf'.*hopskipjump"):
        rays(cnn, images, None, Ball(0.5, "l2"))


def test_steps_that_gradients_do_not_see_are_found():
    """A staircase has gradient 0 everywhere; questions climb it."""
    x, y = torch.full((2, 1, 4, 4), 0.4), torch.zeros(2, dtype=torch.long)
    model, ball = Steps(20), Ball(0.16)
    assert not gl.pgd(model, x, y, ball, loss=gl.losses.margin).ever.any()
    assert square(model, x, y, ball, queries=300).success.all()
    assert nes(model, x, y, ball, queries=2000, sigma=0.1).success.all()
    assert rays(model, x, y, ball, queries=300).success.all()
    assert hopskipjump(model, x, y, ball, queries=400).success.all()


def test_a_chunk_that_does_not_fit_is_asked_in_smaller_parts(cnn, images, labels):
    limit, most = 3, []

    def small(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        most.append(len(args[0]))
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError("no")

    whole = square(cnn, images, labels, Ball(0.1), queries=40, generator=torch.Generator().manual_seed(3))
    handle = cnn.register_forward_pre_hook(small)
    with pytest.warns(RuntimeWarning, match="out of memory"):
        halved = square(cnn, images, labels, Ball(0.1), queries=40, generator=torch.Generator().manual_seed(3))
    handle.remove()
    assert torch.equal(halved.queries, whole.queries)
