"""Distances between the student and the teacher on unlabeled images; no gradient reaches the teacher.

All are ``fn(student_logits (N,K,*S), teacher_probs (N,K,*S), accepted (N,*S) bool | None) -> scalar``. A voxel that is
not accepted counts 0, and the mean is still over all voxels (FixMatch, Sohn et al. 2020): the fewer are accepted, the
weaker the term. ``None`` accepts all. ``teacher_probs`` sum to 1 over K.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssl_seg.losses.common import LossFn, to_float32


def consistency_mse(student_logits: Tensor, teacher_probs: Tensor, accepted: Tensor | None = None) -> Tensor:
    """Return the squared difference of the probabilities, mean over voxels and classes; in [0, 1].

    Tarvainen & Valpola 2017.
    """
    probs = torch.softmax(to_float32(student_logits), dim=1)
    squared = (probs - _fix(teacher_probs, probs)) ** 2
    return _mean_over_voxels(squared.sum(1), accepted) / probs.shape[1]


def consistency_kl(student_logits: Tensor, teacher_probs: Tensor, accepted: Tensor | None = None) -> Tensor:
    """Return KL(teacher || student) = ``sum_k q_k * (log q_k - log p_k)``, mean over voxels; >= 0."""
    log_probs = torch.log_softmax(to_float32(student_logits), dim=1)
    divergence = functional.kl_div(log_probs, _fix(teacher_probs, log_probs), reduction="none")
    return _mean_over_voxels(divergence.sum(1), accepted)


def consistency_cross_entropy(student_logits: Tensor, teacher_probs: Tensor, accepted: Tensor | None = None) -> Tensor:
    """Return the cross-entropy with the teacher's most probable class as label, mean over voxels; >= 0.

    FixMatch (Sohn et al. 2020). Not 0 where the two agree, unless both are certain.
    """
    pseudo_label = teacher_probs.detach().max(dim=1).indices  # torch's argmax is ten times slower on CPUs
    return _mean_over_voxels(
        functional.cross_entropy(to_float32(student_logits), pseudo_label, reduction="none"), accepted
    )


def consistency_dice(student_logits: Tensor, teacher_probs: Tensor, accepted: Tensor | None = None) -> Tensor:
    """Return one minus the soft Dice of the probabilities, mean over the foreground classes; in [0, 1].

    ``1 - mean_k (2 * sum(p_k * q_k) + 1) / (sum(p_k²) + sum(q_k²) + 1)`` with sums over the accepted voxels of all
    samples. The squares (Milletari et al. 2016) make it 0 where the two agree; with plain sums that would be so for
    certain teachers only, and a doubtful one would push the student towards certainty.
    """
    probs = torch.softmax(to_float32(student_logits), dim=1)[:, 1:]
    teacher = _fix(teacher_probs[:, 1:], probs)
    if accepted is not None:
        probs, teacher = probs * accepted.unsqueeze(1), teacher * accepted.unsqueeze(1)
    dims = (0, *range(2, probs.ndim))
    size = (probs**2).sum(dims) + (teacher**2).sum(dims)
    return (1.0 - (2.0 * (probs * teacher).sum(dims) + 1.0) / (size + 1.0)).mean()


def consistency_js(student_logits: Tensor, teacher_probs: Tensor, accepted: Tensor | None = None) -> Tensor:
    """Return the Jensen-Shannon divergence in nats, mean over voxels; in [0, log 2].

    ``(KL(p || m) + KL(q || m)) / 2`` with ``m = (p + q) / 2``: symmetric, and bounded where the KL is not.
    """
    log_probs = torch.log_softmax(to_float32(student_logits), dim=1)
    probs, teacher = log_probs.exp(), _fix(teacher_probs, log_probs)
    log_mean = (0.5 * (probs + teacher)).clamp(min=torch.finfo(probs.dtype).tiny).log()
    divergence = probs * (log_probs - log_mean) + torch.xlogy(teacher, teacher) - teacher * log_mean
    return _mean_over_voxels(0.5 * divergence.sum(1), accepted)


CONSISTENCY: dict[str, LossFn] = {
    "mse": consistency_mse,
    "kl": consistency_kl,
    "cross_entropy": consistency_cross_entropy,
    "dice": consistency_dice,
    "js": consistency_js,
}


def _fix(teacher_probs: Tensor, like: Tensor) -> Tensor:
    return teacher_probs.detach().to(like.dtype)


def _mean_over_voxels(values: Tensor, accepted: Tensor | None) -> Tensor:
    """Return the sum of the accepted ``values`` (N, *S) divided by the number of all; 0 where there are none."""
    total = values.sum() if accepted is None else (values * accepted).sum()
    return total / max(values.numel(), 1)
