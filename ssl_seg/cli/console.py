"""What a person sees: lines on stdout, progress bars on stderr where that is a terminal; see ``tables`` for tables."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ssl_seg.errors import printable, printable_lines

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
INTERVAL = 10.0
"""Seconds between plain progress lines where stderr is no terminal."""


def announce(text: str = "loading PyTorch") -> None:
    """Say on stderr what is about to be loaded or read, before seconds pass in silence; of several processes, once."""
    from ssl_seg.engine.machine import is_main_process

    if is_main_process():
        sys.stderr.write(f"{printable(text)} ...\n")
        sys.stderr.flush()


def show(text: str, *, err: bool = False) -> None:
    """Print lines, on stdout or stderr, in which names of files and cases cannot steer the terminal."""
    typer.echo(printable_lines(text), err=err)


def print_json(values: Any) -> None:
    """Print values as JSON on stdout."""
    typer.echo(json.dumps(values, indent=2))


def end_interrupted(where: str, command: str) -> NoReturn:
    """Say where a training was interrupted and how to continue it, and end with the exit code of that."""
    show(f"interrupted {where}; continue with: {command}")
    raise typer.Exit(INTERRUPTED)


class TerminalConsole:
    """Shows notes and progress."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def note(self, text: str) -> None:
        """Print a line."""
        self._print(text)

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


def track(items: Iterable[Any], total: int, label: str) -> Iterator[Any]:
    """Yield the items, with a progress bar on a terminal and a plain line every few seconds elsewhere."""
    if sys.stderr.isatty():
        with _make_progress(transient=True) as progress:
            yield from progress.track(items, total=total, description=printable(label))
        return
    start = last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if (now := time.monotonic()) - last > INTERVAL:
            left = timedelta(seconds=round((now - start) / number * (total - number)))
            sys.stderr.write(f"{printable(label)}: {number} of {total}, {left} left\n")
            last = now


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
