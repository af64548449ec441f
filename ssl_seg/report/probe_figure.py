"""A loss in one picture: what its weights say, what its gradients say, and what it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_seg.report.figures import name_rows, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ssl_seg.diagnose.loss_probe import LossProbe, StateProbe

_CONFLICT = -0.5
"""Cosines below are framed."""


def plot_probe(probe: LossProbe, path: Path) -> None:
    """Write three panels: shares of weights and gradients by phase, cosines by state, and values by prediction.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    count, states = len(probe.components), len(probe.states)
    side, table = 1.9 + 0.5 * count, 2.6 + 0.75 * (4 + states)
    figure = new_figure(path, (6.0 + side + table, max(2.8, states * side + 0.4)))
    grid = figure.add_gridspec(states, 3, width_ratios=[6.0, side, table])
    _draw_shares(figure.add_subplot(grid[:, 0]), probe)
    for row, state in enumerate(probe.states):
        _draw_cosines(figure.add_subplot(grid[row, 1]), probe.components, state)
    _draw_values(figure.add_subplot(grid[:, 2]), probe)
    save_figure(figure, path)


def _draw_shares(axis: Axes, probe: LossProbe) -> None:
    """Draw a stacked bar of the weights of each phase, and below it one of the gradient shares in each state."""
    bars: list[tuple[str, Mapping[str, float]]] = []
    for index, phase in enumerate(probe.phases):
        total = sum(phase.weights.values())
        bars.append((f"epoch {phase.from_epoch:g}: weights", {n: w / total for n, w in phase.weights.items()}))
        bars += [(state.name, state.shares[index]) for state in probe.states]
    rows = [i + 0.6 * (i // (1 + len(probe.states))) for i in range(len(bars))]
    lefts = np.zeros(len(bars))
    for name, color in zip(probe.components, _colors(len(probe.components)), strict=True):
        widths = np.array([shares.get(name, 0.0) for _, shares in bars])
        drawn = axis.barh(rows, widths, left=lefts, height=0.8, color=color, label=name, edgecolor="white")
        axis.bar_label(drawn, [f"{w:.0%}" if w >= 0.06 else "" for w in widths], label_type="center", fontsize=8)
        lefts += widths
    name_rows(axis, rows, [label for label, _ in bars])
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the weights, and of the weighted gradient norms")
    axis.set_ylim(max(rows[-1] + 0.6, 4.0), -0.6)  # a few bars stay slim
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8)


def _draw_cosines(axis: Axes, names: Sequence[str], state: StateProbe) -> None:
    """Draw the matrix of cosines with its numbers, conflicts framed; empty where a component has no gradient."""
    matrix = np.eye(len(names))
    for pair in state.cosines:
        i, j = names.index(pair.first), names.index(pair.second)
        matrix[i, j] = matrix[j, i] = pair.mean
    axis.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(matrix):
        conflict = value < _CONFLICT
        text = "" if np.isnan(value) else f"{value:.2f}"
        color = "white" if abs(value) > 0.7 else "black"
        axis.text(
            column, row, text, ha="center", va="center", fontsize=8, color=color, weight="bold" if conflict else None
        )
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_title(f"cosine of gradients\n{state.name}", fontsize=9)


def _draw_values(axis: Axes, probe: LossProbe) -> None:
    """Draw the values as a table, each row shaded from its lowest to its highest: components have their own scales."""
    predictions = list(next(iter(probe.constants.values())))
    rows = {
        name: [*(constants[p] for p in predictions), *(state.values[name] for state in probe.states)]
        for name, constants in probe.constants.items()
    }
    for phase in probe.phases:
        columns = zip(*(np.array(rows[n]) * w for n, w in phase.weights.items() if w > 0), strict=True)
        rows[f"total, epoch {phase.from_epoch:g}"] = [float(sum(column)) for column in columns]
    values = np.array(list(rows.values()))
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    shade = (values - low) / np.where(high > low, high - low, 1.0)
    axis.imshow(shade, cmap="Oranges", vmin=0, vmax=1.6, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axis.text(column, row, _number(value), ha="center", va="center", fontsize=8)
    axis.axhline(len(probe.components) - 0.5, color="black", linewidth=0.8)
    titles = [*(p.replace("_", " ") for p in predictions), *(state.name for state in probe.states)]
    axis.set_xticks(range(len(titles)), titles, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set_title("value at predictions, light = lowest of its row", fontsize=9)


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _colors(count: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    palette = colormaps["Set2" if count <= 8 else "tab20"]
    return [palette(i % palette.N) for i in range(count)]
