"""The page of a figure set in a real browser, from a file, without a network."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
RELIEF = {
    "data": [{"type": "surface", "x": [0, 1, 2], "y": [0, 1], "z": [[0, 1, 4], [1, 2, 5]], "name": "</script><b>"}],
    "layout": {"title": {"text": "</script><script>document.title = 'broken'</script>"}},
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
    assert page.title() == "A tiny set"  # hostile text in the figure stayed text
    assert wrong == [(house.out / "index.html").as_uri()]


def test_a_page_without_reliefs_has_no_script_and_every_picture_loads(house: Any, page: Page) -> None:
    assert house.build() == 0
    wrong = opened(page, house)
    assert page.locator("script").count() == 0
    assert page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)") == [True, True]
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # a phone: nothing sticks out
    assert wrong == [(house.out / "index.html").as_uri()]
