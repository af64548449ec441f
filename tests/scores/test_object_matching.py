"""Scores of objects against brute force, values by hand, and the policy for images without objects."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_seg.errors import DataError
from ssl_seg.scores.objects import THRESHOLDS, ObjectCounts, match_objects, summarize_objects


def match_by_brute_force(pred: np.ndarray, true: np.ndarray, threshold: float) -> tuple[int, int, int, float]:
    """Return TP, FP, FN and the sum of the IoU of the matches, from the masks of every pair of objects."""
    pred_ids, true_ids = (sorted(set(labels.ravel().tolist()) - {0}) for labels in (pred, true))
    found = []
    for here in true_ids:
        for there in pred_ids:
            a, b = true == here, pred == there
            iou = (a & b).sum() / (a | b).sum()
            if iou > threshold:
                found.append((here, there, iou))
    assert len({here for here, _, _ in found}) == len({there for _, there, _ in found}) == len(found)
    return len(found), len(pred_ids) - len(found), len(true_ids) - len(found), sum(iou for *_, iou in found)


def make_labels(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return blocks of random objects, some of them cut, numbered with gaps."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 0, 3, 7, 70_000, 8, 9], size=[-(-n // 4) for n in shape])
    fine = coarse.repeat(4, 0).repeat(4, 1) if len(shape) == 2 else coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return fine[tuple(slice(0, n) for n in shape)]


@pytest.mark.parametrize("shape", [(22, 19), (6, 11, 9)])
@pytest.mark.parametrize("seed", range(4))
def test_matches_are_those_of_all_pairs(shape: tuple[int, ...], seed: int) -> None:
    true = make_labels(seed, shape)
    rng = np.random.default_rng(seed)
    pred = np.where(rng.random(shape) < 0.25, make_labels(seed + 1, shape), true * 2)
    found = match_objects(pred, true)
    for threshold, matched in zip(THRESHOLDS, found.matched, strict=True):
        tp, fp, fn, iou = match_by_brute_force(pred, true, threshold)
        assert (matched, found.pred - matched, found.true - matched) == (tp, fp, fn)
        if threshold == 0.5:
            assert found.iou == pytest.approx(iou)
    assert found.matched[0] > 0
    assert found.matched[-1] < found.true


def test_a_match_is_above_the_threshold_and_not_at_it() -> None:
    true = np.array([1, 1, 0, 0, 0, 2, 2, 2, 2, 2])
    pred = np.array([1, 0, 0, 0, 0, 2, 2, 2, 0, 0])  # IoU 1/2 and 3/5
    assert match_objects(pred, true).matched == (0 + 1, 1) + (0,) * 8


def test_scores_by_hand() -> None:
    summary = summarize_objects([ObjectCounts(4, 5, (3, 3, 3, 3, 2, 2, 1, 1, 0, 0), 2.4)])
    assert summary["f1_50"] == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert summary["f1_90"] == 0.0
    assert summary["ap"] == pytest.approx(np.mean([tp / (9 - tp) for tp in (3, 3, 3, 3, 2, 2, 1, 1, 0, 0)]))
    assert summary["sq"] == pytest.approx(0.8)
    assert summary["pq"] == pytest.approx(0.8 * summary["f1_50"])  # SQ x RQ
    assert (summary["true"], summary["pred"], summary["matched"]) == (4, 5, 3)


def test_images_without_objects_count_in_one_mean_only() -> None:
    empty, half = ObjectCounts(0, 0, (0,) * 10, 0.0), ObjectCounts(1, 3, (1,) * 10, 1.0)
    summary, alone = summarize_objects([empty, half]), summarize_objects([half])
    for name in ("f1_50", "ap", "pq"):
        assert summary[name] == alone[name] == summary["mean_nonempty"][name]
        assert summary["mean"][name] == pytest.approx((1 + alone[name]) / 2)
    assert summary["empty"] == 1
    nothing = summarize_objects([empty, empty])
    assert nothing["f1_50"] is nothing["pq"] is nothing["mean_nonempty"]["ap"] is nothing["intervals"]["ap"] is None
    assert nothing["mean"]["ap"] == 1.0


def test_a_missed_image_and_a_false_one_count_in_both_means() -> None:
    summary = summarize_objects([ObjectCounts(2, 0, (0,) * 10, 0.0), ObjectCounts(0, 2, (0,) * 10, 0.0)])
    assert summary["mean"]["ap"] == summary["mean_nonempty"]["ap"] == summary["f1_50"] == 0.0
    assert summary["sq"] is None


def test_intervals_hold_the_value_and_shrink_with_images() -> None:
    rng = np.random.default_rng(0)

    def draw(images: int) -> list[ObjectCounts]:
        found = np.sort(rng.binomial(20, 0.7, (images, 10)), axis=1)[:, ::-1]
        return [ObjectCounts(20, 20, tuple(row.tolist()), 0.8 * float(row[0])) for row in found]

    few, many = (summarize_objects(draw(images))["intervals"] for images in (12, 200))
    for name, estimate in many.items():
        assert estimate["low"] < estimate["value"] < estimate["high"]
        assert estimate["high"] - estimate["low"] < few[name]["high"] - few[name]["low"]
    assert summarize_objects(draw(3))["intervals"]["pq"]["why"]


def test_the_interval_of_f1_is_that_of_voxels_with_these_counts() -> None:
    from ssl_seg.scores.intervals import Resamples, estimate_mean

    rng = np.random.default_rng(1)
    tp = rng.integers(5, 15, 20)
    counts = [ObjectCounts(16, 18, (int(n),) * 10, float(n)) for n in tp]
    voxels = np.stack([tp, 18 - tp, 16 - tp, np.zeros_like(tp)], axis=-1)[None, :, None]
    expected = estimate_mean(voxels, "f1", Resamples(20))
    found = summarize_objects(counts)["intervals"]["f1_50"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx((expected.value, expected.low, expected.high))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="compare equal shapes"):
        match_objects(np.zeros((3, 4), int), np.zeros((4, 3), int))
