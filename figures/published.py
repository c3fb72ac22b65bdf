"""What a notebook leaves in its output folder: for each figure `<name>.png` and, beside it, `<name>.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "name": str, "title": str, "caption": str, "alt": str, "runs": list, "made": dict, "order": (int, float),
    "data": (str, type(None)), "table": (dict, type(None)),
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One figure and what it says of itself."""

    name: str
    title: str
    caption: str
    alt: str
    data: str | None  # file name of the numbers behind the figure
    files: tuple[str, ...]  # all files of the figure, the picture first
    runs: tuple[Mapping[str, Any], ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)
    order: float = 0
    table: Mapping[str, Any] | None = None  # columns: names; rows: a text a column; shown under the picture


def published(folder: Path) -> list[Figure]:
    """The figures of a folder in their order. ValueError names the one that is not as agreed, and how."""
    found = [_figure(png) for png in sorted(folder.glob("*.png")) if png.with_suffix(".json").exists()]
    return sorted(found, key=lambda figure: (figure.order, figure.name))


def _figure(png: Path) -> Figure:
    record = png.with_suffix(".json")
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"figure {png.stem}: {record.name} is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"figure {png.stem}: {record.name} is a {type(said).__name__}, expected an object")
    said = {"data": None, "table": None, "runs": [], "made": {}, "order": 0, **said}
    for key, kind in FIELDS.items():
        if not isinstance(said.get(key), kind):
            raise ValueError(f"figure {png.stem}: {key} is {said.get(key)!r}, expected {kind}")
    if said["name"] != png.stem:
        raise ValueError(f"figure {png.stem}: {record.name} names it {said['name']!r}")
    if not all(isinstance(run, dict) and isinstance(run.get("name"), str) for run in said["runs"]):
        raise ValueError(f"figure {png.stem}: runs is {said['runs']!r}, expected objects with a name")
    if said["table"] is not None and not _is_table(said["table"]):
        raise ValueError(f"figure {png.stem}: table is {said['table']!r}, expected columns and rows of as many texts")
    if png.stem == "stamp":
        raise ValueError("a figure is named 'stamp', and stamp.json is the build's own file; give it another name")
    # a figure may have the name of its notebook, which is there as .ipynb and .html
    others = (p for p in png.parent.glob("*") if p.stem == png.stem and p.suffix not in (".ipynb", ".html"))
    beside = sorted(p.name for p in others if p != png)
    files = [png.name, *beside]
    if said["data"] is not None and said["data"] not in files:
        raise ValueError(f"figure {png.stem}: data is {said['data']!r}, expected one of the figure's files or null")
    return Figure(files=tuple(files), runs=tuple(said["runs"]), **{k: said[k] for k in FIELDS if k != "runs"})


def _is_table(said: Mapping[str, Any]) -> bool:
    columns, rows = said.get("columns"), said.get("rows")
    if not (isinstance(columns, list) and isinstance(rows, list)):
        return False
    lists = [columns, *rows]
    return all(isinstance(row, list) and len(row) == len(columns) for row in lists) and all(
        isinstance(cell, str) for row in lists for cell in row
    )
