"""A manifest names the machine, and each model once."""

import json
import os
import platform

import pytest

from figures import manifest, stamp


def test_a_manifest_names_the_kind_of_processor(built, tmp_path):
    """Two of one name are told apart by model and stepping; elsewhere it is what Python knows."""
    told = tmp_path / "cpuinfo"
    told.write_text(
        "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Some (R) CPU\nstepping\t: 8\n\nmodel\t: 1\n"
    )
    assert manifest._processor(told) == "Some (R) CPU, cpu family 6, model 143, stepping 8"
    told.write_text("Processor\t: without a name\n")
    known = platform.processor() or platform.machine()
    assert manifest._processor(told) == known == manifest._processor(tmp_path / "none")
    assert manifest.read(built.out)["processor"] == manifest.machine()["processor"]


def test_a_manifest_names_the_gpus_that_a_build_could_use(built, tmp_path, monkeypatch):
    """By a stand-in for NVIDIA's program; without one, or where CUDA hides the cards, there are none."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho One card\necho Another card\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert manifest.machine()["gpus"] == ["One card", "Another card"]
    assert built.run("build", "tiny") == 0
    assert manifest.read(built.out)["gpus"] == ["One card", "Another card"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert manifest.machine()["gpus"] == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program.write_text("#!/bin/sh\necho no driver >&2\nexit 9\n")
    assert manifest.machine()["gpus"] == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest.machine()["gpus"] == []


def test_a_run_stands_once_in_a_manifest_and_each_figure_gives_all_of_it(house):
    """Of a model that was trained again between two figures, two runs of one name; likewise as it was written once."""
    assert house.build() == 0
    written = json.loads((house.out / "manifest.json").read_text())
    (name, run), *others = written["runs"].items()
    assert run["name"] == name and not others
    assert [figure["runs"] for figure in written["figures"]] == [[name], [name]]
    assert [figure["runs"] for figure in house.manifest()["figures"]] == [[run], [run]]
    house.checkpoint.write_bytes(b"other weights")
    assert house.build("--only", "one") == 0
    said = json.loads((house.out / "manifest.json").read_text())
    assert [figure["runs"] for figure in said["figures"]] == [[name], [f"{name} #2"]]
    found = house.manifest()
    assert found["figures"][1]["runs"] == [run | {"unchanged": False}] and "runs" not in found
    assert found["figures"][0]["runs"] == [run | {"checkpoint_sha256": stamp.sha256(house.checkpoint)}]
    (house.out / "manifest.json").write_text(json.dumps(found | {"sha256": stamp.seal(found)}))
    assert house.manifest() == found


def test_runs_of_one_name_are_told_apart_whatever_others_are_called(house):
    assert house.build() == 0
    found = house.manifest()
    (run,) = found["figures"][0]["runs"]
    called = [run | {"name": name, "seed": seed} for name, seed in (("x", 0), ("x #2", 0), ("x", 1), ("x #2", 1))]
    found["figures"][0]["runs"], found["figures"][1]["runs"] = called, called[::-1]
    manifest.save(house.out, found)
    assert house.manifest() == found
    written = json.loads((house.out / "manifest.json").read_text())
    for damage in ({"runs": None}, {"runs": [run]}, {"runs": {}}):
        record = {key: value for key, value in (written | damage).items() if key != "sha256"}
        record["figures"][0]["runs"] = [1]
        (house.out / "manifest.json").write_text(json.dumps(record | {"sha256": stamp.seal(record)}))
        with pytest.raises(ValueError, match="json is damaged"):
            house.manifest()
