from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.scores import calibration
from ssl_seg.scores.calibration import (
    HALF,
    UNCHANGED,
    Scaling,
    ThresholdRule,
    bin_log_odds,
    calibrate_classes,
    choose_threshold,
    compute_ece,
    compute_reliability,
    compute_reliability_of_odds,
    count_at_cuts,
    find_edge,
    find_half,
    fit_scaling,
    fit_scaling_to_odds,
    fit_without_own,
    take_logs,
    to_probability,
)
from ssl_seg.scores.metrics import ConfusionCounts, compute_dice, count_overlap

Case = tuple[NDArray[Any], NDArray[Any]]


def as_probs(odds: NDArray[Any]) -> NDArray[np.float32]:
    probability = special.expit(odds)
    return np.stack([1 - probability, probability]).astype(np.float32)


def make_cases(
    number: int = 12, voxels: int = 4000, shift: float = 0.0, scale: float = 1.0, seed: int = 0
) -> list[Case]:
    """Return cases whose probabilities are right, but for a shift and a scale of their log-odds."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(number):
        odds = rng.normal(-1.5, 2.0, voxels)
        cases.append((as_probs(scale * odds + shift), (rng.random(voxels) < special.expit(odds)).astype(np.int64)))
    return cases


def bin_cases(cases: list[Case]) -> NDArray[np.int64]:
    return np.stack([bin_log_odds(probs, target) for probs, target in cases])


class TestHistograms:
    @given(st.integers(0, 2**32 - 1))
    def test_the_middle_edge_is_the_likelier_class(self, seed: int) -> None:
        """Also for equal probabilities, which argmax calls background."""
        rng = np.random.default_rng(seed)
        probs = as_probs(rng.choice([0.0, 1e-3, -1e-3, 40.0, -40.0, 300.0, -300.0], 200) * rng.random(200).round())
        target = rng.integers(0, 2, 200)
        counts = count_at_cuts(bin_log_odds(probs, target))[HALF]
        assert ConfusionCounts(*map(int, counts)) == count_overlap(probs.argmax(axis=0), target)

    def test_what_is_ignored_or_not_finite_is_left_out(self) -> None:
        probs, target = as_probs(np.array([1.0, 2.0, 3.0, np.nan])), np.array([0, 1, IGNORE_INDEX, 1])
        assert bin_log_odds(probs, target).sum(axis=1).tolist() == [1, 1]

    def test_the_ends_call_everything_and_nothing_foreground(self) -> None:
        counts = count_at_cuts(bin_cases(make_cases(3)))
        assert (counts[:, 0, 2:] == 0).all()
        assert (counts[:, -1, :2] == 0).all()


class TestThreshold:
    def test_the_highest_f1_is_that_of_all_thresholds(self) -> None:
        cases = make_cases(8, 500, shift=-1.53)
        probs, target = (np.concatenate(column, axis=-1) for column in zip(*cases, strict=True))
        expected = max(f1_score(target, probs[1] > t) for t in np.linspace(0.005, 0.995, 199))
        chosen = choose_threshold(bin_cases(cases), ThresholdRule())
        assert chosen.f1 == chosen.best_f1 == pytest.approx(expected, abs=0.01)
        found = f1_score(target, probs[1] > to_probability(chosen.log_odds))
        assert found == pytest.approx(chosen.f1, abs=0.002)
        assert chosen.f1_at_half == pytest.approx(f1_score(target, probs[1] > 0.5))

    def test_shifted_log_odds_come_back(self) -> None:
        """A shift of 1.53 was reported; the threshold follows it, and F1 is that without the shift."""
        plain, shifted = (choose_threshold(bin_cases(make_cases(shift=s)), ThresholdRule()) for s in (0.0, -1.53))
        assert shifted.f1 == pytest.approx(plain.f1, abs=0.01)
        assert shifted.f1_at_half < plain.f1_at_half - 0.1
        assert plain.log_odds - shifted.log_odds == pytest.approx(1.53, abs=0.25)
        assert shifted.low <= shifted.log_odds <= shifted.high
        assert shifted.is_shown

    def test_a_gain_of_one_case_is_no_gain(self) -> None:
        """One odd case asks for another threshold; left out of the choice, it gains nothing."""
        cases = make_cases(11, shift=0.0)
        histograms = bin_cases([*cases, *make_cases(1, 20_000, shift=-4.0, seed=9)])
        chosen = choose_threshold(histograms, ThresholdRule())
        assert chosen.f1 > chosen.f1_at_half
        assert not chosen.is_shown

    def test_few_cases_show_nothing(self) -> None:
        chosen = choose_threshold(bin_cases(make_cases(5, shift=-1.53)), ThresholdRule())
        assert (chosen.gain.low, chosen.gain.why) == (None, "too few cases (5 < 8)")
        assert not chosen.is_shown

    def test_one_case_is_judged_by_itself(self) -> None:
        assert choose_threshold(bin_cases(make_cases(1)), ThresholdRule()).f1 > 0

    @pytest.mark.parametrize(("target", "least"), [("precision", 0.8), ("recall", 0.9)])
    def test_a_bound_is_kept_and_the_other_as_high_as_it_can_be(self, target: Any, least: float) -> None:
        histograms = bin_cases(make_cases())
        chosen = choose_threshold(histograms, ThresholdRule(target, least))
        pooled = [ConfusionCounts(*map(int, row)) for row in count_at_cuts(histograms.sum(axis=0))]
        other = "recall" if target == "precision" else "precision"
        at = min(pooled, key=lambda o: abs(o.dice - chosen.f1))
        assert getattr(at, target) >= least
        assert getattr(at, other) == max(getattr(o, other) for o in pooled if getattr(o, target) >= least and o.tp)

    def test_prevalence_predicts_as_much_as_there_is(self) -> None:
        cases = make_cases(shift=1.0)
        chosen = choose_threshold(bin_cases(cases), ThresholdRule("prevalence"))
        cut = to_probability(chosen.log_odds)
        predicted, true = sum((p[1] > cut).sum() for p, _ in cases), sum(t.sum() for _, t in cases)
        assert predicted == pytest.approx(true, rel=0.01)

    @pytest.mark.parametrize("cases", [1, 2, 3])
    def test_a_bound_that_only_all_cases_together_reach_is_kept(self, cases: int) -> None:
        """The last case has all the voxels that are easy to find; without it no cut is so precise."""
        blind = bin_log_odds(as_probs(np.zeros(100)), np.tile([0, 1], 50))
        sharp = bin_log_odds(as_probs(np.repeat([-5.0, 5.0], 500)), np.repeat([0, 1], 500))
        histograms = np.stack([*[blind] * (cases - 1), sharp])
        chosen = choose_threshold(histograms, ThresholdRule("precision", 0.95))
        tp, fp, _, _ = count_at_cuts(histograms.sum(axis=0))[find_edge(chosen.log_odds)]
        assert tp / (tp + fp) >= 0.95

    def test_a_bound_out_of_reach_is_named(self) -> None:
        target = np.tile([0, 1], 50)
        blind = np.stack([bin_log_odds(as_probs(np.zeros(100)), target)] * 8)
        with pytest.raises(ValueError, match=r"no threshold has a precision of 0.9: the best one has 0.500"):
            choose_threshold(blind, ThresholdRule("precision", 0.9))


class TestScaling:
    def test_it_is_logistic_regression(self) -> None:
        probs, target = make_cases(1, 5000, shift=-1.0, scale=2.0)[0]
        logs = take_logs(probs).T
        odds = (logs[:, 1] - logs[:, 0]).astype(np.float64)
        oracle = LogisticRegression(C=1e9, tol=1e-8).fit(odds[:, None], target)
        found = fit_scaling(logs, target)
        assert 1 / found.temperature == pytest.approx(oracle.coef_[0, 0], rel=1e-3)
        assert found.biases == pytest.approx((0.0, oracle.intercept_[0]), abs=1e-3)
        binned = fit_scaling_to_odds(bin_log_odds(probs, target))
        assert binned.temperature == pytest.approx(found.temperature, rel=0.01)
        assert binned.biases == pytest.approx(found.biases, abs=0.01)

    def test_weights_are_repetitions(self) -> None:
        probs, target = make_cases(1, 300)[0]
        logs = take_logs(probs).T
        times = np.random.default_rng(1).integers(0, 4, 300)
        repeated = fit_scaling(np.repeat(logs, times, axis=0), np.repeat(target, times))
        assert fit_scaling(logs, target, times).temperature == pytest.approx(repeated.temperature, rel=1e-3)

    def test_a_network_without_an_error_keeps_a_finite_temperature(self) -> None:
        target = np.tile([0, 1], 100)
        found = fit_scaling(take_logs(as_probs(20.0 * target - 10)).T, target)
        assert 0.01 < found.temperature < 100

    def test_probabilities_stay_probabilities(self) -> None:
        probs = np.random.default_rng(0).dirichlet(np.ones(3), (4, 5)).transpose(2, 0, 1).astype(np.float32)
        probs[:, 0, 0] = np.nan
        probs[:, 0, 1] = (1, 0, 0)
        found = Scaling(2.0, (0.0, 1.0, -1.0)).apply(probs)
        assert np.isnan(found[:, 0, 0]).all()
        assert found.reshape(3, -1)[:, 1:].sum(axis=0) == pytest.approx(1, abs=1e-5)
        weights = probs[:, 2, 2] ** 0.5 * np.exp([0.0, 1.0, -1.0])
        assert found[:, 2, 2] == pytest.approx(weights / weights.sum(), rel=1e-4)
        np.testing.assert_allclose(Scaling(1.0, (0.0, 0.0, 0.0)).apply(probs), probs, atol=1e-6)


@pytest.mark.parametrize("cases", [1, 2, 19, 20, 21, 65])
def test_each_case_is_left_out_once(cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In at most 20 groups, each of which is fitted without its own cases."""
    fitted: list[int] = []
    monkeypatch.setattr(
        calibration, "fit_scaling_to_odds", lambda counts: fitted.append(int(counts[0, 0])) or UNCHANGED
    )
    histograms = np.zeros((cases, 2, calibration.BINS), np.int64)
    histograms[:, 0, 0] = 2 ** np.arange(cases, dtype=object) if cases < 60 else 1
    fit_without_own(histograms)
    assert len(fitted) == (0 if cases == 1 else min(cases, 20))
    whole = int(histograms[:, 0, 0].sum())
    assert sum(whole - own for own in fitted) == (0 if cases == 1 else whole)


class TestReliability:
    def test_the_error_is_that_of_the_voxels(self) -> None:
        cases = make_cases(4, shift=-1.53)
        found = compute_ece(compute_reliability_of_odds(bin_cases(cases), [UNCHANGED] * 4))
        probability = np.concatenate([probs[1] for probs, _ in cases])
        target = np.concatenate([target for _, target in cases])
        place = np.minimum((probability * 15).astype(int), 14)
        parts = [(place == b) for b in range(15) if (place == b).any()]
        oracle = sum(p.mean() * abs(probability[p].mean() - target[p].mean()) for p in parts)
        assert found == pytest.approx(oracle, abs=0.005)

    def test_scaling_mends_left_out_cases(self) -> None:
        histograms = bin_cases(make_cases(30, shift=-1.53, scale=1.5))
        before = compute_ece(compute_reliability_of_odds(histograms, [UNCHANGED] * 30))
        after = compute_ece(compute_reliability_of_odds(histograms, fit_without_own(histograms)))
        assert after < before / 5

    def test_a_case_does_not_fit_its_own_scaling(self) -> None:
        histograms = bin_cases([*make_cases(3), *make_cases(1, shift=3.0, seed=5)])
        alone = fit_scaling_to_odds(histograms[:3])
        assert fit_without_own(histograms)[3] == alone
        assert fit_without_own(histograms[:1]) == [UNCHANGED]


class TestHalf:
    def test_a_shift_is_brought_back(self) -> None:
        histograms = bin_cases(make_cases(30, shift=-1.53, scale=1.5))
        assert find_half(histograms, fit_scaling_to_odds(histograms)) == pytest.approx(-1.53, abs=0.05)

    def test_what_is_always_unlikely_is_cut_as_the_network_does(self) -> None:
        """Where it is foreground in at most 1 of 5 cases, the likelier class is background everywhere."""
        rng = np.random.default_rng(0)
        odds = rng.uniform(-6, -1.4, (10, 4000))
        target = (rng.random(odds.shape) < special.expit(odds)).astype(np.int64)
        histograms = bin_cases([(as_probs(o + 3), t) for o, t in zip(odds, target, strict=True)])
        scaling = fit_scaling_to_odds(histograms)
        assert scaling.apply_to_odds(np.array(1.6)) < 0
        assert find_half(histograms, scaling) == 0.0
        assert compute_dice(count_at_cuts(histograms.sum(axis=0)))[HALF] > 0


class TestClasses:
    @staticmethod
    def make(biases: tuple[float, ...], number: int = 12) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """Return log-probabilities that are right, but for biases."""
        rng = np.random.default_rng(0)
        logs, targets = [], []
        for _ in range(number):
            true = special.log_softmax(rng.normal(0, 2, (1000, 3)), axis=1)
            targets.append((np.exp(true).cumsum(axis=1) > rng.random((1000, 1))).argmax(axis=1))
            logs.append(special.log_softmax(true + np.array(biases), axis=1).astype(np.float32))
        return logs, targets

    def test_biases_that_pay_are_found(self) -> None:
        scaling, gain, _ = calibrate_classes(*self.make((0.0, -2.0, 1.0)))
        assert gain.low is not None
        assert gain.low > 0
        assert scaling.biases == pytest.approx((0.0, 2.0, -1.0), abs=0.1)
        assert scaling.temperature == pytest.approx(1.0, abs=0.05)

    def test_one_case_is_fitted_by_no_other(self) -> None:
        scaling, _, (before, after) = calibrate_classes(*self.make((0.0, -2.0, 1.0), number=1))
        assert scaling == Scaling(1.0, (0.0, 0.0, 0.0))
        np.testing.assert_array_equal(before, after)

    def test_what_is_measured_is_what_is_kept(self) -> None:
        """Too sure, and without bias: the temperature alone is kept, and mends the calibration of left-out cases."""
        logs, targets = self.make((0.0, 0.0, 0.0))
        sure = [special.log_softmax(2 * own, axis=1) for own in logs]
        scaling, _, (before, after) = calibrate_classes(sure, targets)
        assert (scaling.temperature, scaling.biases) == (pytest.approx(2.0, abs=0.1), (0.0, 0.0, 0.0))
        kept = [(1 - p[0], np.ones(p.shape[1]), t > 0) for o, t in zip(sure, targets, strict=True)
                for p in (scaling.apply(np.exp(o).T),)]  # fmt: skip
        assert compute_ece(after) == pytest.approx(compute_ece(compute_reliability(kept)), abs=2e-3)
        assert compute_ece(after) < compute_ece(before) / 3

    def test_biases_that_do_not_pay_are_left_out(self) -> None:
        scaling, gain, (before, after) = calibrate_classes(*self.make((0.0, 0.0, 0.0)))
        assert gain.low is None or gain.low <= 0
        assert scaling.biases == (0.0, 0.0, 0.0)
        assert compute_ece(after) == pytest.approx(compute_ece(before), abs=0.01)
