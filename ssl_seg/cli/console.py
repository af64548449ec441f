"""What a person sees: lines on stdout, progress bars on stderr where that is a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ssl_seg.errors import printable, printable_lines

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from ssl_seg.monitor.findings import Verdict

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
INTERVAL = 10.0
"""Seconds between plain progress lines where stderr is no terminal."""
_ANY_WIDTH = 10_000
"""Columns of an output that has no width, a file or a pipe."""


def announce(text: str) -> None:
    """Say on stderr what is about to be loaded or read, before seconds pass in silence."""
    sys.stderr.write(f"{printable(text)} ...\n")
    sys.stderr.flush()


def show(text: str, *, err: bool = False) -> None:
    """Print lines, on stdout or stderr, in which names of files and cases cannot steer the terminal."""
    typer.echo(printable_lines(text), err=err)


class TerminalConsole:
    """Shows notes, probe lines with new findings, and progress."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._told: frozenset[tuple[str, str, str]] = frozenset()

    def note(self, text: str) -> None:
        """Print a line."""
        self._print(text)

    def probe(self, line: str, verdict: Verdict) -> None:
        """Print the line of a probe, and a block when the set of findings changes."""
        self._print(line)
        if verdict.key != self._told:
            for text in format_block(verdict):
                self._print(text)
            self._told = verdict.key

    def track(self, label: str) -> Callable[[Iterable[Any], int], Iterator[Any]]:
        """Return a wrapper of iterables that shows how far they are."""

        def wrap(items: Iterable[Any], total: int) -> Iterator[Any]:
            return track(items, total, label)

        return wrap

    def start(self, first_step: int, total_steps: int) -> None:
        """Show the bar of the training."""
        if sys.stderr.isatty():
            self._progress = _make_progress(transient=True)
            self._task = self._progress.add_task("training", total=total_steps, completed=first_step)
            self._progress.start()

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step)

    def stop(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _print(self, text: str) -> None:
        # While a bar is shown, rich puts what is printed above it.
        try:
            sys.stdout.write(f"{printable_lines(text)}\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the reader (head, less) has gone; a training goes on without it
            sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (stays open until the end)


def format_block(verdict: Verdict) -> list[str]:
    """Return ``  LEVEL CODE (NET, NET): MESSAGE`` for the code that leads, the others in one line, and what to try.

    LEVEL is the worst one. Where several networks share the code, each has its own message behind its name, with its
    level where that is another.
    """
    if not verdict.findings:
        return []
    lead = verdict.findings[0]
    findings = [f for f in verdict.findings if f.code == lead.code]
    messages = [
        f"{f.net}{'' if f.level == lead.level else f' ({f.level})'} {f.message}" if len(findings) > 1 else f.message
        for f in findings
    ]
    lines = [f"  {lead.level.upper()} {lead.code} ({', '.join(f.net for f in findings)}): {' | '.join(messages)}"]
    lines += [f"    also: {', '.join(verdict.others)}"] if verdict.others else []
    return [*lines, f"    try: {verdict.action}"]


def track(items: Iterable[Any], total: int, label: str) -> Iterator[Any]:
    """Yield the items, with a progress bar on a terminal and a plain line every few seconds elsewhere."""
    if sys.stderr.isatty():
        with _make_progress(transient=True) as progress:
            yield from progress.track(items, total=total, description=printable(label))
        return
    last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > INTERVAL:
            sys.stderr.write(f"{printable(label)}: {number} of {total}\n")
            last = time.monotonic()


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table to stdout. No figure is ever cut off; rows may end before the last column.

    In a file or a pipe, lines are as long as they are. On a terminal, cells are wrapped between words; where that is
    not enough, the lines between columns are left out, and at last each row is a list.
    """
    from rich.box import HEAVY_HEAD
    from rich.console import Console
    from rich.table import Table

    drawn = sys.stdout.isatty()
    console = Console(width=None if drawn else _ANY_WIDTH, highlight=False, markup=False, emoji=False)
    title, columns = printable(title), list(map(printable, columns))
    rows = [[*map(printable, row), *[""] * (len(columns) - len(row))] for row in rows]
    cells = list(zip(columns, *rows, strict=True))
    boxed = fit_widths(cells, console.width - 3 * len(columns) - 1)
    plain = fit_widths(cells, console.width - len(columns))
    if plain is None:
        console.print(title, *(format_record(columns, row) for row in rows), sep="\n")
        return
    has_box = drawn and boxed is not None
    table = Table(
        title=title,
        title_justify="left",
        box=HEAVY_HEAD if has_box else None,
        padding=(0, 1) if has_box or not drawn else (0, 1, 0, 0),
    )
    for index, (column, width) in enumerate(zip(columns, boxed or plain, strict=True)):
        table.add_column(column, justify="left" if index == 0 else "right", width=width)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def format_record(columns: Sequence[str], row: Sequence[str]) -> str:
    """Return a row as lines: the first cell, then name and content of the others that have one."""
    named = (f"  {name}: {cell}" for name, cell in zip(columns[1:], row[1:], strict=True) if cell not in ("", "-"))
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


def format_figure(value: float | None, digits: int = 3) -> str:
    """Return a figure for a table; ``-`` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def format_interval(low: float | None, high: float | None, why: str = "", digits: str = ".3f") -> str:
    """Return an interval for a table; where there is none, why, or ``-``."""
    return why or "-" if low is None or high is None else f"{low:{digits}} .. {high:{digits}}"


def _make_progress(*, transient: bool) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=transient,
        redirect_stdout=sys.stdout.isatty(),  # a redirected stdout must get its lines itself
    )
