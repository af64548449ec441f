"""Metrics of a segmentation, and what a trivial predictor would score.

This module owns the policy for empty cases:

=====================  ================================  =============================  =========================
there is to find       predicted                         dice, iou, precision, recall,  surface distances
                                                         surface dice
=====================  ================================  =============================  =========================
nothing                nothing                           1                              0, flag ``absent``
nothing                something                         0                              inf, flag ``hallucinated``
something              nothing                           0                              inf, flag ``missed``
=====================  ================================  =============================  =========================

Dice is thus always the harmonic mean of precision and recall. Where most masks are empty, the mean over all cases is
dominated by those without anything to find: with 77.9 % empty masks, predicting nothing scores 0.779. So every mean
over all cases comes with the mean over positive cases, and every mean distance with the shares of missed and
hallucinated cases.

and the policy for means over foreground classes, which every command takes from here:

- *Pooled over cases* (``compute_macro_f1``): the mean over the classes that have true voxels in at least one of the
  cases. A class that is absent from all of them has no score, and is named with what was falsely predicted of it. With
  no class in any case, the score is that of any foreground: 1 where nothing is predicted, else 0.
- *Within a case* (``average_ratios``, ``compute_case_dice``): the mean over the classes that are in the target or in
  the prediction of that case. A case with neither has 1.

What is undefined is ``None``, never NaN: it survives JSON and cannot be averaged by accident.

Shapes: ``*S`` spatial = (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX

RATIOS = ("dice", "iou", "precision", "recall", "specificity")
"""Properties of an ``ConfusionCounts`` that are scores."""


def compute_trivial_f1(prevalence: float) -> float:
    """Return the pooled F1 of predicting foreground everywhere: ``2p / (1 + p)``, 0 at ``p = 0``.

    Args:
        prevalence: share of foreground voxels p, in [0, 1].

    Raises:
        ValueError: if ``prevalence`` is outside [0, 1].
    """
    if not 0.0 <= prevalence <= 1.0:
        raise ValueError(f"prevalence {prevalence} is outside [0, 1]")
    return 2.0 * prevalence / (1.0 + prevalence)


def compute_trivial_baselines(prevalence: float) -> dict[str, float]:
    """Return the pooled F1 of predictors that have not looked at the image.

    ``base_rate_random`` calls each voxel foreground with probability p, which is expected to score p: of all voxels
    p*p are true positives and p*(1-p) each are false positives and false negatives. ``best`` is the one to beat.

    Args:
        prevalence: share of foreground voxels p, in [0, 1].

    Raises:
        ValueError: if ``prevalence`` is outside [0, 1].
    """
    nothing_to_find = prevalence == 0.0
    baselines = {
        "all_negative": 1.0 if nothing_to_find else 0.0,
        "all_positive": compute_trivial_f1(prevalence),
        "base_rate_random": 1.0 if nothing_to_find else prevalence,
    }
    return {**baselines, "best": max(baselines.values())}


class ConfusionCounts(NamedTuple):
    """Counts of voxels, one row of an array (..., 4). Sums over cases give pooled scores: ``(a + b).dice``."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: ConfusionCounts) -> ConfusionCounts:  # type: ignore[override]
        return ConfusionCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def dice(self) -> float:
        """Dice coefficient, the same as F1."""
        return self._score(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard index)."""
        return self._score(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the predicted voxels that are right."""
        return self._score(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the true voxels that are found."""
        return self._score(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Share of the true background that is not predicted; 1 without background."""
        return self.tn / (self.tn + self.fp) if self.tn + self.fp else 1.0

    @property
    def voxels(self) -> int:
        """Number of voxels counted."""
        return self.tp + self.fp + self.fn + self.tn

    @property
    def prevalence(self) -> float:
        """Share of foreground in the target; 0 without voxels."""
        return (self.tp + self.fn) / max(self.voxels, 1)

    @property
    def prevalence_pred(self) -> float:
        """Share of foreground in the prediction; 0 without voxels."""
        return (self.tp + self.fp) / max(self.voxels, 1)

    def _score(self, numerator: int, denominator: int) -> float:
        if self.tp + self.fp + self.fn == 0:
            return 1.0
        return numerator / denominator if denominator else 0.0


def compute_dice(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return the Dice coefficient of many counts at once, with the policy of this module for empty cases.

    Args:
        counts: (..., 4) voxels tp, fp, fn, tn, as in ``ConfusionCounts``.

    Returns:
        (...) values in [0, 1].
    """
    found, wrong = 2.0 * counts[..., 0], counts[..., 1] + counts[..., 2]
    dice: NDArray[np.float64] = np.divide(found, found + wrong, out=np.ones(counts.shape[:-1]), where=found + wrong > 0)
    return dice


def compute_macro_f1(pooled: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean F1 of the classes that have true voxels; without any, the F1 of any foreground.

    Args:
        pooled: (..., F, 4) voxels tp, fp, fn, tn of each foreground class, summed over cases; tn may be left out.

    Returns:
        (...) values in [0, 1].
    """
    exists = pooled[..., 0] + pooled[..., 2] > 0
    return _average_classes(compute_dice(pooled), exists, otherwise=compute_dice(pooled.sum(axis=-2)))


def compute_case_dice(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return the Dice of each case: the mean over the classes in its target or prediction, 1 without any.

    Args:
        counts: (..., F, 4) voxels tp, fp, fn, tn of each foreground class of each case; tn may be left out.

    Returns:
        (...) values in [0, 1].
    """
    found = counts[..., :3].sum(axis=-1) > 0
    return _average_classes(compute_dice(counts), found, otherwise=np.ones(counts.shape[:-2]))


def _average_classes(
    values: NDArray[np.float64], counted: NDArray[np.bool_], otherwise: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the means (...) of the ``counted`` of (..., F) values, and ``otherwise`` where none is."""
    number = counted.sum(axis=-1)
    means: NDArray[np.float64] = np.where(
        number > 0, np.where(counted, values, 0.0).sum(axis=-1) / np.maximum(number, 1), otherwise
    )
    return means


def count_overlap(
    pred: NDArray[Any], target: NDArray[Any], label: int | None = None, *, broken: NDArray[np.bool_] | None = None
) -> ConfusionCounts:
    """Count agreeing and disagreeing voxels of one class, leaving out voxels whose target is ``IGNORE_INDEX``.

    Args:
        pred: (*S) integer, predicted class.
        target: (*S) integer, true class or ``IGNORE_INDEX``.
        label: class to count; None counts foreground of any class against background.
        broken: (*S) voxels without a prediction; each counts as wrong, whatever its target.

    Raises:
        DataError: if the shapes differ.
    """
    if pred.shape != target.shape:
        raise DataError(f"the prediction has shape {pred.shape}, but its mask {target.shape}; compare equal shapes")
    valid = target != IGNORE_INDEX
    predicted = (pred > 0) if label is None else (pred == label)
    actual = (target > 0) if label is None else (target == label)  # IGNORE_INDEX is neither
    predicted = (predicted if broken is None else np.where(broken, ~actual, predicted)) & valid
    tp = int(np.count_nonzero(predicted & actual))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(actual)) - tp
    return ConfusionCounts(tp, fp, fn, int(np.count_nonzero(valid)) - tp - fp - fn)


def sum_overlaps(overlaps: Sequence[ConfusionCounts]) -> ConfusionCounts:
    """Return the pooled counts; all 0 for no case."""
    return sum(overlaps, ConfusionCounts(0, 0, 0, 0))


def average_ratios(classes: Sequence[ConfusionCounts]) -> dict[str, float]:
    """Return Dice, IoU, precision and recall of a case: means over the classes in its target or prediction.

    All are 1 without any. For one class these are its own.
    """
    found = [o for o in classes if o.tp + o.fp + o.fn > 0] or [ConfusionCounts(0, 0, 0, 0)]
    return {name: float(np.mean([getattr(o, name) for o in found])) for name in RATIOS}


def compute_auroc(pos_hist: NDArray[np.integer], neg_hist: NDArray[np.integer]) -> float | None:
    """Return the area under the ROC curve: P(score of a positive > of a negative) + P(equal) / 2.

    Args:
        pos_hist: (B,) number of positive voxels by bin of increasing score.
        neg_hist: (B,) the same of negative voxels, same bins. Scores in one bin are ties.

    Returns:
        Value in [0, 1], or None when one of the classes is absent.
    """
    if not _has_both_classes(pos_hist, neg_hist):
        return None
    pos, neg = pos_hist.astype(np.float64), neg_hist.astype(np.float64)  # products of counts overflow int64
    below = np.cumsum(neg) - neg
    return float(np.sum(pos * (below + 0.5 * neg)) / (pos.sum() * neg.sum()))


def compute_average_precision(pos_hist: NDArray[np.integer], neg_hist: NDArray[np.integer]) -> float | None:
    """Return the average precision ``sum_i (R_i - R_{i-1}) * P_i`` over the bins as thresholds, without interpolation.

    The definition of scikit-learn. Arguments and None as in ``compute_auroc``.
    """
    if not _has_both_classes(pos_hist, neg_hist):
        return None
    tp, fp = (np.cumsum(hist[::-1], dtype=np.int64)[::-1] for hist in (pos_hist, neg_hist))
    precision = tp / np.maximum(tp + fp, 1)
    return float(np.sum(precision * pos_hist) / pos_hist.sum())


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces, in the unit of the spacing, and why they may not be one."""

    hd95: float
    """Larger of the two directed 95th percentiles (Hausdorff distance, 95 %)."""
    asd: float
    """Average symmetric surface distance: mean over both sets of surface voxels."""
    surface_dice: float
    """Share of both sets of surface voxels that lie within the tolerance of the other surface, in [0, 1]."""
    missed: bool = False
    """There is something to find, nothing was predicted: distances are inf."""
    hallucinated: bool = False
    """There is nothing to find, something was predicted: distances are inf."""
    absent: bool = False
    """Nothing to find, nothing predicted: distances are 0 by policy, not by measurement."""


def compute_surface_distances(
    pred: NDArray[np.bool_], target: NDArray[np.bool_], spacing: Sequence[float]
) -> SurfaceDistances:
    """Return HD95 and ASD of two masks by MONAI's definitions, with the policy of this module for empty masks.

    The surface Dice (https://arxiv.org/abs/1809.04430) has the longest edge of a voxel as its tolerance: a surface that
    is off by no more than one voxel counts as found.

    Surface voxels are those of a mask with a face neighbor outside of it or outside the image; every surface voxel
    counts once; percentiles interpolate linearly. (MONAI's functions are not called: its percentile takes 16 million
    surface voxels at most, and each of its two functions computes all distances anew.)

    Args:
        pred: (*S) bool.
        target: (*S) bool.
        spacing: voxel size along each axis, in the order of ``*S``.

    Raises:
        DataError: if the shapes differ, or the spacing does not fit them.
    """
    if pred.shape != target.shape or len(spacing) != target.ndim:
        raise DataError(
            f"the prediction has shape {pred.shape}, its mask {target.shape} and the spacing is {tuple(spacing)}; "
            "both masks need one shape, and the spacing one value for each axis"
        )
    found, exists = bool(pred.any()), bool(target.any())
    if not found and not exists:
        return SurfaceDistances(hd95=0.0, asd=0.0, surface_dice=1.0, absent=True)
    if not found or not exists:
        far = float("inf")
        return SurfaceDistances(hd95=far, asd=far, surface_dice=0.0, missed=exists, hallucinated=found)
    from scipy import ndimage

    box = ndimage.find_objects((pred | target).astype(np.uint8))[0]
    surfaces = [mask[box] & ~ndimage.binary_erosion(mask[box]) for mask in (pred, target)]
    forth, back = (
        ndimage.distance_transform_edt(~there, sampling=tuple(spacing))[here]
        for here, there in (surfaces, surfaces[::-1])
    )
    hd95 = max(float(np.quantile(forth, 0.95)), float(np.quantile(back, 0.95)))
    both = np.concatenate([forth, back])
    near = float(np.mean(both <= max(spacing) * (1 + 1e-6)))  # distances are sums of rounded squares
    return SurfaceDistances(hd95=hd95, asd=float(both.mean()), surface_dice=near)


def summarize_distances(classes: Sequence[Sequence[SurfaceDistances]]) -> dict[str, float | None]:
    """Return the mean distances over the cases where there is a distance, and how many cases have none.

    A missed case has no distance, and missing the hard cases makes the mean *better*: read it with ``missed_share``.
    Cases with nothing in either mask are left out too: their zeros would hide the distances of the others.

    Args:
        classes: distances of each class, one for each case, all in one unit.

    Returns:
        ``hd95``, ``asd`` (mean over the classes that were measured anywhere, of the mean over their measured cases);
        ``surface_dice``, the same with missed and hallucinated cases, which have 0; and, counting each class of each
        case, ``n_cases``, ``n_measured``, ``n_absent``, ``missed_share`` (of those with something to find),
        ``hallucinated_share`` (of those with nothing). None where there is none.
    """
    measured = [[d for d in own if not (d.missed or d.hallucinated or d.absent)] for own in classes]
    judged = [[d.surface_dice for d in own if not d.absent] for own in classes]
    every = [d for own in classes for d in own]
    n_measured, n_missed = sum(map(len, measured)), sum(d.missed for d in every)
    n_hallucinated, n_absent = sum(d.hallucinated for d in every), sum(d.absent for d in every)
    return {
        "hd95": mean_or_none([float(np.mean([d.hd95 for d in own])) for own in measured if own]),
        "asd": mean_or_none([float(np.mean([d.asd for d in own])) for own in measured if own]),
        "surface_dice": mean_or_none([float(np.mean(own)) for own in judged if own]),
        "n_cases": len(every),
        "n_measured": n_measured,
        "n_absent": n_absent,
        "missed_share": _share(n_missed, n_missed + n_measured),
        "hallucinated_share": _share(n_hallucinated, n_hallucinated + n_absent),
    }


def _has_both_classes(pos_hist: NDArray[np.integer], neg_hist: NDArray[np.integer]) -> bool:
    if pos_hist.shape != neg_hist.shape or pos_hist.ndim != 1:
        raise ValueError(f"histograms of shapes {pos_hist.shape} and {neg_hist.shape}: both must be (bins,)")
    return bool(pos_hist.any() and neg_hist.any())


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean; None without a value."""
    return float(np.mean(values)) if values else None


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
