"""Command line: `python -m figures {list,build,compare,gallery,keep}`."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from figures import build, gallery, keep, manifest, own, plan, sets
from figures.own import Model
from figures.plan import portable

ROOT = Path(__file__).resolve().parent.parent
Name = Annotated[str, tyro.conf.arg(name="set", metavar="SET"), tyro.conf.Positional]
Chosen = Annotated[str | None, tyro.conf.arg(name="set", metavar="[SET]"), tyro.conf.Positional]
NONE = Model()


@dataclass(frozen=True)
class List:
    """Show the sets, their notebooks and whether they are built."""


@dataclass(frozen=True)
class Build:
    """Train what a set needs, execute its notebooks that are not current, and write manifest and gallery."""

    name: Chosen = None  # one of the names that `list` shows; the set "model" where --model is given
    own: tyro.conf.OmitArgPrefixes[Model] = NONE
    only: tuple[str, ...] = ()  # only these notebooks
    jobs: int | None = None  # notebooks side by side; as many as there are cores if not given
    profile: str = sets.FULL  # full, or a profile of the set, such as smoke
    out: Path | None = None  # where to; figures/out/SET if not given
    runs: Path | None = None  # the folder of trained runs, instead of the set's own
    dataset: str | None = None  # train and measure on this one, such as cifar10, instead of the set's own
    timeout: float | None = None  # seconds a notebook; the set's own, or 600, if not given
    force: bool = False  # execute also what is current
    engine: Literal["local", "ray"] = "local"  # processes of this machine, or Ray (the extra cluster) on a shared disk
    address: str | None = None  # HOST:PORT of a Ray cluster's head; if not given, one is started on this machine
    cpus: float | None = None  # Ray: cores that a run and a notebook reserve; 1 if not given
    gpus: float | None = None  # Ray: GPUs, or the share of one, that a run and a notebook reserve
    memory: str | None = None  # Ray: memory that a run and a notebook reserve, such as 2GiB


@dataclass(frozen=True)
class Compare:
    """Show trained runs side by side: settings that differ, courses, what an attacker meets, accuracies."""

    chosen: Annotated[tuple[Path, ...], tyro.conf.arg(name="runs", metavar="RUN..."), tyro.conf.Positional]
    samples: int = 128  # test images
    out: Path | None = None  # where to; a folder of its own for these runs, in figures/out, if not given
    timeout: float = 600  # seconds
    force: bool = False  # execute also what is current


@dataclass(frozen=True)
class Gallery:
    """Make the page of a built set again from what is on disk."""

    name: Name  # one of the names that `list` shows
    out: Path | None = None  # where the set was built; figures/out/SET if not given
    profile: str = sets.FULL  # which profile of the set was built there


@dataclass(frozen=True)
class Keep:
    """Keep what a built set found in the repository: manifest, tables as CSV, pictures, and its findings on pages."""

    name: Name  # one of the names that `list` shows
    out: Path | None = None  # where the set was built; figures/out/SET if not given
    to: Path | None = None  # what to replace; figures/SET if not given
    readme: bool = False  # also write the findings into README.md and figures/FINDINGS.md, between the set's marks


def main(words: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run a command; 0: done, 1: a notebook, the sweep or the disk failed, 2: it makes no sense as it stands."""
    chosen = tyro.cli(
        List | Build | Compare | Gallery | Keep, args=words, prog="python -m figures", description=__doc__
    )
    try:
        match chosen:
            case Build():
                return build.build(_planned(chosen, root))
            case Compare():
                return build.build(_beside(chosen, root))
            case Gallery(name=name, out=out, profile=profile):
                sets.load(name, root).under(profile)
                print(gallery.write(out.resolve() if out else plan.folder(name, root, profile)))
            case Keep(name=name, out=out, to=to, readme=readme):
                sets.load(name, root)
                kept = keep.keep(
                    out.resolve() if out else plan.folder(name, root),
                    to.resolve() if to else root / "figures" / name,
                    [root / "README.md", root / "figures" / "FINDINGS.md"] if readme else [],
                )
                print(keep.summary(kept))
            case _:
                print("\n".join(line for name in sets.names(root) for line in _described(name, root)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        command = " ".join(["python", *error.cmd[1:]])
        print(f"error: the sweep ended with exit code {error.returncode}, no notebook was executed\n  {command}",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


def _planned(asked: Build, root: Path) -> plan.Plan:
    """The plan of a build; a model of one's own is adopted once everything else is known to make sense."""
    options = {key: value for key, value in vars(asked).items() if key not in ("name", "own")}
    if asked.name is None and asked.own.model is None:
        raise ValueError(f"no set is named{sets.nearest('', sets.names(root))}; or give a model of your own: --model")
    name = asked.name or own.SET
    said = sets.load(name, root).model
    first = plan.plan(name, root, **options)
    if name != own.SET and not said and not asked.own.options:
        return first
    adopted = own.adopt(said, asked.own.options, root, Path.cwd())
    options["runs"] = adopted.runs
    options["out"] = asked.out or plan.folder(adopted.name if name == own.SET else name, root, asked.profile)
    return plan.plan(name, root, own=adopted, **options)


def _beside(asked: Compare, root: Path) -> plan.Plan:
    """The plan of a comparison: the set `compare` on a folder that holds these runs and no others, by links."""
    paths = [path.resolve() for path in asked.chosen]
    if not paths:
        raise ValueError("runs are none, expected at least one folder of a finished run")
    for path in paths:
        if not (path / "run.json").is_file():
            raise ValueError(f"run {portable(path, root)!r} has no run.json, expected the folder of a finished run")
    datasets = {str(json.loads((path / "run.json").read_text())["config"]["dataset"]) for path in paths}
    if len(datasets) > 1:
        raise ValueError(f"runs are of {', '.join(sorted(datasets))}, expected one data set: no image is in both")
    label = hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()[:8]
    folder = root / "runs" / "compared" / label
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        # two folders may each hold a run of this name
        link = folder / (
            path.name if [p.name for p in paths].count(path.name) == 1 else f"{path.parent.name}-{path.name}"
        )
        link.unlink(missing_ok=True)
        link.symlink_to(path, target_is_directory=True)
    out = asked.out or root / "figures" / "out" / f"compare-{label}"
    given = {"dataset": datasets.pop(), "samples": asked.samples}
    return plan.plan("compare", root, out=out, runs=folder, timeout=asked.timeout, force=asked.force, given=given)


def _described(name: str, root: Path) -> list[str]:
    found = sets.load(name, root)
    lines = [f"{name}: {found.title}", f"  notebooks  {', '.join(book.name for book in found.notebooks)}"]
    for profile in [sets.FULL, *found.profiles]:
        try:
            made = manifest.read(plan.folder(name, root, profile))
        except ValueError:
            lines.append(f"  {profile:<10} not built")
            continue
        built = sum(book["status"] == "built" for book in made["notebooks"])
        lines.append(f"  {profile:<10} {built} of {len(made['notebooks'])} notebooks built, {made['built_at']}")
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; finished notebooks are kept", file=sys.stderr)
        sys.exit(130)
