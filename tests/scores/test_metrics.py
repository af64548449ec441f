"""Oracles: scikit-learn, torchmetrics, MONAI, all pairs of voxels, closed forms; the empty-case policy as tables."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import DiceMetric, compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import binary_jaccard_index

from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.scores.metrics import (
    ConfusionCounts,
    SurfaceDistances,
    compute_auroc,
    compute_average_precision,
    compute_surface_distances,
    compute_trivial_baselines,
    compute_trivial_f1,
    count_overlap,
    sum_overlaps,
    summarize_distances,
)

counts = st.integers(0, 50)
overlaps = st.builds(ConfusionCounts, counts, counts, counts, counts)
histograms = st.integers(1, 12).flatmap(
    lambda bins: st.tuples(*[hnp.arrays(np.int64, bins, elements=st.integers(0, 6))] * 2)
)


# Trivial predictors


def test_trivial_f1_at_the_prevalences_of_the_reports() -> None:
    assert compute_trivial_f1(0.30) == pytest.approx(0.4615, abs=5e-5)
    assert compute_trivial_f1(0.351) == pytest.approx(0.52, abs=5e-4)
    assert [compute_trivial_f1(p) for p in (0.0, 1.0)] == [0.0, 1.0]


@given(n_pos=st.integers(0, 100), n_neg=st.integers(0, 100))
@example(n_pos=0, n_neg=3)
def test_trivial_baselines_are_what_such_predictors_score(n_pos: int, n_neg: int) -> None:
    assume(n_pos + n_neg > 0)
    target = np.repeat([1, 0], [n_pos, n_neg])
    baselines = compute_trivial_baselines(n_pos / (n_pos + n_neg))
    assert baselines["all_positive"] == pytest.approx(count_overlap(np.ones_like(target), target).dice)
    assert baselines["all_negative"] == count_overlap(np.zeros_like(target), target).dice
    assert n_pos or baselines["base_rate_random"] == baselines["all_negative"], "rate 0 predicts nothing"
    assert baselines["best"] == max(v for k, v in baselines.items() if k != "best")


def test_a_random_predictor_scores_the_prevalence() -> None:
    rng = np.random.default_rng(0)
    target, pred = rng.random((2, 400_000)) < 0.3
    assert count_overlap(pred, target).dice == pytest.approx(
        compute_trivial_baselines(0.3)["base_rate_random"], abs=5e-3
    )


@pytest.mark.parametrize("prevalence", [-0.1, 1.1, math.nan])
def test_a_prevalence_is_a_share(prevalence: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        compute_trivial_baselines(prevalence)


# Overlap


@pytest.mark.parametrize(
    ("exists", "found", "score"),
    [(False, False, 1.0), (False, True, 0.0), (True, False, 0.0), (True, True, 1.0)],
)
def test_empty_case_policy_of_overlaps(exists: bool, found: bool, score: float) -> None:
    target, pred = np.zeros((4, 4), int), np.zeros((4, 4), int)
    target[0, :2], pred[0, :2] = exists, found
    overlap = count_overlap(pred, target)
    assert (overlap.dice, overlap.iou, overlap.precision, overlap.recall) == (score, score, score, score)


def test_half_of_a_mask_and_half_overlapping_masks() -> None:
    target = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    assert count_overlap(np.array([1, 1, 0, 0, 0, 0, 0, 0]), target).dice == pytest.approx(0.6667, abs=5e-5)
    assert count_overlap(np.array([0, 0, 1, 1, 1, 1, 0, 0]), target).dice == 0.5
    assert count_overlap(np.array([0, 0, 1, 1, 1, 1, 0, 0]), target).iou == pytest.approx(1 / 3)
    assert count_overlap(target, target).dice == 1.0
    assert count_overlap(1 - target, target).dice == 0.0


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.int64, (2, 3, 4), elements=st.integers(0, 1)))
def test_overlap_scores_are_those_of_other_libraries(masks: NDArray[np.int64]) -> None:
    pred, target = masks
    overlap = count_overlap(pred, target)
    assume(overlap.tp + overlap.fp and overlap.tp + overlap.fn)
    assert overlap.dice == pytest.approx(sklearn_metrics.f1_score(target.ravel(), pred.ravel()))
    assert overlap.precision == pytest.approx(sklearn_metrics.precision_score(target.ravel(), pred.ravel()))
    assert overlap.recall == pytest.approx(sklearn_metrics.recall_score(target.ravel(), pred.ravel()))
    pred_t, target_t = torch.from_numpy(pred), torch.from_numpy(target)
    assert overlap.iou == pytest.approx(binary_jaccard_index(pred_t, target_t).item())
    monai_dice = DiceMetric(include_background=True)(pred_t[None, None], target_t[None, None]).item()
    assert overlap.dice == pytest.approx(monai_dice)


@given(overlaps)
def test_dice_is_the_harmonic_mean_of_precision_and_recall(overlap: ConfusionCounts) -> None:
    precision, recall = overlap.precision, overlap.recall
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert overlap.dice == pytest.approx(harmonic)
    assert overlap.iou == pytest.approx(overlap.dice / (2 - overlap.dice))


def test_labels_are_counted_one_by_one_or_as_foreground() -> None:
    target, pred = np.array([0, 1, 1, 2, 2, 0]), np.array([0, 1, 2, 2, 0, 1])
    assert count_overlap(pred, target, label=1) == ConfusionCounts(tp=1, fp=1, fn=1, tn=3)
    assert count_overlap(pred, target, label=2) == ConfusionCounts(tp=1, fp=1, fn=1, tn=3)
    assert count_overlap(pred, target, label=0) == ConfusionCounts(tp=1, fp=1, fn=1, tn=3)
    assert count_overlap(pred, target) == ConfusionCounts(tp=3, fp=1, fn=1, tn=1)


@given(
    pred=hnp.arrays(np.int64, 20, elements=st.integers(0, 2)),
    target=hnp.arrays(np.int64, 20, elements=st.sampled_from([0, 1, 2, IGNORE_INDEX])),
    label=st.sampled_from([None, 0, 1, 2]),
)
def test_ignoring_voxels_is_removing_them(
    pred: NDArray[np.int64], target: NDArray[np.int64], label: int | None
) -> None:
    valid = target != IGNORE_INDEX
    assert count_overlap(pred, target, label) == count_overlap(pred[valid], target[valid], label)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(4, 4\).*\(4, 5\)"):
        count_overlap(np.zeros((4, 4), int), np.zeros((4, 5), int))


def test_pooled_counts_are_those_of_one_large_image() -> None:
    pred, target = np.random.default_rng(0).integers(0, 2, (2, 5, 30))
    cases = [count_overlap(p, t) for p, t in zip(pred, target, strict=True)]
    assert sum_overlaps(cases) == count_overlap(pred, target)
    assert sum_overlaps(cases).prevalence == pytest.approx(target.mean())
    assert sum_overlaps([]) == ConfusionCounts(0, 0, 0, 0)
    assert sum_overlaps([]).prevalence == 0.0


# Threshold-free scores


def unroll(pos_hist: NDArray[np.int64], neg_hist: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the labels and scores (bin indices) that give these histograms."""
    bins = np.arange(len(pos_hist))
    scores = np.concatenate([np.repeat(bins, pos_hist), np.repeat(bins, neg_hist)])
    return np.repeat([1, 0], [pos_hist.sum(), neg_hist.sum()]), scores


@settings(deadline=None)
@given(histograms)
def test_scores_from_histograms_are_scikit_learns(hists: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
    pos_hist, neg_hist = hists
    assume(pos_hist.any() and neg_hist.any())
    labels, scores = unroll(pos_hist, neg_hist)
    assert compute_auroc(pos_hist, neg_hist) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-9)
    expected_ap = sklearn_metrics.average_precision_score(labels, scores)
    assert compute_average_precision(pos_hist, neg_hist) == pytest.approx(expected_ap, abs=1e-9)


@given(st.integers(1, 12), hnp.arrays(np.int64, 12, elements=st.integers(0, 6)))
def test_scores_of_one_class_are_undefined(bins: int, hist: NDArray[np.int64]) -> None:
    hist, nothing = hist[:bins], np.zeros(bins, np.int64)
    for score in (compute_auroc, compute_average_precision):
        assert score(hist, nothing) is None
        assert score(nothing, hist) is None


def test_classes_that_are_apart_are_ranked_perfectly() -> None:
    pos_hist, neg_hist = np.zeros(100, int), np.zeros(100, int)
    neg_hist[:11], pos_hist[90:] = 5, 5
    assert compute_auroc(pos_hist, neg_hist) == 1.0
    assert compute_average_precision(pos_hist, neg_hist) == 1.0


def test_scores_without_information() -> None:
    pos_hist, neg_hist = np.array([0, 30, 0]), np.array([0, 70, 0])
    assert compute_auroc(pos_hist, neg_hist) == 0.5
    assert compute_average_precision(pos_hist, neg_hist) == pytest.approx(0.3)


def test_counts_of_large_volumes_do_not_overflow() -> None:
    pos_hist, neg_hist = np.array([0, 10**11]), np.array([10**11, 0])
    assert compute_auroc(pos_hist, neg_hist) == 1.0
    assert compute_average_precision(pos_hist, neg_hist) == 1.0
    small = np.array([100, 100], np.uint8), np.array([100, 100], np.uint8)  # sums above 255
    assert compute_average_precision(*small) == pytest.approx(0.5)


@pytest.mark.parametrize("shapes", [(4, 3), ((2, 2), (2, 2))])
def test_histograms_of_different_bins_are_refused(shapes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"both must be \(bins,\)"):
        compute_auroc(*(np.ones(shape, int) for shape in shapes))


# Surface distances


def golden_toy() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    target = np.zeros((30, 30, 30), bool)
    target[5:15, 5:15, 5:15] = True
    pred = np.roll(target, 1, axis=0)
    pred[21, 21, 21] = True
    return pred, target


@pytest.mark.parametrize(("spacing", "hd95", "asd"), [((1, 1, 1), 1.0, 0.3481), ((2, 1, 1), 2.0, 0.6317)])
def test_surface_distances_of_the_golden_toy(spacing: tuple[float, ...], hd95: float, asd: float) -> None:
    distances = compute_surface_distances(*golden_toy(), spacing)
    assert distances.hd95 == pytest.approx(hd95, abs=1e-6)
    assert distances.asd == pytest.approx(asd, abs=5e-5)
    assert distances == SurfaceDistances(distances.hd95, distances.asd, distances.surface_dice)  # no flag is set


def list_surface(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the coordinates of voxels with a face neighbor outside the mask, (V, ndim)."""
    padded = np.pad(mask, 1)
    inside = [np.roll(padded, shift, axis) for axis in range(mask.ndim) for shift in (1, -1)]
    return np.argwhere(padded & ~np.all(inside, axis=0))


def measure_all_pairs(
    pred: NDArray[np.bool_], target: NDArray[np.bool_], spacing: tuple[float, ...]
) -> tuple[float, float, float]:
    pairs = cdist(*(list_surface(mask) * np.array(spacing) for mask in (pred, target)))
    forth, back = pairs.min(1), pairs.min(0)
    both = np.concatenate([forth, back])
    return max(np.percentile(forth, 95), np.percentile(back, 95)), both.mean(), np.mean(both <= max(spacing) + 1e-9)


@pytest.mark.parametrize(("shape", "spacing"), [((12, 14), (1.5, 0.5)), ((7, 9, 8), (2.0, 1.0, 0.7))])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.95, 1.0])
def test_surface_distances_are_those_of_all_pairs_and_monais(
    shape: tuple[int, ...], spacing: tuple[float, ...], density: float
) -> None:
    pred, target = np.random.default_rng(0).random((2, *shape)) < density
    got = compute_surface_distances(pred, target, spacing)
    expected = pytest.approx(measure_all_pairs(pred, target, spacing), rel=1e-5)
    assert (got.hd95, got.asd, got.surface_dice) == expected

    tensors = {"y_pred": torch.from_numpy(pred)[None, None], "y": torch.from_numpy(target)[None, None]}
    options = {"include_background": True, "spacing": list(spacing)}
    monai_hd95 = compute_hausdorff_distance(**tensors, **options, percentile=95).item()
    monai_asd = compute_average_surface_distance(**tensors, **options, symmetric=True).item()
    assert (got.hd95, got.asd) == pytest.approx((monai_hd95, monai_asd), rel=1e-5)


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 1.0), (3, 0.0)])
def test_a_plane_within_a_voxel_counts_as_found(shift: int, expected: float) -> None:
    pred, target = np.zeros((9, 4, 4), bool), np.zeros((9, 4, 4), bool)
    pred[2 + shift], target[2] = True, True
    assert compute_surface_distances(pred, target, (0.1, 0.03, 0.03)).surface_dice == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("exists", "found", "expected"),
    [
        (False, False, SurfaceDistances(0.0, 0.0, 1.0, absent=True)),
        (True, False, SurfaceDistances(math.inf, math.inf, 0.0, missed=True)),
        (False, True, SurfaceDistances(math.inf, math.inf, 0.0, hallucinated=True)),
        (True, True, SurfaceDistances(0.0, 0.0, 1.0)),
    ],
)
def test_empty_case_policy_of_distances(exists: bool, found: bool, expected: SurfaceDistances) -> None:
    target, pred = np.zeros((5, 5), bool), np.zeros((5, 5), bool)
    target[2, 2], pred[2, 2] = exists, found
    assert compute_surface_distances(pred, target, (1.0, 1.0)) == expected


@pytest.mark.filterwarnings("error")
def test_read_only_and_flipped_arrays_are_fine() -> None:
    pred, target = golden_toy()
    pred.setflags(write=False)
    flipped = compute_surface_distances(pred[::-1], target[::-1], (1, 1, 1))
    assert flipped == compute_surface_distances(pred, target, (1, 1, 1))


def test_masks_and_spacing_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(4, 4\).*\(4, 5\)"):
        compute_surface_distances(np.zeros((4, 4), bool), np.zeros((4, 5), bool), (1, 1))
    with pytest.raises(DataError, match="one value for each axis"):
        compute_surface_distances(np.zeros((4, 4), bool), np.zeros((4, 4), bool), (1, 1, 1))


def test_missing_a_hard_case_shows_in_the_summary() -> None:
    easy, hard, missed = (
        SurfaceDistances(1.0, 0.5, 1.0),
        SurfaceDistances(9.0, 4.5, 0.5),
        SurfaceDistances(math.inf, math.inf, 0.0, True),
    )
    honest, collapsed = summarize_distances([[easy, hard]]), summarize_distances([[easy, missed]])
    assert (honest["hd95"], honest["asd"], honest["missed_share"]) == (5.0, 2.5, 0.0)
    assert (honest["surface_dice"], collapsed["surface_dice"]) == (0.75, 0.5)  # a missed case counts, as 0
    assert (collapsed["hd95"], collapsed["missed_share"], collapsed["n_measured"]) == (1.0, 0.5, 1)


def test_empty_cases_do_not_hide_the_distances_of_the_others() -> None:
    absent = SurfaceDistances(0.0, 0.0, 1.0, absent=True)
    hallucinated = SurfaceDistances(math.inf, math.inf, 0.0, hallucinated=True)
    summary = summarize_distances([[SurfaceDistances(4.0, 2.0, 0.8), absent, absent, absent, hallucinated]])
    assert (summary["hd95"], summary["asd"]) == (4.0, 2.0)
    assert summary["surface_dice"] == pytest.approx(0.4)  # of one measured and one hallucinated case
    assert (summary["n_cases"], summary["n_measured"], summary["n_absent"]) == (5, 1, 3)
    assert (summary["missed_share"], summary["hallucinated_share"]) == (0.0, 0.25)
    nothing_found = summarize_distances([[SurfaceDistances(math.inf, math.inf, 0.0, missed=True), absent]])
    assert (nothing_found["hd95"], nothing_found["missed_share"]) == (None, 1.0)
    assert summarize_distances([[absent]])["missed_share"] is None


def test_summaries_are_strict_json() -> None:
    missed = SurfaceDistances(math.inf, math.inf, 0.0, missed=True)
    for summary in (summarize_distances([[missed]]), summarize_distances([[]]), summarize_distances([])):
        json.dumps(summary, allow_nan=False)


def test_importing_metrics_loads_neither_torch_nor_monai() -> None:
    code = "import sys, ssl_seg.scores.metrics; sys.exit(any(m in sys.modules for m in ('torch', 'monai', 'scipy')))"
    subprocess.run([sys.executable, "-c", code], check=True)
