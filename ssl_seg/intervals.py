"""Scores over cases and differences of scores, with their intervals over cases. Numbers in, numbers out.

Shapes: R runs (networks whose scores are averaged), C cases (the same for all that is compared), F foreground classes.
Counts are (R, C, F, 4) voxels tp, fp, fn, tn. B resamples.

Voxels of one image are not independent, cases are: whole cases are resampled. The choices below were made by
simulation, which ``scripts/check_ablation_stats.py`` repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ssl_seg.metrics import compute_dice

Metric = Literal["dice", "f1"]
"""``dice``: mean over cases of the mean over classes of Dice. ``f1``: of all voxels of a class, mean over classes."""

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
_LEAST_ERROR = 0.3
"""A standard error of a resample below this share of that of the sample is set to it: among few cases some resamples
hold one case only, and dividing by an error of 0 would make the interval endless. Coverage is the same without."""


@dataclass(frozen=True)
class Estimate:
    """A value and the interval around it."""

    value: float
    low: float
    high: float


def compute_score(counts: NDArray[np.integer], metric: Metric) -> Floats:
    """Return the score of each run: (..., C, F, 4) counts to (...)."""
    if metric == "dice":
        return _average(compute_case_dice(counts))
    return _average(compute_dice(counts.sum(axis=-3)))


def compute_case_dice(counts: NDArray[np.integer]) -> Floats:
    """Return the Dice of each case, mean over classes: (..., C, F, 4) counts to (..., C)."""
    return _average(compute_dice(counts))


def draw_resamples(size: int, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """Return (B, size): how often each case is in each resample. One draw for all arms makes the bootstrap paired."""
    chosen = np.random.default_rng(seed).integers(size, size=(resamples, size))
    flat = chosen + size * np.arange(resamples)[:, None]
    return np.bincount(flat.ravel(), minlength=resamples * size).reshape(resamples, size)


def estimate_mean(
    runs: NDArray[np.integer], metric: Metric, weights: NDArray[np.integer], *, level: float = LEVEL
) -> Estimate:
    """Return the mean score of an arm over its runs, with its interval over cases: that of *these* runs.

    A bootstrap-t interval (Efron & Tibshirani 1993, chapter 12): the error of each resample is divided by a standard
    error of its own, from influence values. With 15 cases of skewed scores a percentile interval that is to cover 95 %
    covers 88 to 92 %, BCa 90 to 92 %, Student's t 91 to 94 %, this one 94 to 97 %. A kind of case that is rare and not
    in the sample is in no interval. Ends are cut to what is possible, and are all of it for a single case.

    Args:
        runs: (R, C, F, 4) counts.
        metric: which score.
        weights: (B, C) from ``draw_resamples``.
        level: share of the samples whose interval is to cover the truth.
    """
    estimate, _ = _bootstrap([(1.0, runs)], metric, weights, level)
    if weights.shape[1] < 2:
        return Estimate(estimate.value, 0.0, 1.0)
    return Estimate(estimate.value, max(0.0, estimate.low), min(1.0, estimate.high))


def estimate_difference(
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    metric: Metric,
    weights: NDArray[np.integer],
    *,
    level: float = LEVEL,
) -> Estimate:
    """Return the difference of the mean scores of two arms, with its paired interval over cases: of *these* runs.

    It holds the bootstrap-t interval of ``estimate_mean`` and Student's t interval. Where most cases are alike in both
    arms and some differ much, the first covers 88 % only, with 15 cases, and the second 95 %; where differences are
    skewed, it is 95 and 91 %. Both together cover 94 to 97 %. Of a single case nothing is known: -1 to 1.

    Args:
        first: (R, C, F, 4) counts of an arm.
        second: (R', C, F, 4) counts of the other, of the same cases.
        metric: which score.
        weights: (B, C) from ``draw_resamples``.
        level: share of the samples whose interval is to cover the truth.
    """
    estimate, error = _bootstrap([(1.0, first), (-1.0, second)], metric, weights, level)
    if weights.shape[1] < 2:
        return Estimate(estimate.value, -1.0, 1.0)
    width = error * float(special.stdtrit(max(weights.shape[1] - 1, 1), 0.5 + level / 2))
    low, high = min(estimate.low, estimate.value - width), max(estimate.high, estimate.value + width)
    return Estimate(estimate.value, max(-1.0, low), min(1.0, high))


def estimate_margin(
    counts: NDArray[np.integer], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Return the pooled F1 minus that of predicting foreground everywhere on the same cases, with its paired interval.

    A network is above trivial where ``low > 0``. Resamples without foreground are left out: nothing can be above
    trivial there, and predicting nothing must not gain from them. Without any foreground the margin is 0.

    Args:
        counts: (C, 4) voxels tp, fp, fn, tn of foreground against background.
        level: share of the samples whose interval is to cover the truth.
        resamples: number of resamples.
        seed: of the resampling.

    Raises:
        ValueError: if there is no case.
    """
    if not len(counts):
        raise ValueError("no case to resample")
    foreground = counts[:, 0] + counts[:, 2]
    if not foreground.any():
        return Estimate(0.0, 0.0, 0.0)
    weights = draw_resamples(len(counts), resamples=resamples, seed=seed)
    own = counts[None, :, None, :]
    return estimate_difference(own, count_everywhere(own), "f1", weights[weights @ foreground > 0], level=level)


def count_everywhere(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the (..., 4) counts of predicting foreground everywhere on the cases of any counts."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.int64), -1, 0)
    return np.stack([tp + fn, fp + tn, np.zeros_like(tp), np.zeros_like(tp)], axis=-1)


def _bootstrap(
    terms: Sequence[tuple[float, NDArray[np.integer]]], metric: Metric, weights: NDArray[np.integer], level: float
) -> tuple[Estimate, float]:
    """Return the bootstrap-t interval of the sum of the mean scores of the terms, and the standard error."""
    everything = np.ones((1, weights.shape[1]))
    value, error = (float(x[0]) for x in _compute_with_error(terms, metric, everything))
    if error == 0.0:
        return Estimate(value, value, value), 0.0
    values, errors = _compute_with_error(terms, metric, weights.astype(np.float64))
    scaled = (values - value) / np.maximum(errors, _LEAST_ERROR * error)
    low, high = (value - error * float(q) for q in np.quantile(scaled, [0.5 + level / 2, 0.5 - level / 2]))
    return Estimate(value, low, high), error


def _compute_with_error(
    terms: Sequence[tuple[float, NDArray[np.integer]]], metric: Metric, weights: Floats
) -> tuple[Floats, Floats]:
    """Return (B,) the sum of the weighted mean scores of the terms, and (B,) its standard errors.

    Both scores are means of ratios of sums over cases, n / d. Case c moves such a ratio by (n_c - ratio * d_c) / d.
    """
    cases = weights.shape[1]
    values, influence = np.zeros(len(weights)), np.zeros(weights.shape)
    for factor, counts in terms:
        top, bottom = _as_ratios(counts, metric)
        sums = weights @ bottom.T
        ratios = np.divide(weights @ top.T, sums, out=np.ones_like(sums), where=sums > 0)
        slopes = np.divide(factor * cases / len(top), sums, out=np.zeros_like(sums), where=sums > 0)
        values += factor * ratios.mean(axis=1)
        influence += slopes @ top - (slopes * ratios) @ bottom
    variances = (weights * influence**2).sum(axis=1) / (cases * max(cases - 1, 1))
    return values, np.sqrt(variances)


def _as_ratios(counts: NDArray[np.integer], metric: Metric) -> tuple[Floats, Floats]:
    """Return (K, C) numerators and denominators: the score is the mean over K of the ratio of their sums over cases."""
    if metric == "dice":
        scores = compute_case_dice(counts)
        return scores, np.ones_like(scores)
    by_case = np.moveaxis(counts, -3, -1).reshape(-1, *counts.shape[-1:], counts.shape[-3])  # (K, 4, C)
    tp, fp, fn = (by_case[:, i].astype(np.float64) for i in range(3))
    return 2.0 * tp, 2.0 * tp + fp + fn


def _average(values: Floats) -> Floats:
    """Return the means over the last axis."""
    means: Floats = values.mean(axis=-1)
    return means
