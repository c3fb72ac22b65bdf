"""An executed notebook as a page that any browser shows, from a file and without a network."""

from pathlib import Path
from typing import Any

# JupyterLab's look without what its own template fetches: require.js, MathJax, mermaid and a manager for widgets
PAGE = """
{%- extends "lab/index.html.j2" -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
"""
ALIVE = {
    "application/vnd.jupyter.widget-view+json": "Controls, which need a kernel: open the notebook in JupyterLab.",
    "application/vnd.plotly.v1+json": "A relief that turns in JupyterLab, and on the page of the figure set.",
}


def write_page(executed: Path, title: str) -> Path:
    """Write an executed notebook again as HTML beside it; what needs a kernel there is a sentence that says so."""
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            _still(output)
    exporter = HTMLExporter(extra_loaders=[DictLoader({"page": PAGE})], template_file="page")
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    place = executed.with_suffix(".html")
    place.write_text(page, encoding="utf-8")
    return place


def _still(output: Any) -> None:
    """Put words in the place of an output that lives by a script."""
    said = next((said for kind, said in ALIVE.items() if kind in output.get("data", {})), None)
    if said is not None:
        output["data"] = {"text/html": f"<p><em>{said}</em></p>"}
