"""One notebook, executed by papermill in a kernel of its own. Runs in a worker process."""

import json
import logging
import multiprocessing
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traitlets.config import Config

from figures.own import environment
from figures.pictures import shrink
from figures.published import published
from figures.reading import write_page
from figures.stamp import title

_sockets_of: set[str] = set()  # folders of the kernels that this worker runs
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


@dataclass(frozen=True)
class Job:
    """A notebook, what it is given and where its output goes; all paths are absolute."""

    name: str
    notebook: Path
    out: Path  # the set's folder
    root: Path  # the kernel's working directory
    parameters: Mapping[str, Any]
    timeout: float  # seconds for the whole notebook
    resume: Path | None = None  # where it may leave what a stopped build would lose

    @property
    def partial(self) -> Path:
        return self.out / f"{self.name}.partial"


@dataclass(frozen=True)
class Outcome:
    """How an execution ended: without an error, `partial` holds the figures and the executed notebook."""

    name: str
    seconds: float
    error: str | None = None  # one line
    traceback: str = ""  # without terminal colours


def prepare(threads: int, beside: int, importable: str | None = None) -> None:
    """Make this worker's kernels use so many threads and import what lies in a folder, and the worker end with the
    build, which may be killed.

    Kernels side by side would else fight for the cores; a kernel ends by itself when its worker is gone. What one
    starts processes of its own for, such as the table of claims, lasts longest: it may start as many as `beside`, more
    than its share, since the others leave it theirs one by one.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("GRADLENS_CORES", str(beside))
    os.environ.pop("MPLBACKEND", None)  # where a batch job sets Agg, cells would show no figure
    if importable is not None:
        os.environ |= environment(importable)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def execute_there(job: Job, mark: Path) -> Outcome:
    """`execute` on a node of a cluster, which has to see the set's folder, where the file `mark` lies: a notebook reads
    the checkout, runs and data sets from that disk, and leaves measurements beside the runs."""
    if mark.is_file():
        return execute(job)
    return Outcome(
        job.name, 0.0, f"node {platform.node()} does not see {job.out}, expected a disk that all nodes share"
    )


def execute(job: Job) -> Outcome:
    """Execute a notebook into `job.partial`; its failure is an outcome, not an exception."""
    # Imported here: it costs seconds, and a build in which everything is current needs none of it.
    import papermill
    from nbclient.exceptions import CellTimeoutError

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters that it cannot read; we can
    start = time.perf_counter()
    shutil.rmtree(job.partial, ignore_errors=True)
    job.partial.mkdir(parents=True)
    executed = job.partial / f"{job.name}.ipynb"

    def left(cell: Mapping[str, Any]) -> int:  # 0 would mean "no limit" to nbclient
        return max(1, round(job.timeout - (time.perf_counter() - start)))

    def ended(error: str, traceback: str = "") -> Outcome:
        return Outcome(job.name, time.perf_counter() - start, error, ANSI.sub("", traceback))

    try:
        with _sockets() as transport:
            papermill.execute_notebook(
                _verbatim(job.notebook),
                _verbatim(executed),
                {**job.parameters, "out": str(job.partial), **({"resume": str(job.resume)} if job.resume else {})},
                kernel_name="python3",  # of this environment, whatever name an editor wrote into the notebook
                language="python",
                progress_bar=False,
                resources={"metadata": {"path": str(job.root)}},  # papermill's own cwd= changes the whole process's
                timeout_func=left,
                shutdown_kernel="immediate",
                extra_arguments=["--log-level=ERROR"],  # a kernel warns, at each start, that TCP is not encrypted
                config=transport,
            )
        for figure in published(job.partial):
            shrink(job.partial / figure.files[0])
        _leave_out_places(executed, job)
        write_page(executed, title(job.notebook))
    except papermill.PapermillExecutionError as error:
        return ended(f"{error.ename}: {error.evalue}".split("\n")[0], "\n".join(error.traceback))
    except CellTimeoutError as error:
        return ended(f"not finished after {job.timeout:g} s", str(error))
    except Exception as error:  # a kernel that died or did not start, a figure that is not as agreed
        return ended(f"{type(error).__name__}: {error}".split("\n")[0], str(error))
    return Outcome(job.name, time.perf_counter() - start)


def _leave_out_places(executed: Path, job: Job) -> None:
    """Others read an executed notebook: where this machine keeps the set and the checkout is not their matter."""
    text = executed.read_text(encoding="utf-8")
    place = job.out.relative_to(job.root) if job.out.is_relative_to(job.root) else Path(job.out.name)
    said = {job.resume: "", job.partial: (place / job.name).as_posix(), job.root: "."}
    for there in filter(None, said):
        text = text.replace(json.dumps(str(there))[1:-1], said[there])
    executed.write_text(text, encoding="utf-8")


@contextmanager
def _sockets() -> Iterator[Config]:
    """Speak with the kernel through files in a folder of its own: ports, which two kernels that start at once may both
    find free, are opened only where there are no such sockets."""
    if os.name != "posix":
        yield Config()
        return
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:  # short: names of sockets end at 107 characters
        _sockets_of.add(folder)
        yield Config({"ConnectionFileMixin": {"transport": "ipc", "ip": f"{folder}/socket"}})
    _sockets_of.discard(folder)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        for folder in _sockets_of:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)


def _verbatim(path: Path) -> str:
    # papermill fills {placeholders} in paths
    return str(path).replace("{", "{{").replace("}", "}}")
