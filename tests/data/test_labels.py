"""Mask values and class indices are inverse to each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX, infer_label_values, to_mask, to_target

label_values = st.lists(st.integers(0, 65535), min_size=2, max_size=12, unique=True)


@settings(deadline=None)
@given(label_values, st.integers(0, 2**32))
def test_classes_survive_the_way_to_the_file_and_back(values: list[int], seed: int) -> None:
    target = np.random.default_rng(seed).integers(0, len(values), (3, 5))
    mask = to_mask(target, values)
    assert mask.dtype == (np.uint8 if max(values) < 256 else np.uint16)
    assert all(mask.flat[n] == values[target.flat[n]] for n in range(target.size))
    np.testing.assert_array_equal(to_target(mask, values), target)


@settings(deadline=None)
@given(label_values)
def test_the_ignored_value_has_no_class(values: list[int]) -> None:
    *classes, ignored = values
    target = to_target(np.array(values), classes, ignored)
    assert target.dtype == np.int64
    assert target.tolist() == [*range(len(classes)), IGNORE_INDEX]


def test_unknown_values_are_named() -> None:
    with pytest.raises(DataError, match=r"\{3, 9\} are not among the label values \[0, 1\]"):
        to_target(np.array([0, 1, 9, 3]), [0, 1], 7)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, 1)),
        ([0], (0, 1)),
        ([1], (0, 1)),
        ([0, 1], (0, 1)),
        ([255], (0, 255)),
        ([0, 255], (0, 255)),
        ([2, 1], (0, 1, 2)),
        (range(256), tuple(range(256))),
    ],
)
def test_usual_values_are_inferred(values: list[int], expected: tuple[int, ...]) -> None:
    assert infer_label_values(values) == expected


@pytest.mark.parametrize("values", [[0, 2], [0, 128, 255], [0, 1, 255], [-1, 0, 1], range(257)])
def test_other_values_are_not(values: list[int]) -> None:
    assert infer_label_values(values) is None
