"""Losses of the labeled and of the unlabeled part.

Shapes: N samples, K >= 2 classes (background 0), ``*S`` spatial = (Z, Y, X) or (Y, X). ``logits`` (N, K, *S) may have
any float dtype and are computed in float32 at least; ``target`` (N, *S) is int64, ``IGNORE_INDEX`` where nothing is
known.

Every loss is a scalar with a graph. It is 0, never NaN, where there is nothing to learn: no valid voxel, or N = 0.
"""

from ssl_seg.losses.common import LossFn, compute_foreground_logit
from ssl_seg.losses.consistency import CONSISTENCY, consistency_kl, consistency_mse
from ssl_seg.losses.overlap import dice
from ssl_seg.losses.supervised import (
    COSTS,
    LOSSES,
    SupervisedLoss,
    check_loss_names,
    compute_loss,
    get_loss,
    list_options,
    make_supervised_loss,
)
from ssl_seg.losses.voxelwise import cross_entropy, focal

__all__ = [
    "CONSISTENCY",
    "COSTS",
    "LOSSES",
    "LossFn",
    "SupervisedLoss",
    "check_loss_names",
    "compute_foreground_logit",
    "compute_loss",
    "consistency_kl",
    "consistency_mse",
    "cross_entropy",
    "dice",
    "focal",
    "get_loss",
    "list_options",
    "make_supervised_loss",
]
