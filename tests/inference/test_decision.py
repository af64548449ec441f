"""From probabilities to classes: what is dropped and filled, and which way to do so is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssl_seg.inference.decision import Cleaning, Decision, clean_classes, measure_parts
from ssl_seg.scores.calibration import choose_way

SHAPES = ((12, 9), (5, 6, 4))


def find_parts(mask: NDArray[np.bool_]) -> list[set[tuple[int, ...]]]:
    """Return the parts of a mask, flooded voxel by voxel across faces."""
    left = {tuple(map(int, place)) for place in np.argwhere(mask)}
    parts = []
    while left:
        part = {left.pop()}
        edge = set(part)
        while edge:
            steps = {(*v[:i], v[i] + step, *v[i + 1 :]) for v in edge for i in range(mask.ndim) for step in (-1, 1)}
            edge = steps & left
            left -= edge
            part |= edge
        parts.append(part)
    return parts


@given(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES), st.integers(0, 12))
def test_parts_smaller_than_the_limit_are_dropped(seed: int, shape: tuple[int, ...], least: int) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.4
    parts = find_parts(mask)
    expected = np.zeros_like(mask)
    for voxel in (voxel for part in parts if len(part) >= least for voxel in part):
        expected[voxel] = True
    np.testing.assert_array_equal(Cleaning(least_voxels=least).apply(mask), expected)
    assert sorted(measure_parts(mask)) == sorted(map(len, parts))


@given(st.integers(0, 2**32 - 1), st.sampled_from(SHAPES))
def test_the_largest_part_is_one_part_and_none_is_larger(seed: int, shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.3
    kept, parts = find_parts(Cleaning(largest=True).apply(mask)), find_parts(mask)
    assert kept[0] in parts
    assert (len(kept), len(kept[0])) == (1, max(map(len, parts)))
    assert not Cleaning(largest=True, least_voxels=mask.size + 1).apply(mask).any()


def test_an_empty_mask_stays_empty() -> None:
    assert not Cleaning(3, largest=True, fill=True).apply(np.zeros((4, 4), bool)).any()
    assert measure_parts(np.zeros((4, 4), bool)).tolist() == []


def test_holes_are_filled_and_bays_are_not() -> None:
    ring = np.ones((7, 7), bool)
    ring[3, 3] = False
    bay = np.ones((7, 7), bool)
    bay[:4, 3] = False
    assert Cleaning(fill=True).apply(ring).all()
    np.testing.assert_array_equal(Cleaning(fill=True).apply(bay), bay)


def test_filling_a_class_leaves_the_others() -> None:
    """A nucleus inside of its cell stays, the hole beside it does not; what is dropped becomes background."""
    classes = np.zeros((9, 9), np.int64)
    classes[1:8, 1:8] = 1
    classes[3, 3], classes[5, 5], classes[0, 8] = 2, 0, 1
    found = clean_classes(classes, (Cleaning(fill=True, least_voxels=5), Cleaning()))
    assert (found[3, 3], found[5, 5], found[0, 8]) == (2, 1, 0)
    assert (clean_classes(classes, ()) == classes).all()


@pytest.mark.parametrize(
    ("decision", "expected"), [(Decision(), [0, 0, 1]), (Decision(0.3), [0, 1, 1]), (Decision(0.9), [0, 0, 0])]
)
def test_the_threshold_decides_between_two_classes(decision: Decision, expected: list[int]) -> None:
    foreground = np.array([0.1, 0.4, 0.6], np.float32)
    assert decision(np.stack([1 - foreground, foreground])).tolist() == expected


def test_it_says_what_it_does() -> None:
    assert str(Cleaning()) == "nothing"
    assert str(Cleaning(30, largest=True, fill=True)) == (
        "keep the largest part and drop parts below 30 voxels and fill holes"
    )


class TestChoice:
    @staticmethod
    def make(better: int, cases: int = 12) -> NDArray[np.int64]:
        """Return counts of two ways, the second of which is better in some cases and worse in none."""
        counts = np.tile(np.array([60, 20, 20, 900]), (2, cases, 1))
        counts[:, :, 0] += np.arange(cases)
        counts[1, :better, 1] -= 15
        return counts

    def test_a_way_that_helps_everywhere_is_chosen(self) -> None:
        best, gain = choose_way(self.make(12))
        assert best == 1
        assert gain.low is not None
        assert gain.low > 0

    def test_one_that_helps_in_one_case_is_not(self) -> None:
        best, gain = choose_way(self.make(1))
        assert best == 0
        assert gain.low is None or gain.low <= 0

    def test_few_cases_choose_nothing(self) -> None:
        assert choose_way(self.make(5, 5))[0] == 0
        assert choose_way(self.make(1, 1))[0] == 0

    def test_ways_that_are_equal_leave_all_as_it_is(self) -> None:
        assert choose_way(self.make(0))[0] == 0
