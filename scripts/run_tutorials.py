"""Run the commands of the tutorials in a new folder, and write what they print into the pages.

    python scripts/run_tutorials.py docs/tutorials/first_run.md        # keeps the folder, and says where it is

A block ```` ```console ```` holds one command after ``$``, and then its output. A comment before the block says what is
shown of a long output, and which exit code is right: ``<!-- first 2, last 5 -->``, ``<!-- exit 3 -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"(?:<!-- (?P<notes>[^>]+) -->\n)?```console\n\$ (?P<command>(?:[^\n]*\\\n)*[^\n]*)\n(?P<output>.*?)```", re.S
)
CUT = "..."
WIDTH = "120"


@dataclass(frozen=True)
class Command:
    """A command of a page."""

    text: str
    exit_code: int = 0
    first: int | None = None
    """Lines of the output that are shown from its begin; None: the whole output."""
    last: int = 0


def read_commands(page: str) -> list[Command]:
    """Return the commands of a page, in order."""
    return [_read_block(block) for block in BLOCK.finditer(page)]


def _read_block(block: re.Match[str]) -> Command:
    numbers = {word: int(number) for word, number in re.findall(r"(\w+) (\d+)", block["notes"] or "")}
    cut = "first" in numbers or "last" in numbers
    first = numbers.get("first", 0) if cut else None
    return Command(block["command"], numbers.get("exit", 0), first, numbers.get("last", 0))


def fill(page: str, run: Callable[[Command], str]) -> str:
    """Return a page with the output of each of its commands below it."""

    def replace(block: re.Match[str]) -> str:
        output = shorten(run(_read_block(block)), _read_block(block))
        start, end = block.span("output")
        return block[0][: start - block.start()] + output + block[0][end - block.start() :]

    return BLOCK.sub(replace, page)


def shorten(output: str, command: Command) -> str:
    """Return the lines of an output that a page shows; ``...`` stands for those between them."""
    lines = [line.rstrip() for line in output.splitlines()]
    if command.first is None or len(lines) <= command.first + command.last:
        return "".join(f"{line}\n" for line in lines)
    shown = [*lines[: command.first], CUT, *lines[len(lines) - command.last :]]
    return "".join(f"{line}\n" for line in shown)


def run_in(folder: Path, command: Command) -> str:
    """Return what a command prints, as a pipe gets it.

    Raises:
        RuntimeError: for another exit code than the page says.
    """
    print(f"$ {command.text}", file=sys.stderr, flush=True)
    environment = {**os.environ, "COLUMNS": WIDTH, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command.text], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode != command.exit_code:
        raise RuntimeError(f"exit code {done.returncode}, not {command.exit_code}: {command.text}\n{done.stdout}")
    return done.stdout.replace(f"{folder}/", "")


def main(pages: list[str]) -> None:
    """Run the pages one after the other, each in a folder of its own."""
    for page in map(Path, pages):
        folder = Path(tempfile.mkdtemp(prefix=f"{page.stem}-"))
        print(f"{page} in {folder}", file=sys.stderr)
        page.write_text(fill(page.read_text(encoding="utf-8"), lambda c, f=folder: run_in(f, c)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
