"""Command line: `python -m figures {list,build,gallery}`."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from figures import build, gallery, manifest, plan, sets

ROOT = Path(__file__).resolve().parent.parent
Name = Annotated[str, tyro.conf.arg(name="set", metavar="SET"), tyro.conf.Positional]


@dataclass(frozen=True)
class List:
    """Show the sets, their notebooks and whether they are built."""


@dataclass(frozen=True)
class Build:
    """Train what a set needs, execute its notebooks that are not current, and write manifest and gallery."""

    name: Name  # one of the names that `list` shows
    only: tuple[str, ...] = ()  # only these notebooks
    jobs: int | None = None  # notebooks side by side; as many as there are cores if not given
    profile: str = sets.FULL  # full, or a profile of the set, such as smoke
    out: Path | None = None  # where to; figures/out/SET if not given
    runs: Path | None = None  # the folder of trained runs, instead of the set's own
    timeout: float = 600  # seconds a notebook
    force: bool = False  # execute also what is current


@dataclass(frozen=True)
class Gallery:
    """Make the page of a built set again from what is on disk."""

    name: Name  # one of the names that `list` shows
    out: Path | None = None  # where the set was built; figures/out/SET if not given
    profile: str = sets.FULL  # which profile of the set was built there


def main(words: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run a command; 0: done, 1: a notebook or the sweep failed, 2: the command makes no sense as it stands."""
    chosen = tyro.cli(List | Build | Gallery, args=words, prog="python -m figures", description=__doc__)
    try:
        match chosen:
            case Build(name=name):
                options = {key: value for key, value in vars(chosen).items() if key != "name"}
                return build.build(plan.plan(name, root, **options))
            case Gallery(name=name, out=out, profile=profile):
                sets.load(name, root).under(profile)
                print(gallery.write(out.resolve() if out else plan.folder(name, root, profile)))
            case _:
                print("\n".join(line for name in sets.names(root) for line in _described(name, root)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        command = " ".join(["python", *error.cmd[1:]])
        print(f"error: the sweep ended with exit code {error.returncode}, no notebook was executed\n  {command}",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


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
