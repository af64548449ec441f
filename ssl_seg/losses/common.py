"""What the losses share: precision, the mean over valid voxels, the log-odds of foreground."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_seg.labels import IGNORE_INDEX

LossFn = Callable[..., Tensor]
"""(logits (N,K,*S), target (N,*S), **options) -> scalar."""


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


def mean_over_valid(values: Tensor, target: Tensor) -> Tensor:
    """Return the mean of ``values`` (N, *S) over the voxels that are not ignored; 0 where there are none."""
    return values.sum() / (target != IGNORE_INDEX).sum().clamp(min=1)
