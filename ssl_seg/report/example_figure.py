"""Predicted images: input, truth, probability, and where the prediction is right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.report.figures import class_color, describe_class_colors, hide_ticks, new_figure, save_figure, write_inside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ssl_seg.diagnose.result import Example

_MOST_TITLE = 20
_PANEL = 2.7
"""Width of a panel in inches."""

_SHOWN_SIDE = 256
"""Pixels that a panel of a figure or page has at least on its longer side."""
_MOST_ADDED = 0.05
"""Share of a picture that widened errors may add: speckle would cover it."""
_AROUND = np.ones((3, 3), bool)

INPUT, TRUTH, PROBABILITY, CLASSES, PREDICTION = (
    "input",
    "truth",
    "foreground probability",
    "predicted classes",
    "prediction and errors",
)
_COLUMNS: dict[str, Callable[[Example], NDArray[Any] | None]] = {
    INPUT: lambda e: e.image,
    TRUTH: lambda e: e.truth,
    PROBABILITY: lambda e: e.prob,
    CLASSES: lambda e: e.pred if has_classes(e) else None,
    PREDICTION: lambda e: e.pred,
}


def list_columns(example: Example) -> list[str]:
    """Return the names of the panels of an example for which something is known."""
    return [title for title, known in _COLUMNS.items() if known(example) is not None]


def has_classes(example: Example) -> bool:
    """Return whether an example has several classes of foreground, which are told apart by color."""
    return max(int(array.max()) for array in (example.truth, example.pred) if array is not None) > 1


def plot_examples(
    examples: Sequence[Example], path: Path, titles: Sequence[str] = (), errors: str = PREDICTION
) -> None:
    """Write one row an example: input, truth, probability from 0 to 1, and prediction with its errors.

    Unknown columns are left out; masks alone lie side by side.

    Args:
        examples: at least one.
        path: path of the figure.
        titles: titles of the rows; by default name, part and F1 of each example.
        errors: what is written above the predictions.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    titles = titles or [_example_title(example) for example in examples]
    known = {title for example in examples for title in list_columns(example)}
    columns = [title for title in _COLUMNS if title in known]
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
    if CLASSES in columns:
        highest = max(int(array.max()) for e in examples for array in (e.truth, e.pred) if array is not None)
        figure.supxlabel(f"classes: {describe_class_colors([str(n) for n in range(1, highest + 1)])}", fontsize=8)
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
    """Return a known column of an example as gray (Y, X) or colors (Y, X, 3) in [0, 1]; the probability as it is.

    Of several classes, each has its color, the same in truth and prediction.
    """
    if column == INPUT and example.image is not None:
        return example.image
    if column == TRUTH and example.truth is not None:
        return (
            _color_classes(example.truth) if has_classes(example) else np.where(example.truth < 0, 0.5, example.truth)
        )
    if column == PROBABILITY and example.prob is not None:
        return example.prob
    return _color_classes(example.pred) if column == CLASSES else color_errors(example)


def _color_classes(labels: NDArray[Any]) -> NDArray[np.float64]:
    """Return (Y, X, 3): classes in their colors, background black, what is ignored gray."""
    colored = np.zeros((*labels.shape, 3))
    colored[labels < 0] = 0.5
    for label in np.unique(labels[labels > 0]):
        colored[labels == label] = class_color(int(label))
    return colored


def color_errors(example: Example) -> NDArray[np.float64]:
    """Return (Y, X, 3): the input in gray with what was found in green, missed in blue and false in red.

    Foreground of a wrong class is yellow. Without a truth, what is predicted is white on black, or yellow on the input.
    Errors are as wide as it takes to see a pixel of them at the size shown: see ``widen``.
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
    found = pred & (truth > 0)
    missed, false = ~pred & (truth > 0), pred & (truth == 0)
    missed, false = widen(missed, found | false), widen(false, found | missed)
    red, green = (false & ~missed) | (is_wrong_class & ~missed), found & ~missed & ~false
    for region, channel in ((red, 0), (green, 1), (missed, 2)):
        colored[region, channel] += color
    return colored


def widen(error: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return errors (Y, X) as wide as it takes to see a pixel of them in a panel of ``_SHOWN_SIDE`` pixels.

    An object that is missed, or false, as a whole gets a pixel of the panel on each side: a scratch or a dot would be
    lost among the pixels of the image. Errors beside other foreground stay as they are in images as small as a panel.
    Many errors all over the image are returned as they are: they can be seen, and wider ones would look like far more.
    """
    if not error.any():
        return error
    scale = -(-max(error.shape) // _SHOWN_SIDE)
    parts, _ = ndimage.label(error, _AROUND)
    beside = np.unique(parts[ndimage.binary_dilation(others, _AROUND)])
    whole = error & ~np.isin(parts, beside)
    wide: NDArray[np.bool_] = error | ndimage.binary_dilation(whole, _AROUND, scale)
    if scale > 1:
        wide |= ndimage.binary_dilation(error, _AROUND, scale // 2)
    return wide if np.mean(wide & ~error) <= _MOST_ADDED else error


def _luminance(image: NDArray[np.float32]) -> NDArray[np.float64]:
    gray: NDArray[np.float64] = (image if image.ndim == 2 else image.mean(axis=-1)).astype(np.float64)
    return np.clip(gray, 0, 1)


def _example_title(example: Example) -> str:
    name = example.id if len(example.id) <= _MOST_TITLE else f"...{example.id[3 - _MOST_TITLE :]}"
    details: list[str] = [] if example.part == "new" else [example.part]
    details += [] if example.f1 is None else [f"F1 {example.f1:.3f}"]
    return f"{name}\n{', '.join(details)}" if details else name
