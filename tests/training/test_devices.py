"""Where models are measured: by name, and refused where it is not there."""

import os

import pytest
import torch

from training import checkpoint, data, devices
from training.config import Config
from training.engines import cores
from training.fit import fit


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.find("auto") == devices.find("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.find("auto") == devices.find("cuda") == torch.device("cuda")
    assert devices.find("cuda:1") == torch.device("cuda", 1) and devices.find("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:one", "cuda:-1", "cuda0", "", "mps"])
def test_another_name_is_refused(name):
    with pytest.raises(ValueError, match=f"device is {name!r}, expected auto, cpu, cuda"):
        devices.find(name)


@pytest.mark.parametrize(("name", "there"), [("cuda", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(name, there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ValueError, match=rf"device is {name!r}, expected auto or cpu: torch sees {there} CUDA"):
        devices.find(name)


def test_models_and_images_come_where_they_are_wanted(monkeypatch):
    """The meta device, which is everywhere, stands in for a GPU."""
    monkeypatch.setattr(devices, "find", torch.device)
    x, y = data.subset(data.load("digits").test, 5, 0, "meta")
    assert x.shape == (5, 1, 8, 8) and x.is_meta and y.is_meta
    assert not data.subset(data.load("digits").test, 5, 0)[0].is_meta


def test_the_models_of_a_folder_come_on_its_device(tiny, tmp_path, monkeypatch):
    fit(Config(schedule="sl:1"), tmp_path / "run", quiet=True)
    monkeypatch.setattr(devices, "find", torch.device)
    (there,), (here,) = checkpoint.load_all(tmp_path, device="meta"), checkpoint.load_all(tmp_path)
    assert all(p.is_meta for p in there.model().parameters())
    assert not any(p.is_meta for p in here.model().parameters())


def test_cores_are_those_that_a_cluster_reserved(monkeypatch):
    monkeypatch.setenv("GRADLENS_CORES", "2.0")
    assert cores() == 2
    monkeypatch.setenv("GRADLENS_CORES", "0.5")
    assert cores() == 1
    monkeypatch.delenv("GRADLENS_CORES")
    assert cores() == len(os.sched_getaffinity(0))
