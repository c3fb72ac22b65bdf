"""Tasks on the machines of a Ray cluster, as an executor of concurrent.futures. Ray is imported only where one is made.

This file needs nothing but Python: figures/cluster.py is a copy, since figures does without torch.
"""

import hashlib
import importlib
import os
import platform
import re
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

RETRIES = 3  # times that a task is started again after its machine or worker was lost
UNITS = {"": 1, "B": 1, **{f"{letter}{kind}": base**power for kind, base in (("B", 1000), ("iB", 1024))
                           for power, letter in enumerate("KMGT", 1)}}  # fmt: skip
PACKAGES = ("torch", "torchvision", "numpy", "papermill")


class Cluster(Executor):
    """Runs what is submitted as Ray tasks, each of which reserves `cpus` (1 if not given), `gpus` (shares of one or
    whole ones) and `memory` (such as 2GiB) on its node.

    `address` is HOST:PORT of the cluster's head, to be given on one of its nodes; without it, $RAY_ADDRESS; without
    both a cluster is started on this machine and ended with the executor. The `packages` are sent to the nodes, so
    that all run the code that is here. A task whose node is lost is started again on another; one that fails is not.

    ValueError for what makes no sense, a missing Ray and an address where nothing answers; of tasks, what they raised,
    and ConnectionError where their nodes were lost for good or have other versions than this one.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: float | None = None,
        gpus: float | None = None,
        memory: str | None = None,
        packages: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        asked = check_resources(cpus, gpus, memory)
        address = check_address(address or os.environ.get("RAY_ADDRESS"))
        self._ray = _import()
        self._packages = tuple(packages)
        self._here = surroundings(self._packages)
        self._unfinished: dict[Future[Any], Any] = {}
        sent = {"py_modules": [str(_folder(name)) for name in packages], "env_vars": dict(environment or {})}
        _connect(self._ray, address, {name: value for name, value in sent.items() if value})
        try:
            self._check_room(asked, is_own=address is None)
            self._task = self._ray.remote(max_retries=RETRIES, **asked)(_run)
        except BaseException:
            self._ray.shutdown()
            raise

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Start a task, as soon as a node has what it asks for."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        reference = self._task.remote(partial(fn, *args, **kwargs), self._packages, self._here)
        self._unfinished[future] = reference
        reference.future().add_done_callback(partial(self._settle, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for what runs, or with `cancel_futures` end it; then leave the cluster."""
        unfinished = dict(self._unfinished)
        if cancel_futures:
            for reference in unfinished.values():
                self._ray.cancel(reference, force=True)
        elif wait:
            wait_for(unfinished)
        self._ray.shutdown()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # what others do is finished when one fails, as in local processes; Ctrl-C ends it
        self.shutdown(cancel_futures=kind is not None and not issubclass(kind, Exception))

    def _settle(self, future: "Future[Any]", done: "Future[Any]") -> None:
        self._unfinished.pop(future, None)
        if (lost := done.exception()) is not None:
            future.set_exception(ConnectionError(f"a task was lost, also after {RETRIES} more tries: {_line(lost)}"))
            return
        result, error = done.result()
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _check_room(self, asked: Mapping[str, float], *, is_own: bool) -> None:
        """A task that no node has room for would wait for ever, without a word."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(names[key], 0) >= amount for key, amount in asked.items()) for node in nodes):
            return
        wanted = ", ".join(f"{key.removeprefix('num_')} {amount:g}" for key, amount in asked.items())
        if is_own:
            raise ValueError(f"a task asks for {wanted}, which this machine has not; ask for less")
        warnings.warn(f"a task asks for {wanted}, which no node has; waiting for one", RuntimeWarning, stacklevel=3)


def check_resources(cpus: float | None, gpus: float | None, memory: str | None) -> dict[str, float]:
    """What a task reserves, in Ray's words: a core where nobody says. Raises ValueError for what makes no sense."""
    cpus, gpus = 1.0 if cpus is None else cpus, 0.0 if gpus is None else gpus
    asked = {"num_cpus": check_share("cpus", cpus, least=0.01), "num_gpus": check_share("gpus", gpus)}
    return asked if memory is None else {**asked, "memory": read_size(memory)}


def check_share(name: str, amount: float, least: float = 0.0) -> float:
    """Raises ValueError for anything but a share of one, or a whole number."""
    if amount >= least and (amount < 1 or float(amount).is_integer()):
        return amount
    raise ValueError(f"{name} is {amount!r}, expected a whole number or a share of one, at least {least:g}")


def read_size(text: str) -> int:
    """Bytes; raises ValueError for what is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B|)", text.strip())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"memory is {text!r}, expected a size such as 2GiB")
    return int(float(found[1]) * UNITS[found[2]])


def check_address(address: str | None) -> str | None:
    """Raises ValueError where nothing answers: Ray itself would try for a minute, and end the process."""
    if address is None:
        return None
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(
            f"address is {address!r}, expected HOST:PORT of a cluster's head, as `ray start --head` says it"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise ValueError(f"address is {address!r}, and nothing answers there: {error.strerror or error}") from None
    return address


def surroundings(packages: Sequence[str]) -> dict[str, str | None]:
    """What results depend on: versions, and a hash of each of these packages' code."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **{f"code of {name}": _code(_folder(name)) for name in packages},
    }


def _run(
    work: Callable[[], Any], packages: Sequence[str], expected: Mapping[str, str | None]
) -> tuple[Any, Exception | None]:
    """On a node: the result of a task, or what it raised as it was, which Ray would wrap into a page of text."""
    try:
        here = surroundings(packages)
        if others := [
            f"{name} {here[name]}, expected {expected[name]}" for name in here if here[name] != expected[name]
        ]:
            raise ConnectionError(f"node {platform.node()} would give other results: it has {'; '.join(others)}")
        return work(), None
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        return None, error


def _import() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"engine is 'ray', and {error.name} is not installed, expected the extra: pip install -e '.[cluster]'"
        ) from None


def _connect(ray: ModuleType, address: str | None, environment: Mapping[str, Any]) -> None:
    if ray.is_initialized():
        raise ValueError("engine is 'ray', and this process is connected to Ray already; call ray.shutdown() first")
    where: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        with nullcontext() if address else _unseen():
            ray.init(**where, runtime_env=environment, logging_level="ERROR")
    except Exception as error:  # Ray raises a bare one where a busy machine takes too long to start it
        ray.shutdown()
        raise ConnectionError(f"Ray at {address or 'this machine'} cannot be used: {_line(error)}") from error


@contextmanager
def _unseen() -> Iterator[None]:
    """What is started listens on the loopback device alone, as Ray does by itself on systems other than Linux: what
    ends with the command has nobody to talk to on other machines."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


def _folder(package: str) -> Path:
    return Path(importlib.import_module(package).__path__[0])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
