"""What is kept of a set: whole, small, traceable."""

import io
import json
import platform
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from figures import findings, keep, manifest, stamp
from tests.figures.conftest import FOUND, TABLE


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


def test_a_table_of_many_samples_is_left_to_the_build(built, monkeypatch):
    monkeypatch.setattr(keep, "LARGEST", 200)
    assert built.run("keep", "tiny") == 0
    assert not list((built.root / "figures" / "tiny").rglob("claims.csv"))
    assert findings.claims(built.root / "figures" / "tiny") == ""


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
    whole, said = pd.read_csv(kept / "two" / "training_curves.csv"), findings.trained(kept)
    assert len(whole) == 26
    monkeypatch.setattr(keep, "LARGEST", 500)
    assert built.run("keep", "tiny") == 0
    few = pd.read_csv(kept / "two" / "training_curves.csv")
    assert few[["run", "epoch", "seconds"]].to_numpy().tolist() == [
        ["SL0", 4, 10.0], ["SL0", 8, 26.0], ["SL1", 4, 10.0], ["SL1", 8, 26.0],
        ["RL0", 4, 10.0], ["RL0", 8, 26.0], ["RL0", 10, 19.0],
    ]  # fmt: skip
    assert few["loss"].tolist() == pytest.approx([0.5**epoch for epoch in few["epoch"]])
    assert findings.trained(kept) == said and "| 8 | 36 |" in said and "| 10 | 55 |" in said


TWICE = """
from pathlib import Path
import pandas as pd
for name, value in (("first", 1), ("other", 2), ("second", 1)):
    pd.DataFrame({"a": [value]}).to_parquet(Path(out) / f"{name}.parquet")
"""


def test_figures_of_a_notebook_with_one_table_share_its_file(built):
    built.notebook("two", *map(built.figure, ("first", "other", "second")), TWICE)
    assert built.build() == 0
    kept = built.root / "figures" / "tiny"
    for _ in range(2):
        assert built.run("keep", "tiny") == 0
        assert sorted(path.stem for path in (kept / "two").glob("*.csv")) == ["first", "other"]
        said = {figure["name"]: figure["files"] for figure in manifest.read(kept)["figures"]}
        for name, file in (("first", "first"), ("other", "other"), ("second", "first")):
            (table,) = (path for path in said[name] if path.endswith(".csv"))
            assert table == f"two/{file}.csv" and said[name][table] == built.sha256(kept / table)
        shutil.rmtree(built.out)  # the other notebook is carried over next
        assert built.build("--only", "one") == 0


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
    assert findings.claims(kept) == ""
