"""Files written whole or not at all, lines of JSON, and directories that one process writes to at a time."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import json
import math
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ssl_seg.errors import DataError, InUseError, RunDirError, SslSegError

LOCK_FILE = "lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of a file system that has no locks."""


def take_lock(lock: FileLock) -> bool:
    """Acquire a lock; return whether it is held now: on a file system without locks it is not, whoever works there.

    Raises:
        Timeout: when another process holds it.
        OSError: when its file cannot be made.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file system without flock, where a file has to do
            lock.acquire()
    except NotImplementedError:
        return False
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def hold_directory(path: Path, note: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Keep other processes from writing into a directory; the system frees the lock of a process that dies.

    Where the file system has no locks, the block runs all the same.

    Args:
        path: an existing directory.
        note: is told where there are no locks.

    Raises:
        InUseError: when another process holds it.
        RunDirError: when it cannot be written to.
    """
    lock = FileLock(path / LOCK_FILE, timeout=0)
    try:
        is_held = take_lock(lock)
    except Timeout:
        raise InUseError(f"{path} is in use by another process: wait for it, or stop it first") from None
    except OSError as error:
        raise RunDirError(f"{path} cannot be written to: {error.strerror or error}") from error
    if not is_held:
        note(f"{path}: its file system has no locks; make sure that no other process writes there")
    try:
        yield
    finally:
        lock.release()


def next_free(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    candidate, number = path, 2
    named = path if path.name not in ("", "..") else path.resolve()  # such as "."
    while candidate.exists():
        candidate = named.with_name(f"{named.name}-{number}")
        number += 1
    return candidate


def find_obstacle(path: Path) -> str | None:
    """Return why nothing can be created at ``path``, or None: what lies above it is a file, or not ours to write."""
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir():
        return f"{above} is a file"
    return None if os.access(above, os.W_OK | os.X_OK) else f"permission denied for {above}"


DISK_FULL = "is full, or your quota on it is used up"
"""What is said of a disk of which ``is_disk_full`` is true."""


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk, a used-up quota or a limit of file size is among the causes of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
            return True  # ndarray.tofile gives no errno
        error = error.__cause__ or error.__context__
    return False


def check_is_free(path: Path, option: str = "") -> None:
    """Check that nothing is at ``path``, which an option may name.

    Raises:
        DataError: where there is something.
    """
    if path.exists():
        raise DataError(f"{option} {path} exists already and is not overwritten: choose another name".lstrip())


@contextmanager
def name_unwritable(path: Path, kind: type[SslSegError] = DataError) -> Iterator[None]:
    """Turn an error of the operating system into one that says that ``path`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise kind(f"{path}: cannot be written ({error.strerror or error}).") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the same folder that replaces ``path`` when the block ends well.

    A reader sees the old file or the new one, never a half; on an error the temporary file is removed.
    """
    # Not tempfile: its files are readable by their owner only, and the result would keep that.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its place when the block ends well; makes what lies above.

    What is at ``path`` is moved aside first; on an error it stays, and the temporary folder is removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    before = temporary.with_suffix(".old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(before)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def reserve(path: Path) -> None:
    """Reserve the disk for all bytes of a file: one that is mapped into memory would end the process on a full disk.

    Raises:
        OSError: where the disk has no space for it.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` atomically, indented; NaN and infinities become null."""
    write_text(path, json.dumps(to_finite(values), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def format_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table with a line of its columns and one of each row; what a row lacks, and None, is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_text(path: Path) -> str:
    """Return the text of a file that somebody wrote: UTF-8, or UTF-16 with its mark, as PowerShell and Excel write it.

    Raises:
        OSError, UnicodeDecodeError: if it cannot be read, or is in another encoding.
    """
    return decode_text(path.read_bytes())


def decode_text(text: bytes, errors: str = "strict") -> str:
    """Return the text of ``read_text``."""
    marked = text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return text.decode("utf-16" if marked else "utf-8-sig", errors)


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append ``record`` as one line; NaN and infinities become null."""
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"  # a crash has cut the last line short: keep it apart from the new one
            file.write(b"\n" if torn else b"")
        file.write(to_json_line(record).encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; lines cut short by a crash, or damaged, are left out."""
    return parse_jsonl(path.read_bytes()) if path.is_file() else []


def parse_jsonl(content: bytes) -> list[dict[str, Any]]:
    """Return the records in a file, or its end; lines that are cut short or damaged are left out."""
    records = []
    for line in content.splitlines():
        try:
            records.append(json.loads(line.decode()))
        except ValueError:  # no JSON, or no UTF-8
            continue
    return [record for record in records if isinstance(record, dict)]


def to_json_line(record: Mapping[str, Any]) -> str:
    """Return ``record`` as one line of JSON; NaN and infinities become null."""
    return json.dumps(to_finite(record), allow_nan=False) + "\n"


def to_finite(value: Any) -> Any:
    """Return ``value`` with NaN and infinities as None, for JSON."""
    if isinstance(value, Mapping):
        return {str(key): to_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
