"""What is said of kept sets on pages: tables in Markdown, read off what was kept, between marks."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from figures import manifest, stamp

ALL = "*"  # the mark of what is said of all sets together
BEGIN, END = "<!-- figures.{} -->", "<!-- /figures.{} -->"


def claims(place: Path) -> str:
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


def line_by_line(places: Iterable[Path], claim: str) -> str:
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
        name = f"{title} ({lines['seeds'].max()} seeds, {lines['samples'].max()} images)"
        rows.append([name, _said(lines), *(_line(lines, number, controls) for number in range(len(lines)))])
    return _table(rows)


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


PARTS = {"attacks": withstood, "training": trained, "masking": judged, "suite": beyond}  # beside the claims


def rewrite(pages: Sequence[Path], name: str, place: Path) -> None:
    """Replace what stands between a set's marks by its claims, and between those of its parts by their tables.

    The marks may stand on any of the pages, of which the first is there. Between those of `ALL` come the verdicts of
    this set and of those kept beside it, as far as they have marks, in the order of these, and between those of `ALL`
    and a claim what they say of it, line by line. Raises ValueError where all marks of a set, or the end of some, are
    missing, and for a table that a part cannot be read off.
    """
    texts = {page: page.read_text(encoding="utf-8") for page in pages if page == pages[0] or page.is_file()}
    for mark, table in _marked("\n".join(texts.values()), name, place).items():
        begin, end = BEGIN.format(mark), END.format(mark)
        page = next((page for page, text in texts.items() if begin in text), pages[0])
        if end not in texts[page].partition(begin)[2]:
            raise ValueError(f"{page} has no {begin} ... {end} to write between")
        before, _, rest = texts[page].partition(begin)
        texts[page] = f"{before}{begin}\n{table}{end}{rest.partition(end)[2]}"
    for page, text in texts.items():
        stamp.replace(page, text)


def _marked(text: str, name: str, place: Path) -> dict[str, str]:
    """What belongs between which marks."""
    tables = {f"{name}.{part}": table(place) for part, table in PARTS.items() if BEGIN.format(f"{name}.{part}") in text}
    if BEGIN.format(name) in text or not tables:
        tables = {name: claims(place), **tables}
    if BEGIN.format(ALL) in text:
        named = dict.fromkeys(re.findall(BEGIN.format(r"([\w-]+)(?:\.\w+)?"), text))
        beside = [place if one == name else place.parent / one for one in named]
        beside = [one for one in beside if (one / "manifest.json").is_file()]
        single = re.findall(BEGIN.format(rf"{re.escape(ALL)}\.(\w+)"), text)
        tables |= {ALL: verdicts(beside), **{f"{ALL}.{claim}": line_by_line(beside, claim) for claim in single}}
    return tables


def _kept_of(place: Path, *names: str) -> list[list[Any]]:
    """The title and the tables of these names, of each notebook that has them all."""
    found = [
        [book["title"], *(place / book["name"] / f"{name}.csv" for name in names)]
        for book in manifest.read(place)["notebooks"]
        if manifest.is_built(book)
    ]
    return [row for row in found if all(file.is_file() for file in row[1:])]


def _table(rows: list[list[str]]) -> str:
    """Markdown; nothing of a heading alone."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n" if len(rows) > 1 else ""


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
    """A line of a claim in one group of models, and the controls of which it is there too; if it may be there on two
    sides, on the same one."""
    line = lines.iloc[number]
    text = f"{_interval(line)} {line['reading']}"
    if line["reading"] != "there":
        return text
    its = controls[controls.groupby("place").cumcount() == number] if len(controls) else controls
    same = its[(its["reading"] == "there") & (its["place"] != "RL")]
    if str(line.get("expected", "")).startswith("beyond"):
        same = same[same["difference"].astype(float).gt(0) == (float(line["difference"]) > 0)]
    return text + (f", likewise {' / '.join(same['place'])}" if len(same) else "")


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
