"""Names, texts and parameters that would act, were they taken for HTML; a notebook server closed to strangers."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from figures import gallery, manifest, stamp
from figures.__main__ import ROOT

PAYLOAD = "\"'><script>alert(1)</script><img src=x onerror=alert(2)></style><!--]]>{{ 7 * 7 }}{% raw %}&lt;b&gt;"
KEPT = {"status", "built_at", "made_at", "png"}  # words and times of our own, which the page looks at


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def poisoned(value: Any, name: str = "") -> Any:
    """Every text and every key of a parameter with the payload behind it; names that tie parts together stay equal."""
    if isinstance(value, dict):
        keys = [key + PAYLOAD if name == "parameters" else key for key in value]
        return {key: poisoned(one, old) for key, (old, one) in zip(keys, value.items(), strict=True)}
    if isinstance(value, list):
        return [poisoned(one, name) for one in value]
    return value + PAYLOAD if isinstance(value, str) and name not in KEPT else value


@pytest.fixture
def built(house):
    assert house.build("--only", "one") == 0
    house.notebook("two", "raise RuntimeError('first')")
    assert house.build("--only", "two") == 1
    return house


def test_whatever_the_manifest_says_the_page_has_the_same_tags(built):
    found = manifest.read(built.out) | {"profile": "smoke"}
    plain = gallery.render(found, built.out)
    hostile = poisoned(found)
    for clean, one in zip(found["figures"], hostile["figures"], strict=True):
        one["files"] = clean["files"]
    failed = built.out / "two.failed.json"
    record = poisoned(manifest.failure(built.out, "two"))
    failed.write_text(json.dumps({**record, "sha256": stamp.seal(record)}))
    for book in hostile["notebooks"]:
        book["name"] = book["name"].removesuffix(PAYLOAD)
    for figure in hostile["figures"]:
        figure["notebook"]["name"] = figure["notebook"]["name"].removesuffix(PAYLOAD)
    page = gallery.render(hostile, built.out)
    assert Tags(page).tags == Tags(plain).tags
    assert page.count("<script") == plain.count("<script")
    assert Tags(page).text.count("alert(1)") > 15  # it is there to be read
    assert "]]>49" not in page  # nor is a template within the template
    assert "{{ 7 * 7 }}" in page


def test_a_hostile_run_and_parameter_go_through_a_build_as_text(house):
    name = "<img src=x onerror=alert(2)>"
    (house.root / "runs" / "tiny").rename(house.root / "runs" / name)
    record = {"name": PAYLOAD, "seed": 0, "schedule": PAYLOAD, "dataset": PAYLOAD, "model": PAYLOAD}
    (house.root / "runs" / name / "sl-0" / "run.json").write_text(json.dumps(record))
    house.edit_set('title = "A tiny set"', f"title = {json.dumps(PAYLOAD)}")
    house.edit_set('runs = "runs/tiny"', f"runs = {json.dumps(f'runs/{name}')}")
    assert house.build("--only", "one") == 0
    page = house.page()
    assert page.count("<script") == page.count('document.querySelectorAll("table.sortable")') == 1  # the page's own
    assert all(not attribute.startswith("on") for _, *attributes in Tags(page).tags for attribute in attributes)
    assert "alert(2)" in Tags(page).text
    assert [tag for tag, *_ in Tags(page).tags].count("img") == 1


def test_no_text_in_a_relief_ends_its_script():
    relief = json.dumps({"data": [{"name": "</script>" + PAYLOAD}], "layout": {}})
    said = str(gallery._json(relief.encode()))
    assert "<" not in said
    assert json.loads(said)["data"][0]["name"] == "</script>" + PAYLOAD


def lab() -> list[str]:
    """The words that `make lab` starts the server with."""
    done = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if "jupyter" in line)
    return shlex.split(line.rpartition("python -m ")[2])


def eventually(look: Callable[[], Any], seconds: float = 300) -> Any:
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_make_lab_listens_on_this_machine_alone_and_wants_a_token(tmp_path):
    words = lab()
    assert words == ["jupyter", "lab", "--ip", "127.0.0.1"]
    command = [sys.executable, "-m", *words, "--no-browser", "--port=0", "--allow-root", f"--notebook-dir={tmp_path}"]
    environment = {**os.environ, "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "JUPYTER_CONFIG_DIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            record = eventually(lambda: next((tmp_path / "runtime").glob("jpserver-*.json"), None))
            said = eventually(lambda: record.read_text().endswith("}") and json.loads(record.read_text()))
            assert len(said["token"]) >= 32
            assert eventually(lambda: listens(said["port"])) == {"0100007F"}  # 127.0.0.1
            address = f"http://127.0.0.1:{said['port']}/api/contents"
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(address)
            with urllib.request.urlopen(f"{address}?token={said['token']}") as answer:
                assert answer.status == 200
        finally:
            server.send_signal(signal.SIGKILL)


def listens(port: int) -> set[str]:
    """The addresses, as the kernel writes them, on which something listens to a port."""
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
