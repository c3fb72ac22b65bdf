"""How weights move: the optimiser, its learning rate over the run, and the average of the weights."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.config import Config
from training.objectives import curve


def optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def rate(config: Config, epochs: float, total: int) -> float:
    """The learning rate after so many of `total` epochs: up a line from 0, then down the curve to its end."""
    if epochs < config.warmup:
        return config.lr * epochs / config.warmup
    t = (epochs - config.warmup) / (total - config.warmup)
    return config.lr * (config.lr_end + (1 - config.lr_end) * curve(config.lr_curve, t))


def average(model: nn.Module, config: Config) -> AveragedModel | None:
    """A moving average of the weights, if the config asks for one; buffers (batch norm's statistics) are the newest."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema > 0 else None
