"""One picture of a data set: images with their masks outlined, and how the cases are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.data.pictures import spread, stretch
from ssl_seg.report.figures import (
    COLORS,
    PanelRow,
    class_color,
    find_limits,
    hide_ticks,
    new_figure,
    open_frame,
    outline,
    save_figure,
    show_image,
    write_inside,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

COLUMNS = 6
SHOWN = 24

_LABEL_LETTERS = 24
"""What fits below a chart in one line."""

_FAULT_COLOR = "crimson"
_OUTLINE_PIXELS = 160
"""Pixels of a side for each pixel of the width of an outline: pictures of pages are about as small."""
_LEGEND_COLUMNS = 8
MOST_NAMED = 2 * _LEGEND_COLUMNS
"""Classes in the legend: of more, the legend would be larger than the images, and colors could not be told apart."""


@dataclass(frozen=True)
class Sample:
    """One case: ``image`` (Y, X), or (Y, X, 3) in color, None if it cannot be read; ``target`` (Y, X) class indices.

    ``target`` is None without a mask; negative values are left out. ``faulty`` draws a red frame.
    """

    title: str
    image: NDArray[np.generic] | None
    target: NDArray[np.integer] | None = None
    faulty: bool = False


@dataclass(frozen=True)
class Chart:
    """``values`` of all cases as a histogram, or, as a mapping, one bar for each entry; ``unit`` of the heights."""

    title: str
    values: Sequence[float] | Mapping[str, float]
    unit: str = "cases"


def choose_cases(
    foreground: Mapping[str, float | None], faulty: Sequence[str], count: int = SHOWN
) -> tuple[list[str], list[str]]:
    """Return up to ``count`` cases to look at: faulty ones (half of them at most), and others.

    The others are spread evenly over the cases sorted by foreground, the least and the most included, with up to a
    quarter of them without a mask.

    Args:
        foreground: share of foreground of each case that can be read, None without a mask.
        faulty: cases of the worst findings first; may be repeated.
        count: number of both together.
    """
    first = list(dict.fromkeys(faulty))[: count // 2]
    labeled = sorted((i for i, f in foreground.items() if f is not None and i not in first), key=_by_share(foreground))
    unlabeled = [i for i, f in foreground.items() if f is None and i not in first]
    left = count - len(first)
    without = min(len(unlabeled), max(left // 4, left - len(labeled)))
    return first, [*spread(labeled, left - without), *spread(unlabeled, without)]


def plot_audit(samples: Sequence[Sample], charts: Sequence[Chart], path: Path, class_names: Sequence[str] = ()) -> None:
    """Write a contact sheet of the samples, masks outlined in a color for each class, above a row of charts.

    Args:
        samples: drawn in this order.
        charts: drawn side by side.
        path: a new file; its suffix says the format.
        class_names: names of class 1, 2, ...; several get a legend. Higher indices are called other.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    rows = ceil(len(samples) / COLUMNS)
    heights = [2.2 * rows, 2.6] if rows and charts else [2.2 * rows or 2.6]
    figure = new_figure(path, (2 * COLUMNS, sum(heights)))
    parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if rows:
        _draw_sheet(parts.pop(0), samples, rows, class_names)
    if charts:
        _draw_charts(parts.pop(0), charts)
    save_figure(figure, path)


def _by_share(foreground: Mapping[str, float | None]) -> Any:
    return lambda case_id: (foreground[case_id] or 0.0, case_id)


def _draw_sheet(part: SubFigure, samples: Sequence[Sample], rows: int, class_names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    axes = part.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis, sample in zip(axes, samples, strict=False):
        _draw_sample(axis, sample)
    for axis in axes[len(samples) :]:
        axis.axis("off")
    names = name_colors(samples, class_names)
    if len(names) > 1:
        named = names if len(names) <= MOST_NAMED else names[: MOST_NAMED - 1]
        lines = [Line2D([], [], color=class_color(index), label=name) for index, name in enumerate(named, start=1)]
        if len(named) < len(names):
            lines.append(Line2D([], [], linestyle="none", label=f"and {len(names) - len(named)} more"))
        part.legend(
            handles=lines,
            loc="outside lower center",
            ncols=_LEGEND_COLUMNS,
            fontsize=8,
            facecolor="0.35",
            labelcolor="white",
        )


def name_colors(samples: Sequence[Sample], class_names: Sequence[str]) -> list[str]:
    """Return what color 1, 2, ... of the outlines stands for: the classes, and values that are none."""
    highest = max((int(s.target.max()) for s in samples if s.target is not None), default=0)
    return [*class_names, *["other"] * (highest > len(class_names))]


def _draw_sample(axis: Axes, sample: Sample) -> None:
    color = _FAULT_COLOR if sample.faulty else "black"
    axis.set_title(sample.title, fontsize=7, color=color)
    hide_ticks(axis)
    axis.spines[:].set(color=color, linewidth=3 if sample.faulty else 0.5)
    if sample.image is None:
        write_inside(axis, "cannot be read", color)
        return
    show_image(axis, sample.image)
    for index in () if sample.target is None else np.unique(sample.target[sample.target > 0]):
        outline(axis, sample.target == index, class_color(int(index)))


def paint_sample(sample: Sample) -> NDArray[np.float64]:
    """Return the image as colors (Y, X, 3) in [0, 1] with the borders of its classes; gray where it cannot be read."""
    if sample.image is None:
        return np.full((64, 64, 3), 0.5)
    stretched = stretch(sample.image)
    colored = stretched if stretched.ndim == 3 else np.repeat(stretched[..., None], 3, axis=-1)
    target = np.zeros(colored.shape[:2], int) if sample.target is None else sample.target
    width = -(-max(target.shape) // _OUTLINE_PIXELS)
    for index in np.unique(target[target > 0]):
        inside = ndimage.binary_erosion(target == index, iterations=width, border_value=0)
        colored[(target == index) & ~inside] = class_color(int(index))
    return colored


def _draw_charts(part: SubFigure, charts: Sequence[Chart]) -> None:
    for axis, chart in zip(part.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        axis.set_title(chart.title, fontsize=9)
        _draw_chart(chart, axis)


def make_chart_panels(charts: Sequence[Chart]) -> PanelRow:
    """Return the charts as figures of a page."""
    panels = tuple((f"{c.title[:1].upper()}{c.title[1:]}", partial(_draw_chart, c)) for c in charts)
    return PanelRow("", "", (4.6, 2.5), panels)


def _draw_chart(chart: Chart, axis: Axes) -> None:
    axis.set_ylabel(chart.unit, fontsize=7)
    open_frame(axis)
    axis.locator_params(axis="y", integer=chart.unit == "cases")
    if isinstance(chart.values, Mapping):
        bars = axis.bar(list(chart.values), list(chart.values.values()), color=COLORS[0], width=0.6)
        if chart.unit != "cases":
            shares = [f" {100 * share:.3g} %" for share in chart.values.values()]
            axis.bar_label(bars, shares, fontsize=7, rotation=0 if len(bars) < 5 else 90)
            axis.margins(y=0.1 if len(bars) < 5 else 0.4)  # else the number lies on the title
        axis.set_xlim(-0.8, len(chart.values) - 0.2)
        axis.tick_params(axis="x", rotation=0 if len("".join(chart.values)) <= _LABEL_LETTERS else 45)
    elif chart.values:
        _draw_histogram(axis, chart.values)


def _draw_histogram(axis: Axes, values: Sequence[float]) -> None:
    """Draw the values that can be told apart, and say below the axis how many lie beyond it."""
    low, high, beyond = find_limits(values)
    near = [value for value in values if low <= value <= high]
    axis.hist(near, bins=_bins(near), color=COLORS[0], edgecolor="white", linewidth=0.5)
    axis.locator_params(axis="x", nbins=5)
    if beyond:
        axis.set_xlabel(f"{beyond} beyond the axis, {min(values):.4g} to {max(values):.4g}", fontsize=7)


def _bins(values: Sequence[float]) -> int:
    """Return one bin for values that are all the same, else about the square root of their number."""
    return 1 if min(values) == max(values) else min(30, max(5, round(len(values) ** 0.5)))
