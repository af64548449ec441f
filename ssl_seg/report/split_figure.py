"""The sets of a split beside each other: do 1 %, 10 % and all labels, validation and test hold the same?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_seg.data.splits.statistics import SetComparison, SetMeasures
from ssl_seg.errors import DataError, counted
from ssl_seg.report.figures import COLORS, MOST_POINTS, PanelRow, find_limits, name_rows, plot_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"labeled": COLORS[0], "held out": COLORS[1]}
_CAPTION = (
    "A point for each case, blue of labeled sets, red of sets that are held out. A mean (diamond) outside its gray "
    "band is rare by chance: such a set differs from what it stands for."
)
_SPREAD = 0.26
"""Height over which the points of a set are scattered, in rows."""


def plot_split(measures: Sequence[SetMeasures], path: Path) -> None:
    """Write one row a set: its cases as points, its mean with interval, and where random draws have their mean.

    The left panel shows the foreground fraction, the right one the mean intensity where it is known.

    Raises:
        DataError: when there is nothing to show, or the file exists or cannot be written.
    """
    if not measures:
        raise DataError("no case of the split is in the data with a mask: there is nothing to draw")
    plot_panels(make_split_panels(measures), path, share_y=True)


def make_split_panels(measures: Sequence[SetMeasures]) -> PanelRow:
    """Return the panels of ``plot_split``; none where there is nothing to show."""
    named = {
        "foreground fraction of a case": [m.foreground for m in measures],
        "mean intensity of a case (standard deviations)": [m.intensity for m in measures if m.intensity is not None],
    }
    panels = tuple(
        (f"{title[:1].upper()}{title[1:]}", partial(_draw_panel, measures, title, comparisons))
        for title, comparisons in named.items()
        if measures and len(comparisons) == len(measures)
    )
    return PanelRow("Sets of the split", _CAPTION, (6.0, 1.5 + 0.75 * len(measures)), panels)


def _draw_panel(measures: Sequence[SetMeasures], title: str, comparisons: Sequence[SetComparison], axis: Axes) -> None:
    for row, (m, comparison) in enumerate(zip(measures, comparisons, strict=True)):
        _draw_row(axis, row, comparison, _COLORS["held out" if m.fraction is None else "labeled"])
    low, high, beyond = _limits(comparisons)
    axis.set_xlim(low, high)
    axis.set_ylim(len(measures) - 0.5, -0.5)
    axis.set_xlabel(title + (f"\n{counted(beyond, 'case')} beyond the axis" if beyond else ""))
    axis.grid(axis="x", color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    name_rows(axis, range(len(measures)), [_label(m) for m in measures])


def _draw_row(axis: Axes, row: int, comparison: SetComparison, color: str) -> None:
    values = comparison.values
    heights = row + np.random.default_rng(0).uniform(-_SPREAD, _SPREAD, len(values))
    size = float(np.clip(2000 / len(values), 4, 36))
    low, high = comparison.band_low, comparison.band_high
    label = "means of 95 % of random draws"
    axis.barh(row, high - low, left=low, height=0.8, color="0.85", label=label, zorder=0)
    label = "mean that it is compared with"
    axis.plot([comparison.reference] * 2, [row - 0.4, row + 0.4], color="0.35", linewidth=1.2, label=label)
    is_raster = len(values) > MOST_POINTS
    axis.scatter(values, heights, s=size, color=color, alpha=0.5, linewidths=0, zorder=2, rasterized=is_raster)
    if comparison.low is not None and comparison.high is not None:
        axis.plot([comparison.low, comparison.high], [row, row], color="black", linewidth=1.6, zorder=3)
    label = "mean, with 95 % interval"
    axis.plot([comparison.mean], [row], "D", color="black", markersize=6, linestyle="-", label=label, zorder=4)


def _limits(comparisons: Sequence[SetComparison]) -> tuple[float, float, int]:
    """Return limits that show all bands, means and points, but for a few points far from all others, and how many these
    are; the interval of two cases may be cut."""
    low, high, _ = find_limits(np.concatenate([c.values for c in comparisons]))
    ends = [low, high, *(end for c in comparisons for end in (c.band_low, c.band_high, c.mean))]
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin
    beyond = sum(not low <= value <= high for c in comparisons for value in c.values)
    return low, high, beyond


def _label(m: SetMeasures) -> str:
    name = m.name if m.fraction is None else f"labels {100 * m.fraction:g} %"
    groups = f", {counted(m.groups, 'group')}" if m.groups < len(m.ids) else ""
    return f"{name}\n{counted(len(m.ids), 'case')}{groups}"
