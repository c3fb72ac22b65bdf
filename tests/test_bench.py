"""What the benchmarks report is what they measured, and they still run: their numbers are nobody's test."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from gradlens import Attack, Ball
from gradlens.robustness.suites import SUITES
from tests.bench import __main__ as bench
from tests.bench import attacks, indicators, machine, networks, outcome, training, weights
from tests.bench.outcome import Outcome, compared, in_turns, markdown, rewrite


def test_sides_take_turns_and_the_first_round_is_not_counted():
    order: list[str] = []
    now = [0.0]

    def work(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            now[0] += seconds * len(order)  # slower and slower, as a machine that gets busy

        return run

    seconds = in_turns({"a": work("a", 1.0), "b": work("b", 2.0)}, 2, clock=lambda: now[0])
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [3.0, 5.0], "b": [8.0, 12.0]}
    assert in_turns({"a": work("a", 1.0)}, 1, clock=lambda: now[0], warm=False) == {"a": [7.0]}


def test_a_row_is_the_ratio_of_medians_with_the_spread_of_the_rounds():
    row = compared("work", "peer", [1.0, 2.0, 9.0], [4.0, 4.0, 6.0], at_most=0.5, agreement="same")
    assert (row.ratio, row.low, row.high, row.is_met) == (0.5, 0.25, 1.5, True)
    missed = compared("work", "peer", [3.0], [4.0], at_most=0.5, agreement="same", note="from a part")
    assert not missed.is_met
    table = markdown([row, missed])
    assert "| work | peer | 0.50 | 0.25 to 1.50 | 0.50, met |  |" in table
    assert "| 0.75 | 0.75 to 0.75 | 0.50, **missed** | from a part |" in table
    assert "MISSED" in str(missed)
    assert compared("work", "peer", [1.0], [1.0], agreement="same").is_met


def test_the_readme_is_written_anew_between_its_marks_alone(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- a -->\nold\n<!-- /a -->\n<!-- b -->\nkept\n<!-- /b -->\n")
    rewrite(path, r"| new \1 |" + "\n", "a")
    assert path.read_text() == "before\n<!-- a -->\n| new \\1 |\n<!-- /a -->\n<!-- b -->\nkept\n<!-- /b -->\n"
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"has no <!-- tests\.bench -->"):
        rewrite(path, "")
    for name in bench.MARKS.values():
        assert f"<!-- {name} -->" in bench.README.read_text()


def test_kept_numbers_become_the_same_table_elsewhere(tmp_path, monkeypatch, capsys):
    row = compared("work", "peer", [1.0, 2.0], [4.0, 4.0], at_most=0.5, agreement="same", note="a note")
    limit = machine.Machine("a chip", 1, "torch", 80.0, 800.0, 0.1, 0.2, 0.9, batch=512, tf32=400.0)
    monkeypatch.setattr(machine, "measure", lambda device: limit)
    monkeypatch.setattr(bench, "ON_GPU", {"one": lambda _: [row], "two": lambda _: [row]})
    monkeypatch.setattr(bench, "README", tmp_path / "README.md")
    bench.README.write_text("<!-- tests.bench.gpu -->\n<!-- /tests.bench.gpu -->")
    kept = tmp_path / "kept.json"
    assert bench.main(["--gpu", "--json", str(kept)]) == 0
    assert bench.main(["--gpu", "--from", str(kept), "--readme"]) == 0
    text = bench.README.read_text()
    assert text.count(markdown([row]).splitlines()[-1]) == 2
    assert "a chip, 1 thread(s), torch: products of matrices at 80 GFLOP/s in float32, 400 in TF32" in text
    assert outcome.read(outcome.plain([row])) == [row]


def test_operations_are_counted_as_by_hand():
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    assert machine.flops(layer, torch.rand(2, 3, 5, 5)) == 2 * 2 * 25 * 8 * 27
    assert machine.flops(networks.resnet18().eval(), torch.rand(1, 3, 32, 32)) == pytest.approx(1.11e9, rel=0.01)


def test_a_processor_slow_in_bfloat16_says_so_and_is_spared_its_rows(monkeypatch):
    slow = machine.Machine("a processor", 1, "torch", 80.0, 8.0, 0.1, 0.2, 0.9)
    assert not slow.is_fast_in_half
    assert "8 in bfloat16 (slower: rows in bfloat16 are left out)" in str(slow)
    fast = dataclasses.replace(slow, bfloat16=160.0)
    assert fast.is_fast_in_half
    assert "left out" not in str(fast)
    tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 4), torch.nn.Flatten(), torch.nn.Linear(4 * 64, 10))
    monkeypatch.setattr(networks, "resnet18", lambda: tiny)
    found = weights.wide(2, points=5, part=3, rounds=1, half=False)
    assert [("bfloat16" in row.work, "adaptive" in row.work) for row in found] == [(False, False), (False, True)]


@pytest.mark.parametrize(
    "rows",
    [
        lambda: indicators.rows(images=4, steps=2, rounds=1),
        lambda: training.rows(images=64, rounds=1),
        lambda: weights.small(8, points=5, rounds=1, goal=0.33),
    ],
)
def test_a_benchmark_runs_and_both_sides_agree(rows):
    found = rows()
    assert found
    assert all(isinstance(row, Outcome) and row.ours > 0 and row.theirs > 0 and row.agreement for row in found)


def test_a_suite_that_leaves_more_than_autoattack_is_no_faster_one(monkeypatch):
    """Class means of digits, in a ball that reaches all; then with a suite that tries nothing."""
    digits = attacks.data.load("digits")
    x, y = attacks.data.subset(digits.train, len(digits.train), 0)
    means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(means)
        model[1].bias.copy_(-means.square().sum(1) / 2)
    config = SimpleNamespace(dataset="digits")
    runs = [SimpleNamespace(arm=arm, name=arm, config=config, model=lambda: model) for arm in ("SL-adv", "RL-adv")]
    monkeypatch.setattr(attacks.checkpoint, "load_all", lambda folder: runs)
    monkeypatch.setattr(attacks.data, "load", lambda name: dataclasses.replace(digits, ball=Ball(0.4)))
    found = attacks.rows(samples=12)
    assert [row.work for row in found] == [f'suite "quick", {arm} on digits, 12 images' for arm in ("SL-adv", "RL-adv")]
    assert all(row.agreement == "robust accuracy 0.00% and 0.00%" and row.at_most == 0.2 for row in found)
    monkeypatch.setitem(SUITES, "quick", (Attack("nothing", lambda model, x, y, ball: x),))
    with pytest.raises(RuntimeError, match=r"SL-adv: quick leaves \d+\.\d+%, AutoAttack 0\.00%; expected within half"):
        attacks.rows(samples=12)


def test_unknown_benchmarks_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["pdg"])
    assert "are no benchmarks, expected some of pgd" in capsys.readouterr().err


def test_passes_are_counted_image_by_image_through_copies_too():
    """Nine cells of loss-landscapes are nine passes, a cell of ours one; ours look at a few images besides."""
    model, (x, y) = networks.small(), networks.patterns(64, (1, 28, 28))
    assert weights.passes(lambda: weights.theirs(model, x, y, 3), 64) == 9
    assert weights.passes(lambda: (model(x), model(x[:16])), 64) == 1.25
    few, many = (weights.passes(lambda: weights.ours(model, x, y, n), 64) for n in (3, 5))  # noqa: B023 (called at once)
    assert many - few == 25 - 9
    assert 9 < few < 9 + 5  # a look at 16 images is not a pass over 64


def test_a_wide_plane_is_reckoned_by_the_passes_that_its_part_took(monkeypatch):
    """Were each pass a second, 5 x 5 cells would take ours 16 more than the part did, and theirs 25."""
    tiny = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 4), torch.nn.Flatten(), torch.nn.Linear(4 * 64, 10))
    monkeypatch.setattr(networks, "resnet18", lambda: tiny)
    took: dict[str, float] = {}

    def counted(runs, rounds):
        for name, run in runs.items():
            took[name] = weights.passes(run, 64)
        return {name: [seconds] for name, seconds in took.items()}

    monkeypatch.setattr(weights, "in_turns", counted)
    full, sparse = weights.wide(64, points=5, part=3, half=False)
    assert full.theirs == pytest.approx(25) == took["theirs"] + 16
    assert full.ours == sparse.ours == pytest.approx(took["full"] + 16)  # a grid that small is measured whole
