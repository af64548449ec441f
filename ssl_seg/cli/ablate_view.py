"""The cells of an ablation while they run: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ssl_seg.errors import counted, printable, printable_lines

if TYPE_CHECKING:
    from rich.table import Table

    from ssl_seg.studies.ablation.execute import CellState, Stage

INTERVAL = 30.0
"""Seconds between plain lines where stderr is no terminal."""
STYLES: dict[str, str] = {
    "running": "bold",
    "elsewhere": "",
    "failed": "red",
    "collapsed": "yellow",
    "refused": "yellow",
    "queued": "dim",
    "done": "green",
}
"""Stage of a cell -> style of its row; in the order in which rows are shown."""
FINISHED: tuple[Stage, ...] = ("done", "collapsed", "refused", "failed")


@contextmanager
def show_cells() -> Iterator[Callable[[Sequence[CellState]], None]]:
    """Yield what shows the states of all cells on stderr, for as long as the block lasts."""
    if not sys.stderr.isatty():
        yield _CellLines().show
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True, markup=False, emoji=False)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(), TimeRemainingColumn(), auto_refresh=False,
    )  # fmt: skip
    task = progress.add_task("cells", total=None)

    def draw(states: Sequence[CellState]) -> None:
        made = sum(s.cell.steps if s.stage in FINISHED else s.step for s in states)
        total = sum(s.cell.steps for s in states)
        progress.update(task, total=total, completed=made, description=describe_counts(states))
        live.update(Group(make_table(states, max(3, console.height - 8)), progress))

    with Live(console=console, transient=True, refresh_per_second=4) as live:
        yield draw


class _CellLines:
    """Writes a line for each change, and now and then what is running."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self.begun = False
        self.last = time.monotonic()

    def show(self, states: Sequence[CellState]) -> None:
        if not self.begun:
            self.begun = True
            self.told = {state.cell.id: state.stage for state in states if state.stage in FINISHED[:-1]}
            sys.stderr.write(f"{describe_counts(states)}\n")
        for state in states:
            if state.stage != self.told.get(state.cell.id, "queued"):
                detail = f": {state.message}" if state.message else ""
                sys.stderr.write(
                    f"{state.stage}: {printable(state.cell.name)} ({state.cell.id}){printable_lines(detail)}\n"
                )
                self.last = time.monotonic()
            self.told[state.cell.id] = state.stage
        if time.monotonic() - self.last > INTERVAL:
            running = [f"{s.cell.name} step {s.step}/{s.cell.steps}" for s in states if s.stage == "running"]
            sys.stderr.write(f"{describe_counts(states)} | {'; '.join(running)}\n")
            self.last = time.monotonic()
        sys.stderr.flush()


def make_table(states: Sequence[CellState], room: int) -> Table:
    """Return a table of the cells, of which ``room`` get a row."""
    from rich.table import Table

    ordered = sorted(states, key=lambda state: list(STYLES).index(state.stage))
    table = Table(box=None, pad_edge=False)
    for title, justify in (("cell", "left"), ("state", "left"), ("step", "right"), ("F1", "right"), ("", "left")):
        table.add_column(title, justify="right" if justify == "right" else "left", no_wrap=True)
    for state in ordered[:room]:
        f1 = "" if state.f1 is None else f"{state.f1:.3f}"
        step = f"{state.step}/{state.cell.steps}" if state.stage in ("running", "elsewhere") else ""
        cells = (printable(state.cell.name), state.stage, step, f1, printable(state.message))
        table.add_row(*cells, style=STYLES[state.stage])
    if len(ordered) > room:
        table.add_row(f"... and {len(ordered) - room} more", style="dim")
    return table


def describe_counts(states: Sequence[CellState]) -> str:
    """Return how many cells are in each state, e.g. ``18 cells: 5 done, 2 running, 11 queued``."""
    counts = Counter(state.stage for state in states)
    kinds: tuple[Stage, ...] = (*FINISHED, "running", "elsewhere", "queued")
    return f"{counted(len(states), 'cell')}: " + ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
