"""Reliability of the probabilities before and after ``ssl-seg calibrate``, and scores over the threshold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_seg.errors import counted
from ssl_seg.report.figures import COLORS, new_figure, open_frame, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCORES = {"f1": "F1", "precision": "precision", "recall": "recall"}


def plot_calibration(result: dict[str, Any], path: Path) -> None:
    """Write the figure of what ``calibrate`` returns.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    panels = 2 if "sweep" in result else 1
    figure = new_figure(path, (4.6 * panels, 4.4))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _draw_reliability(axes[0], result)
    if panels == 2:
        _draw_sweep(axes[1], result)
    for axis in axes:
        open_frame(axis)
        axis.grid(color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
    figure.suptitle(
        f"{result['checkpoint']}, {result['which']}: {counted(result['cases'], 'validation case')}", fontsize=9
    )
    save_figure(figure, path)


def _draw_reliability(axis: Axes, result: dict[str, Any]) -> None:
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
    for color, (name, rows) in zip(COLORS, result["reliability"].items(), strict=False):
        label = f"{name}: error {result['ece'][name]:.3f}"
        shown = [row for row in rows if row["share"] > 0]
        axis.plot(
            [row["probability"] for row in shown], [row["foreground"] for row in shown], "o-", color=color, label=label
        )
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted probability of foreground", ylabel="share of foreground")
    axis.legend(loc="upper left", frameon=False, fontsize=8)


def _draw_sweep(axis: Axes, result: dict[str, Any]) -> None:
    thresholds = [row["threshold"] for row in result["sweep"]]
    for color, (name, label) in zip(COLORS, SCORES.items(), strict=False):
        axis.plot(thresholds, [row[name] for row in result["sweep"]], "o-", color=color, label=label, markersize=3)
    chosen = result["chosen"]
    axis.axvspan(chosen["low"], chosen["high"], color="0.85", zorder=0)
    axis.axvline(chosen["threshold"], color="0.4", linewidth=1.2, label=f"chosen for {result['rule']}")
    axis.axvline(result["network_threshold"], color="black", linewidth=1.2, linestyle="--", label="used")
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="threshold of the network's probability")
    axis.legend(loc="lower center", frameon=False, fontsize=8)
