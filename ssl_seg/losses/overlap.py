"""Losses that compare regions: Dice and its relatives.

All but ``generalized_dice`` and ``lovasz`` are one minus a Tversky index of each foreground class (Tversky 1977)::

    TI = (TP + smooth) / (TP + alpha * FP + beta * FN + smooth)

with soft counts ``TP = sum(p * y)``, ``FP = sum(p * (1 - y))``, ``FN = sum((1 - p) * y)`` over the valid voxels.
``alpha = beta = 1/2`` is Dice, ``alpha = beta = 1`` is IoU. ``fp_cost`` multiplies alpha, ``fn_cost`` beta.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_seg.config.section import NonNegative, Positive
from ssl_seg.losses.common import find_valid, mean_over_known_samples, split_classes, to_float32


class SoftCounts(NamedTuple):
    """Soft counts of voxels by class: (C,) over a batch, (N, C) by sample."""

    tp: Tensor
    fp: Tensor
    fn: Tensor

    def compute_tversky_index(self, alpha: float, beta: float, smooth: float) -> Tensor:
        """Return the Tversky index of each count, in (0, 1]."""
        return (self.tp + smooth) / (self.tp + alpha * self.fp + beta * self.fn + smooth)


def dice(
    logits: Tensor,
    target: Tensor,
    smooth: Positive = 1.0,
    batch: bool = True,
    fp_cost: Positive = 1.0,
    fn_cost: Positive = 1.0,
) -> Tensor:
    """Return one minus the soft Dice of the softmax, mean over the foreground classes; in [0, 1].

    ``1 - mean_k (2 * sum(p_k * y_k) + smooth) / (sum(p_k) + sum(y_k) + smooth)`` with sums over N and ``*S`` ("batch
    Dice", Milletari et al. 2016 with the plain denominator). Ignored voxels are left out of all three sums.

    A class that is neither in the target nor predicted has loss 0. A class that is absent but predicted has loss
    ``P / (P + smooth)`` for P predicted voxels: an all-background batch costs its false positives and nothing else.
    ``smooth`` is in voxels and bounds the gradient by ``1 / smooth`` per voxel. With the usual 1e-5 that gradient is
    near 1e5 for tiny P and vanishes for P > 1, so that an all-background batch would either explode or teach nothing.

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        smooth: > 0, in voxels.
        batch: sum over the samples too; False takes the mean of the losses of the samples that have a valid voxel.
        fp_cost: factor of the false positives in the denominator.
        fn_cost: factor of the false negatives.
    """
    overlap = _count_foreground(logits, target, batch)
    index = overlap.compute_tversky_index(0.5 * fp_cost, 0.5 * fn_cost, 0.5 * smooth)
    return _mean(1.0 - index, target)


def tversky(
    logits: Tensor,
    target: Tensor,
    alpha: NonNegative = 0.3,
    beta: NonNegative = 0.7,
    smooth: Positive = 1.0,
    batch: bool = True,
    fp_cost: Positive = 1.0,
    fn_cost: Positive = 1.0,
) -> Tensor:
    """Return one minus the Tversky index, mean over the foreground classes; in [0, 1] (Salehi et al. 2017).

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        alpha: weight of false positives.
        beta: weight of false negatives; above alpha, missing foreground costs more than inventing it.
        smooth: as in ``dice``; so are ``batch`` and the costs.
        batch: see ``dice``.
        fp_cost: factor of alpha.
        fn_cost: factor of beta.
    """
    overlap = _count_foreground(logits, target, batch)
    return _mean(1.0 - overlap.compute_tversky_index(alpha * fp_cost, beta * fn_cost, smooth), target)


def focal_tversky(
    logits: Tensor,
    target: Tensor,
    gamma: Positive = 4 / 3,
    alpha: NonNegative = 0.3,
    beta: NonNegative = 0.7,
    smooth: Positive = 1.0,
    batch: bool = True,
    fp_cost: Positive = 1.0,
    fn_cost: Positive = 1.0,
) -> Tensor:
    """Return ``(1 - Tversky index) ** (1 / gamma)``, mean over the foreground classes; in [0, 1] (Abraham & Khan 2019).

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        gamma: the paper's: above 1 it flattens the loss of bad classes and steepens that of good ones. The paper uses
            4/3; code that raises to the power 0.75 means the same.
        alpha: weight of false positives; the paper calls it beta.
        beta: weight of false negatives; the paper calls it alpha.
        smooth: as in ``dice``.
        batch: see ``dice``.
        fp_cost: factor of alpha.
        fn_cost: factor of beta.
    """
    overlap = _count_foreground(logits, target, batch)
    miss = 1.0 - overlap.compute_tversky_index(alpha * fp_cost, beta * fn_cost, smooth)
    # Below eps the power goes on as a straight line: for gamma > 1 its slope is infinite at 0.
    floored = miss.clamp(min=torch.finfo(miss.dtype).eps)
    return _mean(floored ** (1.0 / gamma) * (miss / floored), target)


def iou(
    logits: Tensor,
    target: Tensor,
    smooth: Positive = 1.0,
    batch: bool = True,
    fp_cost: Positive = 1.0,
    fn_cost: Positive = 1.0,
) -> Tensor:
    """Return one minus the soft intersection over union, mean over the foreground classes; in [0, 1].

    ``1 - mean_k (TP_k + smooth) / (TP_k + FP_k + FN_k + smooth)`` (Rahman & Wang 2016). Arguments as in ``dice``.
    """
    overlap = _count_foreground(logits, target, batch)
    return _mean(1.0 - overlap.compute_tversky_index(fp_cost, fn_cost, smooth), target)


def generalized_dice(
    logits: Tensor,
    target: Tensor,
    smooth: Positive = 1.0,
    batch: bool = True,
    fp_cost: Positive = 1.0,
    fn_cost: Positive = 1.0,
) -> Tensor:
    """Return one minus the Dice of all classes together, each weighed by 1 / volume²; in [0, 1] (Sudre et al. 2017).

    ``1 - (2 * sum_k w_k TP_k + smooth) / (sum_k w_k (2 TP_k + FP_k + FN_k) + smooth)``, background included. A class
    that is absent has the largest weight of those present, as in MONAI. The weights are relative to the largest one,
    so that ``smooth`` is in voxels of the rarest class: added to the bare 1 / volume², as in MONAI, even 1e-5 drowns
    the sums of a volume of a million voxels, and the loss is 0 everywhere.

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        smooth: > 0, in voxels of the rarest class present.
        batch: see ``dice``.
        fp_cost: factor of false foreground, which is missed background.
        fn_cost: factor of missed foreground, which is false background.
    """
    probs, actual = torch.softmax(to_float32(logits), dim=1), split_classes(target, logits.shape[1], first=0)
    overlap = sum_soft_counts(probs, actual, find_valid(target), batch)
    volume = actual.sum(_summed_dims(actual, batch)).to(probs.dtype)
    rarest = torch.where(volume > 0, volume, torch.inf).amin(-1, keepdim=True)
    weights = torch.where(volume > 0, rarest / volume.clamp(min=1), 1.0) ** 2
    is_foreground = torch.arange(logits.shape[1], device=logits.device) > 0
    wrong = torch.where(is_foreground, fp_cost, fn_cost) * overlap.fp
    missed = torch.where(is_foreground, fn_cost, fp_cost) * overlap.fn
    agreed = 2.0 * (weights * overlap.tp).sum(-1, keepdim=True) + smooth
    return _mean(1.0 - agreed / (agreed + (weights * (wrong + missed)).sum(-1, keepdim=True)), target)


def lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """Return the Lovász-Softmax, mean over the classes in the target, background included; in [0, 1].

    The Lovász extension of the Jaccard loss at the errors ``|p - y|`` (Berman et al. 2018). All samples are taken
    together. A class that is not in the target has no Jaccard gradient but at one voxel, so it is left out, as in the
    authors' code: its false positives are errors of the classes that are there.
    """
    probs = torch.softmax(to_float32(logits), dim=1).movedim(1, 0).flatten(1)  # (K, V)
    actual = split_classes(target, logits.shape[1], first=0).movedim(1, 0).flatten(1)
    valid = find_valid(target).flatten()
    errors, order = (torch.where(actual, 1.0 - probs, probs) * valid).sort(dim=1, descending=True)
    actual = actual.gather(1, order)  # ignored voxels have error 0 and come last
    size = actual.sum(1, keepdim=True).to(errors.dtype)
    left = size - actual.cumsum(1)  # of the intersection, once the voxels up to here are wrong
    union = size + (~actual).cumsum(1)
    # The rise of 1 - left / union from voxel to voxel, written without the difference of two near numbers.
    rise = torch.where(actual, 1.0 / union.clamp(min=1), left / (union * (union - 1)).clamp(min=1))
    present = size.squeeze(1) > 0
    return ((errors * rise).sum(1) * present).sum() / present.sum().clamp(min=1)


def sum_soft_counts(probs: Tensor, actual: Tensor, valid: Tensor, batch: bool) -> SoftCounts:
    """Return the soft counts over the valid voxels.

    Args:
        probs: (N, C, *S), in [0, 1].
        actual: (N, C, *S) bool; False where not valid.
        valid: (N, 1, *S) bool.
        batch: sum over N too.
    """
    dims = _summed_dims(probs, batch)
    return SoftCounts(
        (probs * actual).sum(dims), (probs * (valid & ~actual)).sum(dims), ((1.0 - probs) * actual).sum(dims)
    )


def _count_foreground(logits: Tensor, target: Tensor, batch: bool) -> SoftCounts:
    foreground = torch.softmax(to_float32(logits), dim=1)[:, 1:]
    return sum_soft_counts(foreground, split_classes(target, logits.shape[1]), find_valid(target), batch)


def _summed_dims(values: Tensor, batch: bool) -> tuple[int, ...]:
    return (0, *range(2, values.ndim)) if batch else tuple(range(2, values.ndim))


def _mean(losses: Tensor, target: Tensor) -> Tensor:
    """Return the mean over classes (C,), or over samples and classes (N, C)."""
    return losses.mean() if losses.ndim == 1 else mean_over_known_samples(losses, target)
