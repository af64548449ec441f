"""A page of HTML in one file: what it holds, as data, and how that becomes text. It needs no network."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg import __version__
from ssl_seg.errors import DataError, printable
from ssl_seg.files import find_obstacle, now, write_text
from ssl_seg.report.figures import COLORS, Drawing
from ssl_seg.report.run_record import Banner
from ssl_seg.report.table import Table

if TYPE_CHECKING:
    from markupsafe import Markup

    from ssl_seg.diagnose.result import Example
    from ssl_seg.report.case_pictures import PredictedCase

PAGE_FILE = "report.html"
MOST_BYTES = 3_000_000
"""Size of a page; pictures of cases are left out where it would be larger."""
_MARK = "<!-- written by ssl-seg report -->"
"""In the first line: a file with it may be replaced."""
_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_MOST_SIDE = 320
"""Pixels of a picture of a case."""
_FIGURE = re.compile(r"|-|[-+]?[\d.,]+(e[-+]\d+)?( ?%| \.\. [-+]?[\d.]+)?")
_DARK_COLORS = ("#7aa6d8", "#ff8f9c", "#5cc46e", "#e0d36a", "#84dcf5", "#d470a8")
"""COLORS on a dark background."""


@dataclass(frozen=True)
class PageImage:
    """An image in the page, as a data URI."""

    title: str
    source: str


@dataclass(frozen=True)
class ImageRow:
    """Pictures that are shown side by side."""

    title: str
    pictures: tuple[PageImage, ...]


@dataclass(frozen=True)
class PageSection:
    """A part of a page: verdicts, text, pictures, figures and tables, in this order."""

    title: str
    notes: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    rows: tuple[ImageRow, ...] = ()
    banners: tuple[tuple[str, Banner], ...] = ()
    """Verdicts of several runs, by name."""
    links: tuple[str, ...] = ()
    """Other pages, by their path from the folder of this one."""
    is_open: bool = True
    """Whether it is unfolded at first."""


@dataclass(frozen=True)
class Page:
    """All that a page shows, from top to bottom."""

    title: str
    subtitle: str
    banner: Banner | None
    sections: tuple[PageSection, ...]


def render_page(page: Page) -> str:
    """Return the page as HTML. All of its text is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = printable
    environment.filters["prose"] = _mark_code
    environment.filters["figure_columns"] = _find_figure_columns
    colors = {"light": dict(enumerate(COLORS)), "dark": dict(enumerate(_DARK_COLORS))}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(page=page, mark=_MARK, version=__version__, when=now(), colors=colors)


def write_page(page: Page, path: Path) -> Path:
    """Write a page in place of an earlier one, without pictures of cases where it would be larger than MOST_BYTES.

    Raises:
        DataError: for a file that is no such page, or a place that cannot be written.
    """
    check_page_file(path)
    text = render_page(page)
    if len(text.encode("utf-8")) > MOST_BYTES:
        text = render_page(_leave_out_pictures(page))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error
    return path


def check_page_file(path: Path) -> None:
    """Check that a page may be written to ``path``: nothing is there, or an earlier page.

    Raises:
        DataError: names what is in the way.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name a file, such as {path / PAGE_FILE}")
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            if _MARK not in file.readline():
                raise DataError(
                    f"{path} exists and is not a page of ssl-seg: it is not overwritten, choose another name"
                )
    elif obstacle := find_obstacle(path):
        raise DataError(f"{path} cannot be written: {obstacle}. Name a file in another folder")


def _leave_out_pictures(page: Page) -> Page:
    note = f"Pictures are left out: the page would be larger than {MOST_BYTES / 1e6:.0f} MB."
    sections = (
        replace(section, notes=(*section.notes, note), rows=()) if section.rows else section
        for section in page.sections
    )
    return replace(page, sections=tuple(sections))


def keep_filled(sections: Iterable[PageSection]) -> tuple[PageSection, ...]:
    """Return the sections that hold anything."""
    return tuple(
        s
        for s in sections
        if s.notes or s.drawings or s.rows or s.banners or s.links or any(table.rows for table in s.tables)
    )


def make_image_rows(cases: Iterable[tuple[str, PredictedCase]]) -> tuple[ImageRow, ...]:
    """Return a row of pictures for each plane of each case; see ``make_image_row``."""
    return tuple(
        make_image_row(", ".join(filter(None, (f"{what}: {case.title}", plane))), example)
        for what, case in cases
        for plane, example in case.planes.items()
    )


def make_image_row(title: str, example: Example) -> ImageRow:
    """Return the pictures of an example: input, truth, probability, classes if several, errors."""
    from ssl_seg.report.example_figure import PREDICTION, PROBABILITY, list_columns, paint_panel

    names = {PREDICTION: "prediction" if example.truth is None else "errors"}
    pictures = tuple(
        PageImage(names.get(name, name), encode_image(paint_panel(example, name), name == PROBABILITY))
        for name in list_columns(example)
    )
    return ImageRow(title.replace("\n", ", "), pictures)


def encode_image(values: NDArray[np.floating[Any]], is_probability: bool = False) -> str:
    """Return gray (Y, X) or colors (Y, X, 3) in [0, 1] as a data URI; a probability in the colors of viridis,
    and in gray where it is NaN."""
    from PIL import Image

    if is_probability:
        from matplotlib import colormaps

        missing, values = np.isnan(values), colormaps["viridis"](np.nan_to_num(values))[..., :3]
        values[missing] = 0.5
    bytes_ = (np.clip(np.nan_to_num(values), 0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(bytes_)
    image.thumbnail((_MOST_SIDE, _MOST_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, subsampling=0)  # else the color of a line one pixel wide is that around it
    return to_data_uri(buffer.getvalue(), "jpeg")


def to_data_uri(content: bytes, kind: str) -> str:
    """Return an image file as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def make_facts(title: str, facts: Mapping[str, str]) -> Table:
    """Return a table of names and values, without what is unknown."""
    return Table(title, "", (), tuple((name, value) for name, value in facts.items() if value))


def _mark_code(text: str) -> Markup:
    """Return text as HTML, in which what stands between backticks is code."""
    from markupsafe import Markup

    parts = printable(text).split("`")
    if len(parts) % 2 == 0:  # a single backtick opens nothing
        parts = [printable(text)]
    marked = (Markup("<code>{}</code>" if number % 2 else "{}").format(part) for number, part in enumerate(parts))
    return Markup("").join(marked)


def _find_figure_columns(table: Table) -> list[bool]:
    """Return for each column of a table whether it holds figures only, which are set to the right."""
    columns = list(zip(*table.rows, strict=True))
    return [n > 0 and bool(table.columns) and all(map(_FIGURE.fullmatch, column)) for n, column in enumerate(columns)]
