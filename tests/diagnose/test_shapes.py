"""Equal ratios and holes: closed forms, brute force, and predictions that are as they should be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssl_seg.scores.sameness import SAME, ShapeTally, find_same


def tally_of(preds: list[NDArray[np.bool_]], truths: list[NDArray[np.bool_]] | None = None) -> ShapeTally:
    tally = ShapeTally(preds[0].shape)
    for index, pred in enumerate(preds):
        truth = None if truths is None else truths[index]
        tally.add(pred, truth, None if truth is None else float(truth.mean()))
    return tally


def box(shape: tuple[int, ...], *sides: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def discs(count: int, size: int = 64, seed: int = 0) -> list[NDArray[np.bool_]]:
    """Healthy predictions: discs anywhere, also across the border."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size, :size]
    masks = []
    for _ in range(count):
        centers, radii = rng.uniform(0, size, (6, 2)), rng.uniform(5, 12, 6)
        near = [(y - cy) ** 2 + (x - cx) ** 2 < r**2 for (cy, cx), r in zip(centers, radii, strict=True)]
        masks.append(np.any(near, axis=0))
    return masks


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=30))
def test_same_is_the_largest_group(numbers: list[int]) -> None:
    ratios = [3e-6 * n for n in numbers]  # no two differ by exactly SAME
    largest = max(sum(0 <= other - r < SAME for other in ratios) for r in ratios)
    count, ratio = find_same(ratios)
    assert count == largest
    assert sum(abs(r - ratio) < SAME for r in ratios) >= count


@pytest.mark.parametrize(
    ("side", "sides", "form", "share"),
    [
        (320, ((4, 316), (4, 316)), "(312/320) x (312/320)", 0.049375),
        (256, ((20, 236), (40, 256)), "(216/256) x (216/256)", 0.2880859375),
    ],
)
def test_reported_ratios_are_read_as_holes(
    side: int, sides: tuple[tuple[int, int], ...], form: str, share: float
) -> None:
    row = tally_of([box((side, side), *sides)] * 5).summarize()
    assert (row["same"], row["images"]) == (5, 5)
    assert row["closed_form"] == form
    assert row["hole"]["share"] == pytest.approx(share)
    assert row["never"] == pytest.approx(share)
    assert row["hole"]["band"] == [[a, side - b] for a, b in sides]
    assert row["hole"]["inside"] == 1.0


def test_a_ratio_is_factored_without_a_hole() -> None:
    """The same number of voxels elsewhere in each image: no plane is missed, the margin is 8 of 320 all the same."""
    masks = [np.roll(box((320, 320), (0, 312), (0, 312)), 11 * i, axis=(0, 1)) for i in range(4)]
    row = tally_of(masks).summarize()
    assert row["hole"] is None
    assert row["closed_form"] == "(312/320) x (312/320)"


def test_volumes_have_closed_forms_too() -> None:
    row = tally_of([box((20, 30, 40), (0, 16), (2, 28), (4, 36))] * 3).summarize()
    assert row["closed_form"] == "(16/20) x (26/30) x (32/40)"
    assert row["ratio"] == pytest.approx(0.8 * 26 / 30 * 0.8)


def test_stripes_between_windows_are_a_hole() -> None:
    masks = discs(8)
    for mask in masks:
        mask[:, 30:34] = False
        mask[:, [29, 34]] = True
    hole = tally_of(masks).find_hole()
    assert hole is not None
    assert hole.runs[1] == ((30, 34),)
    assert hole.share == pytest.approx(4 / 64)


@pytest.mark.parametrize("seed", range(5))
def test_healthy_predictions_have_no_hole(seed: int) -> None:
    masks = discs(12, seed=seed)
    row = tally_of(masks).summarize()
    assert row["hole"] is None
    assert row["same"] < 3
    assert row["closed_form"] is None
    counts = np.sum(masks, axis=0)
    assert row["never"] == np.mean(counts == 0)
    assert row["always"] == np.mean(counts == 12)


def test_objects_in_the_middle_leave_no_hole() -> None:
    """Nothing near the border in any image, but few images reach the planes beside the empty ones."""
    masks = [box((64, 64), (10 + 2 * i, 40 + i), (12 + i, 50 - 3 * i)) for i in range(6)]
    assert all(a != b for a, b in pairwise(m.mean() for m in masks))
    assert tally_of(masks).find_hole() is None


def test_a_border_without_true_foreground_is_no_hole() -> None:
    inner = [box((32, 32), (4, 28), (4, 28)) for _ in range(4)]
    full = [np.ones((32, 32), bool) for _ in range(4)]
    assert tally_of(inner, inner).find_hole() is None
    assert tally_of(inner, full).find_hole() is not None


def test_empty_and_few_predictions_have_no_hole() -> None:
    assert tally_of([np.zeros((16, 16), bool)] * 5).find_hole() is None
    assert tally_of([box((16, 16), (2, 14), (2, 14))] * 2).find_hole() is None
