"""A table of text, for the terminal, for pages and for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_seg.scores.text import number

TableRow = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """``rows`` of text below ``columns``, the first column being names; ``text`` says how to read it."""

    title: str
    text: str
    columns: TableRow
    rows: tuple[TableRow, ...]


def to_table(title: str, rows: Sequence[Mapping[str, Any]], text: str = "") -> Table:
    """Return a table of rows, each from the title of a column to its cell: a figure gets three decimals.

    The columns are those of the rows, in their order; a cell that a row lacks is empty.
    """
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(title, text, columns, tuple(tuple(_format(row.get(name, "")) for name in columns) for row in rows))


def _format(value: Any) -> str:
    """Return a figure with three decimals, ``-`` for None and what is not finite, and anything else as it is."""
    return number(value) if value is None or isinstance(value, float) else str(value)
