"""Losses that are a mean over voxels: cross-entropy and focal; and the one that looks at their spread."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ssl_seg.config.section import NonNegative, Positive, Share
from ssl_seg.errors import ConfigError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses.common import (
    ClassWeights,
    choose_cost,
    compute_foreground_logit,
    find_valid,
    mean_over_known_samples,
    mean_over_valid,
    to_float32,
)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weights: ClassWeights | None = None,
    pos_weight: Positive = 1.0,
    fp_cost: Positive = 1.0,
    fn_cost: Positive = 1.0,
) -> Tensor:
    """Return the cross-entropy, mean over the valid voxels; >= 0.

    Every weight on foreground (``class_weights[1:]``, ``pos_weight``, ``fn_cost``) makes *more* foreground predicted:
    in a voxel that is foreground with probability ``q``, the loss is lowest at odds ``weight * q / (1 - q)``.

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        class_weights: K values, background first; the mean is weighted by them, as in torch.
        pos_weight: factor of every foreground voxel, the mean not weighted by it, as in torch's BCEWithLogitsLoss.
        fp_cost: factor of every background voxel.
        fn_cost: factor of every foreground voxel; the same knob as ``pos_weight``.

    Raises:
        ConfigError: when ``class_weights`` does not hold K values, or only 0.
    """
    loss = _voxel_cross_entropy(logits, target) * choose_cost(target, fp_cost, fn_cost * pos_weight)
    if class_weights is None:
        return mean_over_valid(loss, target)
    check_class_weights(class_weights, logits.shape[1])
    weights = torch.zeros_like(loss)
    for class_id, weight in enumerate(class_weights):
        weights = weights + weight * (target == class_id)
    return (loss * weights).sum() / weights.sum().clamp(min=torch.finfo(loss.dtype).tiny)


def check_class_weights(class_weights: Sequence[float], num_classes: int) -> None:
    """Check that there is a weight for each class, and one above 0.

    Raises:
        ConfigError: otherwise.
    """
    if len(class_weights) != num_classes or not any(class_weights):
        raise ConfigError(
            f"class_weights = {list(class_weights)}: one weight is needed for each of the "
            f"{num_classes} classes, background first, and one above 0"
        )


def focal(
    logits: Tensor,
    target: Tensor,
    gamma: NonNegative = 2.0,
    alpha: Share | None = None,
    fp_cost: Positive = 1.0,
    fn_cost: Positive = 1.0,
) -> Tensor:
    """Return the focal loss ``-w * (1 - p_t) ** gamma * log(p_t)``, mean over the valid voxels; >= 0 (Lin et al. 2017).

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        gamma: >= 0; 0 is the cross-entropy. Voxels that are already right count less the larger it is.
        alpha: weight of the foreground classes in [0, 1], ``1 - alpha`` for background; above 0.5 it raises the cost
            of missing foreground. None weighs all voxels 1.
        fp_cost: factor of every background voxel.
        fn_cost: factor of every foreground voxel.
    """
    loss = _voxel_cross_entropy(logits, target)
    # 1 - p_t; the clamp keeps the gradient of the power finite at p_t = 1 when gamma < 1.
    miss = (1.0 - torch.exp(-loss)).clamp(min=torch.finfo(loss.dtype).eps)
    balance = (1.0, 1.0) if alpha is None else (1.0 - alpha, alpha)
    return mean_over_valid(miss**gamma * loss * choose_cost(target, balance[0] * fp_cost, balance[1] * fn_cost), target)


def variance(logits: Tensor, target: Tensor) -> Tensor:
    """Return ``1 - 4 * Var(p_foreground)`` over the valid voxels of a sample, mean over samples; in [0, 1].

    A pressure against constant outputs: exactly 1 where the output is constant, 0 where half of the voxels are
    certain foreground and half certain background. It does not look at the labels: it is *not* 0 for a perfect
    prediction, but ``1 - 4 * r * (1 - r)`` for a foreground share r, and 1 for a rightly empty one. Its lowest value
    is at half foreground, whatever is in the image.

    No source gives a formula; a population variance of probabilities is at most 1/4, hence the factor.

    Args:
        logits: (N, K, *S).
        target: (N, *S); only where it is ignored matters.
    """
    valid = find_valid(target).squeeze(1).flatten(1)  # (N, V)
    probs = torch.sigmoid(compute_foreground_logit(logits)).flatten(1)
    count = valid.sum(1, keepdim=True).clamp(min=1)
    mean = (probs * valid).sum(1, keepdim=True) / count
    spread = (((probs - mean) ** 2) * valid).sum(1, keepdim=True) / count
    return mean_over_known_samples((1.0 - 4.0 * spread).clamp(min=0.0), target)  # rounding may pass 0


def _voxel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log(p_t) by voxel, (N, *S); 0 at ignored voxels."""
    # Reduced by the caller: torch's own sum and mean are not deterministic on CUDA.
    return functional.cross_entropy(to_float32(logits), target, ignore_index=IGNORE_INDEX, reduction="none")
