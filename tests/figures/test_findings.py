"""What pages say of kept sets is read off their tables."""

import json
import shutil

import pytest

from figures import manifest, stamp
from tests.figures.conftest import FOUND, LINES, PARAMETERS

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
| A place (3 seeds, 12 images) | **contradicted** | +0.200 [+0.100, +0.300] there, likewise exact | \
+0.000 [-0.010, +0.010] not there |
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
    """Where a line may be there on two sides, on its own; a claim that is not measured, or not known, has no table."""
    two_sided = LINES.replace(".assign(", '.assign(expected="beyond +-0.05", ')
    built.notebook("two", built.figure("claims"), built.figure("controls"), two_sided, PLACES)
    assert built.build() == 0
    readme = built.root / "README.md"
    marks = "".join(f"<!-- figures.*.{one} -->\n<!-- /figures.*.{one} -->\n" for one in ("C1", "C2", "C7"))
    readme.write_text(f"<!-- figures.* -->\n<!-- /figures.* -->\n{marks}{readme.read_text()}")
    assert built.run("keep", "tiny", "--readme") == 0
    empty = "".join(f"<!-- figures.*.{one} -->\n<!-- /figures.*.{one} -->\n" for one in ("C2", "C7"))
    assert f"<!-- figures.*.C1 -->\n{ASKED}<!-- /figures.*.C1 -->\n{empty}" in readme.read_text()
    built.notebook("two", built.figure("claims"), built.figure("controls"), LINES, PLACES)
    assert built.build() == 0
    assert built.run("keep", "tiny", "--readme") == 0
    assert ASKED.replace("likewise exact", "likewise exact / Lq") in readme.read_text()


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


def test_a_table_that_does_not_say_what_the_families_left_is_refused(built, capsys):
    built.notebook("two", built.figure("families"), BROKEN.replace("found on families", "found on others"))
    assert built.build() == 0
    assert built.run("keep", "tiny") == 0, "nothing is read off it"
    readme = built.root / "README.md"
    readme.write_text("<!-- figures.tiny.suite -->\nold\n<!-- /figures.tiny.suite -->\n")
    assert built.run("keep", "tiny", "--readme") == 2
    assert "families.csv has no row 'found on families' for each arm" in capsys.readouterr().err
    assert "old" in readme.read_text()


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
