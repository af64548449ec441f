"""The files by which the directory of a series is known."""

from __future__ import annotations

from pathlib import Path

from ssl_seg.errors import RunDirError, quote
from ssl_seg.files import next_free
from ssl_seg.run.directory import check_free

LADDER_FILE = "ladder.json"
FOLDS_FILE = "cross_validation.json"


def is_cross_validation(path: Path) -> bool:
    """Return whether this is the directory of a cross-validation."""
    return (path / FOLDS_FILE).is_file()


def check_free_for(file: str, path: Path, resume: str) -> None:
    """Do nothing, if a series may be begun in a directory.

    Args:
        file: by which a series of this kind is known.
        path: the directory.
        resume: command that continues one.

    Raises:
        RunDirError: when it exists and is not empty.
    """
    if (path / file).is_file():
        raise RunDirError(
            f"{path} exists already and is never overwritten: continue it with `{resume} {quote(path)}`, or "
            f"use --out {quote(next_free(path))}"
        )
    check_free(path)
