"""What the losses share: precision, class masks, means that leave out what is ignored, types of options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ssl_seg.config.section import NonNegative
from ssl_seg.labels import IGNORE_INDEX

LossFn = Callable[..., Tensor]
"""(logits (N,K,*S), target (N,*S), **options) -> scalar."""

ClassWeights = Annotated[tuple[NonNegative, ...], Field(min_length=2)]


def compute_foreground_logit(logits: Tensor) -> Tensor:
    """Return the log-odds of foreground, ``log(p(any class > 0) / p(background))``.

    Args:
        logits: (N, K, *S).

    Returns:
        (N, *S), float32 at least; its sigmoid is one minus the softmax of background.
    """
    logits = to_float32(logits)
    return torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]


def to_float32(logits: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32; wider types as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def find_valid(target: Tensor) -> Tensor:
    """Return where the target (N, *S) is known: (N, 1, *S), bool."""
    return (target != IGNORE_INDEX).unsqueeze(1)


def split_classes(target: Tensor, num_classes: int, first: int = 1) -> Tensor:
    """Return one mask for each class from ``first`` on: (N, K - first, *S), bool; False at ignored voxels."""
    class_ids = torch.arange(first, num_classes, device=target.device).view(-1, *[1] * (target.ndim - 1))
    return target.unsqueeze(1) == class_ids


def mean_over_valid(values: Tensor, target: Tensor) -> Tensor:
    """Return the mean of ``values`` (N, *S) over the voxels that are not ignored; 0 where there are none."""
    return values.sum() / (target != IGNORE_INDEX).sum().clamp(min=1)


def mean_over_known_samples(values: Tensor, target: Tensor) -> Tensor:
    """Return the mean of ``values`` (N, C) over the samples with a valid voxel and over C; 0 where there are none."""
    known = (target != IGNORE_INDEX).flatten(1).any(1)
    return (values * known.unsqueeze(1)).sum() / (known.sum() * values.shape[1]).clamp(min=1)


def choose_cost(target: Tensor, fp_cost: float, fn_cost: float) -> Tensor:
    """Return ``fn_cost`` where ``target`` is foreground (class above 0, or True), ``fp_cost`` elsewhere; its shape."""
    # Python numbers in torch.where: a tensor of weights would be copied to the device in every step.
    return torch.where(target > 0, fn_cost, fp_cost)
