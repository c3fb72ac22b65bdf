"""The gallery of a set: one page that holds its pictures and needs no network. Only reliefs that turn need a script."""

import base64
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from figures import manifest, stamp


def write(out: Path) -> Path:
    """Make `index.html` from what lies in a set's folder. ValueError where the folder holds no build."""
    page = out / "index.html"
    stamp.replace(page, render(manifest.read(out), out))
    return page


def render(found: Mapping[str, Any], out: Path) -> str:
    """The page for a manifest. Every name and text in it is escaped; only pictures come from the folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"clock": clock, "moment": moment, "short": short}
    sections = [_section(book, found, out) for book in found["notebooks"]]
    turns = any(figure["relief"] for section in sections for figure in section["figures"])
    return environment.get_template("gallery.html").render(
        found=found, sections=sections, runs=_runs(found), plotly=_plotly() if turns else None
    )


def clock(seconds: float) -> str:
    """Seconds as a reader says them: 4.2 s, 3 min 20 s."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def moment(stamped: str) -> str:
    """A time in the manifest as a reader says it: 2026-01-31 09:30 UTC."""
    return f"{stamped[:16].replace('T', ' ')} UTC"


def short(hashed: str | None) -> str:
    """The start of a hash, enough to tell two apart."""
    return hashed[:10] if hashed else "—"


def _section(book: Mapping[str, Any], found: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """A notebook with its figures and how it failed."""
    figures = [figure for figure in found["figures"] if figure["notebook"]["name"] == book["name"]]
    failed = manifest.failure(out, book["name"])
    if failed:
        failed["kept"] = (out / f"{book['name']}.failed.ipynb").exists()
    return {"book": book, "failure": failed, "figures": [{**figure, **_picture(figure, out)} for figure in figures]}


def _picture(figure: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The figure's picture as a data address, its size in pixels, and its other files by ending."""
    png = next(iter(figure["files"]))
    content = manifest.content(figure, png, out)
    # the size is at a fixed place in every PNG; given to the browser, the page does not jump while it loads
    width, height = struct.unpack(">II", content[16:24])
    kinds = {Path(file).suffix.lstrip("."): file for file in figure["files"]}
    kind = "webp" if "webp" in kinds else "png"
    shown = manifest.content(figure, kinds["webp"], out) if kind == "webp" else content
    source = Markup(f"data:image/{kind};base64,") + base64.b64encode(shown).decode()
    relief = _json(manifest.content(figure, kinds["plotly"], out)) if "plotly" in kinds else None
    return {"png": png, "source": source, "width": width, "height": height, "kinds": kinds, "relief": relief}


def _json(content: bytes) -> Markup:
    """A plotly figure as a script element holds it: no text in it can end the element."""
    figure = json.loads(content)
    kept = {name: figure[name] for name in ("data", "layout")}
    return Markup(json.dumps(kept).replace("<", "\\u003c").replace("&", "\\u0026"))


def _plotly() -> Markup:
    """The whole of plotly.js, some 5 MB, so that the page works without a network."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def _runs(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs behind all figures, each checkpoint once."""
    rows: dict[tuple[Any, Any], dict[str, Any]] = {}
    for figure in found["figures"]:
        for run in figure["runs"]:
            rows.setdefault((run["path"] or run["name"], run["checkpoint_sha256"]), run)
    return list(rows.values())
