"""Losses that are a mean over voxels: cross-entropy and focal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses.common import mean_over_valid, to_float32


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy, mean over the valid voxels; >= 0."""
    return mean_over_valid(_voxel_cross_entropy(logits, target), target)


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Return the focal loss ``-w * (1 - p_t) ** gamma * log(p_t)``, mean over the valid voxels; >= 0 (Lin et al. 2017).

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        gamma: >= 0; 0 is the cross-entropy. Voxels that are already right count less the larger it is.
        alpha: weight of the foreground classes in [0, 1], ``1 - alpha`` for background; above 0.5 it raises the cost
            of missing foreground. None weighs all voxels 1.
    """
    loss = _voxel_cross_entropy(logits, target)
    # 1 - p_t; the clamp keeps the gradient of the power finite at p_t = 1 when gamma < 1.
    miss = (1.0 - torch.exp(-loss)).clamp(min=torch.finfo(loss.dtype).eps)
    loss = miss**gamma * loss
    if alpha is not None:
        loss = loss * torch.where(target > 0, alpha, 1.0 - alpha)
    return mean_over_valid(loss, target)


def _voxel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log(p_t) by voxel, (N, *S); 0 at ignored voxels."""
    # Reduced by the caller: torch's own sum and mean are not deterministic on CUDA.
    return functional.cross_entropy(to_float32(logits), target, ignore_index=IGNORE_INDEX, reduction="none")
