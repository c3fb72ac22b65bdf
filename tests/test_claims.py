"""Claims: verdicts on readings of known truth, intervals against scipy, readings against the calls behind them."""

import copy
import dataclasses
import multiprocessing
import re
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradlens as gl
from gradlens import plots
from gradlens.claims import Readings, Scaled, as_confident_as, hardened, judge, measure, paired
from gradlens.claims.measure import DIRECTIONS, _withstood
from gradlens.claims.rules import Contrast, judged
from gradlens.claims.table import CLAIMS
from gradlens.draws import mixed

FIELDS = [field.name for field in dataclasses.fields(Readings)]
ARMS = ("SL", "RL", "SL-adv", "RL-adv")


def reading(noise: float = 0.0, seed: int = 0, **means: float) -> Readings:
    random = np.random.default_rng(seed)
    values = {name: torch.as_tensor(means.get(name, 0.0) + noise * random.standard_normal(400)) for name in FIELDS}
    return Readings(**values)


def arms(noise: float = 0.01, seeds: int = 3, **means: dict[str, float]) -> dict[str, dict[int, Readings]]:
    names = list(dict.fromkeys((*ARMS, *(name.replace("_", "-") for name in means))))
    return {
        arm: {seed: reading(noise, 100 * i + seed, **means.get(arm.replace("-", "_"), {})) for seed in range(seeds)}
        for i, arm in enumerate(names)
    }


def assert_the_same(a: dict[str, dict[int, Readings]], b: dict[str, dict[int, Readings]]) -> None:
    assert [(arm, list(seeds)) for arm, seeds in a.items()] == [(arm, list(seeds)) for arm, seeds in b.items()]
    for arm, seeds in b.items():
        for seed, one in seeds.items():
            for field in FIELDS:
                torch.testing.assert_close(getattr(a[arm][seed], field), getattr(one, field), equal_nan=True)


def test_the_interval_over_seeds_alone_is_the_paired_t_test():
    """Where images do not differ, what is left is Student's interval over training seeds."""
    a, b = np.array([0.3, 0.5, 0.45, 0.6]), np.array([0.2, 0.45, 0.2, 0.4])
    mean, low, high, seeds, samples = paired(
        {i: torch.full((9,), v, dtype=torch.float64) for i, v in enumerate(a.tolist())},
        {i: torch.full((9,), v, dtype=torch.float64) for i, v in enumerate(b.tolist())},
    )
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean, seeds, samples) == (pytest.approx(np.mean(a - b)), 4, 9)
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_the_interval_covers_the_truth_for_other_seeds_and_other_images():
    """Seeds and images drawn anew 400 times: 95% intervals miss the true difference in about 5%, never in more."""
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(400):
        of_seed, of_image = random.standard_normal(3), random.standard_normal(30)
        table = 0.7 + 0.2 * of_seed[:, None] + 0.5 * of_image + 0.3 * random.standard_normal((3, 30))
        _, low, high, _, _ = paired(
            {i: torch.as_tensor(row) for i, row in enumerate(table)}, {i: torch.zeros(30) for i in range(3)}
        )
        missed += not low <= 0.7 <= high
    assert 0 < missed <= 400 * 0.05 + 2 * (400 * 0.05 * 0.95) ** 0.5


def test_the_interval_covers_rare_disagreements_that_a_sample_does_not_show():
    """Right or wrong on 40 images: of two models that differ on 3% of all images, most samples show none or one."""
    random = np.random.default_rng(0)
    missed = {True: 0, False: 0}
    for _ in range(400):
        b = random.random(40) < 0.03  # a is always right
        seeds = {i: torch.ones(40) for i in range(3)}, {i: torch.as_tensor(1.0 - b) for i in range(3)}
        for is_share in missed:
            _, low, high, _, _ = paired(*seeds, is_share=is_share)
            missed[is_share] += not low <= 0.03 <= high
    assert missed[True] <= 400 * 0.05 + 2 * (400 * 0.05 * 0.95) ** 0.5 < missed[False]


def test_one_seed_or_a_missing_arm_decides_nothing():
    everything = arms(seeds=1, RL={"pgd": 1.0, "worst": 1.0})
    assert {claim.verdict for claim in judge(everything).claims} == {"open"}
    both = {name: arms(RL={"pgd": 1.0, "worst": 1.0})[name] for name in ("SL", "RL")}
    assert judge(both)["C1"].verdict == "supported"
    assert {judge(both)[name].verdict for name in ("C6", "C8", "C9")} == {"open"}


@pytest.mark.parametrize(
    ("claim", "true", "explained_away"),
    [
        ("C1", {"RL": {"pgd": 0.5, "worst": 0.5}}, {"RL": {"pgd": 0.5}}),
        ("C1", {"RL": {"pgd": 0.5, "worst": 0.5, "clean": -0.04}}, {"RL": {"pgd": 0.5, "worst": 0.5, "clean": -0.2}}),
        ("C2", {"RL": {"norm": -1.0, "norm_margin": -1.0, "norm_free": -1.0}}, {"RL": {"norm": -1.0}}),
        ("C3", {"RL": {"cosine": -0.5, "local_cosine": -0.5}}, {"RL": {"cosine": -0.5}}),
        ("C4", {"RL": {"bend": -1.0, "bend_free": -1.0, "weights": -0.2}}, {"RL": {"bend": -1.0}}),
        ("C5", {"RL": {"entropy": -0.5, "entropy_attacked": 0.3}}, {}),
        ("C6", {"RL_adv": dict.fromkeys(("pgd", "square", "transfer", "worst"), 0.2)}, {"RL_adv": {"pgd": 0.2}}),
        ("C7", {"RL": {"clean": 0.9, "longest": 0.8, "longest_margin": 0.7}}, {"RL": {"clean": 0.9, "longest": 0.8}}),
        (
            "C9",
            {"RL": {"local_cosine": -0.5}, "RL_adv": {"local_cosine": -0.5, "distance": 2}, "SL_adv": {"distance": 2}},
            {"RL": {"distance": 2.0}, "RL_adv": {"distance": 4}, "SL_adv": {"distance": 2}},
        ),
    ],
)  # fmt: skip
def test_a_claim_stands_where_it_is_true_and_falls_where_something_explains_it(claim, true, explained_away):
    assert judge(arms(**true))[claim].verdict == "supported"
    assert judge(arms(**explained_away))[claim].verdict == "contradicted"
    assert judge(arms(noise=30.0, **true))[claim].verdict == "open"


def test_hybrids_are_judged_by_their_mean():
    kept = {"norm": -1.0, "norm_free": -1.0, "worst": 0.3}
    everything = arms(**{"SL, RL": kept, "SL>RL": kept})
    assert judge(everything, hybrids=["SL, RL", "SL>RL"])["C8"].verdict == "supported"
    half = arms(**{"SL, RL": kept, "SL>RL": {}})
    line = judge(half, hybrids=["SL, RL", "SL>RL"])["C8"].lines[1]
    assert line.difference == pytest.approx(0.5, abs=0.02)
    assert line.names == "SL - hybrids"
    assert [one.names for one in judge(half, hybrids=["SL>RL"])["C8"].lines[:2]] == ["SL>RL - SL", "SL - SL>RL"]
    with pytest.raises(ValueError, match=r"hybrids name 'RL, SL', expected arms of"):
        judge(everything, hybrids=["RL, SL"])


def test_a_control_in_place_of_an_arm():
    """What the noise-free control shows as well needs no noise."""
    everything = arms(exact={"pgd": 0.5, "worst": 0.5})
    assert judge(everything, rl="exact")["C1"].verdict == "supported"
    assert judge(everything)["C1"].verdict == "contradicted"


def test_a_control_brings_its_own_adversarial_training():
    """C6 of SL for more epochs is about SL-adv for more epochs, whatever RL-adv does."""
    better = dict.fromkeys(("pgd", "square", "transfer", "worst"), 0.2)
    everything = arms(**{"SL, 6 x epochs": {}, "SL_adv, 6 x epochs": better, "exact": {}})
    assert judge(everything, rl="SL, 6 x epochs")["C6"].verdict == "supported"
    assert judge(everything, rl="SL, 6 x epochs")["C9"].verdict == "contradicted"
    assert judge(everything)["C6"].verdict == "contradicted"
    assert judge(everything, rl="exact")["C6"].verdict == "open", "exact-adv was not trained"
    with pytest.raises(ValueError, match=r"arm is '', expected the name of an arm"):
        hardened("")


@pytest.mark.parametrize(
    ("kind", "smallest", "low_high", "expected"),
    [
        ("more", 0.1, (0.05, 0.3), "there"),
        ("more", 0.1, (-0.05, 0.3), "unsure"),
        ("more", 0.1, (-0.3, 0.05), "not there"),
        ("more", 0.1, (0.02, 0.08), "not there"),
        ("more", -0.1, (-0.05, 0.02), "there"),
        ("more", -0.1, (-0.3, -0.2), "not there"),
        ("more", -0.1, (-0.3, 0.2), "unsure"),
        ("more", 0.1, (float("nan"),) * 2, "unsure"),
        ("different", 0.1, (0.02, 0.3), "there"),
        ("different", 0.1, (-0.4, -0.02), "there"),
        ("different", 0.1, (-0.02, 0.05), "not there"),
        ("different", 0.1, (0.02, 0.05), "not there"),
        ("different", 0.1, (-0.3, 0.3), "unsure"),
        ("equal", 0.1, (-0.05, 0.05), "there"),
        ("equal", 0.1, (0.02, 0.05), "there"),
        ("equal", 0.1, (0.2, 0.3), "not there"),
        ("equal", 0.1, (-0.4, -0.2), "not there"),
        ("equal", 0.1, (0.05, 0.2), "unsure"),
    ],
)
def test_what_an_interval_says(kind, smallest, low_high, expected):
    low, high = low_high
    line = gl.claims.Line("of", "a - b", kind, (low + high) / 2, low, high, smallest, 3, 10)
    assert line.reading == expected


def test_intervals_hold_for_all_lines_of_a_claim_together():
    values = {seed: torch.full((20,), v) for seed, v in enumerate((0.1, 0.4, 0.2, 0.7))}  # images do not differ
    zeros = {seed: torch.zeros(20) for seed in range(4)}
    one = judged("C", "says", [Contrast("of", values, zeros, 0.1)]).lines[0]
    five = judged("C", "says", [Contrast("of", values, zeros, 0.1)] * 5).lines[0]
    ratio = stats.t.ppf(1 - 0.05 / 10, 3) / stats.t.ppf(1 - 0.05 / 2, 3)
    assert (five.high - five.low) / (one.high - one.low) == pytest.approx(ratio)
    with pytest.raises(ValueError, match="contrasts of C are empty, expected at least one line"):
        judged("C", "says", [])


def test_only_images_with_a_value_in_every_seed_count():
    a = {0: torch.tensor([1.0, torch.nan, 3.0]), 1: torch.tensor([1.0, 2.0, torch.inf])}
    mean, low, _, seeds, samples = paired(a, {0: torch.zeros(3), 1: torch.zeros(3), 2: torch.ones(3)})
    assert (mean, seeds, samples) == (1.0, 2, 1) and np.isnan(low)
    with pytest.raises(ValueError, match=r"a and b hold \[2, 3\] images, expected the same images everywhere"):
        paired(a, {0: torch.zeros(2)})


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x = torch.rand(24, 1, 6, 6)
    y = (x.flatten(1)[:, :18].mean(1) > x.flatten(1)[:, 18:].mean(1)).long()
    models = {}
    for arm in ("SL", "RL"):
        models[arm] = {}
        for seed in (0, 1):
            torch.manual_seed(seed + 10 * (arm == "RL"))
            model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 4))
            optimiser = torch.optim.Adam(model.parameters(), 0.02)
            for _ in range(60):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimiser.step()
            models[arm][seed] = model.eval()
    ball = gl.Ball(0.05)
    return models, x, y, ball, measure(models, x, y, ball, steps=5, longest=20, queries=30)


def test_readings_are_those_of_the_calls_behind_them(trained):
    models, x, y, ball, read = trained
    for arm, seeds in models.items():
        for seed, model in seeds.items():
            one = read[arm][seed]
            assert torch.equal(one.clean.bool(), gl.predict(model, x) == y)
            assert torch.equal(one.pgd.bool(), ~gl.pgd(model, x, y, ball, steps=5).ever)
            for steps, plain, free in (
                (5, one.pgd, one.pgd_margin),
                (20, one.longest, one.longest_margin),
                (100, one.hundred, one.hundred_margin),
            ):
                assert torch.equal(plain.bool(), ~gl.pgd(model, x, y, ball, steps=steps).ever)
                assert torch.equal(free.bool(), ~gl.pgd(model, x, y, ball, steps=steps, loss=gl.losses.margin).ever)
            alone = (one.pgd, one.pgd_margin, one.hundred, one.hundred_margin, one.longest, one.longest_margin)
            for shown in (*alone, one.square, one.transfer.nan_to_num(0.0)):
                assert (one.worst <= shown).all()
            still = gl.gradients(model, x, y, ball)
            torch.testing.assert_close(10 ** one.norm_free.float(), still.norm("margin") / still.logit_norm)
            trace = gl.stability(model, x, y, ball, steps=5)
            torch.testing.assert_close(one.cosine, trace.cosine)
            torch.testing.assert_close(one.entropy_attacked, trace.trace.entropy[-1])
            found = gl.minimum_norm(model, x, y, ball)
            right = one.clean.bool() & found.found
            torch.testing.assert_close((2 ** one.distance[right]).float() * ball.eps, found.distance[right])
            assert one.distance[~one.clean.bool()].isnan().all()  # no way to go to an error
    crossed = gl.transfer({"SL 1": models["SL"][1]}, {"t": models["SL"][0]}, x, y, ball)
    assert (read["SL"][0].transfer[crossed.fooled[0, 0]] == 0).all()


def test_points_of_a_rescaled_copy_are_no_transfer(trained):
    """Points that a copy with other logits makes are a white-box attack: only those of the third model count."""
    models, x, y, _, _ = trained
    torch.manual_seed(0)
    ball, model, other = gl.Ball(0.2), models["SL"][0], nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    named = {"A": model, "A, louder": Scaled(Scaled(model, 3.0), 0.5), "B": other}
    crossed = gl.transfer(named, named, x, y, ball)
    right = gl.predict(model, x) == y
    own, from_b = gl.transfer({"A": model, "B": other}, {"A": model}, x, y, ball).fooled[:, 0]
    assert (own & ~from_b).any(), "else this would show nothing"
    for name in ("A", "A, louder"):
        withstood = _withstood(crossed, named, name)
        assert torch.equal(withstood[right] == 0, from_b[right]) and withstood[~right].isnan().all()
    copies = {name: named[name] for name in ("A", "A, louder")}
    assert _withstood(gl.transfer(copies, copies, x, y, ball), copies, "A").isnan().all()


def test_the_rise_around_the_weights_is_that_of_moved_copies(trained):
    """Copies moved by hand half of each filter's norm along the drawn directions, and errors counted."""
    models, x, y, ball, read = trained
    for arm, seeds in models.items():
        for seed, model in seeds.items():
            rises = []
            for number in range(DIRECTIONS):
                drawn = torch.Generator().manual_seed(mixed("0", f"direction {number}"))
                along = gl.weight_line(model, x, y, ball, points=3, metrics=("error",), generator=drawn).directions[0]
                lengths = [(w, along[name]) for name, w in model.named_parameters() if w.ndim > 1]
                for w, d in lengths:  # rows are the filters of a linear layer
                    torch.testing.assert_close(d.norm(dim=1), w.detach().norm(dim=1))
                for way in (0.5, -0.5):
                    moved = copy.deepcopy(model)
                    with torch.no_grad():
                        for name, w in moved.named_parameters():
                            w.add_(way * along.get(name, torch.zeros_like(w)))
                    rises.append(
                        (gl.predict(moved, x) != y).double().mean() - (gl.predict(model, x) != y).double().mean()
                    )
            assert read[arm][seed].weights.unique().tolist() == pytest.approx([float(torch.stack(rises).mean())])


def test_a_stopped_measurement_goes_on_and_says_the_same(trained, tmp_path, monkeypatch):
    models, x, y, ball, read = trained
    first = {"SL": models["SL"]}
    options = {"steps": 5, "longest": 20, "queries": 30, "resume": tmp_path}
    measure(first, x, y, ball, **options)
    assert sorted(path.name.rpartition("-")[2] for path in tmp_path.iterdir()) == sorted(["alone", "suite", "rest"] * 2)
    again, module = [], sys.modules[measure.__module__]
    monkeypatch.setattr(module, "gradients", lambda *args, **kwargs: again.append(0) or gl.gradients(*args, **kwargs))
    assert_the_same(measure(models, x, y, ball, **options), read)
    assert len(again) == len(models["RL"]), "of SL's models nothing is read again"


def test_what_a_stopped_measurement_left_of_another_call_is_refused(trained, tmp_path):
    models, x, y, ball, _ = trained
    options = {"steps": 1, "longest": 1, "queries": 1, "resume": tmp_path}
    measure(models, x[:4], y[:4], ball, **options)
    for part, words in (("alone", "damaged or no unfinished evaluation"), ("rest", "damaged or no unfinished reading")):
        (file, *_) = sorted(tmp_path.glob(f"*-{part}"))
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=words):
            measure(models, x[:4], y[:4], ball, **options)
        file.write_bytes(whole)
    (other,) = tmp_path.glob("SL-1-*-rest")
    (own,) = tmp_path.glob("SL-0-*-rest")
    shutil.copy(other, own)
    with pytest.raises(ValueError, match="reading of another call: its model is"):
        measure(models, x[:4], y[:4], ball, **options)


def test_arms_of_like_names_do_not_share_what_a_stopped_measurement_left(trained, tmp_path):
    models, x, y, ball, _ = trained
    alike = {"SL, RL": models["SL"], "SL>RL": models["RL"]}
    options = {"steps": 1, "longest": 1, "queries": 1}
    assert_the_same(
        measure(alike, x[:4], y[:4], ball, **options, resume=tmp_path), measure(alike, x[:4], y[:4], ball, **options)
    )


def test_workers_side_by_side_read_the_same(trained):
    """A process a model, in double precision, where a sum in another order cannot turn a decision."""
    models, x, y, ball, _ = trained
    double = {arm: {s: copy.deepcopy(m).double() for s, m in seeds.items()} for arm, seeds in models.items()}
    options = {"steps": 5, "longest": 20, "queries": 30}
    alone = measure(double, x.double(), y, ball, **options)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert_the_same(measure(double, x.double(), y, ball, **options, executor=pool), alone)


def test_a_model_that_cannot_be_sent_to_a_worker_is_named(trained):
    models, x, y, ball, _ = trained
    hooked = copy.deepcopy(models["SL"][0])
    hooked.register_forward_hook(lambda *_: None)
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ValueError, match="model 'RL 0' cannot be sent to other processes"),
    ):
        measure({"SL": models["SL"], "RL": {0: hooked}}, x, y, ball, steps=1, longest=1, queries=1, executor=pool)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match=r"model 'SL [01]': x"):
        measure(models, x * torch.nan, y, ball, steps=1, longest=1, queries=1, executor=pool)
    batches = DataLoader(
        TensorDataset(x, y), 8, collate_fn=lambda rows: tuple(map(torch.stack, zip(*rows, strict=True)))
    )
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="x or y cannot be sent to other processes"):
        measure(models, batches, None, ball, steps=1, longest=1, queries=1, executor=pool)


def test_a_worker_in_this_process_leaves_its_threads_alone(trained):
    models, x, y, ball, _ = trained
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with ThreadPoolExecutor(1) as pool:
            measure({"SL": models["SL"]}, x[:4], y[:4], ball, steps=1, longest=1, queries=1, executor=pool)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_bad_input_names_what_is_wrong(trained):
    models, x, y, ball, _ = trained
    with pytest.raises(ValueError, match=r"models are \['SL 0'\], expected at least two"):
        measure({"SL": {0: models["SL"][0]}}, x, y, ball)
    with pytest.raises(ValueError, match="steps is 0"):
        measure(models, x, y, ball, steps=0)
    with pytest.raises(ValueError, match="model 'SL 0': x"):
        measure(models, x * torch.nan, y, ball, steps=1, longest=1, queries=1)


def test_the_table_reads_alone():
    claims = judge(arms(noise=0.0, RL={"pgd": 0.5}))
    frame = claims.frame()
    assert list(dict.fromkeys(frame["claim"])) == list(CLAIMS)
    assert "C1 contradicted: RL raises accuracy under PGD" in str(claims)
    assert "RL - SL: +0.5" in str(claims["C1"]) and "at least 0.05" in str(claims["C1"])
    with pytest.raises(ValueError, match="name is 'C10', expected one of C1, C2"):
        claims["C10"]


def test_a_control_has_the_others_confidence_and_its_own_decisions(cnn, images):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(50, 4)).double()

    def lead(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            first, second = model(images).sort(descending=True).values[:, :2].unbind(1)
        return (first - second).median()

    made = as_confident_as(cnn, linear, images)
    torch.testing.assert_close(lead(made), lead(linear))
    with torch.no_grad():
        torch.testing.assert_close(made(images), made.factor * cnn(images))
    torch.testing.assert_close(as_confident_as(made, cnn, images)(images), cnn(images))  # and back

    here = gl.gradients(cnn, images, generator=torch.Generator().manual_seed(0))
    there = gl.gradients(made, images, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(there.norm("margin"), made.factor * here.norm("margin"))
    torch.testing.assert_close(there.norm("margin") / there.logit_norm, here.norm("margin") / here.logit_norm)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_logits_are_scaled_by_positive_numbers(cnn, factor):
    with pytest.raises(ValueError, match=r"factor is .*, expected a positive number"):
        Scaled(cnn, factor)


def test_confidence_that_is_none_is_refused(cnn, images):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 3))
    nn.init.zeros_(flat[1].weight)
    nn.init.zeros_(flat[1].bias)
    with pytest.raises(ValueError, match="other leads its second class by 0 in the median image"):
        as_confident_as(cnn, flat, images)
    with pytest.raises(ValueError, match="x spans"):
        as_confident_as(cnn, cnn, images + 1)


def test_tables_side_by_side_show_each_line_of_each_and_a_dash_for_what_one_lacks():
    """A control that has the effect as well leaves none of it; texts and colours are the lines' own."""
    readings = arms(RL={"pgd": 0.5, "norm": -1.0}, exact={"pgd": 0.5, "norm": -0.4})
    whole, other = judge(readings), judge(readings, sl="exact")
    asked = gl.claims.Claims(tuple(claim for claim in other.claims if claim.name in {"C1", "C2"}))
    alone = judge({arm: {0: seeds[0]} for arm, seeds in readings.items()})  # one seed: no interval
    fig, ax = plt.subplots()
    plots.contrasts({"exact": asked, "SL": whole, "one": alone}, ax)
    cells = {tuple(map(round, text.get_position())): text.get_text() for text in ax.texts}
    rows = [(claim.name, at) for claim in whole.claims for at in range(len(claim.lines))]
    named = [label.get_text() for label in ax.get_yticklabels()]
    assert named[0] == "C1: accuracy under PGD on the cross-entropy\nRL - ..., at least 0.05", "the column's arm"
    assert named[rows.index(("C2", 0))] == "C2: log10 gradient norm, cross-entropy\n... - RL, at least 0.0969"
    assert named[rows.index(("C9", 0))] == "C9: cosine at the distance eps, margin\nboth SL - both RL, at least 0.05"
    assert named[rows.index(("C5", 0))] == "C5: entropy at the image, nats\nRL - SL, beyond +-0.05"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["exact", "SL", "one"] and len(named) == len(rows)
    (image,) = ax.images
    colours = {"there": "#7fa8d9", "not there": "#d9756c", "unsure": "#eeeeee"}
    key = ax.get_legend()
    words = [text.get_text() for text in key.get_texts()]
    fills = [to_hex(patch.get_facecolor()) for patch in key.get_patches()]
    assert dict(zip(words, fills, strict=True)) == colours
    for (row, (name, at)), (column, table) in product(enumerate(rows), enumerate((asked, whole, alone))):
        line = table[name].lines[at] if name in {claim.name for claim in table.claims} else None
        if line is None or np.isnan(line.difference):
            assert cells[column, row] == "–" and image.get_array().mask[row, column]
            continue
        told = [float(number) for number in re.findall(r"[+-][\d.]+", cells[column, row])]
        expected = [line.difference] if column == 2 else [line.difference, line.low, line.high]
        assert told == pytest.approx(expected, abs=5e-4)
        assert to_hex(image.cmap(image.norm(image.get_array()[row, column]))) == colours[line.reading]
    plt.close(fig)
    assert cells[1, 0].startswith("+0.50") and abs(float(cells[0, 0].split()[0])) < 0.01, "nothing is left beyond exact"
    assert cells[0, 3].startswith("+0.6"), "the control's norm less RL's"
    assert {line.reading for claim in alone.claims for line in claim.lines} == {"unsure"}
    with pytest.raises(ValueError, match="results are empty"):
        plots.contrasts({}, ax)


def test_tables_of_arms_with_a_dash_in_their_names_stand_side_by_side():
    """Terms of a difference cannot be told apart there: the row has the first table's words."""
    readings = {arm.replace("exact", "exact - early"): seeds for arm, seeds in arms(RL={"pgd": 0.5}).items()}
    fig, ax = plt.subplots()
    plots.contrasts({"SL": judge(readings), "exact - early": judge(readings, sl="exact - early")}, ax)
    named = [label.get_text() for label in ax.get_yticklabels()]
    plt.close(fig)
    assert named[0] == "C1: accuracy under PGD on the cross-entropy\nRL - SL, at least 0.05"


def test_a_bound_that_rounds_to_zero_keeps_its_sign():
    """Whether the interval leaves out 0 is read off its bounds; of the difference a sign would say nothing."""
    (claim, *_) = judge(arms(RL={"pgd": 0.5})).claims
    small = dataclasses.replace(claim.lines[0], difference=-0.0001, low=-0.0003, high=0.0004)
    fig, ax = plt.subplots()
    plots.contrasts({"SL": gl.claims.Claims((dataclasses.replace(claim, lines=(small,)),))}, ax)
    assert [text.get_text() for text in ax.texts] == ["+0.000\n[-0.000, +0.000]"]
    plt.close(fig)


def test_the_picture_names_each_verdict_and_gives_none_where_nothing_was_measured():
    """A verdict of "open" is a finding; a claim about models that are not there has none."""
    result = judge(arms(RL={"pgd": 0.5}))
    fig, ax = plt.subplots()
    plots.claims(result, ax)
    named = dict(text.get_text().split("\n") for text in ax.texts if re.match(r"C\d\n", text.get_text()))
    plt.close(fig)
    assert list(named) == [claim.name for claim in result.claims]
    lacking = {claim.name for claim in result.claims if all(np.isnan(line.difference) for line in claim.lines)}
    assert "C8" in lacking and {result[name].verdict for name in lacking} == {"open"}
    assert named == {claim.name: "–" if claim.name in lacking else claim.verdict for claim in result.claims}
