"""Losses that look at shape: distance to the boundary, center lines, connections between neighbors.

Voxels are taken as isotropic. The logits of ignored voxels have no influence, and the edge of an ignored region is no
boundary; but for the skeletons of ``cldice``, where ignored voxels are background.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ssl_seg.config.section import Positive
from ssl_seg.losses.common import choose_cost, find_valid, split_classes, to_float32
from ssl_seg.losses.overlap import sum_soft_counts


def boundary(logits: Tensor, target: Tensor, fp_cost: Positive = 1.0, fn_cost: Positive = 1.0) -> Tensor:
    """Return ``|phi| * |p - y|``, mean over valid voxels and foreground classes; in [0, 1] at costs of 1.

    ``phi`` is the distance to the nearest known voxel on the other side of the true boundary, divided by its largest
    value in the sample and class; 1 everywhere where a class is absent or fills the sample, for then there is no
    boundary. With ``phi`` negative inside, ``sum(phi * p)`` of Kervadec et al. (2019) is the same up to a constant
    and that scale; written like this it is 0 for a perfect prediction.

    The distances are computed on the CPU (scipy), so that a GPU waits for them in every step.

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        fp_cost: factor outside the class.
        fn_cost: factor inside.
    """
    probs, actual, valid = _prepare(logits, target)
    distance = _compute_distances(actual, valid)
    largest = _reduce_space((distance * valid).amax, probs)
    weights = torch.where(largest > 0, distance / largest.clamp(min=1), 1.0)
    errors = torch.where(actual, 1.0 - probs, probs)
    return _mean_over_valid(weights * choose_cost(actual, fp_cost, fn_cost) * errors, valid)


def hausdorff_dt(
    logits: Tensor, target: Tensor, exponent: Positive = 2.0, fp_cost: Positive = 1.0, fn_cost: Positive = 1.0
) -> Tensor:
    """Return ``(p - y)² * (d_p ** exponent + d_y ** exponent)``, mean over valid voxels and foreground classes; >= 0.

    ``d_y`` and ``d_p`` are the distances, in voxels, to the nearest known voxel on the other side of the true and of
    the predicted (p > 1/2) boundary (Karimi & Salcudean 2019, with ``exponent`` for alpha). The value is in voxels to
    that power: hundreds for a missed object, so its weight beside other losses has to be small.

    Without a boundary, a distance is 0 as in MONAI; without both boundaries the sum of the two distances is
    1. MONAI's loss is 0 there, so that foreground everywhere in an empty image would cost nothing.

    The distances have no gradient and are computed on the CPU (scipy), so that a GPU waits for them in every step.

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        exponent: exponent of the distances; the paper's alpha.
        fp_cost: factor outside the class.
        fn_cost: factor inside.
    """
    probs, actual, valid = _prepare(logits, target)
    fields = [_compute_distances(mask, valid) ** exponent for mask in (probs.detach() > 0.5, actual)]
    distance = fields[0] + fields[1]
    distance = torch.where(_reduce_space(distance.amax, probs) > 0, distance, 1.0)
    errors = (probs - actual.to(probs.dtype)) ** 2
    return _mean_over_valid(distance * choose_cost(actual, fp_cost, fn_cost) * errors, valid)


def cldice(
    logits: Tensor, target: Tensor, iterations: Annotated[int, Field(ge=0)] = 3, smooth: Positive = 1.0
) -> Tensor:
    """Return one minus the soft center-line Dice, mean over the foreground classes; in [0, 1] (Shit et al. 2021).

    With soft skeletons S: ``precision = sum(S(p) * y) / sum(S(p))``, ``sensitivity = sum(S(y) * p) / sum(S(y))`` and
    clDice their harmonic mean; sums over N and ``*S``. For thin structures: beside an overlap loss, it punishes gaps.

    Never alone: what is thicker than ``2 * iterations + 1`` voxels has no skeleton but at its corners, so that
    foreground everywhere costs nothing, whatever the target.

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        iterations: erosions of the skeleton; at least the largest radius of a structure, in voxels.
        smooth: > 0, in voxels, added to both parts of both ratios: an absent class that is not predicted has loss 0.
    """
    from monai.losses.cldice import soft_skel  # not at the top: MONAI takes longer to load than torch

    probs, actual, valid = _prepare(logits, target)
    probs, labels = probs * valid, actual.to(probs.dtype)
    dims = (0, *range(2, probs.ndim))
    # MONAI's loss itself pools the classes, and the order of its arguments has changed between versions.
    precision = _ratio(soft_skel(probs, iterations), labels, dims, smooth)
    sensitivity = _ratio(soft_skel(labels, iterations), probs, dims, smooth)
    return (1.0 - 2.0 * precision * sensitivity / (precision + sensitivity)).mean()


def connectivity(
    logits: Tensor, target: Tensor, smooth: Positive = 1.0, fp_cost: Positive = 1.0, fn_cost: Positive = 1.0
) -> Tensor:
    """Return one minus the soft Dice of neighbor connections, mean over the foreground classes; in [0, 1].

    Two neighbors along an axis are connected in a class by ``p_i * p_j``, in truth where both belong to it. ``dice``
    of these connections, over all axes and samples, counts a thin gap or bridge on both of its sides. Pairs with an
    ignored voxel do not count.

    After the connectivity maps of Kampffmeyer et al. (2018, ConnNet) and Yang & Farsiu (2023, DconnNet), which a
    network predicts in channels of their own; here they are made from its probabilities, for 2 * ndim neighbors.

    Args:
        logits: (N, K, *S).
        target: (N, *S).
        smooth: > 0, in pairs.
        fp_cost: factor of false connections.
        fn_cost: factor of missed connections.
    """
    probs, actual, valid = _prepare(logits, target)
    pairs = [_pair_neighbors(probs, actual, valid, axis) for axis in range(2, probs.ndim)]
    connected, truly, known = (torch.cat(parts, dim=2) for parts in zip(*pairs, strict=True))
    overlap = sum_soft_counts(connected, truly, known, batch=True)
    return (1.0 - overlap.compute_tversky_index(0.5 * fp_cost, 0.5 * fn_cost, 0.5 * smooth)).mean()


def _prepare(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probabilities and masks of the foreground classes (N, K-1, *S), and the valid voxels (N, 1, *S)."""
    probs = torch.softmax(to_float32(logits), dim=1)[:, 1:]
    return probs, split_classes(target, logits.shape[1]), find_valid(target)


def _compute_distances(mask: Tensor, valid: Tensor) -> Tensor:
    """Return the distance of each voxel to the nearest valid one on the other side of the boundary of a mask.

    Args:
        mask: (N, C, *S) bool.
        valid: (N, 1, *S) bool.

    Returns:
        (N, C, *S) float32, in voxels, >= 1; all 0 for a sample and class without both sides. Undefined where not valid.
    """
    from scipy.ndimage import distance_transform_edt

    inside, outside = (mask & valid).cpu().numpy(), (~mask & valid).cpu().numpy()
    field = np.zeros(inside.shape, dtype=np.float32)
    for index in np.ndindex(inside.shape[:2]):
        if inside[index].any() and outside[index].any():
            field[index] = np.where(
                inside[index], distance_transform_edt(~outside[index]), distance_transform_edt(~inside[index])
            )
    return torch.from_numpy(field).to(mask.device)


def _reduce_space(reduce: Callable[..., Tensor], like: Tensor) -> Tensor:
    return reduce(tuple(range(2, like.ndim)), keepdim=True)


def _mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of ``values`` (N, C, *S) over the valid voxels and C; 0 where there are none."""
    return (values * valid).sum() / (valid.sum() * values.shape[1]).clamp(min=1)


def _ratio(skeleton: Tensor, mask: Tensor, dims: tuple[int, ...], smooth: float) -> Tensor:
    return ((skeleton * mask).sum(dims) + smooth) / (skeleton.sum(dims) + smooth)


def _pair_neighbors(probs: Tensor, actual: Tensor, valid: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return connections, true connections and known pairs along an axis, (N, C or 1, pairs)."""
    n_pairs = probs.shape[axis] - 1
    first, second = ([t.narrow(axis, start, n_pairs) for t in (probs, actual, valid)] for start in (0, 1))
    return (
        (first[0] * second[0]).flatten(2),
        (first[1] & second[1]).flatten(2),
        (first[2] & second[2]).flatten(2),
    )
