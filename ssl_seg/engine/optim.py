"""Optimizers by name."""

from __future__ import annotations

from torch import nn, optim

from ssl_seg.config import OptimConfig


def make_optimizer(net: nn.Module, config: OptimConfig) -> optim.Optimizer:
    """Return the optimizer over all parameters; weight decay leaves biases and normalization scales alone."""
    decayed = [p for p in net.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in net.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.name == "sgd":
        return optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
