"""A notebook's parameters: read off its `parameters` cell, and checked before a kernel starts.

The cell is parsed here and not by papermill, whose inspection drops each line with a second "=" in it, such as one in a
comment, and would have us refuse a parameter that exists.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures.sets import nearest

PLAIN: Mapping[str, tuple[type, ...]] = {
    "int": (int,), "float": (float, int), "str": (str,), "bool": (bool,), "list": (list,), "dict": (dict,),
    "tuple": (list,), "Sequence": (list,), "Mapping": (dict,), "Path": (str,), "None": (type(None),),
}  # fmt: skip
LIMIT = r"(?:^|[;,] )(at least|above) (-?\d+(?:\.\d+)?)(?=$|[;,.:](?:\s|$))"  # a comment's own clause, and no other


@dataclass(frozen=True)
class Parameter:
    """One line of the `parameters` cell."""

    name: str
    annotation: str | None  # as it is written; None: judged by the default
    default: Any  # the literal's value; None also where it is no literal
    comment: str

    @property
    def choices(self) -> list[str]:
        """The words it may be, where its comment begins with "one of a, b, c": papermill reads no Literal."""
        said = re.match(r"one of ([\w-]+(?:, [\w-]+)+)(?=[:;.]|$)", self.comment)
        return said[1].split(", ") if said else []

    def wrong(self, value: Any) -> str:
        """What its comment asks of a number that this one is not: "at least 1", "above 0" or "odd"; "" if nothing."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return ""
        if said := re.search(LIMIT, self.comment):
            least = float(said[2])
            if not (value > least or (said[1] == "at least" and value == least)):
                return f"{said[1]} {said[2]}"
        return "odd" if re.search(r"(?:^|[;,] )odd\b", self.comment) and value % 2 != 1 else ""


def check(path: Path, given: Mapping[str, Any], where: str) -> None:
    """Refuse, with a ValueError, parameters that the notebook does not have, of another type, none of the choices, or
    numbers that are not what their comment asks for."""
    known = read(path, where)
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{where} has no parameter {name!r}{nearest(name, known)}")
        parameter = known[name]
        expected = parameter.annotation or (type(parameter.default).__name__ if parameter.default is not None else "")
        if expected and not _accepts(ast.parse(expected, mode="eval").body, value):
            comment = f' ("{parameter.comment}")' if parameter.comment else ""
            raise ValueError(f"{where}: {name} is {value!r}, expected {expected}{comment}")
        if parameter.choices and value not in parameter.choices:
            near = nearest(str(value), parameter.choices)
            raise ValueError(f"{where}: {name} is {value!r}, expected {parameter.comment}{near}")
        if wrong := parameter.wrong(value):
            raise ValueError(f'{where}: {name} is {value!r}, expected {wrong} ("{parameter.comment}")')


def read(path: Path, where: str) -> dict[str, Parameter]:
    """The parameters of a notebook by name. ValueError where there is no such cell or it is not plain Python."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        raise ValueError(
            f"there is no {where}{nearest(path.stem, sorted(p.stem for p in path.parent.glob('*.ipynb')))}"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{where} is not a notebook: {error!r}") from None
    for cell in cells:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            try:
                return _parse("".join(cell["source"]))
            except (SyntaxError, tokenize.TokenError) as error:
                raise ValueError(f"{where}: its `parameters` cell is not plain Python: {error}") from None
    raise ValueError(f"{where} has no cell with the tag 'parameters'; papermill needs one to know what it can set")


def _parse(source: str) -> dict[str, Parameter]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name, annotation = node.target.id, node.annotation
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, annotation = node.targets[0].id, None
        else:
            continue
        comment = comments.get(node.end_lineno or node.lineno, "")
        written = ast.unparse(annotation) if annotation else None
        if written is None and comment.startswith("type:"):  # papermill's own way to say the type
            written, _, comment = comment.removeprefix("type:").strip().partition(" ")
        found[name] = Parameter(name, written, _literal(node.value), comment.strip())
    return found


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return None


def _accepts(expected: ast.expr, value: Any) -> bool:
    """Whether an annotation lets a TOML value pass; one that is not understood lets everything pass."""
    match expected:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            fits = _accepts(left, value) or _accepts(right, value)
        case ast.Constant(value=None):
            fits = value is None
        case ast.Constant(value=str(quoted)):
            fits = _accepts(ast.parse(quoted, mode="eval").body, value)
        case ast.Name(id=name) if name in PLAIN:
            fits = type(value) in PLAIN[name]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            fits = value in (_literal(choices) if isinstance(choices, ast.Tuple) else (_literal(choices),))
        case ast.Subscript(value=ast.Name(id="list" | "Sequence"), slice=item):
            fits = isinstance(value, list) and all(_accepts(item, one) for one in value)
        case ast.Subscript(value=container):
            fits = _accepts(container, value)
        case _:
            fits = True
    return fits
