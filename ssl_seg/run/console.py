"""Where a run talks to: a console, and the log in its directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.errors import printable_lines
from ssl_seg.run.directory import LOG_FILE, RunDir
from ssl_seg.run.plan import Planned


@runtime_checkable
class Console(Protocol):
    """Where a run talks to. Only rank 0 talks."""

    def note(self, text: str) -> None:
        """Show a line of information."""
        ...

    def track(self, label: str) -> Track:
        """Return a wrapper that shows progress over an iterable."""
        ...

    def start(self, first_step: int, total_steps: int) -> None:
        """Begin to show the progress of training."""
        ...

    def advance(self, step: int) -> None:
        """Show that ``step`` updates are done."""
        ...

    def stop(self) -> None:
        """End showing the progress of training."""
        ...


@runtime_checkable
class DrawingConsole(Console, Protocol):
    """A console that shows plan and looks in a form of its own; others get them as lines."""

    def plan(self, planned: Sequence[Planned]) -> None:
        """Show settings that were planned, with their reasons."""
        ...

    def look(self, line: str, record: Mapping[str, Any]) -> None:
        """Show a look at the networks: as a line, or what its record holds."""
        ...


def show_plan(console: Console, planned: Sequence[Planned]) -> None:
    """Show settings that were planned, with their reasons."""
    if isinstance(console, DrawingConsole):
        console.plan(planned)
        return
    for item in planned:
        console.note(item.format_line())


def show_look(console: Console, line: str, record: Mapping[str, Any]) -> None:
    """Show a look at the networks, of which there are a line and a record."""
    if isinstance(console, DrawingConsole):
        console.look(line, record)
    else:
        console.note(line)


class Silent:
    """A console that shows nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def track(self, label: str) -> Track:  # noqa: ARG002 (a Console takes it)
        """Return a wrapper that does nothing."""
        return pass_through

    def start(self, first_step: int, total_steps: int) -> None:
        """Show nothing."""

    def advance(self, step: int) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


class LoggedConsole:
    """Passes everything on, and writes the lines to train.log as well, from the first one on.

    A run has its directory after its data have been read and its network built; what is said until then is kept.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.track, self.start, self.advance, self.stop = console.track, console.start, console.advance, console.stop
        self.waiting: list[str] = []
        self.path: Path | None = None

    def open(self, run: RunDir) -> None:
        """Write to the log of a run from now on, behind what it holds."""
        self.path = run.path / LOG_FILE
        self._write(self.waiting)

    def note(self, text: str) -> None:
        """Show and write a line."""
        self.console.note(text)
        self._write([text])

    def plan(self, planned: Sequence[Planned]) -> None:
        """Show a plan, and write a line for each setting."""
        show_plan(self.console, planned)
        self._write([item.format_line() for item in planned])

    def look(self, line: str, record: Mapping[str, Any]) -> None:
        """Show a look, and write its line."""
        show_look(self.console, line, record)
        self._write([line])

    def _write(self, lines: Iterable[str]) -> None:
        if self.path is None:
            self.waiting.extend(lines)
        else:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{printable_lines(line)}\n" for line in lines)
