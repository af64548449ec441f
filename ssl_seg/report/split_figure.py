"""The sets of a split beside each other: do 1 %, 10 % and all labels, validation and test hold the same?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_seg.data.splits.statistics import SetComparison, SetMeasures
from ssl_seg.errors import DataError
from ssl_seg.report.figures import (
    COLORS,
    MOST_POINTS,
    Drawing,
    add_legend,
    find_limits,
    make_figure,
    name_rows,
    new_figure,
    save_figure,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = {"labeled": COLORS[0], "held out": COLORS[1]}
_CAPTION = (
    "A point for each case, blue of labeled sets, red of sets that are held out. A mean (diamond) outside its gray "
    "band is rare by chance: such a set differs from what it stands for."
)
_Panel = tuple[str, list[SetComparison]]
"""Name of a quantity, and the comparison of each set."""
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
    panels = _list_panels(measures)
    figure = new_figure(path, (1.6 + 5.2 * len(panels), _make_height(measures)))
    _draw_panels(figure, measures, panels)
    save_figure(figure, path)


def draw_split(measures: Sequence[SetMeasures]) -> tuple[Drawing, ...]:
    """Return the panels of ``plot_split``, each as a figure of a page; none where there is nothing to show."""
    drawings = []
    for panel in _list_panels(measures) if measures else ():
        figure = make_figure((5.0, _make_height(measures)))
        _draw_panels(figure, measures, [panel])
        drawings.append(Drawing(f"{panel[0][:1].upper()}{panel[0][1:]}", _CAPTION, to_svg(figure)))
    return tuple(drawings)


def _list_panels(measures: Sequence[SetMeasures]) -> list[_Panel]:
    panels = [("foreground fraction of a case", [m.foreground for m in measures])]
    if all(m.intensity is not None for m in measures):
        title = "mean intensity of a case (standard deviations)"
        panels.append((title, [m.intensity for m in measures if m.intensity is not None]))
    return panels


def _make_height(measures: Sequence[SetMeasures]) -> float:
    return 1.5 + 0.75 * len(measures)


def _draw_panels(figure: Figure, measures: Sequence[SetMeasures], panels: Sequence[_Panel]) -> None:
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, comparisons) in zip(axes, panels, strict=True):
        for row, (m, comparison) in enumerate(zip(measures, comparisons, strict=True)):
            _draw_row(axis, row, comparison, _COLORS["held out" if m.fraction is None else "labeled"])
        low, high, beyond = _limits(comparisons)
        axis.set_xlim(low, high)
        axis.set_xlabel(title + (f"\n{beyond} case(s) beyond the axis" if beyond else ""))
        axis.grid(axis="x", color="0.9", linewidth=0.8)
        axis.set_axisbelow(True)
        name_rows(axis, range(len(measures)), [_label(m) for m in measures])
    axes[0].set_ylim(len(measures) - 0.5, -0.5)
    add_legend(figure, "outside upper center", 1 if len(panels) == 1 else 3)


def _draw_row(axis: Axes, row: int, comparison: SetComparison, color: str) -> None:
    values = comparison.values
    heights = row + np.random.default_rng(0).uniform(-_SPREAD, _SPREAD, len(values))
    size = float(np.clip(2000 / len(values), 4, 36))
    low, high = comparison.band_low, comparison.band_high
    label = "95 % of random draws have their mean here"
    axis.barh(row, high - low, left=low, height=0.8, color="0.85", label=label, zorder=0)
    label = "mean of what the set is compared with"
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
    groups = f", {m.groups} groups" if m.groups < len(m.ids) else ""
    return f"{name}\n{len(m.ids)} cases{groups}"
