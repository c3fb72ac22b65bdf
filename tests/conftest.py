"""What every test relies on: pictures without a screen, one thread, nothing left changed in torch's global state."""

from collections.abc import Iterator

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, nn

from tests.analytic import smooth_cnn

mpl.use("Agg")
torch.set_num_threads(1)  # as many workers as cores, each on one thread


@pytest.fixture(autouse=True)
def global_random_state() -> Iterator[None]:
    """Each test starts from the same global random state, whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def cnn() -> nn.Module:
    """A smooth float64 network with four classes for images of 2 x 5 x 5."""
    return smooth_cnn()


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    """Six float64 images for `cnn`, strictly inside the pixel box."""
    return 0.05 + 0.9 * torch.rand(6, 2, 5, 5, generator=generator, dtype=torch.float64)
