"""Average precision of voxels: that of scikit-learn, with ties, missing classes, ignored and broken voxels."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score

from ssl_seg.data.catalog import Catalog
from ssl_seg.data.store import CaseStore, WholeCase
from ssl_seg.inference.ensemble import score_cases
from ssl_seg.inference.scoring import Score, measure_ranking, measure_reliability, pack_cases, parse_cases, rank_voxels
from ssl_seg.labels import IGNORE_INDEX, Meaning
from ssl_seg.results.folds import join_scores
from ssl_seg.scores import calibration

LEVELS = np.array([0.0, 1e-30, 1e-6, 0.01, 0.25, 0.5, 0.75, 0.99, 1 - 1e-6, 1.0])
"""Probabilities that lie in bins of their own."""


def spread(own: NDArray[np.float64], label: int, classes: int) -> NDArray[np.float32]:
    """Probabilities (K,N), ``own`` those of the label, and the rest shared by the others."""
    probs = np.repeat(((1 - own) / (classes - 1))[None], classes, axis=0)
    probs[label] = own
    return probs.astype(np.float32)


def average_precision(probs: NDArray[np.floating], target: NDArray[Any], label: int) -> float | None:
    return measure_ranking(rank_voxels(probs, target))[label - 1]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ties_and_extremes_are_scikit_learns(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 4))
    label = data.draw(st.integers(1, classes - 1))
    drawn = st.tuples(st.sampled_from(range(len(LEVELS))), st.sampled_from([*range(classes), IGNORE_INDEX]))
    level, target = np.array(data.draw(st.lists(drawn, min_size=1, max_size=30))).T
    used = target != IGNORE_INDEX
    own = target[used] == label
    assume(own.any() and not own.all())
    found = average_precision(spread(LEVELS[level], label, classes), target, label)
    assert found == pytest.approx(average_precision_score(own, level[used]), abs=1e-9)


@pytest.mark.parametrize("sharpness", [0.3, 1, 4, 15])
def test_bins_hardly_matter(sharpness: float) -> None:
    """The sharpest outputs differ only beyond the digits of 1 - p."""
    rng = np.random.default_rng(0)
    target = (rng.random(20_000) < 0.1).astype(int)
    odds = sharpness * (rng.normal(size=target.size) + target)
    probs = np.stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))]).astype(np.float32)
    expected = average_precision_score(target, odds)
    assert average_precision(probs, target, 1) == pytest.approx(expected, abs=5e-4)
    assert abs(average_precision(1 - probs, target, 1) - expected) > 0.1  # type: ignore[operator]


@pytest.mark.parametrize("block", [1, 7, 19, 20, 21])
def test_large_images_are_binned_in_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rng = np.random.default_rng(0)
    probs, target = rng.dirichlet([1, 1, 1], (5, 4)).transpose(2, 0, 1), rng.integers(-1, 3, (5, 4))
    whole = rank_voxels(probs, target)
    assert whole[0].sum() == np.count_nonzero(target != IGNORE_INDEX)
    monkeypatch.setattr(calibration, "BLOCK_VOXELS", block)
    np.testing.assert_array_equal(rank_voxels(probs, target), whole)


def test_no_positives_and_nothing_else_have_no_score() -> None:
    probs = spread(np.array([0.1, 0.9]), 1, 2)
    assert average_precision(probs, np.array([0, 0]), 1) is None
    assert average_precision(probs, np.array([1, 1]), 1) is None
    assert average_precision(probs, np.array([1, IGNORE_INDEX]), 1) is None
    assert average_precision(probs, np.array([0, 1]), 1) == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_voxel_is_ranked_as_wrong_as_can_be(value: float) -> None:
    own, target = np.array([1.0, 0.6, 0.4, 0.0]), np.array([1, 1, 0, 0])
    probs = spread(own, 1, 2)
    assert average_precision(probs, target, 1) == 1.0
    probs[:, 0] = value
    assert average_precision(probs, target, 1) == pytest.approx((1 + 2 / 4) / 2)  # the last of all
    probs = spread(own, 1, 2)
    probs[0, 3] = value
    assert average_precision(probs, target, 1) == pytest.approx((1 / 2 + 2 / 3) / 2)  # before, or a tie with, the first


class Store(CaseStore):
    """Cases in memory; the image of a case is its index into the probabilities."""

    def __init__(self, targets: list[NDArray[np.int16]], classes: int) -> None:
        meaning = Meaning(label_values=tuple(range(classes)))
        super().__init__(Catalog("memory", (), {}, meaning, ()), 1)
        self.targets = targets

    def load_whole(self, case_id: str) -> WholeCase:
        return WholeCase(np.array([[[int(case_id)]]]), self.targets[int(case_id)], None)


RNG = np.random.default_rng(1)
TARGETS = [*(RNG.integers(0, 2, (8, 9)).astype(np.int16) for _ in range(2)), np.zeros((5, 5), np.int16)]
PROBS = [RNG.dirichlet([1, 1, 1], target.shape).transpose(2, 0, 1).astype(np.float32) for target in TARGETS]


class TestScores:
    """Three classes, of which the last is in no mask; the last case has no foreground."""

    def score(self, ids: list[str]) -> Score:
        (score,) = score_cases([lambda image, _: PROBS[int(image.item())]], Store(TARGETS, 3), ids)
        return score

    def expect(self, ids: list[int]) -> float:
        true, own = (np.concatenate([part[i].ravel() for i in ids]) for part in (TARGETS, [p[1] for p in PROBS]))
        return float(average_precision_score(true == 1, own))

    def test_pooled_by_class_and_of_each_case(self) -> None:
        summary = self.score(["0", "1", "2"]).summarize()
        first, second = self.expect([0]), self.expect([1])
        near = {"abs": 1e-3}
        assert summary["pooled"]["average_precision"] == pytest.approx(self.expect([0, 1, 2]), **near)
        assert summary["mean"]["average_precision"] == pytest.approx((first + second) / 2, **near)
        assert [row["pooled"]["average_precision"] for row in summary["classes"]] == [
            summary["pooled"]["average_precision"],
            None,
        ]
        assert summary["absent_classes"] == [2]
        of_cases = [row["average_precision"] for row in summary["cases"]]
        assert of_cases == [pytest.approx(first, **near), pytest.approx(second, **near), None]
        assert summary["cases"][0]["average_precision_classes"] == [of_cases[0], None]

    def test_nowhere_any_foreground(self) -> None:
        summary = self.score(["2"]).summarize()
        assert (summary["pooled"]["average_precision"], summary["mean"]["average_precision"]) == (None, None)

    def test_parts_are_averaged(self) -> None:
        parts = [self.score([i]) for i in ("0", "1", "2")]
        (first, _), (second, _), (third, _) = (part.average_precision or () for part in parts)
        assert third is None
        assert join_scores(parts).average_precision == (pytest.approx((first + second) / 2), None)
        assert join_scores([parts[0], replace(parts[1], average_precision=None)]).average_precision is None

    def test_written_and_read(self) -> None:
        score = self.score(["0", "2"])
        written = json.loads(json.dumps([pack_cases(score), score.average_precision, score.reliability]))
        rows, precision, reliability = written
        back = parse_cases(rows, score.label_values, precision, reliability)
        assert back.summarize() == score.summarize()
        assert back.reliability == score.reliability is not None
        assert parse_cases(rows, score.label_values, precision).reliability is None

    def test_reliability_is_scikit_learns(self) -> None:
        """Of each class over the voxels of all cases; bins without voxels are empty there."""
        reliability = self.score(["0", "1", "2"]).reliability
        assert reliability is not None
        true = np.concatenate([target.ravel() for target in TARGETS])
        for label, rows in enumerate(reliability, start=1):
            own = np.concatenate([probs[label].ravel() for probs in PROBS])
            share, probability, right = np.array([row for row in rows if row[0]], np.float64).T
            expected, predicted = calibration_curve(true == label, own, n_bins=calibration.RELIABILITY_BINS)
            np.testing.assert_allclose(right, expected)
            np.testing.assert_allclose(probability, predicted, atol=1e-3)
            counts = np.histogram(own, calibration.RELIABILITY_BINS, (0, 1))[0]
            np.testing.assert_allclose(share, counts[counts > 0] / len(own))
            assert [row[1:] for row in rows if not row[0]] == [(None, None)] * int((counts == 0).sum())

    def test_a_voxel_without_a_finite_output_is_surely_wrong(self) -> None:
        probs = np.array([[0.5, np.nan, np.nan], [0.5, np.nan, np.nan]], np.float32)
        (rows,) = measure_reliability(rank_voxels(probs, np.array([1, 1, 0])))
        assert [(row[0], row[2]) for row in (rows[0], rows[7], rows[-1])] == [
            (pytest.approx(1 / 3), 1.0), (pytest.approx(1 / 3), 1.0), (pytest.approx(1 / 3), 0.0),
        ]  # fmt: skip
