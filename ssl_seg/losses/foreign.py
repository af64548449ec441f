"""Losses between this program and others: theirs used here, and ours by their names and on their shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ssl_seg.config.presets import PRESETS
from ssl_seg.errors import ConfigError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses.common import LossFn, compute_foreground_logit, find_valid
from ssl_seg.losses.components import LOSSES, OTHER_NAMES
from ssl_seg.losses.supervised import get_loss

Target = Literal["index", "channel", "binary"]
"""What a loss takes beside logits."""
_CERTAIN = 30.0
"""Log-odds of an ignored voxel for a loss that knows no ignored ones: its probability is 1 - 1e-13."""


def get_loss_function(name: str, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss by the name that it has here or in other programs: ``(logits, target) -> scalar``.

    ``bce``, ``dice``, ``focal``, ``iou``, ``tversky``, ``combined`` (0.4 cross-entropy + 0.4 Dice + 0.2 focal) and so
    on: the names of ``get_loss``, and those of ``OTHER_NAMES``. Options are those of ``get_loss``; a preset takes
    ``bce_weight=0.5`` and the like for the weights of its components too.

    The loss takes logits (N, K, *S) with a target (N, *S) of class indices, and the shapes of binary networks: logits
    (N, 1, *S), the log-odds of foreground, with a target (N, 1, *S) or (N, *S) of 0 and 1.

    Raises:
        ConfigError: unknown name or option, with the nearest known one; or a wrong value.
    """
    bare = str(name).lower().removesuffix("_loss")
    known = OTHER_NAMES.get(bare, bare)
    if known in PRESETS and known not in LOSSES:
        named = [key for key in options if key.endswith("_weight")]
        own = {OTHER_NAMES.get(key[:-7], key[:-7]): options.pop(key) for key in named}
        options |= {"weights": PRESETS[known]["weights"] | own} if own else {}
    loss = get_loss(known, **options)
    return lambda logits, target: loss(*_to_classes(logits, target))


def adapt_loss(loss: Callable[[Tensor, Tensor], Tensor], target: Target = "index") -> LossFn:
    """Return a loss of another library as a component: put it into ``LOSSES`` under a name, and give that a weight.

    Ignored voxels become background that is predicted with certainty: next to nothing for a cross-entropy, true
    background for an overlap.

    Args:
        loss: takes logits, applies softmax or sigmoid itself, and returns a scalar.
        target: what it takes beside logits (N, K, *S): ``index``, class indices (N, *S), as
            segmentation-models-pytorch with ``mode="multiclass"``; ``channel``, class indices (N, 1, *S), as MONAI with
            ``to_onehot_y=True, softmax=True``; ``binary``, 0 and 1 as float (N, 1, *S) beside log-odds of foreground
            (N, 1, *S), as either with sigmoid.

    Raises:
        ConfigError: for another target; later, for a loss that returns more than one number.
    """
    if target not in get_args(Target):
        raise ConfigError(f"adapt_loss(target={target!r}): must be one of {', '.join(get_args(Target))}")

    def component(logits: Tensor, classes: Tensor) -> Tensor:
        value = loss(*arrange(logits, classes))
        if value.numel() != 1:
            raise ConfigError(f"the adapted loss returned shape {tuple(value.shape)}: it must be one number, a mean")
        return value.squeeze()

    def arrange(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        valid = find_valid(classes)
        known = classes.clamp(min=0)
        if target == "binary":
            odds = torch.where(valid, compute_foreground_logit(logits).unsqueeze(1), -_CERTAIN)
            return odds, (known > 0).unsqueeze(1).to(odds.dtype)
        background = torch.zeros_like(logits)
        background[:, 0] = _CERTAIN
        logits = torch.where(valid, logits, background)
        return logits, known if target == "index" else known.unsqueeze(1)

    return component


def _to_classes(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (N, K, *S) and class indices (N, *S).

    Raises:
        ConfigError: for a soft target, which would be rounded, values that are no class, or shapes that do not fit.
    """
    if target.ndim == logits.ndim and target.shape[1] == 1:
        target = target.squeeze(1)
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ConfigError(
            f"target of shape {tuple(target.shape)} beside logits of shape {tuple(logits.shape)}: it must have a class "
            "index (or 0 and 1) for each voxel"
        )
    if target.is_floating_point() and not torch.equal(target, target.round()):
        raise ConfigError("the target holds values between the classes: give class indices, or 0 and 1")
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    target = target.long()
    outside = ((target < 0) & (target != IGNORE_INDEX)) | (target >= logits.shape[1])
    if outside.any():
        raise ConfigError(
            f"the target holds {int(target[outside][0])}, which is not a class from 0 to {logits.shape[1] - 1}: give "
            "class "
            f"indices, or 0 and 1; {IGNORE_INDEX} is left out"
        )
    return logits, target
