"""A figure on disk, with the data behind it and how it was made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from pandas import DataFrame

from ..provenance import Made, versions
from ..store import write

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as PlotlyFigure


def publish(
    fig: Figure,
    name: str,
    data: DataFrame | None,
    caption: str,
    *,
    out: str | Path,
    runs: Sequence[Mapping[str, Any]] = (),
    made: Made | None = None,
    alt: str | None = None,
    title: str | None = None,
    interactive: "PlotlyFigure | None" = None,
    table: DataFrame | None = None,
) -> Figure:
    """Keep a figure in `out`: `name`.png, .pdf, .parquet (the data behind it), .json (caption, runs, how it was made).

    An empty `out` keeps nothing, as when a notebook is read by hand. `caption` is a paragraph for a paper; `alt`, for
    those who cannot see the picture, is the caption if not given; `runs` name the checkpoints behind the figure;
    `title` is made of the name if not given. `interactive`, a plotly figure of the same data, is kept as `name`.plotly
    (JSON) for galleries, where it can be turned. `table` is shown there under the picture, as words: short ones only.
    Raises ValueError for a name that is no plain file name.
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"name is {name!r}, expected letters, digits, '-' and '_' only")
    if not str(out):
        return fig
    folder = Path(out)
    place = folder / f"{name}.json"
    # a figure that is drawn again keeps its place among the others
    order = json.loads(place.read_text())["order"] if place.is_file() else len(list(folder.glob("*.json")))
    for kind in ("png", "pdf"):
        content = BytesIO()
        # without a date the same figure is the same bytes
        fig.savefig(content, format=kind, metadata={"CreationDate": None} if kind == "pdf" else {"Software": None})
        write(folder / f"{name}.{kind}", content.getvalue())
    if interactive is not None:
        write(folder / f"{name}.plotly", str(interactive.to_json()).encode())
    if data is not None:
        write(folder / f"{name}.parquet", data.to_parquet(index=False))
    record = {
        "name": name,
        "title": title or name.replace("_", " ").capitalize(),
        "caption": caption,
        "alt": alt or caption,
        "data": None if data is None else f"{name}.parquet",
        "table": None if table is None else _words(table),
        "sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.glob(f"{name}.*"))
            if path != place
        },
        "runs": [dict(run) for run in runs],
        "order": order,
        "made": asdict(made) if made else {"versions": versions(), "threads": torch.get_num_threads()},
    }
    write(place, (json.dumps(record, indent=2) + "\n").encode())
    return fig


def _words(table: DataFrame) -> dict[str, list[Any]]:
    """A table as JSON: names of columns, rows of strings."""
    rows = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.to_numpy()]
    return {"columns": [str(name) for name in table.columns], "rows": rows}
