"""What a picture shows of an image, and which ones of many."""

from __future__ import annotations

import numpy as np
import pytest
from sizes import around

from ssl_seg.data.pictures import find_fullest, spread, stretch, to_picture


@pytest.mark.parametrize("total", [0, 1, 2, 3, 7, 8, 9, 100])
@pytest.mark.parametrize("count", [1, *around(8)])
def test_items_are_spread_evenly_with_both_ends(total: int, count: int) -> None:
    chosen = spread(range(total), count)
    assert len(set(chosen)) == min(count, total)
    assert chosen == sorted(chosen)
    if total and count > 1:
        assert (chosen[0], chosen[-1]) == (0, total - 1)
    steps = np.diff(chosen)
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_the_fullest_plane_is_the_middle_one_without_foreground() -> None:
    assert find_fullest(np.array([0, 2, 5, 5])) == 2
    assert find_fullest(np.zeros(5, int)) == 2


def test_an_image_is_stretched_to_its_range_but_for_a_few_values() -> None:
    image = np.linspace(-3000, 1000, 1001).reshape(7, 143)
    shown = stretch(image)
    assert (shown.min(), shown.max()) == (0, 1)
    assert 0.004 < (shown == 0).mean() < 0.007
    assert 0.004 < (shown == 1).mean() < 0.007


@pytest.mark.parametrize(("bright", "values"), [(0, {0}), (1, {0, 1})])
def test_an_image_of_almost_one_value_is_shown(bright: int, values: set[int]) -> None:
    image = np.full((100, 100), 7, np.uint8)
    image[:1, :bright] = 250
    assert set(stretch(image).ravel()) == values


def test_images_share_the_scale_of_one() -> None:
    assert stretch(np.array([0.5, 3.0]), like=np.array([0.0, 1.0])) == pytest.approx([0.5, 1], abs=0.01)


@pytest.mark.parametrize(("channels", "shape"), [(1, (4, 5)), (2, (4, 5)), (3, (4, 5, 3))])
def test_three_channels_are_colors(channels: int, shape: tuple[int, ...]) -> None:
    assert to_picture(np.zeros((channels, 4, 5))).shape == shape
