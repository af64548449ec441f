"""How many labels a baseline needs for the score of another arm. Shapes as in ``stats``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from ssl_seg.scores.intervals import (
    LEAST_CASES,
    LEVEL,
    NO_VARIATION,
    RESAMPLES,
    ROUNDING,
    Floats,
    Metric,
    Resamples,
    describe_shortage,
)
from ssl_seg.scores.metrics import compute_case_dice, compute_macro_f1


@dataclass(frozen=True)
class Runs:
    """The scored runs of an arm: ``counts`` (R, C, F, 4), and for each its unit, the runs of one unit of all arms being
    drawn together. ``labeled``: number of labeled cases."""

    labeled: float
    counts: NDArray[np.int64]
    units: tuple[int, ...]


@dataclass(frozen=True)
class LabelCount:
    """A number of labeled cases; ``<=`` the smallest or ``>=`` the largest of the curve where it lies beyond."""

    number: float
    bound: Literal["", "<=", ">="] = ""

    def __str__(self) -> str:
        shown = f"{self.number:.0f}" if self.number >= 10 else f"{self.number:.1f}".removesuffix(".0")
        return f"{self.bound} {shown}".strip()


@dataclass(frozen=True)
class LabelsEquivalent:
    """The labels with which the baseline has the same score, with the interval around them; ``low`` and ``high`` are
    None where there is none, and ``why`` says why."""

    value: LabelCount
    low: LabelCount | None
    high: LabelCount | None
    why: str = ""


def estimate_labels_equivalent(
    curve: Sequence[Runs],
    target: Runs,
    metric: Metric,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    least: int = LEAST_CASES,
) -> LabelsEquivalent:
    """Return how many labels the baseline needs for the mean score of ``target``.

    The mean scores of the baseline over the logarithm of its number of labeled cases, made monotone, are inverted by
    linear interpolation. They are never extrapolated. For the interval, cases and units of runs are resampled, each
    draw for all arms together; the deviations of the weights are widened by t / z * sqrt(n / (n - 1)), without which a
    percentile interval of few cases and of fewer runs is too narrow (Hesterberg 2015). With one unit only the cases
    are resampled, and the interval says nothing about other seeds.

    Args:
        curve: arms of the baseline, at least two numbers of labels.
        target: the arm to place.
        metric: which score.
        resamples: number of resamples.
        seed: seed of the resampling.
        least: number of cases below which there is no interval.

    Raises:
        ValueError: if the curve has fewer than two different numbers of labels.
    """
    arms = [*curve, target]
    labels, places = np.unique([arm.labeled for arm in curve], return_inverse=True)
    if len(labels) < 2:
        raise ValueError(f"a curve over {len(labels)} number of labels cannot be inverted: at least 2 are needed")
    units = sorted({unit for arm in arms for unit in arm.units})
    cases = target.counts.shape[1]

    def invert(means: Floats) -> Floats:
        """Return (B,) log numbers of labels of (B, arms) mean scores."""
        # Arms with one number of labels (fractions that were rounded to the same) are one point.
        merged = np.stack([means[:, :-1][:, places == i].mean(axis=1) for i in range(len(labels))], axis=1)
        return np.array([_invert(np.log(labels), scores, s) for scores, s in zip(merged, means[:, -1], strict=True)])

    everything = np.ones((1, cases))
    value = invert(np.stack([_weigh_cases(arm.counts, metric, everything).mean(axis=1) for arm in arms], axis=1))[0]
    if shortage := describe_shortage(cases, least):
        return LabelsEquivalent(_count(value, labels), None, None, shortage)
    unit_draws = _widen(np.asarray(Resamples(len(units), number=resamples, seed=seed + 1)))
    means = np.empty((resamples, len(arms)))
    first = 0
    for block in Resamples(cases, number=resamples, seed=seed):
        case_draws, rows = _widen(block), slice(first, first + len(block))
        for column, arm in enumerate(arms):
            own = unit_draws[rows, [units.index(unit) for unit in arm.units]]
            # An arm without the runs that a draw takes keeps the ones it has: its weights always have mean 1.
            shares = 1.0 + own - own.mean(axis=1, keepdims=True)
            means[rows, column] = (_weigh_cases(arm.counts, metric, case_draws) * shares).mean(axis=1)
        first += len(block)
    if np.ptp(means, axis=0).max() <= ROUNDING:
        return LabelsEquivalent(_count(value, labels), None, None, NO_VARIATION)
    found = invert(means)
    low = np.quantile(found, 0.5 - LEVEL / 2, method="lower")  # ends may be infinite: no interpolation
    high = np.quantile(found, 0.5 + LEVEL / 2, method="higher")
    return LabelsEquivalent(_count(value, labels), _count(low, labels), _count(high, labels))


def _widen(draws: NDArray[np.int64]) -> Floats:
    """Return weights with mean 1 whose variance is right for few draws; all 1 for one."""
    if (n := draws.shape[1]) < 2:
        return np.ones(draws.shape)
    tail = 0.5 + LEVEL / 2
    factor = special.stdtrit(n - 1, tail) / special.ndtri(tail) * np.sqrt(n / (n - 1))
    widened: Floats = 1.0 + factor * (draws - 1.0)
    return widened


def _weigh_cases(counts: NDArray[np.int64], metric: Metric, weights: Floats) -> Floats:
    """Return (B, R) scores of the runs for (B, C) weights of the cases."""
    if metric == "dice":
        means: Floats = (weights / weights.shape[1]) @ compute_case_dice(counts).T
        return means
    # Of a rare class a widened draw may have less than nothing: that is nothing.
    pooled = np.maximum(np.einsum("bc,rcfk->brfk", weights, counts[..., :3]), 0.0)
    return compute_macro_f1(pooled)


def _invert(log_labels: Floats, scores: Floats, score: float) -> float:
    """Return the smallest log number of labels with the score on the monotone curve, or an infinity beyond its ends."""
    rising = optimize.isotonic_regression(scores).x
    if len(equal := np.flatnonzero(np.abs(rising - score) < ROUNDING)):
        return float(log_labels[equal[0]])
    if score < rising[0]:
        return -np.inf
    if score > rising[-1]:
        return np.inf
    right = int(np.searchsorted(rising, score))
    share = (score - rising[right - 1]) / (rising[right] - rising[right - 1])
    return float(log_labels[right - 1] + share * (log_labels[right] - log_labels[right - 1]))


def _count(log: float, labels: Floats) -> LabelCount:
    if np.isneginf(log):
        return LabelCount(float(labels[0]), "<=")
    if np.isposinf(log):
        return LabelCount(float(labels[-1]), ">=")
    return LabelCount(float(np.exp(log)))
