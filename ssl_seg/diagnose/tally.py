"""Figures of all predicted images together, added up image by image: what is kept is small, however many there are.

Shapes: ``*S`` spatial = (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ssl_seg.data.audit.summary import measure_spread
from ssl_seg.diagnose.classes import ValueCounts, add_classes
from ssl_seg.diagnose.examples import keep_candidates, make_example
from ssl_seg.diagnose.result import Example, Histogram, ImageFigures, Moments, Part
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.scores.metrics import ConfusionCounts, compute_trivial_baselines, count_overlap, sum_overlaps
from ssl_seg.scores.sameness import MAX_MAP_VOXELS, ShapeTally

PROB_BINS = 2000
"""Fine bins of the probability; bin b holds (b / 2000, (b + 1) / 2000], so that thresholds lie on edges."""
LOGIT_RANGE, LOGIT_BINS = 16, 512
"""Fine bins of the logit to be shown, each 1/16 wide; values outside count in the outer ones."""
RANK_LIMIT, BINS_PER_RANK = 90, 32
"""Bins of asinh(logit), in which quantiles and the best threshold are found: 1/32 wide near 0, 3 % of a large value, up
to the largest float32."""
SHARE_BINS = 20
"""Equal bins of a foreground share in which images are counted."""
CLEARLY = 0.01
"""F1 that a threshold next to 0 or 1 must gain: such a threshold is hard to write down and to reach."""
SHOWN_PROB_BINS, MAX_LOGIT_BINS = 40, 64
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TAIL = (0.001, 0.002, 0.005, 0.01, 0.02)
THRESHOLDS = (*_TAIL, *(round(0.05 * i, 2) for i in range(1, 20)), *(round(1 - t, 3) for t in reversed(_TAIL)))
"""Thresholds of the sweep, all at edges of bins; dense at the ends, where heavy costs push the probabilities."""
BIAS = 0.10
"""Precision and recall that differ by more are called biased: the reported case had 0.61 and 0.96."""
_UNKNOWN, _BACKGROUND, _FOREGROUND = range(3)


@dataclass(frozen=True)
class Output:
    """The prediction of one image: ``pred`` (*S) bool, ``prob`` and ``logit`` (*S) float where there are any, and the
    ``target`` (*S) of 0, 1 and IGNORE_INDEX, where it may be looked at."""

    id: str
    part: Part
    pred: NDArray[np.bool_]
    prob: NDArray[np.float32] | None = None
    logit: NDArray[np.float32] | None = None
    target: NDArray[np.integer[Any]] | None = None
    classes: tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]] | None] | None = None
    """Class indices (*S) predicted and true, to be shown; where there are more than two classes."""


@dataclass(frozen=True)
class Sums:
    """Number, sums, range and fine histogram (3, B) of finite values; rows: truth unknown, 0, 1."""

    count: int
    total: float
    squares: float
    low: float
    high: float
    histogram: NDArray[np.int64]

    def __add__(self, other: Sums) -> Sums:
        low, high = min(self.low, other.low), max(self.high, other.high)
        total, squares = self.total + other.total, self.squares + other.squares
        return Sums(self.count + other.count, total, squares, low, high, self.histogram + other.histogram)

    @property
    def mean(self) -> float:
        """Mean; NaN without values."""
        return self.total / self.count if self.count else np.nan

    @property
    def std(self) -> float:
        """Standard deviation; NaN without values."""
        return max(self.squares / self.count - self.mean**2, 0.0) ** 0.5 if self.count else np.nan


class Tally:
    """Everything that is kept of the predictions.

    Args:
        map_voxels: for so many voxels, over all shapes, count how often each is predicted.
        threshold: probability above which foreground is predicted, of two classes.
    """

    def __init__(self, map_voxels: int = MAX_MAP_VOXELS, threshold: float = 0.5) -> None:
        self.map_voxels, self.threshold = map_voxels, threshold
        self.images: list[ImageFigures] = []
        self.examples: list[Example] = []
        self.scores: list[float] = []
        self.overlaps: dict[str, ConfusionCounts] = {}
        self.values: dict[Part, ValueCounts] = {}
        self.prob: dict[Part, Sums] = {}
        self.logit: dict[Part, Sums] = {}
        self.ranks: dict[Part, NDArray[np.int64]] = {}
        self.shapes: dict[tuple[int, ...], ShapeTally] = {}
        self.voxels = self.nonfinite = 0

    def add(self, output: Output, image: NDArray[np.generic] | None = None) -> ImageFigures:
        """Add the prediction of an image (C,*S), which is kept where it may be shown, and return its figures."""
        target, truth, ratio_true, f1 = output.target, None, None, None
        ratio_pred = float(output.pred.mean())
        kind = np.zeros(output.pred.shape, np.int64)
        if target is not None:
            overlap = count_overlap(output.pred, target)
            self.overlaps[output.id] = overlap
            truth, f1, ratio_true = target > 0, overlap.dice, overlap.prevalence
            ratio_pred = overlap.prevalence_pred
            if output.classes is not None and (true := output.classes[1]) is not None:
                counts = self.values.setdefault(output.part, ValueCounts())
                counts.add(output.classes[0], true, target != IGNORE_INDEX)
            kind = np.where(target == IGNORE_INDEX, _UNKNOWN, np.where(truth, _FOREGROUND, _BACKGROUND))
        self.voxels += output.pred.size
        prob = self._add_values(self.prob, output.prob, output.part, kind, PROB_BINS)
        logit = self._add_values(self.logit, output.logit, output.part, kind, LOGIT_BINS)
        if output.prob is not None:
            self.nonfinite += int((~np.isfinite(output.prob)).sum())
        shape = output.pred.shape
        if shape not in self.shapes:
            has_map = prod(shape) <= self.map_voxels
            self.map_voxels -= prod(shape) * has_map
            self.shapes[shape] = ShapeTally(shape, has_map=has_map)
        self.shapes[shape].add(output.pred, truth, ratio_true)
        figures = ImageFigures(
            id=output.id,
            part=output.part,
            shape=shape,
            prob=_moments(output.pred.astype(np.float32)) if prob is None else prob,
            logit=logit,
            ratio_pred=ratio_pred,
            ratio_true=ratio_true,
            f1=f1,
        )
        self.images.append(figures)
        pred, shown = (output.pred, target) if output.classes is None else output.classes
        example = make_example(output.id, output.part, image, shown, output.prob, pred, f1)
        if f1 is not None and output.part != "train":
            insort(self.scores, f1)
        self.examples = keep_candidates([*self.examples, example], self.median)
        return figures

    @property
    def median(self) -> float:
        """F1 of the images that are scored and not of training; 0 where there is none."""
        count = len(self.scores)  # they are kept in order
        return (self.scores[(count - 1) // 2] + self.scores[count // 2]) / 2 if count else 0.0

    def _add_values(
        self,
        sums: dict[Part, Sums],
        values: NDArray[np.float32] | None,
        part: Part,
        kind: NDArray[np.int64],
        bins: int,
    ) -> Moments | None:
        if values is None:
            return None
        finite = np.isfinite(values)
        chosen, kind = values[finite], kind[finite]
        wide = chosen.astype(np.float64)
        if bins == PROB_BINS:
            places = np.ceil(chosen * PROB_BINS) - 1
        else:
            places = np.floor((chosen + LOGIT_RANGE) * (LOGIT_BINS / (2 * LOGIT_RANGE)))
            ranks = np.floor((np.arcsinh(wide) + RANK_LIMIT) * BINS_PER_RANK)
            self.ranks[part] = self.ranks.get(part, 0) + _count(ranks, kind, 2 * RANK_LIMIT * BINS_PER_RANK)
        low, high = float(wide.min(initial=np.inf)), float(wide.max(initial=-np.inf))
        counts = _count(np.clip(places, 0, bins - 1), kind, bins)
        own = Sums(wide.size, float(wide.sum()), float((wide**2).sum()), low, high, counts)
        sums[part] = sums[part] + own if part in sums else own
        return _moments(chosen)

    def pool(self, sums: Mapping[Part, Sums], *parts: Part) -> Sums | None:
        """Return the sums over some parts, over all if none is named; None without any value."""
        chosen = [own for part, own in sums.items() if not parts or part in parts]
        return sum(chosen[1:], chosen[0]) if chosen else None

    def sweep(self, *parts: Part) -> dict[str, Any] | None:
        """Return F1 at each of ``THRESHOLDS`` (probability above it) over the voxels whose truth is known."""
        pooled = self.pool(self.prob, *parts)
        if pooled is None or not pooled.histogram[_FOREGROUND].any():
            return None
        positive, negative = pooled.histogram[_FOREGROUND], pooled.histogram[_BACKGROUND]

        def score(threshold: float) -> float:
            first = round(threshold * PROB_BINS)
            tp, fp = int(positive[first:].sum()), int(negative[first:].sum())
            return ConfusionCounts(tp, fp, int(positive.sum()) - tp, 0).dice

        scores = [score(threshold) for threshold in THRESHOLDS]
        best = max(range(len(scores)), key=lambda i: (scores[i], -abs(THRESHOLDS[i] - 0.5)))
        found = (scores[best], THRESHOLDS[best])
        beyond = self._find_beyond(parts)
        if beyond is not None and beyond[0] > found[0] + CLEARLY:
            found = beyond
        return {
            "thresholds": list(THRESHOLDS),
            "f1": scores,
            "best_threshold": found[1],
            "best_f1": found[0],
            "f1_at_half": score(0.5),
            "threshold": self.threshold,
            "f1_at_threshold": score(self.threshold),
        }

    def _find_beyond(self, parts: tuple[Part, ...]) -> tuple[float, float] | None:
        """Return the best F1, and its threshold, where that lies beyond both ends of ``THRESHOLDS``; else None."""
        chosen = [own for part, own in self.ranks.items() if not parts or part in parts]
        if not chosen:
            return None
        counts = np.sum(chosen, axis=0)
        tp, fp = (np.cumsum(counts[kind][::-1])[::-1] for kind in (_FOREGROUND, _BACKGROUND))
        f1 = 2 * tp / np.maximum(tp + fp + counts[_FOREGROUND].sum(), 1)
        threshold = special.expit(np.sinh(np.arange(len(f1)) / BINS_PER_RANK - RANK_LIMIT))
        f1[(THRESHOLDS[0] <= threshold) & (threshold <= THRESHOLDS[-1])] = 0
        best = int(np.flatnonzero(f1 == f1.max())[-1])
        return float(f1[best]), float(threshold[best])

    def summarize(self, scored: Part) -> dict[str, Any]:
        """Return what ``Diagnosis.statistics`` has of whole images; scores are of the part ``scored``."""
        images = [image for image in self.images if image.part == scored]
        statistics: dict[str, Any] = {
            "shapes": [shape.summarize() for shape in self.shapes.values()],
            "foreground": summarize_foreground(images or self.images),
        }
        if self.prob:
            statistics |= {"outputs": self.summarize_outputs(), "equality": summarize_equality(self.images)}
        if overlaps := [self.overlaps[image.id] for image in images if image.id in self.overlaps]:
            statistics["scores"], statistics["trivial"] = summarize_scores(overlaps)
            counts = self.values.get(scored, ValueCounts())
            if f1 := counts.score(0):
                shares = [counts.share(label) for label in f1]
                statistics["scores"] = add_classes(statistics["scores"], list(f1.values()), shares)
        if (sweep := self.sweep(scored)) is not None:
            statistics["sweep"] = sweep
        return statistics

    def summarize_outputs(self) -> dict[str, Any]:
        """Return ``statistics["outputs"]``: a row a part, and ``all``; empty where only masks were given."""
        if not self.prob:
            return {}
        groups: dict[str, tuple[Part, ...]] = {part: (part,) for part in self.prob}
        return {name: self._summarize_part(parts) for name, parts in {**groups, "all": ()}.items()}

    def _summarize_part(self, parts: tuple[Part, ...]) -> dict[str, Any]:
        images = [i for i in self.images if not parts or i.part in parts]
        prob, logit = self.pool(self.prob, *parts), self.pool(self.logit, *parts)
        row: dict[str, Any] = {"images": len(images)}
        if prob is not None:
            counts = prob.histogram.sum(0)
            row |= {"voxels": prob.count, **_describe("prob", prob)}
            row["prob_quantiles"] = _quantiles(counts, 0.0, 1.0)
            row["band_share"] = _share(counts, 0.5, 0.7)
            row["low_share"] = _share(counts, 0.0, 0.1)
        if logit is not None:
            row |= _describe("logit", logit)
            ranks = np.sum([own for part, own in self.ranks.items() if not parts or part in parts], axis=(0, 1))
            found = _quantiles(ranks, -RANK_LIMIT, RANK_LIMIT)
            row["logit_quantiles"] = {name: float(np.sinh(value)) for name, value in found.items()}
        return row

    def histograms(self) -> tuple[Histogram, ...]:
        """Return the histograms of probability and logit over all images."""
        found = []
        if (prob := self.pool(self.prob)) is not None:
            counts = prob.histogram.reshape(3, SHOWN_PROB_BINS, -1).sum(2)
            found.append(_histogram("prob", np.linspace(0, 1, SHOWN_PROB_BINS + 1), counts))
        if (logit := self.pool(self.logit)) is not None and logit.count:
            used = np.flatnonzero(logit.histogram.sum(0))
            width = -(-(used[-1] - used[0] + 1) // MAX_LOGIT_BINS)
            number = -(-(used[-1] - used[0] + 1) // width)
            padded = np.zeros((3, number * width), np.int64)
            end = min(used[0] + number * width, LOGIT_BINS)
            padded[:, : end - used[0]] = logit.histogram[:, used[0] : end]
            step = 2 * LOGIT_RANGE / LOGIT_BINS
            edges = -LOGIT_RANGE + step * (used[0] + width * np.arange(number + 1))
            found.append(_histogram("logit", edges, padded.reshape(3, number, width).sum(2)))
        return tuple(found)


def _count(places: NDArray[np.floating[Any]], kind: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """Return how many values lie in each bin: (3, B), a row for each kind of truth."""
    return np.bincount(kind * bins + places.astype(np.int64), minlength=3 * bins).reshape(3, bins)


def _moments(values: NDArray[np.floating[Any]]) -> Moments:
    if not values.size:
        return Moments(np.nan, np.nan, np.nan, np.nan)
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    return Moments(mean, std, float(values.min()), float(values.max()))


def _describe(name: str, sums: Sums) -> dict[str, float]:
    figures = {"mean": sums.mean, "std": sums.std, "min": sums.low, "max": sums.high}
    return {f"{name}_{figure}": value for figure, value in figures.items()}


def _quantiles(counts: NDArray[np.int64], low: float, high: float) -> dict[str, float]:
    """Return the middles of the bins in which the quantiles lie."""
    cumulative, width = np.cumsum(counts), (high - low) / len(counts)
    places = [int(np.searchsorted(cumulative, q * cumulative[-1])) for q in QUANTILES]
    return {f"{q:g}": low + (place + 0.5) * width for q, place in zip(QUANTILES, places, strict=True)}


def _share(counts: NDArray[np.int64], low: float, high: float) -> float:
    """Return the share of values in (low, high]; from 0 on for ``low`` = 0."""
    first, last = round(low * PROB_BINS), round(high * PROB_BINS)
    return float(counts[first:last].sum() / max(counts.sum(), 1))


def _histogram(
    name: Literal["prob", "logit"], edges: NDArray[np.floating[Any]], counts: NDArray[np.int64]
) -> Histogram:
    return Histogram(
        name,
        tuple(edges.tolist()),
        tuple(counts.sum(0).tolist()),
        tuple(counts[_FOREGROUND].tolist()),
        tuple(counts[_BACKGROUND].tolist()),
    )


def summarize_scores(overlaps: Sequence[ConfusionCounts]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``statistics["scores"]`` and ``statistics["trivial"]`` of at least one image."""
    pooled = sum_overlaps(overlaps)
    gap, trivial = pooled.recall - pooled.precision, compute_trivial_baselines(pooled.prevalence)
    positives = [o.dice for o in overlaps if o.tp + o.fn > 0]
    scores = {
        "images": len(overlaps),
        "f1": pooled.dice,
        "f1_macro": pooled.dice,
        "trivial_f1_macro": trivial["all_positive"],
        "of": "foreground",
        "iou": pooled.iou,
        "precision": pooled.precision,
        "recall": pooled.recall,
        "accuracy": (pooled.tp + pooled.tn) / max(pooled.voxels, 1),
        "f1_mean": float(np.mean([o.dice for o in overlaps])),
        "f1_mean_positives": float(np.mean(positives)) if positives else None,
        "f1_mean_of_nothing": 1.0 - len(positives) / len(overlaps),
        "bias": "recall" if gap > BIAS else "precision" if gap < -BIAS else "balanced",
    }
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
    chosen = {part: [i.prob for i in images if i.part == part] for part in ("train", "val")}
    if all(chosen.values()):
        for name, moments in chosen.items():
            summary[f"{name}_mean"] = float(np.mean([m.mean for m in moments]))
            summary[f"{name}_std"] = float(np.mean([m.std for m in moments]))
    return summary


def _spread(values: Sequence[float]) -> dict[str, Any]:
    counts = np.histogram(values, SHARE_BINS, (0, 1))[0].tolist()
    return {"images": len(values), **(measure_spread(values) or {}), "counts": counts}
