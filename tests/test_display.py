"""What results show in a notebook: their numbers, their picture, how they were made; and nothing that is executed."""

import base64
import dataclasses
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn

import gradlens as gl
from gradlens import display, plots, store
from gradlens.plots.pictures import PANELS
from tests.analytic import smooth_cnn
from tests.test_store import RESULTS

BALL = gl.Ball(0.1)


def masked(model: nn.Module) -> gl.Masking:
    """The least on which there is a verdict."""
    x = torch.rand(40, 2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return gl.masking(model, x, None, BALL)


MORE = {
    "gradients": lambda model, x: gl.gradients(model, x, None, BALL, draws=2),
    "robustness": lambda model, x: gl.robustness(
        model, x, [0] * 6, BALL, attacks=[gl.Attack("PGD", gl.pgd, {"steps": 1})]
    ),
    "curve": lambda model, x: gl.curve(model, x, [0] * 6, BALL, values=[0.1, 0.2], steps=1),
    "transfer": lambda model, x: gl.transfer(
        {"a": model}, {"a": model}, x, [0] * 6, BALL, attack=gl.Attack("PGD", gl.pgd, {"steps": 1})
    ),
    "weight line": lambda model, x: gl.weight_line(model, x, [0] * 6, points=3, metrics=("loss",)),
    "masking": lambda model, x: masked(model),
    "evidence": lambda model, x: masked(model).evidence[0],
    "planted": lambda model, x: gl.planted(model, x, None, BALL, attacks=[gl.Attack("PGD", gl.pgd, {"steps": 1})]),
    "one sample": lambda model, x: gl.pgd(model, x[:1], None, BALL, steps=1),
}
KEPT = (
    "trace", "trace full of nan", "distances", "stability", "entropy", "entropy with labels and attack", "plane",
    "line", "path", "query trace", "spectrum of inputs", "weight plane", "trajectory", "ball", "made",
)  # fmt: skip
SHOWN = {name: RESULTS[name] for name in KEPT} | MORE
NO_PICTURE = ("Ball", "Distances", "Evidence", "Made", "Planted", "QueryTrace", "Trajectory")


class Page(HTMLParser):
    """What a browser would make of it: tags, text, attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def picture(page: Page) -> np.ndarray:
    (image,) = page.images
    kind, content = str(image["src"]).split(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L"))


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    stream = torch.Generator().manual_seed(0)
    x = 0.05 + 0.9 * torch.rand(6, 2, 5, 5, generator=stream, dtype=torch.float64)
    return {name: make(smooth_cnn(), x) for name, make in SHOWN.items()}


@pytest.mark.parametrize("name", SHOWN)
def test_a_result_shows_its_line_its_first_rows_its_picture_and_its_record(made, name):
    result = made[name]
    before = dict(mpl.rcParams)
    text = DisplayFormatter().format(result)[0]["text/html"]  # as a notebook asks
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
    page, kind = Page(text), type(result).__name__
    assert kind in page.text
    if not isinstance(result, gl.Made):
        assert str(result) in page.text
    assert bool(page.images) == (kind not in NO_PICTURE), "no picture"
    if page.images:
        assert page.images[0]["alt"] == f"{kind}: {result}"
        drawn = picture(page)
        assert 0.005 < (drawn < 200).mean() < 0.6, "ink on white"
    if hasattr(result, "made"):
        frame = result.table() if hasattr(result, "table") else result.frame()
        assert {str(column) for column in frame.columns[:6]} <= set(page.texts)
        assert result.made.call in page.texts
        assert result.made.model in page.texts
        first = next(v for v in frame.iloc[0] if isinstance(v, float) and np.isfinite(v))
        assert any(shown.strip() and _number(shown) == pytest.approx(first, rel=1e-3) for shown in page.texts)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d[\d.]*(e[-+]\d+)?", text.strip()) else None


def test_every_kind_shows_itself_and_every_picture_belongs_to_one(made):
    shown = {type(result) for result in made.values()}
    for kind in store.KINDS:
        assert kind._repr_html_ is display.page
        assert kind in shown, f"{kind.__name__} is not shown in this file"
        assert (kind in PANELS) == (kind.__name__ not in NO_PICTURE)
    assert set(PANELS) <= set(store.KINDS)


def test_only_the_head_of_a_long_table_is_shown_and_its_length_is_told(made):
    trace = made["trace"]
    page = Page(display.page(trace))
    assert f"{display.ROWS} of {len(trace.frame())} rows" in page.text
    assert "rows" not in Page(display.page(made["curve"])).text.split("How it was made")[0]


@pytest.mark.parametrize("name", ["curve", "distances"])
def test_what_comes_from_a_disk_shows_the_same(made, name, tmp_path):
    loaded = gl.load(gl.save(made[name], tmp_path / "result"))
    assert loaded._repr_html_() == display.page(made[name])


def test_two_results_have_two_pictures(made):
    other = dataclasses.replace(made["curve"], values=2 * made["curve"].values)
    first, second = (Page(display.page(result)) for result in (made["curve"], other))
    assert first.images[0]["src"] != second.images[0]["src"]


def test_hostile_names_stay_text(made):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;"
    record = dataclasses.replace(made["trace"].made, call=evil, model=evil, device=evil, versions={evil: evil})
    transfer = dataclasses.replace(made["transfer"], sources=(evil,), targets=(evil,), made=record)
    for result in (record, transfer, dataclasses.replace(made["distances"], made=record)):
        page = Page(display.page(result))
        assert "script" not in page.tags
        assert "onerror" not in page.attributes
        assert all(str(image["src"]).startswith("data:image/png;base64,") for image in page.images)
        assert any(evil in text for text in page.texts), "the name is told as it is"


def test_a_picture_that_cannot_be_drawn_is_a_sentence(made):
    odd = dataclasses.replace(made["transfer"], sources=("$a_{$",), targets=("$a_{$",))
    page = Page(display.page(odd))
    assert page.images == []
    assert "no picture: ValueError" in page.text
    assert "table" in page.tags
    assert plots.picture(made["ball"]) is None


def test_nothing_is_drawn_and_nothing_loaded_before_a_notebook_asks(tmp_path):
    script = """
import sys, torch, gradlens as gl
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
trace = gl.pgd(model, torch.rand(3, 3, 2, 2), [0, 1, 2], steps=1)
gl.Ball()._repr_html_(), str(trace)
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = None  # as where it is not installed
page = trace._repr_html_()
assert "no picture: ModuleNotFoundError" in page and "<table" in page
del sys.modules["matplotlib"]
assert "<img" in trace._repr_html_()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_model_of_an_untrained_class_is_told_by_name():
    """A class of the caller's own, defined where no import finds it."""
    hidden = type("<b>Mine</b>", (nn.Sequential,), {})(nn.Flatten(), nn.Linear(4, 3))
    page = Page(gl.entropy(hidden, torch.rand(2, 1, 2, 2))._repr_html_())
    assert "<b>Mine</b>:" in page.text
