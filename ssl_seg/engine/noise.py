"""Gaussian noise on weights and gradients, as a function of a seed and a position: the same on all processes."""

from __future__ import annotations

import torch
from torch import nn

from ssl_seg.config import GradientNoiseConfig
from ssl_seg.config.schedules import compute_gradient_noise_std
from ssl_seg.data.sampling import derive_seed

WEIGHT_STREAM, GRADIENT_STREAM = 7, 8
"""Apart from the streams of ``data.loader``."""


@torch.no_grad()
def add_weight_noise(net: nn.Module, std: float, seed: int, epoch: int) -> None:
    """Add independent noise to all floating-point parameters; buffers stay.

    It is drawn on the CPU, so that it does not depend on the device.

    Args:
        net: the network.
        std: standard deviation in units of the weights.
        seed, epoch: which noise.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, 0, epoch, WEIGHT_STREAM))
    for parameter in net.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(noise.to(parameter), alpha=std)


@torch.no_grad()
def add_gradient_noise(net: nn.Module, settings: GradientNoiseConfig, seed: int, step: int) -> None:
    """Add the noise of a step to all gradients (Neelakantan et al. 2015).

    Not a function of the rank: the gradients are those of all processes already, and other noise on each would make
    the students drift apart. It is drawn on the device, without a copy from the host.
    """
    std = compute_gradient_noise_std(settings, step)
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in net.parameters():
        if (gradient := parameter.grad) is None:
            continue
        if gradient.device not in generators:
            generators[gradient.device] = torch.Generator(gradient.device)
            generators[gradient.device].manual_seed(derive_seed(seed, 0, step, GRADIENT_STREAM))
        noise = torch.randn(gradient.shape, generator=generators[gradient.device], device=gradient.device)
        gradient.add_(noise, alpha=std)
