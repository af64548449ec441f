"""Audits of all images together, on figures made by hand."""

from __future__ import annotations

import pytest

from ssl_seg.diagnose.audits import _check_equality, _is_uniform

EQUAL = {"images": 4, "mean_spread": 0.002, "std_spread": 0.003}


@pytest.mark.parametrize(
    ("same", "images", "ratio", "expected"),
    [
        (45, 45, 0.9506, True),
        (5, 5, 0.7119, True),
        (9, 10, 0.3, True),
        (8, 10, 0.3, False),
        (2, 2, 0.3, False),
        (50, 50, 0.0002, False),  # sparse lesions: shares agree to 1e-4 whatever the images show
        (50, 50, 0.0, False),
    ],
)
def test_uniform_ratios(same: int, images: int, ratio: float, expected: bool) -> None:
    assert _is_uniform(same, images, ratio) == expected


@pytest.mark.parametrize(
    ("prob_std", "auroc", "level"),
    [(0.0698, 0.5, "collapsed"), (0.0698, None, "collapsed"), (0.118, 0.54, "warn"), (0.0698, 0.8, None)],
)
def test_equal_statistics_of_images_that_may_be_alike_are_a_warning(
    prob_std: float, auroc: float | None, level: str | None
) -> None:
    found = list(_check_equality(EQUAL, {"prob_mean": 0.6, "prob_std": prob_std}, "student", auroc))
    assert [f.level for f in found] == ([] if level is None else [level])


def test_different_statistics_are_none() -> None:
    different = EQUAL | {"mean_spread": 0.05}
    assert not list(_check_equality(different, {"prob_mean": 0.6, "prob_std": 0.05}, "student", None))
