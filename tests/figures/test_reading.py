"""An executed notebook as a page: everything in it is there to be read, and nothing is fetched."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from figures.published import published
from figures.reading import write_page
from tests.figures.conftest import PNG

v4 = nbformat.v4


class Parts(HTMLParser):
    """What a page shows, what it points to and what it runs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def executed(tmp_path: Path) -> Path:
    picture = base64.b64encode(PNG).decode()
    outputs = [
        v4.new_output("stream", name="stdout", text="<script>alert(1)</script> margin -3.5"),
        v4.new_output("display_data", {"image/png": picture, "text/plain": "<Figure>"}),
        v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}),
        v4.new_output("display_data", {"application/vnd.plotly.v1+json": {"data": [], "layout": {}}}),
    ]
    cells = [v4.new_markdown_cell("# A *story*"), v4.new_code_cell("answer = 6 * 7", outputs=outputs)]
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2, "version_minor": 0}}
    book = v4.new_notebook(cells=cells, metadata={"widgets": widgets})
    nbformat.write(book, tmp_path / "one.ipynb")
    return tmp_path / "one.ipynb"


def test_a_page_shows_prose_code_and_outputs_and_fetches_nothing(executed: Path):
    before = executed.read_bytes()
    page = write_page(executed, "A title & more")
    assert page == executed.with_suffix(".html")
    assert executed.read_bytes() == before
    parts = Parts(page.read_text())
    assert "A title & more" in parts.text
    for said in ("story", "answer", "margin -3.5", "<script>alert(1)</script>", "open the notebook in JupyterLab"):
        assert said in parts.text
    assert "A relief that turns in JupyterLab" in parts.text
    assert parts.scripts == 0
    pictures = [address for address in parts.addresses if not address.startswith("#")]
    assert [base64.b64decode(picture.removeprefix("data:image/png;base64,")) for picture in pictures] == [PNG]
    assert "@import" not in page.read_text()


def test_a_figure_of_its_notebooks_name_keeps_to_its_own_files(executed: Path):
    write_page(executed, "")
    executed.with_suffix(".png").write_bytes(PNG)
    executed.with_suffix(".json").write_text('{"name": "one", "title": "", "caption": "", "alt": ""}')
    (figure,) = published(executed.parent)
    assert figure.files == ("one.png", "one.json")
