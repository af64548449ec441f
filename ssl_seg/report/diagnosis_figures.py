"""The figures of a diagnosis: predictions, histograms of the outputs, foreground shares, and the threshold sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_seg.data.facts import format_size
from ssl_seg.diagnose.tally import SHARE_BINS
from ssl_seg.monitor.catalog import limit
from ssl_seg.report.example_figure import plot_examples
from ssl_seg.report.figures import COLORS, MOST_POINTS, PanelRow, open_frame, plot_panels
from ssl_seg.scores.text import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ssl_seg.diagnose.result import Diagnosis, Histogram, ImageFigures

_Styles = Mapping[tuple[int, ...], dict[str, Any]]
_MARKERS = "osD^vP"
"""As many as there are COLORS."""
"""As in the table of the same shares."""
_LOGITS = 6.0
"""Log-odds that are always in the picture: probabilities of 0.0025 to 0.9975."""
_LEAST_SHARE = 1e-5
"""Lower end of the shares in a histogram: a few voxels among millions do not matter."""


@dataclass(frozen=True)
class FigureFile:
    """A figure that was written: ``caption`` says how to read it."""

    path: Path
    title: str
    caption: str


EXAMPLES_CAPTION = (
    "Found in green, missed in blue, false in red; what is predicted where no truth is known in yellow, or white "
    "without an image. Ignored voxels are gray in the truth."
)


def plot_diagnosis(diagnosis: Diagnosis, folder: Path) -> tuple[FigureFile, ...]:
    """Write the figures for which there is something to show, as PNG.

    Raises:
        DataError: when one exists or cannot be written.
    """
    pictures = []
    if diagnosis.examples:
        path = folder / "predictions.png"
        plot_examples(diagnosis.examples, path)
        pictures.append(FigureFile(path, "Predictions", EXAMPLES_CAPTION))
    for name, row in make_panel_rows(diagnosis).items():
        path = folder / f"{name}.png"
        plot_panels(row, path)
        pictures.append(FigureFile(path, row.title, row.caption))
    return tuple(pictures)


def make_panel_rows(diagnosis: Diagnosis) -> dict[str, PanelRow]:
    """Return the figures of what was measured, but for the predicted images, by name."""
    rows = {}
    if drawn := [h for h in diagnosis.histograms if sum(h.counts)]:
        rows["histograms"] = make_histograms(drawn)
    if diagnosis.images:
        rows["foreground"] = make_foreground(diagnosis.images)
    if sweep := diagnosis.statistics.get("sweep"):
        rows["thresholds"] = make_sweep(sweep, diagnosis.statistics.get("trivial") or {})
    return rows


def make_histograms(histograms: Sequence[Histogram]) -> PanelRow:
    """Return a panel for each histogram: all voxels, and true foreground and background where they are known."""
    caption = "Share of voxels in each bin, on a logarithmic scale. Two curves that lie on each other: no ranking."
    names = {"prob": "Probabilities of all voxels", "logit": "Log-odds of all voxels"}
    panels = tuple((names[h.name], partial(_draw_outputs, h)) for h in histograms)
    return PanelRow("Outputs of all voxels", caption, (5.4, 3.4), panels)


def make_foreground(images: Sequence[ImageFigures]) -> PanelRow:
    """Return predicted against true foreground share of the images with a mask and histograms of both, and the
    predicted shares in order of size where there are images without."""
    known = [image for image in images if image.ratio_true is not None]
    styles, end = _styles(images), _find_end(images)
    panels = [("Predicted against true foreground", partial(_draw_scatter, known, styles, end))] if known else []
    panels += [("Foreground of the images", partial(_draw_histogram, known, end))] if len(known) > 1 else []
    if len(known) < len(images):
        panels.append(("Predicted foreground, in order", partial(_draw_levels, images, styles, end)))
    caption = "One mark per image. Marks of one shape on one level: the prediction does not depend on the image."
    return PanelRow("Foreground share of the images", caption, (5.0, 4.4), tuple(panels))


def make_sweep(sweep: Mapping[str, Any], trivial: Mapping[str, Any]) -> PanelRow:
    """Return F1 by threshold, with the present one, the best threshold and the trivial score marked."""
    caption = "F1 over all validation voxels. A curve that never leaves the dashed line has learned nothing."
    title = "Threshold sweep"
    return PanelRow(title, caption, (5.6, 3.6), ((title, partial(_draw_sweep, sweep, trivial)),))


def _styles(images: Sequence[ImageFigures]) -> _Styles:
    """Return marker, color and name of each shape, the most frequent first; rare ones share the last."""
    counts: dict[tuple[int, ...], int] = {}
    for image in images:
        counts[image.shape] = counts.get(image.shape, 0) + 1
    ordered = sorted(counts, key=lambda shape: (-counts[shape], shape))
    named = {shape: f"{format_size(shape)} ({counts[shape]})" for shape in ordered}
    if len(ordered) > len(_MARKERS):
        rare = ordered[len(_MARKERS) - 1 :]
        named |= dict.fromkeys(rare, f"{len(rare)} other shapes ({sum(counts[shape] for shape in rare)})")
    looks = dict(zip(dict.fromkeys(named.values()), cycle(zip(_MARKERS, COLORS, strict=True)), strict=False))
    return {shape: {"marker": looks[name][0], "color": looks[name][1], "label": name} for shape, name in named.items()}


def _find_end(images: Sequence[ImageFigures]) -> float:
    """Return where axes of shares end: at the largest one. They begin at 0: one level of all stays one."""
    most = max(max(image.ratio_pred, image.ratio_true or 0.0) for image in images)
    return min(1.05 * most, 1.0) or 1.0


def _draw_outputs(histogram: Histogram, axis: Axes) -> None:
    series = {
        "all voxels": (histogram.counts, "0.6"),
        "truly foreground": (histogram.foreground, "#228833"),
        "truly background": (histogram.background, "#aa3377"),
    }
    for label, (counts, color) in series.items():
        if sum(counts):
            shares = np.array(counts) / sum(counts)
            axis.stairs(
                shares,
                histogram.edges,
                fill=label == "all voxels",
                baseline=_LEAST_SHARE,
                color=color,
                label=label,
                linewidth=1.4,
                linestyle="--" if label == "truly background" else "-",  # seen where both are the same
            )
    is_prob = histogram.name == "prob"
    axis.axvline(0.5 if is_prob else 0.0, color="black", linewidth=0.8, linestyle=":")
    axis.set_yscale("log")
    axis.set_ylim(_LEAST_SHARE, 2)
    # The same for every network: a constant one is a line in a wide field, and not one bar that fills it.
    axis.set_xlim(*((0, 1) if is_prob else (min(histogram.edges[0], -_LOGITS), max(histogram.edges[-1], _LOGITS))))
    axis.set_xlabel("probability of foreground" if is_prob else "log-odds of foreground")
    axis.set_ylabel("share of the voxels")
    open_frame(axis)


def _draw_sweep(sweep: Mapping[str, Any], trivial: Mapping[str, Any], axis: Axes) -> None:
    axis.plot(sweep["thresholds"], sweep["f1"], color=COLORS[0], marker="o", markersize=3, label="F1")
    if sweep.get("f1_at_threshold") is not None:
        label = f"at {cut(sweep['threshold'])}: {sweep['f1_at_threshold']:.3f}"
        axis.plot(
            sweep["threshold"],
            sweep["f1_at_threshold"],
            "s",
            color="black",
            markersize=8,
            fillstyle="none",
            label=label,
        )
    best = sweep.get("best_f1")
    if best is not None and best > (trivial.get("best") or 0.0) + limit("trivial_margin"):
        label = f"best, at {cut(sweep['best_threshold'])}: {best:.3f}"
        axis.plot(sweep["best_threshold"], best, "*", color=COLORS[1], markersize=12, label=label)
    elif best is not None:
        axis.plot([], [], linestyle="none", label=f"no threshold is better: {best:.3f} at most")
    if trivial.get("best") is not None:
        label = f"trivial: {trivial['best']:.3f}"
        axis.axhline(trivial["best"], color="0.4", linestyle="--", linewidth=1, label=label)
    most = np.nanmax(np.array([*sweep["f1"], trivial.get("best") or 0.0], np.float64))
    axis.set_xlim(0, 1)
    axis.set_ylim(0, min(1.15 * float(most), 1.02) or 1.02)
    axis.set_xlabel("threshold of the probability")
    axis.set_ylabel("F1")
    open_frame(axis)


def _draw_marks(
    axis: Axes, images: Sequence[ImageFigures], places: Sequence[float], styles: _Styles, end: float
) -> None:
    """Draw the predicted share of each image over its place, one series for each look."""
    series: dict[str, list[tuple[float, float]]] = {}
    looks = {style["label"]: style for style in styles.values()}
    for image, place in zip(images, places, strict=True):
        series.setdefault(styles[image.shape]["label"], []).append((place, image.ratio_pred))
    for label, points in series.items():
        x, y = zip(*points, strict=True)
        is_raster = len(points) > MOST_POINTS
        axis.scatter(x, y, s=20, alpha=0.75, linewidths=0, clip_on=False, rasterized=is_raster, **looks[label])
    axis.set_ylim(0, end)
    axis.set_ylabel("predicted foreground share")
    open_frame(axis)


def _draw_scatter(images: Sequence[ImageFigures], styles: _Styles, end: float, axis: Axes) -> None:
    _draw_marks(axis, images, [image.ratio_true or 0.0 for image in images], styles, end)
    axis.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--", label="predicted = true")
    axis.set_xlim(0, end)
    axis.set_xlabel("true foreground share")


def _draw_histogram(images: Sequence[ImageFigures], end: float, axis: Axes) -> None:
    edges = np.linspace(0, end, SHARE_BINS + 1)
    for label, shares, color in (
        ("true", [image.ratio_true or 0.0 for image in images], "0.6"),
        ("predicted", [image.ratio_pred for image in images], COLORS[1]),
    ):
        counts = np.histogram(shares, edges)[0]
        axis.stairs(counts, edges, fill=label == "true", color=color, linewidth=1.4, label=f"{label} shares")
    axis.set_xlim(0, end)
    axis.locator_params(axis="y", integer=True)
    axis.set_xlabel("foreground share")
    axis.set_ylabel("images")
    open_frame(axis)


def _draw_levels(images: Sequence[ImageFigures], styles: _Styles, end: float, axis: Axes) -> None:
    ranks = {style["label"]: rank for rank, style in enumerate(styles.values())}
    ordered = sorted(images, key=lambda i: (ranks[styles[i.shape]["label"]], i.ratio_pred))
    _draw_marks(axis, ordered, range(1, len(ordered) + 1), styles, end)
    axis.set_xlim(0, len(ordered) + 1)
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("images by shape, in order of their share")
