"""The page of a figure set in a real browser, from a file, without a network."""

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SURFACE = {"type": "surface", "x": [0, 1, 2], "y": [0, 1], "z": [[0, 1, 4], [1, 2, 5]], "name": "</script><b>"}
HOSTILE = "</script><script>document.title = 'broken'</script>"
MENU = [
    {"label": name, "method": "update", "args": [{"visible": [name == "SL", name != "SL"]}]} for name in ("SL", HOSTILE)
]
RELIEF = {
    "data": [SURFACE, {**SURFACE, "visible": False}],
    "layout": {
        "title": {"text": HOSTILE},
        "scene": {"camera": {"eye": {"x": 1.0, "y": 1.0, "z": 1.0}}},
        "updatemenus": [{"buttons": MENU}],
    },
}
CAMERA = "document.querySelector('.relief')._fullLayout.scene._scene.getCamera().eye"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; Debian: apt-get install chromium"),
]


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        # no GPU here: WebGL is drawn by the processor
        options = ["--no-sandbox", "--disable-background-networking", "--enable-unsafe-swiftshader", "--use-gl=angle"]
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*options, "--use-angle=swiftshader", "--ignore-gpu-blocklist"]
        )
        yield browser.new_page(viewport={"width": 1000, "height": 800})
        browser.close()


def opened(page: Page, house: Any) -> list[str]:
    """Open the page; what it asked for beyond itself, and what went wrong."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(("data:", "blob:")) else wrong.append(asked.url))
    page.goto((house.out / "index.html").as_uri())
    return wrong


def test_a_relief_is_drawn_when_asked_for_and_turns(house: Any, page: Page) -> None:
    relief = "\n".join(
        [house.figure("one_figure"), f"(folder / 'one_figure.plotly').write_text({json.dumps(json.dumps(RELIEF))})"]
    )
    house.notebook("one", relief)
    assert house.build() == 0
    assert "one/one_figure.plotly" in house.manifest()["figures"][0]["files"]
    wrong = opened(page, house)
    assert page.locator("details.turn").count() == 1
    assert page.locator(".relief canvas").count() == 0
    page.get_by_text("Turn it by hand").click()
    page.wait_for_function("document.querySelector('.relief canvas') && document.querySelector('.relief')._fullLayout")
    page.wait_for_function(f"{CAMERA} !== undefined")
    before = page.evaluate(CAMERA)
    page.locator(".relief").scroll_into_view_if_needed()
    box = page.locator(".relief").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for pixels in range(10, 70, 10):  # as a hand does: the page draws in between
        page.mouse.move(x + pixels, y)
        page.wait_for_timeout(60)
    page.mouse.up()
    page.wait_for_function(f"JSON.stringify({CAMERA}) !== {json.dumps(json.dumps(before, separators=(',', ':')))}")

    page.get_by_label("Model").select_option(index=1)  # by keyboard too, as every select
    shown = "document.querySelector('.relief').data.map(one => one.visible)"
    page.wait_for_function(f"JSON.stringify({shown}) === '[false,true]'")
    # at rest: the hand's own turn runs out slowly
    page.evaluate("Plotly.relayout(document.querySelector('.relief'), { 'scene.camera.eye': { x: 1, y: 1, z: 1 } })")
    page.wait_for_function(f"Math.abs({CAMERA}.y - 1) + Math.abs({CAMERA}.z - 1) < 1e-6")
    page.locator(".relief").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{CAMERA}.y > 1.1")
    eye = page.evaluate(CAMERA)
    assert eye["z"] == pytest.approx(1), "around, not up"
    assert math.hypot(eye["x"], eye["y"]) == pytest.approx(math.sqrt(2))
    page.keyboard.press("ArrowUp")
    page.wait_for_function(f"{CAMERA}.z > 1.1")
    assert page.title() == "A tiny set"  # hostile text in the figure stayed text
    assert wrong == [(house.out / "index.html").as_uri()]


CONTRAST = """
(selector) => [...document.querySelectorAll(selector)].map(element => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let behind = element;
  while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})
"""  # WCAG 2.2, relative luminance


def test_a_page_without_reliefs_reads_on_a_phone_in_the_dark_and_by_keyboard(house: Any, page: Page) -> None:
    second = house.checkpoint.parents[1] / "rl-10"
    second.mkdir()
    (second / "model.safetensors").write_bytes(b"other weights")
    (second / "run.json").write_text(json.dumps({"name": "rl-10", "seed": 10, "schedule": "rl:1"}))
    house.notebook("two", house.figure("two_figure").replace('"sl-0"', '"rl-10"'))
    assert house.build() == 0
    wrong = opened(page, house)
    assert page.locator("script").count() == 1, "the one that sorts"
    assert page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)") == [True, True]
    assert page.evaluate("[...document.images].map(i => i.alt)") == ["Alt of one_figure", "Alt of two_figure"]
    assert page.locator("html").get_attribute("lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), "no level is left out"

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    page.keyboard.press("Enter")
    assert page.url.endswith("#figures")

    seeds = "[...document.querySelectorAll('#runs tbody tr')].map(row => row.cells[4].textContent)"
    page.get_by_role("button", name="Seed").focus()
    for key, way, rows in (("Enter", "ascending", ["0", "10"]), ("Space", "descending", ["10", "0"])):
        page.keyboard.press(key)
        assert page.evaluate(seeds) == rows
        assert page.get_by_role("columnheader", name="Seed").get_attribute("aria-sort") == way
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"

    papers = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for selector in ("p", "a:not(.picture)", "td", "th", "summary", "h1, h2, h3", "code", "dt, dd"):
            contrasts = page.evaluate(CONTRAST, selector)
            assert min(contrasts) >= 4.5, (scheme, selector, min(contrasts))
    assert papers[0] != papers[1]

    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # a phone: nothing sticks out
    assert wrong == [(house.out / "index.html").as_uri()]
