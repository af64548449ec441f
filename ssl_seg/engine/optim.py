"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn, optim

from ssl_seg.config import OptimConfig


def make_optimizer(net: nn.Module, config: OptimConfig, encoder: Sequence[nn.Module] = ()) -> optim.Optimizer:
    """Return the optimizer over all parameters; weight decay leaves biases and normalization scales alone.

    Args:
        net: the network.
        config: settings.
        encoder: modules of the network whose learning rate has the factor ``encoder_lr_factor``.
    """
    apart = encoder if config.encoder_lr_factor != 1 else ()
    inside = {id(weight) for module in apart for weight in module.parameters()}
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    groups = _group([w for w in trained if id(w) not in inside], config, 1.0)
    if inside:
        groups += _group([w for w in trained if id(w) in inside], config, config.encoder_lr_factor)
    if config.name == "sgd":
        return optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    # On a GPU one kernel for all weights of a group; None leaves the bits on a CPU as they are.
    fused = True if all(weight.is_cuda for weight in trained) else None
    return optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=fused)


def _group(weights: Sequence[nn.Parameter], config: OptimConfig, lr_factor: float) -> list[dict[str, Any]]:
    decayed, others = ([w for w in weights if (w.ndim > 1) == is_matrix] for is_matrix in (True, False))
    return [
        {"params": decayed, "weight_decay": config.weight_decay, "lr_factor": lr_factor},
        {"params": others, "weight_decay": 0.0, "lr_factor": lr_factor},
    ]


def set_lr(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the learning rate, which each group has its own factor of."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
