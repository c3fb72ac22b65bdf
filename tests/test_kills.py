"""kill -9 at a few random moments; `python -m tests.bench.kills`, or GRADLENS_KILLS=20 here, tries more, and all works.

Sweeps and figure builds start processes that import torch for each try: they are killed here with GRADLENS_KILLS only.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOMENTS = os.environ.get("GRADLENS_KILLS")
WORKS = ["fit", "robustness", "weight plane", *(["sweep", "figures build"] if MOMENTS else [])]


def kills(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """In a process of its own, which forks, and without the type checks that tests add."""
    script = f"import sys; from tests.bench import kills\n{code}\nsys.exit(kills.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_killed_at_random_moments_each_work_ends_as_if_it_had_not_been():
    done = kills("--moments", MOMENTS or "2", *WORKS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert [line.split("  ")[0].strip() for line in lines] == WORKS
    print(done.stdout)


IN_PLACE = """
import gradlens.disk, gradlens.sealed, time
def write(path, content):
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(0.02)
        file.write(content[len(content) // 2 :])
    return path
gradlens.sealed.write = write
"""


@pytest.mark.slow
def test_files_written_in_place_are_found_out():
    """The test above can fail: without the file beside and its renaming, a kill leaves half a file."""
    done = kills("--moments", "2", "weight plane", code=IN_PLACE)
    assert done.returncode == 1
    assert "killed after" in done.stderr
