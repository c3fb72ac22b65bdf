"""Weights into a model, or a sentence that says why they do not belong there."""

from torch import Tensor, nn


def fill(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Put weights into a model; raises ValueError saying what differs where they belong to another architecture."""
    own = model.state_dict()
    wrong = [f"no {name}" for name in own.keys() - weights.keys()]
    wrong += [f"an unknown {name}" for name in weights.keys() - own.keys()]
    wrong += [
        f"{name} of shape {tuple(weights[name].shape)} instead of {tuple(t.shape)}"
        for name, t in own.items()
        if name in weights and weights[name].shape != t.shape
    ]
    if wrong:
        raise ValueError(f"{where} belongs to another architecture: it has {', '.join(sorted(wrong)[:3])}")
    model.load_state_dict(weights)
