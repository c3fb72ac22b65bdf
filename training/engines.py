"""Where tasks run side by side: in processes of this machine, or on the nodes of a Ray cluster."""

import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Literal

from training import readers
from training.cluster import Cluster

ON_RAY = ("address", "cpus", "gpus", "memory")
CALLER = "GRADLENS_CALLER"  # the process that a command was started by, where the one shall end with the other


@dataclass(frozen=True)
class Engine:
    """Tasks side by side, each on one thread, so that results depend neither on their number nor on where they run."""

    engine: Literal["local", "ray"] = "local"  # processes of this machine, or Ray (the extra cluster)
    jobs: int | None = None  # local: tasks at a time; as many as there are cores if not given
    address: str | None = None  # Ray: HOST:PORT of the cluster's head; if not given, one is started on this machine
    cpus: float | None = None  # Ray: cores that a task reserves; 1 if not given
    gpus: float | None = None  # Ray: GPUs, or the share of one, that a task reserves; if not given it runs on the CPU
    memory: str | None = None  # Ray: memory that a task reserves, such as 2GiB

    def pool(self) -> Executor:
        """An executor, to be used in a `with` block; raises ValueError for options that do not go together."""
        if self.engine == "local":
            if beside := [name for name in ON_RAY if getattr(self, name) is not None]:
                raise ValueError(f"{beside[0]} is {getattr(self, beside[0])!r}, expected it beside --engine ray alone")
            jobs = cores() if self.jobs is None else self.jobs
            if jobs < 1:
                raise ValueError(f"jobs is {jobs}, expected at least 1")
            # a fork would inherit torch's threads in the middle of their work
            return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _follow)
        if self.engine != "ray":
            raise ValueError(f"engine is {self.engine!r}, expected 'local' or 'ray'")
        if self.jobs is not None:
            raise ValueError(
                f"jobs is {self.jobs}, expected it beside --engine local alone; Ray goes by --cpus, --gpus"
            )
        return Cluster(
            self.address, cpus=self.cpus, gpus=self.gpus, memory=self.memory,
            packages=("gradlens", "training"), environment={"GRADLENS_DATA": str(readers.folder().resolve())},
        )  # fmt: skip


def cores() -> int:
    """The cores that this process may use: those that a cluster reserved for it, or those that the system gives it,
    which in a container are not all there are."""
    if reserved := os.environ.get("GRADLENS_CORES"):
        return max(1, int(float(reserved)))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _follow() -> None:
    """End with the process that asked, which may be killed: it would not be missed otherwise."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def follow_caller() -> None:
    """End with the process that `CALLER` in the environment names; what trains would outlive a killed build.

    Where there are orphans, that is, and not on Windows.
    """
    caller = os.environ.pop(CALLER, "")
    if caller and os.name == "posix":
        threading.Thread(target=_end_with, args=(int(caller),), daemon=True).start()


def _end_with(caller: int) -> None:
    while os.getppid() == caller:  # an orphan gets another parent
        time.sleep(0.5)
    sys.stderr.write("stopped with what started it; a run goes on from its last epoch\n")
    sys.stderr.flush()
    os._exit(1)
