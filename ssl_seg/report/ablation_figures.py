"""The figures of an ablation: scores over labels, cases against the baseline, and what the labels are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_seg.report.ablation_tables import format_labels, name_score
from ssl_seg.report.figures import COLORS, add_legend, name_rows, new_figure, open_frame, save_figure
from ssl_seg.studies.ablation.label_savings import LabelCount
from ssl_seg.studies.ablation.summary import AblationSummary, ArmSummary, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = ("-", "--", ":", "-.")
"""One for each recipe and start of a method."""
_BETTER, _WORSE, _SAME = COLORS[0], COLORS[1], "0.6"
_TIE = 0.005
"""Differences of Dice below are neither better nor worse."""


def plot_ablation(summary: AblationSummary, folder: Path) -> list[str]:
    """Write the figures for which there is something to show, in place of older ones, and return their names.

    Raises:
        DataError: when one cannot be written.
    """
    written = []
    for name, (_, _, plot) in FIGURES.items():
        path = folder / name
        drawn = path.with_name(f".{name}")  # a figure that is being looked at is replaced as a whole
        drawn.unlink(missing_ok=True)
        if plot(summary, drawn):
            drawn.replace(path)
            written.append(name)
        else:
            path.unlink(missing_ok=True)
    return written


def plot_scores(summary: AblationSummary, path: Path) -> bool:
    """Write score over number of labels; returns False where no arm has a score.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    placed = [a for a in summary.arms if a.labeled]
    if not any(a.mean for a in placed):
        return False
    figure = new_figure(path, (7.2, 4.8))
    axis = figure.subplots()
    lines = list(dict.fromkeys(a.line for a in placed if a.mean))
    for index, line in enumerate(lines):
        shift = 1.05 ** (index - (len(lines) - 1) / 2)  # dots of lines with the same labels stand side by side
        own = [a for a in placed if a.line == line]
        _draw_line(axis, own, _find_begin(own, placed), shift, *_style(line, lines), _name(line, lines))
    for score, name, style in (
        (summary.all_positive, "all positive", (0, (6, 2))),
        (summary.predict_nothing, "predict nothing", (0, (1, 2))),
    ):
        if score:
            axis.axhline(score, color="0.35", linewidth=1, linestyle=style, label=f"{name}: {score:.3f}", zorder=1)
    _mark_lost(axis, placed)
    _set_label_axis(axis, placed)
    axis.set_ylabel(name_score(summary))
    _finish(axis)
    add_legend(figure, columns=2 if len(lines) == 2 else 3)
    save_figure(figure, path)
    return True


def _find_begin(own: Sequence[ArmSummary], arms: Sequence[ArmSummary]) -> list[ArmSummary]:
    """Return the arm at the smallest fraction where the line lacks it: there every start is from scratch."""
    alike = [a for a in arms if a.line[:2] == own[0].line[:2]]
    smallest = min(alike, key=lambda a: a.labeled or 1.0)
    return [] if own[0].arm.start == "scratch" or smallest in own else [smallest]


def _draw_line(
    axis: Axes,
    arms: Sequence[ArmSummary],
    begin: Sequence[ArmSummary],
    shift: float,
    color: str,
    style: str,
    name: str,
) -> None:
    means = [(a.labeled or 1.0, a.mean) for a in (*begin, *arms) if a.mean]
    x = np.array([labeled for labeled, _ in means])
    # Without an interval (None, here NaN) neither band nor bar is drawn.
    values, low, high = np.array([(m.value, m.low, m.high) for _, m in means], np.float64).T
    axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
    axis.plot(x, values, color=color, linestyle=style, linewidth=1.8, label=name)
    axis.errorbar(x * shift, values, (values - low, high - values), color=color, linestyle="", elinewidth=1, alpha=0.7)
    for arm in arms:
        for cell, score in zip(arm.cells, arm.scores, strict=True):
            if score is not None:
                collapsed = cell.status == "collapsed"
                axis.plot(
                    (arm.labeled or 1.0) * shift,
                    score,
                    marker="X" if collapsed else "o",
                    markersize=8 if collapsed else 4.5,
                    color=color,
                    markeredgecolor="black" if collapsed else "white",
                    markeredgewidth=0.8 if collapsed else 0.6,
                    linestyle="",
                    zorder=4,
                )


def _mark_lost(axis: Axes, arms: Sequence[ArmSummary]) -> None:
    """Explain the crosses of collapsed runs, and write at the lower edge which runs have no score."""
    if any(a.count("collapsed") for a in arms):
        label = "collapsed run"
        axis.plot([], [], "X", markersize=8, color="white", markeredgecolor="black", linestyle="", label=label)
    lost: dict[float, int] = {}
    for arm in arms:
        if number := arm.count("failed") + arm.count("missing"):
            lost[arm.labeled or 1.0] = lost.get(arm.labeled or 1.0, 0) + number
    for labeled, number in lost.items():
        place = axis.get_xaxis_transform()
        axis.plot(labeled, 0.03, "v", color="black", fillstyle="none", markersize=6, transform=place, clip_on=False)
        axis.annotate(
            f" {number}",
            (labeled, 0.03),
            xycoords=place,
            fontsize=8,
            va="center",
            ha="left",
            xytext=(4, 0),
            textcoords="offset points",
        )
    if lost:
        axis.plot([], [], "v", color="black", fillstyle="none", linestyle="", label="failed or missing runs")


def plot_case_slopes(summary: AblationSummary, path: Path) -> bool:
    """Write for each compared arm how the Dice of every case goes from the baseline to the arm; False without any.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    by_arm = {a.arm: a for a in summary.arms}
    compared = [a for a in summary.arms if a.against]
    if not compared:
        return False
    lines = list(dict.fromkeys(a.line for a in compared))
    every_line = list(dict.fromkeys(a.line for a in summary.arms))
    labels = sorted(
        {a.arm.labels for a in compared}, key=lambda n: next(a.labeled or n for a in compared if a.arm.labels == n)
    )
    figure = new_figure(path, (max(1.2 + 2.3 * len(labels), 4.6), 0.7 + 3.0 * len(lines)))
    axes = figure.subplots(len(lines), len(labels), squeeze=False, sharey=True)
    for row, line in zip(axes, lines, strict=True):
        for axis, fraction in zip(row, labels, strict=True):
            arm = next((a for a in compared if a.line == line and a.arm.labels == fraction), None)
            if arm is None or arm.against is None:
                axis.set_axis_off()
                continue
            reference = by_arm[arm.against.reference]
            _draw_slopes(axis, reference, arm)
            names = (_name(reference.line, every_line), _name(line, every_line))
            axis.set_xticks([0, 1], [name.replace(", ", "\n") for name in names], fontsize=8)
        row[0].set_ylabel("Dice of a case" + ", mean of its classes" * (len(summary.label_values) > 1))
    from matplotlib.lines import Line2D

    mean = "mean of the cases" if summary.positives == summary.cases else "mean of the positive cases"
    keys = {"better": _BETTER, "worse": _WORSE, f"within {_TIE:g}": _SAME, mean: "black"}
    handles = [Line2D([], [], color=c, linewidth=2.5 if c == "black" else 1.2, label=k) for k, c in keys.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(figure, path)
    return True


def _draw_slopes(axis: Axes, reference: ArmSummary, arm: ArmSummary) -> None:
    first, second = np.array(reference.case_dice), np.array(arm.case_dice)
    gains = second - first
    for chosen, color in ((abs(gains) < _TIE, _SAME), (gains >= _TIE, _BETTER), (gains <= -_TIE, _WORSE)):
        if chosen.any():
            axis.plot([0, 1], [first[chosen], second[chosen]], color=color, linewidth=0.9, alpha=0.7)
    if reference.positive is not None and arm.positive is not None:
        axis.plot([0, 1], [reference.positive, arm.positive], color="black", linewidth=2.5, marker="o", markersize=5)
    counts = f"{(gains >= _TIE).sum()} better, {(gains <= -_TIE).sum()} worse"
    axis.set_title(f"{format_labels(arm.arm.labels)} ({_cases(arm)})\n{counts}", fontsize=8)
    axis.set_xlim(-0.25, 1.25)
    axis.set_ylim(-0.02, 1.02)
    _finish(axis)


def plot_labels_equivalent(summary: AblationSummary, path: Path) -> bool:
    """Write how many labels the baseline needs for the score of each arm, beside its own; False where none is known.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    known = [a for a in summary.arms if a.labels_equivalent and a.labeled]
    if not known:
        return False
    every_line = list(dict.fromkeys(a.line for a in summary.arms))
    figure = new_figure(path, (7.2, 1.5 + 0.42 * len(known)))
    axis = figure.subplots()
    _set_label_axis(axis, [a for a in summary.arms if a.labeled])
    for row, arm in enumerate(known):
        color, _ = _style(arm.line, every_line)
        own, equivalent = arm.labeled or 1.0, arm.labels_equivalent
        if equivalent is None:
            continue
        if equivalent.low is not None and equivalent.high is not None:
            ends = [equivalent.low.number, equivalent.high.number]
            axis.plot(ends, [row, row], color=color, linewidth=2, alpha=0.6)
            _draw_end(axis, equivalent.low, row, color)
            _draw_end(axis, equivalent.high, row, color)
        bound = equivalent.value.bound
        marker = {"": "o", "<=": "<", ">=": ">"}[bound]
        axis.plot(equivalent.value.number, row, marker, color=color, markersize=8, markeredgecolor="white", zorder=3)
        axis.plot(own, row, "|", color="black", markersize=15, markeredgewidth=1.8, zorder=2)
        ratio = f"{bound} {equivalent.value.number / own:.2g} x".strip()
        axis.annotate(ratio, (1.01, row), xycoords=axis.get_yaxis_transform(), va="center", fontsize=8)
    names = [f"{_name(a.line, every_line)}, {format_labels(a.arm.labels)}" for a in known]
    name_rows(axis, range(len(known)), names)
    axis.set_ylim(len(known) - 0.4, -0.6)
    axis.set_xlabel(f"labeled cases with which {summary.baseline} has the same score")
    axis.grid(visible=True, axis="x", alpha=0.3)
    _explain_markers(axis)
    save_figure(figure, path)
    return True


def _explain_markers(axis: Axes) -> None:
    axis.plot([], [], "|", color="black", markersize=12, markeredgewidth=1.8, label="labels it was trained with")
    axis.plot([], [], "o-", color="0.4", markersize=7, label="labels-equivalent, 95 % interval")
    axis.plot([], [], ">", color="0.4", markersize=7, label="beyond what was trained")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8)


def _draw_end(axis: Axes, end: LabelCount, row: int, color: str) -> None:
    """Close an interval with a bar, or with an arrow where it goes on beyond what was trained."""
    marker = {"": "|", "<=": "<", ">=": ">"}[end.bound]
    axis.plot(end.number, row, marker, color=color, markersize=9 if end.bound == "" else 6, markeredgewidth=1.5)


def _set_label_axis(axis: Axes, arms: Sequence[ArmSummary]) -> None:
    """Make a logarithmic axis of label numbers with ticks at those that were trained."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axis.set_xscale("log")
    ticks: dict[float, str] = {}
    for arm in arms:
        ticks.setdefault(arm.labeled or 1.0, format_labels(arm.arm.labels))
    shown = {n: f"{n:.4g}" if share.endswith("cases") else f"{n:.4g}\n{share}" for n, share in sorted(ticks.items())}
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(list(shown), list(shown.values()))
    axis.set_xlim(min(shown) / 1.25, max(shown) * 1.25)
    axis.set_xlabel("labeled cases")


def _cases(arm: ArmSummary) -> str:
    return "? labeled" if arm.labeled is None else f"{arm.labeled:.4g} labeled"


def _style(line: Line, lines: Sequence[Line]) -> tuple[str, str]:
    """Return color and line style of a line: the color says the method, the style recipe and start. Of one method alone
    the color says both. Where there are too many of them, all pairs of color and style are used in turn."""
    methods = list(dict.fromkeys(method for method, _, _ in lines))
    variants = list(dict.fromkeys(other[1:] for other in lines))
    looks = []
    for other in lines:
        style = variants.index(other[1:])
        color = style if len(methods) == 1 else methods.index(other[0])
        looks.append((COLORS[color % len(COLORS)], _STYLES[style % len(_STYLES)]))
    if len(set(looks)) < len(lines):
        looks = [(color, style) for style in _STYLES for color in COLORS]
    return looks[lines.index(line) % len(looks)]


def _name(line: Line, lines: Sequence[Line]) -> str:
    """Return the method, with recipe and start where the lines differ in them."""
    method, recipe, start = line
    parts = [method]
    if len({other[1] for other in lines}) > 1:
        parts.append(recipe)
    if len({other[2] for other in lines}) > 1:
        parts.append(start)
    return ", ".join(parts)


def _finish(axis: Axes) -> None:
    axis.grid(visible=True, axis="y", alpha=0.3)
    open_frame(axis)


FIGURES: dict[str, tuple[str, str, Callable[[AblationSummary, Path], bool]]] = {
    "scores.png": (
        "Score over labels",
        "Line: mean over runs; band: its 95 % interval over cases; dots: runs. Below the dashed line is worse than "
        "predicting foreground everywhere.",
        plot_scores,
    ),
    "case_slopes.png": (
        "Cases against the baseline",
        "Dice of each case with the baseline and with the method, mean over runs. This shows whether a mean rises "
        "because of a few cases.",
        plot_case_slopes,
    ),
    "labels_equivalent.png": (
        "What the labels are worth",
        "Number of labeled cases with which the baseline has the same score, on its monotone curve over the logarithm "
        "of the labels. Arrows: beyond what was trained.",
        plot_labels_equivalent,
    ),
}
"""Name of the file -> title, how it is read, and what writes it, if there is something to show."""
