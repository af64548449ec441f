from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from score_counts import as_counts, random_counts

from ssl_seg.scores.intervals import LEAST_CASES, NO_VARIATION, compute_score
from ssl_seg.studies.ablation.label_savings import LabelCount, Runs, _count, _invert, estimate_labels_equivalent
from ssl_seg.studies.ablation.stats import (
    PairedComparison,
    average_units,
    compare_paired,
    compute_case_values,
    compute_mean_squares,
    compute_spread,
    correct_holm,
)


class TestCaseValues:
    @pytest.mark.parametrize("metric", ["dice", "f1"])
    def test_case_values_have_the_score_as_their_mean(self, metric: Any) -> None:
        counts = random_counts((2, 9, 3))
        np.testing.assert_allclose(compute_case_values(counts, metric).mean(-1), compute_score(counts, metric))

    def test_pseudo_values_are_those_of_leaving_each_case_out(self) -> None:
        counts = random_counts((1, 8, 2), low=1)
        score = compute_score(counts, "f1")[0]
        left_out = np.array([compute_score(np.delete(counts, c, axis=1), "f1")[0] for c in range(8)])
        pseudo = 8 * score - 7 * left_out
        values = compute_case_values(counts, "f1")[0]
        np.testing.assert_allclose(values - values.mean(), pseudo - pseudo.mean(), atol=1e-12)
        # and their standard error is that of the jackknife
        jackknife = np.sqrt(7 / 8 * ((left_out - left_out.mean()) ** 2).sum())
        assert values.std(ddof=1) / np.sqrt(8) == pytest.approx(jackknife)


class TestComparison:
    def test_one_run_is_the_paired_t_test(self) -> None:
        first, second = np.random.default_rng(0).random((2, 20))
        own, theirs = compare_paired((first - second)[None]), stats.ttest_rel(first, second)
        assert own.p == pytest.approx(theirs.pvalue, rel=1e-9)
        assert (own.low, own.high) == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-9)
        assert own.units == 1

    def test_mean_squares_are_those_of_least_squares(self) -> None:
        """The sums of squares by the residuals of nested linear models."""
        table = np.random.default_rng(0).random((4, 6))
        run, case = np.repeat(np.eye(4), 6, axis=0), np.tile(np.eye(6), (4, 1))

        def residual(*columns: NDArray[Any]) -> float:
            design = np.hstack([np.ones((24, 1)), *columns])
            return float(((table.ravel() - design @ np.linalg.lstsq(design, table.ravel())[0]) ** 2).sum())

        squares = compute_mean_squares(table)
        assert squares.run == pytest.approx((residual() - residual(run)) / 3)
        assert squares.case == pytest.approx((residual() - residual(case)) / 5)
        assert squares.rest == pytest.approx(residual(run, case) / 15)

    def test_only_runs_differ(self) -> None:
        """All cases alike: a t test over the runs, as if there were one case."""
        runs = np.array([0.02, 0.05, 0.03])
        own = compare_paired(np.repeat(runs[:, None], 30, axis=1))
        assert own.p == pytest.approx(stats.ttest_1samp(runs, 0).pvalue, rel=1e-9)

    def test_less_than_nothing_between_cases_is_nothing(self) -> None:
        """What one run gains on a case the other loses: the mean square of the cases is below that of the rest."""
        runs, swings = np.array([[0.1], [0.3]]), np.tile([0.5, -0.5], 10)
        own = compare_paired(runs + np.stack([swings, -swings]))
        assert own.p == pytest.approx(stats.ttest_1samp(runs.ravel(), 0).pvalue, rel=1e-6)

    def test_only_cases_differ(self) -> None:
        """All runs alike: a t test over the cases."""
        cases = np.random.default_rng(0).normal(0.1, 0.2, 25)
        own = compare_paired(np.repeat(cases[None], 3, axis=0))
        assert own.p == pytest.approx(stats.ttest_1samp(cases, 0).pvalue, rel=1e-6)

    @given(st.integers(2, 6), st.integers(8, 20), st.integers(0, 1000))
    @settings(max_examples=40, deadline=None)
    def test_p_and_interval_agree(self, units: int, cases: int, seed: int) -> None:
        """An interval of level 1 - p ends at 0."""
        rng = np.random.default_rng(seed)
        table = rng.normal(0.3, 1, (units, 1)) + rng.normal(0, 1, cases) + rng.normal(0, 1, (units, cases))
        p = compare_paired(table).p
        again = compare_paired(table, level=1 - p)
        assert min(abs(again.low), abs(again.high)) == pytest.approx(0, abs=1e-6)

    def test_a_method_that_is_lucky_with_one_seed_is_not_significant(self) -> None:
        """One run of three is much better on every case; over the cases alone this is beyond doubt."""
        noise = np.random.default_rng(0).normal(0, 0.02, (3, 55))
        table = noise + np.array([[0.3], [0.0], [0.0]])
        assert stats.ttest_1samp(table.mean(axis=0), 0).pvalue < 1e-9
        assert compare_paired(table).p > 0.2

    @pytest.mark.parametrize(("runs", "cases"), [(1, 15), (1, 55), (3, 15), (3, 55), (9, 15), (9, 55)])
    @pytest.mark.parametrize("run_sd", [0.0, 0.3, 1.0])
    def test_null_effects_are_rarely_significant(self, runs: int, cases: int, run_sd: float) -> None:
        """500 nulls have a standard error of 1 point: 8 % would be 3 of them too many."""
        rng = np.random.default_rng(1000 * runs + cases)
        luck = run_sd if runs > 1 else 0.0  # of one run it cannot be told from the method
        tables = luck * rng.standard_normal((500, runs, 1)) + 0.7 * rng.standard_normal((500, 1, cases))
        tables = tables + 0.7 * rng.standard_normal((500, runs, cases))
        assert np.mean([compare_paired(table).p < 0.05 for table in tables]) <= 0.08

    def test_an_effect_is_found(self) -> None:
        """0.5 with sd 0.7 of cases and rest and 0.1 of runs: nearly always with 9 runs, mostly with 3."""
        rng = np.random.default_rng(0)
        for runs, least in ((3, 0.6), (9, 0.95)):
            tables = 0.5 + 0.1 * rng.standard_normal((200, runs, 1)) + 0.7 * rng.standard_normal((200, 1, 55))
            tables = tables + 0.7 * rng.standard_normal((200, runs, 55))
            assert np.mean([compare_paired(table).p < 0.05 for table in tables]) >= least

    def test_runs_of_a_split_count_once(self) -> None:
        values = np.arange(12.0).reshape(4, 3)
        np.testing.assert_array_equal(average_units(values, [5, 5, 5, 8]), [values[:3].mean(axis=0), values[3]])
        np.testing.assert_array_equal(average_units(values, [5, 5, 5, 5]), values)

    def test_no_difference_at_all(self) -> None:
        assert compare_paired(np.zeros((3, 9))) == PairedComparison(0.0, None, None, None, 3, 9, NO_VARIATION)

    @pytest.mark.parametrize("units", [1, 2, 3])
    def test_without_variation_there_is_no_p(self, units: int) -> None:
        """Equal differences, or units and cases of which each has the same mean, with rounding errors on top."""
        tables = [np.full((units, 12), 0.1), np.full((units, 12), 0.1) + 1e-16 * np.arange(12)]
        if units > 1:
            signs = np.resize([1.0, -1.0], units) if units % 2 == 0 else np.array([1.0, 0.0, -1.0])
            tables.append(0.1 + 0.3 * signs[:, None] * np.resize([1.0, -1.0], 12))
        for table in tables:
            found = compare_paired(table)
            assert (found.low, found.high, found.p, found.why) == (None, None, None, NO_VARIATION)
            assert found.difference == pytest.approx(0.1)

    @pytest.mark.parametrize("cases", [1, LEAST_CASES - 1, LEAST_CASES, LEAST_CASES + 1, 3 * LEAST_CASES])
    @pytest.mark.parametrize("units", [1, 3])
    def test_too_few_cases_have_no_p(self, units: int, cases: int) -> None:
        found = compare_paired(np.random.default_rng(0).normal(0.1, 0.2, (units, cases)))
        enough = cases >= LEAST_CASES
        assert [value is not None for value in (found.low, found.high, found.p)] == [enough] * 3
        assert found.why == ("" if enough else f"too few cases ({cases} < {LEAST_CASES})")


class TestHolm:
    def test_example(self) -> None:
        assert correct_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert correct_holm([0.5, 0.6]) == [1.0, 1.0]
        assert correct_holm([]) == []

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.999))
    def test_the_same_are_rejected_as_step_by_step(self, ps: list[float], alpha: float) -> None:
        rejected = set()
        for k, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
            if ps[index] * (len(ps) - k) > alpha:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(correct_holm(ps)) if p <= alpha} == rejected


class TestSpread:
    def test_closed_form_of_a_balanced_design(self) -> None:
        scores = np.array([[0.5, 0.6, 0.7], [0.8, 0.8, 0.9], [0.4, 0.5, 0.3]])
        spread = compute_spread(scores.ravel().tolist(), [0, 0, 0, 1, 1, 1, 2, 2, 2])
        within = scores.var(axis=1, ddof=1).mean()
        assert spread.seed == pytest.approx(np.sqrt(within))
        assert spread.split == pytest.approx(np.sqrt(scores.mean(axis=1).var(ddof=1) - within / 3))
        assert spread.total == pytest.approx(scores.std(ddof=1))
        assert not spread.truncated

    def test_an_unbalanced_design_is_unbiased(self) -> None:
        rng, splits = np.random.default_rng(0), [0, 0, 0, 1, 1, 2]
        variances = []
        for _ in range(1500):
            scores = 0.3 * rng.standard_normal(3)[splits] + 0.1 * rng.standard_normal(6)
            spread = compute_spread(scores.tolist(), splits)
            variances.append((spread.split**2, spread.seed**2))
        assert np.mean(variances, axis=0) == pytest.approx([0.09, 0.01], rel=0.1)

    def test_less_than_nothing_between_splits_is_0_and_said(self) -> None:
        spread = compute_spread([0.4, 0.6, 0.41, 0.59], [0, 0, 1, 1])
        assert (spread.split, spread.truncated) == (0.0, True)

    def test_what_a_design_cannot_tell_is_none(self) -> None:
        one_seed = compute_spread([0.4, 0.6, 0.8], [0, 1, 2])
        assert (one_seed.total, one_seed.split, one_seed.seed) == (pytest.approx(0.2), None, None)
        one_split = compute_spread([0.4, 0.6, 0.8], [0, 0, 0])
        assert (one_split.total, one_split.split, one_split.seed) == (pytest.approx(0.2), None, pytest.approx(0.2))
        alone = compute_spread([0.4], [0])
        assert (alone.total, alone.split, alone.seed) == (None, None, None)


def runs(labeled: float, *dice: float, cases: int = 10) -> Runs:
    """Return runs with one Dice for all cases, each in its own unit."""
    return Runs(labeled, as_counts(np.repeat(np.array(dice)[:, None], cases, axis=1)), tuple(range(len(dice))))


class TestLabelsEquivalent:
    CURVE = (runs(10, 0.4), runs(100, 0.6), runs(1000, 0.7))

    def place(self, score: float, curve: tuple[Runs, ...] = CURVE) -> LabelCount:
        return estimate_labels_equivalent(curve, runs(50, score), "dice", resamples=20).value

    @pytest.mark.parametrize(
        ("score", "labels"), [(0.4, 10), (0.5, np.sqrt(1000)), (0.6, 100), (0.625, 100 * 10**0.25), (0.7, 1000)]
    )
    def test_the_logarithm_of_labels_is_interpolated(self, score: float, labels: float) -> None:
        found = self.place(score)
        assert (found.number, found.bound) == (pytest.approx(labels, rel=1e-6), "")

    def test_beyond_the_curve_is_said_and_not_extrapolated(self) -> None:
        assert str(self.place(0.39)) == "<= 10"
        assert str(self.place(0.71)) == ">= 1000"

    def test_a_curve_that_falls_is_made_monotone(self) -> None:
        curve = (runs(10, 0.4), runs(100, 0.7), runs(1000, 0.6))  # the last two become 0.65
        assert self.place(0.64, curve).number == pytest.approx(10 ** (1 + 0.24 / 0.25))
        assert self.place(0.65, curve).number == pytest.approx(100)  # the smallest with the score
        assert self.place(0.66, curve).bound == ">="

    @pytest.mark.parametrize("rounding", [-1e-12, 0.0, 1e-12])
    @pytest.mark.parametrize(("place", "expected"), [(0, "10"), (1, "100"), (2, "100"), (3, "1000")])
    def test_the_last_digits_of_a_score_do_not_matter(self, rounding: float, place: int, expected: str) -> None:
        """Equal points of the curve are one level, and a score on a level is neither below nor above it."""
        levels = np.array([0.4, 0.65, 0.65 + 1e-13, 0.7])
        found = _invert(np.log([10.0, 100.0, 500.0, 1000.0]), levels, levels[place] + rounding)
        assert str(_count(found, np.array([10.0, 1000.0]))) == expected

    def test_points_with_one_number_of_labels_are_one(self) -> None:
        assert self.place(0.4, (runs(10, 0.3), runs(10, 0.5), runs(100, 0.6))).number == pytest.approx(10)
        with pytest.raises(ValueError, match="at least 2"):
            self.place(0.4, (runs(10, 0.3), runs(10, 0.5)))

    def test_cases_and_runs_make_the_interval(self) -> None:
        rng = np.random.default_rng(0)
        easy = rng.normal(0, 0.1, 15)

        def make(labeled: float, level: float, seeds: int, luck: float, noise: float) -> Runs:
            dice = level + easy + luck * rng.standard_normal((seeds, 1)) + noise * rng.standard_normal((seeds, 15))
            return Runs(labeled, as_counts(np.clip(dice, 0, 1)), tuple(range(seeds)))

        def width(luck: float, noise: float, seeds: int = 3) -> float:
            curve = [make(n, 0.2 + 0.1 * np.log10(n), seeds, luck, noise) for n in (1, 10, 100, 1000)]
            found = estimate_labels_equivalent(curve, make(30, 0.35, seeds, luck, noise), "dice", resamples=400)
            return float(np.log10(found.high.number / found.low.number))

        assert width(0.0, 0.0) < 0.01  # the difficulty of the cases is the same for all: pairing takes it out
        assert width(0.0, 0.05) > 0.1
        assert width(0.02, 0.0) > 0.1

    def test_few_runs_are_widened_by_students_t(self) -> None:
        """Three runs and no other noise: 1 draw of 27 is the best run thrice, which is where the interval ends."""
        curve = [Runs(n, as_counts(np.full((3, 10), d)), (0, 1, 2)) for n, d in ((1, 0.1), (1000, 0.9))]
        found = estimate_labels_equivalent(curve, runs(50, 0.46, 0.48, 0.56), "dice")
        factor = stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975) * np.sqrt(3 / 2)
        expected = (0.5 + factor * 0.06 - 0.1) / 0.8 * 3
        assert np.log10(found.high.number) == pytest.approx(expected, abs=1e-3)

    def test_a_run_that_is_missing_in_an_arm_adds_nothing(self) -> None:
        curve = [Runs(n, as_counts(np.full((3, 10), d)), (0, 1, 2)) for n, d in ((1, 0.1), (1000, 0.9))]
        found = estimate_labels_equivalent(curve, Runs(50, as_counts(np.full((2, 10), 0.5)), (0, 2)), "dice")
        assert (found.low, found.high, found.why) == (None, None, NO_VARIATION)

    @pytest.mark.parametrize("cases", [1, LEAST_CASES - 1, LEAST_CASES, LEAST_CASES + 1, 3 * LEAST_CASES])
    def test_too_few_cases_have_no_interval(self, cases: int) -> None:
        levels = np.random.default_rng(0).normal(0, 0.05, (1, cases))
        first, second, target = (Runs(n, as_counts(d + levels), (0,)) for n, d in ((1, 0.2), (100, 0.8), (10, 0.5)))
        found = estimate_labels_equivalent([first, second], target, "dice", resamples=50)
        enough = cases >= LEAST_CASES
        assert [end is not None for end in (found.low, found.high)] == [enough] * 2
        assert found.why == ("" if enough else f"too few cases ({cases} < {LEAST_CASES})")
        assert found.value.number == pytest.approx(10, rel=1e-3)

    @pytest.mark.parametrize("block", [1, 12 * 7 - 1, 12 * 7, 12 * 7 + 1, 12 * 90])
    @pytest.mark.parametrize("metric", ["dice", "f1"])
    def test_the_size_of_the_blocks_changes_nothing(
        self, block: int, metric: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rng = np.random.default_rng(0)
        *curve, target = (
            Runs(n, as_counts(rng.normal(d, 0.08, (2, 12))), (0, 1)) for n, d in ((1, 0.2), (100, 0.8), (10, 0.5))
        )
        expected = estimate_labels_equivalent(curve, target, metric, resamples=30)
        monkeypatch.setattr("ssl_seg.scores.intervals.BLOCK", block)
        found = estimate_labels_equivalent(curve, target, metric, resamples=30)
        for one, other in ((found.low, expected.low), (found.high, expected.high)):
            assert (one.number, one.bound) == (pytest.approx(other.number), other.bound)

    def test_ends_of_the_interval_are_cut(self) -> None:
        rng = np.random.default_rng(0)
        noisy = [
            Runs(n, as_counts(np.clip(level + rng.normal(0, 0.2, (1, 15)), 0, 1)), (0,))
            for n, level in ((10, 0.45), (100, 0.5), (50, 0.48))
        ]
        found = estimate_labels_equivalent(noisy[:2], noisy[2], "dice")
        assert (str(found.low), str(found.high)) == ("<= 10", ">= 100")

    def test_the_same_for_pooled_f1(self) -> None:
        found = estimate_labels_equivalent(self.CURVE, runs(50, 0.5), "f1", resamples=20)
        assert found.value.number == pytest.approx(np.sqrt(1000), rel=1e-3)

    def test_coverage(self) -> None:
        """The interval is on the safe side: 20 labels are inside in at least 93 % of 80 samples."""
        rng, inside = np.random.default_rng(0), 0
        for seed in range(80):
            easy = rng.normal(0, 1, 15)

            def make(n: float, easy: NDArray[Any] = easy) -> Runs:
                luck = 0.2 * rng.standard_normal((3, 1)) + 0.4 * rng.standard_normal((3, 15))
                return Runs(n, as_counts(1 / (1 + np.exp(-(0.8 * np.log(n / 12) + easy + luck)))), (0, 1, 2))

            found = estimate_labels_equivalent(
                [make(n) for n in (4, 12, 36, 100)], make(20), "dice", resamples=200, seed=seed
            )
            low, high = found.low, found.high
            inside += (low.bound == "<=" or low.number <= 20) and (high.bound == ">=" or high.number >= 20)
        assert inside / 80 >= 0.93


def test_runs_that_are_alike_make_no_error() -> None:
    """Collapsed arms predict one constant in all runs: the variance of runs is rounding then."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        row = rng.normal(0.1, 0.1, 30)
        alike = compare_paired(np.tile(row, (3, 1)))
        assert alike.p == pytest.approx(float(stats.ttest_1samp(row, 0.0).pvalue), rel=1e-6)
        for noise in (1e-12, 1e-9, 1e-7):
            table = np.tile(row, (3, 1))
            table[0] += noise * rng.normal(size=30)
            assert compare_paired(table).p == pytest.approx(alike.p, rel=1e-2)
