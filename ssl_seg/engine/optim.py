"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn, optim

from ssl_seg.config import OptimConfig


def make_optimizer(net: nn.Module, config: OptimConfig, encoder: Sequence[nn.Module] = ()) -> optim.Optimizer:
    """Return the optimizer over all parameters; weight decay leaves biases and normalization scales alone.

    Args:
        net: the network.
        config: settings.
        encoder: modules of the network whose learning rate has the factor ``encoder_lr_factor``.
    """
    inside = {id(p) for module in encoder for p in module.parameters()}
    groups = []
    for factor, is_inside in ((1.0, False), (config.encoder_lr_factor, True)):
        own = [p for p in net.parameters() if p.requires_grad and (id(p) in inside) == is_inside]
        for decay, weights in (
            (config.weight_decay, [p for p in own if p.ndim > 1]),
            (0.0, [p for p in own if p.ndim <= 1]),
        ):
            if weights or not is_inside:
                groups.append({"params": weights, "weight_decay": decay, "lr_factor": factor})
    if config.name == "sgd":
        return optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the learning rate, which each group has its own factor of."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
