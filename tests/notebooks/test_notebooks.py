"""Notebooks as readers find them: parameters that explain themselves, no outputs, no code that belongs elsewhere."""

import ast
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from papermill.cli import papermill

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LEADING = ["runs", "dataset", "samples", "seed", "out"]
ALLOWED = {"training.checkpoint", "training.data", "training.engines"}


def cells(path: Path, kind: str = "code") -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def trees(path: Path) -> list[ast.Module]:
    return [ast.parse(cell.source) for cell in cells(path)]


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"training", "dynamics", "gradients", "entropy", "input_landscape"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_the_leading_parameters_are_literals_with_a_type_and_a_comment(path: Path) -> None:
    (cell,) = (cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", []))
    assert cell == cells(path)[0]
    assigned = ast.parse(cell.source).body
    names = [statement.target.id for statement in assigned]
    assert names[: len(LEADING)] == LEADING and names[-1] == "device"
    for statement, line in zip(assigned, cell.source.splitlines(), strict=True):
        kind = {"str": str, "int": int, "float": float, "bool": bool}[statement.annotation.id]
        assert isinstance(ast.literal_eval(statement.value), kind)
        assert len(line.partition("  # ")[2]) > 10, line


def test_make_lab_trains_the_runs_that_notebooks_read_as_they_are() -> None:
    said = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    trained = set(re.findall(r"training sweep \S+ --out (\S+)", said))
    parameters = [statement for path in NOTEBOOKS for statement in trees(path)[0].body]
    read = {ast.literal_eval(one.value) for one in parameters if one.target.id in ("runs", "others")} - {""}
    assert read == trained


def test_nothing_that_was_run_is_committed(path: Path) -> None:
    for cell in cells(path):
        assert cell.execution_count is None
        assert not cell.outputs


def test_papermill_finds_a_kernel(path: Path) -> None:
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


def test_only_the_rooms_below_are_imported(path: Path) -> None:
    for tree in trees(path):
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            full = {f"{module}.{name}".lstrip(".") for name in names}
            ours = {name for name in full if name.split(".")[0] in ("training", "figures", "tests")}
            assert ours <= ALLOWED, ours


def test_no_function_is_longer_than_five_lines(path: Path) -> None:
    for tree in trees(path):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                assert node.end_lineno - node.lineno < 5


def test_prose_says_how_the_pictures_mislead(path: Path) -> None:
    prose = "\n".join(cell.source for cell in cells(path, "markdown"))
    assert prose.startswith("# ")
    published = sum(cell.source.count("plots.publish(") for cell in cells(path))
    assert published >= 2
    assert prose.count("\n## ") >= published


def test_papermill_lists_each_parameter_with_its_type_and_comment(path: Path) -> None:
    """What `papermill --help-notebook` says, which leaves out lines that it cannot read."""
    said = CliRunner().invoke(papermill, ["--help-notebook", str(path)], catch_exceptions=False).output
    (cell,) = (cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", []))
    for statement, line in zip(ast.parse(cell.source).body, cell.source.splitlines(), strict=True):
        listed = re.search(rf"^  {statement.target.id}: (\w+) \(default (.*?)\)\s+(.*)$", said, re.MULTILINE)
        assert listed, (line, said)
        assert listed[1] == statement.annotation.id
        assert ast.literal_eval(listed[2]) == ast.literal_eval(statement.value)
        assert listed[3].strip() == line.partition("  # ")[2]
