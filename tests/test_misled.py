"""What would mislead an evaluation: functions and models that look alike, attacks that reach for the judge, ties."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlens as gl
from gradlens import Attack, Ball
from gradlens.robustness.transfer import Ensemble
from tests.analytic import Answers, Constant, InPlace, Random, smooth_cnn

BALL = Ball(0.1)
LABELS = [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.fixture
def model() -> nn.Module:
    return smooth_cnn().float()


@pytest.fixture
def x() -> Tensor:
    return 0.1 + 0.8 * torch.rand(8, 2, 5, 5)


@pytest.fixture
def y(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)


class Scaled(nn.Module):
    """Its temperature is neither a parameter nor a buffer."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x)


def test_a_file_to_resume_from_is_refused_for_a_model_with_other_answers(model, x, y, tmp_path):
    attack = Attack("pgd", gl.pgd, {"steps": 2})
    gl.robustness(Scaled(model, 1000.0), x, y, BALL, attacks=[attack], resume=tmp_path / "file")
    with pytest.raises(ValueError, match="another call: its answers is"):
        gl.robustness(Scaled(model, 1.0), x, y, BALL, attacks=[attack], resume=tmp_path / "file")


def test_functions_of_one_name_are_told_apart_by_what_they_do_and_hold():
    def made(steps: int) -> Any:
        def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
            return gl.pgd(model, x, y, ball, steps=steps).best

        return attack

    def other() -> Any:
        def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
            return x

        return attack

    def identity(run: Any, **options: Any) -> str:
        return Attack("a", run, options).identity

    assert identity(made(1)) == identity(made(1)) != identity(made(50))
    assert identity(other()) != identity(made(1))
    partial = [functools.partial(gl.losses.margin, loss=lambda z, scale=scale: z * scale) for scale in (1, 1, 2)]
    written = [identity(gl.pgd, loss=loss) for loss in partial]
    assert written[0] == written[1] != written[2]
    assert not any(" at 0x" in said for said in (*written, identity(gl.pgd, given=object())))


def test_the_judge_is_not_who_the_attack_left_behind(x):
    class Shifted(nn.Module):
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.drop = smooth_cnn().float(), nn.Dropout(0.9)
            self.register_buffer("shift", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.inner(x)) + self.shift

    def trains(model, x, y, ball):
        model.train()
        return x

    def shifts(model, x, y, ball):
        model.shift.copy_(torch.arange(4.0) * 100)
        return x

    model = Shifted().eval()
    y = model(x).argmax(1)
    found = gl.robustness(model, x, y, BALL, attacks=[trains, shifts, Attack("pgd", gl.pgd, {"steps": 1})])
    assert not found.broke[:2].any()
    assert torch.equal(model.shift, torch.zeros(4)) and not model.training


def test_what_one_model_of_an_ensemble_writes_no_other_sees(model, x):
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.sub_(0.5))

    class Pure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x - 0.5)

    writing, pure = (Ensemble([kind(), kind()])(x.clone()) for kind in (First, Pure))
    assert torch.allclose(writing, pure)
    mixed = {"half": smooth_cnn().half(), "single": smooth_cnn().float(), "in place": InPlace(smooth_cnn().float())}
    result = gl.transfer(mixed, mixed, x, model(x).argmax(1), BALL, ensemble=True)
    assert result.accuracy.isfinite().all()


def test_exchange_is_between_those_whose_records_these_are(model, x, y):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        second = nn.Sequential(nn.Flatten(), nn.Linear(50, 4))
    models = {"a": model, "b": second}
    attacks = [Attack("pgd", gl.pgd, {"steps": 2, "loss": gl.losses.margin})]
    results = {name: gl.robustness(one, x, y, BALL, attacks=attacks) for name, one in models.items()}
    with pytest.raises(ValueError, match=r"models\['a'\] is Sequential:.*, expected that of results\['a'\]"):
        gl.exchange({"a": second, "b": model}, results)
    other = {**results, "b": gl.robustness(second, x, (y + 1) % 4, BALL, attacks=attacks)}
    with pytest.raises(ValueError, match=r"results\['b'\] is of other samples"):
        gl.exchange(models, other)
    twice = gl.exchange(models, gl.exchange(models, results))
    assert twice["a"].attacks == ("pgd", "found on b", "found on b (2)")
    with pytest.raises(ValueError, match="attacks holds 'found on b' twice"):
        gl.robustness(model, x, y, BALL, found={"b": results["b"]}, attacks=[Attack("found on b", gl.fgsm)])
    with pytest.raises(ValueError, match=r"found\['b'\] is of other images than x"):
        gl.robustness(model, x.flip(0), y.flip(0), BALL, found={"b": results["b"]}, attacks=attacks)


def test_exchange_judges_a_random_model_by_as_many_passes_as_its_record(model, x, y):
    """Points that change nothing break nothing, where one noisy pass would err."""
    noisy = Random(model, 2.0)
    attacks = [Attack("pgd", gl.pgd, {"steps": 1, "step_size": 1e-6})]
    results = {
        "noisy": gl.robustness(noisy, x, y, BALL, attacks=attacks, samples=400),
        "plain": gl.robustness(model, x, y, BALL, attacks=attacks),
    }
    still = {**results, "plain": gl.robustness(model, x, y, BALL, attacks=[Attack("none", lambda m, x, y, b: x)])}
    shown = gl.exchange({"noisy": noisy, "plain": model}, still)["noisy"]
    one_pass = torch.stack([noisy(x).argmax(1) != y for _ in range(20)]).any(0)
    assert one_pass.any()
    assert int(shown.broke[-1].sum()) <= 1


def test_where_classes_tie_the_first_is_the_answer_everywhere(x):
    """A model that rounds its logits, as quantised ones do, and one that says nothing at all."""
    rounding = Answers(lambda x: (3 * smooth_cnn().float()(x)).round())
    for model in (rounding, Constant([0.0, 0.0, 0.0, 0.0])):
        y = torch.tensor(LABELS)
        right = model(x).argmax(1) == y
        still = {"steps": 1, "step_size": 1e-7}
        assert torch.equal(~gl.pgd(model, x, y, BALL, **still).ever, right)
        assert gl.square(model, x, y, BALL, queries=1).accuracy(1) == right.float().mean().item()
        assert gl.minimum_norm(model, x, y, BALL, steps=1).accuracy(0.0) == right.float().mean().item()
        assert torch.equal(gl.robustness(model, x, y, BALL, attacks=[Attack("pgd", gl.pgd, still)]).clean, right)
        line = gl.input_line(model, x, y, BALL, directions=[torch.ones_like(x)], points=3)
        assert torch.equal(line.error[line.centre] == 0, right)


def test_more_restarts_toward_targets_break_no_fewer(model, x, y):
    broken = []
    for restarts in (1, 2, 4):
        trace = gl.pgd(
            model, x, y, Ball(0.25), steps=4, targets=(y + 1) % 4, restarts=restarts,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert torch.equal(model(trace.best).argmax(1) != y, trace.ever)
        broken.append(int(trace.ever.sum()))
    assert broken == sorted(broken)


@pytest.mark.parametrize("attack", [gl.fgsm, gl.pgd, gl.apgd, gl.pgd_targeted, gl.apgd_targeted])
def test_gradient_attacks_say_where_nothing_was_left(attack, model, x, y):
    said = str(attack(model, x, (y + 1) % 4, BALL))
    assert "nothing was left to attack" in said
    assert "accuracy 0.0% ->" in said
    assert "nothing was left" not in str(attack(model, x, y, BALL))


def test_an_image_that_is_there_twice_keeps_the_point_that_moved(model, x, y):
    moved = gl.pgd(model, x[:1], y[:1], Ball(0.5), steps=10, loss=gl.losses.margin).best
    both, labels = torch.cat([x[:1], x[:1]]), torch.cat([y[:1], y[:1]])
    found = gl.robustness(
        model, both, labels, Ball(0.5), found={"o": torch.cat([moved, x[:1]])},
        attacks=[Attack("none", lambda m, x, y, b: x)],
    )  # fmt: skip
    assert found.broke[0].tolist() == [bool(model(moved).argmax(1) != y[:1])] * 2


def test_a_curve_answers_for_no_budget_that_was_not_tried(model, x, y):
    steps = gl.curve(model, x, y, BALL, over="steps", values=[1, 2])
    assert steps.accuracy(2.0) <= steps.accuracy(1.0)
    with pytest.raises(ValueError, match=r"value is 1000\.0, expected at most 2"):
        steps.accuracy(1000.0)


def test_models_may_be_called_by_keyword_and_none_by_the_ensembles_name(model, x, y):
    def by_keyword(model, x, y, ball):
        model(input=x)
        return x

    found = gl.robustness(model, x, y, BALL, attacks=[by_keyword])
    assert found.forwards[0] >= len(x)
    named = {"ensemble of the others": model, "b": model}
    with pytest.raises(ValueError, match="'ensemble of the others' is the name of a model"):
        gl.transfer(named, named, x, y, BALL, ensemble=True)
    few = nn.Sequential(nn.Flatten(), nn.Linear(50, 2))
    with pytest.raises(ValueError, match=r"model 'few': y spans .*, expected class numbers in 0\.\.1"):
        gl.transfer({"few": few, "b": model}, {"b": model}, x, torch.tensor(LABELS), BALL)
