"""How results show themselves in a notebook: one line, the head of the table, the picture, how they were made."""

import dataclasses
import html
from collections.abc import Iterable
from typing import Any

from .provenance import Made

ROWS = 5
COLUMNS = 12
STYLE = "font-size: 0.9em; overflow-wrap: anywhere; max-width: 60em"


def attach(kinds: Iterable[type]) -> None:
    """Give each of these classes the method that notebooks ask for. What it needs is loaded when it is first asked."""
    for kind in kinds:
        setattr(kind, "_repr_html_", page)  # noqa: B010 - mypy knows of no such attribute


def page(result: Any) -> str:
    """A result as HTML: its line, at most five rows of its table, its picture where there is one, how it was made.

    Every word in it is escaped. A picture that cannot be drawn is a sentence that says why.
    """
    kind, line = type(result).__name__, str(result)
    # a report of several lines keeps them
    parts = [f'<p style="white-space: pre-wrap"><b>{html.escape(kind)}</b> {html.escape(line)}</p>']
    if isinstance(result, Made):
        parts = [f"<p><b>{html.escape(kind)}</b></p>", _made(result)]
    elif hasattr(result, "made"):
        parts += [_table(result), _picture(result, f"{kind}: {line}")]
        parts += [f"<details><summary>How it was made</summary>{_made(result.made)}</details>"]
    return f'<div class="gradlens" style="{STYLE}">{"".join(parts)}</div>'


def _table(result: Any) -> str:
    frame = result.table() if hasattr(result, "table") else result.frame()
    shown = frame.head(ROWS).to_html(
        index=False, border=0, na_rep="nan", float_format="{:.4g}".format, max_rows=ROWS, max_cols=COLUMNS
    )
    rest = f"<p>{ROWS} of {len(frame):,} rows</p>" if len(frame) > ROWS else ""
    return f'<div style="overflow-x: auto">{shown}</div>{rest}'


def _picture(result: Any, alt: str) -> str:
    try:
        from . import plots

        figure = plots.picture(result)
        return "" if figure is None else plots.inline(figure, alt)
    except Exception as error:  # whatever stops the drawing, the numbers are there
        return f"<p>no picture: {html.escape(f'{type(error).__name__}: {error}')}</p>"


def _made(made: Made) -> str:
    said = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    said["versions"] = ", ".join(f"{name} {number}" for name, number in made.versions.items())
    rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in said.items())
    return f"<table>{''.join(rows)}</table>"
