"""Which process works on which image or piece: a lock on disk, which the system frees when its process dies."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ssl_seg.files import take_lock

WAIT = 0.5
"""Seconds between two looks at what other processes make."""

State = tuple[int, int] | None
"""Tells a file or folder from the one that takes its place; None where there is none."""


def read_state(path: Path) -> State:
    """Return the state of a file or folder."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns


def try_lock(path: Path) -> FileLock | None:
    """Return a lock that is held now, or None where another process holds it.

    On a file system without locks all get one: the same thing may be made twice, which does no harm.
    """
    lock = FileLock(path, timeout=0)
    try:
        take_lock(lock)
    except Timeout:
        return None
    return lock


@dataclass(frozen=True)
class Claim:
    """The right to make the file number ``number``, while the lock is held."""

    number: int
    path: Path
    before: State
    lock: FileLock

    @property
    def is_made(self) -> bool:
        """Whether another process has made the file since the call began."""
        return read_state(self.path) != self.before

    def release(self) -> None:
        """Let others have it."""
        if self.lock.is_locked:
            with suppress(OSError):
                Path(self.lock.lock_file).unlink()
        self.lock.release()


def claim_each(
    paths: Sequence[Path], states: Sequence[State], locks: Sequence[Path]
) -> Iterator[tuple[int, Claim | None]]:
    """Yield the number of each file once, with the right to make it, or with None where another process has made it.

    Those that another process works on come last, and are waited for: it may die.

    Args:
        paths: what is to be made.
        states: states of these paths when the call began.
        locks: a file for each, in an existing folder.
    """
    waiting, passed = deque(range(len(paths))), 0
    while waiting:
        number = waiting.popleft()
        made = read_state(paths[number]) != states[number]
        lock = None if made else try_lock(locks[number])
        if not made and lock is None:
            waiting.append(number)
            passed += 1
            if passed == len(waiting):
                time.sleep(WAIT)
                passed = 0
            continue
        passed = 0
        if lock is None:
            yield number, None
            continue
        claim = Claim(number, paths[number], states[number], lock)
        try:
            yield number, None if claim.is_made else claim
        finally:
            claim.release()
