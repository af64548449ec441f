"""Scores over cases and differences of scores, with their intervals over cases. Numbers in, numbers out.

Shapes: R runs (networks whose scores are averaged), C cases (the same for all that is compared), F foreground classes.
Counts are (R, C, F, 4) voxels tp, fp, fn, tn. B resamples.

Voxels of one image are not independent, cases are: whole cases are resampled. The choices below were made by
simulation, which ``scripts/check_ablation_stats.py`` repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ssl_seg.scores.metrics import compute_case_dice, compute_dice, compute_macro_f1

Metric = Literal["dice", "f1"]
"""``dice``: mean over cases of the Dice of a case. ``f1``: of all voxels of a class, mean over classes. Which classes
count says ``ssl_seg.scores.metrics``."""

METRICS: tuple[Metric, ...] = ("f1", "dice")

Floats = NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 2000
LEAST_CASES = 8
"""Fewer cases have neither interval nor p. By ``scripts/check_ablation_stats.py``, 95 % intervals cover at least 93.5 %
with 8 cases, but in the worst setting 90 to 92 % with 5 to 7, 85 % with 3 and 69 % with 2. Two settings have less: one
case in ten that fails altogether (84 % with 8 cases, 95 % with 30), and four of five masks empty (91 % with 8 cases,
94 % with 30)."""
BLOCK = 2**22
"""Resamples are drawn and used in blocks of about this many numbers, 32 MB an array, whatever the number of cases."""
_LEAST_ERROR = 0.3
"""A standard error of a resample below this share of that of the sample is set to it: among few cases some resamples
hold one case only, and dividing by an error of 0 would make the interval endless. Coverage is the same without."""
ROUNDING = 1e-9
"""Scores, and standard errors of scores, that differ by less are equal: sums of floats differ in their last digits from
processor to processor."""
NO_VARIATION = "cannot be estimated (no variation)"
NO_FOREGROUND = "cannot be estimated (no foreground)"


@dataclass(frozen=True)
class Estimate:
    """A value and the interval around it; ``low`` and ``high`` are None where there is none, and ``why`` says why."""

    value: float
    low: float | None
    high: float | None
    why: str = ""


def describe_shortage(cases: int, least: int = LEAST_CASES) -> str:
    """Return why a number of cases has no interval and no p; nothing where it is enough."""
    return f"too few cases ({cases} < {least})" if cases < least else ""


def compute_score(counts: NDArray[np.integer], metric: Metric) -> Floats:
    """Return the score of each run: (..., C, F, 4) counts to (...)."""
    if metric == "dice":
        means: Floats = compute_case_dice(counts).mean(axis=-1)
        return means
    return compute_macro_f1(counts.sum(axis=-3))


def compute_class_scores(counts: NDArray[np.integer], metric: Metric) -> Floats:
    """Return the score of each class: (..., C, F, 4) counts to (..., F), NaN for a class that is in no mask.

    For ``dice`` the mean over the cases that have the class, so that cases without it do not flatter it.
    """
    there = counts[..., 0] + counts[..., 2] > 0
    if metric == "f1":
        pooled: Floats = np.where(there.any(axis=-2), compute_dice(counts.sum(axis=-3)), np.nan)
        return pooled
    number = there.sum(axis=-2)
    total = np.where(there, compute_dice(counts), 0.0).sum(axis=-2)
    means: Floats = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
    return means


@dataclass(frozen=True)
class Resamples:
    """How often each of C cases is in each of B resamples. The same rows for all arms make the bootstrap paired.

    Iterating draws the rows anew, in blocks (b, C); as an array they are (B, C). The size of the blocks changes no row.
    """

    cases: int
    number: int = RESAMPLES
    seed: int = 0

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        rng = np.random.default_rng(self.seed)
        rows = max(BLOCK // max(self.cases, 1), 1)
        for start in range(0, self.number, rows):
            chosen = rng.integers(self.cases, size=(min(rows, self.number - start), self.cases))
            flat = chosen + self.cases * np.arange(len(chosen))[:, None]
            yield np.bincount(flat.ravel(), minlength=chosen.size).reshape(chosen.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate(list(self)).astype(dtype or np.int64)


def estimate_mean(
    runs: NDArray[np.integer],
    metric: Metric,
    weights: Resamples,
    *,
    least: int = LEAST_CASES,
) -> Estimate:
    """Return the mean score of an arm over its runs, with its interval over cases: that of *these* runs.

    A bootstrap-t interval (Efron & Tibshirani 1993, chapter 12): the error of each resample is divided by a standard
    error of its own, from influence values. With 15 cases of skewed scores a percentile interval that is to cover 95 %
    covers 88 to 92 %, BCa 90 to 92 %, Student's t 91 to 94 %, this one 94 to 97 %. A kind of case that is rare and not
    in the sample is in no interval. Ends are cut to what is possible.

    Args:
        runs: (R, C, F, 4) counts.
        least: number of cases below which there is no interval.
    """
    estimate, _ = _bootstrap([(1.0, runs)], metric, weights, least)
    return _cut(estimate, 0.0)


def estimate_difference(
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    metric: Metric,
    weights: Resamples,
    *,
    least: int = LEAST_CASES,
) -> Estimate:
    """Return the difference of the mean scores of two arms, with its paired interval over cases: of *these* runs.

    It holds the bootstrap-t interval of ``estimate_mean`` and Student's t interval. Where most cases are alike in both
    arms and some differ much, the first covers 88 % only, with 15 cases, and the second 95 %; where differences are
    skewed, it is 95 and 91 %. Both together cover 94 to 97 %.

    Args:
        first: (R, C, F, 4) counts of an arm.
        second: (R', C, F, 4) counts of the other, of the same cases.
        least: number of cases below which there is no interval.
    """
    estimate, error = _bootstrap([(1.0, first), (-1.0, second)], metric, weights, least)
    if estimate.low is None or estimate.high is None:
        return estimate
    width = error * float(special.stdtrit(first.shape[1] - 1, 0.5 + LEVEL / 2))
    low, high = min(estimate.low, estimate.value - width), max(estimate.high, estimate.value + width)
    return _cut(Estimate(estimate.value, low, high), -1.0)


@dataclass(frozen=True)
class Difference:
    """F1 of one network minus that of another on the same cases, mean over classes, with its 95 % interval.

    ``low`` and ``high`` are None where there is none, and ``why`` says why.
    """

    f1: float
    low: float | None
    high: float | None
    why: str = ""


def compare_counts(new: NDArray[np.int64], old: NDArray[np.int64]) -> Difference:
    """Return pooled F1 (mean over classes) of one network minus that of another, with the interval over paired cases.

    Both are resampled together: a resample of easy cases makes neither look better.

    Args:
        new, old: (cases, classes, 4) voxels tp, fp, fn, tn on the same cases.
    """
    found = estimate_difference(new[None], old[None], "f1", Resamples(len(new)))
    return Difference(found.value, found.low, found.high, found.why)


def estimate_margin(
    counts: NDArray[np.integer],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    least: int = LEAST_CASES,
) -> Estimate:
    """Return F1 (pooled, mean of classes) minus that of predicting each class everywhere on the same cases, with its
    paired interval.

    A network is above trivial where ``low > 0``. Resamples without foreground are left out: nothing can be above
    trivial there, and predicting nothing must not gain from them. Without any foreground the margin is 0.

    Args:
        counts: (C, F, 4) voxels tp, fp, fn, tn of each foreground class; (C, 4) of one.
        least: number of cases below which there is no interval.

    Raises:
        ValueError: if there is no case.
    """
    if not len(counts):
        raise ValueError("no case to resample")
    if not counts[..., [0, 2]].any():
        return Estimate(0.0, None, None, NO_FOREGROUND)
    own = counts[None] if counts.ndim == 3 else counts[None, :, None]
    weights = Resamples(len(counts), number=resamples, seed=seed)
    return estimate_difference(own, count_everywhere(own), "f1", weights, least=least)


def estimate_ratio(top: Floats, bottom: Floats, weights: Resamples, *, least: int = LEAST_CASES) -> Estimate:
    """Return the mean over K of the ratios of sums over cases, with the interval of ``estimate_mean``.

    Args:
        top: (K, C) numerators.
        bottom: (K, C) denominators, not negative; each has a case above 0.
        least: number of cases below which there is no interval.
    """
    value = float((top.sum(axis=1) / bottom.sum(axis=1)).mean())
    estimate, _ = _bootstrap_ratios(value, [(1.0, _Ratios(top, bottom, bottom > 0))], weights, least)
    return _cut(estimate, 0.0)


def count_everywhere(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the (..., 4) counts of predicting foreground everywhere on the cases of any counts."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.int64), -1, 0)
    return np.stack([tp + fn, fp + tn, np.zeros_like(tp), np.zeros_like(tp)], axis=-1)


def _cut(estimate: Estimate, least: float) -> Estimate:
    """Return the estimate with ends within ``least`` and 1."""
    if estimate.low is None or estimate.high is None:
        return estimate
    return Estimate(estimate.value, max(least, estimate.low), min(1.0, estimate.high))


def _bootstrap(
    terms: Sequence[tuple[float, NDArray[np.integer]]],
    metric: Metric,
    weights: Resamples,
    least: int,
) -> tuple[Estimate, float]:
    """Return the bootstrap-t interval of the sum of the mean scores of the terms, and the standard error."""
    value = sum(factor * float(compute_score(counts, metric).mean()) for factor, counts in terms)
    ratios = [(factor, _as_ratios(counts, metric)) for factor, counts in terms]
    return _bootstrap_ratios(value, ratios, weights, least)


def _bootstrap_ratios(
    value: float, ratios: Sequence[tuple[float, _Ratios]], weights: Resamples, least: int
) -> tuple[Estimate, float]:
    """Return the bootstrap-t interval around a value, which the ratios sum up to, and the standard error."""
    cases = weights.cases
    if shortage := describe_shortage(cases, least):
        return Estimate(value, None, None, shortage), 0.0
    error = float(_compute_deviations(ratios, np.ones((1, cases)))[1].sum())  # of one or, without foreground, none
    if error <= ROUNDING:
        return Estimate(value, None, None, NO_VARIATION), 0.0
    blocks = (_compute_deviations(ratios, block.astype(np.float64)) for block in weights)
    scaled = np.concatenate([deviations / np.maximum(errors, _LEAST_ERROR * error) for deviations, errors in blocks])
    low, high = (value - error * float(q) for q in np.quantile(scaled, [0.5 + LEVEL / 2, 0.5 - LEVEL / 2]))
    return Estimate(value, low, high), error


@dataclass(frozen=True)
class _Ratios:
    """(K, C) numerators and denominators: a score is the mean over K of the ratio of their sums over cases.

    A resample has the ratios of those K only that are ``there`` (K, C) in one of its cases.
    """

    top: Floats
    bottom: Floats
    there: NDArray[np.bool_]


def _as_ratios(counts: NDArray[np.integer], metric: Metric) -> _Ratios:
    if metric == "dice":
        scores = compute_case_dice(counts)
        return _Ratios(scores, np.ones_like(scores), np.ones(scores.shape, np.bool_))
    by_case = np.moveaxis(counts, -3, -1).reshape(-1, *counts.shape[-1:], counts.shape[-3])  # (K, 4, C)
    tp, fp, fn = (by_case[:, i].astype(np.float64) for i in range(3))
    there = tp + fn > 0
    used = there.any(axis=1)
    return _Ratios(2.0 * tp[used], (2.0 * tp + fp + fn)[used], there[used])


def _compute_deviations(terms: Sequence[tuple[float, _Ratios]], weights: Floats) -> tuple[Floats, Floats]:
    """Return how far the sum of the weighted mean scores of the terms lies from that of the sample, and its standard
    errors, for each of B resamples but those in which there is nothing to be found.

    Case c moves a ratio of sums n / d by (n_c - ratio * d_c) / d. The mean is over the ratios that the resample has: so
    one without a rare class says nothing about that class, and does not change which classes are compared.
    """
    cases = weights.shape[1]
    deviations, influence = np.zeros(len(weights)), np.zeros(weights.shape)
    kept = np.ones(len(weights), np.bool_)
    for factor, term in terms:
        has = weights @ term.there.T.astype(np.float64) > 0
        number = has.sum(axis=1, keepdims=True)
        kept &= number[:, 0] > 0
        sums = weights @ term.bottom.T
        ratios = np.divide(weights @ term.top.T, sums, out=np.zeros_like(sums), where=has)
        shares = np.divide(factor, number, out=np.zeros(number.shape), where=number > 0)
        own = term.top.sum(axis=1) / term.bottom.sum(axis=1)
        deviations += (np.where(has, ratios - own, 0.0) * shares).sum(axis=1)
        slopes = np.divide(shares * cases, sums, out=np.zeros_like(sums), where=has)
        influence += slopes @ term.top - (slopes * ratios) @ term.bottom
    variances = (weights * influence**2).sum(axis=1) / (cases * max(cases - 1, 1))
    return deviations[kept], np.sqrt(variances[kept])
