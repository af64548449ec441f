"""Comparisons of the arms of an ablation, and how far its runs lie apart. Numbers in, numbers out.

Shapes: R runs of an arm (they differ in their seeds), C cases (the same in all arms), F foreground classes. Counts are
(R, C, F, 4) voxels tp, fp, fn, tn. U units of runs: splits where there are several, else training seeds.

The choices below were made by simulation, which ``scripts/check_ablation_stats.py`` repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from ssl_seg.scores.intervals import (
    LEAST_CASES,
    LEVEL,
    NO_VARIATION,
    ROUNDING,
    Floats,
    Metric,
    compute_score,
    describe_shortage,
)
from ssl_seg.scores.metrics import compute_case_dice, compute_macro_f1

_ROUNDING = 1e-12
"""Share of the variance below which a part of it is rounding; no critical value can be solved for with it."""


def compute_case_values(counts: NDArray[np.integer], metric: Metric) -> Floats:
    """Return what each case adds to the score of a run: (..., C, F, 4) counts to (..., C), whose mean is the score.

    For ``dice`` these are the Dice values of the cases. The pooled ``f1`` is no mean over cases: its values are
    jackknife pseudo-values, C times the score minus C - 1 times the score without the case (Dorfman, Berbaum & Metz
    1992), moved so that their mean is the score (Hillis, Berbaum & Metz 2008).
    """
    if metric == "dice":
        return compute_case_dice(counts)
    score = compute_score(counts, metric)[..., None]
    without = compute_macro_f1(counts.sum(axis=-3, keepdims=True) - counts)
    if (cases := counts.shape[-3]) < 2:
        return score
    pseudo = cases * score - (cases - 1) * without
    centered: Floats = pseudo + score - pseudo.mean(axis=-1, keepdims=True)
    return centered


@dataclass(frozen=True)
class PairedComparison:
    """A paired difference, with the interval and the p of a test that holds for new cases and, where there are at
    least two units of runs, for new runs. These are None where there are none, and ``why`` says why."""

    difference: float
    low: float | None
    high: float | None
    p: float | None
    units: int
    """U: independent runs. With 1, nothing is said about other seeds."""
    cases: int
    why: str = ""


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


def compare_paired(differences: NDArray[Any], *, level: float = LEVEL, least: int = LEAST_CASES) -> PairedComparison:
    """Test whether paired differences have mean 0 in the population of runs *and* in that of cases.

    The model is that of studies with several readers (Obuchowski & Rockette 1995): mean + run + case + rest, all
    random. The variance of the mean is estimated as (MS_run + max(MS_case - MS_rest, 0)) / (U C) (Hillis 2007). Hillis'
    degrees of freedom are too liberal for few runs (up to 13 % of null effects were significant with 2 runs, 8 % with
    3): instead the critical value is the mean of those of Student's t with U - 1 and C - 1 degrees of freedom, weighted
    by the two parts of the variance (Cochran & Cox 1957): 3.5 % with 2 runs (mean of 24 settings, the largest 6.2 %).
    With one unit this is the paired t test over cases, and with skewed differences of few cases it is as inexact as
    that: compare with ``estimate_difference``. Nothing is known where the variance of the mean is estimated as 0: of
    equal differences, or of units and cases whose means are all equal.

    Args:
        differences: (U, C), from ``compute_case_values`` and ``average_units``.
        level: level of the interval.
        least: number of cases below which there is no test.
    """
    units, cases = differences.shape
    mean = float(differences.mean())
    if shortage := describe_shortage(cases, least):
        return PairedComparison(mean, None, None, None, units, cases, shortage)
    squares = compute_mean_squares(differences)
    parts = (squares.run, max(squares.case - squares.rest, 0.0)) if units > 1 else (0.0, squares.case)
    largest = max(parts)
    run, case = (part if part > _ROUNDING * largest else 0.0 for part in parts)  # of runs that are alike
    parts = (run, case)
    error = float(np.sqrt(sum(parts) / (units * cases)))
    if error <= ROUNDING or sum(parts) <= _ROUNDING * squares.rest:
        return PairedComparison(mean, None, None, None, units, cases, NO_VARIATION)
    width = error * _critical_value(1.0 - level, parts, (units - 1, cases - 1))
    p = _solve_p(abs(mean) / error, parts, (units - 1, cases - 1))
    return PairedComparison(mean, mean - width, mean + width, p, units, cases)


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares of a table, units by cases, with one value per cell. Expectations, with variances V of the effects:
    ``run`` C V_run + V_rest, ``case`` U V_case + V_rest, ``rest`` V_rest. 0 without a degree of freedom."""

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
    """Spread of all runs."""
    split: float | None
    """Spread between splits, apart from what the training seeds explain; 0 where ``truncated``."""
    seed: float | None
    """Spread between trainings on one split."""
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
