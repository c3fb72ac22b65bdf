"""A manifest names the machine."""

import os
import platform

from figures import manifest


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
