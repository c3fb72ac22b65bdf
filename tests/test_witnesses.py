"""The page that names a witness for each number names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_named_witness_is_a_test() -> None:
    named = set(re.findall(r"`(test_\w+)`", (TESTS / "README.md").read_text()))
    there = {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 30
    assert named <= there, f"not there: {sorted(named - there)}"


def test_every_notebook_has_its_rows() -> None:
    rows = (TESTS / "README.md").read_text()
    for path in (TESTS.parent / "notebooks").glob("*.ipynb"):
        assert f"| {path.stem.replace('_', ' ')} |" in rows, path.stem
