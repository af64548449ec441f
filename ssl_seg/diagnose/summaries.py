"""Figures over images: scores, trivial predictors, foreground shares predicted and true, equality of statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ssl_seg.diagnose.result import ImageFigures, Part
from ssl_seg.scores.metrics import ConfusionCounts, compute_trivial_baselines, sum_overlaps

BIAS = 0.10
"""Precision and recall that differ by more are called biased: the reported case had 0.61 and 0.96."""


def summarize_scores(overlaps: Sequence[ConfusionCounts]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``statistics["scores"]`` and ``statistics["trivial"]`` of at least one image."""
    pooled = sum_overlaps(overlaps)
    voxels = pooled.tp + pooled.fp + pooled.fn + pooled.tn
    gap = pooled.recall - pooled.precision
    positives = [o.dice for o in overlaps if o.tp + o.fn > 0]
    scores = {
        "images": len(overlaps),
        "f1": pooled.dice,
        "iou": pooled.iou,
        "precision": pooled.precision,
        "recall": pooled.recall,
        "accuracy": (pooled.tp + pooled.tn) / max(voxels, 1),
        "f1_mean": float(np.mean([o.dice for o in overlaps])),
        "f1_mean_positives": float(np.mean(positives)) if positives else None,
        "f1_mean_of_nothing": 1.0 - len(positives) / len(overlaps),
        "bias": "recall" if gap > BIAS else "precision" if gap < -BIAS else "balanced",
    }
    trivial = compute_trivial_baselines(pooled.prevalence)
    return scores, {"prevalence": pooled.prevalence, **trivial, "margin": pooled.dice - trivial["best"]}


def summarize_foreground(images: Sequence[ImageFigures]) -> dict[str, Any]:
    """Return ``statistics["foreground"]``: over the images with masks, or over all where there are none."""
    known = [i for i in images if i.ratio_true is not None]
    pred = _spread([i.ratio_pred for i in known or images])
    true = _spread([i.ratio_true for i in known if i.ratio_true is not None]) if known else None
    over = None if true is None else 100 * (pred["mean"] - true["mean"])
    return {"pred": pred, "true": true, "overestimate": over}


def summarize_equality(images: Sequence[ImageFigures]) -> dict[str, Any]:
    """Return ``statistics["equality"]``: how far mean and standard deviation of the output differ between images."""
    means, stds = [i.prob.mean for i in images], [i.prob.std for i in images]
    summary: dict[str, Any] = {
        "images": len(images),
        "mean_spread": max(means) - min(means),
        "std_spread": max(stds) - min(stds),
    }
    parts: dict[str, Part] = {"train": "train", "val": "val"}
    chosen = {name: [i.prob for i in images if i.part == part] for name, part in parts.items()}
    if all(chosen.values()):
        for name, moments in chosen.items():
            summary[f"{name}_mean"] = float(np.mean([m.mean for m in moments]))
            summary[f"{name}_std"] = float(np.mean([m.std for m in moments]))
    return summary


def _spread(values: Sequence[float]) -> dict[str, Any]:
    array = np.asarray(values, np.float64)
    return {
        "images": len(array),
        "mean": float(array.mean()),
        "median": float(np.median(array)),
        "sd": float(array.std()),
        "min": float(array.min()),
        "max": float(array.max()),
    }
