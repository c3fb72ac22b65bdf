"""Sweeps: the grid of a file, and runs that do not depend on how many are made at a time."""

import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training.sources import cifar, ilsvrc
from training import data
from training.checkpoint import build
from training.config import Config
from training.engines import Engine
from training.fit import fit
from training.loop import moment, start, step
from training.prepare import prepare
from training.presets import paper, sound
from training.randomness import Generators
from training.schedule import ARMS, label
from training.sweep import grid, sweep, table

FILE = """
dataset = ["digits"]
schedule = ["sl:1", "rl:1"]
seed = [0]
[config]
batch = 512
attack_steps = 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(FILE)
    return path


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_a_grid_is_every_combination_under_its_own_name(tmp_path):
    path = write(
        tmp_path, 'schedule = ["sl:1", "sl:2,rl-adv:3"]\nseed = [0, 7]\nmodel = ["cnn6"]\n[config]\nlr = 0.5\n'
    )
    assert grid(path) == {
        "digits-cnn6-sl-1-s0": Config(model="cnn6", schedule="sl:1", seed=0, lr=0.5),
        "digits-cnn6-sl-1-s7": Config(model="cnn6", schedule="sl:1", seed=7, lr=0.5),
        "digits-cnn6-sl-2+rl-adv-3-s0": Config(model="cnn6", schedule="sl:2,rl-adv:3", seed=0, lr=0.5),
        "digits-cnn6-sl-2+rl-adv-3-s7": Config(model="cnn6", schedule="sl:2,rl-adv:3", seed=7, lr=0.5),
    }


def test_a_preset_gives_each_arm_its_own_settings_and_the_file_wins(tmp_path):
    path = write(tmp_path, 'preset = "paper"\nschedule = ["sl", "rl-adv:6"]\nseed = [3]\n[config]\nbatch = 64\n')
    assert grid(path) == {
        "cifar10-cnn6-sl-100-s3": replace(paper("sl"), seed=3, batch=64),
        "cifar10-cnn6-rl-adv-6-s3": replace(paper("rl-adv:6"), seed=3, batch=64),
    }
    path = write(tmp_path, 'preset = "sound"\ndataset = ["digits"]\nmodel = ["cnn_small"]\nschedule = ["lq"]\n')
    assert grid(path) == {"digits-cnn_small-lq-100-s0": replace(sound("lq"), dataset="digits", model="cnn_small")}


def test_an_arm_has_settings_and_a_name_of_its_own(tmp_path):
    arm = '[[arm]]\ncalled = "RL + H"\nschedule = "rl:2"\nentropy_bonus = 0.5\nlr = 0.1\n'
    path = write(tmp_path, f'schedule = ["rl:2"]\nseed = [0, 1]\n[config]\nlr = 0.5\n{arm}')
    runs = grid(path)
    assert list(runs) == [
        "digits-cnn_small-rl-2-s0", "digits-cnn_small-rl-2-s1",
        "digits-cnn_small-RL___H-rl-2-s0", "digits-cnn_small-RL___H-rl-2-s1",
    ]  # fmt: skip
    assert runs["digits-cnn_small-RL___H-rl-2-s1"] == Config(
        called="RL + H", schedule="rl:2", seed=1, lr=0.1, entropy_bonus=0.5
    )
    assert runs["digits-cnn_small-rl-2-s1"] == Config(schedule="rl:2", seed=1, lr=0.5)
    alone = 'dataset = ["digits"]\nseed = [0]\n' + arm
    assert [config.called for config in grid(write(tmp_path, alone)).values()] == ["RL + H"]  # no schedule but its own


def test_a_named_run_is_read_under_its_name(tmp_path):
    config = Config(schedule="sl:1", called="SL, long", images=64, batch=32)
    assert fit(config, tmp_path / "run", quiet=True).arm == "SL, long"


def test_fewer_training_images_are_the_same_ones_for_every_run():
    digits = data.load("digits")
    few = data.part(digits.train, 100)
    x, y = few.at(torch.arange(100))
    whole = digits.train.x
    found = [(whole == image).flatten(1).all(1).nonzero()[0].item() for image in x]
    assert found == sorted(set(found)) and len(found) == 100
    assert torch.equal(y, digits.train.y[torch.tensor(found)])
    mapped = data.Split(digits.train.images.numpy(), digits.train.y, digits.train.scale)
    assert torch.equal(data.part(mapped, 100).x, x)
    for seed in (0, 1):
        training = start(Config(images=100, seed=seed), digits)
        assert torch.equal(training.dataset.train.x, x)
    with pytest.raises(ValueError, match="images is 1294, expected at most the 1293 of the training part"):
        data.part(digits.train, 1294)


@pytest.fixture
def tiny_data(tmp_path, monkeypatch) -> None:
    """The data sets of the study in their own formats, with a few images a class."""
    monkeypatch.setenv("GRADLENS_DATA", str(tmp_path / "data"))
    for name in ("cifar10", "cifar100"):
        for path, content in cifar(monkeypatch, name).files.items():
            (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / path).write_bytes(content)
    (tmp_path / "list.txt").write_text("n01000001\nn01000002\n")
    prepare(
        "imagenet100",
        source=ilsvrc(tmp_path / "ilsvrc", ["n01000001", "n01000002"], train=3, val=1),
        classes=tmp_path / "list.txt",
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet100", "paper"])
def test_a_set_measures_what_its_sweep_trains(name, tiny_data):
    """Figure sets and sweeps are two files: the data set, the folder of runs and the arms belong together."""
    drawn = tomllib.loads(Path(f"figures/sets/{name}.toml").read_text())
    assert drawn["sweep"] == f"training/sweeps/{name}.toml"
    assert drawn["parameters"]["runs"] == f"runs/{name}"
    runs = grid(Path(drawn["sweep"]))
    assert {config.dataset for config in runs.values()} == {drawn["parameters"]["dataset"]}
    assert {"SL", "RL", "SL-adv", "RL-adv"} <= {label(config.schedule) for config in runs.values()}
    first = next(iter(runs.values()))
    images = data.load(first.dataset)
    model = build(first, images).eval()
    x, y = data.subset(images.test, 2, 0)
    assert model(x).shape == (2, images.classes)
    assert y.max() < images.classes


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "imagenet100"])
def test_the_sweeps_of_the_study_train_on_other_images_unchanged(dataset, tiny_data, tmp_path):
    """An update of the weights by the first run of each file, and by the first that trains on attacked images."""
    for path in sorted(Path("training/sweeps").glob("study-*.toml")):
        runs = grid(path, [dataset])
        assert {config.dataset for config in runs.values()} == {dataset}
        assert [config.schedule for config in runs.values()] == [config.schedule for config in grid(path).values()]
        attacked = [config for config in runs.values() if "-adv" in config.schedule]
        for config in (next(iter(runs.values())), *attacked[:1]):
            training = start(config, data.load(dataset))
            seen = step(training, moment(training, 0, 0.0), torch.arange(4), Generators.of(0, 0))
            assert seen.isfinite().all()


def test_every_sweep_of_the_project_is_a_grid():
    assert all(grid(path) for path in Path("training/sweeps").glob("*.toml"))


@pytest.mark.parametrize("name", ["digits", "smoke", "fashion-mnist"])
def test_the_sweeps_of_figure_sets_hold_all_four_arms(name):
    path = Path(f"training/sweeps/{name}.toml")
    arms = [config.schedule.partition(":")[0] for config in grid(path).values()]
    assert set(arms) == {*ARMS, "exact"}  # and the control
    assert len({arms.count(arm) for arm in arms}) == 1
    assert len({config.schedule.partition(":")[2] for config in grid(path).values()}) == 1  # matched epochs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('scheduel = ["sl:1"]', r"sweep '.*sweep.toml' has scheduel, expected lists dataset, model, schedule, seed"),
        ("[config]\nlearning_rate = 1.0", r"has learning_rate, expected lists .*table \[config\] of .*lr"),
        ("[config]\nseed = 1", r"has seed, expected lists .* and a table \[config\]"),
        ('dataset = ["digist"]', r"dataset is 'digist', expected one of digits.*did you mean 'digits'"),
        ('schedule = ["sl"]', r"schedule 'sl' has 'sl', expected objective:epochs"),
        ('model = ["cnn7"]', r"model is 'cnn7', expected cnn_small, cnn6, mlp or .*did you mean 'cnn6'"),
        ('preset = "papre"', r"has preset = 'papre', expected one of paper, sound"),
        ('preset = "paper"\nschedule = ["lq"]', r"'lq'"),
        ("seed = 3", r"sweep '.*sweep.toml' has seed = 3, expected a list"),
        ("arm = 3", r"has arm = 3, expected tables \[\[arm\]\]"),
        ('[[arm]]\ncalled = "x"', r"\[\[arm\]\] 1 has the schedule None, expected one such as 'rl:15'"),
        ('[[arm]]\nschedule = "rl:1"\nbonus = 1', r"has bonus, expected lists"),
        ('schedule = ["rl:1"]\n[[arm]]\nschedule = "rl:1"\nlr = 1.0', r"has digits-cnn_small-rl-1-s0 twice; tell arms"),
        ("seed = [", r"sweep '.*sweep.toml' is no TOML"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        grid(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"sweep '.*nowhere.toml' is not a file, expected a TOML file"):
        grid(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ('schedule = ["sl:3", "sl-adv:2", "sl:12,rl:1", "rl:1"]\n[config]\nattack_steps = 4', [2, 1, 0, 3]),
        ('schedule = ["sl:7", "sl-adv:2"]\n[config]\nattack = "fgsm"', [0, 1]),
    ],
)
def test_the_longest_run_begins_first(text, order, tmp_path):
    """Where it began last, everything else would wait for it. A step of PGD passes an image once more."""
    begun = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function, config, *more):
            begun.append(config.schedule)
            return super().submit(stop)

    class Watched(Engine):
        def pool(self):
            return Pool(1)

    def stop():
        raise RuntimeError("nothing is trained here")

    path = write(tmp_path, text)
    with pytest.raises(RuntimeError, match="nothing is trained"):
        sweep(path, tmp_path / "out", Watched())
    assert begun == [tomllib.loads(text)["schedule"][place] for place in order]


@pytest.mark.slow
def test_results_do_not_depend_on_how_many_runs_are_made_at_a_time(file, tmp_path):
    """Two at a time, and one after the other in this process, which has one thread as well."""
    runs = sweep(file, tmp_path / "two", Engine(jobs=2))
    assert [run.name for run in runs] == ["digits-cnn_small-sl-1-s0", "digits-cnn_small-rl-1-s0"]
    for run in runs:
        alone = fit(run.config, tmp_path / "alone" / run.name, quiet=True)
        assert (alone.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*.*")}
    assert sweep(file, tmp_path / "two", Engine(jobs=1)) == runs
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "two").rglob("*.*")} == before
    lines = table(runs).splitlines()
    assert len(lines) == 3
    for run, line in zip(runs, lines[1:], strict=True):
        assert line.split()[:2] == [run.name, f"{run.record['last']['clean']:.1%}"]
