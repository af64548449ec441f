"""Predicted images: input, truth, probability, and where the prediction is right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.report.figures import hide_ticks, new_figure, save_figure, write_inside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ssl_seg.diagnose.result import Example

_MOST_TITLE = 20
_PANEL = 2.7
"""Width of a panel in inches."""

INPUT, TRUTH, PROBABILITY, PREDICTION = "input", "truth", "foreground probability", "prediction and errors"
_COLUMNS: dict[str, Callable[[Example], NDArray[Any] | None]] = {
    INPUT: lambda e: e.image,
    TRUTH: lambda e: e.truth,
    PROBABILITY: lambda e: e.prob,
    PREDICTION: lambda e: e.pred,
}


def plot_examples(
    examples: Sequence[Example], path: Path, titles: Sequence[str] = (), errors: str = PREDICTION
) -> None:
    """Write one row an example: input, truth, probability from 0 to 1, and prediction with its errors.

    Unknown columns are left out; masks alone lie side by side.

    Args:
        examples: at least one.
        path: of the figure.
        titles: of the rows; by default name, part and F1 of each example.
        errors: what is written above the predictions.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    titles = titles or [_example_title(example) for example in examples]
    columns = [title for title, known in _COLUMNS.items() if any(known(e) is not None for e in examples)]
    grid = (1, len(examples)) if len(columns) == 1 else (len(examples), len(columns))
    heights = [float(np.clip(e.pred.shape[0] / e.pred.shape[1], 0.4, 2.0)) for e in examples]
    heights = [max(heights)] if grid[0] == 1 else heights
    figure = new_figure(path, (_PANEL * grid[1] + 0.3, _PANEL * sum(heights) + 0.15 * grid[0] + 0.8))
    axes = figure.subplots(*grid, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.flat:
        hide_ticks(axis)
    if len(columns) == 1:
        for axis, example, title in zip(axes[0], examples, titles, strict=True):
            _draw_panel(axis, example, columns[0])
            axis.set_title(title, fontsize=8)
    else:
        for row, example, title in zip(axes, examples, titles, strict=True):
            for axis, column in zip(row, columns, strict=True):
                _draw_panel(axis, example, column)
            row[0].set_ylabel(title, fontsize=7)
        for axis, column in zip(axes[0], columns, strict=True):
            axis.set_title(errors if column == PREDICTION else column, fontsize=9)
    if PROBABILITY in columns:
        below = list(axes[:, columns.index(PROBABILITY)])
        shown = next(axis.images[0] for axis in below if axis.images)
        figure.colorbar(shown, ax=below, location="bottom", shrink=0.9, aspect=30, pad=0.02, panchor=False)
    save_figure(figure, path)


def _draw_panel(axis: Axes, example: Example, column: str) -> None:
    if _COLUMNS[column](example) is None:
        axis.spines[:].set_visible(False)
        write_inside(axis, "sealed" if example.part == "test" and column == TRUTH else "not known", "0.5")
    else:
        cmap = "viridis" if column == PROBABILITY else "gray"
        axis.imshow(paint_panel(example, column), cmap=cmap, vmin=0, vmax=1)


def paint_panel(example: Example, column: str) -> NDArray[np.floating[Any]]:
    """Return a known column of an example as gray (Y, X) or colors (Y, X, 3) in [0, 1]; the probability as it is."""
    if column == INPUT and example.image is not None:
        return example.image
    if column == TRUTH and example.truth is not None:
        classes = max(int(example.truth.max()), int(example.pred.max()), 1)
        return np.where(example.truth < 0, 0.5, example.truth / classes)
    if column == PROBABILITY and example.prob is not None:
        return example.prob
    return color_errors(example)


def color_errors(example: Example) -> NDArray[np.float64]:
    """Return (Y, X, 3): the input in gray with what was found in green, missed in blue and false in red.

    Foreground of a wrong class is yellow. Without a truth, what is predicted is white on black, or yellow on the input.
    """
    pred, truth = example.pred > 0, example.truth
    if example.image is None and truth is None:
        return np.repeat(pred[..., None].astype(np.float64), 3, axis=-1)
    gray = np.zeros(pred.shape) if example.image is None else _luminance(example.image)
    color = 0.8 if example.image is None else 0.4
    colored = np.repeat(0.6 * gray[..., None], 3, axis=-1)
    if truth is None:
        colored[pred, :2] += color
        return colored
    is_wrong_class = pred & (truth > 0) & (example.pred != truth)
    red = (pred & (truth == 0)) | is_wrong_class
    for region, channel in ((red, 0), (pred & (truth > 0), 1), (~pred & (truth > 0), 2)):
        colored[region, channel] += color
    return colored


def _luminance(image: NDArray[np.float32]) -> NDArray[np.float64]:
    gray: NDArray[np.float64] = (image if image.ndim == 2 else image.mean(axis=-1)).astype(np.float64)
    return np.clip(gray, 0, 1)


def _example_title(example: Example) -> str:
    name = example.id if len(example.id) <= _MOST_TITLE else f"...{example.id[3 - _MOST_TITLE :]}"
    details: list[str] = [] if example.part == "new" else [example.part]
    details += [] if example.f1 is None else [f"F1 {example.f1:.3f}"]
    return f"{name}\n{', '.join(details)}" if details else name
