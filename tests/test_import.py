"""`import gradlens` is light."""

import json
import os
import subprocess
import sys
from pathlib import Path

HEAVY = (
    "IPython", "figures", "jinja2", "lightning_fabric", "loss_landscapes", "matplotlib", "pandas", "papermill",
    "plotly", "pyarrow", "pyhessian", "ray", "scipy", "seaborn", "sklearn", "torchvision", "tqdm", "training", "tyro",
)  # fmt: skip

SCRIPT = """
import sys, time, json
import torch
before, begun = set(sys.modules), time.process_time()
import gradlens
seconds = time.process_time() - begun
print(json.dumps({"seconds": seconds, "modules": sorted({m.split(".")[0] for m in set(sys.modules) - before})}))
"""


def imported(folder: Path) -> dict:
    # compiled once, as installed packages are, also where the caller keeps Python from writing byte code
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | compiled,
    )
    return json.loads(done.stdout)


def test_the_library_pulls_in_nothing_heavy_and_costs_a_fifth_of_a_second_beyond_torch(tmp_path: Path):
    imported(tmp_path)
    runs = [imported(tmp_path) for _ in range(3)]
    assert "gradlens" in runs[0]["modules"]
    assert not set(runs[0]["modules"]) & set(HEAVY)
    # processor time, and the best of three, so that a busy machine does not decide
    assert min(run["seconds"] for run in runs) < 0.2


def test_the_public_names_are_there():
    import gradlens

    assert len(set(gradlens.__all__)) == len(gradlens.__all__)
    for name in gradlens.__all__:
        assert hasattr(gradlens, name), name
