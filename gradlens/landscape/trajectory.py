"""The plane that a training run moves in: principal components of its checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..disk import load_weights
from ..model import check_module
from ..provenance import Made, digest, made
from ..types import Direction, PerAxis, PerModel, Places
from .walk import movable

if TYPE_CHECKING:
    from pandas import DataFrame

_PARTS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Trajectory:
    """Checkpoints projected on the plane of their first principal components through the weights of a model.

    Pass it as `directions` to `weight_plane` or `weight_line`: the grid then covers the path. The path that is drawn
    is a shadow: `residual` says how far each checkpoint is off the plane.
    """

    directions: tuple[Direction, ...]  # principal components, each of Euclidean length 1 over all parameters
    places: Places  # coordinates of each checkpoint from the model, in Euclidean weight distance
    residual: PerModel  # distance of each checkpoint from the plane
    explained: PerAxis  # share of the checkpoints' variance along each component
    made: Made

    def __str__(self) -> str:
        return (
            f"{len(self.places)} checkpoints: two components explain {self.explained.sum():.1%} of their variance "
            f"({self.explained[0]:.1%} and {self.explained[1]:.1%}), {self.residual.max():.3g} off the plane at most"
        )

    def frame(self) -> DataFrame:
        """Tidy table, one row a checkpoint."""
        import pandas as pd

        alpha, beta = self.places.cpu().numpy().T
        return pd.DataFrame({"alpha": alpha, "beta": beta, "residual": self.residual.cpu().numpy()})


@torch.no_grad()
def trajectory(
    model: nn.Module, checkpoints: Sequence[nn.Module | Mapping[str, Any]] | str | os.PathLike[str]
) -> Trajectory:
    """Principal components of `checkpoints` (modules or state dicts, in order), seen from the weights of `model`.

    `checkpoints` may name a folder instead, whose .safetensors and .pt files are taken by name, numbers by size
    (epoch9 before epoch10), and read without executing anything.

    Of parameters only, in float64, about the checkpoints' mean (Li et al. 2018, section 7, who look at differences
    to the last checkpoint; `model` is usually the last one, which then lies at (0, 0)). Each component points to where
    the checkpoint farthest along it lies. Raises ValueError for fewer than three checkpoints, for checkpoints of
    another architecture, and for ones on a straight line, which have no second component.
    """
    check_module(model, "model")
    if isinstance(checkpoints, str | os.PathLike):
        return trajectory(model, _folder(Path(checkpoints)))
    if not isinstance(checkpoints, Sequence):
        raise ValueError(f"checkpoints is a {type(checkpoints).__name__}, expected modules, state dicts or a folder")
    if len(checkpoints) < 3:
        raise ValueError(f"checkpoints holds {len(checkpoints)}, expected at least three: two make a line")
    names = [name for name, p in model.named_parameters() if p.is_floating_point() and p.numel()]
    if not names:
        raise ValueError("model has no parameters that training could move, expected some")
    here = movable(model)
    points = [_weights(each, here, names, i) for i, each in enumerate(checkpoints)]

    def stacked(name: str) -> Tensor:  # one parameter at a time, so that no second copy of all weights is made
        return torch.stack([point[name].to(here[name].device).double().flatten() for point in points])

    count = len(points)
    gram = torch.zeros(count, count, dtype=torch.float64, device=here[names[0]].device)
    for name in names:
        centred = stacked(name) - stacked(name).mean(0)
        gram += centred @ centred.T
    values, vectors = torch.linalg.eigh(gram)
    top, left = values.flip(0)[:2], vectors.flip(1)[:, :2]
    # what rounding makes of an exactly straight path is far below this
    if not top[1] > 1e-12 * top[0]:
        raise ValueError("checkpoints lie on a straight line or on one point, expected at least three apart")
    components = {name: (left / top.sqrt()).T @ (stacked(name) - stacked(name).mean(0)) for name in names}

    offsets = {name: stacked(name) - here[name].double().flatten() for name in names}
    places = torch.stack([offsets[name] @ components[name].T for name in names]).sum(0)
    farthest = places.abs().argmax(0)
    signs = torch.stack([places[farthest[axis], axis].sign() for axis in range(2)])
    places = places * signs
    square = torch.stack([offset.square().sum(1) for offset in offsets.values()]).sum(0)
    directions = tuple(
        {
            name: (signs[axis] * components[name][axis]).view(here[name].shape).to(_kind(here[name]))
            for name in names
            if components[name][axis].any()
        }
        for axis in range(2)
    )
    data = digest(*(point[name] for point in points for name in names))
    return Trajectory(
        directions=directions,
        places=places,
        residual=(square - places.square().sum(1)).clamp(min=0).sqrt(),
        explained=top / values.clamp(min=0).sum(),
        made=made("trajectory", model, data, str(places.device), checkpoints=count),
    )


def _folder(folder: Path) -> list[dict[str, Tensor]]:
    if not folder.is_dir():
        raise ValueError(f"checkpoints {str(folder)!r} is not a folder, expected one of .safetensors or .pt files")
    files = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".pt", ".pth")]
    files.sort(key=lambda path: [(int(part), "") if part.isdigit() else (-1, part) for part in _PARTS.split(path.name)])
    return [load_weights(path) for path in files]


def _kind(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _weights(checkpoint: Any, here: Mapping[str, Tensor], names: Sequence[str], i: int) -> dict[str, Tensor]:
    state = checkpoint.state_dict() if isinstance(checkpoint, nn.Module) else checkpoint
    if not isinstance(state, Mapping):
        raise ValueError(f"checkpoints[{i}] is a {type(state).__name__}, expected a torch.nn.Module or a state dict")
    for name in names:
        if name not in state:
            raise ValueError(f"checkpoints[{i}] has no {name!r}, expected a state dict of the model's architecture")
        if not isinstance(state[name], Tensor):
            raise ValueError(f"checkpoints[{i}] holds a {type(state[name]).__name__} for {name!r}, expected a tensor")
        if state[name].shape != here[name].shape:
            raise ValueError(
                f"checkpoints[{i}] has shape {tuple(state[name].shape)} for {name!r}, expected "
                f"{tuple(here[name].shape)} as the model has"
            )
        if not state[name].isfinite().all():
            raise ValueError(f"checkpoints[{i}] holds NaN or infinity in {name!r}, expected finite weights")
    return {name: state[name].detach() for name in names}
