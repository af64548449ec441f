"""What the figure of a split shows, read back from what was drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from ssl_seg.data.splits.statistics import SetComparison, SetMeasures
from ssl_seg.errors import DataError
from ssl_seg.report.split_figure import plot_split


def comparison(values: list[float], reference: float) -> SetComparison:
    mean = float(np.mean(values))
    return SetComparison(
        mean,
        reference,
        mean - 0.1,
        mean + 0.1,
        reference - 0.2,
        reference + 0.2,
        50,
        0.1,
        50,
        0.1,
        50,
        np.array(values),
    )


def make_measures(*, intensity: bool = True) -> list[SetMeasures]:
    ten = comparison([0.1, 0.3], 0.4)
    val = comparison([0.2, 0.4, 0.9], 0.45)
    other = comparison([-1.0, 1.0], 0.0) if intensity else None
    third = comparison([-1.0, 1.0, 3.0], 0.0) if intensity else None
    return [
        SetMeasures("labels 0.1", 0.1, ("a", "b"), 2, 2.0, 2, ten, None, other),
        SetMeasures("val", None, ("c", "d", "e"), 2, 1.8, 3, val, None, third),
    ]


def test_each_set_is_a_row_with_its_cases_mean_interval_and_band(drawn: list[Figure], tmp_path: Path) -> None:
    plot_split(make_measures(), tmp_path / "new" / "s.png")
    left, right = drawn[0].axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["labels 10 %\n2 cases", "val\n3 cases, 2 groups"]
    for row, m in enumerate(make_measures()):
        points = np.asarray(left.collections[row].get_offsets())
        assert points[:, 0].tolist() == m.foreground.values.tolist()
        assert (np.abs(points[:, 1] - row) < 0.4).all()
        band = left.patches[row]
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(
            (m.foreground.band_low, m.foreground.band_high)
        )
        lines = [line.get_xdata() for line in left.lines[3 * row : 3 * row + 3]]
        assert np.concatenate(lines) == pytest.approx(
            [m.foreground.reference] * 2 + [m.foreground.low, m.foreground.high, m.foreground.mean]
        )
    assert np.asarray(right.collections[1].get_offsets())[:, 0].tolist() == [-1.0, 1.0, 3.0]
    assert cv2.imread(str(tmp_path / "new" / "s.png")).std() > 0


def test_a_case_far_from_all_others_is_counted_and_does_not_squash_them(drawn: list[Figure], tmp_path: Path) -> None:
    measures = make_measures()
    spread = comparison([*np.linspace(-1, 1, 40), 60.0], 0.0)
    plot_split([measures[0], replace(measures[1], intensity=spread)], tmp_path / "s.png")
    left, right = drawn[0].axes
    assert right.get_xlim()[1] < 4
    assert right.get_xlim()[1] > spread.mean
    assert right.get_xlabel().endswith("\n1 case beyond the axis")
    assert "beyond" not in left.get_xlabel()


def test_without_intensities_there_is_one_panel(drawn: list[Figure], tmp_path: Path) -> None:
    plot_split(make_measures(intensity=False), tmp_path / "s.png")
    assert len(drawn[0].axes) == 1


def test_a_single_case_has_no_interval_and_a_wide_one_is_cut(drawn: list[Figure], tmp_path: Path) -> None:
    first, second = make_measures()
    first = replace(first, foreground=replace(first.foreground, low=None, high=None))
    second = replace(second, foreground=replace(second.foreground, low=-50.0, high=50.0))
    plot_split([first, second], tmp_path / "s.png")
    axis = drawn[0].axes[0]
    assert len(axis.lines) == 5
    assert axis.get_xlim() == pytest.approx((0.1 - 0.032, 0.9 + 0.032))


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        plot_split([], tmp_path / "s.png")
