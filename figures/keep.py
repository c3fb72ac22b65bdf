"""What is kept of a built set in the repository: its manifest, tables as CSV, pictures, and findings on pages."""

import io
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import manifest, stamp
from figures.lock import Lock

LARGEST = 175_000  # bytes of a table; of a larger one, of single samples, the means are kept
CURVES = ("training_curves",)  # tables of epochs, which a page is read off: of a larger one, those with an attack
TAKEN = ("out", "readme", "sets")  # folders of figures/ with another use
PICTURES = (".webp", ".png")  # the smaller first
LIGHT, WIDEST = 100_000, 1600  # bytes and pixels: a heavier picture is kept with no more pixels across than that
AXES = ("seed", "step", "alpha", "beta")  # numbers that tell means over samples apart, beside all words
ALL = "*"  # the mark of what is said of all sets together
BEGIN, END = "<!-- figures.{} -->", "<!-- /figures.{} -->"


def keep(out: Path, place: Path, pages: Sequence[Path] = ()) -> Path:
    """Copy what is worth keeping of the set that was built in `out` to `place`, which it replaces as a whole.

    A notebook that was not built there stays as it was kept before, under its own commit: hours of work may be done in
    several places. On the `pages`, if given, what stands between the set's marks becomes its findings, and between
    those for attacks, training, masking and the suite, where they have them, what each attack left, what was trained at
    what cost, how it was judged and what a suite broke in the end. Raises ValueError for a set of which nothing was
    built, a file that is not as it was built, a place with another use or in use, and pages without the marks.
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
    made |= {"notebooks": books, "figures": shown, "sweeps": _sweeps(before, made, rows)}
    stamp.replace(unfinished / "manifest.json", json.dumps({**made, "sha256": stamp.seal(made)}, indent=1))
    if pages:
        rewrite(pages, made["set"], unfinished)
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():  # a folder cannot be replaced in one step
        place.rename(old)
    unfinished.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return place


def _dated(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifest's notebooks, each built one with the machine it ran on: others that are kept may have another."""
    where = {key: made[key] for key in manifest.MACHINE if key in made}
    return [{**where, **book} if _is_built(book) else book for book in made["notebooks"]]


def _built(made: Mapping[str, Any]) -> set[str]:
    return {book["name"] for book in made["notebooks"] if _is_built(book)}


def _is_built(book: Mapping[str, Any]) -> bool:
    return bool(book["status"] == "built")


def _sweeps(before: Mapping[str, Any], made: Mapping[str, Any], rows: Mapping[str, Any]) -> list[Any]:
    """What trained the runs of everything that is kept: the sweeps of this build and those of notebooks from before."""
    read = {value for book in rows.values() for value in book["parameters"].values() if isinstance(value, str)}
    now = {sweep["folder"] for sweep in made["sweeps"]}
    return made["sweeps"] + [s for s in before["sweeps"] if s["folder"] in read - now]


def findings(place: Path) -> str:
    """A table of all claims, a row each, a column for each notebook of claims that was kept in `place`.

    A cell says the verdict, then what the study itself looks at (the claim's first line) with its interval, where
    something else contradicts the claim, that line, and of which controls a supported claim would be said as well.
    """
    import pandas as pd

    tables, controls = {}, {}
    for title, file in _kept_of(place, "claims"):
        table = pd.read_csv(file, na_filter=False)  # "" stays "": a line without an arm has no interval
        heading = f"{title} ({table['seeds'].max()} seeds, {table['samples'].max()} images)"
        tables[heading], beside = table, file.with_name("controls.csv")
        controls[heading] = pd.read_csv(beside, na_filter=False) if beside.is_file() else None
    if not tables:
        return ""
    rows = [["claim", "what the study looks at", *tables]]
    for claim, said in next(iter(tables.values())).groupby("claim", sort=False):
        first = said.iloc[0]
        head = [f"{claim}: {first['says']}", f"{first['measured']}, {first['difference of']}"]
        rows.append(
            head + [_cell(t[t["claim"] == claim]) + _shared(str(claim), controls[name]) for name, t in tables.items()]
        )
    return _table(rows)


def verdicts(places: Iterable[Path]) -> str:
    """A table of verdicts, a claim a row, a column for each notebook of claims that was kept in one of `places`.

    A dash is a claim of which nothing was measured there.
    """
    import pandas as pd

    columns = [
        (title, pd.read_csv(file, na_filter=False)) for place in places for title, file in _kept_of(place, "claims")
    ]
    if not columns:
        return ""
    rows = [["claim", *(title for title, _ in columns)]]
    for claim, lines in pd.concat([table for _, table in columns]).groupby("claim", sort=False):
        said = [_said(table[table["claim"] == claim]) for _, table in columns]
        rows.append([f"{claim}: {lines.iloc[0]['says']}", *said])
    return _table(rows)


def asked(places: Iterable[Path], claim: str) -> str:
    """A table of one claim, a row for each notebook of claims that was kept in one of `places`, a column a line of it.

    A cell says the difference with its interval, how that is read, and where it is there, of which controls it is too.
    """
    import pandas as pd

    rows: list[list[str]] = []
    for title, file in (found for place in places for found in _kept_of(place, "claims")):
        table, beside = pd.read_csv(file, na_filter=False), file.with_name("controls.csv")
        lines = table[table["claim"] == claim]
        if not len(lines) or (lines["difference"] == "").all():
            continue
        controls = pd.read_csv(beside, na_filter=False).query("claim == @claim") if beside.is_file() else lines[:0]
        rows = rows or [["group", "verdict", *(lines["measured"] + ", " + lines["difference of"])]]
        rows.append([title, _said(lines), *(_line(lines, number, controls) for number in range(len(lines)))])
    return _table(rows) if rows else ""


def withstood(place: Path) -> str:
    """A table of what each attack of the claims leaves, an arm a row, for each notebook of claims in `place`.

    Percent of images, means over seeds with the lowest and the highest.
    """
    import pandas as pd

    columns = {
        "clean": "clean", "pgd": "PGD", "hundred": "PGD, 100 steps", "longest": "PGD, longest",
        "pgd_margin": "PGD, margin", "hundred_margin": "margin, 100 steps", "longest_margin": "margin, longest",
        "square": "Square", "transfer": "transfer, of what is right", "worst": "worst case",
    }  # fmt: skip
    rows = [["group", "arm", *columns.values()]]
    longest = {
        book["name"]: book.get("parameters", {}).get("longest", "") for book in manifest.read(place)["notebooks"]
    }
    for title, _, file in _kept_of(place, "claims", "runs"):
        group = f"{title} (longest: {longest[file.parent.name]} steps)"
        for arm, said in pd.read_csv(file).groupby("arm", sort=False):
            rows.append([group, str(arm), *(_percent(said[name]) if name in said else "" for name in columns)])
    return _table(rows)


def trained(place: Path) -> str:
    """A table of what was trained, an arm a row, for each notebook of training that was kept in `place`.

    Accuracies on test images are means over seeds, with the lowest and the highest; the cost is a run's, a mean over
    seeds.
    """
    import pandas as pd

    found = [(title, *map(pd.read_csv, files)) for title, *files in _kept_of(place, "accuracy", "training_curves")]
    attacks = list(dict.fromkeys(attack for _, accuracy, _ in found for attack in accuracy["attack"]))
    rows = [["group", "arm", "seeds", *attacks, "epochs", "seconds a run"]]
    for title, accuracy, curves in found:
        for arm, said in accuracy.groupby("arm", sort=False):
            several = [said.loc[said["attack"] == attack, "accuracy"] for attack in attacks]
            spent = curves[curves["arm"] == arm]
            seconds = spent.groupby("seed")["seconds"].sum().mean()
            cost = [f"{spent['epoch'].max()}", f"{seconds:.{0 if seconds > 10 else 1}f}"] if len(spent) else ["", ""]
            rows.append([title, arm, f"{said['seed'].nunique()}", *map(_over_seeds, several), *cost])
    return _table(rows)


def judged(place: Path) -> str:
    """A table of verdicts on gradient masking, for each notebook of masking that was kept in `place`."""
    import pandas as pd

    verdicts = ("usable", "suspect", "masked")
    rows = [["group", *verdicts, "of what is not masked, the most that plain PGD misses"]]
    for title, file in _kept_of(place, "gaps"):
        said = pd.read_csv(file)
        models = ["; ".join(said.loc[said["verdict"] == verdict, "model"]) for verdict in verdicts]
        rest = said[said["verdict"] != "masked"]
        worst = rest.sort_values("gap").iloc[-1] if len(rest) else None
        most = "" if worst is None else (
            f"{worst['gap']:.1%} [{worst['low']:.1%}, {worst['high']:.1%}], {worst['model']}"
        )  # fmt: skip
        rows.append([title, *models, most])
    return _table(rows)


def beyond(place: Path) -> str:
    """A table of what a suite broke after every family of attacks had run alone, for each notebook of robust accuracy.

    Right images of all models together; what another model's points broke is the suite's too. Raises ValueError for a
    table that does not say of every model what the families left.
    """
    import pandas as pd

    rows = [["group", "models", "right, all models together", "of these families broke", "then a suite broke", "by"]]
    for title, file in _kept_of(place, "families"):
        said = pd.read_csv(file)
        rest = said[said["ran"] != "alone"]
        told = rest[rest["attack"] == "found on families"]
        if sorted(told["arm"]) != sorted(rest["arm"].unique()):
            raise ValueError(f"{file} has no row 'found on families' for each arm, expected what the families left")
        late = rest.drop(told.index).query("broke > 0")
        by = "; ".join(f'{row.attack}: {row.broke} of "{row.arm}"' for row in late.itertuples())
        counts = [len(told), told["met"].sum(), told["broke"].sum(), late["broke"].sum()]
        rows.append([title, *map(str, counts), by])
    return _table(rows)


PARTS = {"attacks": withstood, "training": trained, "masking": judged, "suite": beyond}  # beside the findings


def rewrite(pages: Sequence[Path], name: str, place: Path) -> None:
    """Replace what stands between a set's marks by its findings, and between those of its parts by their tables.

    The marks may stand on any of the pages, of which the first is there. Between those of `ALL` come the verdicts of
    this set and of those kept beside it, as far as they have marks, in the order of these, and between those of `ALL`
    and a claim what they say of it, line by line. Raises ValueError where the
    marks of the findings, or all marks of a set without any, or the end of others, are missing, and for a table that a
    part cannot be read off.
    """
    texts = {page: page.read_text(encoding="utf-8") for page in pages if page == pages[0] or page.is_file()}
    whole = "\n".join(texts.values())
    tables = {name: findings(place)}
    parts = {f"{name}.{part}": table for part, table in PARTS.items() if BEGIN.format(f"{name}.{part}") in whole}
    tables |= {mark: table(place) for mark, table in parts.items()}
    marks = list(tables if tables[name] or BEGIN.format(name) in whole or not parts else parts)
    if BEGIN.format(ALL) in whole:
        places = [place if one == name else place.parent / one for one in re.findall(BEGIN.format(r"([\w-]+)"), whole)]
        places = [one for one in places if (one / "manifest.json").is_file()]
        claims = re.findall(BEGIN.format(rf"{re.escape(ALL)}\.(\w+)"), whole)
        tables |= {ALL: verdicts(places)} | {f"{ALL}.{claim}": asked(places, claim) for claim in claims}
        marks += [ALL, *(f"{ALL}.{claim}" for claim in claims)]
    for mark in marks:
        begin, end = BEGIN.format(mark), END.format(mark)
        page = next((page for page, text in texts.items() if begin in text), pages[0])
        if end not in texts[page].partition(begin)[2]:
            raise ValueError(f"{page} has no {begin} ... {end} to write between")
        before, _, rest = texts[page].partition(begin)
        texts[page] = f"{before}{begin}\n{tables[mark]}{end}{rest.partition(end)[2]}"
    for page, text in texts.items():
        stamp.replace(page, text)


def _kept_of(place: Path, *names: str) -> list[list[Any]]:
    """The title and the tables of these names, of each notebook that has them all."""
    found = [
        [book["title"], *(place / book["name"] / f"{name}.csv" for name in names)]
        for book in manifest.read(place)["notebooks"]
        if _is_built(book)
    ]
    return [row for row in found if all(file.is_file() for file in row[1:])]


def _table(rows: list[list[str]]) -> str:
    """Markdown; nothing of a heading alone."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n" if len(rows) > 1 else ""


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


def _cell(lines: Any) -> str:
    """A claim in one group of models."""
    first, verdict = lines.iloc[0], lines.iloc[0]["verdict"]
    text = f"**{verdict}** {_interval(first)}"
    absent = lines[lines["reading"] == "not there"]
    if verdict == "contradicted" and first["reading"] != "not there" and len(absent):
        against = absent.iloc[0]
        text += f"; {against['measured']}, {against['difference of']}: {_interval(against)}"
    return text


def _said(lines: Any) -> str:
    """The verdict on a claim, alone."""
    if (lines["difference"] == "").all():
        return "–"
    verdict = str(lines.iloc[0]["verdict"])
    return verdict if verdict == "open" else f"**{verdict}**"


def _line(lines: Any, number: int, controls: Any) -> str:
    """A line of a claim in one group of models, and the controls of which it is there too, on the same side."""
    line = lines.iloc[number]
    text = f"{_interval(line)} {line['reading']}"
    if line["reading"] != "there":
        return text
    its = controls[controls.groupby("place").cumcount() == number] if len(controls) else controls
    same = its[(its["reading"] == "there") & (its["place"] != "RL")]
    places = [row.place for row in same.itertuples() if (float(row.difference) > 0) == (float(line["difference"]) > 0)]
    return text + (f", likewise {' / '.join(places)}" if places else "")


def _shared(claim: str, controls: Any) -> str:
    """The controls of which a claim would be said as well, in the same words."""
    if controls is None:
        return ""
    said = controls[(controls["claim"] == claim) & (controls["verdict"] == "supported")]
    places = list(dict.fromkeys(said["place"]))
    others = [place for place in places if place != "RL"]
    return f"; likewise {' / '.join(others)}" if "RL" in places and others else ""


def _percent(shares: Any) -> str:
    known = 100 * shares.dropna()
    if not len(known):
        return ""
    spread = f" [{known.min():.0f}, {known.max():.0f}]" if len(known) > 1 else ""
    return f"{known.mean():.0f}{spread}"


def _over_seeds(shares: Any) -> str:
    mean = f"{shares.mean():.1%}" if len(shares) else ""
    return f"{mean} [{shares.min():.1%}, {shares.max():.1%}]" if len(shares) > 1 else mean


def _interval(line: Any) -> str:
    try:
        return f"{float(line['difference']):+.3f} [{float(line['low']):+.3f}, {float(line['high']):+.3f}]"
    except ValueError:  # not measured: an arm is missing, or one seed alone
        return "not measured" if line["difference"] == "" else f"{float(line['difference']):+.3f}, one seed"


def summary(place: Path) -> str:
    """What lies in a folder of kept figures, in a line."""
    files = [path for path in place.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    made = manifest.read(place)
    missing = [book["name"] for book in made["notebooks"] if book["name"] not in _built(made)]
    older = [book["name"] for book in made["notebooks"] if _is_built(book) and book["commit"] != made["commit"]]
    rest = f"; not yet: {', '.join(missing)}" if missing else ""
    rest += f"; of another commit: {', '.join(older)}" if older else ""
    return f"{place}: {len(files)} files, {size / 1e6:.1f} MB, built {made['built_at']}{rest}"
