"""A set is built, skipped, mended and tied together by hashes."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from figures import build, manifest, plan, stamp
from figures.__main__ import ROOT
from tests.figures.conftest import PARAMETERS


def test_from_nothing_to_current_and_on(house, capsys, monkeypatch):
    """One story, because each kernel costs a second: build, skip, touch a notebook, a checkpoint, an output."""
    out = house.out
    monkeypatch.setenv("MPLBACKEND", "Agg")  # as on a cluster: cells show their figures all the same
    assert house.build() == 0
    made = json.loads((out / "one" / "one_figure.json").read_text())["made"]
    assert made["backend"] == "module://matplotlib_inline.backend_inline"
    assert capsys.readouterr().out.rstrip().endswith(str(out / "index.html"))
    assert {p.name for p in out.iterdir()} == {"one", "two", "manifest.json", "index.html"}
    check_manifest(house)
    check_page(house.page())

    monkeypatch.setattr(build, "ProcessPoolExecutor", None)  # nothing may run
    first, start = house.stamps(), time.perf_counter()
    assert house.build() == 0
    assert time.perf_counter() - start < 2
    assert capsys.readouterr().out.count(" current\n") == 2
    assert house.stamps() == first
    monkeypatch.undo()

    two = house.root / "notebooks" / "two.ipynb"
    book = json.loads(two.read_text())
    book["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "noise"}]
    book["metadata"]["kernelspec"] = {"name": "elsewhere", "display_name": "elsewhere", "language": "python"}
    two.write_text(json.dumps(book))
    house.build()
    assert house.stamps() == first, "outputs and an editor's marks are not what a notebook says"

    book["cells"][2]["source"] += "\nprint('more')"
    two.write_text(json.dumps(book))
    assert house.build() == 0
    second = house.stamps()
    assert second["one"] == first["one"]
    assert second["two"] != first["two"]
    assert "notebook changed" in capsys.readouterr().out

    house.checkpoint.write_bytes(b"other weights")
    assert house.build("--only", "one") == 0
    third = house.stamps()
    assert third["one"] != second["one"]
    assert third["two"] == second["two"]
    verdicts = {row["name"]: row["runs"][0]["unchanged"] for row in house.manifest()["figures"]}
    assert verdicts == {"one_figure": True, "two_figure": False}
    assert "changed since" in house.page()

    (out / "one" / "one_figure.parquet").write_bytes(b"cut off")
    capsys.readouterr()
    assert house.build("--only", "one") == 0
    assert "one_figure.parquet was changed or lost" in capsys.readouterr().out
    assert (out / "one" / "one_figure.parquet").read_bytes() == b"PAR1" + bytes(3)


def check_manifest(house) -> None:
    """Each figure leads to its data, its checkpoint and its notebook, by hashes of the files themselves."""
    found = house.manifest()
    assert [row["name"] for row in found["figures"]] == ["one_figure", "two_figure"]
    for row, name in zip(found["figures"], ["one", "two"], strict=True):
        assert row["data"] == f"{name}/{name}_figure.parquet"
        assert row["files"] == {
            f"{name}/{p.name}": house.sha256(p) for p in (house.out / name).glob(f"{name}_figure.*")
        }
        assert next(iter(row["files"])).endswith(".png")
        [run] = row["runs"]
        assert run["path"] == "runs/tiny/sl-0"
        assert run["unchanged"] is True
        assert run["checkpoint_sha256"] == house.sha256(house.root / run["path"] / "model.safetensors")
        assert row["notebook"]["sha256"] == house.sha256(house.root / row["notebook"]["path"])
        assert (house.out / row["executed"]).exists()
        assert f"<title>About {name}</title>" in (house.out / row["page"]).read_text()
        for kept in (row["executed"], row["page"]):
            assert str(house.root) not in (house.out / kept).read_text()
            assert f"figures/out/tiny/{name}" in (house.out / kept).read_text()
        assert int(row["made"]["threads"]) == max(1, plan.cores() // min(2, plan.cores()))
    assert found["figures"][1]["parameters"] == {"runs": "runs/tiny", "samples": 3, "level": 1}
    assert (found["commit"], found["dirty"], found["seed"]) == (None, None, None)
    assert found["versions"].keys() >= {"torch", "loss-landscapes", "gradlens"}
    assert found["reproduce"] == "python -m figures build tiny"
    assert str(house.root) not in json.dumps(found)
    assert str(Path.home()) + "/" not in json.dumps(found)


def check_page(page: str) -> None:
    """Hostile names are text, pictures are inside, and nothing is loaded from anywhere."""
    assert page.count("<script") == 1, "the one that sorts tables"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count('<img src="data:image/webp;base64,UklGR') == 2
    assert 'alt="Alt of one_figure"' in page
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert 'href="two/two_figure.pdf"' in page
    assert 'href="two/two_figure.parquet"' in page
    assert page.count('href="two/two.html"') == 2, "of the notebook and of its figure"
    assert "About one" in page
    assert 'class="failure"' not in page


def test_a_failure_is_told_and_the_others_go_on(house, capsys):
    out = house.out
    assert house.build("--only", "one") == 0
    good = house.sha256(out / "one" / "one_figure.png")
    house.notebook("one", house.figure("half"), "raise RuntimeError('no <b>gradient</b>')", "1")
    assert house.build() == 1
    said = capsys.readouterr()
    assert "FAILED: RuntimeError: no <b>gradient</b>" in said.out
    assert "notebooks/one.ipynb failed" in said.err
    assert "Traceback (most recent call last)" in said.err
    assert "\x1b" not in said.err

    assert house.sha256(out / "one" / "one_figure.png") == good
    assert not (out / "one" / "half.png").exists()
    assert not list(out.glob("*.partial"))
    assert (out / "two" / "two_figure.png").exists()
    assert "no <b>gradient" in (out / "one.failed.ipynb").read_text()
    assert [book["status"] for book in house.manifest()["notebooks"]] == ["failed", "built"]
    page = house.page()
    assert 'class="failure"' in page
    assert "no &lt;b&gt;gradient&lt;/b&gt;" in page
    assert "<b>gradient" not in page
    assert "Traceback (most recent call last)" in page
    assert str(house.root) not in page

    house.notebook("one", house.figure("one_figure"))
    assert house.build("--only", "one") == 0
    assert not list(out.glob("*.failed.*"))
    assert 'class="failure"' not in house.page()


MEASURING = """
place = pathlib.Path(resume) / "measured"
before = place.read_text() if place.is_file() else ""
place.parent.mkdir(parents=True, exist_ok=True)
place.write_text(before + "x")
print(f"went on from {len(before)}", file=open("went_on.txt", "a"))
if len(before) < 1:
    raise RuntimeError("stopped here")
"""


def test_what_a_failed_notebook_has_measured_is_there_for_the_next_build(house):
    """Whoever has a parameter `resume` gets one folder for one measurement: other runs, settings or code begin anew."""
    known = PARAMETERS + 'resume: str = ""\n'

    def left() -> list[str]:
        return sorted(path.name for path in house.out.glob(".*.resume-*"))

    house.notebook("one", house.figure("one_figure"), MEASURING, parameters=known)
    assert house.build() == 1
    (first,) = left()
    assert first.startswith(".one.resume-"), "two has no such parameter"
    house.checkpoint.write_bytes(b"other weights")
    assert house.build() == 1
    (second,) = left()
    assert second != first, "of other runs; that of the first is no use any more"
    house.notebook("one", house.figure("one_figure"), MEASURING, "'drawn otherwise'", parameters=known)
    assert house.build() == 0
    assert left() == []
    assert (house.root / "went_on.txt").read_text().split("\n")[:3] == [f"went on from {n}" for n in (0, 0, 1)]
    executed = (house.out / "one" / "one.ipynb").read_text()
    assert str(house.root) not in executed and ".resume-" not in executed
    assert house.build("--force") == 1, "from nothing, once it was finished"


def test_a_notebook_that_takes_too_long_or_publishes_nonsense_fails(house, capsys):
    house.notebook("one", "import time; time.sleep(60)")
    lying = house.figure("two_figure").replace('data="two_figure.parquet"', 'data="../../secret"')
    house.notebook("two", lying)
    start = time.perf_counter()
    assert house.build("--timeout", "6") == 1
    assert time.perf_counter() - start < 40
    errors = {book["name"]: book["error"] for book in house.manifest()["notebooks"]}
    assert errors["one"] == "not finished after 6 s"
    assert "data is '../../secret', expected one of the figure's files" in errors["two"]
    assert "time.sleep(60)" in capsys.readouterr().err


TRAINING = """
import pathlib, sys
_, verb, sweep, _, out = sys.argv
assert verb == "sweep"
with open("calls.txt", "a") as calls:
    calls.write(f"{sweep} {out}\\n")
if "fail" in pathlib.Path(sweep).read_text():
    sys.exit(3)
run = pathlib.Path(out) / "sl-0"
run.mkdir(parents=True, exist_ok=True)
(run / "model.safetensors").write_bytes(b"trained")
(run / "run.json").write_text('{"name": "sl-0"}')
"""


def test_the_sweep_comes_first_and_is_left_out_once_all_is_current(house, capsys):
    training = house.root / "training"
    training.mkdir()
    (training / "__init__.py").touch()  # or the installed package of the same name would be preferred
    (training / "__main__.py").write_text(TRAINING)
    (training / "sweep.toml").write_text("fail")
    house.edit_set("title", 'sweep = "training/sweep.toml"\ntitle')
    shutil.rmtree(house.root / "runs")
    words = ["--only", "one", "--runs", str(house.root / "mine")]
    assert house.build(*words) == 1
    assert "the sweep ended with exit code 3, no notebook was executed" in capsys.readouterr().err
    assert not (house.out / "one").exists()

    def calls() -> list[str]:
        return (house.root / "calls.txt").read_text().splitlines()

    (training / "sweep.toml").write_text("good")
    assert house.build(*words) == 0
    assert calls() == ["training/sweep.toml mine"] * 2
    assert house.manifest()["reproduce"] == "python -m figures build tiny --runs mine"
    assert house.build(*words) == 0
    assert len(calls()) == 2
    (training / "sweep.toml").write_text("good, and new")
    assert house.build(*words) == 0
    assert len(calls()) == 3
    shutil.rmtree(house.root / "mine")
    assert house.build(*words) == 0
    assert len(calls()) == 4

    (training / "more.toml").write_text("good")
    house.edit_set("[parameters]", '[sweeps]\nmore = "training/more.toml"\n[parameters]')
    assert house.build(*words) == 0
    assert len(calls()) == 4, "no notebook reads it"
    house.edit_set("level = 1 }", 'level = 1, others = "more" }')
    assert house.build("--only", "two", *words[2:]) == 0
    assert calls()[4:] == ["training/sweep.toml mine", "training/more.toml more"]

    shutil.rmtree(house.root / "more")
    house.edit_set(', others = "more"', "")
    house.notebook("two", house.figure("two_figure"), parameters=PARAMETERS.replace('others = ""', 'others = "more"'))
    assert house.build("--only", "two", *words[2:]) == 0
    assert calls()[6:] == ["training/sweep.toml mine", "training/more.toml more"], "the notebook's own default"

    def key() -> str:
        return stamp.inputs(house.root / "notebooks" / "two.ipynb", {"runs": "mine", "others": "more"}, house.root).key

    keys = {key()}
    for folder in ("mine", "more"):  # of which each has a run sl-0
        (house.root / folder / "sl-0" / "model.safetensors").write_bytes(b"other weights")
        keys.add(key())
    assert len(keys) == 3


def test_one_notebook_stands_twice_in_a_set_under_two_names(house):
    house.edit_set('name = "two"', 'name = "one"\ncalled = "again"\ntitle = "One <again>"')
    assert house.build() == 0
    made = house.manifest()
    rows = {book["name"]: (book["path"], book["title"], book["executed"]) for book in made["notebooks"]}
    assert rows == {
        "one": ("notebooks/one.ipynb", "About one", "one/one.ipynb"),
        "again": ("notebooks/one.ipynb", "One <again>", "again/again.ipynb"),
    }
    levels = {book["name"]: book["parameters"].get("level") for book in made["notebooks"]}
    assert levels["again"] == 1 != levels["one"]
    assert {figure["notebook"]["path"] for figure in made["figures"]} == {"notebooks/one.ipynb"}
    assert all((house.out / file).is_file() for figure in made["figures"] for file in figure["files"])
    assert "One &lt;again&gt;" in house.page()
    before = house.stamps()
    assert house.build() == 0
    assert house.stamps() == before and set(before) == {"one", "again"}


def test_a_killed_build_leaves_no_half_written_folder_and_no_kernel(house):
    out = house.out
    assert house.build("--only", "one") == 0
    before = {p: house.sha256(p) for p in (out / "one").iterdir()}
    slow = "open('kernel.pid', 'w').write(str(os.getpid())); import time; time.sleep(60)"
    house.notebook("one", house.figure("one_figure"), slow)
    code = "import pathlib, sys, figures.__main__ as m; m.main(['build', 'tiny'], pathlib.Path(sys.argv[1]))"
    killed = subprocess.Popen([sys.executable, "-c", code, str(house.root)], cwd=ROOT, stdout=subprocess.DEVNULL)
    pid = house.root / "kernel.pid"
    wait_until(lambda: pid.exists() and pid.read_text())
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_until(lambda: not alive(int(pid.read_text())))
    assert {p: house.sha256(p) for p in (out / "one").iterdir()} == before
    house.notebook("one", house.figure("one_figure"))
    assert house.build("--only", "one") == 0
    assert not list(out.glob("*.partial"))


def test_what_a_killed_build_has_finished_is_in_the_manifest(house):
    house.notebook("two", "import time; time.sleep(60)")
    code = "import pathlib, sys, figures.__main__ as m; m.main(['build', 'tiny'], pathlib.Path(sys.argv[1]))"
    killed = subprocess.Popen([sys.executable, "-c", code, str(house.root)], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until((house.out / "manifest.json").exists)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    made = house.manifest()
    assert {book["name"]: book["status"] for book in made["notebooks"]} == {"one": "built", "two": "missing"}
    for figure in made["figures"]:
        for file, digest in figure["files"].items():
            assert digest == house.sha256(house.out / file)
    assert made["figures"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_build_does_not_go_on_training(house, end):
    """The sweep and the process that trains for it end too; what the run has reached is kept."""
    (house.root / "sweep.toml").write_text(
        'dataset = ["digits"]\nmodel = ["mlp"]\nschedule = ["sl:100000"]\nseed = [0]'
    )
    house.edit_set("title", 'sweep = "sweep.toml"\ntitle')
    code = "import pathlib, sys, figures.__main__ as m; m.main(['build', 'tiny'], pathlib.Path(sys.argv[1]))"
    killed = subprocess.Popen([sys.executable, "-c", code, str(house.root)], cwd=ROOT, stdout=subprocess.DEVNULL)
    reached = "runs/tiny/digits-mlp*/resume.safetensors"
    try:
        wait_until(lambda: list(house.root.glob(reached)), 60)
        below = descendants(killed.pid)
        assert len(below) >= 2
    finally:
        killed.send_signal(end)
        killed.wait()
    wait_until(lambda: not any(map(alive, below)))
    [left] = house.root.glob(reached)
    assert load_file(left), "whole, as the next build needs it"


def descendants(pid: int) -> list[int]:
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError, TypeError):  # it has ended since
            parents[int(status.parent.name)] = int(re.search(r"^PPid:\s+(\d+)", status.read_text(), re.M)[1])
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [deeper for child in found for deeper in descendants(child)]


def wait_until(done, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")  # a zombie that nobody reaps is dead as well
    return not status.exists() or "\nState:\tZ" not in status.read_text()


def test_runs_outside_of_the_repository_are_found_and_not_told(house, tmp_path):
    shutil.move(house.root / "runs" / "tiny", tmp_path / "elsewhere")
    house.notebook("one", house.figure("one_figure").replace("path=str(run.resolve())", "path=run.name"))
    assert house.build("--runs", str(tmp_path / "elsewhere")) == 0
    [one], [two] = (row["runs"] for row in house.manifest()["figures"])
    assert one["path"] == "sl-0"
    assert one["unchanged"] is True
    assert two["unchanged"] is True
    assert str(tmp_path) not in json.dumps(house.manifest())


def test_a_gallery_can_be_made_again_and_not_from_nothing(house, capsys):
    assert house.run("gallery", "tiny") == 2
    assert "there is no manifest.json in it" in capsys.readouterr().err
    assert house.build("--profile", "smoke", "--only", "one") == 0
    page = house.root / "figures" / "out" / "tiny-smoke" / "index.html"
    content = page.read_text()
    assert "Profile smoke: not the full set" in content
    assert "Not built yet" in content
    assert manifest.read(page.parent)["figures"][0]["parameters"]["samples"] == 1
    page.unlink()
    assert house.run("gallery", "tiny", "--profile", "smoke") == 0
    assert page.read_text() == content
