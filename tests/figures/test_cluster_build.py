"""A set on the nodes of a Ray cluster is built, skipped and told of as one on this machine."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from figures import build, plan
from figures.execute import Job, execute_there

ROOT = Path(__file__).parents[2]


def test_the_copy_without_torch_is_the_same():
    assert (ROOT / "figures" / "cluster.py").read_bytes() == (ROOT / "training" / "cluster.py").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--address", "head:1"], "address is 'head:1', expected it beside --engine ray alone"),
        (["--gpus", "1"], "gpus is 1.0, expected it beside --engine ray alone"),
        (["--memory", "2GiB"], "memory is '2GiB', expected it beside --engine ray alone"),
        (["--engine", "ray", "--gpus", "1.5"], "gpus is 1.5, expected a whole number or a share of one"),
        (["--engine", "ray", "--cpus", "0"], "cpus is 0.0, expected a whole number or a share of one, at least 0.01"),
        (["--engine", "ray", "--memory", "lots"], "memory is 'lots', expected a size such as 2GiB"),
        (["--engine", "ray", "--jobs", "2"], "jobs is 2, expected it without --engine ray"),
        (["--engine", "ray", "--address", "nowhere"], "address is 'nowhere', expected HOST:PORT"),
        (["--engine", "ray"], "engine is 'ray', and ray is not installed, expected the extra: pip install"),
    ],
)
def test_what_makes_no_sense_is_one_line(words, message, house, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert house.build(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not (house.out / "manifest.json").exists()


def test_what_a_task_reserves_is_asked_for_by_the_sweep_and_by_notebooks(house, monkeypatch):
    commands, reserved = [], []
    monkeypatch.setattr(build.subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(build, "Cluster", lambda *address, **options: reserved.append((address, options)))
    house.edit_set("[parameters]", 'sweep = "sweep.toml"\n[parameters]')
    (house.root / "sweep.toml").touch()
    options = {"address": "head:1", "cpus": 2.0, "gpus": 0.5, "memory": "2GiB"}
    asked = plan.plan("tiny", house.root, engine="ray", **options)
    build.sweep(asked)
    build._pool(asked, 1)
    words = ["sweep.toml", "--out", "runs/tiny", "--engine", "ray", "--address", "head:1"]
    assert commands[0][4:] == [*words, "--cpus", "2.0", "--gpus", "0.5", "--memory", "2GiB"]
    ((address, said),) = reserved
    assert address == ("head:1",)
    assert (said["cpus"], said["memory"]) == (2.0, "2GiB")
    assert said["gpus"] == 0.5  # notebooks measure on a GPU where they have one


def test_a_node_without_the_disk_is_a_failure_by_name(house):
    job = Job("one", house.root / "notebooks" / "one.ipynb", house.out, house.root, {}, 60)
    outcome = execute_there(job, house.out / "mark")
    assert "does not see" in outcome.error
    assert not job.partial.exists()


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "token").write_text("gradlens" * 8)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    utils = pytest.importorskip("ray.cluster_utils")
    made = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):  # the head has no core: it must stay, so nothing is to run there
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_build_outlives_a_node(nodes, house, capsys):
    """One story, because a cluster costs half a minute: a notebook waits until its node is killed and is executed on
    the next one, another fails; then nothing is left to do but the failed one."""
    patient = (
        "import os, pathlib, psutil, time\n"
        "tries = pathlib.Path(out).parent.parent / 'tries'\n"
        "with tries.open('a') as file:\n"
        "    print(*[p.pid for p in psutil.Process().parents()], file=file)\n"
        "while len(tries.read_text().splitlines()) < 2:\n"
        "    time.sleep(0.1)"
    )
    house.notebook("one", patient, house.figure("one_figure"))
    house.notebook("two", "raise RuntimeError('no gradient')")
    tries = house.out.parent / "tries"
    raylets = {info.process.pid: node for node in nodes.worker_nodes for info in node.all_processes["raylet"]}

    def where() -> list[int]:
        """The main processes of the nodes on which the notebook was tried."""
        lines = tries.read_text().splitlines() if tries.exists() else []
        return [int(pid) for line in lines for pid in line.split() if int(pid) in raylets]

    def kill() -> None:
        ends = time.monotonic() + 100
        while not where() and time.monotonic() < ends:
            time.sleep(0.1)
        nodes.remove_node(raylets[where()[0]], allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    words = ("--engine", "ray", "--address", nodes.address, "--timeout", "90")
    assert house.build(*words) == 1
    thread.join()
    assert sorted(where()) == sorted(raylets)
    said = capsys.readouterr()
    assert "FAILED: RuntimeError: no gradient" in said.out
    assert [book["status"] for book in house.manifest()["notebooks"]] == ["built", "failed"]
    assert (house.out / "one" / "one_figure.png").exists()
    assert house.manifest()["figures"][0]["made"]["threads"] == "1"
    assert not [path for path in house.out.iterdir() if path.name.startswith(".") or path.name.endswith(".partial")]
    house.notebook("two", house.figure("two_figure"))
    assert house.build(*words) == 0
    assert "one                  current" in capsys.readouterr().out
