"""Our Auto-PGD and Square beside AutoAttack's own on a small network for Fashion-MNIST."""

import copy
from importlib import import_module

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball
from gradlens.attacks.queries import BlackBox
from gradlens.attacks.queries.square import search
from gradlens.draws import Draws
from tests.test_apgd_reference import DEBIAN, SAMPLES, agree, fashion, random_start, reference, trained
from tests.test_query_attacks import References

BALL = Ball(0.05)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"),
    # the ratio of an image whose label ranks third is constant, of which the reference warns
    pytest.mark.filterwarnings("ignore:there are .* points with zero gradient"),
]


@pytest.fixture(scope="module")
def clothes() -> tuple[nn.Module, Tensor, Tensor]:
    return trained(*fashion("train", 2000), epochs=3), *fashion("t10k", SAMPLES)


def test_auto_pgd_on_cross_entropy_leaves_as_many_standing_as_the_references(clothes):
    model, x, y = clothes
    start = random_start(x, BALL, 0)
    _, stands, _, _ = reference(APGDAttack, model, BALL, n_iter=30).attack_single_run(x, y, x_init=start)
    agree(~gl.apgd(model, x, y, BALL, steps=30, start=start).ever, stands.bool())


def test_square_breaks_what_the_references_breaks_given_its_random_numbers(clothes, monkeypatch):
    """In float64, as on digits: within one sample, and at the very same query."""
    model, x, y = clothes
    model, x = copy.deepcopy(model).double(), x.double()
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    monkeypatch.setattr(References, "norm", "linf", raising=False)
    monkeypatch.setattr(import_module("gradlens.attacks.queries.square"), "Numbers", References)
    torch.set_default_dtype(torch.float64)
    try:
        theirs = SquareAttack(model, norm="Linf", n_queries=198, eps=BALL.eps, device="cpu")
        theirs.init_hyperparam(x)
        torch.manual_seed(0)
        queries, points = theirs.attack_single_run(x, y)
        with torch.no_grad():
            box = BlackBox(model, x, y, BALL, queries=200, width=SAMPLES, until_broken=True)
            torch.manual_seed(0)
            search(box, Draws(()), 0.8, is_edged=False)
    finally:
        torch.set_default_dtype(torch.float32)
    stands = model(points).argmax(1) == y
    agree(box.found_at.isnan(), stands)
    assert (box.found_at.isnan() != stands).sum() <= 1
    assert torch.equal(box.used - 1, queries.long())  # ours counts the clean image
