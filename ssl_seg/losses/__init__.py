"""Losses of the labeled and of the unlabeled part.

Shapes: N samples, K >= 2 classes (background 0), ``*S`` spatial = (Z, Y, X) or (Y, X). ``logits`` (N, K, *S) may have
any float dtype and are computed in float32 at least; ``target`` (N, *S) is int64, ``IGNORE_INDEX`` where nothing is
known.

Every loss is a scalar with a graph. It is 0, never NaN, where there is nothing to learn: no valid voxel, or N = 0.
"""

from ssl_seg.losses.common import LossFn, compute_foreground_logit
from ssl_seg.losses.components import COSTS, LOSSES, check_loss_names, list_costs, list_options
from ssl_seg.losses.consistency import CONSISTENCY
from ssl_seg.losses.foreign import adapt_loss, get_loss_function
from ssl_seg.losses.supervised import SupervisedLoss, first_head, get_loss, make_supervised_loss
from ssl_seg.losses.voxelwise import check_class_weights

__all__ = [
    "CONSISTENCY",
    "COSTS",
    "LOSSES",
    "LossFn",
    "SupervisedLoss",
    "adapt_loss",
    "check_class_weights",
    "check_loss_names",
    "compute_foreground_logit",
    "first_head",
    "get_loss",
    "get_loss_function",
    "list_costs",
    "list_options",
    "make_supervised_loss",
]
