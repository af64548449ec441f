"""What a loss costs at predictions that need no network.

A *labeled batch* is (image (N, channels, *S), target (N, *S) with IGNORE_INDEX allowed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses.common import LossFn

Labeled = tuple[Tensor, Tensor]
"""Image (N, channels, *S) and target (N, *S)."""

PREDICTIONS = ("all_negative", "all_positive", "base_rate", "perfect")
CONFIDENT = 12.0
"""Logit of the predicted class where the others have 0: a probability of 1 - 6e-6, as sure as networks get."""
RAREST = 1e-6
"""Smallest frequency that the base-rate prediction states; a class may be missing from a few batches."""


def compute_frequencies(batches: Sequence[Labeled], num_classes: int) -> tuple[float, ...]:
    """Return the share of each class (K) among the voxels that are not ignored.

    Raises:
        DataError: when all are.
    """
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for _, target in batches:
        counts += torch.bincount(target[target != IGNORE_INDEX].cpu(), minlength=num_classes)
    if counts.sum() == 0:
        raise DataError(f"no voxel of {len(batches)} batches is labeled: there is nothing to probe; take more batches")
    return tuple((counts / counts.sum()).tolist())


def find_positive_class(frequencies: Sequence[float]) -> int:
    """Return the most frequent class that is not background: what all_positive predicts."""
    return max(range(1, len(frequencies)), key=lambda k: frequencies[k])


def make_predictions(target: Tensor, frequencies: Sequence[float]) -> dict[str, Tensor]:
    """Return the logits (N, K, *S) of ``PREDICTIONS``: confident ones, and for base_rate the log of the frequencies."""
    num_classes = len(frequencies)
    negative, positive = torch.zeros_like(target), torch.full_like(target, find_positive_class(frequencies))
    base_rate = torch.tensor(frequencies, dtype=torch.float32, device=target.device).clamp(min=RAREST).log()
    shape = (1, num_classes, *[1] * (target.ndim - 1))
    return {
        "all_negative": _confident(negative, num_classes),
        "all_positive": _confident(positive, num_classes),
        "base_rate": base_rate.view(shape).repeat(len(target), 1, *target.shape[1:]),
        "perfect": _confident(target.clamp(min=0), num_classes),  # ignored voxels: any class, nothing looks at them
    }


def compute_constants(
    components: Mapping[str, LossFn], batches: Sequence[Labeled], frequencies: Sequence[float]
) -> dict[str, dict[str, float]]:
    """Return the value of each component at each of ``PREDICTIONS``, mean over the batches."""
    values = {name: dict.fromkeys(PREDICTIONS, 0.0) for name in components}
    for _, target in batches:
        for prediction, logits in make_predictions(target, frequencies).items():
            for name, component in components.items():
                values[name][prediction] += float(component(logits, target)) / len(batches)
    return values


def compute_ranges(
    components: Mapping[str, LossFn], batches: Sequence[Labeled], num_classes: int
) -> dict[str, tuple[float, float]]:
    """Return the range that each component is to be in: its value at the perfect prediction, and at the best constant.

    A network whose loss stays at the upper end does what a constant output does. {} where no voxel is labeled.
    """
    known = [(image, target) for image, target in batches if (target != IGNORE_INDEX).any()]
    if not known:
        return {}
    constants = compute_constants(components, known, compute_frequencies(known, num_classes))
    return {
        name: (values["perfect"], min(value for prediction, value in values.items() if prediction != "perfect"))
        for name, values in constants.items()
    }


def _confident(classes: Tensor, num_classes: int) -> Tensor:
    return CONFIDENT * functional.one_hot(classes, num_classes).movedim(-1, 1).float()
