"""A run before it is started: learning rate, consistency weight, EMA decay, loss weights and policies over epochs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_seg.config.curves import ActivePeriod, RunCurves
from ssl_seg.report.figures import name_rows, new_figure, open_frame, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOR = "#2a6fbb"
_WIDTH = 1.6
_NEAREST = 1e-4
"""Distance from 1 at which a decay is drawn as 1."""
_POSSIBLE = "#d9a441"


def plot_schedule(curves: RunCurves, path: Path, title: str = "") -> None:
    """Write one panel for each quantity, epochs below and steps above; policies are rows of the last panel.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    lines: list[tuple[str, dict[str, tuple[float, ...]]]] = [("learning rate", {"": curves.lr})]
    if curves.consistency_weight is not None:
        lines.append(("consistency\nweight", {"": curves.consistency_weight}))
    lines += [("loss weights", curves.loss_weights), ("EMA decay", {"": curves.ema_decay})]
    heights = [1.5] * len(lines) + ([0.5 + 0.28 * len(curves.windows)] if curves.windows else [])
    figure = new_figure(path, (9.5, sum(heights) + 1.1 + 0.2 * len(curves.notes)))
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    epochs = [step / curves.steps_per_epoch for step in curves.steps]
    for axis, (label, series) in zip(axes, lines, strict=False):
        _draw_lines(axis, epochs, label, series)
    _scale_decay(axes[len(lines) - 1])
    if curves.windows:
        _draw_windows(axes[-1], curves.windows)
    for axis in axes:
        for start in curves.phase_starts:
            axis.axvline(start, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes[-1].set_xlim(0, curves.total_steps / curves.steps_per_epoch)
    axes[-1].set_xlabel("\n".join(["epoch", *curves.notes]))
    scale = curves.steps_per_epoch
    above = axes[0].secondary_xaxis("top", functions=(lambda epoch: epoch * scale, lambda step: step / scale))
    above.set_xlabel("step")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _draw_lines(axis: Axes, epochs: list[float], label: str, series: dict[str, tuple[float, ...]]) -> None:
    for index, (name, values) in enumerate(series.items()):
        width = _WIDTH * 2 ** (1 - index / max(len(series) - 1, 1)) if name else _WIDTH  # equal ones stay visible
        axis.plot(epochs, values, linewidth=width, label=name, color=None if name else _COLOR)
    if any(series):
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    axis.set_ylim(0, 1.08 * float(np.nanmax(list(series.values()))) or 1.0)
    axis.set_ylabel(label, fontsize=9)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.grid(color="0.92", linewidth=0.8)
    axis.set_axisbelow(True)
    open_frame(axis)


def _scale_decay(axis: Axes) -> None:
    """Spread the decays next to 1, where a tenth of the distance is ten times the length of the average."""
    ticks = (0.0, 0.9, 0.99, 0.999, 1.0)
    axis.set_yscale(
        "function",
        functions=(
            lambda decay: -np.log10(np.maximum(1 - decay, _NEAREST)),
            lambda height: 1 - np.power(10.0, -height),
        ),
    )
    axis.set_ylim(0, 1)
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _draw_windows(axis: Axes, windows: tuple[ActivePeriod, ...]) -> None:
    for row, window in enumerate(windows):
        color = _COLOR if window.certain else _POSSIBLE
        if window.marks:
            axis.plot(window.marks, [row] * len(window.marks), "|", color=color, markersize=9)
        elif window.acts:
            axis.barh(row, window.end - window.start, left=window.start, height=0.45, color=color, alpha=0.6)
        else:
            axis.text(0, row, " never in this run", va="center", fontsize=8, color="0.4")
    names = [window.name if window.certain else f"{window.name}\n(possible)" for window in windows]
    name_rows(axis, range(len(windows)), names)
    axis.set_ylim(len(windows) - 0.5, -0.5)
