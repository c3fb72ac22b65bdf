"""Sets and parameters are refused at the door, by name and before a kernel starts."""

import json
import subprocess
from typing import get_args

import pytest

from figures import __main__ as cli
from figures import execute, manifest, parameters, plan, sets
from figures.__main__ import ROOT
from gradlens.masking.evaluate import Budget
from gradlens.robustness.suites import SUITES
from tests.figures.conftest import PARAMETERS, STUDIES
from training.schedule import label
from training.sweep import grid


def refused(house, capsys, *words: str) -> str:
    assert house.run("build", *words) == 2
    assert not house.out.exists()
    return capsys.readouterr().err


def test_the_set_of_this_repository_can_be_read():
    digits = sets.load("digits", ROOT)
    names = {book.name for book in digits.notebooks}
    assert names >= {"training", "dynamics", "entropy", "input_landscape"}
    assert names <= {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    smoke = digits.under("smoke")
    assert smoke.sweep == "training/sweeps/smoke.toml"
    assert plan.plan("digits", ROOT).sweeps == {
        "runs/digits": "training/sweeps/digits.toml",
        "runs/digits-mlp": "training/sweeps/digits-mlp.toml",
    }
    assert "runs/digits-hybrid" in plan.plan("digits-claims", ROOT).sweeps
    assert list(plan.plan("digits", ROOT, only=["entropy"]).sweeps) == ["runs/digits"]
    assert list(plan.plan("digits", ROOT, profile="smoke").sweeps) == ["runs/smoke"]
    assert all(book.parameters["runs"] == "runs/smoke" and book.parameters["seed"] == 0 for book in smoke.notebooks)


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet100"])
def test_the_study_asks_the_same_on_other_data(dataset, name):
    """Unchanged files: all that is another is the data set, and the folders of what was trained on it."""
    usual, moved = plan.plan(name, ROOT), plan.plan(name, ROOT, dataset=dataset)
    assert {folder.removesuffix(f"-{dataset}"): path for folder, path in moved.sweeps.items()} == usual.sweeps
    assert set(moved.sweeps).isdisjoint(usual.sweeps)
    for book, other in zip(usual.notebooks, moved.notebooks, strict=True):
        assert (book.name, book.file) == (other.name, other.file)
        assert other.parameters["dataset"] == dataset
        assert other.parameters["runs"] in moved.sweeps
        assert other.parameters.get("others", "") in {"", *moved.sweeps}
        folders = ("runs", "others", "dataset")
        assert {k: v for k, v in book.parameters.items() if k not in folders} == {
            k: v for k, v in other.parameters.items() if k not in folders
        }
        assert not any(word in other.title.lower() for word in ("digits", "fashion"))
    assert dataset in moved.chosen.about
    assert (moved.called, moved.out) == (f"{name}-{dataset}", ROOT / "figures" / "out" / f"{name}-{dataset}")
    for path in moved.sweeps.values():
        runs = grid(ROOT / path, [dataset])
        assert {config.dataset for config in runs.values()} == {dataset}
        assert len(runs) == len(grid(ROOT / path))
    assert manifest.reproduce(moved) == f"python -m figures build {name} --dataset {dataset}"
    smoke = plan.plan(name, ROOT, dataset=dataset, profile="smoke")
    assert smoke.sweeps == {f"runs/study-smoke-{dataset}": "training/sweeps/study-smoke.toml"}
    assert {book.parameters["dataset"] for book in smoke.notebooks} == {dataset}


def test_a_moved_set_trains_on_the_other_data(house, capsys, monkeypatch):
    asked, run = [], subprocess.run

    def noted(command: list[str], **options: object) -> object:
        asked.append(command)
        return None if "sweep" in command else run(command, **options)

    monkeypatch.setattr(subprocess, "run", noted)
    house.edit_set("[parameters]", 'sweep = "a.toml"\n[parameters]\ndataset = "digits"')
    for name in ("one", "two"):
        house.notebook(name, house.figure(name), parameters=PARAMETERS + 'dataset = "digits"\n')
    (house.root / "a.toml").write_text("")
    (house.root / "runs" / "tiny").rename(house.root / "runs" / "tiny-cifar10")
    assert house.build("--dataset", "cifar10") == 0
    (trained,) = (command for command in asked if "sweep" in command)
    assert trained[-6:] == ["sweep", "a.toml", "--out", "runs/tiny-cifar10", "--datasets", "cifar10"]
    made = manifest.read(house.out.with_name("tiny-cifar10"))
    assert made["set"] == "tiny-cifar10"
    assert {book["parameters"]["dataset"] for book in made["notebooks"]} == {"cifar10"}


def test_only_a_set_that_trains_can_be_moved(house, capsys):
    assert "dataset is 'cifar10', expected none: the set 'tiny' has no sweep" in refused(
        house, capsys, "tiny", "--dataset", "cifar10"
    )
    for name in ("", "../elsewhere", "two words"):
        assert f"dataset is {name!r}, expected the name" in refused(house, capsys, "tiny", "--dataset", name)
    assert "expected none beside --runs" in refused(
        house, capsys, "tiny", "--dataset", "cifar10", "--runs", "runs/tiny"
    )


@pytest.mark.parametrize("name", [name for name in sets.names(ROOT) if name not in ("model", "compare")])
def test_every_set_of_this_repository_can_be_planned(name: str):
    found = sets.load(name, ROOT)
    for profile in [sets.FULL, *found.profiles]:
        asked = plan.plan(name, ROOT, profile=profile)
        assert asked.sweeps
        assert all(folder.startswith("runs/") for folder in asked.sweeps)
        assert {book.parameters["runs"] for book in asked.notebooks} <= set(asked.sweeps)
        assert [book.name for book in asked.notebooks] == [book.name for book in found.notebooks]
        trained = {
            folder: {config.called or label(config.schedule) for config in grid(ROOT / path).values()}
            for folder, path in asked.sweeps.items()
        }
        for book in asked.notebooks:  # the arms that it shows
            wanted = {arm.strip() for arm in book.parameters.get("only", "").split("|")} - {""}
            assert wanted <= trained[book.parameters["runs"]], (profile, book.name)
    assert found.about.endswith(".")


@pytest.mark.parametrize(
    ("runs", "said"),
    [([], "runs are none"), (["nowhere"], "has no run.json"), (["a", "b"], "runs are of digits, fashion-mnist")],
)
def test_what_cannot_stand_side_by_side_is_refused(house, capsys, runs, said):
    for name, dataset in (("a", "digits"), ("b", "fashion-mnist")):
        (house.root / name).mkdir()
        (house.root / name / "run.json").write_text(json.dumps({"config": {"dataset": dataset}}))
    assert house.run("compare", *(str(house.root / name) for name in runs)) == 2
    assert said in capsys.readouterr().err


def test_runs_of_one_name_stand_side_by_side(house):
    (house.root / "figures" / "sets" / "compare.toml").write_text((ROOT / "figures/sets/compare.toml").read_text())
    (house.root / "notebooks" / "compare.ipynb").write_text((ROOT / "notebooks/compare.ipynb").read_text())
    paths = []
    for folder in ("first", "second"):
        paths.append(house.root / folder / "sl-0")
        paths[-1].mkdir(parents=True)
        (paths[-1] / "run.json").write_text(json.dumps({"config": {"dataset": "fashion-mnist"}}))
    asked = cli._beside(cli.Compare(tuple(paths), samples=7), house.root)
    (book,) = asked.notebooks
    assert (book.parameters["dataset"], book.parameters["samples"]) == ("fashion-mnist", 7)
    links = {link.name: link.resolve() for link in (house.root / str(asked.runs)).iterdir()}
    assert links == {"first-sl-0": paths[0], "second-sl-0": paths[1]}


def test_a_profile_wins_over_a_notebook_and_a_notebook_over_its_set(house):
    house.edit_set("level = 1", "level = 1, samples = 99")
    tiny = sets.load("tiny", house.root)
    assert [book.parameters["samples"] for book in tiny.under("full").notebooks] == [3, 99]
    assert [book.parameters["samples"] for book in tiny.under("smoke").notebooks] == [1, 1]
    assert {book.parameters["runs"] for book in tiny.under("smoke", {"runs": "mine"}).notebooks} == {"mine"}
    house.edit_set("samples = 1 }", "samples = 1 }\n[profiles.smoke.notebook.two]\nsamples = 7")
    tiny = sets.load("tiny", house.root)
    assert [book.parameters["samples"] for book in tiny.under("smoke").notebooks] == [1, 7]


def test_a_profile_takes_what_it_leaves_open_from_another_sets(house, capsys):
    place = house.root / "figures" / "sets"
    tiny = (place / "tiny.toml").read_text() + "[profiles.smoke.notebook.two]\nlevel = 0.25\nsamples = 7\n"
    (place / "tiny.toml").write_text(tiny.replace("[profiles.smoke]\n", '[profiles.smoke]\nsweep = "small.toml"\n'))
    more = tiny.partition("[profiles.smoke]")[0] + '[[notebook]]\nname = "two"\ncalled = "again"\n'
    (place / "other.toml").write_text(
        more + '[profiles.smoke]\nlike = "tiny"\nparameters = { runs = "more" }\n'
        "[profiles.smoke.notebook.again]\nsamples = 2\n"
    )
    smoke = sets.load("other", house.root).under("smoke")
    assert smoke.sweep == "small.toml"
    books = {book.name: book.parameters for book in smoke.notebooks}
    assert books == {
        "one": {"runs": "more", "samples": 1},
        "two": {"runs": "more", "samples": 7, "level": 0.25},
        "again": {"runs": "more", "samples": 2, "level": 0.25},
    }
    (place / "other.toml").write_text(more + '[profiles.quick]\nlike = "tiny"\n')
    assert "[profiles.quick]: like is 'tiny', which has no profile 'quick'" in refused(house, capsys, "other")
    (place / "other.toml").write_text(more + '[profiles.smoke]\nlike = "tinny"\n')
    said = "other.toml, [profiles.smoke]: like is 'tinny', expected another set; did you mean 'tiny'?"
    assert said in refused(house, capsys, "other")
    (place / "other.toml").write_text(more + '[profiles.smoke]\nlike = "third"\n')
    (place / "third.toml").write_text(more + '[profiles.smoke]\nlike = "other"\n')
    assert "third.toml, [profiles.smoke]: like is 'other', expected another set" in refused(house, capsys, "other")


def test_a_set_says_how_long_its_notebooks_may_take_and_the_builder_knows_better(house):
    assert plan.plan("tiny", house.root).timeout == 600
    house.edit_set("[parameters]", "timeout = 7200\n[parameters]")
    assert plan.plan("tiny", house.root).timeout == 7200
    assert plan.plan("tiny", house.root, timeout=5.0).timeout == 5.0
    house.edit_set("timeout = 7200", "timeout = -1")
    with pytest.raises(ValueError, match="timeout is -1, expected seconds above 0"):
        plan.plan("tiny", house.root)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tinny"], "no figure set 'tinny'; did you mean 'tiny'?"),
        (["tiny", "--only", "tow"], "no notebook 'tow'; did you mean 'two'?"),
        (["tiny", "--profile", "smok"], "no profile 'smok'; did you mean 'smoke'?"),
        (["tiny", "--jobs", "0"], "jobs is 0, expected at least 1"),
        (["tiny", "--timeout", "0"], "timeout is 0.0, expected seconds above 0"),
    ],
)
def test_a_wrong_word_is_named_with_the_nearest_right_one(house, capsys, words: list[str], said: str):
    assert said in refused(house, capsys, *words)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("about", "abuot", "unknown key 'abuot'; did you mean 'about'?"),
        ("level = 1 }", "level = 1 }\nparameter = 1", "unknown key 'parameter'; did you mean 'parameters'?"),
        ('title = "A tiny set"', "title = 3", "title is 3, expected a str"),
        ('name = "two"', 'name = "one"', "names the notebook 'one' twice"),
        ('name = "two"', 'name = "two"\ncalled = "a/b"', "called is 'a/b', expected a name for a folder"),
        ('name = "two"', 'name = "../two"', "name is '../two', expected a file of notebooks/"),
        ("samples = 3", 'out = "here"', "the parameter out is chosen by the build"),
        ("[[notebook]]", "[[notebook", "is not TOML"),
        (
            "[profiles.smoke]",
            "[profiles.smoke.notebook.tow]\nlevel = 1\n[profiles.smoke]",
            "there is no notebook 'tow'",
        ),
        ("samples = 3", "sampels = 3", "no parameter 'sampels'; did you mean 'samples'?"),
        ("samples = 3", "samples = 3.5", 'samples is 3.5, expected int ("images measured; n = 4 is a test")'),
        ("samples = 3", 'samples = "3"', "samples is '3', expected int"),
        ("samples = 3", "samples = true", "samples is True, expected int"),
        ('runs = "runs/tiny"', "runs = 3", 'runs is 3, expected str ("folder of trained runs")'),
        ("title", 'sweep = "training/none.toml"\ntitle', "sweep 'training/none.toml', and there is no such file"),
    ],
)
def test_a_wrong_set_is_refused_before_a_kernel_starts(house, capsys, old: str, new: str, said: str):
    house.edit_set(old, new)
    assert said in refused(house, capsys, "tiny")


def test_a_notebook_that_is_not_there_or_has_no_parameters_is_refused(house, capsys):
    two = house.root / "notebooks" / "two.ipynb"
    two.write_text(two.read_text().replace('"parameters"\n', '"parameter"\n'))
    assert "notebooks/two.ipynb has no cell with the tag 'parameters'" in refused(house, capsys, "tiny")
    two.rename(two.with_name("tow.ipynb"))
    assert "there is no notebooks/two.ipynb; did you mean 'tow'?" in refused(house, capsys, "tiny")


@pytest.mark.parametrize(
    ("line", "value", "fits"),
    [
        ("p: int | None = None", 3, True),
        ("p: int | None = None", "3", False),
        ("p: float = 1.0", 2, True),
        ("p: float = 1.0", True, False),
        ("p: bool = False", 1, False),
        ('p: list[str] = ["a"]', ["b", "c"], True),
        ('p: list[str] = ["a"]', ["b", 3], False),
        ('p: tuple[float, ...] = (1.0,)', [2.0], True),
        ('p: Literal["l2", "linf"] = "l2"', "linf", True),
        ('p: Literal["l2", "linf"] = "l2"', "l1", False),
        ('p: "str | None" = None', 3, False),
        ("p = 3  # type: float the step = half of it", 0.5, True),
        ("p = None", 3, True),
        ("p = (  # over two lines\n  1.5)", "x", False),
        ("p: Schedule = x", 3, True),
        ('p: str = "a"  # one of a, b-c: kinds', "b-c", True),
        ('p: str = "a"  # one of a, b-c: kinds', "b", False),
        ('p: str = "a"  # one of many words', "b", True),
    ],
)  # fmt: skip
def test_types(house, line: str, value: object, fits: bool):
    path = house.notebook("typed", parameters=line)
    if fits:
        parameters.check(path, {"p": value}, "typed")
    else:
        with pytest.raises(ValueError, match=r"p is .* expected"):
            parameters.check(path, {"p": value}, "typed")


def test_a_word_that_is_no_choice_is_refused_with_the_nearest(house, capsys):
    house.notebook("two", parameters=f'{PARAMETERS}suite: str = "quick"  # one of quick, full: attacks that run\n')
    house.edit_set("level = 1", 'suite = "quik"')
    said = refused(house, capsys, "tiny")
    assert "suite is 'quik', expected one of quick, full: attacks that run; did you mean 'quick'?" in said


@pytest.mark.parametrize(
    ("name", "parameter", "known"),
    [("robustness", "suite", SUITES), ("claims", "suite", SUITES), ("masking", "budget", get_args(Budget))],
)
def test_a_notebook_offers_the_choices_of_the_library(name, parameter, known):
    read = parameters.read(ROOT / "notebooks" / f"{name}.ipynb", name)
    assert read[parameter].choices == list(known)


def test_list_shows_what_is_built(house, capsys):
    assert house.run("list") == 0
    shown = capsys.readouterr().out
    assert "tiny: A tiny set" in shown
    assert "one, two" in shown
    assert shown.count("not built") == 2


def test_terminal_colours_are_taken_out():
    assert execute.ANSI.sub("", "\x1b[0;31mValueError\x1b[0m: \x1b[38;5;241mno\x1b[K") == "ValueError: no"


@pytest.mark.parametrize(
    ("comment", "value", "said"),
    [
        ("number of images, at least 1; all if there are no more", 0, "at least 1"),
        ("number of images, at least 1; all if there are no more", 1, ""),
        ("reach; above 0", 0, "above 0"),
        ("reach; above 0", float("nan"), "above 0"),
        ("reach; above 0", 1e-9, ""),
        ("points, at least 3; odd", 4, "odd"),
        ("points, at least 3; odd", 1, "at least 3"),
        ("points, at least 3; odd", 5, ""),
        ("an oddity, above all", 4, ""),
        ("nothing changes above 5", 1, ""),
        ("eps, at least 1/255", 8 / 255, ""),
        ("a rate, at least 1e-3", 0.01, ""),
        ("a share, not above 1", 0.5, ""),
        ("a share, at least 0.5.", 0.25, "at least 0.5"),
        ("at least 1", "none", ""),
    ],
)
def test_a_number_is_what_its_comment_asks_for(comment, value, said):
    assert parameters.Parameter("n", None, 1, comment).wrong(value) == said


def test_a_number_below_what_its_notebook_takes_is_refused_before_a_kernel_starts(house, capsys):
    house.notebook("one", parameters="runs: str = ''  # folder\nsamples: int = 4  # images, at least 1\nout: str = ''")
    house.edit_set("samples = 3", "samples = -3")
    said = 'notebooks/one.ipynb: samples is -3, expected at least 1 ("images, at least 1")'
    assert said in refused(house, capsys, "tiny")
