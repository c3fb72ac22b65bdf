"""PGD against a slow version from stored gradients, and against foolbox."""

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlens import Ball, PGDTrace, losses, pgd
from tests.analytic import Plane

STEPS = 6
LOSSES = {"cross_entropy": losses.cross_entropy, "margin": losses.margin}
CASES = pytest.mark.parametrize(
    ("ball", "size", "loss"),
    [
        (Ball(0.15, norm) if norm == "linf" else Ball(0.6, norm), size, loss)
        for norm, size in (("linf", 0.06), ("l2", 0.25))
        for loss in LOSSES
    ],
    ids=lambda value: getattr(value, "norm", value),
)


def slow(cnn: nn.Module, x: Tensor, y: Tensor, ball: Ball, size: float, loss: str) -> dict[str, Any]:
    """One image at a time, every gradient stored, torch's own functions and formulas only."""
    stories = []
    for image, label in zip(x, y, strict=True):
        point, story = image.clone(), {"points": [], "grads": [], "logits": []}
        for step in range(STEPS + 1):
            leaf = point.clone().requires_grad_(True)
            z = cnn(leaf[None])[0]
            wrong = torch.cat([z[:label], z[label + 1 :]]).max()
            value = -torch.log_softmax(z, 0)[label] if loss == "cross_entropy" else wrong - z[label]
            value.backward()
            story["points"].append(point)
            story["grads"].append(leaf.grad)
            story["logits"].append(z.detach())
            if step < STEPS:
                if ball.norm == "linf":
                    point = point + size * leaf.grad.sign()
                    point = torch.max(torch.min(point, image + ball.eps), image - ball.eps)
                else:
                    point = point + size * leaf.grad / leaf.grad.norm()
                    if (point - image).norm() > ball.eps:
                        point = image + ball.eps * (point - image) / (point - image).norm()
                point = point.clamp(0, 1).detach()
        stories.append(story)
    return {name: [story[name] for story in stories] for name in ("points", "grads", "logits")}


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.fixture
def both(
    cnn: nn.Module, images: Tensor, labels: Tensor, ball: Ball, size: float, loss: str
) -> tuple[PGDTrace, dict[str, Any]]:
    trace = pgd(cnn, images, labels, ball, steps=STEPS, step_size=size, loss=LOSSES[loss])
    return trace, slow(cnn, images, labels, ball, size, loss)


def per_point(values: list[list[Tensor]]) -> Tensor:
    """From one list a sample to (points, batch)."""
    return torch.stack([torch.stack(column) for column in values], 1)


@CASES
def test_a_trace_holds_what_plain_torch_reads_at_each_point(both, labels, loss):
    trace, story = both
    logits = [[(z, label) for z in column] for column, label in zip(story["logits"], labels, strict=True)]
    p = per_point([[z.softmax(0) for z, _ in column] for column in logits])
    margin = per_point([[torch.cat([z[:y], z[y + 1 :]]).max() - z[y] for z, y in column] for column in logits])
    ce = per_point([[F.cross_entropy(z[None], y[None]) for z, y in column] for column in logits])
    torch.testing.assert_close(trace.margin, margin)
    torch.testing.assert_close(trace.loss, ce if loss == "cross_entropy" else margin)
    torch.testing.assert_close(trace.confidence, p.max(2).values)
    torch.testing.assert_close(trace.entropy, -(p * p.log()).sum(2))
    torch.testing.assert_close(trace.grad_norm, per_point([[g.norm() for g in column] for column in story["grads"]]))
    for i, points in enumerate(story["points"]):
        torch.testing.assert_close(trace.adversarial[i], points[-1], rtol=0, atol=1e-9)
        torch.testing.assert_close(trace.best[i], points[int(margin[:, i].argmax())], rtol=0, atol=1e-9)


@CASES
def test_directions_are_compared_as_plain_torch_compares_them(both, images):
    trace, story = both
    expected: dict[str, list[list[Tensor]]] = {
        name: [[] for _ in images] for name in ("cosine", "cosine_first", "cosine_final", "sign_agreement", "moved")
    }
    for i, (grads, points) in enumerate(zip(story["grads"], story["points"], strict=True)):
        for t in range(STEPS):
            here, there = grads[t].flatten(), grads[t + 1].flatten()
            expected["cosine"][i].append(here @ there / here.norm() / there.norm())
            expected["cosine_first"][i].append(grads[0].flatten() @ there / grads[0].norm() / there.norm())
            end = (points[-1] - images[i]).flatten()
            expected["cosine_final"][i].append(here @ end / here.norm() / end.norm())
            same = sum(float(a * b > 0) for a, b in zip(here, there, strict=True))
            both_defined = sum(float(a != 0 and b != 0) for a, b in zip(here, there, strict=True))
            expected["sign_agreement"][i].append(torch.tensor(same / both_defined).double())
            expected["moved"][i].append((points[t + 1] - points[t]).norm())
    for name, values in expected.items():
        torch.testing.assert_close(getattr(trace, name), per_point(values), rtol=1e-6, atol=1e-9, msg=name)
    assert trace.cosine.std() > 3e-3  # the paths turn: the comparison is not one of ones with ones


@CASES
def test_the_surface_share_is_counted_pixel_by_pixel(both, images, ball):
    trace, story = both
    for i, points in enumerate(story["points"]):
        for t, point in enumerate(points):
            far = (point - images[i]).norm() >= ball.eps - 1e-6
            count = 0
            for pixel, clean in zip(point.flatten(), images[i].flatten(), strict=True):
                at_ball = abs(pixel - clean) >= ball.eps - 1e-6 if ball.norm == "linf" else far
                count += bool(pixel in (0, 1) or at_ball)
            assert trace.on_surface[t, i].item() == pytest.approx(count / point.numel())
    assert trace.on_surface[0].max() < trace.on_surface[-1].min()


def test_sign_agreement_leaves_out_pixels_where_either_gradient_is_zero():
    """Gradient (1, 1, 0, 2 - ...): pixel 2 never counts, pixel 3 turns its sign after the first step."""

    class Turning(Plane):
        def z(self, x: Tensor) -> Tensor:
            return x[:, 0] + x[:, 1] - (x[:, 3] - 0.52) ** 2 * 10 + 0 * self.w.sum()

    x, y = torch.full((1, 4), 0.5), torch.zeros(1, dtype=torch.long)
    trace = pgd(Turning(torch.ones(4)), x, y, Ball(0.3), steps=1, step_size=0.05, loss=losses.margin)
    assert trace.sign_agreement.item() == pytest.approx(2 / 3)


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, *, steps: int, size: float) -> Tensor:
    """foolbox from the image itself. It sums the cross-entropy, as we do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox's own imports
        import foolbox

        attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[ball.norm](
            abs_stepsize=size, steps=steps, random_start=False
        )
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(ball.low, ball.high))
        return attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=ball.eps)


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("ball", [Ball(0.1), Ball(0.5, "l2")], ids=lambda ball: ball.norm)
def test_the_last_point_is_that_of_foolbox(ball, steps, cnn, images, labels):
    ours = pgd(cnn, images, labels, ball, steps=steps, step_size=ball.eps / 4)
    theirs = foolbox_pgd(cnn, images, labels, ball, steps=steps, size=ball.eps / 4)
    torch.testing.assert_close(ours.adversarial, theirs, rtol=0, atol=1e-6)
    assert (theirs - images).abs().amax() > 0.01


def test_foolbox_shortens_l2_steps_of_a_confident_model_and_this_does_not():
    """foolbox divides the gradient by max(norm, 1e-12): below that its steps shrink with the gradient, ours do not.

    The plane's cross-entropy gradient at margin -60 is about 60 e^-60 / 2 = 1e-24, its direction exactly known.
    """
    model, x, y = Plane(torch.full((4,), 0.5), b=1.2, scale=300.0), torch.full((1, 4), 0.5), torch.tensor([0])
    ball = Ball(0.3, "l2")
    ours = pgd(model, x, y, ball, steps=1, step_size=0.05)
    assert 0 < ours.grad_norm[0].item() < 1e-20
    assert ours.moved.item() == pytest.approx(0.05, rel=1e-5)
    theirs = foolbox_pgd(model, x, y, ball, steps=1, size=0.05)
    assert (theirs - x).norm() < 1e-6
