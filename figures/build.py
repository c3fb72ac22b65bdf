"""Building a set: train its runs, execute what is not current, and write down what came out."""

import glob
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from figures import gallery, manifest, parameters, stamp
from figures.cluster import Cluster
from figures.execute import Job, Outcome, execute_there, prepare
from figures.lock import Lock
from figures.own import environment
from figures.plan import Plan, cores


def build(asked: Plan) -> int:
    """Do what is planned and print each stage's time; 1 if a notebook failed, else 0.

    ValueError, naming the process, where another one builds into the same folder.
    """
    with Lock(asked.out / ".lock", f"out {str(asked.out)!r}"):
        return _build(asked)


def _build(asked: Plan) -> int:
    start = time.perf_counter()
    _recover(asked)
    waiting = _stale(asked)
    stages: dict[str, float] = {}
    if asked.sweeps and (waiting or _swept(asked) != _read(asked.out / "set.json")):
        sweep(asked)
        stages["sweep"] = time.perf_counter() - start
        print(f"{'sweep':<20} {stages['sweep']:7.1f} s")
        waiting = _stale(asked)
    for book in asked.notebooks:
        if book.name in waiting:
            why = stamp.stale(asked.out / book.name, waiting[book.name]) or "asked to build again"
        else:
            why = "current"
            _forget_failure(asked.out, book.name)
        print(f"{book.name:<20} {why}")
    before = time.perf_counter()
    outcomes = _execute(asked, waiting, stages)
    if outcomes:
        stages["notebooks"] = time.perf_counter() - before
    before = time.perf_counter()
    manifest.write(asked, stages)
    gallery.write(asked.out)
    stages["gallery"] = time.perf_counter() - before
    for failed in (outcome for outcome in outcomes if outcome.error):
        print(
            f"\nnotebooks/{asked.notebook(failed.name).name} failed: {failed.error}\n{failed.traceback}",
            file=sys.stderr,
        )
    stages["total"] = time.perf_counter() - start
    print("\n" + "\n".join(f"{stage:<20} {seconds:7.1f} s" for stage, seconds in stages.items()))
    print(asked.out / "index.html")
    return int(any(outcome.error for outcome in outcomes))


def sweep(asked: Plan) -> None:
    """Train what the set reads. The sweep shows its own progress and skips runs that are finished; CalledProcessError
    if it fails."""
    for folder, path in asked.sweeps.items():
        command = [sys.executable, "-m", "training", "sweep", path, "--out", folder]
        command += ["--datasets", asked.dataset] if asked.dataset else []
        command += ["--engine", asked.engine] if asked.engine != "local" else []
        for option in ("address", "cpus", "gpus", "memory"):
            value = getattr(asked, option)
            command += [f"--{option}", str(value)] if value is not None else []
        sys.stdout.flush()
        # by which a sweep ends with this build, which may be killed
        env = {**os.environ, "GRADLENS_CALLER": str(os.getpid())}
        subprocess.run(command, cwd=asked.root, env=env, check=True)
    stamp.replace(asked.out / "set.json", json.dumps(_swept(asked)))


def _execute(asked: Plan, waiting: Mapping[str, stamp.Inputs], stages: Mapping[str, float]) -> list[Outcome]:
    """Execute notebooks side by side; each is sealed and moved into place as it ends.

    The manifest is written anew each time: what a killed build has finished can be looked up and kept.
    """
    if not waiting:
        return []
    outcomes = []
    # disable=None: no bar where nobody watches, such as a log file
    with (
        _pool(asked, min(asked.jobs, len(waiting))) as pool,
        _marked(asked.out) as mark,
        tqdm(total=len(waiting), unit="notebook", leave=False, disable=None) as bar,
    ):
        jobs = [_job(asked, name, made_from) for name, made_from in waiting.items()]
        running = {pool.submit(execute_there, job, mark): job for job in jobs}
        try:
            while running:
                bar.set_postfix_str(", ".join(job.name for job in running.values()))
                for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                    job, error = running.pop(future), future.exception()
                    outcome = Outcome(job.name, 0.0, f"its worker died: {error!r}") if error else future.result()
                    outcomes.append(_settle(job, outcome, waiting[job.name], asked))
                    with suppress(OSError, ValueError):  # the last one says what is wrong, when all others are done
                        manifest.write(asked, stages)
                    bar.update()
        except BaseException:
            for worker in multiprocessing.active_children():  # or leaving the pool would wait for their notebooks
                worker.terminate()
            raise
    return outcomes


def _pool(asked: Plan, jobs: int) -> Executor:
    """Worker processes, or a cluster, where each notebook reserves what is asked for and has a thread."""
    importable = asked.own.importable if asked.own else None
    if asked.engine == "ray":
        known = {key: os.environ[key] for key in ("GRADLENS_DATA",) if key in os.environ}
        path = {"PYTHONPATH": environment(importable)["PYTHONPATH"]} if importable else {}
        around = {**known, **path, "OMP_NUM_THREADS": "1", "GRADLENS_CORES": str(asked.cpus or 1)}
        return Cluster(asked.address, cpus=asked.cpus, gpus=asked.gpus, memory=asked.memory, environment=around)
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["papermill", "nbconvert"])  # seconds of import, once and not for each worker
    threads = max(1, cores() // jobs)
    return ProcessPoolExecutor(jobs, context, prepare, (threads, max(threads, cores() // 2 + 1), importable))


@contextmanager
def _marked(out: Path) -> Iterator[Path]:
    """A file of a name that nobody else has: whoever sees it sees this folder, and not its like on another disk."""
    out.mkdir(parents=True, exist_ok=True)
    mark = out / f".seen-{uuid.uuid4().hex}{stamp.UNFINISHED}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def _job(asked: Plan, name: str, made_from: stamp.Inputs) -> Job:
    """A notebook with a parameter `resume` gets a folder that outlives a stopped or failed build, and goes on from
    there: once the same is measured again, on the same runs by the same code."""
    given, notebook = next(book.parameters for book in asked.notebooks if book.name == name), asked.notebook(name)
    resume = asked.out / f".{name}.resume-{made_from.measured[:16]}"
    _forget_measured(asked.out, name, but=resume)
    takes = "resume" in parameters.read(notebook, f"notebooks/{notebook.name}")
    return Job(name, notebook, asked.out, asked.root, given, asked.timeout, resume if takes else None)


def _forget_measured(out: Path, name: str, but: Path | None = None) -> None:
    for folder in out.glob(f".{glob.escape(name)}.resume-*"):
        if folder != but:
            shutil.rmtree(folder, ignore_errors=True)


def _settle(job: Job, outcome: Outcome, made_from: stamp.Inputs, asked: Plan) -> Outcome:
    """Move a success over the earlier output, or keep the evidence of a failure beside it."""
    executed = job.partial / f"{job.name}.ipynb"
    _forget_failure(job.out, job.name)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    if outcome.error is None:
        record = {"title": stamp.title(job.notebook), "seconds": round(outcome.seconds, 2), "made_at": now}
        record |= {"notebook_sha256": stamp.sha256(job.notebook), **manifest.commit(asked.root)}
        stamp.write(job.partial, made_from, record)
        _swap(job.partial, job.out / job.name)
        _forget_measured(job.out, job.name)
        tqdm.write(f"{job.name:<20} {outcome.seconds:7.1f} s")
        return outcome
    if executed.exists():
        os.replace(executed, job.out / f"{job.name}.failed.ipynb")
    shutil.rmtree(job.partial, ignore_errors=True)
    said = replace(outcome, **manifest.scrub({"error": outcome.error, "traceback": outcome.traceback}, asked))
    failure = {**asdict(said), "title": stamp.title(job.notebook), "failed_at": now}
    sealed = {**failure, "sha256": stamp.seal(failure)}
    stamp.replace(job.out / f"{job.name}.failed.json", json.dumps(sealed, indent=1))
    tqdm.write(f"{job.name:<20} {outcome.seconds:7.1f} s  FAILED: {said.error}")
    return said


def _swap(new: Path, place: Path) -> None:
    """Put a folder where another may be. A folder cannot be replaced in one step; _recover mends a kill in between."""
    old = place.with_name(f"{place.name}.old")
    if place.exists():
        os.replace(place, old)
    os.replace(new, place)
    shutil.rmtree(old, ignore_errors=True)


def _recover(asked: Plan) -> None:
    """Finish or undo what a killed build left half done."""
    for left in asked.out.glob(f".*{stamp.UNFINISHED}"):
        left.unlink()
    for book in asked.chosen.notebooks:
        place = asked.out / book.name
        old = place.with_name(f"{place.name}.old")
        if old.exists() and not place.exists():
            os.replace(old, place)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(place.with_name(f"{place.name}.partial"), ignore_errors=True)


def _forget_failure(out: Path, name: str) -> None:
    for kind in ("json", "ipynb"):
        (out / f"{name}.failed.{kind}").unlink(missing_ok=True)


def _stale(asked: Plan) -> dict[str, stamp.Inputs]:
    """The notebooks that have to run, with what their output will be made from."""
    wanted = {b.name: stamp.inputs(asked.notebook(b.name), b.parameters, asked.root) for b in asked.notebooks}
    return {n: made_from for n, made_from in wanted.items() if asked.force or stamp.stale(asked.out / n, made_from)}


def _swept(asked: Plan) -> dict[str, object]:
    """The sweeps and the runs they left: while both stand and every notebook is current, no sweep is needed."""
    return {
        folder: {"sweep": stamp.sha256(asked.root / path), "runs": sorted(stamp.runs(asked.root / folder))}
        for folder, path in asked.sweeps.items()
    }


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
