"""Text and tables as Markdown, in which names and figures stay what they are."""

from __future__ import annotations

import re

from ssl_seg.errors import printable, printable_lines
from ssl_seg.report.table import Table
from ssl_seg.scores.text import UNKNOWN

_AROUND_WORDS = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
"""Underscores that could emphasize: those within a word, as in ``all_negative``, cannot."""


def format_table(table: Table) -> str:
    """Return the rows below the columns, aligned in the source too: columns of figures to the right, others to the
    left."""
    cells = [[_cell(text) for text in row] for row in (table.columns, *table.rows)]
    widths = [max(3, *(len(row[c]) for row in cells)) for c in range(len(table.columns))]
    right = [all(_is_figure(row[c]) for row in table.rows) for c in range(len(table.columns))]
    lines = [
        [text.rjust(w) if is_right else text.ljust(w) for text, w, is_right in zip(row, widths, right, strict=True)]
        for row in cells
    ]
    rule = ["-" * (w - 1) + (":" if is_right else "-") for w, is_right in zip(widths, right, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def code(text: str) -> str:
    """Return code of one line, in a fence that is longer than any row of backticks in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " * (longest > 0)
    return f"{fence}{space}{printable(text)}{space}{fence}"


def escape(text: str) -> str:
    """Return text in which names such as ``_loss*`` stay what they are; `` `code` `` is left alone."""
    text = printable_lines(text).replace("](", "]\\(")
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a single backtick opens nothing
        return _escape_words(text.replace("`", "\\`"))
    outside = [_escape_words(part).replace("<", "&lt;") for part in parts[::2]]
    inside = parts[1::2]
    return "".join(text for pair in zip(outside, [f"`{part}`" for part in inside] + [""], strict=True) for text in pair)


def _escape_words(text: str) -> str:
    return _AROUND_WORDS.sub(r"\\_", text).replace("*", "\\*")


def _is_figure(text: str) -> bool:
    return text in ("", UNKNOWN) or text.lstrip("+-")[:1].isdigit()


def _cell(text: str) -> str:
    return escape(text).replace("|", "\\|").replace("\n", " ")
