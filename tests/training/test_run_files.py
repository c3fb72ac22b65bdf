"""A run's folder and a data folder: damaged files are refused by name, names stay inside, one process writes."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from gradlens.disk import load_weights
from tests.faults import fill, refusals, small_disk
from tests.test_lock import holder
from tests.training.test_prepare import IDS, class_list, ilsvrc
from training import checkpoint, data, readers, resume, sweep
from training.__main__ import main
from training.config import Config
from training.fit import LOCK, fit

__all__ = ["small_disk"]
TINY = Config(schedule="sl:1", batch=32, keep_every=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(dataclasses.replace(TINY, batch=512), tmp_path_factory.mktemp("made") / "run", quiet=True).path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def test_a_record_with_any_byte_changed_or_missing_is_refused(run):
    assert refusals(run / "run.json", lambda: checkpoint.load(run).record, match="run.json is damaged", every=3) > 500


def test_a_history_with_any_byte_changed_or_missing_is_refused(run):
    loaded = checkpoint.load(run)
    assert len(loaded.history) == 1
    assert refusals(run / "history.jsonl", lambda: loaded.history, match="history.jsonl is damaged") > 200
    (run / "history.jsonl").unlink()
    with pytest.raises(ValueError, match=r"run 'run': history\.jsonl is missing"):
        _ = loaded.history


@pytest.mark.parametrize("which", ["last", "best_clean", "best_pgd"])
def test_a_checkpoint_is_refused_with_bytes_changed_or_missing(which, run):
    loaded, file = checkpoint.load(run), checkpoint.FILES[which]
    assert refusals(run / file, lambda: loaded.model(which), match=f"{file} is damaged", every=4001) > 5


def test_weights_of_an_epoch_are_refused_with_bytes_changed_or_missing(run):
    """By the run, which has a hash of the file, and by the library, for which the file has one of its content."""
    file = run / "epochs" / "0001.safetensors"
    damage = "epochs/0001.safetensors is damaged"
    assert refusals(file, checkpoint.load(run).epochs, match=damage, every=8001) > 5
    refused = f"weights {str(file)!r} are refused"
    assert refusals(file, lambda: load_weights(file), match=refused, every=2001) > 5


def test_runs_from_before_records_had_hashes_are_read(run):
    record = json.loads((run / "run.json").read_text())
    for name in ("format", "sha256", "history_sha256"):
        del record[name]
    (run / "run.json").write_text(json.dumps(record))
    assert checkpoint.load(run).history[0]["epoch"] == 1


@pytest.mark.parametrize("name", ["../other.safetensors", "/other.safetensors", "epochs/../../other.safetensors"])
def test_a_record_cannot_name_weights_outside_of_its_run(name, run):
    digest = checkpoint.save_weights(run.parent / "other.safetensors", checkpoint.load(run).model())
    loaded = checkpoint.load(run)
    hostile = dataclasses.replace(loaded, record={**loaded.record, "path": {name: digest}})
    with pytest.raises(
        ValueError, match=r"run\.json names the weights '.*other\.safetensors', expected a file of the run"
    ):
        hostile.epochs()


def test_the_state_of_an_unfinished_run_is_refused_with_bytes_changed_or_missing(tmp_path):
    from training.loop import start

    config = Config(schedule="sl:2")
    trainee = start(config, data.load("digits")).trainee
    resume.save(tmp_path, trainee, config, resume.Progress(1, history="0"))

    def read() -> object:
        return resume.restore(tmp_path, trainee, config)

    path = tmp_path / resume.NAME
    assert refusals(path, read, match=f"{path} is damaged", every=2003) > 20
    head = path.read_bytes()[:3000]
    for i in range(0, len(head), 7):  # the head holds the config, the progress and the names
        path.write_bytes(head[:i] + bytes([head[i] ^ 1]) + head[i + 1 :] + path.read_bytes()[3000:])
        with pytest.raises(ValueError, match="is damaged"):
            read()
    path.write_bytes(head + path.read_bytes()[3000:])
    assert read().epoch == 1
    with pytest.raises(ValueError, match=r"history\.jsonl is damaged: it is not the history that"):
        fit(config, tmp_path, quiet=True)


@pytest.fixture
def photographs(tmp_path, monkeypatch) -> Path:
    """An ImageNet-100 of four classes at 32 pixels, prepared."""
    monkeypatch.setenv("GRADLENS_DATA", str(tmp_path / "data"))
    source = tmp_path / "source"
    ilsvrc(source, IDS)
    from training.prepare import prepare

    prepare("imagenet100", source=source, classes=class_list(tmp_path), size=32)
    return tmp_path / "data" / "imagenet100-32"


def test_prepared_images_are_refused_with_bytes_changed_or_missing(photographs):
    def read() -> object:
        return data.load("imagenet100-32")

    read()
    for path in sorted(photographs.glob("*.npy")):
        assert refusals(path, read, match=str(path), every=max(1, path.stat().st_size // 20)) > 20
    damage = "meta.json is damaged"
    assert refusals(photographs / "meta.json", lambda: readers.meta(photographs), match=damage) > 500
    (photographs / "meta.json").write_text("[]")
    with pytest.raises(ValueError, match=damage):
        read()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "resnet18/../../evil", "wrn_10_1/..", "..", "a\\b"])
def test_a_sweep_cannot_name_a_run_outside_of_its_folder(name, tmp_path):
    for axis in ("model", "dataset", "schedule"):
        path = tmp_path / "sweep.toml"
        path.write_text(f"{axis} = [{json.dumps(name)}]")
        with pytest.raises(ValueError, match=axis):
            sweep.grid(path)


def test_every_name_that_a_sweep_gives_is_a_plain_one():
    for schedule in ("sl:1", "sl>rl-adv:3,rl:2", "sl>exact:1"):
        name = sweep.name(Config(schedule=schedule))
        assert Path(name).name == name and not set(name) & set('/\\:*?"<>| ')


@pytest.mark.parametrize("name", ["../../evil", "quick/../../evil", "..", ""])
def test_a_suite_cannot_name_a_result_outside_of_its_folder(name, run, capsys):
    before = set(run.parent.rglob("*"))
    assert main(["evaluate", str(run), "--attacks", name, "--samples", "2"]) == 2
    assert "attacks" in capsys.readouterr().err
    assert set(run.parent.rglob("*")) - before <= {run / "measure"}


def test_a_folder_in_use_is_refused_by_name_or_waited_for(tiny, tmp_path):
    out = tmp_path / "run"
    with holder(out / LOCK) as other:
        with pytest.raises(ValueError, match=rf"^out '{out}' is in use by process {other.pid} on"):
            fit(TINY, out, quiet=True)
        assert set(os.listdir(out)) == {LOCK}
        other.kill()
    run = fit(TINY, out, quiet=True, waits=True)
    assert not (out / LOCK).exists()
    with holder(out / LOCK):  # what is finished may be read whoever is there
        assert fit(TINY, out, quiet=True).record == run.record


def test_what_a_killed_process_left_half_written_is_cleared(tiny, tmp_path):
    for left in (".model.safetensors.x.unfinished", "epochs/.0001.safetensors.x.unfinished", ".lock"):
        (tmp_path / "run" / left).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / left).write_bytes(b"half")
    fit(TINY, tmp_path / "run", quiet=True)
    assert list((tmp_path / "run").rglob(".*")) == []


def test_a_data_folder_is_prepared_by_one_process_and_cleared_of_what_a_killed_one_left(photographs, tmp_path):
    shutil.rmtree(photographs)
    left = photographs.with_name(f"{photographs.name}.abc.partial")
    left.mkdir()
    words = ["prepare", "imagenet100", "--source", str(tmp_path / "source"), "--size", "32", "--classes"]
    words += [str(tmp_path / "list.txt")]
    with holder(photographs.with_name(f".{photographs.name}.lock")):
        assert main(words) == 2
        assert left.exists()
    assert main(words) == 0
    assert [path.name for path in photographs.parent.iterdir()] == [photographs.name]


def test_on_a_full_disk_a_run_says_so_in_one_line_and_goes_on_later(tiny, tmp_path, small_disk, capsys):
    """It fills up at the first write, or with the run half done."""
    words = ["fit", "--schedule", "sl:2", "--batch", "32", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    for ballast in (256, 150, 40):
        out = small_disk / "run"
        (small_disk / "ballast").write_bytes(bytes(1024 * ballast)) if ballast < 256 else fill(small_disk)
        assert main([*words, str(out)]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: [Errno 28] No space left on device")
        assert not (out / "run.json").exists()
        assert not list(small_disk.rglob("*.unfinished"))
        (small_disk / "ballast").unlink()
    kept = {path.name for path in out.iterdir()}
    assert kept
    shutil.move(out, tmp_path / "cut")
    assert main([*words, str(tmp_path / "cut")]) == 0
    for file in checkpoint.FILES.values():
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
