"""What a person sees: lines on stdout, progress bars on stderr where that is a terminal; see ``tables`` for tables."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ssl_seg.errors import printable, printable_lines

if TYPE_CHECKING:
    from rich.progress import Progress

    from ssl_seg.cli.train_view import TrainingView
    from ssl_seg.run.console import Console
    from ssl_seg.run.plan import Planned

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
INTERVAL = 10.0
"""Seconds between plain progress lines where stderr is no terminal."""
DETAILS = ("precision:", "memory format:", "scenario:")
"""Beginnings of lines that a terminal leaves to train.log, unless all is to be shown."""


def announce(text: str = "loading PyTorch") -> None:
    """Say on stderr what is about to be loaded or read, before seconds pass in silence; of several processes, once."""
    from ssl_seg.engine.machine import is_main_process

    if is_main_process():
        sys.stderr.write(f"{printable(text)} ...\n")
        sys.stderr.flush()


def show(text: str, *, err: bool = False) -> None:
    """Print lines, on stdout or stderr, in which names of files and cases cannot steer the terminal."""
    typer.echo(printable_lines(text), err=err)


def show_prose(text: str) -> None:
    """Print sentences on stdout; on a terminal they are wrapped between words."""
    show(wrap(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text)


def print_json(values: Any) -> None:
    """Print values as JSON on stdout."""
    typer.echo(json.dumps(values, indent=2))


def format_command(words: Sequence[object], options: Mapping[str, object]) -> str:
    """Return a command of this program; options without a value are left out, those with several are repeated."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    named = [str(word) for name, values in listed.items() for one in values if one is not None for word in (name, one)]
    return shlex.join(["ssl-seg", *map(str, words), *named])


def end_interrupted(where: str, command: str) -> NoReturn:
    """Say where a training was interrupted and how to continue it, and end with the exit code of that."""
    show(f"interrupted {where}; continue with: {command}")
    raise typer.Exit(INTERRUPTED)


def begin(given: Mapping[str, Any]) -> Console:
    """Say that the libraries are being loaded, and return the console that a command line asks for.

    Args:
        given: parameters of the command, among them ``quiet``, ``verbose`` and ``no_live``.
    """
    if not given["quiet"]:
        announce()
    from ssl_seg.run.console import Silent

    return Silent() if given["quiet"] else TerminalConsole(live=not given["no_live"], verbose=given["verbose"])


def draws_live() -> bool:
    """Return whether stderr is a terminal on which lines can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def wrap(text: str, width: int) -> str:
    """Return lines wrapped between words, what is carried over being indented; names and paths stay whole."""
    wrapped = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        wrapped += textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(wrapped)


def format_plan(planned: Sequence[Planned], width: int, *, reasons: bool) -> str:
    """Return a title and the planned settings: each with its reason, or as many beside each other as fit."""
    from ssl_seg.config.layers import show_value

    longest = max((len(item.key) for item in planned), default=0)
    cells = [f"{item.key:<{longest}}  {show_value(item.value)}" for item in planned]
    widest = max(map(len, cells), default=0)
    if reasons:
        lines = [f"  {cell:<{widest}}  {item.reason}" for cell, item in zip(cells, planned, strict=True)]
        return wrap("\n".join(["plan", *lines]), width)
    beside = max((width - 2) // (widest + 3), 1)
    down = -(-len(cells) // beside)  # read down the columns: what belongs together stays together
    rows = ("   ".join(f"{cell:<{widest}}" for cell in cells[row::down]).rstrip() for row in range(down))
    return "\n".join(["plan (reasons: --verbose, or the log of the run)", *(f"  {row}" for row in rows)])


class TerminalConsole:
    """Shows notes and progress: on a terminal a view that is drawn again and again, elsewhere lines.

    Args:
        live: whether to draw where that is possible; else lines are printed as in a pipe.
        verbose: show on a terminal all lines, and the reasons of the plan.
    """

    def __init__(self, *, live: bool = True, verbose: bool = False) -> None:
        self.draws, self.verbose = live and draws_live(), verbose
        self.view: TrainingView | None = None

    def note(self, text: str) -> None:
        """Print a line; on a terminal it is wrapped between words, and details are left to the log of the run."""
        if not (self.draws and sys.stdout.isatty()):
            self._print(text)
        elif self.verbose or not text.startswith(DETAILS):
            self._print(wrap(text, shutil.get_terminal_size().columns))

    def plan(self, planned: Sequence[Planned]) -> None:
        """Show a plan: a line for each setting, on a terminal a table, with the reasons where all is to be shown."""
        if not (self.draws and sys.stdout.isatty()):
            for item in planned:
                self._print(item.format_line())
        elif planned:
            self._print(format_plan(planned, shutil.get_terminal_size().columns, reasons=self.verbose))

    def track(self, label: str) -> Callable[[Iterable[Any], int], Iterator[Any]]:
        """Return a wrapper of iterables that shows how far they are."""

        def wrap(items: Iterable[Any], total: int) -> Iterator[Any]:
            return track(items, total, label)

        return wrap

    def start(self, first_step: int, total_steps: int) -> None:
        """Show the view of the training."""
        if self.draws:
            from ssl_seg.cli.train_view import TrainingView

            self.view = TrainingView(first_step, total_steps)

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        if self.view is not None:
            self.view.advance(step)

    def look(self, line: str, record: Mapping[str, Any]) -> None:
        """Show a look in the view; where there is none, or stdout is no terminal, print its line."""
        if self.view is not None:
            self.view.look(record)
        if self.view is None or not sys.stdout.isatty():
            self._print(line)

    def stop(self) -> None:
        """Remove the view."""
        if self.view is not None:
            self.view.stop()
            self.view = None

    def _print(self, text: str) -> None:
        # While a view is shown, rich puts what is printed above it.
        try:
            sys.stdout.write(f"{printable_lines(text)}\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the reader (head, less) has gone; a training goes on without it
            sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (stays open until the end)


def track(items: Iterable[Any], total: int, label: str) -> Iterator[Any]:
    """Yield the items, with a progress bar on a terminal and a plain line every few seconds elsewhere."""
    if sys.stderr.isatty():
        with _make_progress() as progress:
            yield from progress.track(items, total=total, description=printable(label))
        return
    start = last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if (now := time.monotonic()) - last > INTERVAL:
            left = timedelta(seconds=round((now - start) / number * (total - number)))
            sys.stderr.write(f"{printable(label)}: {number} of {total}, {left} left\n")
            last = now


def _make_progress() -> Progress:
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
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # a redirected stdout must get its lines itself
    )
