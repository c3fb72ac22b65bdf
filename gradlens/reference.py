"""Other packages' answers to the same questions: loss-landscapes and pyhessian, with their traps repaired.

They are witnesses: a number of ours that they also give is a number that two programs agree on.
"""

import copy
import dataclasses
import warnings

import loss_landscapes
import numpy as np
import torch
from loss_landscapes.metrics.metric import Metric
from loss_landscapes.model_interface.model_wrapper import ModelWrapper
from pyhessian import hessian
from torch import nn

from .ball import Ball
from .door import admit, check_images, check_labels
from .landscape import Surface
from .losses import cross_entropy
from .model import frozen, logits
from .types import Images, ImagesLike, LabelsLike, Loss


class _Picture(nn.Module):
    """An image batch as the parameters of a module, so that a tool for weights walks through images."""

    def __init__(self, images: Images) -> None:
        super().__init__()
        self.images = nn.Parameter(images.clone())


class _PerSampleLoss(Metric):
    """loss-landscapes' metric protocol: the loss of each sample at the images that the walk has reached."""

    def __init__(self, model: nn.Module, surface: Surface, loss: Loss) -> None:
        super().__init__()
        self.model, self.surface, self.loss = model, surface, loss

    def __call__(self, model_wrapper: ModelWrapper) -> np.ndarray:
        (picture,) = model_wrapper.get_modules()
        images = picture.images.detach()
        if self.surface.projected is not None:
            images = images.clamp(*self.surface.projected)
        return self.loss(logits(self.model, images), self.surface.labels).cpu().numpy()


def input_line(model: nn.Module, x: ImagesLike, surface: Surface, *, loss: Loss = cross_entropy) -> Surface:
    """The losses of `gradlens.input_line`'s `surface` of the images `x`, measured anew by loss-landscapes.

    Only its `linear_interpolation` is sound, and it steps before it first measures: so the walk begins one step
    before the line, on copies. Its steps add up in float32, which costs about 1e-6 of the images.
    """
    if surface.loss.shape[1] != 1:
        raise ValueError(f"surface has {surface.loss.shape[1]} columns, expected the single one of input_line")
    x = torch.as_tensor(x)
    step = surface.alpha[1] - surface.alpha[0]
    ends = (surface.alpha[0] - step, surface.alpha[-1])
    start, end = (_Picture(x + surface.unit * alpha * surface.directions[0]) for alpha in ends)
    with frozen(model), torch.no_grad():
        metric = _PerSampleLoss(model, surface, loss)
        values = loss_landscapes.linear_interpolation(start, end, metric, steps=len(surface.alpha))
    return dataclasses.replace(surface, loss=torch.as_tensor(values).to(surface.loss)[:, None])


def sharpness(model: nn.Module, x: ImagesLike, y: LabelsLike, *, seed: int = 0, ball: Ball = Ball()) -> float:
    """Largest eigenvalue of the Hessian of the mean cross-entropy in the weights, by pyhessian's power iteration.

    In nats per squared weight; relative tolerance 1e-3. Runs on a copy of the model, since pyhessian leaves it in
    evaluation mode and with gradients that the next call would add to; `seed` decides its start, torch's own random
    state is put back. Raises ValueError for bad images or labels, as `gradlens.pgd` does.
    """
    with frozen(model):
        images = check_images(model, x, ball)
        labels = admit(model, images, check_labels(y, len(images), images.device))
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    twin.zero_grad(set_to_none=True)
    with torch.random.fork_rng([images.device.index] if images.is_cuda else []), warnings.catch_warnings():
        # pyhessian keeps a graph through .grad on purpose; the twin and its graph are dropped together below
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        torch.manual_seed(seed)
        estimator = hessian(twin, nn.CrossEntropyLoss(), data=(images, labels), cuda=images.is_cuda)
        values, _ = estimator.eigenvalues(maxIter=200, tol=1e-3, top_n=1)
        twin.zero_grad(set_to_none=True)
    return float(values[0])
