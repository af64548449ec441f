"""Where ``ssl-seg`` begins: run the command, and turn errors into one message and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ssl_seg.cli.console import INTERRUPTED
from ssl_seg.engine.machine import is_main_process, keep_freed_memory, limit_threads
from ssl_seg.errors import ConfigError, SslSegError, is_out_of_memory, printable_lines


def main() -> None:
    """Run ``ssl-seg``: errors the user can fix become one message and exit code 2 (3 for a refusal)."""
    for stream in (sys.stdout, sys.stderr):  # a name of a file may hold what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        Path.cwd()
    except FileNotFoundError:  # libraries would not load
        _fail("the current folder has been removed: change to another one", SslSegError.exit_code)
    limit_threads()
    keep_freed_memory()
    os.environ["MATPLOTLIBRC"] = os.devnull  # figures and pages look the same whatever style the user has
    try:
        from ssl_seg.cli.app import app
        from ssl_seg.cli.options import join_values

        _check_words(sys.argv)
        app(join_values(sys.argv[1:]), prog_name="ssl-seg")
    except SslSegError as error:
        if not is_main_process():
            sys.exit(0)  # the launcher would kill the first process, which is about to report the same error
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:  # during an import; typer turns a later one into the exit code below
        sys.exit(INTERRUPTED)
    except Exception as error:
        if is_out_of_memory(error):
            _fail(_describe_out_of_memory(error), SslSegError.exit_code)
        if isinstance(error, OSError) and error.filename is not None:  # of the user's files: no permission, a full disk
            _fail(f"{error.filename}: {error.strerror}", SslSegError.exit_code)
        raise


def _check_words(words: Sequence[str]) -> None:
    """Check that no word is empty: a path would be the current folder, or what holds by default.

    Raises:
        ConfigError: where one is.
    """
    for before, word in pairwise(words):
        option = word.removesuffix("=")
        if not word or (option != word and option.startswith("--") and "=" not in option):
            raise ConfigError(
                f"the word behind {option or before} is empty, as of a variable that is not set: give a value, or "
                "leave the option out"
            )


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"ssl-seg: error: {printable_lines(message)}\n")
    sys.exit(code)


def _describe_out_of_memory(error: BaseException) -> str:
    """Return what ran out, at what (the notes of the error), and what to do."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    where = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    remedy = "use --accelerator cpu or a GPU" if "OutOfMemoryError" in type(error).__name__ else "use a machine"
    return f"out of memory{where} ({reason[:200]}): close other programs, or {remedy} with more memory"
