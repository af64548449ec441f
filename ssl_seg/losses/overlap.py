"""Losses that compare regions: Dice and its relatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses.common import to_float32


def dice(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Return one minus the soft Dice of the softmax, mean over the foreground classes; in [0, 1].

    ``1 - mean_k (2 * sum(p_k * y_k) + smooth) / (sum(p_k) + sum(y_k) + smooth)`` with sums over N and ``*S`` ("batch
    Dice", Milletari et al. 2016 with the plain denominator). Ignored voxels are left out of all three sums.

    A class that is neither in the target nor predicted has loss 0. A class that is absent but predicted has loss
    ``P / (P + smooth)`` for P predicted voxels: an all-background batch costs its false positives and nothing else.
    ``smooth`` is in voxels and bounds the gradient by ``1 / smooth`` per voxel. With the usual 1e-5 that gradient is
    near 1e5 for tiny P and vanishes for P > 1, so that an all-background batch would either explode or teach nothing.
    """
    foreground = torch.softmax(to_float32(logits), dim=1)[:, 1:]
    class_ids = torch.arange(1, logits.shape[1], device=logits.device).view(-1, *[1] * (target.ndim - 1))
    actual = target.unsqueeze(1) == class_ids  # (N, K-1, *S); False at ignored voxels
    valid = (target != IGNORE_INDEX).unsqueeze(1)
    dims = (0, *range(2, logits.ndim))
    overlap = (foreground * actual).sum(dims)
    size = (foreground * valid).sum(dims) + actual.sum(dims)
    return 1.0 - ((2.0 * overlap + smooth) / (size + smooth)).mean()
