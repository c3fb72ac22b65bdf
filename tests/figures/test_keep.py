"""What is kept of a set: whole, small, traceable; findings are read off the tables."""

import io
import json
import os
import platform
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from figures import keep, manifest, sets, stamp
from gradlens.intervals import wilson
from gradlens.masking.evidence import LARGE
from tests.figures.conftest import PARAMETERS, STUDIES

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "README.md", ROOT / "figures" / "FINDINGS.md"
LINES = """
from pathlib import Path
import pandas as pd
rows = [
    ("C1", "RL helps", "contradicted", "PGD", "RL - SL", 0.2, 0.1, 0.3, "there"),
    ("C1", "RL helps", "contradicted", "worst case", "RL - SL", 0.0, -0.01, 0.01, "not there"),
    ("C2", "RL is small", "open", "norm", "SL - RL", float("nan"), float("nan"), float("nan"), "unsure"),
    ("C3", "RL is wild", "open", "cosine", "SL - RL", 0.125, float("nan"), float("nan"), "unsure"),
    ("C4", "RL is flat", "supported", "bend", "SL - RL", 0.5, 0.4, 0.6, "there"),
]
columns = ["claim", "says", "verdict", "measured", "difference of", "difference", "low", "high", "reading"]
pd.DataFrame(rows, columns=columns).assign(seeds=3, samples=12).to_parquet(Path(out) / "claims.parquet")
"""
CONTROLS = """
from pathlib import Path
import pandas as pd
rows = [("RL", "C1", "supported"), ("exact", "C1", "open"), ("RL", "C2", "open"), ("exact", "C2", "supported"),
        ("RL", "C4", "supported"), ("RL", "C4", "supported"), ("exact", "C4", "supported"), ("Lq", "C4", "supported")]
pd.DataFrame(rows, columns=["place", "claim", "verdict"]).to_parquet(Path(out) / "controls.parquet")
"""
RUNS = """
from pathlib import Path
import pandas as pd
runs = [("SL", 0, 1.0, 0.5, float("nan")), ("SL", 1, 0.5, 0.25, float("nan")), ("RL", 0, 0.25, 0.0, 0.125)]
columns = ["arm", "seed", "clean", "hundred_margin", "transfer"]
pd.DataFrame(runs, columns=columns).to_parquet(Path(out) / "runs.parquet")
"""
LEFT = """\
| group | arm | clean | PGD | PGD, 100 steps | PGD, longest | PGD, margin | margin, 100 steps | margin, longest | \
Square | transfer, of what is right | worst case |
|---|---|---|---|---|---|---|---|---|---|---|---|
| A place (longest: 70 steps) | SL | 75 [50, 100] |  |  |  |  | 38 [25, 50] |  |  |  |  |
| A place (longest: 70 steps) | RL | 25 |  |  |  |  | 0 |  |  | 12 |  |
"""
FOUND = """\
| claim | what the study looks at | A place (3 seeds, 12 images) |
|---|---|---|
| C1: RL helps | PGD, RL - SL | **contradicted** +0.200 [+0.100, +0.300]; \
worst case, RL - SL: +0.000 [-0.010, +0.010] |
| C2: RL is small | norm, SL - RL | **open** not measured |
| C3: RL is wild | cosine, SL - RL | **open** +0.125, one seed |
| C4: RL is flat | bend, SL - RL | **supported** +0.500 [+0.400, +0.600] |
"""


TABLE = """
from pathlib import Path
import pandas as pd
pd.DataFrame({"a": [0.5, 1.0], "b": ["x", "y, z"]}).to_parquet(Path(out) / "one_figure.parquet")
"""

TRAINED = """
from pathlib import Path
import pandas as pd
rows = [("SL", 0, "clean", 0.5), ("SL", 1, "clean", 1.0), ("SL", 0, "PGD", 0.0), ("SL", 1, "PGD", 0.25),
        ("RL", 0, "clean", 0.75), ("RL-adv", 0, "FGSM", 0.5)]
accuracy = pd.DataFrame(rows, columns=["arm", "seed", "attack", "accuracy"])
accuracy.to_parquet(Path(out) / "accuracy.parquet")
spent = [("SL", 0, 1, 9.0), ("SL", 0, 2, 2.0), ("SL", 1, 1, 3.0), ("RL", 0, 1, 100.0), ("RL", 0, 2, 120.0)]
curves = pd.DataFrame(spent, columns=["arm", "seed", "epoch", "seconds"])
curves.to_parquet(Path(out) / "training_curves.parquet")
"""
LEARNED = """\
| group | arm | seeds | clean | PGD | FGSM | epochs | seconds a run |
|---|---|---|---|---|---|---|---|
| A place | SL | 2 | 75.0% [50.0%, 100.0%] | 12.5% [0.0%, 25.0%] |  | 2 | 7.0 |
| A place | RL | 1 | 75.0% |  |  | 2 | 220 |
| A place | RL-adv | 1 |  |  | 50.0% |  |  |
"""


@pytest.fixture
def built(house, monkeypatch):
    """A set whose second notebook is one of claims, and reads the runs of a second sweep."""
    monkeypatch.setattr("figures.build.sweep", lambda asked: None)
    house.edit_set("[parameters]", '[sweeps]\n"runs/tiny" = "a.toml"\nmore = "b.toml"\n[parameters]')
    house.edit_set("level = 1 }", 'level = 1, others = "more" }')
    for name in ("a", "b"):
        (house.root / f"{name}.toml").write_text(name)
    house.notebook("one", house.figure("one_figure"), TABLE)
    house.notebook("two", house.figure("claims"), LINES)
    house.edit_set('name = "two"', 'name = "two"\ntitle = "A place"')
    assert house.build() == 0
    (house.root / "README.md").write_text("before\n<!-- figures.tiny -->\nold\n<!-- /figures.tiny -->\nafter\n")
    return house


def test_a_set_is_kept_whole_and_its_findings_are_read_off_its_tables(built, capsys):
    assert built.run("keep", "tiny", "--readme") == 0
    kept = built.root / "figures" / "tiny"
    assert "MB, built 20" in capsys.readouterr().out
    made, said = manifest.read(built.out), manifest.read(kept)
    where = {key: made[key] for key in ("python", "platform", "processor", "gpus", "versions")}
    for figure in said["figures"]:
        tables = {file: figure["files"].pop(file) for file in list(figure["files"]) if file.endswith(".csv")}
        assert tables and all(built.sha256(kept / file) == digest for file, digest in tables.items())
    assert said == made | {"notebooks": [where | book for book in made["notebooks"]]}
    assert (built.root / "README.md").read_text() == (
        f"before\n<!-- figures.tiny -->\n{FOUND}<!-- /figures.tiny -->\nafter\n"
    )
    for figure in made["figures"]:
        for file in map(Path, figure["files"]):
            if file.suffix == ".parquet":
                table = pd.read_csv(kept / file.with_suffix(".csv"))
                pd.testing.assert_frame_equal(table, pd.read_parquet(built.out / file), check_dtype=False)
    assert {path.suffix for path in kept.rglob("*.*")} <= {".json", ".csv", ".webp", ".png"}
    (kept / "old.csv").touch()
    assert built.run("keep", "tiny") == 0
    assert not (kept / "old.csv").exists()
    assert not list((built.root / "figures").glob(".*"))


VERDICTS = """\
| claim | Elsewhere | A place |
|---|---|---|
| C1: RL helps | **contradicted** | **contradicted** |
| C2: RL is small | – | – |
| C3: RL is wild | open | open |
| C4: RL is flat | **supported** | **supported** |
"""


def test_the_verdicts_of_all_kept_sets_stand_side_by_side(built):
    """In the order of the README; what cannot be measured is no open claim there."""
    assert built.run("keep", "tiny") == 0
    other = built.root / "figures" / "other"
    shutil.copytree(built.root / "figures" / "tiny", other)
    said = manifest.read(other)
    said["notebooks"] = [book | {"title": "Elsewhere"} for book in said["notebooks"]]
    (other / "manifest.json").write_text(json.dumps(said | {"sha256": stamp.seal(said)}))
    readme = built.root / "README.md"
    marks = "".join(
        f"<!-- figures.{name} -->\n<!-- /figures.{name} -->\n" for name in ("*", "nowhere", "other", "tiny")
    )
    readme.write_text(marks)
    assert built.run("keep", "tiny", "--readme") == 0
    assert readme.read_text().startswith(f"<!-- figures.* -->\n{VERDICTS}<!-- /figures.* -->\n")
    shutil.rmtree(other)
    assert built.run("keep", "tiny", "--readme") == 0
    assert "| claim | A place |\n" in readme.read_text() and "Elsewhere" not in readme.read_text()


ASKED = """\
| group | verdict | PGD, RL - SL | worst case, RL - SL |
|---|---|---|---|
| A place | **contradicted** | +0.200 [+0.100, +0.300] there, likewise exact | +0.000 [-0.010, +0.010] not there |
"""
PLACES = """
from pathlib import Path
import pandas as pd
rows = [("RL", "C1", "there", 0.2), ("RL", "C1", "not there", 0.0), ("exact", "C1", "there", 0.3),
        ("exact", "C1", "there", 0.1), ("Lq", "C1", "there", -0.3), ("Lq", "C1", "there", 0.2),
        ("SL, twice", "C1", "unsure", 0.2), ("SL, twice", "C1", "there", 0.2), ("SL, twice", "C4", "there", 0.2)]
controls = pd.DataFrame(rows, columns=["place", "claim", "reading", "difference"]).assign(verdict="open")
controls.to_parquet(Path(out) / "controls.parquet")
"""


def test_a_claim_stands_line_by_line_with_the_controls_that_show_a_line_as_well(built):
    """On the same side; a claim of which nothing is measured has no row, and one that no table has no table."""
    built.notebook("two", built.figure("claims"), built.figure("controls"), LINES, PLACES)
    assert built.build() == 0
    readme = built.root / "README.md"
    marks = "".join(f"<!-- figures.*.{one} -->\n<!-- /figures.*.{one} -->\n" for one in ("C1", "C2", "C7"))
    readme.write_text(f"<!-- figures.* -->\n<!-- /figures.* -->\n{marks}{readme.read_text()}")
    assert built.run("keep", "tiny", "--readme") == 0
    empty = "".join(f"<!-- figures.*.{one} -->\n<!-- /figures.*.{one} -->\n" for one in ("C2", "C7"))
    assert f"<!-- figures.*.C1 -->\n{ASKED}<!-- /figures.*.C1 -->\n{empty}" in readme.read_text()


def test_findings_may_stand_on_a_page_of_their_own(built, capsys):
    """The verdicts in the README, a set's own table beside the figures; a page that is not there is none."""
    readme, page = built.root / "README.md", built.root / "figures" / "FINDINGS.md"
    readme.write_text("<!-- figures.* -->\n<!-- /figures.* -->\n")
    assert built.run("keep", "tiny", "--readme") == 2
    assert "README.md has no <!-- figures.tiny -->" in capsys.readouterr().err
    page.write_text("before\n<!-- figures.tiny -->\nold")
    assert built.run("keep", "tiny", "--readme") == 2
    assert "FINDINGS.md has no <!-- figures.tiny --> ... <!-- /figures.tiny -->" in capsys.readouterr().err
    assert page.read_text().endswith("old") and "|" not in readme.read_text()
    page.write_text("before\n<!-- figures.tiny -->\nold\n<!-- /figures.tiny -->\nafter\n")
    assert built.run("keep", "tiny", "--readme") == 0
    assert page.read_text() == f"before\n<!-- figures.tiny -->\n{FOUND}<!-- /figures.tiny -->\nafter\n"
    assert "| C4: RL is flat | **supported** |\n" in readme.read_text()


def test_a_claim_that_controls_would_be_said_to_support_as_well_names_them(built):
    built.notebook("two", built.figure("claims"), built.figure("controls"), LINES, CONTROLS)
    assert built.build() == 0
    assert built.run("keep", "tiny", "--readme") == 0
    found = (built.root / "README.md").read_text()
    assert "| **supported** +0.500 [+0.400, +0.600]; likewise exact / Lq |" in found
    assert found.count("likewise") == 1


def test_what_each_attack_leaves_is_read_off_what_each_run_reads(built):
    known = PARAMETERS + "longest: int = 1\n"
    built.notebook("two", built.figure("claims"), built.figure("runs"), LINES, RUNS, parameters=known)
    built.edit_set("level = 1,", "level = 1, longest = 70,")
    assert built.build() == 0
    readme = built.root / "README.md"
    readme.write_text(readme.read_text() + "<!-- figures.tiny.attacks -->\n<!-- /figures.tiny.attacks -->\n")
    assert built.run("keep", "tiny", "--readme") == 0
    assert f"<!-- figures.tiny.attacks -->\n{LEFT}<!-- /figures.tiny.attacks -->\n" in readme.read_text()
    shutil.rmtree(built.out / "one")  # as a killed build leaves it: a notebook that has not run yet
    built.notebook("one", "raise ValueError")
    assert built.build() == 1
    assert {book["name"] for book in built.manifest()["notebooks"] if "parameters" not in book} == {"one"}
    assert built.run("keep", "tiny", "--readme") == 0
    assert LEFT in readme.read_text()


def test_a_table_of_many_samples_is_left_to_the_build(built, monkeypatch):
    monkeypatch.setattr(keep, "LARGEST", 200)
    assert built.run("keep", "tiny") == 0
    assert not list((built.root / "figures" / "tiny").rglob("claims.csv"))
    assert keep.findings(built.root / "figures" / "tiny") == ""


SAMPLES = """
from pathlib import Path
import pandas as pd
rows = [(arm, seed, loss, i, 3, i % 2 == 0, float(i), float("nan") if i else 4.0)
        for arm in ("SL", "RL") for seed in (0, 1) for loss in ("ce", "margin") for i in range(50)]
columns = ["arm", "seed", "loss", "sample", "predicted", "fooled", "norm", "cosine"]
pd.DataFrame(rows, columns=columns).to_parquet(Path(out) / "norms.parquet")
"""


def test_of_a_table_of_many_samples_the_means_are_kept(built, monkeypatch):
    monkeypatch.setattr(keep, "LARGEST", 500)
    built.notebook("two", built.figure("norms"), SAMPLES)
    assert built.build() == 0
    assert built.run("keep", "tiny") == 0
    kept = built.root / "figures" / "tiny" / "two"
    assert not (kept / "norms.csv").exists()
    means = pd.read_csv(kept / "norms.means.csv")
    by_hand = [
        (arm, seed, loss, 0.5, 24.5, 4, 50) for arm in ("SL", "RL") for seed in (0, 1) for loss in ("ce", "margin")
    ]
    assert [tuple(row) for row in means.itertuples(index=False)] == by_hand
    assert list(means) == ["arm", "seed", "loss", "fooled", "norm", "cosine", "samples"]
    (figure,) = (f for f in manifest.read(kept.parent)["figures"] if f["name"] == "norms")
    assert figure["files"]["two/norms.means.csv"] == built.sha256(kept / "norms.means.csv")


COURSE = """
from pathlib import Path
import pandas as pd
rows = [(run, run[:2], int(run[2]), epoch, 0.5 ** epoch, 0.25 if epoch % 4 == 0 else None, float(epoch))
        for run in ("SL0", "SL1", "RL0") for epoch in range(1, 11 if run == "RL0" else 9)]
columns = ["run", "arm", "seed", "epoch", "loss", "pgd", "seconds"]
pd.DataFrame(rows, columns=columns).to_parquet(Path(out) / "training_curves.parquet")
rows = [(arm, seed, "clean", 1.0) for arm, seed in (("SL", 0), ("SL", 1), ("RL", 0))]
pd.DataFrame(rows, columns=["arm", "seed", "attack", "accuracy"]).to_parquet(Path(out) / "accuracy.parquet")
"""


def test_of_a_long_training_the_epochs_with_an_attack_are_kept_and_all_seconds(built, monkeypatch):
    built.notebook("two", built.figure("accuracy"), built.figure("training_curves"), COURSE)
    assert built.build() == 0
    assert built.run("keep", "tiny") == 0
    kept = built.root / "figures" / "tiny"
    whole, said = pd.read_csv(kept / "two" / "training_curves.csv"), keep.trained(kept)
    assert len(whole) == 26
    monkeypatch.setattr(keep, "LARGEST", 500)
    assert built.run("keep", "tiny") == 0
    few = pd.read_csv(kept / "two" / "training_curves.csv")
    assert few[["run", "epoch", "seconds"]].to_numpy().tolist() == [
        ["SL0", 4, 10.0], ["SL0", 8, 26.0], ["SL1", 4, 10.0], ["SL1", 8, 26.0],
        ["RL0", 4, 10.0], ["RL0", 8, 26.0], ["RL0", 10, 19.0],
    ]  # fmt: skip
    assert few["loss"].tolist() == pytest.approx([0.5**epoch for epoch in few["epoch"]])
    assert keep.trained(kept) == said and "| 8 | 36 |" in said and "| 10 | 55 |" in said


def test_a_heavy_picture_is_kept_with_fewer_pixels(tmp_path, generator):
    noise = Image.fromarray(torch.randint(256, (400, 3200, 3), generator=generator, dtype=torch.uint8).numpy())
    noise.save(tmp_path / "whole.webp", lossless=True)
    whole = (tmp_path / "whole.webp").read_bytes()
    small = keep._light(whole, ".webp")
    assert Image.open(io.BytesIO(small)).size == (1600, 200)
    assert len(small) < len(whole) / 10
    assert keep._light(whole, ".png") == whole
    assert keep._light(whole[: keep.LIGHT], ".webp") == whole[: keep.LIGHT]


def test_what_cannot_be_kept_is_refused_and_nothing_is_touched(built, capsys):
    readme = built.root / "README.md"

    def refused(*words: str) -> str:
        assert built.run("keep", "tiny", *words) == 2
        return capsys.readouterr().err

    assert "to is" in refused("--to", str(built.root / "notebooks"))
    assert list((built.root / "notebooks").iterdir())
    readme.write_text("no marks")
    assert "has no <!-- figures.tiny -->" in refused("--readme")
    assert not (built.root / "figures" / "tiny").exists()
    assert "no manifest.json" in refused("--out", str(built.root))
    assert built.run("keep", "tiny") == 0
    kept = built.root / "figures" / "tiny"
    made = manifest.read(kept) | {"set": "another"}
    (kept / "manifest.json").write_text(json.dumps({**made, "sha256": stamp.seal(made)}))
    assert "where the set 'another' is kept, expected 'tiny'" in refused()
    shutil.rmtree(built.out / "one")
    (built.out / "two" / "stamp.json").unlink()
    made = manifest.read(built.out)
    made["notebooks"] = [{**book, "status": "missing"} for book in made["notebooks"]]
    (built.out / "manifest.json").write_text(json.dumps({**made, "sha256": stamp.seal(made)}))
    shutil.rmtree(kept)
    assert "no notebook is built; build the set first" in refused()


def test_what_is_built_elsewhere_joins_what_was_kept_before(built, capsys, monkeypatch):
    """A fresh folder in which one notebook alone is built: the other stays, with its commit and machine, pictures and
    tables."""
    assert built.build("--only", "one") == 0  # which is current, and says nothing of the other
    assert built.run("keep", "tiny", "--readme") == 0
    kept = built.root / "figures" / "tiny"
    before, table = manifest.read(kept), (kept / "two" / "claims.csv").read_bytes()
    assert before["sweeps"] == [
        {"folder": folder, "path": path, "sha256": built.sha256(built.root / path)}
        for folder, path in (("runs/tiny", "a.toml"), ("more", "b.toml"))
    ]
    shutil.rmtree(built.out)
    built.notebook("one", built.figure("one_figure"), TABLE, "print('another try')")
    monkeypatch.setattr(platform, "platform", lambda: "another machine")
    assert built.build("--only", "one") == 0
    assert [book["status"] for book in manifest.read(built.out)["notebooks"]] == ["built", "missing"]
    capsys.readouterr()
    assert built.run("keep", "tiny", "--readme") == 0
    assert "not yet" not in capsys.readouterr().out
    after = manifest.read(kept)
    assert after["notebooks"][1] == before["notebooks"][1]
    assert [book["platform"] for book in after["notebooks"]] == ["another machine", before["platform"]]
    assert after["sweeps"] == before["sweeps"] != manifest.read(built.out)["sweeps"]
    assert after["notebooks"][0]["sha256"] != before["notebooks"][0]["sha256"]
    assert [figure["name"] for figure in after["figures"]] == ["one_figure", "claims"]
    assert (kept / "two" / "claims.csv").read_bytes() == table
    assert FOUND in (built.root / "README.md").read_text()
    built.edit_set('name = "two"', 'name = "one"\ncalled = "three"')  # the set has another notebook now
    assert built.build("--only", "one") == 0
    assert built.run("keep", "tiny") == 0
    assert [book["name"] for book in manifest.read(kept)["notebooks"]] == ["one", "three"]
    assert {figure["notebook"]["name"] for figure in manifest.read(kept)["figures"]} == {"one"}
    assert not (kept / "two").exists()
    built.edit_set('name = "one"\ncalled = "three"', 'name = "two"')
    assert built.build("--only", "one") == 0
    capsys.readouterr()
    shutil.rmtree(kept)
    assert built.run("keep", "tiny") == 0
    assert "; not yet: two" in capsys.readouterr().out
    assert keep.findings(kept) == ""


def test_a_manifest_names_the_kind_of_processor(built, tmp_path):
    """Two of one name are told apart by model and stepping; elsewhere it is what Python knows."""
    told = tmp_path / "cpuinfo"
    told.write_text(
        "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Some (R) CPU\nstepping\t: 8\n\nmodel\t: 1\n"
    )
    assert manifest._processor(told) == "Some (R) CPU, cpu family 6, model 143, stepping 8"
    told.write_text("Processor\t: without a name\n")
    known = platform.processor() or platform.machine()
    assert manifest._processor(told) == known == manifest._processor(tmp_path / "none")
    assert manifest.read(built.out)["processor"] == manifest.machine()["processor"]


def test_a_manifest_names_the_gpus_that_a_build_could_use(built, tmp_path, monkeypatch):
    """By a stand-in for NVIDIA's program; without one, or where CUDA hides the cards, there are none."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho One card\necho Another card\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert manifest.machine()["gpus"] == ["One card", "Another card"]
    assert built.run("build", "tiny") == 0
    assert manifest.read(built.out)["gpus"] == ["One card", "Another card"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert manifest.machine()["gpus"] == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program.write_text("#!/bin/sh\necho no driver >&2\nexit 9\n")
    assert manifest.machine()["gpus"] == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest.machine()["gpus"] == []


def written():
    """What README.md and FINDINGS.md say."""
    return "\n".join(page.read_text() for page in PAGES)


@pytest.mark.parametrize("name", STUDIES)
def test_the_findings_on_the_pages_are_those_that_are_kept(name):
    """Between the marks stands what the tables beside the manifest say, and each table is the one that was
    kept."""
    kept, pages = ROOT / "figures" / name, written()
    for mark, table in ((name, keep.findings), *((f"{name}.{part}", table) for part, table in keep.PARTS.items())):
        begin, end = keep.BEGIN.format(mark), keep.END.format(mark)
        assert pages.partition(begin)[2].partition(end)[0].strip() == table(kept).strip()
    made = manifest.read(kept)
    hashed = {file: digest for figure in made["figures"] for file, digest in figure["files"].items()}
    assert {
        path.relative_to(kept).as_posix(): stamp.sha256(path) for path in kept.rglob("*.*") if path.parent != kept
    }.items() <= hashed.items()
    assert made["reproduce"] == f"python -m figures build {name}"
    assert sum(path.stat().st_size for path in kept.parent.glob("study*/**/*") if path.is_file()) < 20e6
    swept = {sweep["folder"]: sweep["sha256"] for sweep in made["sweeps"]}
    assert {Path(run["path"]).parent.as_posix() for figure in made["figures"] for run in figure["runs"]} == set(swept)
    assert all(len(digest) == 64 for digest in swept.values())
    asked = {book.name: book.file for book in sets.load(name, ROOT).notebooks}
    assert [book["name"] for book in made["notebooks"]] == list(asked), "the rows are those of the set"
    assert all(book["status"] == "built" for book in made["notebooks"])
    for book in (book for book in made["notebooks"] if asked[book["name"]] == "claims"):
        (figure,) = (f for f in made["figures"] if f["notebook"]["name"] == book["name"] and f["name"] == "claims")
        assert figure["runs"], "the models behind the numbers, by the hashes of their weights"
        assert all(len(run["checkpoint_sha256"]) == 64 for run in figure["runs"])
        table = pd.read_csv(kept / book["name"] / "claims.csv")
        seeds = {run["seed"] for run in figure["runs"]}
        assert set(table["seeds"]) <= {0, len(seeds)} and len(seeds) >= 3
        assert json.dumps(figure["files"]).count("claims.parquet") == 1


def test_the_verdicts_on_the_pages_are_those_of_all_kept_sets():
    pages = written()
    order = sorted((pages.find(keep.BEGIN.format(name)), name) for name in STUDIES)
    begin, end = keep.BEGIN.format(keep.ALL), keep.END.format(keep.ALL)
    table = pages.partition(begin)[2].partition(end)[0].strip()
    places = [ROOT / "figures" / name for place, name in order if place >= 0]
    assert table == keep.verdicts(places).strip()
    assert table.count("|---") == 8
    for claim in (f"C{number}" for number in range(1, 10)):
        begin, end = keep.BEGIN.format(f"{keep.ALL}.{claim}"), keep.END.format(f"{keep.ALL}.{claim}")
        assert pages.partition(begin)[2].partition(end)[0].strip() == keep.asked(places, claim).strip() != ""


GROUPS = {
    "digits": "study/claims-digits", "study": "study/claims-paper", "network": "study-cnn6/claims-cnn6",
    "clothes": "study-fashion-mnist/claims-fashion-mnist",
    "8/255": "study-fashion-mnist-eps8/claims-fashion-mnist-eps8",
}  # fmt: skip


KEPT = GROUPS | {
    f"8/255 {name}": f"study-fashion-mnist-{name}/claims-fashion-mnist-{name}" for name in ("epochs", "hybrids")
}  # the last group has three


def beyond(group, column, arm="SL"):
    """What each run of a group reads less what `arm` of the same seed does."""
    read = pd.read_csv(ROOT / "figures" / KEPT[group] / "runs.csv").pivot(index="seed", columns="arm", values=column)
    return read.sub(read[arm], axis=0)


def _heads_count_verdicts(lines):
    """The bold beginning of each line on a claim: its verdicts over the groups that have the arms."""
    tables = {name: pd.read_csv(ROOT / "figures" / place / "claims.csv") for name, place in KEPT.items()}
    for claim, line in lines.items():
        mine = [table[table["claim"] == claim] for name, table in tables.items() if claim == "C8" or name in GROUPS]
        counts = pd.Series([one["verdict"].iloc[0] for one in mine if one["difference"].notna().any()]).value_counts()
        said = dict(re.findall(r"(supported|contradicted|open) in (\w+)", line.partition("**")[0]))
        numbers = ("none", "one", "two", "three", "four", "five")
        assert said == {verdict: numbers[count] for verdict, count in counts.items()}, claim


def test_the_ten_lines_of_the_readme_say_what_the_tables_say():
    """What is written in words there, read off the tables: where one of these fails, a line has to be written anew."""
    text = PAGES[0].read_text()
    said = {line[:2]: line for line in re.findall(r"^- \*\*(C\d, .*)$", text, re.M)}
    for claim, words in {
        "C1": "of three times the epochs is not seen to gain; SL of two epochs, as accurate on clean images, gains",
        "C2": "with the study's settings and on Fashion-MNIST (in both balls), but that is confidence: so are SL's",
        "C3": "On Fashion-MNIST they are steadier, in both balls",
        "C4": "In the ball of 8/255 SL of two epochs shows all of it, and RL does not",
        "C5": "surer with the study's settings and on Fashion-MNIST (in both balls), and that is confidence again",
        "C6": "With the study's settings RL-adv is the less accurate under PGD and, barely, in the worst case (both",
        "C7": "With the study's network, where it is supported, it is supported of SL and each control too",
        "C8": "On digits they stay where SL left them",
        "C9": "not seen to add to that; but RL does not make directions less steady either",
    }.items():
        assert words in said[claim]
    _heads_count_verdicts(said)
    for name, claim, measured in (("study", "C2", "norm, cross"), ("clothes", "C2", "norm, cross"),
                                  ("8/255", "C2", "norm, cross"), ("study", "C4", "bend within the ball, cross"),
                                  ("study", "C5", ""), ("clothes", "C5", ""), ("8/255", "C5", ""),
                                  ("network", "C7", "")):  # fmt: skip
        controls = pd.read_csv((ROOT / "figures" / GROUPS[name]).joinpath("controls.csv"), na_filter=False)
        seen = controls[(controls["claim"] == claim) & controls["measured"].str.contains(measured, regex=False)]
        everyone = seen if claim == "C7" else seen[seen["place"] == "SL, RL's margins"]
        assert len(everyone) and set(everyone["reading"]) == {"there"}, f"{claim}: of the control too"
    tables = {
        name: pd.read_csv(ROOT / "figures" / place / "claims.csv", na_filter=False) for name, place in GROUPS.items()
    }
    runs = {name: pd.read_csv(ROOT / "figures" / place / "runs.csv") for name, place in GROUPS.items()}

    def lines(group, claim, *words):
        table = tables[group][tables[group]["claim"] == claim]
        chosen = [line for line in table.itertuples() if all(word in line.measured for word in words)]
        assert chosen, (group, claim, words)
        return chosen

    def verdicts(claim):
        return {name: lines(name, claim)[0].verdict for name in tables}

    missing = {name: {g for g, one in verdicts(name).items() if one == "contradicted"} for name in said}
    assert missing["C1"] == {"study", "clothes"} and missing["C5"] == {"network"}
    assert missing["C2"] == missing["C4"] == {"study", "clothes", "8/255"}
    assert all("supported" not in verdicts(name).values() for name in ("C1", "C2", "C4")), "the others are open"
    worst = {name: lines(name, "C1", "worst")[0] for name in tables}
    assert {name for name, line in worst.items() if line.reading == "there"} == {"8/255"}, "C1: seen in one group"
    assert all(float(line.low) <= 0 for name, line in worst.items() if name != "8/255")
    open_to = {name for name, line in worst.items() if float(line.high) > line.smallest}
    assert open_to == {"digits", "network", "8/255"}, "C1: in two others more is not excluded"
    assert runs["clothes"].query("arm in ('SL', 'RL')")["worst"].max() == 0, "C1: nothing to compare"
    size = {name: lines(name, "C2", "cross-entropy")[0].reading for name in tables}
    assert {name for name, reading in size.items() if reading == "there"} == {"study", "clothes", "8/255"}
    free = {name: lines(name, "C2", "margin / logits")[0] for name in tables}
    assert {name for name, line in free.items() if line.reading == "there"} == {"digits", "8/255"}
    assert set(verdicts("C3").values()) == {"contradicted"}
    for name, measured in (("8/255", "distance eps"), ("8/255", "step"), ("clothes", "step")):
        assert float(lines(name, "C3", measured)[0].high) < 0, "C3: steadier"
    bend = {name: [line.reading for line in lines(name, "C4", "bend")] for name in tables}
    assert bend["study"][0] == "there" and bend["clothes"] == ["not there", "there"], "C4: cross-entropy, margin"
    assert float(lines("clothes", "C4", "bend", "cross")[0].high) < 0, "C4: bends more"
    assert {name for name, one in verdicts("C5").items() if one == "supported"} == {"study", "clothes", "8/255"}
    assert verdicts("C6") == dict.fromkeys(tables, "open") | {"digits": "contradicted", "study": "contradicted"}
    low = {line.measured: float(line.high) for line in lines("study", "C6")}
    assert low["accuracy under PGD on the cross-entropy"] < 0, "C6: less accurate under PGD"
    assert -0.01 < low["accuracy in the worst case over all attacks"] < 0, "C6: barely, in the worst case"
    assert [verdicts("C7")[name] for name in ("network", "digits", "study")] == ["supported", "open", "open"]
    assert verdicts("C7")["clothes"] == verdicts("C7")["8/255"] == "contradicted"
    assert {name for name, one in verdicts("C8").items() if one != "open"} == {"digits"}
    assert verdicts("C9") == dict.fromkeys(tables, "contradicted") | {"8/255": "open"}
    assert (beyond("study", "worst", "SL-adv, 6 x epochs")["RL-adv"] < 0).all(), "C6: below SL-adv for as many epochs"


def test_what_is_said_of_sl_for_fewer_epochs():
    """In the ball of 8/255, in the lines on C1, C2 and C4."""
    text = written()
    assert "in the worst case in every seed, by six points on average, and by five under PGD (both seen)" in text
    table = pd.read_csv(ROOT / "figures" / GROUPS["8/255"] / "claims.csv")
    lines = table[table["claim"] == "C1"]  # under PGD, clean, in the worst case
    assert lines["reading"].tolist() == ["there", "unsure", "there"]
    assert (100 * lines["difference"]).round().tolist() == [5, -5, 6]
    gained = beyond("8/255", "worst")
    assert (gained["RL"] > 0).all() and not (gained["exact"] > 0).all() and abs(gained["exact"].mean()) < 0.01
    assert round(gained["SL, 2 epochs"].mean(), 2) == 0.1
    assert beyond("8/255", "clean", "RL")["SL, 2 epochs"].mean() >= 0, "C1: no less accurate on clean images"
    early = pd.read_csv(ROOT / "figures" / GROUPS["8/255"] / "controls.csv").query("place == 'SL, 2 epochs'")
    assert set(early[early["claim"] == "C4"]["verdict"]) == {"supported"}, "C4: SL of two epochs shows it whole"
    of_lengths = early[early["measured"] == "log10 gradient norm, margin / logits"].iloc[0]
    of_rl = table.loc[table["measured"] == of_lengths["measured"], "difference"].iloc[0]
    assert of_lengths["reading"] == "there" and of_lengths["difference"] > 2 * of_rl, "C2"


def test_what_is_said_of_single_seeds_is_what_they_read():
    """Where no interval is kept: the signs of the differences, seed by seed."""
    text = written()
    assert "RL-adv is below SL-adv in every seed; it ends there" in text
    below = -beyond("digits", "worst", "SL-adv")
    assert (below["RL-adv"] > 0).all()
    assert "which is below SL-adv in four seeds of five and level in one" in text
    assert sorted((below["exact-adv"] > 0).tolist()) == [False, *[True] * 4] and below["exact-adv"].min() == 0
    assert "above plain RL in one seed alone" in text
    assert (beyond("study", "worst", "RL")["RL-adv"] > 0).sum() == 1
    assert "than of SL's, by seven points on average and in every seed; fewer also of the noise-free" in text
    more = beyond("digits", "transfer")
    assert (more[["RL", "RL + entropy"]] > 0).all(axis=None)
    assert more[["RL", "RL + entropy"]].mean().round(2).tolist() == [0.07, 0.07]
    assert "trained for longer, but by two points and not in every seed" in text
    assert more[["exact", "SL, 6 x epochs"]].mean().round(2).tolist() == [0.02, 0.02]
    assert not (more[["exact", "SL, 6 x epochs"]] > 0).all().any()
    gains = [beyond(name, "worst", "RL")["SL, 2 epochs"].mean() for name in ("8/255", "8/255 epochs")]
    assert (100 * pd.Series(gains)).round(2).tolist() == [3.5, 3.25]
    assert "in every seed and on either loss, by three to seven and a half points, five on average" in text
    assert "under PGD (seen, and in every seed), by three to three and a half in the worst case, where the" in text
    trained = pd.read_csv(ROOT / "figures/study-fashion-mnist-eps8/training-fashion-mnist-eps8/accuracy.csv")
    left = trained[trained["attack"] != "clean"].pivot(index=["attack", "seed"], columns="arm", values="accuracy")
    gained = left["RL"] - left["SL"]
    assert [round(gained.min(), 2), round(gained.max(), 3)] == [0.03, 0.075]
    assert gained.groupby("attack").mean().round(2).tolist() == [0.05, 0.05]
    assert (left["SL, 2 epochs"] > left["RL"]).all()
    assert "by nine points on average and in every seed, of SL of two epochs by ten and in every seed too" in text
    more = beyond("8/255", "transfer")[["RL", "SL, 2 epochs", "exact"]]
    assert more.mean().round(2).tolist() == [0.09, 0.1, -0.01]
    assert (more > 0).all().tolist() == [True, True, False]
    assert "in the customary ball on two seeds of three, in that of 8/255 on four of five" in text
    for name, seeds in (("clothes", 2), ("8/255", 4)):
        longer = beyond(name, "distance") > 0
        assert longer["RL"].all() and longer["exact"].sum() == seeds
    assert (beyond("8/255", "distance", "RL")["SL, 2 epochs"] > 0).all(), "longer still"
    assert "those of hybrids and of L_q are longer than SL's in every seed" in text
    assert (beyond("8/255 hybrids", "distance")[["SL 7, RL 3", "SL 5, RL 5", "SL 3, RL 7", "Lq"]] > 0).all(axis=None)
    assert "leaves RL more than SL in four seeds of five, by three points on average, and SL of two epochs more" in text
    square = beyond("8/255", "square")
    assert (square["RL"] > 0).sum() == 4 and round(square["RL"].mean(), 2) == 0.03
    assert (square["SL, 2 epochs"] > square["RL"]).all()
    assert "of SL of two epochs are the largest of all, three times SL's, its models are the least sure" in text
    read = pd.read_csv(ROOT / "figures" / GROUPS["8/255"] / "runs.csv").groupby("arm").mean()
    assert read["norm"].idxmax() == read["entropy"].idxmax() == "SL, 2 epochs"
    assert 3 < 10 ** (read["norm"]["SL, 2 epochs"] - read["norm"]["SL"]) < 3.5
    assert "the perturbations found from two starts agree better, both in every seed" in text
    spread = pd.read_csv(ROOT / "figures/study-fashion-mnist-eps8/dynamics-fashion-mnist-eps8/dispersion.csv")
    spread = spread.pivot(index="seed", columns="arm")
    assert (spread["path_dispersion"]["RL"] < spread["path_dispersion"]["SL"]).all()
    assert (spread["restart_agreement"]["RL"] > spread["restart_agreement"]["SL"]).all()


def test_what_is_said_of_the_largest_eigenvalues():
    text = written()
    assert "largest eigenvalue is smaller on RL's model on digits at one budget and among those measured in the" in text
    for name, is_smaller in (("study/curvature", True), ("study/curvature-paper", False),
                             ("study-cnn6/curvature-cnn6", False),
                             ("study-fashion-mnist/curvature-fashion-mnist", False),
                             ("study-fashion-mnist-eps8/curvature-fashion-mnist-eps8", True)):  # fmt: skip
        largest = pd.read_csv(ROOT / "figures" / name / "density.csv").groupby("arm")["eigenvalue"].max()
        assert (largest["RL"] < largest["SL"]) == is_smaller
    assert largest["SL, 2 epochs"] > largest["SL"], "the last of them: larger on SL of two epochs"
    beside = pd.read_csv(ROOT / "figures/study-fashion-mnist-hybrids/curvature-fashion-mnist-hybrids/density.csv")
    largest = beside.groupby("arm")["eigenvalue"].max()
    assert set(largest[largest > largest["SL"]].index) == {"SL 7, RL 3", "SL 5, RL 5", "SL 3, RL 7", "Lq"}


def test_what_is_said_of_fewer_and_more_epochs():
    """RL's gain in the ball of 8/255 goes with more epochs, and SL for fewer has it: intervals of pairs of arms."""
    kept = ROOT / "figures/study-fashion-mnist-epochs/claims-fashion-mnist-epochs"
    pairs = pd.read_csv(kept / "pairs.csv")
    attacked, clean, worst = pairs["measured"].unique()
    pairs = pairs.set_index(["arm", "other", "measured"]).sort_index()

    def seen(arm: str, other: str, measured: str) -> tuple[int, int]:
        """The difference in points, and its sign if the interval leaves out 0."""
        line = pairs.loc[(arm, other, measured)]
        return round(100 * line["difference"]), int(line["low"] > 0) - int(line["high"] < 0)

    few, six, more = "SL, 2 epochs", "SL, 6 epochs", "RL, 3 x epochs"
    assert seen("RL", "SL", worst) == (6, 1) and seen("RL", "SL", attacked) == (5, 1), "the same as in the other set"
    assert seen(more, "RL", clean) == (3, 1) and seen(more, "SL", clean) == (-2, 0)
    assert seen(more, "RL", worst) == (-9, -1) and seen(more, "RL", attacked) == (-6, -1), "below RL of ten"
    assert seen(six, "SL", worst) == (4, 1) and seen(six, "SL", attacked) == (4, 1), "above SL of ten"
    assert seen(more, "SL", worst) == (-2, 0) and seen(more, "SL", attacked) == (-1, 0), "not seen above SL"
    assert (pairs.loc[(more, "SL")]["high"][[attacked, worst]] < 0.05).all(), "five points are excluded"
    assert seen(few, "RL", attacked) == (6, 1)
    assert seen(few, "RL", worst) == (3, 0) and seen(few, "RL", clean) == (0, 0)
    assert seen(six, more, attacked) == (5, 1) and seen(six, more, worst) == (6, 1) and seen(six, more, clean) == (1, 0)
    controls = pd.read_csv(kept / "controls.csv").query("claim == 'C1'").groupby("place")["verdict"].first()
    assert controls[[six, more, few]].tolist() == ["supported", "contradicted", "open"]
    lines = pd.read_csv(kept / "controls.csv").set_index(["place", "measured"]).sort_index()
    for name in ("cross-entropy", "margin / logits"):
        assert (lines.loc[[(six, f"log10 bend within the ball, {name}")], "low"] > 0).all(), "both bend less"
    smaller = lines["difference"].xs("log10 gradient norm, margin / logits", level="measured")
    assert smaller["RL"] < 2 * smaller[six] < 2 * smaller["RL"] < smaller[few] and smaller[six] > 0.8 * smaller["RL"]
    runs = pd.read_csv(kept / "runs.csv").pivot(index="seed", columns="arm")
    assert (runs["worst"][six] > runs["worst"][more]).all() and (runs["pgd"][six] > runs["pgd"][more]).all()
    assert (runs["square"][more] < runs["square"]["SL"]).all(), "Square breaks it sooner"
    missed = (100 * (runs["pgd"] - runs["worst"]).mean()).round().astype(int)
    assert missed[[more, "RL"]].tolist() == [6, 3] and set(missed[["SL", few, six]]) <= {4, 5}
    assert runs["pgd_margin"][more].mean() >= runs["pgd"][more].mean(), "PGD on the margin leaves no less"
    assert round(100 * (runs["square"]["SL"] - runs["square"][more]).mean()) == 7
    assert (runs["worst"][few] < runs["worst"]["RL"]).sum() == 1, "one seed of five is below by an image"
    assert (runs["worst"][few] - runs["worst"]["RL"]).min() == pytest.approx(-1 / 320, abs=1e-6)
    assert 190 < 10 ** (runs["norm"]["SL"] - runs["norm"][more]).mean() < 210


def test_what_is_said_of_hybrids_in_the_small_ball():
    """Each gains over SL for about a point on clean images; L_q has as small gradients and does not; SL of fewer epochs
    gains too."""
    kept = ROOT / "figures/study-fashion-mnist-hybrids/claims-fashion-mnist-hybrids"
    pairs = pd.read_csv(kept / "pairs.csv")
    attacked, clean, worst = pairs["measured"].unique()
    above = pairs[pairs["other"] == "SL"].pivot(index="measured", columns="arm", values=["difference", "low", "high"])
    hybrids = ["SL 7, RL 3", "SL 5, RL 5", "SL 3, RL 7"]
    for line in (attacked, worst):
        low, high = above["low"].loc[line, hybrids], above["high"].loc[line, hybrids]
        assert (low > 0).all() and (high >= 0.05).all(), "C1, as its rules say"
        assert (100 * above["difference"].loc[line, hybrids]).round().is_monotonic_increasing
    assert (above["low"].loc[clean, hybrids] > -0.05).all(), "C1 whole"
    gains = (100 * above["difference"].loc[[attacked, worst], hybrids]).round()
    assert (gains.min(axis=None), gains.max(axis=None)) == (3, 6)
    assert (100 * above["difference"].loc[clean, [*hybrids, "RL"]]).round().tolist() == [-1, -1, -1, -3]
    assert above["difference"].loc[worst, "SL 3, RL 7"] == pytest.approx(above["difference"].loc[worst, "RL"], abs=1e-3)
    assert above["low"].loc[worst, "Lq"] < 0 < above["high"].loc[worst, "Lq"] < 0.03
    bonus = above.loc[worst].unstack()["RL + entropy"]
    assert round(100 * bonus["difference"]) == 5 and bonus["low"] < 0
    claims = pd.read_csv(kept / "claims.csv").query("claim == 'C8'").set_index("measured")
    assert claims["verdict"].unique().tolist() == ["contradicted"]
    assert claims["reading"].tolist() == ["unsure", "there", "not there", "there"]
    assert round(100 * claims.loc[clean, "low"]) == -3 and claims["high"].iloc[2] < 0, "margin / logits: larger"
    runs = pd.read_csv(kept / "runs.csv").pivot(index="seed", columns="arm")
    for column in ("worst", "pgd", "square"):
        assert runs[column][hybrids].gt(runs[column]["SL"], axis=0).all(axis=None), "in every seed"
    square = (100 * runs["square"][hybrids].sub(runs["square"]["SL"], axis=0).mean()).round()
    assert (square.min(), square.max()) == (5, 7)
    smaller = 10 ** -runs["norm"].sub(runs["norm"]["SL"], axis=0).mean()
    assert smaller[hybrids].round().tolist() == [4, 10, 25] and round(smaller["Lq"]) == 16
    assert runs["clean"][hybrids].gt(runs["clean"]["RL"], axis=0).all(axis=None), "less than RL in every seed"
    assert above["low"].loc[worst, "RL"] > 0 > above["low"].loc[attacked, "RL"]
    assert (100 * above["difference"].loc[[worst, attacked], "RL"]).round().tolist() == [6, 4]
    attack = pd.read_csv(kept.with_name("robustness-fashion-mnist-hybrids") / "families.csv")
    attack = attack.query("attack == 'AutoAttack' and ran == 'alone'").set_index("arm")["robust_accuracy"]
    assert (attack[hybrids] > attack["SL"]).all()
    turns = runs["local_cosine"].mean()
    assert (turns[hybrids] - turns["SL"]).abs().max() < 0.01
    left = [
        pd.read_csv(ROOT / f"figures/study-fashion-mnist-{name}/training-fashion-mnist-{name}/accuracy.csv")
        .pivot(index=["attack", "seed"], columns="arm", values="accuracy") for name in ("hybrids", "epochs")
    ]  # fmt: skip
    assert (left[0][["SL", "RL"]] == left[1][["SL", "RL"]]).all(axis=None), "the same models on the same images"
    more = left[0][hybrids].sub(left[1]["SL, 6 epochs"], axis=0)
    means = (100 * more.groupby("attack").mean()).round()
    assert means.loc["PGD, cross-entropy"].tolist() == [0, 1, 2] and means.loc["PGD, margin"].iloc[2] == 3
    few = (-left[0][hybrids]).add(left[1]["SL, 2 epochs"], axis=0).drop("clean").loc["PGD, cross-entropy"]
    assert (few > 0).all(axis=None) and (100 * few.mean()).round().tolist() == [6, 5, 4]
    assert means.loc["clean"].abs().max() == 0 and more.drop("clean")["SL 3, RL 7"].min() >= 0


def test_all_arms_of_the_study_but_one_are_usable_and_what_is_masked_on_purpose_is_not():
    """The README's line on masking, which says of one that it is called suspect alone."""
    found = pd.concat(map(pd.read_csv, (ROOT / "figures").glob("study*/masking*/gaps.csv")))
    planted = found["model"].str.contains("x 1000|grey levels")
    doubtful = found[~planted & (found["verdict"] != "usable")]
    assert doubtful[["model", "verdict"]].to_numpy().tolist() == [["RL, 3 x epochs", "suspect"]]
    assert (100 * doubtful[["gap", "low", "high"]]).round().to_numpy().tolist() == [[11, 5, 21]]
    assert sorted(found.loc[planted, "verdict"].value_counts().items()) == [("masked", 13), ("suspect", 1)]


def test_three_arms_are_usable_by_one_image_and_one_is_suspect_by_one():
    """What an image more, or fewer, that plain PGD misses would have made of each arm."""
    fragile = set()
    for file in (ROOT / "figures").glob("study*/masking*/gaps.csv"):
        (book,) = (b for b in manifest.read(file.parents[1])["notebooks"] if b["name"] == file.parent.name)
        samples = book["parameters"]["samples"]
        for line in pd.read_csv(file).itertuples():
            missed = round(line.gap * samples)
            assert wilson(missed, samples) == pytest.approx((line.low, line.high), abs=1e-5)
            other = missed + (1 if line.verdict == "usable" else -1)
            if (wilson(missed, samples)[0] > LARGE) != (wilson(max(other, 0), samples)[0] > LARGE):
                fragile.add((file.parent.name, line.model, line.verdict))
    assert fragile == {
        ("masking-paper", "RL-adv", "usable"), ("masking-fashion-mnist", "SL-adv", "usable"),
        ("masking-fashion-mnist-hybrids", "SL 5, RL 5", "usable"),
        ("masking-fashion-mnist-epochs", "RL, 3 x epochs", "suspect"),
    }  # fmt: skip


def test_a_table_that_does_not_say_what_the_families_left_is_refused(built, capsys):
    built.notebook("two", built.figure("families"), BROKEN.replace("found on families", "found on others"))
    assert built.build() == 0
    assert built.run("keep", "tiny") == 0, "nothing is read off it"
    readme = built.root / "README.md"
    readme.write_text("<!-- figures.tiny.suite -->\nold\n<!-- /figures.tiny.suite -->\n")
    assert built.run("keep", "tiny", "--readme") == 2
    assert "families.csv has no row 'found on families' for each arm" in capsys.readouterr().err
    assert "old" in readme.read_text()


def _anchors(page):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_lead_to_what_is_there(page):
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in target]
    assert len(targets) > 10
    for file, _, anchor in (target.partition("#") for target in targets):
        assert (page.parent / file).exists(), file
        assert not anchor or anchor in _anchors(page.parent / file if file else page), anchor


READ = {  # what a line of a claim reads, as runs.csv calls it
    "accuracy under PGD on the cross-entropy": "pgd", "clean accuracy": "clean",
    "accuracy in the worst case over all attacks": "worst", "accuracy under queries (Square)": "square",
    "log10 gradient norm, cross-entropy": "norm", "log10 gradient norm, margin": "norm_margin",
    "log10 gradient norm, margin / logits": "norm_free", "cosine from step to step, cross-entropy": "cosine",
    "cosine at the distance eps, margin": "local_cosine", "log10 bend within the ball, cross-entropy": "bend",
    "log10 bend within the ball, margin / logits": "bend_free", "rise of the error around the weights": "weights",
    "entropy at the image, nats": "entropy", "entropy after PGD, nats": "entropy_attacked",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [f"study/claims-{group}" for group in ("digits", "paper")]
    + ["study-cnn6/claims-cnn6", "study-fashion-mnist/claims-fashion-mnist"]
    + [f"study-fashion-mnist-{one}/claims-fashion-mnist-{one}" for one in ("eps8", "epochs", "hybrids")],
)
def test_kept_claims_are_the_differences_of_what_each_run_reads(name):
    """The claims table against the readings of the single runs beside it: another file, joined by arm alone."""
    kept = ROOT / "figures" / name
    means = pd.read_csv(kept / "runs.csv").groupby("arm").mean(numeric_only=True)
    claims, controls = pd.read_csv(kept / "claims.csv"), pd.read_csv(kept / "controls.csv")
    own, asked = (table.groupby("claim")["verdict"].first() for table in (claims, controls.query("place == 'RL'")))
    assert len(asked) and asked.equals(own[asked.index]), "RL in its own place"
    # groups that were built before there were such tables have none
    beside = [pd.read_csv(path) for path in (kept / "beyond.csv", kept / "pairs.csv") if path.is_file()]
    assert len(beside) == 2 or not name.endswith(("epochs", "hybrids"))
    if beside:
        pairs = beside.pop().set_index(["measured", "arm", "other"])[["difference", "low", "high"]]
        assert len(pairs) == 3 * len(means) * (len(means) - 1)
        for (measured, arm, other), pair in pairs.iterrows():
            assert pair["difference"] == pytest.approx(
                means[READ[measured]][arm] - means[READ[measured]][other], abs=2e-5
            )
            assert (-pairs.loc[measured, other, arm]).tolist() == pytest.approx(
                pair[["difference", "high", "low"]].tolist()
            )
    lines = pd.concat([claims, controls, *beside])
    seen = 0
    for line in lines.rename(columns={"difference of": "arms"}).itertuples():
        a, _, b = line.arms.partition(" - ")
        if line.measured in READ and {a, b} <= set(means.index):
            column = means[READ[line.measured]]
            assert line.difference == pytest.approx(column[a] - column[b], abs=2e-5 * max(1, abs(column[a])))
            seen += 1
    assert seen > 15


MASKED = """
from pathlib import Path
import pandas as pd
rows = [("SL", "usable", 0.02, 0.01, 0.1), ("RL", "suspect", 0.25, 0.125, 0.5), ("SL-adv", "usable", 0.0, 0.0, 0.1),
        ("SL x 1000", "masked", 0.5, 0.4, 0.6)]
gaps = pd.DataFrame(rows, columns=["model", "verdict", "gap", "low", "high"])
gaps.to_parquet(Path(out) / "gaps.parquet")
"""
JUDGED = """\
| group | usable | suspect | masked | of what is not masked, the most that plain PGD misses |
|---|---|---|---|---|
| A place | SL; SL-adv | RL | SL x 1000 | 25.0% [12.5%, 50.0%], RL |
"""


BROKEN = """
from pathlib import Path
import pandas as pd
rows = [("PGD", 8, 5, "SL", "alone"), ("PGD", 7, 3, "RL", "alone"),
        ("found on families", 8, 5, "SL", "on what was left"), ("nes", 3, 0, "SL", "on what was left"),
        ("square", 3, 2, "SL", "on what was left"), ("found on families", 7, 3, "RL", "on what was left"),
        ("nes", 4, 0, "RL", "on what was left"), ("found on SL", 4, 1, "RL", "on what was left")]
families = pd.DataFrame(rows, columns=["attack", "met", "broke", "arm", "ran"])
families.to_parquet(Path(out) / "families.parquet")
"""
BEYOND = """\
| group | models | right, all models together | of these families broke | then a suite broke | by |
|---|---|---|---|---|---|
| A place | 2 | 15 | 8 | 3 | square: 2 of "SL"; found on SL: 1 of "RL" |
"""


@pytest.mark.parametrize(
    ("name", "figures", "source", "table"),
    [
        ("training", ("accuracy", "training_curves"), TRAINED, LEARNED),
        ("masking", ("gaps",), MASKED, JUDGED),
        ("suite", ("families",), BROKEN, BEYOND),
    ],
)
def test_what_was_trained_and_judged_is_read_off_its_tables_too(built, capsys, name, figures, source, table):
    built.notebook("two", *map(built.figure, figures), source)
    assert built.build() == 0
    marks = "<!-- figures.tiny{0} -->\nold\n<!-- /figures.tiny{0} -->\n"
    readme = built.root / "README.md"
    readme.write_text(marks.format("") + marks.format(f".{name}"))
    assert built.run("keep", "tiny", "--readme") == 0
    assert readme.read_text() == (
        "<!-- figures.tiny -->\n<!-- /figures.tiny -->\n"
        f"<!-- figures.tiny.{name} -->\n{table}<!-- /figures.tiny.{name} -->\n"
    )
    readme.write_text(marks.format(f".{name}"))  # no claims, no place for them
    assert built.run("keep", "tiny", "--readme") == 0
    assert readme.read_text() == f"<!-- figures.tiny.{name} -->\n{table}<!-- /figures.tiny.{name} -->\n"
    readme.write_text(broken := marks.format("") + f"<!-- figures.tiny.{name} -->\nno end")
    capsys.readouterr()
    assert built.run("keep", "tiny", "--readme") == 2
    assert f"has no <!-- figures.tiny.{name} --> ... <!-- /figures.tiny.{name} -->" in capsys.readouterr().err
    assert readme.read_text() == broken
