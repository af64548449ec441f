"""Cells as processes of this machine, each with its share of the cores and one of the GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ssl_seg.engine.machine import count_cores
from ssl_seg.studies.ablation.cells import CellFolder

WORKER = "ssl_seg.studies.ablation.worker"


@dataclass
class LocalProcess:
    """A worker started from here."""

    process: subprocess.Popen[bytes]
    place: int
    """Which of the launcher's places it takes."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Close its standard input, by which it knows that it is to save and end."""
        if self.process.stdin is not None:
            self.process.stdin.close()


@dataclass
class LocalLauncher:
    """Starts up to ``slots`` workers at a time."""

    slots: int
    gpus: Sequence[str] = ()
    """Names of the GPUs, as CUDA_VISIBLE_DEVICES takes them."""
    started: list[LocalProcess] = field(default_factory=list)

    def start(self, folder: CellFolder, arguments: Sequence[str]) -> LocalProcess:
        """Start the worker of a cell; what it says goes to the cell's log."""
        taken = {own.place for own in self.started if own.poll() is None}
        place = next(number for number in range(self.slots) if number not in taken)
        threads = count_threads(self.slots)
        gpu = self.gpus[place % len(self.gpus)] if self.gpus else None
        own = LocalProcess(start_worker(folder, arguments, make_environment(os.environ, threads, gpu)), place)
        self.started = [other for other in self.started if other.poll() is None] + [own]
        return own


def start_worker(
    folder: CellFolder, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Return the process of a cell, in a group of its own: Ctrl-C reaches the caller only, who asks it to end."""
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=dict(environment),
            start_new_session=True,
        )


def make_environment(base: Mapping[str, str], threads: int, gpu: str | None) -> dict[str, str]:
    """Return the environment of a worker: threads pinned, and one GPU, if any, to be seen."""
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**base, **pinned, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}


def count_threads(workers: int) -> int:
    """Return the threads of each of so many workers: together no more than there are cores, or they slow each other."""
    return max(1, count_cores() // workers)
