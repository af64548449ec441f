"""Facts of the cases that were read before, kept in one file, so that the next start reads no image.

A case is known again by path, size and time of its files, by how they are read, and by the code that reads them. A file
that is replaced by one of the same size and time is therefore not noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import PIL
import tifffile
from pydantic import TypeAdapter

from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.home import list_places
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.volumes import split_location

KEPT_PER_CASE, KEPT_AT_LEAST = 4, 20_000
"""Facts that are kept: so many for each case, which can be read with several settings, but no fewer than the second."""

_FLUSH_SECONDS = 1.0
"""New facts are written after so many seconds, so that a start that is killed has not read in vain."""

_COARSE_TICK, _FINE_TICK = 2 * 10**9, 2 * 10**7
"""Nanoseconds in which a file system may give two changes one time: one that counts whole seconds, and others."""

_ADAPTER = TypeAdapter(CaseFacts)


class FactsCache:
    """The kept facts of a data set; where its file cannot be used, it knows nothing and keeps nothing.

    ``make_key`` may be called by any thread.

    Args:
        paths: places for the file; the first that can be written is taken.
        folder: folder of the data set, which may move.
        settings: whatever facts depend on besides the files.
    """

    def __init__(self, paths: Sequence[Path], folder: Path, settings: str) -> None:
        self._prefix, self._settings = f"{folder.absolute()}{os.sep}", settings
        self._path, self._connection = _open_first(paths)
        self._new: list[tuple[bytes, int, bytes]] = []
        self._states: dict[Path, str | None] = {}  # parts of an image ask for the same folder of chunks again
        self._flushed = time.monotonic()

    def make_key(self, case: Case) -> bytes | None:
        """Return a digest of all that the facts of a case depend on; None for what is no file, or has just changed."""
        if self._connection is None:
            return None
        parts = [_code_version(), self._settings]
        for part in fields(case):
            value = getattr(case, part.name)
            if part.name in ("image", "mask", "more_channels"):
                locations = value if isinstance(value, tuple) else (value,)
                if None in (value := [self._describe_file(location) for location in locations if location is not None]):
                    return None
            if part.name not in ("id", "group"):
                parts.append(f"{part.name} {value}")
        return hashlib.sha256("\n".join(parts).encode()).digest()

    def _describe_file(self, location: str) -> str | None:
        name, key = split_location(location)
        path = Path(name).absolute()
        if path not in self._states:
            self._states[path] = _read_state(path)
        state = self._states[path]
        return None if state is None else f"{str(path).removeprefix(self._prefix)} {key} {state}"

    def find(self, key: bytes | None) -> CaseFacts | None:
        """Return the facts that were kept, or None."""
        row = None
        with self._recovering():
            if key is not None and self._connection is not None:
                row = self._connection.execute("SELECT facts FROM kept WHERE key = ?", (key,)).fetchone()
        try:
            return None if row is None else _ADAPTER.validate_python(json.loads(zlib.decompress(row[0])))
        except (zlib.error, ValueError, TypeError):  # damaged: zlib compares a checksum
            return None

    def keep(self, key: bytes | None, facts: CaseFacts) -> None:
        """Keep the facts of a case that was read."""
        if key is None:
            return
        text = json.dumps(_ADAPTER.dump_python(facts, mode="json")).encode()
        self._new.append((key, time.time_ns(), zlib.compress(text, 1)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def close(self, cases: int) -> None:
        """Write new facts, and forget the oldest where there are too many for so many cases."""
        if self._new:
            self._flush(max(KEPT_PER_CASE * cases, KEPT_AT_LEAST))
        if self._connection is not None:
            self._connection.close()

    def _flush(self, most: int = -1) -> None:
        with self._recovering():
            if self._connection is not None:
                self._connection.executemany("REPLACE INTO kept VALUES (?, ?, ?)", self._new)
                if most >= 0:
                    old = "SELECT key FROM kept ORDER BY added DESC, key LIMIT -1 OFFSET ?"
                    self._connection.execute(f"DELETE FROM kept WHERE key IN ({old})", (most,))
                self._connection.commit()
        self._new.clear()
        self._flushed = time.monotonic()

    @contextmanager
    def _recovering(self) -> Iterator[None]:
        """Go on without the file where it cannot be used, or with a new one where it is damaged."""
        try:
            yield
        except sqlite3.Error as error:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            if self._path is not None and not isinstance(error, sqlite3.OperationalError):
                with suppress(OSError):
                    self._path.unlink()
                    self._connection = _open_first([self._path])[1]


@contextmanager
def open_facts_cache(root: str | None, settings: str, cases: int) -> Iterator[FactsCache]:
    """Open the facts of a data set, in its folder or, where that cannot be written, in the user's cache.

    Args:
        root: the data set; nothing is kept of a synthetic one, or without a root.
        settings: whatever facts depend on besides the files.
        cases: how many there are.
    """
    folder = Path(root or ".")
    cache = FactsCache(list_places(root, "facts.sqlite"), folder if folder.is_dir() else folder.parent, settings)
    try:
        yield cache
    finally:
        cache.close(cases)


def _open_first(paths: Sequence[Path]) -> tuple[Path | None, sqlite3.Connection | None]:
    """Return the first file that can be written, made anew if it is damaged; None if there is none."""
    for path in paths:
        for _ in range(2):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                return path, _open_file(path)
            except (OSError, sqlite3.OperationalError):  # cannot be written, or is on a file system without locks
                break
            except sqlite3.DatabaseError:
                with suppress(OSError):
                    path.unlink()
    return None, None


def _open_file(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10)
    try:
        connection.execute("PRAGMA synchronous = OFF")  # what a power failure breaks does not unpack
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, added INTEGER, facts BLOB)")
        connection.commit()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _read_state(path: Path) -> str | None:
    """Return size and time of a file, or of all files of a folder; None if it is not there or has just changed."""
    try:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        found = ((str(file)[len(str(path)) :], file.stat()) for file in files)
        states = [(name, status.st_size, status.st_mtime_ns) for name, status in found]
    except OSError:
        return None
    newest = max((changed for *_, changed in states), default=0)
    tick = _FINE_TICK if newest % 10**9 else _COARSE_TICK
    return repr(states) if states and abs(time.time_ns() - newest) >= tick else None


@lru_cache
def _code_version() -> str:
    """Return a digest that changes whenever files may be read in another way."""
    digest = hashlib.sha256(f"{np.__version__} {cv2.__version__} {PIL.__version__} {tifffile.__version__}".encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
