"""Scores of a network on labeled cases: per case, pooled, and beside what trivial predictors reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.store import WholeCase
from ssl_seg.errors import DataError
from ssl_seg.intervals import estimate_margin
from ssl_seg.metrics import (
    Overlap,
    SurfaceDistances,
    compute_surface_distances,
    compute_trivial_baselines,
    count_overlap,
    sum_overlaps,
    summarize_distances,
    summarize_overlaps,
)

RATIOS = ("dice", "iou", "precision", "recall")
MEANS = ("dice_positives", "dice_empty_zero", "predict_nothing", "n_cases", "n_positives")

PredictFn = Callable[[NDArray[np.generic], tuple[float, ...] | None], NDArray[np.float32]]
"""Raw image (C,*S) and its voxel size, where known -> probabilities (K,*S)."""


@dataclass(frozen=True)
class CaseScore:
    """One case: overlap of any foreground, overlap of each foreground class, surface distances in 3D."""

    case_id: str
    overlap: Overlap
    classes: tuple[Overlap, ...]
    distances: SurfaceDistances | None
    nonfinite: int = 0
    """Voxels without a finite output of the network; each counts as wrong."""


@dataclass(frozen=True)
class Score:
    """Scores over a list of cases."""

    cases: tuple[CaseScore, ...]

    @property
    def nonfinite(self) -> int:
        """Voxels of all cases without a finite output."""
        return sum(c.nonfinite for c in self.cases)

    @property
    def f1(self) -> float:
        """Pooled F1 of foreground against background: all voxels of all cases together."""
        return sum_overlaps([c.overlap for c in self.cases]).dice

    @property
    def f1_macro(self) -> float:
        """Mean of the pooled F1 of the foreground classes; equal to ``f1`` for two classes."""
        return float(np.mean([o.dice for o in self._pooled_classes()]))

    def summarize(self) -> dict[str, Any]:
        """Return the plain types of the JSON output: pooled, mean, trivial, cases."""
        overlaps = [c.overlap for c in self.cases]
        pooled = sum_overlaps(overlaps)
        margin = estimate_margin(np.array([(o.tp, o.fp, o.fn, o.tn) for o in overlaps]))
        summary: dict[str, Any] = {
            "pooled": {"f1": self.f1, "f1_macro": self.f1_macro, **_ratios(pooled)},
            "mean": self._mean(),
            "trivial": {
                "prevalence": pooled.prevalence,
                **compute_trivial_baselines(pooled.prevalence),
                "margin": margin.value,
                "margin_low": margin.low,
                "margin_high": margin.high,
            },
            "nonfinite": self.nonfinite,
            "cases": [_case_row(c) for c in self.cases],
        }
        if len(self.cases[0].classes) > 1:
            summary["pooled"]["classes"] = [_ratios(o) for o in self._pooled_classes()]
        if distances := [c.distances for c in self.cases if c.distances is not None]:
            summary["mean"] |= summarize_distances(distances)
        return summary

    def _mean(self) -> dict[str, Any]:
        overlaps = [c.overlap for c in self.cases]
        means = {name: float(np.mean([_ratios(o)[name] for o in overlaps])) for name in RATIOS}
        shares = summarize_overlaps(overlaps)
        return means | {name: shares[name] for name in MEANS}

    def _pooled_classes(self) -> list[Overlap]:
        return [sum_overlaps(list(column)) for column in zip(*(c.classes for c in self.cases), strict=True)]


def score_case(case_id: str, case: WholeCase, probs: NDArray[np.floating], *, surface: bool = False) -> CaseScore:
    """Return the score of probabilities (K,*S) of one case; the likeliest class counts.

    A voxel whose probabilities are not all finite counts as wrong, whatever its target: NaN must not score.

    Raises:
        DataError: for a case without a mask.
    """
    if case.target is None:
        raise DataError(f"case '{case_id}' has no mask to score against")
    pred, broken = probs.argmax(axis=0), ~np.isfinite(probs.sum(axis=0))
    distances = None
    if surface:
        found = np.where(broken, case.target == 0, pred > 0) & (case.target >= 0)
        unit = case.spacing or (1.0,) * pred.ndim
        distances = compute_surface_distances(found, case.target > 0, unit)
    classes = tuple(count_overlap(pred, case.target, label, broken=broken) for label in range(1, len(probs)))
    overlap = count_overlap(pred, case.target, broken=broken)
    return CaseScore(case_id, overlap, classes, distances, int(np.count_nonzero(broken)))


def count_classes(score: Score) -> NDArray[np.int64]:
    """Return the counts (cases, foreground classes, 4) of voxels tp, fp, fn, tn."""
    return np.array([[_counts(o) for o in case.classes] for case in score.cases], np.int64)


def pack_cases(score: Score) -> list[dict[str, Any]]:
    """Return the counts of each case as plain types, for JSON."""
    return [
        {
            "id": case.case_id,
            "foreground": _counts(case.overlap),
            "classes": [_counts(o) for o in case.classes],
            "nonfinite": case.nonfinite,
        }
        for case in score.cases
    ]


def parse_cases(rows: Sequence[Mapping[str, Any]]) -> Score:
    """Return the score that ``pack_cases`` was given, without surface distances.

    Raises:
        KeyError, TypeError: for rows of another form.
    """
    return Score(
        tuple(
            CaseScore(
                row["id"],
                Overlap(*row["foreground"]),
                tuple(Overlap(*o) for o in row["classes"]),
                None,
                int(row["nonfinite"]),
            )
            for row in rows
        )
    )


def _counts(overlap: Overlap) -> list[int]:
    return [overlap.tp, overlap.fp, overlap.fn, overlap.tn]


def _ratios(overlap: Overlap) -> dict[str, float]:
    return {name: getattr(overlap, name) for name in RATIOS}


def _case_row(case: CaseScore) -> dict[str, Any]:
    row: dict[str, Any] = {"id": case.case_id, **_ratios(case.overlap), "prevalence": case.overlap.prevalence}
    row["counts"] = [_counts(o) for o in case.classes]
    if len(case.classes) > 1:
        row["classes"] = [o.dice for o in case.classes]
    if case.distances is not None:
        row |= {"hd95": case.distances.hd95, "asd": case.distances.asd}
    return row
