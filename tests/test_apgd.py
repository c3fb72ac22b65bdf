"""Auto-PGD against a slow version of the paper's algorithm, image by image, and FGSM against its formula."""

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball, losses
from gradlens.attacks.apgd import checkpoints
from gradlens.draws import Draws, keys, seed
from tests.analytic import Constant, Detached, Plane, Random, smooth_cnn, snapshot

BALLS = pytest.mark.parametrize("ball", [Ball(0.15), Ball(0.7, "l2")], ids=lambda ball: ball.norm)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1])


def value_and_gradient(model: nn.Module, point: Tensor, label: Tensor, loss) -> tuple[float, Tensor]:
    leaf = point.clone().requires_grad_(True)
    value = loss(model(leaf[None]), label[None])[0]
    return value.item(), torch.autograd.grad(value, leaf)[0]


def inside(point: Tensor, image: Tensor, ball: Ball) -> Tensor:
    delta = point - image
    if ball.norm == "linf":
        delta = delta.clamp(-ball.eps, ball.eps)
    elif delta.norm() > ball.eps:
        delta = ball.eps * delta / delta.norm()
    return (image + delta).clamp(0, 1)


def slow(model: nn.Module, image: Tensor, label: Tensor, start: Tensor, ball: Ball, steps: int, loss) -> dict:
    """Algorithm 1 of Croce & Hein 2020 with all losses in a list, and every sum written out."""
    points, values, sizes = [start], [], []
    value, grad = value_and_gradient(model, start, label, loss)
    values.append(value)
    size, best, current, previous = 2 * ball.eps, (value, start, grad), start, start
    checks, at_check, halved_before = checkpoints(steps), [(0, value)], True
    for k in range(1, steps + 1):
        way = grad.sign() if ball.norm == "linf" or not grad.any() else grad / grad.norm()
        z = inside(current + size * way, image, ball)
        a = 1.0 if k == 1 else 0.75
        previous, current = current, inside(current + a * (z - current) + (1 - a) * (current - previous), image, ball)
        sizes.append(size)
        points.append(current)
        value, grad = value_and_gradient(model, current, label, loss)
        values.append(value)
        if value > best[0]:
            best = (value, current, grad)
        if k in checks:
            last, best_then = at_check[-1]
            rises = sum(values[i] > values[i - 1] for i in range(last + 1, k + 1))
            halve = rises <= 0.75 * (k - last) or (not halved_before and best[0] == best_then)
            if halve:
                size, current, grad = size / 2, best[1], best[2]
            at_check.append((k, best[0]))
            halved_before = halve
    return {"points": points, "values": values, "sizes": sizes}


@BALLS
@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.dlr], ids=lambda f: f.__name__)
def test_it_visits_the_points_of_the_papers_algorithm_with_its_step_sizes(ball, loss, cnn, images, labels):
    start = ball.sample(images, torch.Generator().manual_seed(2))
    trace = gl.apgd(cnn, images, labels, ball, steps=40, loss=loss, start=start)
    seen: list[int] = []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        told = slow(cnn, image, label, start[i], ball, 40, loss)
        torch.testing.assert_close(trace.loss[:, i], torch.tensor(told["values"]).double(), rtol=1e-6, atol=1e-9)
        # whether a loss that stands still has risen hangs on its last digit, and the next halving on that
        rises, theirs = trace.loss[:, i].diff(), torch.tensor(told["values"], dtype=torch.float64).diff()
        parted = (rises.sign() != theirs.sign()).nonzero().flatten().tolist()
        assert max(rises[parted].abs().tolist() + theirs[parted].abs().tolist(), default=0) < 1e-12
        clear = min([*parted, len(rises)])
        seen.append(clear)
        torch.testing.assert_close(trace.step_size[:clear, i], torch.tensor(told["sizes"]).double()[:clear])
        torch.testing.assert_close(trace.adversarial[i], told["points"][-1], rtol=0, atol=1e-6)
        moved = [(b - a).norm() for a, b in zip(told["points"], told["points"][1:], strict=False)]
        torch.testing.assert_close(trace.moved[:, i], torch.stack(moved), rtol=0, atol=1e-6)
        assert clear < len(rises) or trace.halvings[i] == len(set(told["sizes"])) - 1
    assert sorted(seen)[2] == 40  # most part nowhere
    assert trace.halvings.min() >= 2 and len(trace.halvings.unique()) > 1  # samples halve each in their own time
    assert ball.contains(trace.best, images).all()


def test_checkpoints_are_those_of_the_paper():
    """p_0 = 0, p_1 = 0.22, p_j+1 = p_j + max(p_j - p_j-1 - 0.03, 0.06), of 100 steps."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (1, 2, 5, 10, 1000):
        found = checkpoints(steps)
        assert found[-1] <= steps and found == sorted(set(found)) and found[0] == max(int(0.22 * steps), 1)


def test_a_sample_that_only_climbs_keeps_its_step_and_one_that_stands_still_halves_it():
    """Without a gradient the loss never rises: halved at every checkpoint. 2 eps to the corner, then no rise either."""
    x, y = torch.full((2, 4), 0.4), torch.zeros(2, dtype=torch.long)
    still = gl.apgd(Detached(Plane(torch.ones(4))), x, y, Ball(0.1), steps=50)
    assert still.halvings.tolist() == [len([c for c in checkpoints(50) if c < 50])] * 2
    assert still.moved.eq(0).all() and torch.equal(still.adversarial, x)
    climbing = gl.apgd(Slow(), x, y, Ball(0.45), steps=20, loss=losses.margin)
    assert climbing.halvings.eq(0).all() and (climbing.step_size == 0.9).all()
    assert gl.pgd(Slow(), x, y, Ball(0.1), steps=20).halvings.eq(0).all()


class Slow(nn.Module):
    """Each pass finds a larger margin than the one before, wherever it looks."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x) > 0
        z = x.sum(1) + 1e-6 * self.passes - 9
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize("step_size", [0.03, None])
def test_pgd_notes_its_constant_step_size(step_size, cnn, images, labels):
    trace = gl.pgd(cnn, images, labels, Ball(0.1), steps=4, step_size=step_size)
    assert (trace.step_size == (step_size or 2.5 * 0.1 / 4)).all() and trace.step_size.shape == (4, 6)
    table = trace.frame().set_index(["step", "sample"])["step_size"]
    assert table[0].isna().all() and table[1].notna().all()


@BALLS
def test_batch_size_and_order_do_not_matter(ball, cnn, images, labels):
    order = torch.tensor([4, 2, 5, 0, 3, 1])
    whole = gl.apgd(cnn, images, labels, ball, steps=20)
    parts = gl.apgd(cnn, images, labels, ball, steps=20, batch=2)
    mixed = gl.apgd(cnn, images[order], labels[order], ball, steps=20)
    for name in ("loss", "margin", "step_size", "cosine"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
        torch.testing.assert_close(getattr(mixed, name), getattr(whole, name)[:, order])
    assert torch.equal(parts.halvings, whole.halvings)


def test_each_sample_keeps_its_strongest_restart_with_its_step_sizes(cnn, images, labels):
    ball = Ball(0.3)
    together = gl.apgd(
        cnn, images, labels, ball, steps=10, restarts=3, generator=torch.Generator().manual_seed(9), loss=losses.dlr
    )
    draws = Draws.of(seed(torch.Generator().manual_seed(9)), keys(images))
    starts = [images, *(ball.sample(images, draws) for _ in range(2))]
    runs = [gl.apgd(cnn, images, labels, ball, steps=10, loss=losses.dlr, start=start) for start in starts]
    winners = torch.stack([run.lead for run in runs]).argmax(0).tolist()
    assert len(set(winners)) > 1
    for i, winner in enumerate(winners):
        assert torch.equal(together.step_size[:, i], runs[winner].step_size[:, i])
        assert torch.equal(together.best[i], runs[winner].best[i])
    assert (together.forwards == 33).all() and (together.backwards == 33).all()


def test_with_targets_it_goes_where_it_is_told_by_either_form_of_loss(cnn, images, labels):
    targets = (labels + 1) % 4
    plain = gl.apgd(cnn, images, labels, Ball(1.0), targets=targets, loss=losses.margin)
    ratio = gl.apgd(cnn, images, labels, Ball(1.0), targets=targets, loss=losses.targeted_dlr)
    for trace in (plain, ratio):
        assert (cnn(trace.best).argmax(1) == targets).double().mean() > 0.6
    torch.testing.assert_close(plain.loss[0], -losses.margin(cnn(images), targets))
    torch.testing.assert_close(ratio.loss[0], losses.targeted_dlr(cnn(images), labels, targets))
    # pgd climbs the same loss towards them
    torch.testing.assert_close(
        gl.pgd(cnn, images, labels, Ball(0.1), steps=1, targets=targets, loss=losses.targeted_dlr).loss[0],
        ratio.loss[0],
    )


class Planted(nn.Module):
    """Class 1 within `radius` of one point that was put into the ball, class 0 elsewhere."""

    def __init__(self, point: Tensor, radius: float) -> None:
        super().__init__()
        self.point, self.radius = nn.Parameter(point), radius

    def forward(self, x: Tensor) -> Tensor:
        z = self.radius - (x - self.point).flatten(1).norm(dim=1)
        return torch.stack([torch.zeros_like(z), z], 1)


@BALLS
def test_a_planted_error_is_found_by_halving_where_full_steps_jump_over_it(ball):
    generator = torch.Generator().manual_seed(3)
    x, y, by_full_steps = torch.full((1, 30), 0.5), torch.zeros(1, dtype=torch.long), 0
    for _ in range(4):
        model = Planted(ball.sample(x, generator), 0.02)
        trace = gl.apgd(model, x, y, ball, loss=losses.margin)
        assert trace.ever.all() and model(trace.best).argmax(1).item() == 1 and ball.contains(trace.best, x).all()
        full = gl.pgd(model, x, y, ball, steps=100, step_size=ball.eps / 4, loss=losses.margin)
        by_full_steps += int(full.ever.sum())
        assert gl.minimum_norm(model, x, y, ball).distance.item() <= ball.eps
        empty = Planted(ball.sample(x, generator), -1e-3)
        assert not gl.apgd(empty, x, y, ball, loss=losses.margin).ever.any()
    assert by_full_steps < 3  # by luck


def test_a_trace_reads_as_one_line(cnn, images, labels):
    said = str(gl.apgd(cnn, images, labels, Ball(0.1), steps=10))
    assert said.startswith("6 samples, apgd, linf eps 0.1: accuracy ") and " over 10 steps " in said


def test_passes_are_counted_as_the_model_sees_them(images, labels, cnn):
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    with cnn.register_forward_hook(count):
        trace = gl.apgd(cnn, images, labels, Ball(0.1), steps=7, restarts=2, samples=2)
    assert (trace.forwards == calls - 1).all() and (trace.forwards == 2 * 2 * 8).all()  # the door looks once


def test_a_random_model_is_averaged_over_and_refused_without(cnn, images, labels):
    with pytest.raises(ValueError, match="model is random between two passes"):
        gl.apgd(Random(cnn, 1e-3), images, labels)
    trace = gl.apgd(Random(cnn, 0.05, seed=1), images, labels, Ball(0.2), steps=10, samples=20)
    assert (trace.loss[-1] > trace.loss[0]).all()


def test_what_cannot_be_attacked_is_left_where_it_is():
    x = torch.rand(3, 4)
    trace = gl.apgd(Constant([2.0, 0.0]), x, None, Ball(0.1), steps=5)
    assert trace.vanished.all() and torch.equal(trace.adversarial, x) and not trace.ever.any()
    wrong = gl.apgd(Constant([2.0, 0.0]), x, torch.ones(3, dtype=torch.long), Ball(0.1), steps=5)
    assert wrong.ever.all() and torch.equal(wrong.best, x)


def test_the_model_is_left_as_it_was_in_training_mode_and_half_frozen(images, labels):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 4))
    model = model.double().train()
    model[0].weight.requires_grad_(False)
    before = snapshot(model)
    for attack in (gl.apgd, gl.fgsm, gl.pgd_targeted, gl.apgd_targeted, gl.minimum_norm):
        attack(model, images, labels, Ball(0.1), **({} if attack is gl.fgsm else {"steps": 3}))
        assert snapshot(model) == before, attack
        with pytest.raises(ValueError, match="y spans"):
            attack(model, images, torch.full((6,), 7), Ball(0.1))
        assert snapshot(model) == before, attack


def test_data_loaders_and_half_precision_are_taken(images, labels):
    pairs = torch.utils.data.TensorDataset(images.float(), labels)
    loader = torch.utils.data.DataLoader(pairs, batch_size=4)
    model = smooth_cnn().float()
    whole, loaded = gl.apgd(model, images.float(), labels, steps=5), gl.apgd(model, loader, None, steps=5)
    torch.testing.assert_close(loaded.margin, whole.margin)
    half = gl.apgd(smooth_cnn().bfloat16(), images.float(), labels, Ball(0.2), steps=5)
    assert half.loss.dtype == torch.float32 and half.loss.isfinite().all()


@BALLS
def test_fgsm_is_one_step_of_eps_along_the_gradient(ball, cnn, images, labels):
    trace = gl.fgsm(cnn, images, labels, ball)
    leaf = images.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(cnn(leaf), labels, reduction="sum"), leaf)
    way = grad.sign() if ball.norm == "linf" else grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(trace.adversarial, (images + ball.eps * way).clamp(0, 1))
    assert trace.loss.shape == (2, 6) and (trace.forwards == 2).all() and (trace.step_size == ball.eps).all()
    assert trace.made.call.startswith("fgsm(ball=")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: gl.apgd(m, x, y, steps=0), "steps is 0, expected"),
        (lambda m, x, y: gl.apgd(m, x, y, restarts=0), "restarts is 0, expected"),
        (lambda m, x, y: gl.apgd(m, x, y, loss=losses.targeted_dlr), "loss is targeted_dlr, expected targets beside"),
        (lambda m, x, y: gl.apgd(m, x, y, targets=[0, 1]), "targets has 2 entries, expected one for each of the 6"),
        (lambda m, x, y: gl.apgd(m, x + 2, y), "x spans"),
        (lambda m, x, y: gl.apgd(m[:4], x, y, steps=1), "model returns shape"),
        (lambda m, x, y: gl.fgsm(m, x, y, targets=[9] * 6), r"targets span 9\.\.9"),
        (lambda m, x, y: gl.apgd(Plane(torch.ones(50)).double(), x, None, loss=losses.dlr), "dlr needs at least 4"),
    ],
)
def test_bad_input_is_named(call, message, cnn, images, labels):
    with pytest.raises(ValueError, match=message):
        call(cnn, images, labels)
