"""Resampling: the grid, and what is on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import around

from ssl_seg.data.resample import MOST_TIMES, compute_resampled_shape, resample_image, resample_labels
from ssl_seg.errors import DataError


@pytest.mark.parametrize(
    ("shape", "spacing", "new", "expected"),
    [
        ((10, 20, 30), (2.5, 1.0, 1.0), (1.0, 1.0, 1.0), (25, 20, 30)),
        ((44, 80), (1.25, 1.25), (2.5, 5.0), (22, 20)),
        ((3, 3), (1.0, 1.0), (100.0, 1.0), (1, 3)),
    ],
)
def test_the_extent_stays(
    shape: tuple[int, ...], spacing: tuple[float, ...], new: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    assert compute_resampled_shape(shape, spacing, new) == expected


@pytest.mark.parametrize("shape", [(8, 12), (4, 6, 10)])
def test_enlarged_images_equal_torch_interpolation(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    wanted = tuple(3 * n for n in shape)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    expected = torch.nn.functional.interpolate(torch.from_numpy(image)[None], wanted, mode=mode, align_corners=False)
    np.testing.assert_allclose(resample_image(image, wanted), expected[0].numpy(), atol=1e-5)


def test_shrinking_averages_fine_structure_away() -> None:
    stripes = np.tile(np.array([0, 100], np.uint8), (1, 32, 16))
    small = resample_image(stripes, (8, 8))
    assert small[:, 2:-2, 2:-2].std() < 15  # without smoothing every fourth voxel would be taken as it is
    assert abs(float(small.mean()) - 50) < 10


@settings(deadline=None, max_examples=30)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_labels_come_from_the_nearest_voxel(shape: tuple[int, int], new: tuple[int, int]) -> None:
    labels = np.arange(np.prod(shape)).reshape(shape)
    got = resample_labels(labels, new)
    assert got.shape == new
    for index in np.ndindex(*new):
        center = [(i + 0.5) * old / n - 0.5 for i, old, n in zip(index, shape, new, strict=True)]
        found = np.argwhere(labels == got[index])[0]
        assert all(abs(f - c) <= 0.5 + 1e-6 for f, c in zip(found, center, strict=True))


def test_the_same_grid_changes_nothing() -> None:
    image = np.random.default_rng(1).normal(size=(1, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(resample_image(image, (5, 7)), image, atol=1e-6)


@pytest.mark.parametrize("times", around(MOST_TIMES))
def test_voxel_sizes_in_two_units_are_refused(times: int) -> None:
    """Of mm against µm an image would become one voxel, or fill the memory."""
    for old, new in ((times, 1), (1, times)):
        if times <= MOST_TIMES:
            assert compute_resampled_shape((300, 7), (old, 2), (new, 2)) == (max(1, round(300 * old / new)), 7)
        else:
            with pytest.raises(DataError, match="another unit"):
                compute_resampled_shape((300, 7), (old, 2), (new, 2))
