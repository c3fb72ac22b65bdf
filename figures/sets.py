"""What a figure set is: a TOML file that names notebooks, their parameters and the sweep that trains their runs."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from figures import own
from figures.stamp import FOLDERS

FOLDER = Path("figures/sets")
FULL = "full"  # the profile that changes nothing


@dataclass(frozen=True)
class Notebook:
    """One notebook of a set, with the parameters it alone is given."""

    name: str  # of its figures' folder
    parameters: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""  # in notebooks/, without .ipynb
    title: str = ""  # on the page; the notebook's own heading if empty


@dataclass(frozen=True)
class Profile:
    """A variation of a set: another sweep, other parameters, for all notebooks and for single ones.

    In the file, `like = "digits"` takes what is not said from that set's profile of the same name; what is said there
    for a single notebook wins over what is said here for all.
    """

    sweep: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    notebook: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class FigureSet:
    """A set as its file says it; paths are relative to the repository root."""

    name: str
    title: str
    notebooks: tuple[Notebook, ...]
    about: str = ""
    sweep: str | None = None
    sweeps: Mapping[str, str] = field(default_factory=dict)  # folder of more runs -> the sweep that trains them
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)  # somebody's own, with its images: options of `adopt`
    timeout: float | None = None  # seconds a notebook may take, where the builder does not say

    def under(self, profile: str, given: Mapping[str, Any] | None = None) -> "FigureSet":
        """The set as a profile has it, and with what is `given` for all notebooks. A profile wins over a notebook's own
        parameters, so that one line makes every notebook of a set small."""
        if profile not in {FULL, *self.profiles}:
            raise ValueError(f"set {self.name!r} has no profile {profile!r}{nearest(profile, [FULL, *self.profiles])}")
        chosen = self.profiles.get(profile, Profile())
        extra = {**chosen.parameters, **(given or {})}
        notebooks = tuple(
            replace(book, parameters={**book.parameters, **extra, **chosen.notebook.get(book.name, {})})
            for book in self.notebooks
        )
        return replace(self, notebooks=notebooks, sweep=chosen.sweep or self.sweep)

    def on(self, dataset: str) -> "FigureSet":
        """The same questions on another data set: the same sweeps, which train there, into folders of their own.

        Where title, text and headings name the set's own data set, they name the other one. Raises ValueError for a set
        that trains nothing.
        """
        if self.sweep is None and not self.sweeps:
            raise ValueError(
                f"dataset is {dataset!r}, expected none: the set {self.name!r} has no sweep to train there"
            )
        first = {book.parameters.get("runs") for book in self.notebooks} if self.sweep is not None else set()
        folders = {str(folder): f"{folder}-{dataset}" for folder in {*self.sweeps, *first} - {None}}
        own = {str(book.parameters["dataset"]) for book in self.notebooks if "dataset" in book.parameters}
        word = re.compile(rf"\b({'|'.join(map(re.escape, sorted(own)))})\b", re.IGNORECASE) if own else None

        def renamed(text: str) -> str:
            return text if word is None else word.sub(dataset, text)

        def there(parameters: Mapping[str, Any]) -> dict[str, Any]:
            moved = {key: folders.get(value, value) for key, value in parameters.items() if key in FOLDERS}
            return {**parameters, **moved, "dataset": dataset}

        notebooks = tuple(
            replace(book, title=renamed(book.title), parameters=there(book.parameters)) for book in self.notebooks
        )
        sweeps = {folders[folder]: path for folder, path in self.sweeps.items()}
        return replace(self, title=renamed(self.title), about=renamed(self.about), notebooks=notebooks, sweeps=sweeps)

    def only(self, names: Iterable[str]) -> tuple[Notebook, ...]:
        """The notebooks of these names, in the set's order; all of them if no name is given."""
        wanted, known = list(names), [book.name for book in self.notebooks]
        for name in wanted:
            if name not in known:
                raise ValueError(f"set {self.name!r} has no notebook {name!r}{nearest(name, known)}")
        return tuple(book for book in self.notebooks if not wanted or book.name in wanted)


def names(root: Path) -> list[str]:
    """The names of all sets of a repository."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.toml"))


def load(name: str, root: Path, above: tuple[str, ...] = ()) -> FigureSet:
    """Read a set; `above` are those whose profiles are like it. ValueError names the file, the key and what was
    expected."""
    known = names(root)
    if name not in known:
        raise ValueError(f"there is no figure set {name!r}{nearest(name, known)}")
    path = root / FOLDER / f"{name}.toml"
    where = (FOLDER / path.name).as_posix()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{where} is not TOML: {error}") from None
    shape = {
        "title": str,
        "about": str,
        "sweep": str,
        "sweeps": dict,
        "parameters": dict,
        "notebook": list,
        "profiles": dict,
        "model": dict,
        "timeout": int | float,
    }
    _check(table, shape, where, required=("title", "notebook"))
    shared = table.get("parameters", {})
    books = tuple(_notebook(row, shared, f"{where}, [[notebook]] {i}") for i, row in enumerate(table["notebook"], 1))
    profiles = {key: _profile(key, row, f"{where}, [profiles.{key}]") for key, row in table.get("profiles", {}).items()}
    for book in books:
        if [other.name for other in books].count(book.name) > 1:
            raise ValueError(
                f"{where} names the notebook {book.name!r} twice; its second figures would hide the first, unless one "
                "is called otherwise: called = ..."
            )
    called = [book.name for book in books]
    for key, row in table.get("profiles", {}).items():
        if "like" in row:
            there = f"{where}, [profiles.{key}]"
            if (other := row["like"]) in (*above, name) or other not in known:
                others = [one for one in known if one not in (*above, name)]
                raise ValueError(f"{there}: like is {other!r}, expected another set{nearest(other, others)}")
            profiles[key] = _like(profiles[key], key, load(other, root, (*above, name)), books, there)
    for key, profile in profiles.items():
        for one in profile.notebook:
            if one not in called:
                raise ValueError(f"{where}, [profiles.{key}]: there is no notebook {one!r}{nearest(one, called)}")
    _check(table.get("model", {}), own.OPTIONS, f"{where}, [model]")
    sweeps = table.get("sweeps", {})
    _check(sweeps, dict.fromkeys(sweeps, str), f"{where}, [sweeps]")
    return FigureSet(
        name, table["title"], books, table.get("about", ""), table.get("sweep"), sweeps, profiles,
        table.get("model", {}), table.get("timeout"),
    )  # fmt: skip


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the likeliest meant one, or else all there are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known) or 'none'}"


def _notebook(row: Any, shared: Mapping[str, Any], where: str) -> Notebook:
    _check(row, {"name": str, "called": str, "title": str, "parameters": dict}, where, required=("name",))
    row = {"called": row["name"], **row}
    for key, expected in (("name", "a file of notebooks/ without its .ipynb"), ("called", "a name for a folder")):
        if not row[key] or Path(row[key]).name != row[key] or row[key].startswith("."):
            raise ValueError(f"{where}: {key} is {row[key]!r}, expected {expected}")
    parameters = {**shared, **row.get("parameters", {})}
    _no_out(parameters, where)
    return Notebook(row["called"], parameters, row["name"], row.get("title", ""))


def _profile(name: str, row: Any, where: str) -> Profile:
    if name == FULL:
        raise ValueError(f"{where}: {FULL!r} is the name of the set without a profile; choose another")
    _check(row, {"sweep": str, "parameters": dict, "notebook": dict, "like": str}, where)
    for parameters in (row.get("parameters", {}), *row.get("notebook", {}).values()):
        _check(parameters, dict.fromkeys(parameters, object), where)
        _no_out(parameters, where)
    return Profile(row.get("sweep"), row.get("parameters", {}), row.get("notebook", {}))


def _like(mine: Profile, key: str, other: FigureSet, books: Iterable[Notebook], where: str) -> Profile:
    """A profile, and where it says nothing, that of the same name in another set, notebook by notebook."""
    if key not in other.profiles:
        raise ValueError(f"{where}: like is {other.name!r}, which has no profile {key!r}")
    there, files = other.profiles[key], {book.name: book.file for book in other.notebooks}
    knobs = {files[called]: row for called, row in there.notebook.items()}
    notebook = {book.name: {**knobs.get(book.file, {}), **mine.notebook.get(book.name, {})} for book in books}
    return Profile(
        mine.sweep or there.sweep,
        {**there.parameters, **mine.parameters},
        notebook | {called: row for called, row in mine.notebook.items() if called not in notebook},
    )


def _no_out(parameters: Mapping[str, Any], where: str) -> None:
    if "out" in parameters:
        raise ValueError(f"{where}: the parameter out is chosen by the build; leave it away and use --out")


def _check(row: Any, shape: Mapping[str, Any], where: str, required: tuple[str, ...] = ()) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {row!r}, expected a table")
    for key, value in row.items():
        if key not in shape:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(key, shape)}")
        if not isinstance(value, shape[key]):
            raise ValueError(f"{where}: {key} is {value!r}, expected a {getattr(shape[key], '__name__', shape[key])}")
    for key in required:
        if not row.get(key):
            raise ValueError(f"{where}: {key} is missing")
