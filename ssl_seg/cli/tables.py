"""Tables and findings on stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssl_seg.cli.console import show
from ssl_seg.errors import printable
from ssl_seg.report.score_cells import Row
from ssl_seg.report.table import Table, to_table

if TYPE_CHECKING:
    from ssl_seg.data.findings import Finding

_ANY_WIDTH = 10_000
"""Columns of an output that has no width, a file or a pipe."""


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """Print rows, each from the title of a column to its cell, as a table; see ``to_table``."""
    print_table(to_table(title, rows))


def print_findings(findings: Sequence[Finding]) -> None:
    """Print a line for each finding, faults first."""
    from ssl_seg.data.findings import describe_finding, sort_findings

    for finding in sort_findings(findings):
        show(f"{finding.level}: {describe_finding(finding)}")


def print_table(table: Table) -> None:
    """Print a table, and below it how to read it. No figure is ever cut off; rows may end before the last column.

    In a file or a pipe, lines are as long as they are. On a terminal, cells are wrapped between words; where that is
    not enough, the lines between columns are left out, and at last each row is a list.
    """
    from rich.box import HEAVY_HEAD
    from rich.console import Console
    from rich.table import Table as Grid

    drawn = sys.stdout.isatty()
    console = Console(width=None if drawn else _ANY_WIDTH, highlight=False, markup=False, emoji=False)
    title, columns = printable(table.title), list(map(printable, table.columns))
    rows = [[*map(printable, row), *[""] * (len(columns) - len(row))] for row in table.rows]
    cells = list(zip(columns, *rows, strict=True))
    boxed = fit_widths(cells, console.width - 3 * len(columns) - 1)
    plain = fit_widths(cells, console.width - len(columns))
    if plain is None:
        console.print(title, *(format_record(columns, row) for row in rows), sep="\n")
    else:
        has_box = drawn and boxed is not None
        padding = (0, 1) if has_box or not drawn else (0, 1, 0, 0)
        grid = Grid(title=title, title_justify="left", box=HEAVY_HEAD if has_box else None, padding=padding)
        for index, (column, width) in enumerate(zip(columns, boxed or plain, strict=True)):
            grid.add_column(column, justify="left" if index == 0 else "right", width=width)
        for row in rows:
            grid.add_row(*row)
        console.print(grid)
    if table.text:
        show(table.text)


def format_record(columns: Sequence[str], row: Sequence[str]) -> str:
    """Return a row as lines: the first cell, then name and content of the others that have one."""
    named = (
        f"  {name}: {cell}" if name else f"  {cell}"
        for name, cell in zip(columns[1:], row[1:], strict=True)
        if cell not in ("", "-")
    )
    return "\n".join([row[0], *named])


def fit_widths(cells: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Return the widths of the columns of a table: each holds its longest word, and whole cells where there is room.

    Args:
        cells: header and cells of each column.
        room: columns of the terminal for all of them; a wide character takes two.

    Returns:
        None where not even the words fit.
    """
    from rich.cells import cell_len

    widths = [max(cell_len(word) for cell in column for word in (cell.split() or [""])) for column in cells]
    whole = [max(map(cell_len, column)) for column in cells]
    left = room - sum(widths)
    for index in sorted(range(len(cells)), key=lambda i: whole[i] - widths[i]):
        more = min(whole[index] - widths[index], max(left, 0))
        widths[index], left = widths[index] + more, left - more
    return widths if left >= 0 else None
