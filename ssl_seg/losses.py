"""Losses of the labeled and of the unlabeled part.

Shapes: N samples, K >= 2 classes (background 0), ``*S`` spatial = (Z, Y, X) or (Y, X). ``logits`` (N, K, *S) may have
any float dtype and are computed in float32 at least; ``target`` (N, *S) is int64, ``IGNORE_INDEX`` where nothing is
known.

Every loss is a scalar with a graph. It is 0, never NaN, where there is nothing to learn: no valid voxel, or N = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ssl_seg.errors import ConfigError, did_you_mean
from ssl_seg.labels import IGNORE_INDEX

LossFn = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy, mean over the valid voxels; >= 0."""
    return _mean_over_valid(_voxel_cross_entropy(logits, target), target)


def dice(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """Return one minus the soft Dice of the softmax, mean over the foreground classes; in [0, 1].

    ``1 - mean_k (2 * sum(p_k * y_k) + smooth) / (sum(p_k) + sum(y_k) + smooth)`` with sums over N and ``*S`` ("batch
    Dice", Milletari et al. 2016 with the plain denominator). Ignored voxels are left out of all three sums.

    A class that is neither in the target nor predicted has loss 0. A class that is absent but predicted has loss
    ``P / (P + smooth)`` for P predicted voxels: an all-background batch costs its false positives and nothing else.
    ``smooth`` is in voxels and bounds the gradient by ``1 / smooth`` per voxel. With the usual 1e-5 that gradient is
    near 1e5 for tiny P and vanishes for P > 1, so that an all-background batch would either explode or teach nothing.
    """
    foreground = torch.softmax(_to_float32(logits), dim=1)[:, 1:]
    class_ids = torch.arange(1, logits.shape[1], device=logits.device).view(-1, *[1] * (target.ndim - 1))
    actual = target.unsqueeze(1) == class_ids  # (N, K-1, *S); False at ignored voxels
    valid = (target != IGNORE_INDEX).unsqueeze(1)
    dims = (0, *range(2, logits.ndim))
    overlap = (foreground * actual).sum(dims)
    size = (foreground * valid).sum(dims) + actual.sum(dims)
    return 1.0 - ((2.0 * overlap + smooth) / (size + smooth)).mean()


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
    return _mean_over_valid(loss, target)


LOSSES: dict[str, LossFn] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
}


def check_loss_names(names: Iterable[str]) -> None:
    """Do nothing, if all names are in ``LOSSES``.

    Raises:
        ConfigError: with the names that are not, and the nearest known ones.
    """
    unknown = [f"'{name}'{did_you_mean(name, LOSSES)}" for name in names if name not in LOSSES]
    if unknown:
        raise ConfigError(f"unknown loss {', '.join(unknown)}; available: {', '.join(LOSSES)}")


def compute_loss(logits: Tensor, target: Tensor, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the named losses, and each loss by itself: unweighted and detached.

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        weights: name in ``LOSSES`` -> weight.

    Raises:
        ConfigError: for names that are not in ``LOSSES``, and when no loss is named.
    """
    check_loss_names(weights)
    if not weights:
        raise ConfigError(f"no loss is named; available: {', '.join(LOSSES)}")
    terms = {name: LOSSES[name](logits, target) for name in weights}
    total = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
    return total, {name: term.detach() for name, term in terms.items()}


def consistency_mse(student_logits: Tensor, teacher_probs: Tensor) -> Tensor:
    """Return the squared difference of the probabilities, mean over voxels and classes; in [0, 1].

    No gradient reaches the teacher (Tarvainen & Valpola 2017).

    Args:
        student_logits: (N, K, *S).
        teacher_probs: (N, K, *S), in [0, 1], summing to 1 over K.
    """
    probs = torch.softmax(_to_float32(student_logits), dim=1)
    squared = (probs - teacher_probs.detach().to(probs.dtype)) ** 2
    return squared.sum() / max(squared.numel(), 1)


def consistency_kl(student_logits: Tensor, teacher_probs: Tensor) -> Tensor:
    """Return KL(teacher || student) = ``sum_k q_k * (log q_k - log p_k)``, mean over voxels; >= 0.

    No gradient reaches the teacher. Shapes as in ``consistency_mse``.
    """
    log_probs = torch.log_softmax(_to_float32(student_logits), dim=1)
    divergence = functional.kl_div(log_probs, teacher_probs.detach().to(log_probs.dtype), reduction="none")
    return divergence.sum() / max(divergence.numel() // divergence.shape[1], 1)


CONSISTENCY: dict[str, LossFn] = {
    "mse": consistency_mse,
    "kl": consistency_kl,
}


def compute_foreground_logit(logits: Tensor) -> Tensor:
    """Return the log-odds of foreground, ``log(p(any class > 0) / p(background))``.

    Args:
        logits: (N, K, *S).

    Returns:
        (N, *S), float32 at least; its sigmoid is one minus the softmax of background.
    """
    logits = _to_float32(logits)
    return torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]


def _to_float32(logits: Tensor) -> Tensor:
    """Return float16 and bfloat16 as float32; wider types as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _voxel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return -log(p_t) by voxel, (N, *S); 0 at ignored voxels."""
    # Reduced by the caller: torch's own sum and mean are not deterministic on CUDA.
    return functional.cross_entropy(_to_float32(logits), target, ignore_index=IGNORE_INDEX, reduction="none")


def _mean_over_valid(values: Tensor, target: Tensor) -> Tensor:
    return values.sum() / (target != IGNORE_INDEX).sum().clamp(min=1)
