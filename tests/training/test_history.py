"""What a run writes: a line an epoch, the best weights, and what stays when it goes wrong."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import gradlens as gl
from gradlens import predict
from gradlens.disk import load_weights
from training import data, loop, resume, sweep
from training import fit as fitting
from training.checkpoint import Run
from training.config import Config
from training.engines import Engine
from training.fit import fit
from training.watch import ATTACKED, CatastrophicOverfitting

FIELDS = {
    "epoch", "arm", "loss", "reward", "entropy", "lr", "seconds", "clean", "pgd", "margin", "margin_pgd", "fgsm_inner",
    "pgd_inner", "gradalign", "collapsed",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three epochs; a learning rate so large that the last is not the best."""
    config = Config(schedule="rl:1,sl:2", batch=256, lr=0.05, lr_curve="constant", seed=1)
    return fit(config, tmp_path_factory.mktemp("runs") / "run", quiet=True)


def test_a_line_an_epoch(run: Run) -> None:
    history = run.history
    assert [line["epoch"] for line in history] == [1, 2, 3]
    assert [line["arm"] for line in history] == ["rl", "sl", "sl"]
    assert all(set(line) == FIELDS for line in history)
    assert run.record["last"] == history[-1]


def test_lines_are_written_as_the_run_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[int] = []
    original = fitting.epoch

    def counted(*args: Any) -> Any:
        path = tmp_path / "history.jsonl"
        lines.append(len(path.read_text().splitlines()))
        return original(*args)

    monkeypatch.setattr(fitting, "epoch", counted)
    fit(Config(schedule="sl:3", batch=512), tmp_path, quiet=True)
    assert lines == [0, 1, 2]


@pytest.mark.parametrize(("which", "accuracy"), [("best_clean", "clean"), ("best_pgd", "pgd")])
def test_the_best_weights_are_those_of_the_best_epoch(run: Run, which: Any, accuracy: str) -> None:
    values = [line[accuracy] for line in run.history]
    best = run.record["best"][which]
    assert best["value"] == max(values)
    assert best["epoch"] == values.index(max(values)) + 1
    part = data.load("digits").validation
    clean = (predict(run.model(which), part.x) == part.y).double().mean().item()
    assert clean == pytest.approx(run.history[best["epoch"] - 1]["clean"])


def test_of_equals_the_first_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"clean": 0.5, "pgd": 0.5, "fgsm_inner": 0.5, "pgd_inner": 0.5}
    monkeypatch.setattr(fitting, "watch", lambda *_, **__: same)
    run = fit(Config(schedule="sl:2", batch=512), tmp_path, quiet=True)
    assert [best["epoch"] for best in run.record["best"].values()] == [1, 1]


def test_last_is_the_last(run: Run) -> None:
    part = data.load("digits").validation
    clean = (predict(run.model(), part.x) == part.y).double().mean().item()
    assert clean == pytest.approx(run.history[-1]["clean"])
    with pytest.raises(ValueError, match="missing"):
        Run(run.path / "nowhere", run.config, run.record).model("best_clean")


def test_same_seed_same_weights(tmp_path: Path) -> None:
    digests = [
        fit(Config(schedule="rl-adv:1", batch=256, attack="fgsm-rs", seed=seed), tmp_path / str(i), quiet=True)
        .record["checkpoint_sha256"]
        for i, seed in enumerate((5, 5, 6))
    ]  # fmt: skip
    assert digests[0] == digests[1] != digests[2]


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = loop.objective, []

    def breaks(*args: Any, **options: Any) -> Any:
        calls.append(args)
        made = original(*args, **options)
        return (lambda logits, y: made(logits, y) * torch.nan) if len(calls) == 6 else made

    monkeypatch.setattr(loop, "objective", breaks)  # three batches an epoch: the third of the second
    with pytest.raises(ValueError, match=r"loss is nan at step 2 after 1 epochs of 'rl:3'"):
        fit(Config(schedule="rl:3", batch=512), tmp_path, quiet=True)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / "run.json").exists()
    for name in ("best_clean.safetensors", "best_pgd.safetensors", resume.NAME):
        assert all(t.isfinite().all() for t in load_weights(tmp_path / name).values())


def test_weights_that_explode_are_seen_in_the_epoch_they_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(loss is|weights are not finite).* at step \d+ after 0 epochs"):
        fit(Config(schedule="sl:1", lr=1e38, optimizer="sgd", batch=256), tmp_path, quiet=True)


def test_a_collapse_is_warned_of_once_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([(0.5, 0.4), (0.9, 0.05), (0.9, 0.04)])

    def staged(*_: Any, **__: Any) -> dict[str, float]:
        fgsm, pgd = next(seen)
        return {"clean": 0.9, "pgd": pgd, "fgsm_inner": fgsm, "pgd_inner": pgd}

    monkeypatch.setattr(fitting, "watch", staged)
    with pytest.warns(CatastrophicOverfitting) as caught:
        run = fit(Config(schedule="sl-adv:3", batch=512, attack="fgsm"), tmp_path, quiet=True)
    assert len(caught) == 1
    assert [line["collapsed"] for line in run.history] == [False, True, True]


@pytest.mark.filterwarnings("ignore")  # tensorboard's own imports
def test_tensorboard_holds_the_history(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(Config(schedule="sl:2", batch=512), tmp_path, quiet=True, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "clean", "pgd"):
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert written == [(line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in run.history]


def test_tensorboard_that_is_missing_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard is not installed"):
        fit(Config(schedule="sl:1"), tmp_path, quiet=True, tensorboard=True)


def test_a_checkpoint_of_another_architecture_is_refused(run: Run, tmp_path: Path) -> None:
    record = {**run.record, "config": {**run.record["config"], "model": "cnn6"}}
    other = Run(run.path, Config(**record["config"]), record)
    with pytest.raises(
        ValueError, match=r"model\.safetensors belongs to another architecture: it has (no|an unknown) model"
    ):
        other.model()


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_that_would_execute_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "foreign.pt"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"state_dict": Bomb()}, path)
    with pytest.raises(ValueError, match=r"foreign\.pt' are refused"):
        load_weights(path)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_tensors_alone_are_read(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": state}, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.pt", "c.pt"):
        found = load_weights(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="are refused"):
        load_weights(tmp_path / name)


def test_weights_that_are_not_there_or_not_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        load_weights(tmp_path / "none.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no dictionary of tensors"):
        load_weights(tmp_path / "list.pt")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As each run of a sweep has it: sums in another order have other last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    """One run finished, one stopped after its first epoch, one not begun: all end as if trained alone."""
    file = tmp_path / "three.toml"
    file.write_text('schedule = ["sl:2"]\nseed = [0, 1, 2]\n[config]\nbatch = 512\n')
    runs = list(sweep.grid(file).items())
    done = fit(runs[0][1], tmp_path / "out" / runs[0][0], quiet=True)
    written = (done.path / "run.json").stat().st_mtime_ns
    training = loop.start(runs[1][1], data.load("digits"))
    record = loop.epoch(training, 0)
    journal = fitting.Journal(tmp_path / "out" / runs[1][0], 0)
    fitting._watch(training, journal, {**record, "seconds": 0.0})
    fitting._keep(training, tmp_path / "out" / runs[1][0], journal, resume.Progress(), 0.0)
    finished = sweep.sweep(file, tmp_path / "out", Engine(jobs=1))
    assert (done.path / "run.json").stat().st_mtime_ns == written
    assert json.loads((finished[1].path / "history.jsonl").read_text().splitlines()[0])["seconds"] == 0.0
    for (_, config), found in zip(runs, finished, strict=True):
        alone = fit(config, tmp_path / "alone" / found.name, quiet=True)
        assert load_file(alone.path / "model.safetensors").keys() == load_file(found.path / "model.safetensors").keys()
        assert alone.record["checkpoint_sha256"] == found.record["checkpoint_sha256"]
    table = sweep.table(finished)
    assert all(found.name in table for found in finished)


def test_weights_on_the_way_are_those_of_their_epochs(tmp_path: Path) -> None:
    config = Config(schedule="sl:3", batch=512, keep_every=2, lr_curve="constant")
    run = fit(config, tmp_path / "whole", quiet=True)
    on_the_way = run.epochs()
    assert list(on_the_way) == [0, 2, 3]  # the last one though it is no multiple
    part = data.load("digits").validation
    for epoch, model in on_the_way.items():
        if epoch:
            clean = (predict(model, part.x) == part.y).double().mean().item()
            assert clean == pytest.approx(run.history[epoch - 1]["clean"])
    untrained = loop.start(config, data.load("digits")).trainee.model
    for name, t in untrained.state_dict().items():
        assert torch.equal(on_the_way[0].state_dict()[name], t), name
    for name, t in run.model().state_dict().items():
        assert torch.equal(on_the_way[3].state_dict()[name], t), name
    seen = gl.trajectory(run.model(), run.path / "epochs")
    assert seen.places.shape == (3, 2) and seen.places[-1].norm() == 0


def test_a_run_without_weights_on_the_way_says_how_to_keep_them(run: Run) -> None:
    assert not (run.path / "epochs").exists()
    with pytest.raises(ValueError, match=r"kept no weights on its way; train one with --keep-every 1"):
        run.epochs()


def test_damaged_weights_on_the_way_are_refused_by_name(tmp_path: Path) -> None:
    run = fit(Config(schedule="sl:1", batch=512, keep_every=1), tmp_path / "run", quiet=True)
    path = run.path / "epochs/0001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"epochs/0001.safetensors is damaged"):
        run.epochs()


def test_epochs_that_nobody_attacks_change_no_weight_and_leave_gaps(tmp_path):
    runs = [
        fit(
            Config(schedule="sl-adv:3", images=128, attack_steps=1, watch_every=every),
            tmp_path / str(every),
            quiet=True,
        )
        for every in (1, 2)
    ]
    assert runs[0].record["checkpoint_sha256"] == runs[1].record["checkpoint_sha256"]
    always, seldom = (run.history for run in runs)
    assert [line["clean"] for line in always] == [line["clean"] for line in seldom]
    for name in ATTACKED:
        assert seldom[0][name] is None, name
        assert [line[name] for line in seldom[1:]] == [line[name] for line in always[1:]], name  # the last one always
    assert runs[1].record["best"]["best_pgd"]["value"] == max(line["pgd"] for line in seldom[1:])
