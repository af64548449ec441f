"""Calibration of probabilities and the choice of a threshold, on cases that were not trained on. Numbers in and out.

Shapes: C cases, K classes, F foreground classes, N voxels, B bins of the log-odds of foreground, *S spatial.

``softmax(log p / temperature + bias)`` is temperature scaling (Guo et al. 2017) with a bias for each class, fitted by
maximum likelihood; with two classes this is Platt scaling. A threshold is chosen apart from it, since the cut that is
best for a score is not that of the likelier class.

Voxels of one case are not independent: what a choice gains is measured on cases that were left out of it, and its
interval is over cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.scores.intervals import Estimate, Resamples, estimate_difference
from ssl_seg.scores.metrics import compute_dice, count_overlap

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

BINS_PER_UNIT, LIMIT = 128, 6
"""Bins of asinh(log-odds): 1/128 wide near 0, which is 0.002 of a probability, up to log-odds of 200."""
BINS = 2 * LIMIT * BINS_PER_UNIT
HALF = BINS // 2
"""Edge of the bins at a probability of 0.5. Bin b lies above edge b and reaches to edge b + 1, which it includes."""
EDGES: Floats = np.sinh(np.arange(BINS + 1) / BINS_PER_UNIT - LIMIT)
"""(B + 1) log-odds."""
_CENTERS: Floats = np.sinh((np.arange(BINS) + 0.5) / BINS_PER_UNIT - LIMIT)
RELIABILITY_BINS = 15
"""Bins of the expected calibration error, as in Guo et al."""
GROUPS = 20
"""Largest number of parts that the cases are divided into; each part is left out once."""
THRESHOLD_RESAMPLES = 500
LEAST_SLOPE, LARGEST_SLOPE, LARGEST_BIAS = 0.05, 20.0, 20.0
"""Bounds of the fit: for masks that the network separates without an error, the best temperature would be 0."""
BLOCK_VOXELS = 2**20
"""Voxels that are binned at a time: about 100 MB, however large the image."""
_TINY = np.finfo(np.float32).tiny

Target = Literal["f1", "prevalence", "precision", "recall"]


@dataclass(frozen=True)
class ThresholdRule:
    """What a threshold is chosen for: the highest F1, as much foreground as there is, or a precision or recall of at
    least ``least`` with as much of the other as possible. All are pooled over cases."""

    target: Target = "f1"
    least: float = 0.0

    def __str__(self) -> str:
        return f"{self.target}={self.least:g}" if self.target in ("precision", "recall") else self.target


@dataclass(frozen=True)
class Scaling:
    """``softmax(log p / temperature + biases)``; the bias of background is 0."""

    temperature: float
    biases: tuple[float, ...]
    """(K)."""

    def apply(self, probs: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the calibrated probabilities (K,*S); voxels that are not finite stay so."""
        scores = take_logs(probs) / np.float32(self.temperature)
        scores += np.asarray(self.biases, np.float32).reshape(-1, *(1,) * (probs.ndim - 1))
        calibrated: NDArray[np.float32] = special.softmax(scores, axis=0)
        return calibrated

    def apply_to_odds(self, log_odds: Floats) -> Floats:
        """Return the calibrated log-odds of foreground, of two classes."""
        return log_odds / self.temperature + self.biases[1]


UNCHANGED = Scaling(1.0, (0.0, 0.0))


@dataclass(frozen=True)
class ThresholdChoice:
    """A cut of the log-odds of foreground as the network gives them, and what it brings."""

    log_odds: float
    low: float
    high: float
    """95 % of the resamples of the cases choose log-odds between these."""
    f1_at_half: float
    f1_before: float
    """F1 at the threshold that holds without a choice."""
    f1: float
    """F1 at the chosen threshold, on the cases that it was chosen on: optimistic."""
    best_f1: float
    """The highest F1 of any threshold on these cases: optimistic."""
    gain: Estimate
    """F1 at the chosen threshold minus ``f1_before``, on cases that were left out of the choice."""

    @property
    def is_shown(self) -> bool:
        """Whether the gain is beyond chance."""
        return self.gain.low is not None and self.gain.low > 0


def take_logs(probs: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return log-probabilities that are finite where the probabilities are."""
    logs: NDArray[np.float32] = np.log(np.maximum(probs.astype(np.float32, copy=False), _TINY))
    return logs


def bin_log_odds(
    probs: NDArray[np.floating], target: NDArray[np.integer], label: int = 1, per_unit: int = BINS_PER_UNIT
) -> Counts:
    """Count the voxels of a case by the log-odds of a class; those that are ignored or not finite are left out.

    Args:
        probs: (K,*S) probabilities.
        target: (*S) of 0 to K - 1 and ``IGNORE_INDEX``.
        label: the class, against all others.
        per_unit: bins to a unit of asinh(log-odds).

    Returns:
        (2, B): row 0 of the other classes, row 1 of the class.
    """
    probs, target = probs.reshape(len(probs), -1), target.reshape(-1)
    bins = 2 * LIMIT * per_unit
    counts = np.zeros(2 * bins, np.int64)
    for start in range(0, len(target), BLOCK_VOXELS):
        part, true = probs[:, start : start + BLOCK_VOXELS], target[start : start + BLOCK_VOXELS]
        others = np.delete(part, label, axis=0).sum(axis=0)  # 1 - p has no digits left where p is close to 1
        with np.errstate(invalid="ignore"):  # infinite probabilities
            odds = take_logs(part[label]).astype(np.float64) - take_logs(others)
        used = np.isfinite(odds) & (true != IGNORE_INDEX)
        places = np.ceil((np.arcsinh(odds[used]) + LIMIT) * per_unit).astype(np.int64) - 1
        counts += np.bincount(np.clip(places, 0, bins - 1) + bins * (true[used] == label), minlength=2 * bins)
    return counts.reshape(2, bins)


def count_at_cuts(histograms: Counts) -> Counts:
    """Return the (..., B + 1, 4) voxels tp, fp, fn, tn where what lies above an edge is called foreground.

    Args:
        histograms: (..., 2, B), see ``bin_log_odds``.
    """
    above = np.cumsum(histograms[..., ::-1], axis=-1)[..., ::-1]
    above = np.concatenate([above, np.zeros_like(above[..., :1])], axis=-1)
    fp, tp = above[..., 0, :], above[..., 1, :]
    return np.stack([tp, fp, tp[..., :1] - tp, fp[..., :1] - fp], axis=-1)


def choose_cut(counts: Counts, rule: ThresholdRule) -> int:
    """Return the index of the edge that a rule chooses; of equally good ones that next to a probability of 0.5.

    Where no cut has the precision or recall that is asked for, the highest that there is takes its place.

    Args:
        counts: (B + 1, 4) of all cases together.
    """
    tp, fp, fn, _ = counts.T.astype(np.float64)
    found, true = tp + fp, tp + fn
    if rule.target == "f1":
        value = compute_dice(counts)
    elif rule.target == "prevalence":
        value = -np.abs(found - true)
    else:
        precision, recall = _compute_precision_and_recall(counts)
        bound, other = (precision, recall) if rule.target == "precision" else (recall, precision)
        value = np.where(bound >= min(rule.least, bound.max()), other, -1.0)
    best = np.flatnonzero(value == value.max())
    return int(best[np.abs(best - HALF).argmin()])


def _compute_precision_and_recall(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both at each cut (B + 1), 0 where nothing is found or true."""
    tp, fp, fn, _ = counts.T.astype(np.float64)
    found, true = tp + fp, tp + fn
    precision = np.divide(tp, found, out=np.zeros_like(tp), where=found > 0)
    return precision, np.divide(tp, true, out=np.zeros_like(tp), where=true > 0)


def choose_threshold(histograms: Counts, rule: ThresholdRule, present: float = 0.0) -> ThresholdChoice:
    """Choose a threshold on cases, and measure on left-out cases what it gains.

    Args:
        histograms: (C, 2, B), see ``bin_log_odds``; C at least 1.
        present: log-odds of the threshold that is in force without a choice.

    Raises:
        ValueError: for a precision or recall that no cut of all cases together reaches; says what the best one has.
    """
    counts = count_at_cuts(histograms)
    pooled = counts.sum(axis=0)
    reached = dict(zip(("precision", "recall"), map(np.max, _compute_precision_and_recall(pooled)), strict=True))
    if (best := reached.get(rule.target, np.inf)) < rule.least:
        raise ValueError(f"no threshold has a {rule.target} of {rule.least:g}: the best one has {best:.3f}")
    chosen = choose_cut(pooled, rule)
    left_out = np.empty((len(counts), 4), np.int64)
    for group in _split_cases(len(counts)):
        left_out[group] = counts[group, choose_cut(pooled - counts[group].sum(axis=0), rule)]
    before = find_edge(present)
    gain = estimate_difference(left_out[None, :, None], counts[None, :, before, None], "f1", Resamples(len(counts)))
    low, high = _resample_threshold(counts, rule)
    f1 = compute_dice(pooled)
    return ThresholdChoice(
        log_odds=float(EDGES[chosen]),
        low=low,
        high=high,
        f1_at_half=float(f1[HALF]),
        f1_before=float(f1[before]),
        f1=float(f1[chosen]),
        best_f1=float(f1.max()),
        gain=gain,
    )


def find_half(histograms: Counts, scaling: Scaling) -> float:
    """Return the log-odds, as the network gives them, above which foreground is the likelier class.

    That is so after the scaling, which brings back a network that is shifted as a whole; or before it, where that has
    the higher F1 on these cases: of rare foreground that is hard to find, every true probability may be below 0.5.

    Args:
        histograms: (C, 2, B), see ``bin_log_odds``.
        scaling: scaling of two classes.
    """
    f1 = compute_dice(count_at_cuts(histograms.sum(axis=0)))
    return max(0.0, -scaling.biases[1] * scaling.temperature, key=lambda odds: float(f1[find_edge(odds)]))


def find_edge(log_odds: float) -> int:
    """Return the index of the edge next to log-odds."""
    return int(np.abs(EDGES - log_odds).argmin())


def to_log_odds(probability: float) -> float:
    """Return the log-odds of a probability."""
    return float(special.logit(probability))


def to_probability(log_odds: float) -> float:
    """Return the probability of log-odds."""
    return float(special.expit(log_odds))


def fit_scaling(
    logs: NDArray[np.floating], target: NDArray[np.integer], weights: NDArray[Any] | None = None, *, biased: bool = True
) -> Scaling:
    """Fit temperature and biases by maximum likelihood: a convex problem with one minimum.

    Args:
        logs: (N, K) log-probabilities.
        target: (N) classes.
        weights: (N) how often each voxel counts; once by default.
        biased: fit the biases too; else they are 0.
    """
    scores = logs.astype(np.float64)
    own = np.ones(len(scores)) if weights is None else weights.astype(np.float64)
    own = own / own.sum()
    classes = scores.shape[1]
    picked = np.zeros(scores.shape)
    picked[np.arange(len(scores)), target] = 1.0

    def cost(parameters: Floats) -> tuple[float, Floats]:
        logits = parameters[0] * scores + np.concatenate([[0.0], parameters[1:]])
        errors = own[:, None] * (special.softmax(logits, axis=1) - picked)
        value = float(own @ (special.logsumexp(logits, axis=1) - (logits * picked).sum(axis=1)))
        return value, np.concatenate([[float((errors * scores).sum())], errors.sum(axis=0)[1:]])

    bias = LARGEST_BIAS if biased else 0.0
    found = optimize.minimize(
        cost,
        np.concatenate([[1.0], np.zeros(classes - 1)]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LEAST_SLOPE, LARGEST_SLOPE), *[(-bias, bias)] * (classes - 1)],
    ).x
    return Scaling(float(1.0 / found[0]), (0.0, *map(float, found[1:])))


def fit_scaling_to_odds(histograms: Counts) -> Scaling:
    """Fit temperature and bias of two classes to (..., 2, B) counts, see ``bin_log_odds``."""
    pooled = histograms.reshape(-1, 2, BINS).sum(axis=0)
    logs = np.concatenate([np.stack([np.zeros(BINS), _CENTERS], axis=1)] * 2)
    return fit_scaling(logs, np.repeat([0, 1], BINS), pooled.ravel())


def calibrate_classes(
    logs: Sequence[NDArray[np.floating]], targets: Sequence[NDArray[np.integer]]
) -> tuple[Scaling, Estimate, tuple[Floats, Floats]]:
    """Fit temperature and biases of three or more classes; without biases where these do not pay.

    Args:
        logs: (n, K) log-probabilities of the same share of the voxels of each case.
        targets: (n) their classes.

    Returns:
        The scaling, which leaves all as it is where it pays in neither F1 nor calibration error; what its biases gain
        in F1 (mean of classes) of the likeliest class; and the reliability diagrams without and with a scaling. The
        gain, and the second diagram, are of left-out cases.
    """
    cases, classes = len(logs), logs[0].shape[1]
    unchanged = Scaling(1.0, (0.0,) * classes)
    counts = np.empty((3, cases, classes - 1, 4), np.int64)
    parts: tuple[list[Any], ...] = ([], [], [])
    for group in _split_cases(cases):
        others = sorted(set(range(cases)) - set(group.tolist()))
        ways = [unchanged] * 3
        if others:
            known = np.concatenate([logs[i] for i in others]), np.concatenate([targets[i] for i in others])
            ways[1:] = fit_scaling(*known, biased=False), fit_scaling(*known)
        for case in group:
            for row, way in enumerate(ways):
                probs = way.apply(np.exp(logs[case]).T).T
                counts[row, case] = _count_classes(probs.argmax(axis=1), targets[case], classes)
                parts[row].append((1.0 - probs[:, 0], np.ones(len(probs)), targets[case] > 0))
    gain = estimate_difference(counts[2:], counts[:1], "f1", Resamples(cases))
    pays = gain.low is not None and gain.low > 0
    before, after = compute_reliability(parts[0]), compute_reliability(parts[2 if pays else 1])
    scaling = fit_scaling(np.concatenate(logs), np.concatenate(targets), biased=pays)
    return scaling if pays else keep_if_better(scaling, before, after), gain, (before, after)


def keep_if_better(scaling: Scaling, before: Floats, after: Floats) -> Scaling:
    """Return a scaling, or one that changes nothing where the calibration error of left-out cases is no smaller.

    Args:
        scaling: fitted to all cases.
        before, after: (RELIABILITY_BINS, 3) diagrams without and with a scaling, see ``compute_reliability``.
    """
    return scaling if compute_ece(after) < compute_ece(before) else Scaling(1.0, (0.0,) * len(scaling.biases))


def choose_way(counts: Counts) -> tuple[int, Estimate]:
    """Choose between ways to make a mask by the mean Dice over cases.

    Args:
        counts: (M, C, 4) voxels tp, fp, fn, tn of each way and case; the first way is to do nothing.

    Returns:
        The index of the best way, of equally good ones the first, or 0 where choosing does not gain more than chance;
        and what it gains over the first way on left-out cases.
    """
    dice = compute_dice(counts)
    left_out = np.empty(counts.shape[1:], np.int64)
    for group in _split_cases(counts.shape[1]):
        best = np.delete(dice, group, axis=1).mean(axis=1).argmax() if counts.shape[1] > 1 else 0
        left_out[group] = counts[best, group]
    gain = estimate_difference(left_out[None, :, None], counts[:1, :, None], "dice", Resamples(counts.shape[1]))
    pays = gain.low is not None and gain.low > 0
    return int(dice.mean(axis=1).argmax()) if pays else 0, gain


def _count_classes(pred: NDArray[np.integer], target: NDArray[np.integer], classes: int) -> Counts:
    """Return the (F, 4) counts of each foreground class."""
    return np.array([count_overlap(pred, target, label) for label in range(1, classes)], np.int64)


def compute_reliability(parts: Iterable[tuple[Floats, NDArray[Any], NDArray[Any]]]) -> Floats:
    """Return the reliability diagram of the foreground probability.

    Args:
        parts: (n) probabilities, (n) how many voxels have each, and (n) how many of them are foreground.

    Returns:
        (RELIABILITY_BINS, 3): share of the voxels, mean probability and share of foreground of each bin; the last two
        are NaN in an empty one.
    """
    sums = np.zeros((3, RELIABILITY_BINS))
    for probability, number, foreground in parts:
        place = np.minimum((probability * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
        for row, values in enumerate((number, number * probability, foreground)):
            sums[row] += np.bincount(place, values, RELIABILITY_BINS)
    voxels, *rest = sums
    means = np.divide(rest, voxels, out=np.full((2, RELIABILITY_BINS), np.nan), where=voxels > 0)
    return np.stack([voxels / max(voxels.sum(), 1), *means], axis=1)


def compute_reliability_of_odds(histograms: Counts, scalings: Sequence[Scaling]) -> Floats:
    """Return the reliability diagram of two classes: (C, 2, B) counts of cases, and the scaling of each."""
    return compute_reliability(
        (special.expit(scaling.apply_to_odds(_CENTERS)), counts.sum(axis=0), counts[1])
        for counts, scaling in zip(histograms, scalings, strict=True)
    )


def compute_reliability_of_classes(counts: Counts, per_unit: int) -> Floats:
    """Return the reliability diagram (F, RELIABILITY_BINS, 3) of each class against all others.

    Args:
        counts: (F, 2, B) of all voxels together, see ``bin_log_odds``.
        per_unit: bins to a unit of asinh(log-odds).
    """
    centers = np.sinh((np.arange(counts.shape[-1]) + 0.5) / per_unit - LIMIT)
    return np.stack([compute_reliability([(special.expit(centers), own.sum(axis=0), own[1])]) for own in counts])


def compute_ece(reliability: Floats) -> float:
    """Return the expected calibration error of a reliability diagram: the mean distance of probability and truth."""
    share, probability, foreground = reliability.T
    return float(np.nansum(share * np.abs(probability - foreground)))


def fit_without_own(histograms: Counts) -> list[Scaling]:
    """Return for each case the scaling that is fitted to the other cases; with one case, it leaves all as it is."""
    scalings = [UNCHANGED] * len(histograms)
    if len(histograms) > 1:
        total = histograms.sum(axis=0)
        for group in _split_cases(len(histograms)):
            own = fit_scaling_to_odds(total - histograms[group].sum(axis=0))
            for case in group:
                scalings[case] = own
    return scalings


def _split_cases(cases: int) -> list[Counts]:
    """Return groups of cases, to be left out one after another."""
    return list(np.array_split(np.arange(cases), min(cases, GROUPS)))


def _resample_threshold(counts: Counts, rule: ThresholdRule) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of the threshold over resamples of the cases."""
    by_case = counts.reshape(len(counts), -1)
    cuts: list[int] = []
    for rows in Resamples(len(counts), number=THRESHOLD_RESAMPLES):
        for row in rows:
            cuts.append(choose_cut((row @ by_case).reshape(counts.shape[1:]), rule))
    low, high = np.quantile(EDGES[cuts], [0.025, 0.975])
    return float(low), float(high)
