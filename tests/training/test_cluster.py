"""Ray: runs and measurements on two nodes are those of one process, byte for byte, also when a node dies on the way."""

import importlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gradlens
from gradlens import Ball
from tests.training.test_shards import content, normed
from training import cluster, sweep
from training.__main__ import main
from training.cluster import Cluster, read_size
from training.config import Config
from training.engines import Engine
from training.fit import fit
from training.shards import sharded

SWEEP = """
dataset = ["digits"]
schedule = ["sl:4", "rl:4"]
[config]
batch = 256
attack_steps = 1
keep_every = 2
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "nowhere"}, r"address is 'nowhere', expected HOST:PORT"),
        ({"address": "ray://head:10001"}, r"address is 'ray://head:10001', expected HOST:PORT"),
        ({"address": "head:70000"}, r"address is 'head:70000', expected HOST:PORT"),
        ({"cpus": 0.0}, r"cpus is 0.0, expected a whole number or a share of one, at least 0.01"),
        ({"gpus": 1.5}, r"gpus is 1.5, expected a whole number or a share of one"),
        ({"gpus": -1.0}, r"gpus is -1.0, expected"),
        ({"memory": "lots"}, r"memory is 'lots', expected a size such as 2GiB"),
        ({"memory": "0GiB"}, r"memory is '0GiB', expected"),
        ({"jobs": 2}, r"jobs is 2, expected it beside --engine local alone"),
    ],
)
def test_what_makes_no_sense_is_refused_without_ray(options, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=message):
        Engine(engine="ray", **options).pool()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "head:1"}, r"address is 'head:1', expected it beside --engine ray alone"),
        ({"gpus": 0.5}, r"gpus is 0.5, expected it beside --engine ray alone"),
        ({"jobs": 0}, r"jobs is 0, expected at least 1"),
    ],
)
def test_processes_take_no_options_of_ray(options, message):
    with pytest.raises(ValueError, match=message):
        Engine(**options).pool()


def test_an_address_where_nobody_answers_is_said_at_once(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ValueError, match=f"address is '127.0.0.1:{port}', and nothing answers there: "):
        Engine(engine="ray", address=f"127.0.0.1:{port}").pool()
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    with pytest.raises(ValueError, match="address is 'elsewhere'"):
        Engine(engine="ray").pool()


def test_without_ray_the_command_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    assert main(["sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "runs"), "--engine", "ray"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: engine is 'ray', and ray is not installed, expected the extra: pip install -e '.[cluster]'"
    assert not list((tmp_path / "runs").iterdir())


def test_an_engine_of_another_name_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", "x.toml", "--out", str(tmp_path), "--engine", "slurm"])
    assert ended.value.code == 2
    assert "slurm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("2GiB", 2 * 2**30), ("1.5 kB".replace("k", "K"), 1500), ("3TB", 3 * 10**12)]
)
def test_sizes_are_bytes(text, size):
    assert read_size(text) == size


def test_a_node_with_other_code_gives_no_result(monkeypatch):
    here = cluster.surroundings(("training",))
    assert cluster._run(lambda: 3, ("training",), here) == (3, None)
    result, error = cluster._run(lambda: 3, ("training",), {**here, "torch": "2.0", "code of training": "f00"})
    assert result is None
    with pytest.raises(
        ConnectionError, match=r"would give other results: it has torch .*, expected 2.0; code of train"
    ):
        raise error


def test_a_run_comes_back_from_a_node_that_does_not_see_the_folder(tiny, tmp_path):
    """Bytes equal to those of training in place, and nothing else is left."""
    config, out = Config(dataset="digits", schedule="sl:2", batch=32, keep_every=1), tmp_path / "there"
    with sweep.marked(tmp_path) as mark:
        assert sweep._one(config, tmp_path / "here", mark) == {}
    assert list(tmp_path.glob(".seen-*")) == []
    old, new = tmp_path / ".seen-old", tmp_path / ".seen-new"  # of a sweep that was killed, of one that runs
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    with sweep.marked(tmp_path):
        assert not old.exists() and new.exists()
    new.unlink()
    files = sweep._one(config, out, mark)  # the mark is gone, as if on another disk
    assert not out.exists()
    assert list(files)[-1] == "run.json"
    sweep._keep(out, files)
    assert fit(config, out).record["last"]["clean"] == fit(config, tmp_path / "here").record["last"]["clean"]
    assert weights(out) == weights(tmp_path / "here")


def weights(folder: Path) -> dict[str, bytes]:
    """The run's weights, those of the way included."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert len(found) > 3
    return found


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster on this machine whose head has one core, and a token of its own, as clusters should have."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text("gradlens" * 8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_AUTH_MODE", "token")
        patched.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        utils = pytest.importorskip("ray.cluster_utils")
        made = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield made
        made.shutdown()


@pytest.fixture
def second(nodes: Any) -> Iterator[Any]:
    node = nodes.add_node(num_cpus=1)
    yield node
    if node in nodes.worker_nodes:
        nodes.remove_node(node)


def killed(nodes: Any, node: Any, is_busy: Callable[[int], bool]) -> threading.Thread:
    """Kills a node as soon as it is busy, which is asked with its main process's number; the thread ends then."""
    (raylet,) = [info.process.pid for info in node.all_processes["raylet"]]

    def wait() -> None:
        ends = time.monotonic() + 120
        while not is_busy(raylet) and time.monotonic() < ends:
            time.sleep(0.02)
        if time.monotonic() < ends:
            nodes.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_what_ray_starts_here_is_told_to_listen_on_this_machine_alone(monkeypatch):
    ray = pytest.importorskip("ray")
    services = importlib.import_module("ray._private.services")
    own, before = [], services.get_node_ip_address()
    monkeypatch.setattr(ray, "init", lambda **_: own.append(services.get_node_ip_address()))
    cluster._connect(ray, None, {})
    cluster._connect(ray, "127.0.0.1:1", {})
    assert own == ["127.0.0.1", before]  # to a cluster of many machines this one says where it is
    assert services.get_node_ip_address() == before


def test_a_start_that_fails_is_one_line(monkeypatch, tmp_path, capsys):
    ray = pytest.importorskip("ray")

    def init(**_: Any) -> None:
        raise Exception("The current node timed out\nduring startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    assert main(["sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "runs"), "--engine", "ray"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: Ray at this machine cannot be used: The current node timed out during startup."


LISTENING = """
import json, os, psutil
from training.cluster import Cluster
def listening(process):
    found = (one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
    return [one.laddr.ip.removeprefix("::ffff:") for one in found]
with Cluster(packages=("training",)) as pool:
    said = pool.submit(os.getenv, "RAY_AUTH_MODE").result()
    here = psutil.Process()
    print(json.dumps([said, [ip for one in (here, *here.children(recursive=True)) for ip in listening(one)]]))
"""


@pytest.mark.skipif("GRADLENS_TALLY" not in os.environ, reason="half a minute, of which make test-faults has more")
def test_an_open_port_of_what_ray_starts_here_is_of_this_machine_alone_and_wants_a_token(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING], env=environment, capture_output=True, text=True, check=True
    )
    said, found = json.loads(done.stdout.splitlines()[-1])
    assert said == "token"
    assert len(found) > 4
    assert set(found) == {"127.0.0.1"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_outlives_a_node(nodes, second, tmp_path):
    (tmp_path / "small.toml").write_text(SWEEP)
    out, stopped = tmp_path / "runs", []

    def trains(raylet: int) -> bool:
        """Is it in the middle of a run, of which it has finished an epoch or more?"""
        for lock in out.glob("*/.lock"):
            try:
                holder = int(lock.read_text().partition('"pid": ')[2].partition(",")[0])
                epochs = len((lock.parent / "history.jsonl").read_text().splitlines())
            except (OSError, ValueError):
                continue
            if parent(holder) == raylet and 0 < epochs < 3:
                stopped.append(lock.parent)
        return bool(stopped)

    thread = killed(nodes, second, trains)
    runs = sweep.sweep(tmp_path / "small.toml", out, Engine(engine="ray", address=nodes.address))
    thread.join()
    assert stopped
    assert second not in nodes.worker_nodes
    assert [run.name for run in runs] == ["digits-cnn_small-sl-4-s0", "digits-cnn_small-rl-4-s0"]
    for run in runs:
        alone = fit(run.config, tmp_path / "alone" / run.name, quiet=True)
        assert weights(run.path) == weights(alone.path)
    assert not list(out.glob(".seen-*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sharded_measurement_outlives_a_node(nodes, second, tmp_path):
    model, x, y = normed()
    options: dict[str, Any] = {"batch": 15, "steps": 150}

    def measures(raylet: int) -> bool:
        found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return any(parent(pid) == raylet and b"ray::_run" in title(pid) for pid in found)

    thread = killed(nodes, second, measures)
    parts = sharded(
        gradlens.stability, model, x, y, Ball(0.1), engine=Engine(engine="ray", address=nodes.address),
        generator=torch.Generator().manual_seed(1), **options,
    )  # fmt: skip
    thread.join()
    assert second not in nodes.worker_nodes
    whole = gradlens.stability(model, x, y, Ball(0.1), generator=torch.Generator().manual_seed(1), **options)
    assert content(parts, tmp_path) == content(whole, tmp_path)


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tasks_raise_what_they_raise_and_a_lost_one_is_said_in_a_line(nodes, monkeypatch):
    monkeypatch.setattr(cluster, "RETRIES", 0)
    with pytest.warns(RuntimeWarning, match="a task asks for cpus 1, gpus 1, which no node has"):
        Cluster(nodes.address, gpus=1.0).shutdown()
    with Cluster(nodes.address, environment={"GRADLENS_TOLD": "yes"}) as pool:
        told, wrong, lost = pool.submit(os.getenv, "GRADLENS_TOLD"), pool.submit(int, "x"), pool.submit(os._exit, 3)
        assert told.result() == "yes"
        with pytest.raises(ValueError, match="invalid literal for int"):
            wrong.result()
        with pytest.raises(ConnectionError, match=r"a task was lost, also after 0 more tries: [^\n]+$"):
            lost.result()
    with pytest.raises(KeyboardInterrupt):
        interrupted(Cluster(nodes.address))


def interrupted(pool: Cluster) -> None:
    begun = time.monotonic()
    try:
        with pool:
            for _ in range(3):
                pool.submit(time.sleep, 300)
            time.sleep(3)
            raise KeyboardInterrupt
    finally:
        assert time.monotonic() - begun < 60
