"""The run directory: created once, appended to, never overwritten.

::

    RUN/config.yaml  split.yaml  environment.json  metrics.jsonl  events.jsonl
    RUN/scores.json          every network on the whole validation cases, written when the run ends
    RUN/train.log            what was said, line by line
    RUN/profile.txt          operators of a few steps, and profile.json, their timeline (train --profile)
    RUN/lock                 held by the process that trains
    RUN/checkpoints/last.pt  best.pt  best-2.pt ... (monitor.keep_best)  swa.pt (policies.swa)
                    healthy.pt, start.pt (monitor.on_collapse: recover)  step-133.pt ... (length.snapshots)
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from ssl_seg.config import Config
from ssl_seg.config.layers import dump_config
from ssl_seg.errors import RunDirError, quote
from ssl_seg.files import (
    append_jsonl,
    atomic_write,
    find_obstacle,
    next_free,
    now,
    parse_jsonl,
    read_jsonl,
    to_json_line,
    write_json,
)

CONFIG_FILE, SPLIT_FILE, ENVIRONMENT_FILE = "config.yaml", "split.yaml", "environment.json"
METRICS_FILE, EVENTS_FILE, LOG_FILE = "metrics.jsonl", "events.jsonl", "train.log"
TrainingEnding = Literal["finished", "stopped_early", "interrupted", "collapsed", "refused"]
"""``refused`` is the end of a run that has broken a gate."""
ENDINGS: tuple[TrainingEnding, ...] = get_args(TrainingEnding)


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

    def snapshot(self, step: int) -> Path:
        """Return the path of the networks that are kept after a step (``length.snapshots``)."""
        return self.path / "checkpoints" / f"step-{step}.pt"

    def find_snapshots(self) -> list[Path]:
        """Return the paths of all of them, in the order of their steps."""
        return sorted((self.path / "checkpoints").glob("step-*.pt"), key=lambda path: int(path.stem[5:]))

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

    def read_last_metrics(self, tail: int = 2**20) -> dict[str, Any]:
        """Return the last record of metrics.jsonl, of which ``tail`` bytes at the end are read; empty without one."""
        path = self.path / METRICS_FILE
        if not path.is_file():
            return {}
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - tail))
            records = parse_jsonl(file.read())
        return records[-1] if records else {}

    def read_events(self) -> list[dict[str, Any]]:
        """Return all records of events.jsonl."""
        return read_jsonl(self.events_path)

    def read_ending(self) -> dict[str, Any] | None:
        """Return the last event of a run that has come to its own end; None if it has not, or has gone on since."""
        ending = find_ending(self.read_events())
        return None if ending is None or ending["event"] == "interrupted" else ending

    def read_broken_gates(self) -> list[str]:
        """Return a line for each gate that the run has broken."""
        return [e["text"] for e in self.read_events() if e["event"] == "gate" and not e["passed"]]

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
                temporary.write_text("".join(to_json_line(r) for r in kept), encoding="utf-8")


def find_last(events: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """Return the last event of a kind; empty without one."""
    return next((event for event in reversed(list(events)) if event.get("event") == kind), {})


def find_ending(events: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the event with which a run has ended, or was interrupted; None if it has not, or has gone on since."""
    kinds = [event.get("event") for event in events]
    ends = [n for n, kind in enumerate(kinds) if kind in ENDINGS]
    return events[ends[-1]] if ends and "resumed" not in kinds[ends[-1] :] else None


def create_run_dir(path: Path, configs: Iterable[Path] = ()) -> RunDir:
    """Create the directory of a new run.

    Args:
        path: absent or empty.
        configs: files that its settings come from; see ``describe_environment``.

    Raises:
        RunDirError: when it exists already (and holds anything), or cannot be created.
    """
    check_free(path)
    try:
        (path / "checkpoints").mkdir(parents=True)
    except OSError as error:
        raise RunDirError(f"cannot create the run directory {path}: {error.strerror}") from error
    run = RunDir(path)
    write_json(path / ENVIRONMENT_FILE, describe_environment(configs))
    (path / METRICS_FILE).touch()
    (path / EVENTS_FILE).touch()
    return run


def create_next_run_dir(path: Path, configs: Iterable[Path] = ()) -> RunDir:
    """Create the directory of a new run at ``path``, or at the first of ``path-2``, ``path-3``, ... that is free.

    Raises:
        RunDirError: when it cannot be created.
    """
    while True:
        free = next_free(path)
        try:
            return create_run_dir(free, configs)
        except RunDirError:
            if not free.exists():  # else another process was quicker
                raise


def check_free(path: Path) -> None:
    """Check that a run may be created at ``path``.

    Raises:
        RunDirError: when something is there already; names --resume, where that can go on, and the next free name. When
            nothing can be written there.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        other = f"use --out {quote(next_free(path))}"
        if (path / CONFIG_FILE).exists():
            ended = "a run without a checkpoint is there: remove the folder, or "
            other = (
                f"continue it with --resume {quote(path)}, or {other}" if RunDir(path).last.exists() else ended + other
            )
        raise RunDirError(f"{path} exists already and is never overwritten: {other}")
    if obstacle := find_obstacle(path / CONFIG_FILE if path.is_dir() else path):
        raise RunDirError(f"cannot create the run directory {path}: {obstacle}; choose another place with --out")


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


def write_config(config: Config, run: RunDir, header: str) -> None:
    """Write config.yaml atomically, with ``header`` as comment."""
    with atomic_write(run.path / CONFIG_FILE) as temporary:
        temporary.write_text(dump_config(config, header), encoding="utf-8")


def read_header(run: RunDir) -> str:
    """Return the comment at the top of config.yaml."""
    lines = (run.path / CONFIG_FILE).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


def find_run_of(checkpoint: Path) -> RunDir | None:
    """Return the run that a checkpoint lies in, or None for a checkpoint that was copied elsewhere."""
    folder = checkpoint.resolve().parent.parent
    return RunDir(folder) if (folder / CONFIG_FILE).is_file() and (folder / METRICS_FILE).is_file() else None


def name_data(root: str) -> str:
    """Return what a data set is called in the name of a directory."""
    return Path(root).name.replace(":", "-")


def describe_environment(configs: Iterable[Path] = ()) -> dict[str, Any]:
    """Return what a reader needs to repeat the run: command, versions, machine, and ``commits``: those of the Git
    repositories that the package and each configuration file lie in, where they do (see ``find_commit``)."""
    commits = {"package": _find_own_commit(), **{str(path): find_commit(path.resolve()) for path in configs}}
    packages = ("ssl-seg", "torch", "monai", "lightning-fabric", "numpy", "tifffile")
    return {
        "time": now(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: metadata.version(name) for name in packages},
        "commits": {name: commit for name, commit in commits.items() if commit is not None},
    }


@cache
def _find_own_commit() -> dict[str, Any] | None:
    return find_commit(Path(__file__).parents[1])


def find_commit(path: Path) -> dict[str, Any] | None:
    """Return the ``commit`` of the Git repository that a file or folder lies in, and whether it has ``changed`` since.

    None outside of a repository, for what it ignores (a package in a virtual environment), and without git.
    """
    folder = path if path.is_dir() else path.parent

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)

    try:
        head = git("rev-parse", "HEAD")
        if head.returncode or git("check-ignore", "-q", str(path)).returncode == 0:
            return None
        return {"commit": head.stdout.strip(), "changed": bool(git("status", "--porcelain", "--", str(path)).stdout)}
    except (OSError, subprocess.TimeoutExpired):
        return None
