"""A data set so small that a run takes a moment."""

import dataclasses

import pytest
import torch

from training import data
from training.data import Data, Split


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Data:
    """The first 96 training and 40 validation and test images of the digits, under their name."""
    whole = data.digits()
    parts = {"train": 96, "validation": 40, "test": 40}
    cut = {name: Split(*getattr(whole, name).at(torch.arange(count))) for name, count in parts.items()}
    small = dataclasses.replace(whole, **cut)
    monkeypatch.setitem(data.DATASETS, "digits", lambda: small)
    return small
