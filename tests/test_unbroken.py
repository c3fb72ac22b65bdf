"""PGD that lets rest what is broken: the points and the verdicts of the recorded run."""

import importlib

import pytest
import torch
from torch import nn

import gradlens as gl
from gradlens.model import frozen
from gradlens.robustness.attack import metered
from gradlens.robustness.unbroken import pgd_until_broken
from tests.analytic import Plane


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 32), nn.Tanh(),
        nn.Linear(32, 5),
    )  # fmt: skip
    return model.train().double()


@pytest.fixture
def x(generator: torch.Generator) -> torch.Tensor:
    return torch.rand(40, 1, 8, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", [gl.losses.cross_entropy, gl.losses.margin])
def test_it_breaks_what_the_recorded_run_breaks_and_ends_where_that_was_strongest(model, x, norm, loss):
    """What withstands all steps has the strongest point of that run."""
    y = model.eval()(x).argmax(1)
    y[:3] = (y[:3] + 1) % 5  # wrong as they are
    ball = gl.Ball(0.1 if norm == "linf" else 0.6, norm)
    trace = gl.pgd(model, x, y, ball, steps=60, loss=loss)
    with frozen(model):
        points = pgd_until_broken(model, x, y, ball, steps=60, loss=loss)
    errs = model(points).argmax(1) != y
    assert torch.equal(errs, trace.ever)
    assert 3 < errs.sum() < 37
    torch.testing.assert_close(points[~errs], trace.best[~errs], rtol=0, atol=1e-12)
    assert ball.contains(points, x).all()


def test_restarts_break_what_a_recorded_run_with_restarts_breaks(model, x):
    y, ball = model.eval()(x).argmax(1), gl.Ball(0.08)
    trace = gl.pgd(model, x, y, ball, steps=10, restarts=4, generator=torch.Generator().manual_seed(5))
    with frozen(model):
        stream = torch.Generator().manual_seed(5)
        points = pgd_until_broken(model, x, y, ball, steps=10, restarts=4, generator=stream)
    assert torch.equal(model(points).argmax(1) != y, model(trace.best).argmax(1) != y)


def test_what_is_broken_costs_no_more_steps():
    """Half of the samples at a tenth of eps from a plane, half beyond eps: passes are those of who is on the way."""
    w = torch.ones(64, dtype=torch.float64)
    plane = Plane(w, b=float(0.5 * w.sum()))
    x = 0.5 - torch.tensor([0.05, 0.9] * 32, dtype=torch.float64).view(-1, 1, 1, 1) * torch.ones(1, 8, 8) * 0.1
    ball, y = gl.Ball(0.05), torch.zeros(64, dtype=torch.long)
    attack = gl.Attack("long", pgd_until_broken, {"steps": 100})
    result = gl.robustness(plane, x, y, ball, attacks=[attack])
    assert result.broke[0].view(32, 2).all(0).tolist() == [True, False]
    near = 6  # points until one lies beyond a plane at 0.005, in steps of 2.5 x 0.05 / 100
    assert 32 * 101 + 32 * near <= int(result.forwards[0]) <= 32 * 101 + 32 * near + 4 * 64


@pytest.mark.parametrize(("unit", "rests"), [(1e-7, True), (1e-3, True), (0.2, False)])
def test_a_sample_rests_only_where_rounding_cannot_undo_it(monkeypatch, unit, rests):
    """Beyond a plane the wrong logit leads by all of its size: no share above 1 is ever clear."""
    monkeypatch.setattr(importlib.import_module("gradlens.robustness.unbroken"), "rounding", lambda model, x: unit)
    w = torch.ones(64, dtype=torch.float64)
    plane, x = Plane(w, b=32.0), torch.full((4, 1, 8, 8), 0.49, dtype=torch.float64)
    with metered(plane) as cost, frozen(plane):
        pgd_until_broken(plane, x, torch.zeros(4, dtype=torch.long), gl.Ball(0.05), steps=100)
    assert (cost.backwards < 4 * 30) == rests


@pytest.mark.parametrize(("option", "value"), [("steps", 0), ("restarts", 0), ("step_size", -1.0)])
def test_it_refuses_what_pgd_refuses(model, x, option, value):
    with pytest.raises(ValueError, match=option):
        pgd_until_broken(model, x, torch.zeros(40, dtype=torch.long), gl.Ball(0.01), **{"steps": 2, option: value})
