"""Distances between the student and the teacher on unlabeled images; no gradient reaches the teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssl_seg.losses.common import LossFn, to_float32


def consistency_mse(student_logits: Tensor, teacher_probs: Tensor) -> Tensor:
    """Return the squared difference of the probabilities, mean over voxels and classes; in [0, 1].

    No gradient reaches the teacher (Tarvainen & Valpola 2017).

    Args:
        student_logits: (N, K, *S).
        teacher_probs: (N, K, *S), in [0, 1], summing to 1 over K.
    """
    probs = torch.softmax(to_float32(student_logits), dim=1)
    squared = (probs - teacher_probs.detach().to(probs.dtype)) ** 2
    return squared.sum() / max(squared.numel(), 1)


def consistency_kl(student_logits: Tensor, teacher_probs: Tensor) -> Tensor:
    """Return KL(teacher || student) = ``sum_k q_k * (log q_k - log p_k)``, mean over voxels; >= 0.

    No gradient reaches the teacher. Shapes as in ``consistency_mse``.
    """
    log_probs = torch.log_softmax(to_float32(student_logits), dim=1)
    divergence = functional.kl_div(log_probs, teacher_probs.detach().to(log_probs.dtype), reduction="none")
    return divergence.sum() / max(divergence.numel() // divergence.shape[1], 1)


CONSISTENCY: dict[str, LossFn] = {
    "mse": consistency_mse,
    "kl": consistency_kl,
}
