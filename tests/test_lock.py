"""One writer at a time, across processes: the other is refused by the holder's name or waits; the dead hold nothing."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gradlens import robustness, weight_line
from gradlens.lock import Lock

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, pathlib, importlib.util
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])  # without torch: it starts at once
lock = importlib.util.module_from_spec(spec); spec.loader.exec_module(lock)
lock.Lock(pathlib.Path(sys.argv[2]), "it", waits="waits" in sys.argv).take()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock, or tries to, until its input ends."""
    command = [sys.executable, "-c", HOLD, str(ROOT / "gradlens" / "lock.py"), str(path), *words]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        if not words:
            assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_copy_without_torch_is_the_same():
    assert (ROOT / "figures" / "lock.py").read_bytes() == (ROOT / "gradlens" / "lock.py").read_bytes()


def test_the_second_is_refused_by_name_and_the_dead_hold_nothing(tmp_path):
    path = tmp_path / "deep" / ".lock"
    with holder(path) as other:
        with pytest.raises(
            ValueError, match=rf"^it is in use by process {other.pid} on {platform.node()} since 20\S+;"
        ):
            Lock(path, "it").take()
        other.kill()
        other.wait()
        assert json.loads(path.read_text())["pid"] == other.pid  # it had no time to remove it
        with Lock(path, "it"):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert list(path.parent.iterdir()) == []


def test_a_file_of_a_dead_process_or_of_no_sense_is_taken_over(tmp_path):
    for content in (json.dumps({"pid": 4_194_305, "host": platform.node(), "since": "2026"}), "", "\0[1]"):
        (tmp_path / ".lock").write_text(content)
        with Lock(tmp_path / ".lock", "it"):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_who_waits_gets_it_next(tmp_path):
    path = tmp_path / ".lock"
    with Lock(path, "it") as mine, holder(path, "waits") as other:
        assert other.stderr is not None and other.stdout is not None
        assert f"it is in use by process {os.getpid()} on" in other.stderr.readline()
        mine.release()
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {other.pid} "):
            Lock(path, "it").take()


def test_of_many_who_wait_one_holds_at_a_time(tmp_path):
    """The file comes and goes with each holder: none may hold a file that is no longer there."""
    count, at_once, most = [0], [0], [0]

    def work() -> None:
        for _ in range(20):
            while True:
                try:
                    lock = Lock(tmp_path / ".lock", "it").take()
                    break
                except ValueError:
                    time.sleep(0.0005)
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            time.sleep(0.0002)
            count[0] += 1
            at_once[0] -= 1
            lock.release()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (count[0], most[0]) == (120, 1)


def test_a_fork_does_not_hold_what_its_parent_held(tmp_path):
    path = tmp_path / ".lock"
    lock = Lock(path, "it").take()
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    try:
        os.close(lock._file)  # as the system does for a parent that is killed
        lock._file = None
        with holder(path):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_resume_file_in_use_is_refused_by_name_and_not_touched(tmp_path, cnn, images):
    labels = [0] * 6
    calls = {
        "r": lambda: robustness(cnn, images, attacks="quick", resume=tmp_path / "r"),
        "w": lambda: weight_line(cnn, images, labels, points=3, resume=tmp_path / "w"),
    }
    for name, call in calls.items():
        with holder(tmp_path / f".{name}.lock") as other:
            with pytest.raises(ValueError, match=rf"^resume is '.*{name}', which is in use by process {other.pid} on"):
                call()
            assert not (tmp_path / name).exists()
        call()
        assert (tmp_path / name).exists()
        with holder(tmp_path / f".{name}.lock"):  # nothing is held after the call
            pass


def test_an_interrupted_call_lets_go_though_its_error_is_kept(tmp_path, cnn, images):
    def stops(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, ball: object) -> torch.Tensor:
        raise KeyboardInterrupt

    def cell(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if (tmp_path / ".w.lock").exists():
            raise KeyboardInterrupt
        return model(x)[:, 0]

    calls = {
        "r": lambda: robustness(cnn, images, attacks=[stops], resume=tmp_path / "r"),
        "w": lambda: weight_line(cnn, images, points=3, metrics=(cell,), resume=tmp_path / "w"),
    }
    for name, call in calls.items():
        with pytest.raises(KeyboardInterrupt) as caught:
            call()
        assert caught.value.__traceback__ is not None  # it keeps the frames of the call
        assert not (tmp_path / f".{name}.lock").exists()
