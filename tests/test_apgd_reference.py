"""Our Auto-PGD beside the reference implementation, pyautoattack, on digits and on Fashion-MNIST."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from sklearn.datasets import load_digits
from torch import Tensor, nn

import gradlens as gl
from gradlens import Ball, losses

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NORMS = {"linf": "Linf", "l2": "L2"}
SAMPLES = 128

# the ratio of an image whose label ranks third is constant, of which the reference warns
pytestmark = pytest.mark.filterwarnings("ignore:there are .* points with zero gradient")


def trained(x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """A small convolutional network, good enough to be worth attacking."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        channels = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        model = nn.Sequential(channels, nn.Flatten(), nn.LazyLinear(10))
        model(x[:1])
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels)
    return trained(x[:1000], y[:1000], 6), x[-SAMPLES:], y[-SAMPLES:]


def reference(kind: type, model: nn.Module, ball: Ball, loss: str = "ce", **options: int) -> APGDAttack:
    named = {"loss": loss} if kind is APGDAttack else {}
    attack = kind(model, norm=NORMS[ball.norm], eps=ball.eps, device=torch.device("cpu"), **named, **options)
    attack.init_hyperparam(torch.zeros(1, 1, 8, 8))
    return attack


def random_start(x: Tensor, ball: Ball, number: int) -> Tensor:
    torch.manual_seed(number)
    noise = 2 * torch.rand_like(x) - 1 if ball.norm == "linf" else torch.randn_like(x)
    size = noise.flatten(1).norm(dim=1, p=torch.inf if ball.norm == "linf" else 2)
    return (x + ball.eps * noise / size.view(-1, 1, 1, 1)).clamp(0, 1)


def agree(ours: Tensor, theirs: Tensor) -> None:
    """Which samples stand, within one of 128; and the attack has broken some, not all."""
    assert 5 < theirs.sum() < SAMPLES - 5
    assert (ours.sum() - theirs.sum()).abs() <= 1


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("ball", [Ball(0.1), Ball(0.5, "l2")], ids=lambda ball: ball.norm)
def test_from_the_same_start_it_breaks_the_samples_that_the_reference_breaks(ball, loss, digits):
    model, x, y = digits
    start = random_start(x, ball, 0)
    _, stands, highest, _ = reference(APGDAttack, model, ball, loss, n_iter=50).attack_single_run(x, y, x_init=start)
    climbed = losses.cross_entropy if loss == "ce" else losses.dlr
    trace = gl.apgd(model, x, y, ball, steps=50, loss=climbed, start=start)
    agree(~trace.ever, stands.bool())
    assert ((~trace.ever) != stands.bool()).sum() <= 1
    # float32 signs of gradients near zero part some paths; most end where the reference's do
    assert ((trace.loss.amax(0) - highest).abs() < 1e-3 * (0.1 + highest.abs())).float().mean() > 0.8


def test_from_the_images_themselves_cross_entropy_leaves_as_many_standing_as_the_reference(digits):
    model, x, y = digits
    ball = Ball(0.1)
    theirs = reference(APGDAttack, model, ball, n_iter=100, seed=0).perturb(x, y)
    agree(~gl.apgd(model, x, y, ball).ever, model(theirs).argmax(1) == y)


def test_towards_targets_by_logit_it_leaves_as_many_standing_as_the_references_apgd_t(digits):
    model, x, y = digits
    ball = Ball(0.1)
    theirs = reference(APGDAttack_targeted, model, ball, n_iter=50, n_target_classes=4, seed=0).perturb(x, y)
    ours = gl.apgd_targeted(model, x, y, ball, steps=50, classes=4, by="logit", start=random_start(x, ball, 0))
    agree(~ours.ever, model(theirs).argmax(1) == y)
    by_distance = gl.apgd_targeted(model, x, y, ball, steps=50, classes=4, start=random_start(x, ball, 0))
    assert (~by_distance.ever).sum() <= (~ours.ever).sum() + 1


def fashion(name: str, count: int) -> tuple[Tensor, Tensor]:
    images = gzip.decompress((DEBIAN / f"{name}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((DEBIAN / f"{name}-labels-idx1-ubyte.gz").read_bytes())[8:]
    x = torch.from_numpy(np.frombuffer(images, np.uint8).copy()).view(-1, 1, 28, 28)[:count] / 255
    return x, torch.from_numpy(np.frombuffer(labels, np.uint8).copy()).long()[:count]


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("eps", [0.03, 0.1])
def test_on_fashion_mnist_it_leaves_as_many_standing_as_the_reference(eps):
    model = trained(*fashion("train", 3000), epochs=2)
    x, y = fashion("t10k", SAMPLES)
    start = random_start(x, Ball(eps), 0)
    _, stands, _, _ = reference(APGDAttack, model, Ball(eps), n_iter=50).attack_single_run(x, y, x_init=start)
    ours = gl.apgd(model, x, y, Ball(eps), steps=50, start=start)
    assert ((~ours.ever).sum() - stands.sum()).abs() <= 1
    assert stands.sum() < (model(x).argmax(1) == y).sum() - 20
