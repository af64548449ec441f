"""Scores of objects: which of the predicted ones are those of the mask, by intersection over union (IoU).

A predicted and a true object match at a threshold t where their IoU is above t. From t = 0.5 on no object has two
matches, so nothing has to be assigned. With TP matches, FP predicted and FN true objects without one:

- F1 = 2 TP / (2 TP + FP + FN) at one threshold;
- AP = TP / (TP + FP + FN), mean over the thresholds 0.5, 0.55, ..., 0.95 (2018 Data Science Bowl; Caicedo et al. 2019,
  doi:10.1038/s41592-019-0612-7). It is no area under a curve: objects have no confidence;
- PQ = (sum of the IoU of the matches at 0.5) / (TP + FP / 2 + FN / 2), which is SQ, the mean IoU of the matches, times
  RQ, the F1 at 0.5 (Kirillov et al. 2019, arXiv:1801.00868).

*Pooled* scores are of the sums over all images: images with many objects count more, and those without any object, true
or predicted, not at all. *Means over images* come twice: with 1 for such an image, and without it.

Shapes: *S spatial = (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.errors import DataError
from ssl_seg.scores.intervals import Floats, Resamples, estimate_ratio
from ssl_seg.scores.text import number

THRESHOLDS = tuple(n / 20 for n in range(10, 20))
"""IoU thresholds of the average precision: 0.5 to 0.95."""
SHOWN = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU thresholds whose F1 is stated."""
HEADLINES = ("f1_50", "ap", "pq")
"""Scores with an interval and means over images."""


@dataclass(frozen=True)
class ObjectCounts:
    """Objects of one image, or of several: sums of counts are pooled."""

    true: int
    pred: int
    matched: tuple[int, ...]
    """Matches at each of ``THRESHOLDS``."""
    iou: float
    """Sum of the IoU of the matches at 0.5."""


def match_objects(pred: NDArray[np.integer[Any]], true: NDArray[np.integer[Any]]) -> ObjectCounts:
    """Return how many objects of two label images (*S), with 0 for background, match.

    Raises:
        DataError: if the shapes differ.
    """
    if pred.shape != true.shape:
        raise DataError(f"the objects have the shape {pred.shape}, but their mask {true.shape}; compare equal shapes")
    (pred_sizes, pred_index), (true_sizes, true_index) = _number(pred), _number(true)
    both = (pred_index > 0) & (true_index > 0)
    pairs = true_index[both] * np.int64(len(pred_sizes)) + pred_index[both]
    pair, overlap = np.unique(pairs, return_counts=True)
    true_of, pred_of = np.divmod(pair, max(len(pred_sizes), 1))
    iou = overlap / (true_sizes[true_of] + pred_sizes[pred_of] - overlap)
    matched = tuple(int(np.count_nonzero(iou > threshold)) for threshold in THRESHOLDS)
    return ObjectCounts(len(true_sizes) - 1, len(pred_sizes) - 1, matched, float(iou[iou > THRESHOLDS[0]].sum()))


def compute_pq(images: Sequence[ObjectCounts]) -> float | None:
    """Return the pooled panoptic quality of images; None without any object, true or predicted."""
    objects = sum(image.true + image.pred for image in images)
    return 2 * sum(image.iou for image in images) / objects if objects else None


def summarize_objects(images: Sequence[ObjectCounts]) -> dict[str, Any]:
    """Return the scores over images as plain types.

    ``f1_50``, ..., ``f1_90``, ``ap``, ``pq`` and ``sq`` are pooled, None where they are undefined. ``intervals`` has
    the 95 % intervals over images of ``f1_50``, ``ap`` and ``pq``; ``mean`` their means over images, with 1 for an
    image without objects, and ``mean_nonempty`` those over the other images.
    """
    tp = np.array([image.matched for image in images], np.float64).reshape(len(images), len(THRESHOLDS)).T
    iou = np.array([[image.iou for image in images]])
    objects = np.array([[image.true + image.pred for image in images]], np.float64)  # 2 TP + FP + FN
    ratios = {f"f1_{round(100 * t)}": (2 * tp[[THRESHOLDS.index(t)]], objects) for t in SHOWN}
    ratios |= {"ap": (tp, objects - tp), "pq": (iou, objects / 2)}
    there = objects[0] > 0
    weights = Resamples(len(images))
    estimates = {name: estimate_ratio(*ratios[name], weights) if there.any() else None for name in HEADLINES}
    by_image = {name: _divide(*ratios[name], otherwise=1.0).mean(axis=0) for name in HEADLINES}
    return {
        "images": len(images),
        "empty": int(np.count_nonzero(~there)),
        "true": sum(image.true for image in images),
        "pred": sum(image.pred for image in images),
        "matched": int(tp[0].sum()),
        **{name: _pool(*ratio) for name, ratio in (ratios | {"sq": (iou, tp[:1])}).items()},
        "intervals": {name: estimate and asdict(estimate) for name, estimate in estimates.items()},
        "mean": {name: float(values.mean()) for name, values in by_image.items()},
        "mean_nonempty": {n: float(values[there].mean()) if there.any() else None for n, values in by_image.items()},
    }


def score_image(counts: ObjectCounts) -> dict[str, Any]:
    """Return the objects of an image, the matches at 0.5, AP and PQ; these are None without any object."""
    objects = counts.true + counts.pred
    return {
        "objects_true": counts.true,
        "objects_pred": counts.pred,
        "objects_matched": counts.matched[0],
        "objects_ap": float(np.mean([tp / (objects - tp) for tp in counts.matched])) if objects else None,
        "objects_pq": 2 * counts.iou / objects if objects else None,
    }


def describe_objects(summary: Mapping[str, Any]) -> str:
    """Return the figures of ``summarize_objects`` in a line."""
    found = [
        f"{name} {number(summary[key])}" for key, name in zip(HEADLINES, ("F1 at IoU 0.5", "AP", "PQ"), strict=True)
    ]
    return f"objects: {', '.join(found)} ({summary['pred']} found, {summary['true']} in the masks)"


def parse_counts(values: Mapping[str, Any]) -> ObjectCounts:
    """Return the counts that ``dataclasses.asdict`` was given, read back from JSON."""
    return ObjectCounts(**{**values, "matched": tuple(values["matched"])})


def _number(labels: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the voxels of background and of each object, and for each voxel (*S) the place of its object there."""
    values, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    place = np.where(values == 0, 0, np.cumsum(values != 0))
    voxels = np.zeros(1 + np.count_nonzero(values), np.int64)
    voxels[place] = sizes
    return voxels, place[index].reshape(labels.shape)


def _divide(top: Floats, bottom: Floats, *, otherwise: float) -> Floats:
    """Return the ratios (K, images), and ``otherwise`` where there is nothing to divide by."""
    ratios: Floats = np.divide(top, bottom, out=np.full(top.shape, otherwise), where=bottom > 0)
    return ratios


def _pool(top: Floats, bottom: Floats) -> float | None:
    """Return the mean over K of the ratios of sums over images (K, images); None where one is undefined."""
    sums = bottom.sum(axis=1)
    return float((top.sum(axis=1) / sums).mean()) if (sums > 0).all() else None
