"""The digits set as a newcomer builds it, with the smallest runs: trained, executed, drawn, tied together."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def build(out: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "figures",
        "build",
        "digits",
        "--profile",
        "smoke",
        "--out",
        str(out),
        "--runs",
        str(runs),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_smoke_set_trains_draws_and_is_then_current(tmp_path: Path) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    done = build(out, runs)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    names = {path.parent.name for path in out.glob("*/*.png")}
    expected = {"training", "gradients", "dynamics", "entropy", "input_landscape", "weight_landscape", "curvature"}
    expected |= {"robustness", "transfer"}
    assert names == expected
    pictures = list(out.glob("*/*.png"))
    assert len(pictures) >= 12
    for picture in pictures:
        assert picture.stat().st_size > 10_000
        assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_parquet(picture.with_suffix(".parquet"))) > 0
    said = json.dumps(manifest)
    for run in runs.iterdir():
        assert json.loads((run / "run.json").read_text())["checkpoint_sha256"] in said
    assert "data:image/png;base64," in (out / "index.html").read_text()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/stamp.json")}
    again = build(out, runs)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/stamp.json")} == stamps
