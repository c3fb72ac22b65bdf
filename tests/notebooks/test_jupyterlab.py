"""A notebook in JupyterLab as a reader opens it: in a browser, all cells run, the last figure seen."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from training.config import Config
from training.fit import fit

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; Debian: apt-get install chromium"),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the explorer, and two runs as short as they get, where its parameters say."""
    for arm in ("sl", "rl"):
        fit(Config(schedule=f"{arm}:1", batch=512, attack_steps=1), tmp_path / "runs" / "digits" / arm, quiet=True)
    shutil.copy(ROOT / "notebooks" / "explorer.ipynb", tmp_path / "explorer.ipynb")
    return tmp_path


@pytest.fixture
def lab(place: Path) -> Iterator[str]:
    """The address of a JupyterLab on this machine alone, with its token; ended afterwards, kernels too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    words = [
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", "--no-browser",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={place}", "--LabApp.news_url=",
        "--ServerApp.log_level=ERROR", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    words += ["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    own = {name: str(place / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")}
    environment = {**os.environ, **own, "JUPYTERLAB_WORKSPACES_DIR": str(place / "spaces"), "PYTHONPATH": str(ROOT)}
    environment["JUPYTER_RUNTIME_DIR"] = str(place / "runtime")
    environment.pop("MPLBACKEND", None)  # as of a batch job: cells would show no figure
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", *words], cwd=place, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{address}/api/status?token={token}", server)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/api/contents", timeout=10).close()
        yield f"{address}/lab/tree/explorer.ipynb?token={token}&reset"
    finally:
        server.terminate()  # ends its kernels as well
        server.wait(20)


def _wait(address: str, server: subprocess.Popen[bytes], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, "JupyterLab ended"
            assert time.monotonic() < end, "JupyterLab did not answer"
            time.sleep(0.2)


def test_a_notebook_runs_in_jupyterlab_to_its_last_figure(lab: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 3200})  # all cells in sight: none is left undrawn
        page.set_default_timeout(180_000)
        page.goto(lab)
        page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for()
        # sooner, JupyterLab would ask which kernel is meant
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        last = page.locator(".jp-CodeCell").last.locator(".jp-RenderedImage img")
        last.wait_for()
        assert last.evaluate("image => image.complete && image.naturalWidth") > 300
        assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        explored = page.locator(".jp-CodeCell .widget-html img")
        before = explored.get_attribute("alt")
        assert "step 20 of 20" in str(before)
        slider = page.get_by_role("slider").last
        slider.focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("document.querySelector('.jp-CodeCell .widget-html img').alt.includes('step 19 of 20')")
        browser.close()
