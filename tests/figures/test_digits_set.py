"""The digits set as a newcomer builds it, with the smallest runs: trained, executed, drawn, tied together."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from figures import manifest

ROOT = Path(__file__).parents[2]


def build(out: Path, runs: Path, name: str = "digits", *more: str) -> subprocess.CompletedProcess[str]:
    words = ["build", name, "--profile", "smoke", "--out", str(out), "--runs", str(runs), *more]
    command = [sys.executable, "-m", "figures", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_smoke_set_trains_draws_and_is_then_current(tmp_path: Path) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    done = build(out, runs)
    assert done.returncode == 0, done.stdout + done.stderr
    made = manifest.read(out)
    names = {path.parent.name for path in out.glob("*/*.png")}
    expected = {"training", "gradients", "dynamics", "entropy", "input_landscape", "weight_landscape", "curvature"}
    expected |= {"robustness", "transfer", "masking", "claims", "explorer"}
    assert names == expected
    pictures = list(out.glob("*/*.png"))
    assert len(pictures) >= 12
    for picture in pictures:
        assert picture.stat().st_size > 10_000
        assert picture.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_parquet(picture.with_suffix(".parquet"))) > 0
    for name in ("input_landscape", "weight_landscape"):  # a relief that JupyterLab turns, without plotly.js in each
        executed = (out / name / f"{name}.ipynb").read_text()
        assert executed.count("application/vnd.plotly.v1+json") == 1
        assert "plotly.js v" not in executed
    said = json.dumps(made)
    for run in runs.iterdir():
        assert json.loads((run / "run.json").read_text())["checkpoint_sha256"] in said
    judged = [figure["caption"] for figure in made["figures"] if figure["notebook"]["name"] == "claims"]
    assert len(judged) == 5 and all("(linf, eps 0.05)" in caption for caption in judged)  # the profile's own ball
    page = (out / "index.html").read_text()
    assert page.count("<img src=") == len(pictures)
    assert len(page) < 15e6
    for picture in pictures:  # in the page the same pixels in fewer bytes
        small = picture.with_suffix(".webp")
        assert small.stat().st_size < picture.stat().st_size
        assert f"data:image/webp;base64,{base64.b64encode(small.read_bytes()).decode()}" in page
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/stamp.json")}
    again = build(out, runs)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/stamp.json")} == stamps

    tables = {path: path.read_bytes() for path in (out / "dynamics").glob("*.parquet")}
    anew = build(out, runs, "digits", "--only", "dynamics", "--force")
    assert anew.returncode == 0, anew.stderr
    assert tables
    assert {path: path.read_bytes() for path in tables} == tables, "the same figures' data, to the byte"
    assert (out / "dynamics" / "stamp.json").stat().st_mtime_ns > stamps[out / "dynamics" / "stamp.json"]

    done = build(tmp_path / "hybrids", runs, "digits-claims", "--only", "hybrids")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.parent.name for path in (tmp_path / "hybrids").glob("*/*.png")} == {"hybrids"}

    pair = sorted(map(str, runs.iterdir()))[:2]
    words = [sys.executable, "-m", "figures", "compare", *pair, "--samples", "16", "--out", str(tmp_path / "beside")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    beside = manifest.read(tmp_path / "beside")
    assert [figure["name"] for figure in beside["figures"]] == ["courses", "attacked", "accuracies"]
    for figure in beside["figures"]:
        assert {run["name"] for run in figure["runs"]} == {Path(path).name for path in pair}
