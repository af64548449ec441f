"""Figures made with matplotlib, without a display."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.errors import DataError, printable_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One case: ``image`` (*S), ``truth`` (*S) class indices or None, ``prob`` (*S) foreground probability,
    ``pred`` (*S) predicted class indices."""

    title: str
    image: NDArray[np.generic]
    truth: NDArray[np.integer] | None
    prob: NDArray[np.floating]
    pred: NDArray[np.integer]


def to_gray(image: NDArray[Any]) -> NDArray[Any]:
    """Return (*S) to be shown of an image (C, *S): colors averaged, else the first channel."""
    gray: NDArray[Any] = image.mean(axis=0) if len(image) == 3 else image[0]
    return gray


def new_figure(path: Path, size: tuple[float, float]) -> Figure:
    """Return an empty figure of a size in inches, to be written to ``path`` by ``save_figure``.

    Raises:
        DataError: when the file exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if path.exists():
        raise DataError(f"{path} exists already and is not overwritten: choose another name")
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix decides the format.

    Raises:
        DataError: when it cannot be written.
    """
    _make_plain(figure)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot write the figure {path}: {error}") from error


def _make_plain(figure: Figure) -> None:
    """Take texts for what they are: a ``$`` of a name begins no formula, and what the font cannot show is an escape.

    The numbers that matplotlib writes at ticks are left alone.
    """
    from matplotlib.axis import Tick
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter

    numbers = {id(label) for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    for text in figure.findobj(Text):
        if id(text) not in numbers:
            text.set_text(_escape(text.get_text(), get_font(findfont(text.get_fontproperties())).get_charmap()))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(formatter := axis.get_major_formatter(), FixedFormatter):
                known = get_font(findfont(axis.label.get_fontproperties())).get_charmap()
                formatter.seq = [_escape(name, known) for name in formatter.seq]


def _escape(text: str, known: Collection[int]) -> str:
    """Return a text for matplotlib; ``known`` are the code points that its font has."""
    shown = "".join(
        char if char == "\n" or ord(char) in known else char.encode("unicode_escape").decode("ascii")
        for char in printable_lines(text)
    )
    return shown.replace("$", "\\$")


def plot_predictions(panels: Sequence[Panel], path: Path) -> None:
    """Write one row a case: input, truth, probability from 0 to 1, and errors (found, missed, false, wrong class).

    Of a volume the slice with the most foreground is shown.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    figure = new_figure(path, (11, 2.8 * len(panels)))
    axes = figure.subplots(len(panels), 4, squeeze=False)
    for row, panel in zip(axes, panels, strict=True):
        shown_slice = _slice(panel)
        image, truth, prob = shown_slice.image, shown_slice.truth, shown_slice.prob
        row[0].imshow(image, cmap="gray")
        row[0].set_ylabel(panel.title, fontsize=8)
        classes = max(int(panel.pred.max(initial=1)), 1 if panel.truth is None else int(panel.truth.max()), 1)
        row[1].imshow(np.zeros_like(prob) if truth is None else truth.clip(0), cmap="gray", vmin=0, vmax=classes)
        shown = row[2].imshow(prob, cmap="viridis", vmin=0, vmax=1)
        row[3].imshow(_color_errors(image, truth, shown_slice.pred))
        figure.colorbar(shown, ax=row[2], shrink=0.8)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    several = any(p.pred.max(initial=0) > 1 or (p.truth is not None and p.truth.max() > 1) for p in panels)
    errors = "found (green) missed (blue) false (red)" + "\nwrong class (yellow)" * several
    titles = ("input", "truth", "foreground probability", errors)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    save_figure(figure, path)


def _slice(panel: Panel) -> Panel:
    """Return the panel of an image as it is, and of a volume the slice with most foreground."""
    if panel.prob.ndim == 2:
        return panel
    empty = panel.truth is None or not (panel.truth > 0).any()
    weight = panel.prob if empty or panel.truth is None else panel.truth > 0
    z = int(np.argmax(weight.reshape(len(weight), -1).sum(axis=1)))
    truth = None if panel.truth is None else panel.truth[z]
    return Panel(panel.title, panel.image[z], truth, panel.prob[z], panel.pred[z])


def _color_errors(
    image: NDArray[np.generic], truth: NDArray[np.integer] | None, pred: NDArray[np.integer]
) -> NDArray[np.floating]:
    low, high = float(image.min()), float(image.max())
    gray = (image.astype(np.float64) - low) / max(high - low, 1e-9)
    colored = np.repeat(0.7 * gray[..., None], 3, axis=-1)
    if truth is None:
        colored[pred > 0, 1] += 0.3
        return colored
    confused = (pred > 0) & (truth > 0) & (pred != truth)
    colored[(truth > 0) & (pred > 0), 1] += 0.3
    colored[(truth > 0) & (pred == 0), 2] += 0.3
    colored[((truth == 0) & (pred > 0)) | confused, 0] += 0.3
    return colored
