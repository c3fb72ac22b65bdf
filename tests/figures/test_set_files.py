"""A set's folder: what is damaged is built again or refused by name, names stay inside, one process builds."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from figures import gallery, keep, manifest, stamp
from tests.faults import fill, refusals, small_disk
from tests.test_lock import holder

__all__ = ["small_disk"]
TABLE = 'import pandas; pandas.DataFrame({"a": range(9)}).to_parquet(folder / "one_figure.parquet")'


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


def test_whatever_the_page_shows_or_a_folder_keeps_is_as_it_was_built(house, capsys):
    more = (
        '(folder / "one_figure.webp").write_bytes(b"RIFF of a picture")',
        '(folder / "one_figure.plotly").write_text(json.dumps({"data": [], "layout": {}}))',
        TABLE,
    )
    house.notebook("one", house.figure("one_figure"), *more)
    house.notebook("two", "raise RuntimeError('first')")
    assert house.build() == 1
    found, out = manifest.read(house.out), house.out
    for ending in ("webp", "plotly"):
        path = out / "one" / f"one_figure.{ending}"
        assert refusals(path, lambda: gallery.render(found, out), match=f"one/one_figure.{ending} in", every=4) > 5
    failed = out / "two.failed.json"
    assert refusals(failed, lambda: gallery.render(found, out), match=f"{failed} is damaged", every=37) > 10
    assert house.run("keep", "tiny") == 0
    kept = house.root / "figures" / "tiny"
    before = {path: path.read_bytes() for path in kept.rglob("*.*")}
    for ending in ("webp", "parquet"):
        path = out / "one" / f"one_figure.{ending}"
        content = path.read_bytes()
        path.write_bytes(content[:9] + b"x" + content[10:])
        capsys.readouterr()
        assert house.run("keep", "tiny") == 2
        assert f"one/one_figure.{ending} in {out} is not the one that was built" in capsys.readouterr().err
        path.write_bytes(content)
    assert {path: path.read_bytes() for path in kept.rglob("*.*")} == before


def test_what_was_kept_outlives_a_kill_while_it_is_replaced(house, monkeypatch):
    """After the first of two renamings nothing is left at the place itself; the next call finds it."""
    for name in ("one", "two"):
        house.notebook(name, house.figure(f"{name}_figure"), TABLE.replace("one", name))
    assert house.build() == 0
    place = house.root / "figures" / "tiny"
    keep.keep(house.out, place)
    (place / "two" / "mark").touch()
    rename, names = Path.rename, []

    def killed(self: Path, target: Path) -> Path:
        names.append(self.name)
        if len(names) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            keep.keep(house.out, place)
    assert not place.exists()
    shutil.rmtree(house.out)
    assert house.build("--only", "one") == 0
    keep.keep(house.out, place)
    assert (place / "two" / "mark").exists()  # as it was kept before
    assert [path.name for path in place.parent.glob(".*")] == []
    with holder(place.with_name(".tiny.lock")), pytest.raises(ValueError, match=r"to .*tiny' is in use by process"):
        keep.keep(house.out, place)


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
    larger = ["mount", "-o", "remount,size=4m", str(small_disk)]  # an executed notebook's page takes 300 KB
    subprocess.run(larger, check=True)
    assert built.build("--only", "one", "--out", str(out)) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    capsys.readouterr()
    fill(small_disk)
    assert built.build("--only", "one", "--out", str(out)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left on device; not written, and what stood there before stays" in line
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
