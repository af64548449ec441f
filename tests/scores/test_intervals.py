from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from score_counts import as_counts, random_counts

from ssl_seg.scores.intervals import (
    LEAST_CASES,
    NO_FOREGROUND,
    NO_VARIATION,
    Estimate,
    Floats,
    Resamples,
    compute_class_scores,
    compute_score,
    estimate_difference,
    estimate_margin,
    estimate_mean,
)
from ssl_seg.scores.metrics import ConfusionCounts, compute_case_dice, compute_trivial_f1, sum_overlaps


class TestAbsentClasses:
    def test_a_class_in_no_mask_is_in_no_mean(self) -> None:
        """The first network finds less of class 1 and one false voxel each of the others, which are nowhere."""
        worse = np.array([[[[80, 0, 20, 0], [0, 0, 0, 100], [0, 0, 0, 100]]] * 8])
        better = np.array([[[[95, 0, 5, 0], [0, 1, 0, 99], [0, 1, 0, 99]]] * 8])
        assert compute_score(worse, "f1") == pytest.approx(160 / 180)
        assert compute_score(better, "f1") == pytest.approx(190 / 195)
        assert estimate_difference(better, worse, "f1", Resamples(8)).value > 0

    def test_without_any_class_it_is_any_foreground(self) -> None:
        nothing = np.zeros((1, 2, 3, 4), np.int64)
        assert compute_score(nothing, "f1") == 1.0
        assert compute_score(np.array([[[[0, 1, 0, 0], [0, 0, 0, 1]], [[0, 0, 0, 1], [0, 0, 0, 1]]]]), "f1") == 0.0

    def test_within_a_case_the_classes_of_mask_and_prediction_count(self) -> None:
        case = np.array([[5, 5, 5, 85], [0, 0, 0, 100], [0, 3, 0, 97], [0, 0, 0, 100]])
        assert compute_case_dice(case) == pytest.approx((0.5 + 0.0) / 2)
        assert compute_case_dice(case[1::2]) == 1.0

    def test_a_resample_without_a_class_says_nothing_about_it(self) -> None:
        """Class 1 is found equally well everywhere, class 2 in one case: leaving it out must not look like a gain."""
        counts = np.zeros((1, 12, 2, 4), np.int64)
        counts[..., 0, :] = (80, 20, 20, 0)
        counts[0, :, 0, 0] += np.arange(12)
        counts[0, 0, 1] = (5, 50, 50, 0)
        found = estimate_mean(counts, "f1", Resamples(12))
        assert found.low is not None
        assert found.high is not None
        assert found.high - found.low < 0.05

    def test_resamples_of_rare_classes_are_those_of_a_loop(self) -> None:
        """Classes in 2 and 3 of 9 cases, both in one: a tenth of the resamples has neither, many have one."""
        counts = random_counts((1, 9, 2), low=1)
        counts[0, 2:, 0, ::2] = counts[0, [0, 1, 4, 5, 6, 7, 8], 1, ::2] = 0
        top, bottom = 2.0 * counts[0, ..., 0], 2.0 * counts[0, ..., 0] + counts[0, ..., 1] + counts[0, ..., 2]
        there, own = counts[0, ..., [0, 2]].any(axis=0), top.sum(axis=0) / bottom.sum(axis=0)

        def deviate(w: NDArray[Any]) -> tuple[float, float] | None:
            used = [k for k in range(2) if (w * there[:, k]).any()]
            if not used:
                return None
            ratios = {k: (w @ top[:, k]) / (w @ bottom[:, k]) for k in used}
            moved = sum((top[:, k] - ratios[k] * bottom[:, k]) / (w @ bottom[:, k]) for k in used) / len(used)
            return float(np.mean([ratios[k] - own[k] for k in used])), float(np.sqrt(9 / 8 * (w * moved**2).sum()))

        weights = Resamples(9, number=200, seed=1)
        _, error = deviate(np.ones(9))
        drawn = [found for w in np.asarray(weights) if (found := deviate(w))]
        assert len(drawn) < 200
        low, high = np.quantile([d / max(e, 0.3 * error) for d, e in drawn], [0.975, 0.025])
        found = estimate_mean(counts, "f1", weights)
        assert (found.low, found.high) == pytest.approx((own.mean() - error * low, own.mean() - error * high))

    def test_scores_of_classes(self) -> None:
        counts = np.array([[[5, 5, 5, 0], [0, 1, 0, 9]], [[0, 0, 0, 9], [0, 0, 0, 9]], [[10, 0, 0, 0], [0, 0, 0, 9]]])
        np.testing.assert_allclose(compute_class_scores(counts, "dice"), [0.75, np.nan])
        np.testing.assert_allclose(compute_class_scores(counts, "f1"), [30 / 40, np.nan])


class TestTooFewCases:
    @pytest.mark.parametrize("metric", ["dice", "f1"])
    @pytest.mark.parametrize("cases", [1, LEAST_CASES - 1, LEAST_CASES, LEAST_CASES + 1, 3 * LEAST_CASES])
    def test_there_is_an_interval_from_the_least_number_on(self, metric: Any, cases: int) -> None:
        dice = np.random.default_rng(cases).random((2, 1, cases))
        first, second = as_counts(dice)
        weights = Resamples(cases)
        for found in (
            estimate_mean(first, metric, weights),
            estimate_difference(first, second, metric, weights),
            estimate_margin(first[0]),
        ):
            enough = cases >= LEAST_CASES
            assert (found.low is not None, found.high is not None) == (enough, enough)
            assert found.why == ("" if enough else f"too few cases ({cases} < {LEAST_CASES})")
        assert estimate_mean(first, metric, weights).value == pytest.approx(dice[0].mean(), abs=1e-4)

    @pytest.mark.parametrize("metric", ["dice", "f1"])
    def test_equal_scores_have_no_interval(self, metric: Any) -> None:
        same, weights = as_counts(np.full((2, 15), 0.7)), Resamples(15)
        assert estimate_mean(same, metric, weights) == Estimate(pytest.approx(0.7), None, None, NO_VARIATION)
        assert estimate_difference(same, same, metric, weights) == Estimate(0.0, None, None, NO_VARIATION)


class TestBlocks:
    @pytest.mark.parametrize("block", [1, 12 * 7 - 1, 12 * 7, 12 * 7 + 1, 12 * 30, 12 * 90])
    def test_the_size_of_the_blocks_changes_nothing(self, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """29, 30 and 31 rows in blocks of 1, 6, 7, 30 and more."""
        counts = random_counts((12, 2), low=1)
        expected = [(np.asarray(Resamples(12, number=n)), estimate_margin(counts, resamples=n)) for n in (29, 30, 31)]
        monkeypatch.setattr("ssl_seg.scores.intervals.BLOCK", block)
        for n, (rows, margin) in zip((29, 30, 31), expected, strict=True):
            np.testing.assert_array_equal(np.asarray(Resamples(12, number=n)), rows)
            found = estimate_margin(counts, resamples=n)
            assert (found.low, found.high) == pytest.approx((margin.low, margin.high), abs=1e-12)

    def test_many_cases_take_little_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ssl_seg.scores.intervals.BLOCK", 2**16)
        counts = random_counts((5_000, 1), low=1)
        tracemalloc.start()
        estimate_margin(counts, resamples=200)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8e6  # all rows at once take 8 MB for each of several arrays


class TestScore:
    def test_dice_is_the_mean_of_the_dice_of_each_case_and_class(self) -> None:
        counts = random_counts((3, 7, 2))
        for run, score in zip(counts, compute_score(counts, "dice"), strict=True):
            cases = [[ConfusionCounts(*map(int, c)) for c in case] for case in run]
            found = [[o.dice for o in case if o.tp + o.fp + o.fn] for case in cases]
            expected = np.mean([np.mean(dice) if dice else 1.0 for dice in found])
            assert score == pytest.approx(expected, abs=1e-12)

    def test_f1_is_the_mean_over_classes_of_pooled_dice(self) -> None:
        counts = random_counts((3, 7, 2))
        for run, score in zip(counts, compute_score(counts, "f1"), strict=True):
            pooled = [sum_overlaps([ConfusionCounts(*map(int, case[k])) for case in run]).dice for k in range(2)]
            assert score == pytest.approx(np.mean(pooled), abs=1e-12)

    def test_nothing_to_find_and_nothing_found_is_1(self) -> None:
        counts = np.array([[[[0, 0, 0, 9]], [[0, 3, 0, 6]]]])
        assert compute_score(counts, "dice") == 0.5  # the second case has found something that is not there
        np.testing.assert_array_equal(compute_case_dice(counts), [[1.0, 0.0]])
        assert compute_score(counts, "f1") == 0.0
        assert compute_score(counts[:, :1], "f1") == 1.0


class TestIntervals:
    def test_resamples_are_those_of_scipy(self) -> None:
        values = np.random.default_rng(0).random(12)
        weights = np.asarray(Resamples(12, number=500, seed=3))
        assert (weights.sum(axis=1) == 12).all()
        theirs = stats.bootstrap((values,), np.mean, n_resamples=500, rng=np.random.default_rng(3), method="percentile")
        np.testing.assert_allclose(np.sort(weights @ values / 12), np.sort(theirs.bootstrap_distribution), atol=1e-12)

    @pytest.mark.parametrize("metric", ["dice", "f1"])
    def test_bootstrap_t_is_that_of_a_loop(self, metric: Any) -> None:
        """The loop resamples cases themselves; its errors are those of the linearized score, by finite differences."""
        counts = random_counts((2, 10, 2), low=1)
        weights = Resamples(10, number=60, seed=1)

        def score(w: NDArray[Any]) -> float:
            tp, fp, fn = (counts[..., i].astype(float) for i in range(3))
            dice = compute_case_dice(counts)[..., None]
            top, bottom = (2 * tp, 2 * tp + fp + fn) if metric == "f1" else (dice, np.ones_like(dice))
            return float(np.mean(np.einsum("c,rck->rk", w, top) / np.einsum("c,rck->rk", w, bottom)))

        def error(w: NDArray[Any]) -> float:
            step = 1e-6
            slopes = [
                (score(w + step * np.eye(10)[c]) - score(w - step * np.eye(10)[c])) / (2 * step) for c in range(10)
            ]
            return float(np.sqrt(10 / 9 * (w * np.square(slopes)).sum()))

        value, own = score(np.ones(10)), error(np.ones(10))
        t = [(score(w) - value) / max(error(w), 0.3 * own) for w in np.asarray(weights).astype(float)]
        high, low = np.quantile(t, [0.025, 0.975])
        estimate = estimate_mean(counts, metric, weights)
        assert estimate.value == pytest.approx(value)
        assert (estimate.low, estimate.high) == pytest.approx((value - low * own, value - high * own), abs=1e-6)

    def test_the_difference_is_paired(self) -> None:
        """Cases differ much, methods by the same nearly everywhere: the difference is certain, the means are not."""
        easy, noise = np.random.default_rng(0).uniform((0.1, 0.0), (0.8, 1e-4), (15, 2)).T[:, None]
        first, second, weights = as_counts(easy + 0.1 + noise), as_counts(easy), Resamples(15)
        mean = estimate_mean(first, "dice", weights)
        difference = estimate_difference(first, second, "dice", weights)
        assert difference.value == pytest.approx(0.1, abs=2e-4)
        assert mean.high - mean.low > 0.15
        assert difference.high - difference.low < 1e-3

    def test_the_difference_holds_the_interval_of_student(self) -> None:
        rng = np.random.default_rng(2)
        first, second = rng.random((2, 15))
        estimate = estimate_difference(as_counts(first[None]), as_counts(second[None]), "dice", Resamples(15))
        theirs = stats.ttest_rel(first, second).confidence_interval()
        assert estimate.low <= theirs.low + 1e-5
        assert estimate.high >= theirs.high - 1e-5

    @pytest.mark.parametrize("metric", ["dice", "f1"])
    def test_ends_are_possible(self, metric: Any) -> None:
        nearly = as_counts(np.array([[1.0] * 14 + [0.2]]))
        assert estimate_mean(nearly, metric, Resamples(15)).high <= 1.0

    def test_resamples_without_the_one_case_that_differs_do_not_make_it_endless(self) -> None:
        """A third of the resamples have a standard error of 0."""
        own = estimate_mean(as_counts(np.array([[0.5] * 14 + [0.9]])), "dice", Resamples(15))
        assert 0.3 < own.low < own.value < own.high < 0.9

    @pytest.mark.parametrize("cases", [15, 30, 60])
    def test_coverage_where_the_percentile_interval_fails(self, cases: int) -> None:
        """A smaller copy of scripts/check_ablation_stats.py: 400 samples have a standard error of 1.1 points."""
        rng = np.random.default_rng(cases)
        covered = np.zeros(2)
        for seed in range(400):
            dice = rng.beta(4, 0.6, cases)
            weights = Resamples(cases, number=300, seed=seed)
            own = estimate_mean(as_counts(dice[None]), "dice", weights)
            plain = np.quantile(np.asarray(weights) @ dice / cases, [0.025, 0.975])
            covered += [own.low <= 4 / 4.6 <= own.high, plain[0] <= 4 / 4.6 <= plain[1]]
        assert 0.93 <= covered[0] / 400 <= 0.975
        assert covered[1] < covered[0]

    def test_coverage_of_a_difference_of_mostly_equal_cases(self) -> None:
        rng = np.random.default_rng(0)
        covered = 0
        for seed in range(400):
            easy = rng.random(15)
            other = np.where(rng.random(15) < 0.7, easy, rng.random(15))
            pair = as_counts(stats.beta.ppf([easy, other], [[8], [4]], [[2], [0.8]]))
            own = estimate_difference(pair[:1], pair[1:], "dice", Resamples(15, number=300, seed=seed))
            covered += own.low <= 0.8 - 4 / 4.8 <= own.high
        assert 0.93 <= covered / 400 <= 0.98


def draw_cases(
    n_cases: int, prevalence: float | Floats, recall: float, false_rate: float, seed: int = 0
) -> NDArray[Any]:
    """Return (C, 4) counts of cases of 1000 voxels."""
    rng = np.random.default_rng(seed)
    positive = rng.binomial(1000, np.broadcast_to(prevalence, n_cases))
    tp, fp = rng.binomial(positive, recall), rng.binomial(1000 - positive, false_rate)
    return np.stack([tp, fp, positive - tp, 1000 - positive - fp], axis=-1)


class TestMargin:
    def test_it_is_the_pooled_f1_minus_the_trivial_one(self) -> None:
        counts = draw_cases(20, 0.3, recall=0.8, false_rate=0.1)
        pooled = sum_overlaps([ConfusionCounts(*map(int, c)) for c in counts])
        found = estimate_margin(counts)
        assert found.value == pytest.approx(pooled.dice - compute_trivial_f1(pooled.prevalence), abs=1e-12)
        assert found.low < found.value < found.high

    def test_predicting_foreground_everywhere_has_no_margin_at_all(self) -> None:
        found = estimate_margin(draw_cases(20, 0.3, recall=1.0, false_rate=1.0))
        assert found == Estimate(0.0, None, None, NO_VARIATION)

    def test_a_perfect_prediction_has_all_the_margin_there_is(self) -> None:
        found = estimate_margin(draw_cases(20, 0.3, recall=1.0, false_rate=0.0))
        assert 0.5 < found.low <= found.value <= found.high < 0.6

    def test_a_random_prediction_is_below_trivial(self) -> None:
        assert estimate_margin(draw_cases(20, 0.3, recall=0.3, false_rate=0.3)).high < 0.0

    def test_it_follows_its_options(self) -> None:
        counts = draw_cases(10, 0.3, recall=0.8, false_rate=0.2)
        plain, other, few, again = (
            estimate_margin(counts, **options)  # type: ignore[arg-type]
            for options in ({}, {"seed": 1}, {"resamples": 20}, {"seed": 1})
        )
        assert other == again
        assert len({plain, other, few}) == 3

    def test_it_is_paired(self) -> None:
        """Prevalence varies between the cases: taken apart, the two F1 would give a far wider interval."""
        counts = draw_cases(20, np.repeat([0.05, 0.2, 0.5, 0.8], 5), recall=0.99, false_rate=0.98)
        found = estimate_margin(counts)
        own = estimate_mean(counts[None, :, None], "f1", Resamples(20))
        assert found.high - found.low < 0.1 * (own.high - own.low)

    def test_predicting_nothing_gains_nothing_from_resamples_without_foreground(self) -> None:
        """Two positive cases of ten: in a tenth of the resamples nothing is to be found, where it would score 1."""
        counts = np.array([[0, 0, 50, 50], [0, 0, 20, 80], *[[0, 0, 0, 100]] * 8])
        weights = np.asarray(Resamples(10))
        assert 0.08 < (weights[:, :2].sum(axis=1) == 0).mean() < 0.14
        found = estimate_margin(counts)
        assert found.low < found.value < 0.0

    def test_of_a_single_case_nothing_is_known(self) -> None:
        found = estimate_margin(np.array([[10, 5, 5, 80]]))
        assert (found.low, found.high, found.why) == (None, None, f"too few cases (1 < {LEAST_CASES})")
        assert found.value == pytest.approx(2 / 3 - 2 * 15 / 115)

    def test_without_foreground_there_is_no_margin(self) -> None:
        found = estimate_margin(np.array([[0, 0, 0, 100], [0, 10, 0, 90]]))
        assert found == Estimate(0.0, None, None, NO_FOREGROUND)
        with pytest.raises(ValueError, match="no case"):
            estimate_margin(np.zeros((0, 4), np.int64))

    def test_of_several_classes_it_is_the_mean_of_theirs(self) -> None:
        """Two classes that are taken for each other: as any foreground all is found, and nothing of each class."""
        counts = np.array([[[0, n, 2 * n, 100 - 3 * n], [0, 2 * n, n, 100 - 3 * n]] for n in range(1, 21)])
        found = estimate_margin(counts)
        first, second = (compute_trivial_f1(k * np.arange(1, 21).sum() / 2000) for k in (1, 2))
        assert found.value == pytest.approx(-(first + second) / 2)
        assert found.high is not None
        assert found.high < 0.0

    @pytest.mark.parametrize("cases", [8, 30])
    def test_coverage_where_most_masks_are_empty(self, cases: int) -> None:
        """A smaller copy of scripts/check_ablation_stats.py. A percentile interval covers 79 and 87 % here."""
        truth = estimate_margin(draw_mostly_empty(np.random.default_rng(0), 200_000), resamples=1).value
        rng = np.random.default_rng(cases)
        covered = drawn = 0
        for seed in range(300):
            counts = draw_mostly_empty(rng, cases)
            if not counts[:, [0, 2]].any():
                continue
            found = estimate_margin(counts, resamples=300, seed=seed)
            covered, drawn = covered + (found.low <= truth <= found.high), drawn + 1
        assert 0.90 <= covered / drawn <= 0.99


def draw_mostly_empty(rng: np.random.Generator, cases: int) -> NDArray[np.int64]:
    """Return (C, 4) counts of which four in five have nothing to find."""
    positive = np.round(np.where(rng.random(cases) < 0.8, 0.0, rng.beta(2, 6, cases)) * 100_000)
    tp, fp = np.round(rng.beta(6, 2, cases) * positive), np.round(0.3 * rng.beta(1, 10, cases) * (100_000 - positive))
    return np.stack([tp, fp, positive - tp, 100_000 - positive - fp], axis=-1).astype(np.int64)
