"""A small repository in a temporary folder: tiny notebooks that write figures by hand, in the agreed format."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from figures import manifest
from figures.__main__ import main

STUDIES = sorted(path.stem for path in (Path(__file__).parents[2] / "figures" / "sets").glob("study*.toml"))
PNG = bytes.fromhex(  # one white pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe0def46b8"
    "0000000049454e44ae426082"
)
PARAMETERS = """\
runs = "runs/tiny"  # folder of trained runs
samples: int = 4  # images measured; n = 4 is a test
level: float = 0.5
others = ""
out = "nowhere"
"""
FIGURE = """\
import hashlib, json, os, pathlib
folder = pathlib.Path(out)
run = pathlib.Path(runs) / "sl-0"
(folder / "{name}.png").write_bytes(bytes.fromhex("{png}"))
(folder / "{name}.pdf").write_bytes(b"%PDF-1.4")
(folder / "{name}.parquet").write_bytes(b"PAR1" + bytes(samples))
(folder / "{name}.json").write_text(json.dumps(dict(
    name="{name}", title="Title of {name}", caption="Caption of {name}", alt="Alt of {name}", data="{name}.parquet",
    runs=[json.loads((run / "run.json").read_text()) | dict(path=str(run.resolve()),
          checkpoint_sha256=hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest())],
    made=dict(threads=os.environ["OMP_NUM_THREADS"], level=level, backend=os.environ["MPLBACKEND"]), order=1)))
"""  # fmt: skip
SET = """\
title = "A tiny set"
about = "Two notebooks and one run."
[parameters]
runs = "runs/tiny"
samples = 3
[[notebook]]
name = "one"
[[notebook]]
name = "two"
parameters = { level = 1 }
[profiles.smoke]
parameters = { samples = 1 }
"""


@dataclass(frozen=True)
class House:
    """A repository with the set `tiny` of the notebooks one and two, and a run whose name is hostile."""

    root: Path

    @property
    def out(self) -> Path:
        return self.root / "figures" / "out" / "tiny"

    @property
    def checkpoint(self) -> Path:
        return self.root / "runs" / "tiny" / "sl-0" / "model.safetensors"

    def run(self, *words: str) -> int:
        """The exit code of a command line."""
        return main(words, root=self.root)

    def build(self, *words: str) -> int:
        return self.run("build", "tiny", *words)

    def manifest(self) -> dict[str, Any]:
        return manifest.read(self.out)

    def page(self) -> str:
        return (self.out / "index.html").read_text()

    def stamps(self) -> dict[str, str]:
        """A hash for each built notebook, another one once it is built again."""
        return {path.parent.name: self.sha256(path) for path in self.out.glob("*/stamp.json")}

    def notebook(self, name: str, *code: str, parameters: str = PARAMETERS) -> Path:
        """Write a notebook with a `parameters` cell and these cells."""
        first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters")
        cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(code)]
        heading = nbformat.v4.new_markdown_cell(f"# About {name}", id="heading")
        path = self.root / "notebooks" / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=[heading, first, *cells]), path)
        return path

    def edit_set(self, old: str, new: str) -> None:
        """Replace a piece of the set's file, which must be there."""
        path = self.root / "figures" / "sets" / "tiny.toml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    @staticmethod
    def figure(name: str) -> str:
        """The source of a cell that publishes a figure."""
        return FIGURE.replace("{name}", name).replace("{png}", PNG.hex())

    @staticmethod
    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return furnish(House(tmp_path / "house {0}"))  # papermill takes a bare path for a template


def furnish(made: House) -> House:
    """Write the set, its notebooks and the run."""
    for folder in ("runs/tiny/sl-0", "notebooks", "figures/sets"):
        (made.root / folder).mkdir(parents=True)
    made.checkpoint.write_bytes(b"weights")
    said = {"name": "<script>alert(1)</script>", "seed": 0, "schedule": "sl:1"}
    made.checkpoint.with_name("run.json").write_text(json.dumps(said))
    for name in ("one", "two"):
        made.notebook(name, made.figure(f"{name}_figure"))
    (made.root / "figures" / "sets" / "tiny.toml").write_text(SET)
    return made


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
