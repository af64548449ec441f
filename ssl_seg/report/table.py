"""A table of text, for pages and reports."""

from __future__ import annotations

from dataclasses import dataclass

TableRow = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """``rows`` of text below ``columns``, the first column being names; ``text`` says how to read it."""

    title: str
    text: str
    columns: TableRow
    rows: tuple[TableRow, ...]
