"""Values of the wrong type, as notebooks and scripts hand them over: a ValueError that names the argument.

In a process of its own, without the type checks that the tests add.
"""

import subprocess
import sys

import pytest
import torch
from torch import nn

import gradlens as gl

BAD = {
    "gl.prepare('resnet18')": "model is a str",
    "gl.prepare(m, precision='float16')": "precision is 'float16'",
    "gl.prepare(m, precision=16)": "precision is 16",
    "gl.prepare(m, compile=1)": "compile is 1",
    "gl.pgd(m, x, y, start=0.5)": "start is 0.5",
    "gl.pgd(m, x, y, targets=3)": "targets is 3",
    "gl.pgd(m, x, y, steps=2.5)": "steps is 2.5",
    "gl.pgd(m, x, y, steps='3')": "steps is '3'",
    "gl.pgd(m, x, y, restarts=1.5)": "restarts is 1.5",
    "gl.pgd(m, x, y, batch=2.5)": "batch is 2.5",
    "gl.pgd(m, x, y, step_size='a')": "step_size is 'a'",
    "gl.pgd(m, x, y, momentum=float('inf'))": "momentum is inf",
    "gl.pgd(m, x, y, loss=None)": "loss is None",
    "gl.pgd(m, x, y, loss='ce')": "loss is 'ce'",
    "gl.pgd(m, x, y, generator=3)": "generator is 3",
    "gl.square(m, x, y, queries=2.5)": "queries is 2.5",
    "gl.claims.measure({'SL': {0: m, 1: m}}, x, y, executor=5)": "executor is 5",
    "gl.square(m, x, y, queries='5')": "queries is '5'",
    "gl.square(m, x, y, p_init='a')": "p_init is 'a'",
    "gl.square(m, x, y, pairs='a')": "pairs is 'a'",
    "gl.square(m, x, y, reach_edges=1)": "reach_edges is 1",
    "gl.square(m, x, y, ball=0.1)": "ball is 0.1",
    "gl.nes(m, x, y, population=2.5)": "population is 2.5",
    "gl.nes(m, x, y, sigma='a')": "sigma is 'a'",
    "gl.rays(m, x, y, until_broken='no')": "until_broken is 'no'",
    "gl.rays(m, x, y, ball='linf')": "ball is 'linf'",
    "gl.hopskipjump(m, x, y, queries=None)": "queries is None",
    "gl.hopskipjump(m, x, y, until_broken=0)": "until_broken is 0",
    "gl.apgd(m, x, y, start=0.5)": "start is 0.5",
    "gl.apgd(m, x, y, targets=3)": "targets is 3",
    "gl.apgd(m, x, y, steps=2.5)": "steps is 2.5",
    "gl.apgd(m, x, y, loss='ce')": "loss is 'ce'",
    "gl.apgd(m, x, y, 0.1)": "ball is 0.1",
    "gl.fgsm(m, x, y, 0.1)": "ball is 0.1",
    "gl.fgsm(m, x, y, samples='a')": "samples is 'a'",
    "gl.pgd_targeted(m, x, y, classes=1.5)": "classes is 1.5",
    "gl.pgd_targeted(m, x, y, step_size=-1.0)": "step_size is -1.0",
    "gl.pgd_targeted(m, x, y, by='x')": "by is 'x'",
    "gl.apgd_targeted(m, x, y, classes=1.5)": "classes is 1.5",
    "gl.apgd_targeted(m, x, y, by='x')": "by is 'x'",
    "gl.apgd_targeted(m, x, y, start=2)": "start is 2",
    "gl.apgd_targeted(m, x, y, loss=3)": "loss is 3",
    "gl.target_classes(m, x, y, count=1.5)": "count is 1.5",
    "gl.target_classes(m, x, y, by=3)": "by is 3",
    "gl.target_classes(m, x, y, 0.1)": "ball is 0.1",
    "gl.minimum_norm(m, x, y, steps='a')": "steps is 'a'",
    "gl.minimum_norm(m, x, y, 0.1)": "ball is 0.1",
    "gl.minimum_norm(m, x, y, steps=1).accuracy('a')": "eps is 'a'",
    "gl.Ball('a')": "eps is 'a'",
    "gl.stability(m, x, y, radii=0.1)": "radii are 0.1",
    "gl.stability(m, x, y, radii='ab')": "radii are 'ab'",
    "gl.gradients(m, x, y, scales=1.0)": "scales are 1.0",
    "gl.gradients(m, x, y, draws=2.5)": "draws is 2.5",
    "gl.input_plane(m, x, y, points=5.5)": "points is 5.5",
    "gl.weight_plane(m, x, y, points=5.5)": "points is 5.5",
    "gl.weight_plane(m, x, y, batch=None)": "batch is None",
    "gl.weight_plane(m, x, y, span='a')": "span is 'a'",
    "gl.weight_plane(m, x, y, adaptive='a')": "adaptive is 'a'",
    "gl.weight_plane(m, x, y, resume=3)": "resume is 3",
    "gl.weight_plane(m, x, y, generator=3)": "generator is 3",
    "gl.weight_plane(m, x, y, directions=5)": "directions is 5",
    "gl.weight_plane(m, x, y, directions=[{'1.weight': 1.0}] * 2)": "directions[0] holds a float for '1.weight'",
    "gl.weight_plane(3, x, y)": "model is a int",
    "gl.interpolate([m, 3], x, y)": "models[1] is a int",
    "gl.interpolate(m, x, y)": "models is a Sequential",
    "gl.interpolate([m, m], x, y, beyond='a')": "beyond is 'a'",
    "gl.trajectory(m, 3)": "checkpoints is a int",
    "gl.trajectory(m, [3, 4, 5])": "checkpoints[0] is a int",
    "gl.trajectory(m, 'nowhere')": "checkpoints 'nowhere' is not a folder",
    "gl.trajectory(m, [{'1.weight': 1, '1.bias': 2}] * 3)": "checkpoints[0] holds a int for '1.weight'",
    "gl.trajectory(3, [m, m, m])": "model is a int",
    "gl.spectrum(m, x, y, precision='a')": "precision is 'a'",
    "gl.spectrum(m, x, y, generator=3)": "generator is 3",
    "gl.spectrum(m, x, y, names=3)": "names is 3",
    "gl.spectrum(m, x, y, k='a')": "k is 'a'",
    "gl.robustness(m, x, y, found=[1])": "found is a list",
    "gl.robustness(m, x, y, resume=3)": "resume is 3",
    "gl.robustness(m, x, y, samples='a')": "samples is 'a'",
    "gl.robustness(m, x, y, generator=3)": "generator is 3",
    "gl.auto_attack(m, x, y, version='best')": "version is 'best'",
    "gl.curve(m, x, y, over='time')": "over is 'time'",
    "gl.curve(m, x, y, values='ab')": "values are 'ab'",
    "gl.curve(m, x, y, over='steps', values=[0.5])": "values are [0.5]",
    "gl.curve(m, x, y, values=[])": "values are []",
    "gl.transfer({}, {'m': m}, x, y)": "sources is {}",
    "gl.transfer({'m': m}, 3, x, y)": "targets is 3",
    "gl.transfer({'m': m}, {'m': m}, x, y, attack=3)": "attack is 3",
    "gl.masking(3, x, y)": "model is a int",
    "gl.masking(m, x, y, 0.1)": "ball is 0.1",
    "gl.masking(m, x, y, budget='big')": "budget is 'big'",
    "gl.masking(m, x, y, budget=3)": "budget is 3",
    "gl.masking(m, x, y, batch=0)": "batch is 0",
    "gl.masking(m, x, y, generator=3)": "generator is 3",
    "gl.masking(m, x, 0)": "y has shape ()",
    "gl.masking(m, x.repeat(20, 1, 1, 1), surrogates=[m])": "surrogates are a list",
    "gl.masking(m, x.repeat(20, 1, 1, 1), surrogates='all')": "surrogates are 'all'",
    "gl.masking(m, x.repeat(20, 1, 1, 1), surrogates={'a': 3})": "surrogate 'a' is a int",
    "gl.planted(3, x, y)": "model is a int",
    "gl.planted(m, x, y, 0.1)": "ball is 0.1",
    "gl.planted(m, x, y, attacks='all')": "attacks is 'all'",
    "gl.planted(m, x, y, attacks=[3])": "attacks holds 3",
    "random_directions(3)": "model is a int",
    "random_directions(m, count='a')": "count is 'a'",
    "normalize(3, m)": "direction is a int",
}


def test_a_value_of_the_wrong_type_is_named(tmp_path):
    script = "\n".join(
        [
            "import torch, gradlens as gl",
            "from gradlens.landscape import normalize, random_directions",
            "m = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))",
            "x, y = torch.rand(3, 3, 2, 2), torch.tensor([0, 1, 2])",
            f"for call in {list(BAD)!r}:",
            "    try:",
            "        eval(call)",
            "        print('accepted', call)",
            "    except ValueError as error:",
            "        print(error)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(BAD)
    for said, (call, start) in zip(lines, BAD.items(), strict=True):
        assert said.startswith(f"{start}, expected "), (call, said)


@pytest.mark.parametrize("batch", [None, 1])
def test_a_softmax_is_found_out_however_few_samples_it_sees(batch, cnn, images):
    model = nn.Sequential(cnn, nn.Softmax(1))
    with pytest.raises(ValueError, match="returns probabilities"):
        gl.pgd(model, images, [0] * 6, batch=batch)
    with pytest.raises(ValueError, match="returns probabilities"):
        gl.pgd(model, images[:1], [0])
    gl.pgd(cnn, images[:1], torch.tensor([0]))
