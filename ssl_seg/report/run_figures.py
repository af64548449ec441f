"""The curves of a run over its steps, each as an SVG element for a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.config import NETS
from ssl_seg.config.curves import RunCurves, compute_curves
from ssl_seg.data.pictures import spread
from ssl_seg.errors import SslSegError
from ssl_seg.report.figures import (
    COLORS,
    MOST_POINTS,
    PAGE_WIDTH,
    Drawing,
    add_legend,
    make_drawing,
    make_figure,
    open_frame,
)
from ssl_seg.report.run_record import Looks, RunRecord
from ssl_seg.run.final_scores import NetworkScore
from ssl_seg.scores.calibration import compute_ece
from ssl_seg.scores.text import shown_f1

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NET_COLORS = dict(zip(NETS, COLORS, strict=False))
_WARNED, _COLLAPSED = "#ccbb44", "#ee6677"
_MUTED, _FAINT = "0.4", "0.85"
_LEAST_SHARE = 1e-4
"""Lower end of the shares in the histogram over time."""
_MOST_LOGIT = 20.0
"""Log-odds beyond are drawn here: probabilities of 2e-9 and less."""
_WIDE = 100.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
_MARKED = {
    "intervention": "intervention",
    "lr_reduced": "rate lowered",
    "plateau": "rate changed at a plateau",
    "rollback": "rollback",
    "loss_phase": "loss phase",
    "resumed": "resumed",
}
"""Events that are drawn on the axis of the steps -> what they are called."""
_MOST_COMPONENTS = len(COLORS)
_MOST_MARKS = 40


def draw_scores(record: RunRecord) -> Drawing | None:
    """Return F1 of both networks over the steps, with the trivial score as a line; None without a look."""
    if not len(record.looks.steps):
        return None
    caption = "Below the dashed line is worse than predicting foreground everywhere"
    if shown_f1(record.looks.values)[0] == "f1":
        caption += ". Dotted: what the best threshold would give"
    return make_drawing(plot_f1(record), "F1 of student and teacher", f"{caption}{_describe_marks(record)}.", 0)


def plot_f1(record: RunRecord) -> Figure:
    """Return the figure of ``draw_scores``, of a run with a look."""
    looks = record.looks
    name, trivial, title = shown_f1(looks.values)
    figure, (axis,) = _open(record, (2.7,))
    for net in NETS:
        _plot(axis, looks, f"val/{net}/{name}", net, color=NET_COLORS[net])
        if name == "f1":
            _plot(axis, looks, f"val/{net}/f1_best", None, color=NET_COLORS[net], linestyle=":", linewidth=1.1)
    if name == "f1":
        axis.plot([], [], color=_MUTED, linestyle=":", linewidth=1.1, label="at its best threshold")
    _plot(axis, looks, f"val/{trivial}", "foreground everywhere", color=_MUTED, linestyle="--", linewidth=1.2)
    if record.used is not None:
        place = (record.used.step, getattr(record.used.score, name))
        axis.plot(*place, "D", color=NET_COLORS[record.used.net], markersize=7, label="used, whole images", zorder=5)
    axis.set_ylim(0, 1.02)
    axis.set_ylabel(f"{title} on validation", fontsize=8)
    add_legend(figure, columns=2)
    return figure


def draw_curves(record: RunRecord) -> tuple[Drawing, ...]:
    """Return the figures for which there is something to show, in the order in which they are read."""
    if not len(record.looks.steps):
        return ()
    found = (draw(record) for draw in _CURVES)
    return tuple(drawing for drawing in found if drawing is not None)


def _draw_logits(record: RunRecord) -> Drawing | None:
    looks = record.looks
    nets = [net for net in NETS if f"val/{net}/logit_q50" in looks.values]
    if not nets:
        return None
    figure, axes = _open(record, (1.5,) * len(nets))
    for axis, net in zip(axes, nets, strict=True):
        for low, high, alpha in (("01", "99", 0.13), ("05", "95", 0.2), ("25", "75", 0.35)):
            ends = [looks.values[name] for q in (low, high) if (name := f"val/{net}/logit_q{q}") in looks.values]
            if len(ends) == 2:
                low_end, high_end = (np.clip(end, -_MOST_LOGIT, _MOST_LOGIT) for end in ends)
                axis.fill_between(looks.steps, low_end, high_end, color=NET_COLORS[net], alpha=alpha, linewidth=0)
        median = np.clip(looks.values[f"val/{net}/logit_q50"], -_MOST_LOGIT, _MOST_LOGIT)
        axis.plot(looks.steps, median, color=NET_COLORS[net], linewidth=1.6)
        axis.axhline(0, color=_MUTED, linewidth=0.8, linestyle="--")
        axis.set_ylabel(f"{net}\nlog-odds", fontsize=8)
    caption = (
        "Log-odds of foreground over the voxels of the validation probe: the median, and the bands that hold half, 90 "
        "and 98 % of them, cut at 20. A band that shrinks to a line is an output that no longer depends on the image."
    )
    return make_drawing(figure, "Range of the outputs", caption)


def _draw_histograms(record: RunRecord) -> Drawing | None:
    from matplotlib.colors import LogNorm

    looks = record.looks
    if not looks.histograms or len(looks.steps) < 2:
        return None
    figure, axes = _open(record, (1.5,) * len(looks.histograms))
    edges = _edges(looks)
    for axis, (net, shares) in zip(axes, looks.histograms.items(), strict=True):
        mesh = axis.pcolormesh(
            edges,
            np.linspace(0, 1, shares.shape[1] + 1),
            np.maximum(shares, _LEAST_SHARE).T,
            norm=LogNorm(_LEAST_SHARE, 1),
            cmap="viridis",
            rasterized=True,
        )
        axis.set_ylabel(f"{net}\nprobability", fontsize=8)
    bar = figure.colorbar(mesh, ax=list(axes), pad=0.02, aspect=30)
    bar.ax.tick_params(labelsize=7)
    caption = (
        "Share of the voxels at each probability of foreground, on a logarithmic scale. One bright line: a constant."
    )
    return make_drawing(figure, "Probabilities over time", caption)


def _draw_losses(record: RunRecord) -> Drawing | None:
    looks = record.looks
    components = _list_components(record)
    if "train/loss" not in looks.values and "val/student/loss" not in looks.values:
        return None
    figure, axes = _open(record, (1.6, 1.6) if components else (2.2,))
    _plot(axes[0], looks, "train/loss", "training", color=COLORS[0])
    _plot(axes[0], looks, "val/student/loss", "validation probe", color=COLORS[1], linestyle="--")
    axes[0].set_ylabel("loss", fontsize=8)
    for color, name in zip(COLORS, components, strict=False):
        _plot(axes[1], looks, f"train/{name}", name, color=color)
        _plot(axes[1], looks, f"val/student/loss/{name}", None, color=color, linestyle="--")
    if components:
        axes[1].set_ylabel("components", fontsize=8)
    for axis in axes:
        _widen(axis)
    phases = _shade_phases(record, axes)
    caption = (
        "Means over the training steps between two looks (solid), and the student on the validation probe (dashed)"
    )
    return make_drawing(figure, "Losses", f"{caption}{phases}.")


def _draw_schedule(record: RunRecord) -> Drawing | None:
    looks, planned = record.looks, _plan_curves(record)
    panels: list[Callable[[Axes], None]] = []
    if planned is not None or "train/lr" in looks.values:
        panels.append(lambda axis: _draw_plan(axis, looks, planned, "lr", "train/lr", "learning rate"))
    if planned is not None and record.config is not None:
        panels.append(lambda axis: _draw_decay(axis, planned))
    weight = "train/consistency_weight"
    if weight in looks.values or (planned is not None and planned.consistency_weight is not None):
        panels.append(lambda axis: _draw_plan(axis, looks, planned, "consistency_weight", weight, "ramp:\nconsistency"))
    if not panels:
        return None
    figure, axes = _open(record, (1.1,) * len(panels))
    for axis, draw in zip(axes, panels, strict=True):
        draw(axis)
    caption = "As planned (line) and as it was (dots). Decay of the teacher's average: 1 keeps it as it is."
    return make_drawing(figure, "Learning rate, EMA decay and ramp", caption, 3)


def _draw_plan(axis: Axes, looks: Looks, planned: RunCurves | None, plan: str, name: str, label: str) -> None:
    values = None if planned is None else getattr(planned, plan)
    if planned is not None and values is not None:
        axis.plot(*_thin(planned.steps, values), color=COLORS[0], linewidth=1.3, label="planned")
    if name in looks.values:
        # A weight is the mean over the steps since the look before; a rate is that of the last one.
        back = 0 if plan == "lr" else looks.values.get("train/steps", np.zeros(1)) / 2
        axis.plot(looks.steps - back, looks.values[name], ".", color=COLORS[1], markersize=4, label="recorded")
    axis.set_ylim(bottom=0)
    axis.set_ylabel(label, fontsize=8)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_decay(axis: Axes, planned: RunCurves) -> None:
    axis.plot(*_thin(planned.steps, planned.ema_decay), color=COLORS[0], linewidth=1.3, label="planned")
    axis.set_ylabel("EMA decay", fontsize=8)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _draw_gradients(record: RunRecord) -> Drawing | None:
    looks = record.looks
    if "train/grad_norm" not in looks.values:
        return None
    figure, axes = _open(record, (1.3, 1.0))
    _plot(axes[0], looks, "train/grad_norm", None, color=COLORS[0])
    clip = None if record.config is None else record.config.optim.clip_norm
    if clip:
        axes[0].axhline(clip, color=_MUTED, linestyle="--", linewidth=1, label=f"clipped at {clip:g}")
    _widen(axes[0])
    axes[0].set_ylabel("gradient norm", fontsize=8)
    _plot(axes[1], looks, "train/clipped_share", None, color=COLORS[1])
    axes[1].set_ylim(-0.02, 1.02)
    axes[1].set_ylabel("clipped steps", fontsize=8)
    return make_drawing(figure, "Gradients", "Mean norm before clipping, and the share of the steps that were clipped.")


def _draw_pseudo_labels(record: RunRecord) -> Drawing | None:
    looks = record.looks
    lines = {
        "train/accepted_share": ("accepted", COLORS[0], "-"),
        "train/pseudo_prevalence": ("foreground", COLORS[1], "-"),
        "train/accepted_prevalence": ("foreground of the accepted", COLORS[1], "--"),
        "train/pseudo_label_precision": ("right, on labeled patches", COLORS[2], "-"),
        "train/threshold": ("threshold", COLORS[5], ":"),
    }
    if not lines.keys() & looks.values.keys():
        return None
    figure, (axis,) = _open(record, (2.4,))
    for name, (label, color, style) in lines.items():
        _plot(axis, looks, name, label, color=color, linestyle=style)
    _plot(axis, looks, "train/prevalence_true", "foreground of the masks", color=_MUTED, linestyle="--", linewidth=1.1)
    axis.set_ylim(-0.02, 1.02)
    axis.set_ylabel("share", fontsize=8)
    caption = "Share of the pseudo-labels that count, how much of them is foreground, and how often they are right."
    return make_drawing(figure, "Pseudo-labels", caption)


def _draw_foreground(record: RunRecord) -> Drawing | None:
    looks = record.looks
    names = ("val/prevalence_true", *(f"val/{net}/prevalence_pred" for net in NETS))
    known = np.concatenate([looks.values[name] for name in names if name in looks.values] or [np.empty(0)])
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    figure, (axis,) = _open(record, (2.2,))
    for net in NETS:
        _plot(axis, looks, f"val/{net}/prevalence_pred", net, color=NET_COLORS[net])
    _plot(axis, looks, "val/prevalence_true", "true", color=_MUTED, linestyle="--", linewidth=1.2)
    axis.set_ylim(0, min(1.05 * float(known.max()), 1.02) or 1.02)
    axis.set_ylabel("foreground share", fontsize=8)
    return make_drawing(
        figure,
        "Predicted foreground",
        "On the validation probe. At 0 or 1: nothing, or everything, is predicted. The axis ends at the largest share.",
    )


def _draw_classes(record: RunRecord) -> Drawing | None:
    net = "student" if record.used is None else record.used.net
    looks, start = record.looks, f"val/{net}/f1/"
    last = {name: looks.last(name) or 0.0 for name in looks.values if name.startswith(start)}
    lowest = sorted(last, key=lambda name: last[name])[: len(COLORS)]
    if not lowest:
        return None
    figure, (axis,) = _open(record, (2.2,))
    for color, name in zip(COLORS, sorted(lowest, key=list(last).index), strict=False):
        _plot(axis, looks, name, f"class {name.removeprefix(start)}", color=color)
    axis.set_ylim(-0.02, 1.02)
    axis.set_ylabel(f"F1 of the {net}", fontsize=8)
    left_out = f" The {len(lowest)} of {len(last)} that are lowest at the end." * (len(lowest) < len(last))
    caption = f"Each class by itself, on the validation probe. At 0 it is never found.{left_out}"
    return make_drawing(figure, "Classes", caption, 2 if len(lowest) > 4 else 1)


def _draw_ranking(record: RunRecord) -> Drawing | None:
    looks = record.looks
    if "val/student/auroc" not in looks.values:
        return None
    figure, (axis,) = _open(record, (2.2,))
    low, high = (looks.values.get(f"val/student/auroc_{end}") for end in ("low", "high"))
    if low is not None and high is not None:
        axis.fill_between(looks.steps, low, high, color=NET_COLORS["student"], alpha=0.15, linewidth=0)
    for net in NETS:
        _plot(axis, looks, f"val/{net}/auroc", net, color=NET_COLORS[net])
    axis.axhline(0.5, color=_MUTED, linestyle="--", linewidth=1.2, label="no ranking")
    axis.set_ylim(0, 1.02)
    axis.set_ylabel("AUROC", fontsize=8)
    caption = (
        "How well the outputs rank foreground before background, at whatever threshold. Band: 95 % over the cases."
    )
    return make_drawing(figure, "Ranking of the voxels", caption)


def _draw_gap(record: RunRecord) -> Drawing | None:
    looks = record.looks
    name, _, title = shown_f1(looks.values)
    if f"train/student/{name}" not in looks.values:
        return None
    figure, (axis,) = _open(record, (2.2,))
    _plot(axis, looks, f"train/student/{name}", "training patches", color=COLORS[2])
    _plot(axis, looks, f"val/student/{name}", "validation patches", color=COLORS[0])
    axis.set_ylim(0, 1.02)
    axis.set_ylabel(f"{title} of the student", fontsize=8)
    return make_drawing(figure, "Training and validation", "A gap that opens while validation falls is overfitting.")


_CURVES: tuple[Callable[[RunRecord], Drawing | None], ...] = (
    _draw_logits,
    _draw_histograms,
    _draw_losses,
    _draw_foreground,
    _draw_classes,
    _draw_ranking,
    _draw_gap,
    _draw_pseudo_labels,
    _draw_schedule,
    _draw_gradients,
)


def draw_foreground_scatter(shares: Sequence[tuple[float, float]]) -> Drawing:
    """Return predicted against true foreground share, a dot for each case."""
    figure = make_figure((PAGE_WIDTH, 3.2))
    axis = figure.subplots()
    true, predicted = zip(*shares, strict=True)
    axis.axline((0, 0), slope=1, color=_MUTED, linewidth=0.9, linestyle="--")
    axis.scatter(true, predicted, s=18, alpha=0.7, linewidths=0, color=COLORS[0])
    end = 1.05 * max(*true, *predicted, 1e-3)
    axis.set(xlim=(-0.03 * end, end), ylim=(-0.03 * end, end))
    axis.set_xlabel("true foreground share", fontsize=8)
    axis.set_ylabel("predicted foreground share", fontsize=8)
    open_frame(axis)
    caption = "A dot for each validation case. Dots on one level: the prediction does not depend on the image."
    return make_drawing(figure, "Predicted and true foreground", caption)


def draw_reliability(used: NetworkScore) -> Drawing | None:
    """Return how often voxels of each probability are of a class; None where that was not counted."""
    if used.score.reliability is None:
        return None
    figure = make_figure((PAGE_WIDTH, 3.4))
    axis = figure.subplots()
    axis.axline((0, 0), slope=1, color=_MUTED, linewidth=0.9, linestyle="--")
    names = used.score.label_values or range(1, 1 + len(used.score.reliability))
    end = 0.0
    for color, name, rows in zip(COLORS, names, used.score.reliability, strict=False):
        diagram = np.array(rows, np.float64)
        share, probability, true = diagram[diagram[:, 0] > 0].T
        label = f"{'foreground' if len(names) == 1 else f'class {name}'}: error {compute_ece(diagram):.3f}"
        axis.plot(probability, true, color=color, linewidth=1.2, label=label)
        axis.scatter(probability, true, s=8 + 90 * np.sqrt(share), color=color, linewidths=0, alpha=0.7)
        end = max(end, float(probability.max(initial=0)), float(true.max(initial=0)))
    axis.set(xlim=(-0.02, min(1.05 * end, 1.02)), ylim=(-0.02, min(1.05 * end, 1.02)))
    axis.set_xlabel("predicted probability", fontsize=8)
    axis.set_ylabel("share of the voxels of the class", fontsize=8)
    open_frame(axis)
    more = len(names) - len(COLORS)
    caption = (
        f"The {used.net} on the whole validation cases, before any calibration. On the dashed line, 0.8 is right 8 "
        "times out of 10; above it there is more of the class than predicted, below it less. The larger a dot, the "
        "more "
        "voxels. "
        f"Error: mean distance from the line{f'. {more} more classes are not drawn' if more > 0 else ''}."
    )
    return make_drawing(figure, "Reliability of the probabilities", caption)


def draw_runs(records: Mapping[str, RunRecord]) -> Drawing | None:
    """Return F1 of the better curve of each run over the steps; None where no run has a look."""
    known = {name: record for name, record in records.items() if len(record.looks.steps)}
    if not known:
        return None
    figure = make_figure((PAGE_WIDTH, 2.9))
    axis = figure.subplots()
    for number, (name, record) in enumerate(known.items()):
        net = "student" if record.used is None else record.used.net
        style = ("-", "--", ":", "-.")[number // len(COLORS) % 4]
        key = f"val/{net}/{shown_f1(record.looks.values)[0]}"
        _plot(axis, record.looks, key, name, color=COLORS[number % len(COLORS)], linestyle=style)
        if record.banner.state == "collapsed":
            at = record.looks.steps[-1], record.looks.values.get(key, np.zeros(1))[-1]
            axis.plot(*at, "X", color=COLORS[number % len(COLORS)], markersize=8, clip_on=False)
    lasts = (r.looks.last(f"val/{shown_f1(r.looks.values)[1]}") for r in known.values())
    trivial = [value for value in lasts if value is not None]
    if trivial:
        axis.axhline(
            float(np.mean(trivial)), color=_MUTED, linestyle="--", linewidth=1.2, label="foreground everywhere"
        )
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("step", fontsize=8)
    axis.set_ylabel("F1 on the validation probe", fontsize=8)
    open_frame(axis)
    caption = (
        "For each run, the network that is used, else its student, on its own probe. A cross marks a collapsed run."
    )
    return make_drawing(figure, "F1 over the steps", caption, 1 if max(map(len, known)) > 24 else 2)


def _open(record: RunRecord, heights: tuple[float, ...]) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of panels over the steps, with the verdicts as background and events as marks."""
    figure = make_figure((PAGE_WIDTH, sum(heights) + 0.75))
    axes: list[Axes] = list(figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    for axis in axes:
        for start, end, level in _spans(record.looks):
            axis.axvspan(start, end, color=_COLLAPSED if level == "collapsed" else _WARNED, alpha=0.16, linewidth=0)
        for step, _ in list_marks(record):
            axis.axvline(step, color=_MUTED, linewidth=0.9, linestyle="-.")
        open_frame(axis)
    end = max(int(record.looks.steps[-1]), record.step, 1)
    axes[-1].set_xlim(0, 1.01 * end)
    axes[-1].set_xlabel("step", fontsize=8)
    return figure, axes


def _plot(axis: Axes, looks: Looks, name: str, label: str | None, **style: Any) -> None:
    """Draw a figure over the steps where it is known: a line, or a dot where it is known once."""
    values = looks.values.get(name)
    if values is None:
        return
    known = np.isfinite(values)
    style = {"linewidth": 1.6, **style}
    axis.plot(looks.steps[known], values[known], marker="." if known.sum() < 30 else None, label=label, **style)


def _widen(axis: Axes) -> None:
    """Make the axis of values of very different size logarithmic; else let it begin at 0, where none is below."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axis.lines] or [np.zeros(1)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and drawn.min() > 0 and drawn.max() > _WIDE * drawn.min():
        axis.set_yscale("log")
    elif len(drawn) and drawn.min() >= 0:
        axis.set_ylim(bottom=0)


def _edges(looks: Looks) -> NDArray[np.float64]:
    """Return (L + 1) steps between which each look is drawn: half way to its neighbors."""
    middles = (looks.steps[1:] + looks.steps[:-1]) / 2
    return np.concatenate([looks.steps[:1], middles, looks.steps[-1:]])


def _spans(looks: Looks) -> Iterator[tuple[float, float, str]]:
    """Yield begin, end and level of each stretch of looks that are not ok."""
    edges, place = _edges(looks).tolist(), 0
    for level, own in groupby(looks.levels):
        begin, place = place, place + len(list(own))
        if level in ("warn", "collapsed"):
            yield edges[begin], edges[place], level


def list_marks(record: RunRecord) -> list[tuple[int, str]]:
    """Return step and name of each event that is drawn; of many, evenly spread ones."""
    marks = [
        (int(event["step"]), _MARKED[event["event"]])
        for event in record.events
        if event.get("event") in _MARKED and isinstance(event.get("step"), int)
    ]
    return spread(marks, _MOST_MARKS)


def _describe_marks(record: RunRecord) -> str:
    """Return what the backgrounds and the vertical lines of a figure are."""
    levels = set(record.looks.levels)
    shades = [
        text for level, text in (("warn", "yellow: a warning"), ("collapsed", "red: collapsed")) if level in levels
    ]
    names = list(dict.fromkeys(name for _, name in list_marks(record)))
    shades += [f"vertical lines: {', '.join(names)}"] if names else []
    return f". {'; '.join(shades).capitalize()}" if shades else ""


def _list_components(record: RunRecord) -> list[str]:
    """Return the components of the supervised loss that are recorded, the most at most."""
    looks = record.looks
    found = [name.removeprefix("val/student/loss/") for name in looks.values if name.startswith("val/student/loss/")]
    if record.config is not None:
        weights = (record.config.loss.weights, *(phase.weights for phase in record.config.loss.phases))
        found += [name for own in weights for name in own if f"train/{name}" in looks.values]
    found += ["consistency"] if "train/consistency" in looks.values else []
    return list(dict.fromkeys(found))[:_MOST_COMPONENTS]


def _shade_phases(record: RunRecord, axes: Sequence[Axes]) -> str:
    """Shade every second phase of the loss; return what the shades are."""
    if record.config is None or not record.config.loss.phases:
        return ""
    scale, end = record.config.length.steps_per_epoch, record.looks.steps[-1]
    starts = [phase.from_epoch * scale for phase in record.config.loss.phases]
    for start, stop in zip(starts[::2], [*starts[1::2], end][: len(starts[::2])], strict=True):
        for axis in axes:
            if start < end:
                axis.axvspan(start, min(stop, end), color=_FAINT, alpha=0.5, linewidth=0, zorder=0)
    return ". Shaded: every second phase of the loss"


def _plan_curves(record: RunRecord) -> RunCurves | None:
    """Return what the settings plan; None where they cannot be computed."""
    if record.config is None:
        return None
    try:
        return compute_curves(record.config)
    except (SslSegError, KeyError, ValueError, TypeError, ArithmeticError):
        return None


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most ``MOST_POINTS`` of the points, evenly spread, with both ends."""
    return spread(x, MOST_POINTS), spread(y, MOST_POINTS)
