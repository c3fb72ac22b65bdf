"""A set's folder: what is damaged is built again or refused by name, names stay inside, one process builds."""

import json
import re

import pytest

from figures import gallery, manifest, stamp
from tests.faults import fill, refusals, small_disk
from tests.test_lock import holder

__all__ = ["small_disk"]


@pytest.fixture
def built(house):
    assert house.build("--only", "one") == 0
    return house


def test_damage_is_found_and_named(built, capsys):
    out = built.out

    def read() -> object:
        return manifest.read(out)

    assert refusals(out / "manifest.json", read, match="manifest.json is damaged, build the set again", every=7) > 300
    page = gallery.render(read(), out)
    png = out / "one" / "one_figure.png"
    match = "one/one_figure.png in"
    refusals(png, lambda: gallery.render(read(), out), match=match, every=9)
    assert gallery.render(read(), out) == page
    sealed = out / "one" / "stamp.json"
    content = sealed.read_text()
    sealed.write_text(content.replace('"seconds": ', '"seconds": 1'))
    assert stamp.read(out / "one") is None
    sealed.write_text(content)
    assert stamp.read(out / "one") is not None


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "one/../../secret.png"])
def test_a_manifest_cannot_bring_files_from_elsewhere_into_the_page(name, tmp_path):
    (tmp_path / "secret.png").write_bytes(bytes(30))
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text(json.dumps({"figures": [{"files": {name: None}}]}))
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged.*names {re.escape(repr(name))}"):
        gallery.write(out)


@pytest.mark.parametrize("name", ["../one", "a/b", "..", ".one", "", "a\\..\\b/c"])
def test_a_notebook_of_a_set_cannot_lie_elsewhere(name, house, capsys):
    house.edit_set('name = "one"', f"name = {json.dumps(name)}")
    assert house.build() == 2
    assert "name" in capsys.readouterr().err
    assert not house.out.exists()


@pytest.mark.parametrize("name", ["../tiny", "tiny/..", "/tiny", ".."])
def test_a_set_or_profile_cannot_lie_elsewhere(name, house, capsys):
    assert house.run("build", name) == 2
    assert house.run("gallery", name) == 2
    assert house.build("--profile", name) == 2
    assert house.run("gallery", "tiny", "--profile", name) == 2
    assert house.build("--only", name) == 2
    assert len(capsys.readouterr().err.splitlines()) == 5
    assert not house.out.parent.exists()


def test_a_folder_in_use_is_refused_by_name(house, capsys):
    with holder(house.out / ".lock") as other:
        assert house.build() == 2
        assert f"is in use by process {other.pid} on" in capsys.readouterr().err
        assert {path.name for path in house.out.iterdir()} == {".lock"}


def test_a_full_disk_is_one_line_and_the_old_page_stays(built, small_disk, capsys):
    out = small_disk / "out"
    assert built.build("--only", "one", "--out", str(out)) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    capsys.readouterr()
    fill(small_disk)
    assert built.build("--only", "one", "--out", str(out)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left on device; not written, and what stood there before stays" in line
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
