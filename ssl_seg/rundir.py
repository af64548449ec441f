"""The run directory: created once, appended to, never overwritten.

::

    RUN/config.yaml  split.yaml  environment.json  metrics.jsonl  events.jsonl
    RUN/lock                 held by the process that trains
    RUN/checkpoints/last.pt  best.pt  best-2.pt ... (monitor.keep_best)  swa.pt (policies.swa)
                    healthy.pt, start.pt (monitor.on_collapse: recover)
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ssl_seg.errors import CheckpointError, InUseError, RunDirError, quote

CONFIG_FILE, SPLIT_FILE, ENVIRONMENT_FILE = "config.yaml", "split.yaml", "environment.json"
ZIP_MAGIC = b"PK\x03\x04"
"""The first bytes of what ``torch.save`` writes."""
METRICS_FILE, EVENTS_FILE = "metrics.jsonl", "events.jsonl"
PRETRAINING_FILE = "pretraining.json"
"""What the directory of a pre-training is known by."""
LOCK_FILE = "lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of a file system that has no locks."""


@dataclass(frozen=True)
class RunDir:
    """Paths and records of one run."""

    path: Path

    @property
    def last(self) -> Path:
        """Checkpoint of the newest saved state."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """Checkpoint with the highest validation score."""
        return self.best_of_rank(1)

    @property
    def swa(self) -> Path:
        """Checkpoint whose student is the mean of those at the ends of epochs; written at the end of the run."""
        return self.path / "checkpoints" / "swa.pt"

    @property
    def healthy(self) -> Path:
        """Checkpoint of the last healthy networks, which a collapsed run goes back to first."""
        return self.path / "checkpoints" / "healthy.pt"

    @property
    def start(self) -> Path:
        """Checkpoint of the networks before the first step, which a collapsed run goes back to at last."""
        return self.path / "checkpoints" / "start.pt"

    def best_of_rank(self, rank: int) -> Path:
        """Return the path of the checkpoint with the highest (1), second highest (2), ... validation score."""
        return self.path / "checkpoints" / ("best.pt" if rank == 1 else f"best-{rank}.pt")

    @property
    def events_path(self) -> Path:
        """Path of events.jsonl."""
        return self.path / EVENTS_FILE

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; NaN and infinities are written as null."""
        append_jsonl(self.path / METRICS_FILE, record)

    def append_event(self, event: str, **values: Any) -> None:
        """Append one line with a time stamp to events.jsonl."""
        append_jsonl(self.events_path, {"event": event, "time": now(), **values})

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return all records of metrics.jsonl."""
        return read_jsonl(self.path / METRICS_FILE)

    def read_events(self) -> list[dict[str, Any]]:
        """Return all records of events.jsonl."""
        return read_jsonl(self.events_path)

    def read_ending(self) -> dict[str, Any] | None:
        """Return the last event of a run that has come to its own end; None if it has not, or has gone on since."""
        events = self.read_events()
        resumed = max((n for n, e in enumerate(events) if e["event"] == "resumed"), default=0)
        ends = [e for e in events[resumed:] if e["event"] in ("finished", "stopped_early", "collapsed")]
        return ends[-1] if ends else None

    def remove_parts(self) -> None:
        """Remove what a process that was killed has left half written; for the one that holds the directory."""
        for path in (*self.path.glob(".*.part"), *self.path.glob("checkpoints/.*.part")):
            path.unlink(missing_ok=True)

    def drop_after(self, step: int) -> None:
        """Remove the records, and the events, of steps that a resumed run is going to make again.

        An event without a step (``started``, ``test_opened``) stays, and so does ``resumed``.
        """
        metrics = [r for r in self.read_metrics() if r["step"] <= step]
        events = [e for e in self.read_events() if e.get("step", -1) <= step or e["event"] == "resumed"]
        for name, kept in ((METRICS_FILE, metrics), (EVENTS_FILE, events)):
            with atomic_write(self.path / name) as temporary:
                temporary.write_text("".join(_to_line(r) for r in kept), encoding="utf-8")


def create_run_dir(path: Path) -> RunDir:
    """Create the directory of a new run.

    Raises:
        RunDirError: when it exists already (and holds anything), or cannot be created.
    """
    check_free(path)
    try:
        (path / "checkpoints").mkdir(parents=True)
    except OSError as error:
        raise RunDirError(f"cannot create the run directory {path}: {error.strerror}") from error
    run = RunDir(path)
    write_json(path / ENVIRONMENT_FILE, describe_environment())
    (path / METRICS_FILE).touch()
    (path / EVENTS_FILE).touch()
    return run


def create_next_run_dir(path: Path) -> RunDir:
    """Create the directory of a new run at ``path``, or at the first of ``path-2``, ``path-3``, ... that is free.

    Raises:
        RunDirError: when it cannot be created.
    """
    while True:
        free = next_free(path)
        try:
            return create_run_dir(free)
        except RunDirError:
            if not free.exists():  # else another process was quicker
                raise


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file system without flock, where a file has to do
            lock.acquire()
    except Timeout:
        raise InUseError(f"{path} is in use by another process: wait for it, or stop it first") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise RunDirError(f"{path} cannot be written to: {error.strerror or error}") from error
        note(f"{path}: its file system has no locks; see to it that no second process works there")
    try:
        yield
    finally:
        lock.release()


def check_free(path: Path) -> None:
    """Do nothing, if a run may be created at ``path``.

    Raises:
        RunDirError: when something is there already; names --resume and the next free name.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        resume = f"continue it with --resume {quote(path)}, or " if (path / CONFIG_FILE).exists() else ""
        raise RunDirError(f"{path} exists already and is never overwritten: {resume}use --out {quote(next_free(path))}")


def open_run_dir(path: Path) -> RunDir:
    """Open an existing run.

    Raises:
        RunDirError: when the directory is missing or holds no run.
    """
    if not path.is_dir():
        raise RunDirError(f"no run directory {path}")
    if not (path / CONFIG_FILE).is_file():
        raise RunDirError(f"{path} is not a run directory: it has no {CONFIG_FILE}")
    return RunDir(path)


def describe_pretraining(path: Path) -> str:
    """Return what to do with a pre-training where a trained network is asked for."""
    return (
        f"{path} is a pre-training: its network paints images and has no classes to predict yet. Train from it with "
        f"ssl-seg train --pretrained {quote(path)}"
    )


def check_checkpoint_file(path: Path) -> None:
    """Check what can be known of a checkpoint without reading its tensors.

    Raises:
        CheckpointError: for a folder, a file that is not there or cannot be opened, and one of another kind.
    """
    if (path / PRETRAINING_FILE).is_file():
        raise CheckpointError(describe_pretraining(path))
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; of a run, name {path / 'checkpoints' / 'best.pt'}")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint file {path}")
    try:
        with path.open("rb") as file:
            head = file.read(len(ZIP_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if head != ZIP_MAGIC:
        raise CheckpointError(f"{path} is not a readable checkpoint: it is damaged or of another kind")


def find_run_of(checkpoint: Path) -> RunDir | None:
    """Return the run that a checkpoint lies in, or None for a checkpoint that was copied elsewhere."""
    folder = checkpoint.resolve().parent.parent
    return RunDir(folder) if (folder / CONFIG_FILE).is_file() and (folder / METRICS_FILE).is_file() else None


def next_free(path: Path) -> Path:
    """Return ``path``, or the first of ``path-2``, ``path-3``, ... that does not exist."""
    candidate, number = path, 2
    named = path if path.name not in ("", "..") else path.resolve()  # such as "."
    while candidate.exists():
        candidate = named.with_name(f"{named.name}-{number}")
        number += 1
    return candidate


def name_data(root: str) -> str:
    """Return what a data set is called in the name of a directory."""
    return Path(root).name.replace(":", "-")


def describe_environment() -> dict[str, Any]:
    """Return what a reader needs to repeat the run: command, versions, machine."""
    packages = ("ssl-seg", "torch", "monai", "lightning-fabric", "numpy", "tifffile")
    return {
        "time": now(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def find_obstacle(path: Path) -> str | None:
    """Return why nothing can be created at ``path``, or None: what lies above it is a file, or not ours to write."""
    above = next(place for place in path.absolute().parents if place.exists())
    if not above.is_dir():
        return f"{above} is a file"
    return None if os.access(above, os.W_OK | os.X_OK) else f"permission denied for {above}"


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk, a used-up quota or a limit of file size is among the causes of an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


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


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` atomically, indented; NaN and infinities become null."""
    write_text(path, json.dumps(to_finite(values), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append ``record`` as one line; NaN and infinities become null."""
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"  # a crash has cut the last line short: keep it apart from the new one
            file.write(b"\n" if torn else b"")
        file.write(_to_line(record).encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; lines cut short by a crash are left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _to_line(record: Mapping[str, Any]) -> str:
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
