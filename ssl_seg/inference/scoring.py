"""Scores of a network on labeled cases: per case, pooled, and beside what trivial predictors reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.data.instances import find_instances
from ssl_seg.data.store import WholeCase
from ssl_seg.errors import DataError
from ssl_seg.inference.decision import LIKELIEST, Decision
from ssl_seg.labels import IGNORE_INDEX, Task
from ssl_seg.scores.calibration import Counts, bin_log_odds, compute_reliability_of_classes
from ssl_seg.scores.intervals import Estimate, estimate_margin
from ssl_seg.scores.metrics import (
    RATIOS,
    ConfusionCounts,
    SurfaceDistances,
    average_ratios,
    compute_average_precision,
    compute_macro_f1,
    compute_surface_distances,
    compute_trivial_baselines,
    count_overlap,
    mean_or_none,
    sum_overlaps,
    summarize_distances,
)
from ssl_seg.scores.objects import ObjectCounts, match_objects, parse_counts, score_image, summarize_objects

Unit = Literal["mm", "voxels"]
"""Unit of distances. ``mm`` stands for the unit in which the voxel size of a case is stated: mm in NIfTI files."""
UNITS: tuple[Unit, Unit] = ("voxels", "mm")
"""Units without and with a stated voxel size."""

RANKING_BINS = 4096
"""Bins per unit of asinh(log-odds), so that few voxels count as ties: 0.00006 of a probability at 0.5."""

PredictFn = Callable[[NDArray[np.generic], tuple[float, ...] | None], NDArray[np.float32]]
"""Raw image (C,*S) and its voxel size, where known -> probabilities (K,*S)."""


Reliability = tuple[tuple[tuple[float | None, ...], ...], ...]
"""For each foreground class and each bin of its probability: share of the voxels, mean probability, and share of them
that belong to the class; None in an empty bin."""


@dataclass(frozen=True)
class CaseScore:
    """One case: overlap of any foreground; overlap and, in 3D, surface distances of each foreground class."""

    case_id: str
    overlap: ConfusionCounts
    classes: tuple[ConfusionCounts, ...]
    distances: tuple[SurfaceDistances, ...] | None
    unit: Unit = "voxels"
    """Unit of the distances."""
    nonfinite: int = 0
    """Voxels without a finite output of the network; each counts as wrong."""
    objects: Mapping[str, ObjectCounts] | None = None
    """Where masks number objects: those that are ``found``; the ``connected`` parts of the predicted foreground, where
    they are others, and the ``whole`` image as one object, which are baselines."""
    average_precision: tuple[float | None, ...] | None = None
    """One value per foreground class, see ``measure_ranking``; None where it was not measured."""


@dataclass(frozen=True)
class Score:
    """Scores over a list of cases. Which classes and cases a mean is over says ``ssl_seg.scores.metrics``."""

    cases: tuple[CaseScore, ...]
    label_values: tuple[int, ...] = field(default=(), compare=False)
    """Mask values of the foreground classes, by which they are named; 1, 2, ... where they are not given."""
    average_precision: tuple[float | None, ...] | None = None
    """One value per foreground class over the voxels of all cases; for a cross-validation, the mean of its folds, since
    the probabilities of different networks have no common order."""
    reliability: Reliability | None = field(default=None, compare=False)
    """Reliability over the voxels of all cases; None where it was not measured."""

    @cached_property
    def margin(self) -> Estimate:
        """F1 (mean of classes) over that of predicting each class everywhere. Kept: its interval takes 2,000 resamples,
        and the end of a run states it in several places."""
        return estimate_margin(count_classes(self))

    @cached_property
    def objects(self) -> dict[str, Any] | None:
        """Scores of objects (see ``summarize_objects``), with those of the baselines under ``trivial``.

        None where masks do not number objects."""
        cases = [c.objects for c in self.cases if c.objects is not None]
        if not cases or len(cases) < len(self.cases):
            return None
        summaries = {name: summarize_objects([case[name] for case in cases]) for name in cases[0]}
        found, names = summaries.pop("found"), ("pred", "f1_50", "ap", "pq")
        return {**found, "trivial": {name: {key: own[key] for key in names} for name, own in summaries.items()}}

    @property
    def nonfinite(self) -> int:
        """Voxels of all cases without a finite output."""
        return sum(c.nonfinite for c in self.cases)

    @property
    def f1(self) -> float:
        """Pooled F1 of any foreground against background: all voxels of all cases together."""
        return sum_overlaps([c.overlap for c in self.cases]).dice

    @property
    def f1_macro(self) -> float:
        """Mean of the pooled F1 of the foreground classes that are in at least one mask; ``f1`` for two classes."""
        return float(compute_macro_f1(count_classes(self).sum(axis=0)))

    def summarize(self) -> dict[str, Any]:
        """Return the plain types of the JSON output.

        ``of`` says what all figures are of but those under ``foreground``, which are of any foreground, and under
        ``classes``, which are of one class each. ``absent_classes`` are in no mask of these cases and in no mean;
        ``false_classes`` are those of them that are predicted all the same, with the number of voxels and cases.
        """
        names = list(self.label_values or range(1, 1 + len(self.cases[0].classes)))
        pooled = [sum_overlaps(column) for column in self._columns()]
        present = [o for o in pooled if o.tp + o.fn > 0]
        whole = sum_overlaps([c.overlap for c in self.cases])
        summary: dict[str, Any] = {
            "of": self.subject,
            "absent_classes": [name for name, o in zip(names, pooled, strict=True) if o.tp + o.fn == 0],
            "false_classes": [
                {"label": name, "voxels": o.fp, "cases": sum(c.fp > 0 for c in column)}
                for name, o, column in zip(names, pooled, self._columns(), strict=True)
                if o.tp + o.fn == 0 and o.fp
            ],
            "pooled": {"f1": self.f1, "f1_macro": self.f1_macro, **_average(present or [whole])},
            "mean": self._average_cases(),
            "trivial": {"prevalence": whole.prevalence, **self._compare_with_trivial(present)},
            "prevalence_pred": whole.prevalence_pred if whole.voxels else None,
            "nonfinite": self.nonfinite,
            "cases": [_case_row(c) for c in self.cases],
        }
        if self.objects is not None:
            summary["objects"] = self.objects
        if len(pooled) > 1:
            summary["foreground"] = {
                **_average([whole]),
                "mean_dice": mean_or_none([c.overlap.dice for c in self.cases]),
            }
            summary["classes"] = [
                self._summarize_class(name, column, index)
                for index, (name, column) in enumerate(zip(names, self._columns(), strict=True))
            ]
        if self.average_precision is not None:
            summary["pooled"]["average_precision"] = mean_of_known(self.average_precision)
            summary["mean"]["average_precision"] = mean_of_known([row["average_precision"] for row in summary["cases"]])
            for row, value in zip(summary.get("classes", ()), self.average_precision, strict=False):
                row["pooled"]["average_precision"] = value
        return summary

    @property
    def subject(self) -> str:
        """What the figures are of: ``foreground`` for two classes, else the mean of those classes that are there."""
        if len(self.cases[0].classes) == 1:
            return "foreground"
        classes = int(count_classes(self)[..., [0, 2]].any(axis=(0, 2)).sum())
        return f"mean of {classes} class{'es' * (classes > 1)}" if classes else "any foreground"

    def _average_cases(self) -> dict[str, Any]:
        """Return means over cases, each of its mean over classes, and mean distances by class."""
        rows = [average_ratios(c.classes) for c in self.cases]
        positives = [row["dice"] for row, c in zip(rows, self.cases, strict=True) if c.overlap.tp + c.overlap.fn > 0]
        empty = len(rows) - len(positives)
        means: dict[str, Any] = {name: mean_or_none([row[name] for row in rows]) for name in RATIOS}
        nothing = sum(c.overlap.tp + c.overlap.fp + c.overlap.fn == 0 for c in self.cases)
        means |= {"dice_positives": mean_or_none(positives), "dice_empty_zero": means["dice"] - nothing / len(rows)}
        means["predict_nothing"] = empty / len(rows)
        means |= {"n_cases": len(rows), "n_positives": len(positives)}
        found = [(c.overlap.tp + c.overlap.fn > 0, c.overlap.tp + c.overlap.fp > 0) for c in self.cases]
        means |= {"n_missed": found.count((True, False)), "n_hallucinated": found.count((False, True))}
        if self.cases[0].distances is not None:
            means |= self._average_distances(range(len(self.cases[0].classes)))
        return means

    def _average_distances(self, classes: Sequence[int]) -> dict[str, Any]:
        """Return the distances by unit, and as ``hd95`` and ``asd`` where there is only one: units are never mixed."""

        def summarize(units: Sequence[Unit]) -> dict[str, float | None]:
            own = [c.distances for c in self.cases if c.unit in units and c.distances is not None]
            return summarize_distances([[case[k] for case in own] for k in classes])

        units = list(dict.fromkeys(c.unit for c in self.cases))
        together = {name: value for name, value in summarize(units).items() if name != "n_cases"}
        if len(units) > 1:
            together |= {"hd95": None, "asd": None, "surface_dice": None}
        unit = units[0] if len(units) == 1 else None
        return {**together, "unit": unit, "distances": {unit: summarize([unit]) for unit in units}}

    def _compare_with_trivial(self, present: Sequence[ConfusionCounts]) -> dict[str, Any]:
        """Return what predicting each class everywhere, nowhere and at random scores, and the margin over the first."""
        baselines = [compute_trivial_baselines(o.prevalence) for o in present] or [compute_trivial_baselines(0.0)]
        margin = self.margin
        return {
            **{name: mean_or_none([b[name] for b in baselines]) for name in baselines[0]},
            "margin": margin.value,
            "margin_low": margin.low,
            "margin_high": margin.high,
            "margin_why": margin.why,
        }

    def _summarize_class(self, label: int, overlaps: Sequence[ConfusionCounts], index: int) -> dict[str, Any]:
        """Return pooled and mean scores of a class, None for one that is in no mask, and what was falsely predicted."""
        pooled, positives = sum_overlaps(overlaps), [o for o in overlaps if o.tp + o.fn > 0]
        wrong = [o for o in overlaps if o.fp > 0 and o.tp + o.fn == 0]
        row: dict[str, Any] = {
            "label": label,
            "n_positives": len(positives),
            "pooled": _average([pooled] if positives else []),
            "mean_positives": _average(positives),
            "false_voxels": pooled.fp,
            "hallucinated_cases": len(wrong),
        }
        return row | (self._average_distances([index]) if self.cases[0].distances is not None else {})

    def _columns(self) -> list[list[ConfusionCounts]]:
        return [list(column) for column in zip(*(c.classes for c in self.cases), strict=True)]


def score_case(
    case_id: str,
    case: WholeCase,
    probs: NDArray[np.floating],
    *,
    decision: Decision = LIKELIEST,
    surface: bool = False,
    objects: NDArray[np.int32] | None = None,
    task: Task = "semantic",
) -> CaseScore:
    """Return the score of probabilities (K,*S) of one case, with the classes that ``decision`` gives.

    A voxel whose probabilities are not all finite counts as wrong, whatever its target: NaN must not score. With the
    true ``objects`` (*S), see ``CaseStore.load_objects``, those that are found by the ``task`` are scored too.

    Raises:
        DataError: for a case without a mask.
    """
    if case.target is None:
        raise DataError(f"case '{case_id}' has no mask to score against")
    pred, broken, labels = decision(probs), ~np.isfinite(probs.sum(axis=0)), range(1, len(probs))
    distances = None
    if surface:
        truths = [case.target == label for label in labels]
        spacing, valid = case.spacing or (1.0,) * pred.ndim, case.target >= 0
        found = (np.where(broken, ~true, pred == label) & valid for label, true in zip(labels, truths, strict=True))
        distances = tuple(compute_surface_distances(*pair, spacing) for pair in zip(found, truths, strict=True))
    classes = tuple(count_overlap(pred, case.target, label, broken=broken) for label in labels)
    overlap, unit = count_overlap(pred, case.target, broken=broken), UNITS[case.spacing is not None]
    matches = None if objects is None else _score_objects(np.where(broken, 0, pred), objects, task)
    return CaseScore(case_id, overlap, classes, distances, unit, int(np.count_nonzero(broken)), matches)


def _score_objects(pred: NDArray[np.integer[Any]], objects: NDArray[np.int32], task: Task) -> dict[str, ObjectCounts]:
    """Return the objects of predicted classes (*S), and of the baselines, that match; ignored voxels are background."""
    classes, true = np.where(objects == IGNORE_INDEX, 0, pred), np.maximum(objects, 0)
    connected, _ = ndimage.label(classes > 0)
    found = {"found": find_instances(classes), "connected": connected} if task == "instances" else {"found": connected}
    found["whole"] = (objects != IGNORE_INDEX).astype(np.int32)
    return {name: match_objects(labels, true) for name, labels in found.items()}


def rank_voxels(probs: NDArray[np.floating], target: NDArray[np.integer[Any]]) -> Counts:
    """Return how many voxels have which log-odds of each foreground class, from which its average precision follows.

    A voxel whose probabilities are not all finite counts as wrong: below all others where it is of the class, above
    them where it is not. Ignored voxels do not count.

    Args:
        probs: (K,*S) probabilities.
        target: (*S) of 0 to K - 1 and ``IGNORE_INDEX``.

    Returns:
        (F, 2, B): of each class, row 0 of the other voxels, row 1 of its own; see ``bin_log_odds``.
    """
    labels = range(1, len(probs))
    counts = np.stack([bin_log_odds(probs, target, label, RANKING_BINS) for label in labels])
    missing = target[~np.isfinite(probs.sum(axis=0)) & (target != IGNORE_INDEX)]
    for own, label in zip(counts, labels, strict=True):
        own[1, 0] += np.count_nonzero(missing == label)
        own[0, -1] += np.count_nonzero(missing != label)
    return counts


def measure_ranking(ranking: Counts) -> tuple[float | None, ...]:
    """Return the average precision of each class (F, 2, B): with every threshold, not only with the one in use.

    Chance has the share of the class. None where no voxel is of the class, or all are. Voxels in a bin are ties.
    """
    return tuple(compute_average_precision(own, others) for others, own in ranking)


def measure_reliability(ranking: Counts) -> Reliability:
    """Return how often voxels of each probability are of a class (F, 2, B), as ``rank_voxels`` has counted them."""
    diagrams = compute_reliability_of_classes(ranking, RANKING_BINS)
    return tuple(tuple(tuple(None if np.isnan(v) else float(v) for v in row) for row in own) for own in diagrams)


def count_classes(score: Score) -> NDArray[np.int64]:
    """Return the counts (cases, foreground classes, 4) of voxels tp, fp, fn, tn."""
    return np.array([case.classes for case in score.cases], np.int64)


def pack_cases(score: Score) -> list[dict[str, Any]]:
    """Return the counts of each case as plain types, for JSON."""
    return [
        {
            "id": case.case_id,
            "foreground": list(case.overlap),
            "classes": list(map(list, case.classes)),
            "nonfinite": case.nonfinite,
            **({} if case.average_precision is None else {"average_precision": list(case.average_precision)}),
            **({} if case.objects is None else {"objects": {n: asdict(own) for n, own in case.objects.items()}}),
        }
        for case in score.cases
    ]


def parse_cases(
    rows: Sequence[Mapping[str, Any]],
    label_values: Sequence[int] = (),
    average_precision: Sequence[float | None] | None = None,
    reliability: Sequence[Sequence[Sequence[float | None]]] | None = None,
) -> Score:
    """Return the score that ``pack_cases`` was given, without surface distances.

    Raises:
        KeyError, TypeError: for rows of another form.
    """
    return Score(
        tuple(
            CaseScore(
                row["id"],
                ConfusionCounts(*row["foreground"]),
                tuple(ConfusionCounts(*o) for o in row["classes"]),
                None,
                nonfinite=int(row["nonfinite"]),
                objects={n: parse_counts(own) for n, own in row["objects"].items()} if "objects" in row else None,
                average_precision=tuple(row["average_precision"]) if "average_precision" in row else None,
            )
            for row in rows
        ),
        tuple(label_values),
        None if average_precision is None else tuple(average_precision),
        None if reliability is None else tuple(tuple(tuple(row) for row in own) for own in reliability),
    )


def _average(overlaps: Sequence[ConfusionCounts]) -> dict[str, float | None]:
    return {name: mean_or_none([getattr(o, name) for o in overlaps]) for name in RATIOS}


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None where there are none."""
    return mean_or_none([value for value in values if value is not None])


def _case_row(case: CaseScore) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": case.case_id,
        **average_ratios(case.classes),
        **({} if case.average_precision is None else {"average_precision": mean_of_known(case.average_precision)}),
        "prevalence": case.overlap.prevalence,
        "prevalence_pred": case.overlap.prevalence_pred,
    }
    row["counts"] = list(map(list, case.classes))
    if case.objects is not None:
        row |= score_image(case.objects["found"])
    several = len(case.classes) > 1
    if several:
        row["classes"] = [o.dice if o.tp + o.fp + o.fn > 0 else None for o in case.classes]
        row |= {} if case.average_precision is None else {"average_precision_classes": list(case.average_precision)}
    if case.distances is not None:
        found = [d for d in case.distances if not d.absent] or case.distances
        row |= {name: float(np.mean([getattr(d, name) for d in found])) for name in ("hd95", "asd", "surface_dice")}
        row["unit"] = case.unit
        if several:
            row["hd95_classes"] = [None if d.absent else d.hd95 for d in case.distances]
            row["asd_classes"] = [None if d.absent else d.asd for d in case.distances]
    return row
