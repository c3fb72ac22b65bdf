"""Weights on disk, and a disk that is full: refused or said by name, and what stood there stays."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gradlens import entropy, load, plots, robustness, save, weight_line
from gradlens.disk import UNFINISHED, load_weights, packed, seal_weights, write
from tests.analytic import smooth_cnn
from tests.faults import Bomb, fill, refusals, small_disk

__all__ = ["small_disk"]
WEIGHTS = {"b": torch.arange(3.0), "a": torch.ones(2, 2, dtype=torch.float64)}


def equal(found: dict[str, Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], t) for name, t in WEIGHTS.items())


def test_our_weights_are_refused_with_any_byte_changed_or_missing(tmp_path):
    path = write(tmp_path / "w.safetensors", seal_weights(WEIGHTS))
    tried = refusals(path, lambda: load_weights(path), match=f"weights {str(path)!r}")
    assert tried > 2 * len(safetensors.torch.save(WEIGHTS))
    assert equal(load_weights(path))


def test_weights_of_others_carry_no_hash_and_are_read(tmp_path):
    path = write(tmp_path / "w.safetensors", safetensors.torch.save(WEIGHTS, {"format": "pt"}))
    assert equal(load_weights(path))


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pt_file_that_ends_early_is_refused_by_name(is_zip, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=is_zip)
    assert equal(load_weights(path))
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"weights '.*w\.pt' are refused"):
            load_weights(path)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w"])
def test_a_pickle_is_refused_and_does_nothing(name, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / name
    for content in (Bomb(mark), {"state_dict": {"a": Bomb(mark)}}):
        for kind in ("torch", "old torch", "pickle"):
            if kind == "pickle":
                path.write_bytes(pickle.dumps(content))
            else:
                torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
            with pytest.raises(ValueError, match=rf"weights '.*{re.escape(name)}' are refused"):
                load_weights(path)
            with pytest.raises(ValueError, match=rf"path '.*{re.escape(name)}'"):
                load(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))  # the bomb works
    assert mark.exists()


def test_an_archive_that_is_no_weights_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("../../evil", "x")
    with pytest.raises(ValueError, match=r"weights '.*w\.pt' are refused"):
        load_weights(tmp_path / "w.pt")


def test_on_a_full_disk_what_stood_there_stays_and_the_file_is_named(small_disk, images):
    first = entropy(smooth_cnn(), images)
    path = save(first, small_disk / "result.safetensors")
    before = path.read_bytes()
    fill(small_disk)
    with pytest.raises(OSError, match=r"No space left.*not written.*stays.*result\.safetensors"):
        save(first, path)
    with pytest.raises(OSError, match=r"No space left.*more"):
        write(small_disk / "deeper" / "more", bytes(100_000))
    assert path.read_bytes() == before
    assert str(load(path)) == str(first)
    assert {p.name for p in small_disk.iterdir()} - {"deeper"} == {"result.safetensors", "ballast"}


def test_a_long_call_whose_disk_fills_up_goes_on_later_from_what_was_written(small_disk, images):
    model, labels = smooth_cnn(), [0] * 6
    resume = small_disk / "cells"

    def run(resume: Path | None = None) -> Tensor:
        return weight_line(model, images, labels, points=5, resume=resume, generator=torch.Generator()).values

    whole = run()
    run(resume)
    before = resume.read_bytes()
    resume.unlink()
    fill(small_disk)
    with pytest.raises(OSError, match=r"No space left.*cells"):
        run(resume)
    with pytest.raises(OSError, match=r"No space left.*more"):
        robustness(model, images, labels, attacks="quick", resume=small_disk / "more")
    (small_disk / "ballast").unlink()
    assert os.listdir(small_disk) == []
    assert torch.equal(run(resume), whole)
    assert resume.read_bytes() == before


def test_a_figure_on_a_full_disk_leaves_the_old_one(small_disk):
    import pandas as pd
    from matplotlib.figure import Figure

    def publish() -> None:
        plots.publish(Figure(figsize=(1, 1), dpi=20), "f", pd.DataFrame({"a": [1]}), "About it.", out=small_disk)

    publish()
    before = {path: path.read_bytes() for path in small_disk.iterdir()}
    fill(small_disk)
    with pytest.raises(OSError, match=r"No space left.*f\.png"):
        publish()
    (small_disk / "ballast").unlink()
    assert {path: path.read_bytes() for path in small_disk.iterdir()} == before


@pytest.mark.parametrize("name", ["../f", "a/b", "a\\b", "..", ".", "", "f\0", "f.png", "/f", "~", "-"])
def test_a_figure_cannot_leave_its_folder(name, tmp_path):
    from matplotlib.figure import Figure

    with pytest.raises(ValueError, match=r"name is .*expected letters, digits"):
        plots.publish(Figure(), name, None, "c", out=tmp_path / "deep")
    assert list(tmp_path.rglob("*")) == []


def test_what_a_killed_write_left_is_cleared_when_the_file_is_next_held(tmp_path, images):
    name = "cells[1]"
    for left in (f".{name}.abc{UNFINISHED}", f".other.abc{UNFINISHED}"):
        (tmp_path / left).write_bytes(b"half")
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 4)).double()
    weight_line(model, images, [0] * 6, points=3, resume=tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == {name, f".other.abc{UNFINISHED}"}


def test_what_a_killed_save_left_is_cleared_by_the_next(tmp_path, images, cnn):
    result = entropy(cnn, images)
    for left in (f".result.abc{UNFINISHED}", ".result.lock", f".results.abc{UNFINISHED}"):
        (tmp_path / left).write_bytes(b"half")
    save(result, tmp_path / "result")
    assert {p.name for p in tmp_path.iterdir()} == {"result", f".results.abc{UNFINISHED}"}
    assert load(tmp_path / "result").frame().equals(result.frame())


def test_the_same_content_is_the_same_bytes(tmp_path):
    """safetensors writes metadata in an order that changes from call to call."""
    metadata = {f"key {i}": f"é\n{i}" for i in range(6)}
    (content,) = {packed(WEIGHTS, dict(sorted(metadata.items(), reverse=i % 2 == 0))) for i in range(20)}
    (tmp_path / "w").write_bytes(content)
    with safetensors.safe_open(tmp_path / "w", framework="pt") as file:
        assert file.metadata() == metadata
        assert equal({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - safe_open is no dict
