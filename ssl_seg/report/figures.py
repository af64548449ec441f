"""What all figures share: a file without a display, plain texts, images, outlines, frames and legends."""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.pictures import stretch
from ssl_seg.errors import DataError, printable_lines
from ssl_seg.files import check_is_free

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Color = str | tuple[float, float, float] | tuple[float, float, float, float]

COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
"""Colors that people with any color vision can tell apart (Paul Tol)."""
_CLASS_COLORS = {
    "yellow": "#ffd400",
    "light blue": "#00d0ff",
    "pink": "#ff5fd0",
    "light green": "#7dff3c",
    "orange": "#ff9a1f",
    "violet": "#b48cff",
    "white": "#ffffff",
    "dark green": "#00b060",
}
"""Colors of class 1, 2, ...: bright, because images are dark or gray."""
_FAR = 3.0
"""Quartile distances beyond the quartiles from which a value is far from all others (Tukey)."""
_CSS_COLORS = {
    **{color: f"var(--c{number})" for number, color in enumerate(COLORS)},
    **dict.fromkeys(("#000000", "#262626"), "currentColor"),
    **dict.fromkeys(("#595959", "#666666", "#808080", "#999999"), "var(--muted)"),
    **dict.fromkeys(("#b0b0b0", "#d9d9d9", "#e6e6e6", "#ebebeb"), "var(--faint)"),
}
"""Colors of figures -> of the page that they stand in."""


PAGE_WIDTH = 4.6
"""Inches of a figure of a page, whose column is half as wide as the window, or as a phone."""
MOST_POINTS = 300
"""Points of a series that are shapes of their own in an SVG; more are pixels, which keeps a page small."""


@dataclass(frozen=True)
class Drawing:
    """A figure of a page: ``caption`` says how to read it."""

    title: str
    caption: str
    html: str
    """An ``<svg>`` element, or an ``<img>`` with its data."""


@dataclass(frozen=True)
class PanelRow:
    """Panels that stand side by side in a file, and each for itself on a page; ``caption`` says how to read them."""

    title: str
    caption: str
    size: tuple[float, float]
    """Width and height of a panel in inches."""
    panels: tuple[tuple[str, Callable[[Axes], None]], ...]
    """Title of each, and what fills its axis."""


def to_gray(image: NDArray[Any]) -> NDArray[Any]:
    """Return (*S) to be shown of an image (C, *S): colors averaged, else the first channel."""
    gray: NDArray[Any] = image.mean(axis=0) if len(image) == 3 else image[0]
    return gray


def new_figure(path: Path, size: tuple[float, float]) -> Figure:
    """Return an empty figure of a size in inches, to be written to ``path`` by ``save_figure``.

    Raises:
        DataError: when the file exists.
    """
    check_is_free(path)
    return make_figure(size)


def make_figure(size: tuple[float, float]) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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


def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    _make_plain(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def to_svg(figure: Figure) -> str:
    """Return a figure as an ``<svg>`` element whose colors are those of the page it stands in, light or dark.

    Black, the grays of frames and grids, and COLORS become the CSS colors ``currentColor``, ``--muted``, ``--faint``
    and ``--c0``, ``--c1``, ...; the background is transparent. Equal figures give equal text.
    """
    from matplotlib import rc_context

    _make_plain(figure)
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ssl-seg", "font.family": ["DejaVu Sans", "sans-serif"]}):
        figure.savefig(text, format="svg", dpi=110, transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # of several figures in one page, these names would be there twice
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _CSS_COLORS.get(found[0], found[0]), svg)


def _make_plain(figure: Figure) -> None:
    """Show texts literally: a ``$`` does not begin a formula, and characters missing from the font are escaped.

    The numbers that matplotlib writes at ticks stay as they are.
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


def plot_panels(row: PanelRow, path: Path, *, share_y: bool = False) -> None:
    """Write panels side by side, with one legend.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    figure = new_figure(path, (row.size[0] * len(row.panels), row.size[1]))
    axes = figure.subplots(1, len(row.panels), sharey=share_y, squeeze=False)[0]
    for axis, (_, draw) in zip(axes, row.panels, strict=True):
        draw(axis)
    add_legend(figure, columns=2 if len(row.panels) == 1 else 3)
    save_figure(figure, path)


def draw_panels(row: PanelRow) -> tuple[Drawing, ...]:
    """Return each panel as a figure of a page."""
    drawings = []
    for title, draw in row.panels:
        figure = make_figure((PAGE_WIDTH, row.size[1]))
        draw(figure.subplots())
        drawings.append(make_drawing(figure, title, row.caption))
    return tuple(drawings)


def make_drawing(figure: Figure, title: str, caption: str, columns: int = 2) -> Drawing:
    """Return a figure for a page, with a legend of so many columns where anything in it has a label; 0 for none."""
    if columns and any(axis.get_legend_handles_labels()[1] for axis in figure.axes):
        add_legend(figure, columns=columns)
    return Drawing(title, caption, to_svg(figure))


def add_legend(figure: Figure, columns: int = 3) -> None:
    """Add one legend for all axes: each label once."""
    named = {label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        list(named.values()), list(named), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def class_color(index: int) -> tuple[float, float, float]:
    """Return the color (R, G, B) of class 1, 2, ...; beyond the chosen ones, hues that lie far from each other."""
    from matplotlib.colors import to_rgb

    if index <= len(_CLASS_COLORS):
        return to_rgb(list(_CLASS_COLORS.values())[index - 1])
    return colorsys.hsv_to_rgb(index * 0.618 % 1, 0.55, 1.0)  # the golden ratio: none comes again


def describe_class_colors(names: Sequence[str]) -> str:
    """Return the color of each of the first classes in words, such as ``yellow: 1, light blue: 2``."""
    named = [f"{color}: {name}" for color, name in zip(_CLASS_COLORS, names, strict=False)]
    return ", ".join(named + [f"and {len(names) - len(named)} more"] * (len(names) > len(named)))


def find_limits(values: Sequence[float] | NDArray[np.floating[Any]]) -> tuple[float, float, int]:
    """Return the ends of an axis on which values can be told apart, and how many of them lie beyond.

    A few far values would squash all others into one bar: the axis ends with the last value that is within three
    quartile distances of the quartiles. Where half of the values are equal, nothing is far.
    """
    shown = np.asarray(values, np.float64)
    low, high = np.percentile(shown, (25, 75))
    reach = _FAR * (high - low) or np.inf
    near = shown[(shown >= low - reach) & (shown <= high + reach)]
    return float(near.min()), float(near.max()), len(shown) - len(near)


def open_frame(axis: Axes) -> None:
    """Leave the lower and the left line of the frame, with small numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def name_rows(axis: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Name rows on the left, the first one on top, without a frame but for the line below."""
    axis.set_yticks(places, names, fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def hide_ticks(axis: Axes) -> None:
    """Leave the frame alone, as of an image."""
    axis.set_xticks([])
    axis.set_yticks([])


def write_inside(axis: Axes, text: str, color: str) -> None:
    """Write in the middle of an axis that has nothing else to show."""
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, fontsize=8, color=color)


def show_image(axis: Axes, image: NDArray[Any], like: NDArray[Any] | None = None) -> None:
    """Show (Y, X) in gray or (Y, X, 3) in color, a few extreme values clipped.

    Args:
        axis: where to draw.
        image: values of any range.
        like: the image whose scale is taken; by default ``image`` itself.
    """
    axis.imshow(stretch(image, like), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def outline(axis: Axes, mask: NDArray[np.bool_], color: Color, width: float = 0.8) -> None:
    """Draw the border of a mask (Y, X), closed where it meets that of the image."""
    height, length = mask.shape
    places = np.arange(-1, length + 1), np.arange(-1, height + 1)
    axis.contour(*places, np.pad(mask, 1).astype(np.float64), levels=[0.5], colors=[color], linewidths=width)
    axis.set_xlim(-0.5, length - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
