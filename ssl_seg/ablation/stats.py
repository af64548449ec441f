"""Scores of the arms of an ablation, their intervals, and tests. Numbers in, numbers out.

Shapes: R runs of an arm (they differ in their seeds), C cases (the same in all arms), F foreground classes. Counts are
(R, C, F, 4) voxels tp, fp, fn, tn. B resamples, U units of runs: splits where there are several, else training seeds.

The choices below were made by simulation, which ``scripts/check_ablation_stats.py`` repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from ssl_seg.metrics import compute_dice

Metric = Literal["dice", "f1"]
"""``dice``: mean over cases of the mean over classes of Dice. ``f1``: of all voxels of a class, mean over classes."""

Floats = NDArray[np.float64]

LEVEL = 0.95
_ROUNDING = 1e-12
"""Share of the variance below which a part of it is rounding; no critical value can be solved for with it."""
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


def compute_case_values(counts: NDArray[np.integer], metric: Metric) -> Floats:
    """Return what each case adds to the score of a run: (..., C, F, 4) counts to (..., C), whose mean is the score.

    For ``dice`` these are the Dice values of the cases. The pooled ``f1`` is no mean over cases: its values are
    jackknife pseudo-values, C times the score minus C - 1 times the score without the case (Dorfman, Berbaum & Metz
    1992), moved so that their mean is the score (Hillis, Berbaum & Metz 2008).
    """
    if metric == "dice":
        return compute_case_dice(counts)
    score = compute_score(counts, metric)[..., None]
    without = _average(compute_dice(counts.sum(axis=-3, keepdims=True) - counts))
    if (cases := counts.shape[-3]) < 2:
        return score
    pseudo = cases * score - (cases - 1) * without
    centered: Floats = pseudo + score - pseudo.mean(axis=-1, keepdims=True)
    return centered


def _average(values: Floats) -> Floats:
    """Return the means over the last axis."""
    means: Floats = values.mean(axis=-1)
    return means


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
    in the sample is in no interval. Ends are cut to what is possible.

    Args:
        runs: (R, C, F, 4) counts.
        metric: which score.
        weights: (B, C) from ``draw_resamples``.
        level: share of the samples whose interval is to cover the truth.
    """
    estimate, _ = _bootstrap([(1.0, runs)], metric, weights, level)
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
    skewed, it is 95 and 91 %. Both together cover 94 to 97 %.

    Args:
        first: (R, C, F, 4) counts of an arm.
        second: (R', C, F, 4) counts of the other, of the same cases.
        metric: which score.
        weights: (B, C) from ``draw_resamples``.
        level: share of the samples whose interval is to cover the truth.
    """
    estimate, error = _bootstrap([(1.0, first), (-1.0, second)], metric, weights, level)
    width = error * float(special.stdtrit(max(weights.shape[1] - 1, 1), 0.5 + level / 2))
    low, high = min(estimate.low, estimate.value - width), max(estimate.high, estimate.value + width)
    return Estimate(estimate.value, max(-1.0, low), min(1.0, high))


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


@dataclass(frozen=True)
class Comparison:
    """A paired difference, with the interval and the p of a test that holds for new cases and, where there are at
    least two units of runs, for new runs."""

    difference: float
    low: float
    high: float
    p: float
    units: int
    """U: independent runs. With 1, nothing is said about other seeds."""
    cases: int


def average_units(values: NDArray[Any], split_seeds: Sequence[int]) -> Floats:
    """Return (U, C) means of (R, C) values over the runs of one split; (R, C) as they are where there is one split.

    Runs of one split share their labeled cases: they are no independent draws. A split counts once, however many of
    its runs are there.
    """
    seeds = np.asarray(split_seeds)
    groups = np.unique(seeds)
    if len(groups) < 2:
        return np.asarray(values, np.float64)
    return np.stack([values[seeds == g].mean(axis=0) for g in groups])


def compare_paired(differences: NDArray[Any], *, level: float = LEVEL) -> Comparison:
    """Test whether paired differences have mean 0 in the population of runs *and* in that of cases.

    The model is that of studies with several readers (Obuchowski & Rockette 1995): mean + run + case + rest, all
    random. The variance of the mean is estimated as (MS_run + max(MS_case - MS_rest, 0)) / (U C) (Hillis 2007). Hillis'
    degrees of freedom are too liberal for few runs (up to 13 % of null effects were significant with 2 runs, 8 % with
    3): instead the critical value is the mean of those of Student's t with U - 1 and C - 1 degrees of freedom, weighted
    by the two parts of the variance (Cochran & Cox 1957), which gave at most 6.3 % with 2, and 5.6 % with more.
    With one unit this is the paired t test over cases, and with skewed differences of few cases it is as inexact as
    that: compare with ``estimate_difference``.

    Args:
        differences: (U, C), from ``compute_case_values`` and ``average_units``.
        level: of the interval.

    Raises:
        ValueError: with fewer than 2 cases, of which no test is possible.
    """
    units, cases = differences.shape
    if cases < 2:
        raise ValueError(f"{cases} case: a test over cases needs at least 2")
    mean = float(differences.mean())
    squares = compute_mean_squares(differences)
    parts = (squares.run, max(squares.case - squares.rest, 0.0)) if units > 1 else (0.0, squares.case)
    largest = max(parts)
    run, case = (part if part > _ROUNDING * largest else 0.0 for part in parts)  # of runs that are alike
    parts = (run, case)
    error = float(np.sqrt(sum(parts) / (units * cases)))
    if error == 0.0:
        return Comparison(mean, mean, mean, 1.0 if mean == 0.0 else 0.0, units, cases)
    width = error * _critical_value(1.0 - level, parts, (units - 1, cases - 1))
    p = _solve_p(abs(mean) / error, parts, (units - 1, cases - 1))
    return Comparison(mean, mean - width, mean + width, p, units, cases)


@dataclass(frozen=True)
class MeanSquares:
    """Of a table of units and cases with one value a cell. Expectations, with variances V of the effects:
    ``run`` C V_run + V_rest, ``case`` U V_case + V_rest, ``rest`` V_rest. Without a degree of freedom 0."""

    run: float
    case: float
    rest: float


def compute_mean_squares(table: NDArray[Any]) -> MeanSquares:
    """Return the mean squares of the two-way analysis of variance of (U, C) values."""
    units, cases = table.shape
    by_run, by_case, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    rest = table - by_run[:, None] - by_case[None, :] + mean
    return MeanSquares(
        run=float(cases * ((by_run - mean) ** 2).sum() / max(units - 1, 1)),
        case=float(units * ((by_case - mean) ** 2).sum() / max(cases - 1, 1)),
        rest=float((rest**2).sum() / max((units - 1) * (cases - 1), 1)),
    )


def _critical_value(p: float, parts: tuple[float, float], freedom: tuple[int, int]) -> float:
    used = [(part, df) for part, df in zip(parts, freedom, strict=True) if part > 0]
    return float(-sum(part * special.stdtrit(df, p / 2) for part, df in used) / sum(part for part, _ in used))


def _solve_p(t: float, parts: tuple[float, float], freedom: tuple[int, int]) -> float:
    """Return the two-sided p at which ``t`` is the critical value: between those of the two Student's t."""
    found = sorted(2 * float(special.stdtr(df, -t)) for part, df in zip(parts, freedom, strict=True) if part > 0)
    if found[0] == found[-1] or found[0] == 0.0:
        return found[-1]
    ends = [_critical_value(p, parts, freedom) - t for p in (found[0], found[-1])]
    if ends[0] <= 0 or ends[1] >= 0:  # by rounding, where one part is next to nothing
        return found[0] if ends[0] <= 0 else found[-1]
    log_p = optimize.brentq(lambda x: _critical_value(float(np.exp(x)), parts, freedom) - t, *np.log(found))
    return float(np.exp(log_p))


def correct_holm(ps: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number, in the same order (Holm 1979): the k-th smallest of m times
    m - k + 1, never below a smaller one's, at most 1."""
    order = np.argsort(ps, kind="stable")
    scaled = np.asarray(ps, np.float64)[order] * np.arange(len(ps), 0, -1)
    corrected = np.empty(len(ps))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(p) for p in corrected]


@dataclass(frozen=True)
class Spread:
    """How far the runs of an arm lie apart, as standard deviations. None where the design cannot tell."""

    total: float | None
    """Of all runs."""
    split: float | None
    """Between splits, apart from what the training seeds explain; 0 where ``truncated``."""
    seed: float | None
    """Between trainings of one split."""
    truncated: bool = False
    """The estimated variance between splits was negative: the seeds explain more than all of it."""


def compute_spread(scores: Sequence[float], split_seeds: Sequence[int]) -> Spread:
    """Return the components of variance of the scores of an arm: a one-way analysis with the splits as groups.

    For groups of different sizes (a failed cell) with the usual mean size n0 = (n - sum n_i^2 / n) / (k - 1) (Searle,
    Casella & McCulloch 1992).

    Args:
        scores: (R,) scores of the runs.
        split_seeds: (R,) their splits.
    """
    values, seeds = np.asarray(scores, np.float64), np.asarray(split_seeds)
    groups = [values[seeds == g] for g in np.unique(seeds)]
    n, k = len(values), len(groups)
    total = float(values.std(ddof=1)) if n > 1 else None
    if n == k:  # no split was trained twice
        return Spread(total, None, None)
    within = sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / (n - k)
    if k == 1:
        return Spread(total, None, float(np.sqrt(within)))
    between = sum(len(g) * float((g.mean() - values.mean()) ** 2) for g in groups) / (k - 1)
    size = (n - sum(len(g) ** 2 for g in groups) / n) / (k - 1)
    variance = (between - within) / size
    return Spread(total, float(np.sqrt(max(variance, 0.0))), float(np.sqrt(within)), variance < 0)
