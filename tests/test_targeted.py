"""Which class to attack first, and attacks on one after the other."""

import pytest
import torch
from torch import nn

import gradlens as gl
from gradlens import Ball, losses
from tests.analytic import Constant, Detached, smooth_cnn

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def linear(classes: int = 5, pixels: int = 12) -> nn.Linear:
    """Classes with weights of very different size, so that the largest logit is not the closest class."""
    generator = torch.Generator().manual_seed(4)
    model = nn.Linear(pixels, classes).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(classes, pixels, generator=generator) * torch.logspace(-1, 1, classes)[:, None])
        model.bias.copy_(torch.randn(classes, generator=generator))
    return model


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_malt_ranks_by_the_distance_to_each_class(norm, generator):
    model, x = linear(), torch.rand(20, 12, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    found = gl.target_classes(model, x, y, Ball(norm=norm))
    for image, label, order in zip(x, y, found, strict=True):
        z, distances = model(image), {}
        for other in set(range(5)) - {label.item()}:
            slope = model.weight[label] - model.weight[other]
            distances[other] = ((z[label] - z[other]) / slope.norm(p=1 if norm == "linf" else 2)).item()
        assert order.tolist() == sorted(distances, key=distances.__getitem__)
    by_logit = gl.target_classes(model, x, y, Ball(norm=norm), by="logit")
    assert torch.equal(by_logit, model(x).argsort(1, descending=True)[:, 1:])
    assert not torch.equal(by_logit, found)


def test_the_class_that_malt_ranks_first_is_the_one_that_a_small_ball_reaches(generator):
    model, x = linear(), 0.3 + 0.4 * torch.rand(10, 12, generator=generator, dtype=torch.float64)
    y = model(x).argmax(1)
    first = gl.target_classes(model, x, y, count=1)[:, 0]
    slopes = (model.weight[y] - model.weight[first]).abs().sum(1)
    z = model(x).detach()
    eps = (z.gather(1, y[:, None]) - z.gather(1, first[:, None]))[:, 0] / slopes
    for image, label, near, room in zip(x.split(1), y.split(1), first.split(1), eps.tolist(), strict=True):
        if room < 0.29:  # the box does not bind
            reached = gl.apgd(model, image, label, Ball(1.02 * room), steps=20, targets=near, loss=losses.margin)
            assert model(reached.best).argmax(1) == near
            assert not gl.apgd_targeted(model, image, label, Ball(0.98 * room), steps=20).ever.any()


def test_the_label_is_no_target_also_where_the_model_errs_or_says_nothing(cnn, images):
    for by in ("logit", "malt"):
        found = gl.target_classes(cnn, images, LABELS, by=by)
        for label, order in zip(LABELS.tolist(), found.tolist(), strict=True):
            assert sorted([label, *order]) == [0, 1, 2, 3]
        for model in (Constant([1.0, 1.0, 1.0]), Detached(smooth_cnn())):
            found = gl.target_classes(model, images, [0] * 6, by=by)
            assert found.shape[1] == (2 if isinstance(model, Constant) else 3)
            assert all(sorted([0, *order]) == list(range(len(order) + 1)) for order in found.tolist())


def test_count_batches_and_loaders(cnn, images):
    whole = gl.target_classes(cnn, images, LABELS)
    assert torch.equal(gl.target_classes(cnn, images, LABELS, count=2), whole[:, :2])
    assert torch.equal(gl.target_classes(cnn, images, LABELS, batch=2), whole)
    pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, LABELS), batch_size=4)
    assert torch.equal(gl.target_classes(cnn, pairs, None), whole)


@pytest.mark.parametrize("by", ["logit", "malt"])
def test_each_sample_is_broken_by_the_first_class_that_breaks_it(by, cnn, images):
    """One run a class by hand, through a loss that is told its target."""
    y = cnn(images).argmax(1)
    ball = Ball(1.01 * gl.minimum_norm(cnn, images, y).distance.median().item())  # breaks one half
    ranks = gl.target_classes(cnn, images, y, ball, by=by)
    runs = [
        gl.apgd(cnn, images, y, ball, steps=10, loss=lambda z, y, t=t: losses.targeted_dlr(z, y, t)) for t in ranks.T
    ]
    together = gl.apgd_targeted(cnn, images, y, ball, steps=10, by=by)
    broken = torch.stack([run.ever for run in runs])
    assert torch.equal(together.ever, broken.any(0))
    assert broken.any() and not broken.all()
    for i in range(6):
        tried = next((k for k in range(3) if broken[k, i]), 2) + 1
        kept = max(runs[:tried], key=lambda run: run.lead[i].item())
        assert together.forwards[i] == 11 * tried + 1
        assert together.backwards[i] == 11 * tried + (3 if by == "malt" else 0)
        for name in ("loss", "margin", "step_size", "cosine"):
            torch.testing.assert_close(getattr(together, name)[:, i], getattr(kept, name)[:, i])
        torch.testing.assert_close(together.best[i], kept.best[i])
        torch.testing.assert_close(losses.margin(cnn(together.best), y), together.lead)
    assert ball.contains(together.best, images).all() and together.targets is None


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_towards_all_classes_breaks_what_a_run_towards_some_class_breaks(norm, generator):
    """Class 1 leads by logit and rises slowly in pixel 0, class 2 rises fast in pixel 1, class 3 never; label 0."""
    model = nn.Linear(4, 4).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 4, [1, 0, 0, 0], [0, 10, 0, 0], [0, 0, 0, 0.1]]))
        model.bias.copy_(torch.tensor([0.0, -0.8, -6.0, -9.0]))
    x = 0.35 + 0.2 * torch.rand(40, 4, generator=generator, dtype=torch.float64)
    ball, y = Ball(0.15, norm), torch.zeros(40, dtype=torch.long)
    options = {"steps": 7, "momentum": 0.5, "loss": losses.margin}
    ranks = gl.target_classes(model, x, y, ball, by="logit")
    broken = torch.stack([gl.pgd(model, x, y, ball, targets=wanted, **options).ever for wanted in ranks.T])
    together = gl.pgd_targeted(model, x, y, ball, by="logit", **options)
    exact = (x[:, 1] > 0.45) | (x[:, 0] > 0.65)  # within eps of 0.6, or of 0.8
    assert torch.equal(together.ever, exact) and torch.equal(broken.any(0), exact)
    assert exact.any() and not exact.all() and (broken[1:].any(0) & ~broken[0]).any()
    tried = torch.where(exact, broken.double().argmax(0) + 1, 3)
    assert torch.equal(together.forwards, 8 * tried + 1) and torch.equal(together.backwards, 8 * tried)
    assert torch.equal(model(together.best).argmax(1) != y, exact) and ball.contains(together.best, x).all()
    few = gl.pgd_targeted(model, x, y, ball, by="logit", classes=1, **options)
    assert torch.equal(few.ever, broken[0])


def test_fewer_classes_are_the_beginning_of_more_and_all_are_enough(cnn, images):
    y = cnn(images).argmax(1)
    ball = Ball(1.01 * gl.minimum_norm(cnn, images, y).distance.median().item())
    shares = [gl.apgd_targeted(cnn, images, y, ball, steps=10, classes=k).ever.sum() for k in (1, 2, 3, 9)]
    assert shares == sorted(shares) and shares[2] == shares[3] and 0 < shares[3] < 6
    one = gl.apgd_targeted(cnn, images[:1], y[:1], Ball(0.2), steps=3)
    assert one.best.shape == images[:1].shape


def test_two_classes_are_refused_by_the_default_loss_and_taken_by_the_margin(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 2)).double()
    with pytest.raises(ValueError, match=r"targeted_dlr needs at least 4 classes, the model has 2.*losses\.margin"):
        gl.apgd_targeted(model, images, None)
    targeted = gl.apgd_targeted(model, images, None, Ball(0.2), steps=5, loss=losses.margin)
    torch.testing.assert_close(
        targeted.margin, gl.apgd(model, images, None, Ball(0.2), steps=5, loss=losses.margin).margin
    )


def test_a_start_is_taken(cnn, images):
    start = Ball(0.1).sample(images, torch.Generator().manual_seed(0))
    trace = gl.apgd_targeted(cnn, images, LABELS, Ball(0.1), steps=2, start=start)
    torch.testing.assert_close(trace.margin[0], losses.margin(cnn(start), LABELS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: gl.target_classes(m, x, None, count=0), "count is 0, expected"),
        (lambda m, x: gl.target_classes(m, x, None, count=4), "count is 4, expected at most 3"),
        (lambda m, x: gl.apgd_targeted(m, x, None, classes=0), "classes is 0, expected"),
        (lambda m, x: gl.pgd_targeted(m, x, None, classes=0), "classes is 0, expected"),
        (lambda m, x: gl.apgd_targeted(m, x, None, steps=0), "steps is 0, expected"),
        (lambda m, x: gl.apgd_targeted(m, x, None, start=x[:2]), "start has 2 entries"),
    ],
)
def test_bad_input_is_named(call, message, cnn, images):
    with pytest.raises(ValueError, match=message):
        call(cnn, images)
