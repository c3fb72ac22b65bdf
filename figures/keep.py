"""What is kept of a built set in the repository: its manifest, tables as CSV, pictures."""

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import findings, manifest, stamp
from figures.lock import Lock

LARGEST = 175_000  # bytes of a table; of a larger one, of single samples, the means are kept
CURVES = ("training_curves",)  # tables of epochs, which a page is read off: of a larger one, those with an attack
TAKEN = ("out", "readme", "sets")  # folders of figures/ with another use
PICTURES = (".webp", ".png")  # the smaller first
LIGHT, WIDEST = 100_000, 1600  # bytes and pixels: a heavier picture is kept with no more pixels across than that
AXES = ("seed", "step", "alpha", "beta")  # numbers that tell means over samples apart, beside all words


def keep(out: Path, place: Path, pages: Sequence[Path] = ()) -> Path:
    """Copy what is worth keeping of the set that was built in `out` to `place`, which it replaces as a whole.

    A notebook that was not built there stays as it was kept before, under its own commit: hours of work may be done in
    several places. Figures of a notebook with the same table share one file. On the `pages`, if given, what stands
    between the set's marks becomes its findings, and between those for attacks, training, masking and the suite, where
    they have them, what each attack left, what was trained at what cost, how it was judged and what a suite broke in
    the end. Raises ValueError for a set of which nothing was built, a file that is not as it was built, a place with
    another use or in use, and pages without the marks.
    """
    with Lock(place.with_name(f".{place.name}.lock"), f"to {str(place)!r}"):
        return _kept(out, place, pages)


def _kept(out: Path, place: Path, pages: Sequence[Path]) -> Path:
    old = place.with_name(f".{place.name}.old")
    if old.exists() and not place.exists():  # killed between the two renamings below
        old.rename(place)
    made = manifest.read(out)
    if place.name in TAKEN or (place.exists() and not (place / "manifest.json").is_file()):
        raise ValueError(f"to is {place}, which holds something else, expected a folder of kept figures, or none")
    before = manifest.read(place) if place.exists() else {**made, "notebooks": [], "figures": []}
    if before["set"] != made["set"]:
        raise ValueError(f"to is {place}, where the set {before['set']!r} is kept, expected {made['set']!r} or none")
    if not (built := _built(made)):
        raise ValueError(f"out is {out}, where no notebook is built; build the set first")
    asked = {book["name"] for book in made["notebooks"]}  # what the set no longer has is not kept
    rows = {book["name"]: book for book in before["notebooks"] if book["name"] in (_built(before) - built) & asked}
    unfinished = place.with_name(f".{place.name}{stamp.UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in rows:
        shutil.copytree(place / name, unfinished / name)
    figures = {(figure["notebook"]["name"], figure["name"]): figure for figure in before["figures"]}
    figures = {key: figure for key, figure in figures.items() if key[0] in rows}
    for figure in made["figures"]:
        if figure["notebook"]["name"] in built:
            figures[figure["notebook"]["name"], figure["name"]] = _keep(figure, out, unfinished)
    books = [rows.get(book["name"], book) for book in _dated(made)]
    order = [book["name"] for book in books]
    shown = [figures[key] for key in sorted(figures, key=lambda key: order.index(key[0]))]
    made |= {"notebooks": books, "figures": _shared(shown, unfinished), "sweeps": _sweeps(before, made, rows)}
    manifest.save(unfinished, made)
    if pages:
        findings.rewrite(pages, made["set"], unfinished)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():  # a folder cannot be replaced in one step
        place.rename(old)
    unfinished.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return place


def _dated(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifest's notebooks, each built one with the machine it ran on: others that are kept may have another."""
    where = {key: made[key] for key in manifest.MACHINE if key in made}
    return [{**where, **book} if manifest.is_built(book) else book for book in made["notebooks"]]


def _built(made: Mapping[str, Any]) -> set[str]:
    return {book["name"] for book in made["notebooks"] if manifest.is_built(book)}


def _sweeps(before: Mapping[str, Any], made: Mapping[str, Any], rows: Mapping[str, Any]) -> list[Any]:
    """What trained the runs of everything that is kept: the sweeps of this build and those of notebooks from before."""
    read = {value for book in rows.values() for value in book["parameters"].values() if isinstance(value, str)}
    now = {sweep["folder"] for sweep in made["sweeps"]}
    return made["sweeps"] + [s for s in before["sweeps"] if s["folder"] in read - now]


def _keep(figure: Mapping[str, Any], out: Path, place: Path) -> dict[str, Any]:
    """A figure's smallest picture, and its table if that is a small one, else that of its means if that is, and of the
    curves the epochs with an attack; the figure with the hashes of what is kept."""
    import pandas as pd

    files, hashes = [Path(file) for file in figure["files"]], dict(figure["files"])
    picture = min((file for file in files if file.suffix in PICTURES), key=lambda file: PICTURES.index(file.suffix))
    kept = place / picture
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(_light(manifest.content(figure, picture.as_posix(), out), picture.suffix))
    hashes[picture.as_posix()] = stamp.sha256(kept)
    for file in files:
        if file.suffix == ".parquet":
            table = pd.read_parquet(io.BytesIO(manifest.content(figure, file.as_posix(), out)))
            text, written = _csv(table), file.with_suffix(".csv")
            if len(text) > LARGEST and file.stem in CURVES and {"run", "epoch", "pgd", "seconds"} <= set(table.columns):
                text = _csv(_attacked(table))
            elif len(text) > LARGEST and {"sample", "arm"} <= set(table.columns):
                text, written = _csv(_means(table)), file.with_suffix(".means.csv")
            if len(text) <= LARGEST or file.stem in CURVES:
                (place / written).write_bytes(text)
                hashes[written.as_posix()] = stamp.sha256(place / written)
    return {**figure, "files": hashes}


def _shared(figures: Sequence[Mapping[str, Any]], place: Path) -> list[dict[str, Any]]:
    """The figures, those of one notebook with the same table with the file of the first: the others' are removed."""
    first: dict[tuple[str, str], str] = {}
    shared = []
    for figure in figures:
        files = {}
        for file, digest in figure["files"].items():
            is_table = file.endswith(".csv")
            name = first.setdefault((figure["notebook"]["name"], digest), file) if is_table else file
            if name != file:
                (place / file).unlink(missing_ok=True)
            files[name] = digest
        shared.append({**figure, "files": files})
    return shared


def _csv(table: Any) -> bytes:
    return bytes(table.to_csv(index=False, float_format="%.6g").encode())


def _means(table: Any) -> Any:
    """The means over samples of all that has one, where it is a number, and of how many samples at most."""
    words = set(table.select_dtypes(exclude=["number", "bool"]))
    axes = [name for name in table if name in words or name in AXES]
    groups = table.drop(columns="predicted", errors="ignore").groupby(axes, sort=False, dropna=False)
    means = groups.mean(numeric_only=True).drop(columns="sample")
    return means.assign(samples=groups["sample"].nunique()).reset_index()


def _attacked(course: Any) -> Any:
    """The epochs at the end of which a model was attacked, and each run's last; `seconds` are those since the row
    before, so that they still add up to the run's."""
    last = course.groupby("run")["epoch"].transform("max")
    spent = course.assign(seconds=course.groupby("run")["seconds"].cumsum())
    kept = spent[course["pgd"].notna() | (course["epoch"] == last)]
    return kept.assign(seconds=kept["seconds"] - kept.groupby("run")["seconds"].shift(fill_value=0.0))


def _light(picture: bytes, kind: str) -> bytes:
    """The picture, or where it is heavy one of fewer pixels: to look at here, while the build has it whole."""
    if len(picture) <= LIGHT or kind != ".webp":
        return picture
    from PIL import Image

    whole, small = Image.open(io.BytesIO(picture)).convert("RGB"), io.BytesIO()
    share = min(1.0, WIDEST / whole.width)
    size = round(whole.width * share), round(whole.height * share)
    whole.resize(size, Image.Resampling.LANCZOS).save(small, "WEBP", quality=80, method=6)
    return min(picture, small.getvalue(), key=len)


def summary(place: Path) -> str:
    """What lies in a folder of kept figures, in a line."""
    files = [path for path in place.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    made = manifest.read(place)
    missing = [book["name"] for book in made["notebooks"] if book["name"] not in _built(made)]
    older = [book["name"] for book in made["notebooks"] if manifest.is_built(book) and book["commit"] != made["commit"]]
    rest = f"; not yet: {', '.join(missing)}" if missing else ""
    rest += f"; of another commit: {', '.join(older)}" if older else ""
    return f"{place}: {len(files)} files, {size / 1e6:.1f} MB, built {made['built_at']}{rest}"
