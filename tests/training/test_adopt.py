"""A model that gradlens has never seen answers as a run exactly as it did before, or is refused by name."""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn

from gradlens.disk import seal_weights
from tests.faults import refusals
from training import checkpoint, data
from training.__main__ import main
from training.adopt import Adoption, adopt

FACTORY = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

def odd():
    return "no model"

def asks(size):
    return make()

def flat():
    return nn.Flatten(0)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of somebody's own, with a package that holds the factory, and an empty data folder."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").touch()
    (tmp_path / "theirs" / "nets.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("GRADLENS_DATA", str(tmp_path / "data"))
    for name in ("theirs", "theirs.nets"):
        sys.modules.pop(name, None)
    return tmp_path


def trained(model: nn.Module) -> nn.Module:
    """Other weights and statistics than a fresh model has."""
    model.train()
    for _ in range(3):
        model(torch.rand(8, 3, 8, 8))
    return model.eval()


@pytest.fixture
def theirs(home: Path) -> nn.Module:
    model = trained(importlib.import_module("theirs.nets").make())
    safetensors.torch.save_file(model.state_dict(), home / "w.safetensors")
    return model


@pytest.fixture
def pixels(home: Path) -> np.ndarray:
    levels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    np.savez(home / "x.npz", x=levels, y=np.arange(12) % 5)
    return levels


@pytest.fixture
def asked(home: Path, theirs: nn.Module, pixels: np.ndarray) -> Adoption:
    return Adoption("theirs.nets:make", home / "x.npz", home / "w.safetensors", eps=0.25, norm="l2")


def test_a_factory_answers_as_before_on_the_images_that_came_with_it(asked, home, theirs, pixels):
    made = adopt(asked, home / "runs" / "one")
    (run,) = checkpoint.load_all(home / "runs")
    assert run == made
    assert run.arm == "make"
    found = data.load(run.config.dataset)
    assert (found.classes, found.ball.eps, found.ball.norm) == (5, 0.25, "l2")
    x, y = data.subset(found.test, 100, 0)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2)[order] / 255
    assert torch.equal(x, expected)
    assert torch.equal(y, order % 5)
    assert torch.equal(run.model()(x), theirs(x))
    said = run.reference()
    assert said["model"] == "theirs.nets:make"
    assert (said["schedule"], said["seed"]) == (None, None), "nothing is known of its training"


def test_adopting_again_changes_no_byte_and_other_code_other_images_do(asked, home):
    def files() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in [*(home / "run").iterdir(), *(home / "data" / "own").iterdir()]}

    adopt(asked, home / "run")
    first = files()
    adopt(asked, home / "run")
    assert files() == first
    (home / "theirs" / "nets.py").write_text(FACTORY + "\n# another thought\n")
    adopt(asked, home / "run")
    assert {name for name, content in files().items() if first[name] != content} == {"run.json"}
    other = adopt(replace(asked, images=3), home / "run")
    assert len(data.load(other.config.dataset).test) == 3
    assert len(files()) == len(first) + 1, "the images of an earlier adoption stay"


@pytest.mark.parametrize(
    "wrap", [lambda w: w, lambda w: {"epoch": 3, "state_dict": {f"module.{k}": t for k, t in w.items()}}]
)
def test_a_torchvision_model_by_name_is_normalised_and_has_the_classes_of_its_weights(home, pixels, wrap):
    model = trained(torchvision.models.resnet18(num_classes=7))
    torch.save(wrap(model.state_dict()), home / "w.pt")
    run = adopt(Adoption("resnet18", home / "x.npz", home / "w.pt"), home / "run")
    assert run.config.model == "torchvision/resnet18"
    found = data.load(run.config.dataset)
    assert found.classes == 7
    x = found.test.x
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        assert torch.equal(run.model()(x), model((x - mean) / std))
    plain = adopt(Adoption("resnet18", home / "x.npz", home / "w.pt", mean=(0.0,) * 3, std=(1.0,) * 3), home / "run")
    with torch.no_grad():
        assert torch.equal(plain.model()(x), model(x))


def test_a_folder_of_images_is_read_a_class_a_folder(asked, home, pixels):
    for i, name in enumerate(("beta", "alpha", "beta")):
        (home / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(home / "photos" / name / f"{i}.png")
    found = data.load(adopt(replace(asked, data=home / "photos"), home / "run").config.dataset)
    assert found.name.startswith("photos-")
    assert found.test.y.tolist() == [0, 1, 1]
    expected = torch.from_numpy(pixels[[1, 0, 2]]).permute(0, 3, 1, 2)
    assert torch.equal(found.test.images, expected)
    Image.fromarray(np.zeros((16, 32, 3), np.uint8)).save(home / "photos" / "alpha" / "wide.png")
    with pytest.raises(ValueError, match=r"images of 32 x 16, 8 x 8, expected one size; give --size"):
        adopt(replace(asked, data=home / "photos"), home / "run")
    sized = data.load(adopt(replace(asked, data=home / "photos", size=8), home / "run").config.dataset)
    assert sized.shape == (3, 8, 8)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return os.mkdir, ("executed",)


def spoil(name: str, home: Path, pixels: np.ndarray) -> None:
    """Write the file that a refusal below is about."""
    y, plain = np.arange(12) % 5, home / name
    match name:
        case "evil.pt":
            torch.save({"w": Evil()}, plain)
        case "torn.safetensors" | "torn.npz":
            plain.write_bytes(b"PK\x03\x04 torn")
        case "list.pt":
            torch.save([1, 2], plain)
        case "other.safetensors":
            safetensors.torch.save_file({"0.weight": torch.zeros(4, 3, 3, 3)}, plain)
        case "bright.npz":
            np.savez(plain, x=pixels / 100, y=y)
        case "int.npz":
            np.savez(plain, x=pixels.astype(np.int64), y=y)
        case "lonely.npz":
            np.savez(plain, pictures=pixels)
        case "short.npz":
            np.savez(plain, x=pixels, y=y[:3])
        case "many.npz":
            np.savez(plain, x=pixels, y=y + 90)
        case "grey.npz":
            np.savez(plain, x=pixels[..., 0], y=y)
        case "objects.npz":
            np.savez(plain, x=np.array([Evil()] * 12), y=y)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "theirs.nets:maek"}, r"no function 'maek'; 'make'\?"),
        ({"model": "theirs.none:make"}, r"theirs.none is not installed or not found: start the command where"),
        ({"model": "theirs.nets:odd"}, r"returns a str, expected an nn.Module"),
        ({"model": "theirs.nets:asks"}, r"cannot be called without arguments"),
        ({"model": "theirs.nets:flat", "weights": None}, r"answers one image with \(192,\), expected logits"),
        ({"model": "theirs nets:make"}, r"expected package.module:function"),
        ({"model": "resnet19"}, r"model is 'resnet19', expected a factory .* did you mean 'resnet18'\?"),
        ({"model": "keras/resnet18"}, r"expected torchvision/NAME or timm/NAME"),
        ({"model": "torchvision/none"}, r"torchvision/none'"),
        ({"model": "resnet18", "weights": None}, r"whose answers would be random; name a file with --weights"),
        ({"weights": "none.pt"}, r"none.pt' is not a file, expected .safetensors or .pt"),
        ({"weights": "evil.pt"}, r"evil.pt' are refused"),
        ({"weights": "torn.safetensors"}, r"torn.safetensors' are refused"),
        ({"weights": "list.pt"}, r"list.pt' hold no dictionary of tensors by name"),
        ({"weights": "other.safetensors"}, r"belongs? to another architecture: it has no 0.bias"),
        ({"data": "none.npz"}, r"none.npz', and there is no such file or folder"),
        ({"data": "theirs"}, r"theirs' has no images, expected a folder a class"),
        ({"data": "torn.npz"}, r"torn.npz' cannot be read as an npz"),
        ({"data": "objects.npz"}, r"objects.npz' cannot be read as an npz"),
        ({"data": "bright.npz"}, r"x spans \[0, 2.55\], expected pixels in \[0, 1\]"),
        ({"data": "int.npz"}, r"x is of type int64, expected uint8"),
        ({"data": "lonely.npz"}, r"holds pictures, expected the arrays x and y"),
        ({"data": "short.npz"}, r"y is int64 of shape \(3,\), expected 12 class numbers"),
        ({"data": "many.npz"}, r"y has the class 94, and model 'theirs.nets:make' tells 5 classes apart"),
        ({"data": "grey.npz"}, r"refuses images of shape \(1, 8, 8\)"),
        ({"mean": (0.5,) * 3}, r"expected both or neither"),
        ({"mean": (0.5,), "std": (0.5,)}, r"expected a number for each of 3 channels"),
        ({"eps": -1.0}, r"eps is -1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_adopted_is_named_before_anything_is_written(asked, home, pixels, monkeypatch, change, said):
    monkeypatch.chdir(home)
    for name in change.values():
        spoil(str(name), home, pixels)
    paths = {key: home / value for key, value in change.items() if key in ("weights", "data") and value}
    with pytest.raises(ValueError, match=said):
        adopt(replace(asked, **{**change, **paths}), home / "run")
    assert not (home / "run").exists()
    assert not (home / "data").exists()
    assert not (home / "executed").exists()


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_timm_is_asked_for_where_it_is_missing(asked, home):
    with pytest.raises(ValueError, match=r"timm is not installed or not found: pip install timm"):
        adopt(replace(asked, model="timm/resnet18"), home / "run")


def test_adopted_weights_and_images_are_refused_with_bytes_changed_or_missing(asked, home, theirs):
    torch.save(theirs.state_dict(), home / "w.pt")
    (home / "sealed.safetensors").write_bytes(seal_weights(theirs.state_dict()))
    for name in ("w.pt", "sealed.safetensors"):
        said = replace(asked, weights=home / name)
        content = said.weights.read_bytes()
        for size in range(0, len(content), 997):
            said.weights.write_bytes(content[:size])
            with pytest.raises(ValueError, match=rf"{name}' are refused"):
                adopt(said, home / "run")
        # one bit within the numbers of a tensor: no reader of the format would mind
        place = content.index(theirs.state_dict()["0.weight"].numpy().tobytes()) + 5
        said.weights.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=rf"{name}' are refused"):
            adopt(said, home / "run")
        said.weights.write_bytes(content)
        dataset = adopt(said, home / "run").config.dataset
    path = data.adopted_file(dataset)
    assert refusals(path, lambda: data.load(dataset), match=f"{path} is damaged", every=29) > 50


def test_images_elsewhere_are_no_data_set(asked, home):
    path = data.adopted_file(adopt(asked, home / "run").config.dataset)
    (home / "data" / "x.npz").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"dataset is '\.\./x', expected one of"):
        data.load("../x")


def test_a_factory_that_is_gone_is_named_when_the_run_is_read(asked, home, monkeypatch):
    adopt(asked, home / "run")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(home)])
    for name in ("theirs", "theirs.nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    run = checkpoint.load(home / "run")
    with pytest.raises(ValueError, match=r"'theirs.nets:make', and theirs is not installed or not found"):
        run.model()


def test_the_command_line_adopts_and_says_what(asked, home, capsys):
    words = ["--model", asked.model, "--weights", str(asked.weights), "--data", str(asked.data), "--name", "Mine"]
    assert main(["adopt", "--out", str(home / "run"), *words]) == 0
    assert "Mine on x-" in capsys.readouterr().out
    assert json.loads((home / "run" / "run.json").read_text())["adopted"]["eps"] == 8 / 255
    assert main(["adopt", "--out", str(home / "run"), *words[:2], "--data", "nowhere"]) == 2
    assert "error: data is 'nowhere'" in capsys.readouterr().err
