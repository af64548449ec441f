"""The processes of one run: started together, and ended together by the first error of any of them.

A collective call waits for all processes, and for hours where one of them never comes. So each process has a thread
that looks, beside the training, whether another one has failed or gone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NoReturn

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # left out of its __all__

from ssl_seg.config import RuntimeConfig
from ssl_seg.engine.devices import check_devices, count_started_processes, make_fabric
from ssl_seg.engine.machine import count_cores
from ssl_seg.errors import ConfigError, SslSegError

POLL_SECONDS = 0.5
"""Time between two looks at the other processes."""
SILENCE_SECONDS = 300.0
"""Silence after which a process counts as gone; a call that lets no other thread run may be long."""
FAREWELL_SECONDS = 15.0
"""How long a process waits for the others before it ends."""
ECHO_SECONDS = 5.0
"""How long an error that may be the echo of another process's end waits for that to be known."""


@dataclass(frozen=True)
class ProcessFailure:
    """Why a process ends: its rank, the exit code of the run, and what is shown."""

    rank: int
    code: int
    text: str


@contextmanager
def open_fabric(runtime: RuntimeConfig, *, in_study: bool = False) -> Iterator[Fabric]:
    """Yield the Fabric of a run while its processes run; an error that leaves the block on one of them ends all.

    The first process shows the error, whichever of them it came from, and all end with its exit code.

    Args:
        runtime: how many processes.
        in_study: whether a study has opened one already and looks after the processes.

    Raises:
        ConfigError: see ``check_devices``.
    """
    check_devices(runtime)
    children = _start_processes(runtime)
    fabric = make_fabric(runtime)
    fabric.launch()
    torch.set_num_threads(min(torch.get_num_threads(), max(1, count_cores() // runtime.devices)))
    if fabric.world_size == 1 or in_study:
        yield fabric
        return
    watch = _ProcessWatch(fabric.global_rank, fabric.world_size, children)
    try:
        yield fabric
    except BaseException as error:
        watch.fail(error)
        raise
    watch.close()


def _start_processes(runtime: RuntimeConfig) -> list[subprocess.Popen[bytes]]:
    """Start the other processes of this node, unless a launcher has; each runs the same command.

    Not by Fabric: when one of them dies it kills this process too, before that can say why.
    """
    wanted = runtime.devices * runtime.num_nodes
    if wanted == 1 or count_started_processes() is not None:
        return []
    if hasattr(sys, "ps1"):
        raise ConfigError(
            f"runtime.devices = {runtime.devices} starts the same program once for each: an interactive session cannot "
            "be started again. Use a script or the command line"
        )
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(find_free_network_port()))
    os.environ.setdefault("NODE_RANK", "0")
    os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": str(wanted)}
    command = [sys.executable, *sys.orig_argv[1:]]
    return [
        subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank)}) for rank in range(1, runtime.devices)
    ]


class _ProcessWatch:
    """Looks after the other processes, through the store by which they have found each other."""

    def __init__(self, rank: int, world_size: int, children: Sequence[subprocess.Popen[bytes]]) -> None:
        self.rank, self.world_size, self.children = rank, world_size, children
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: that of the collectives is locked while one of them waits.
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))
        opened = store.add(f"ssl_seg/opened/{rank}", 1)  # keys of an earlier run of this program are of no interest
        self.store = PrefixStore(f"ssl_seg/{opened}", store)
        self.beats: dict[int, tuple[bytes, float]] = {}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, name="ssl-seg-watch", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop looking, since all has gone well here, and let the others come to their end."""
        self._stop()
        self._wait_for_others()

    def fail(self, error: BaseException) -> None:
        """Make an error of this process known to the others; return in the first process only, which shows it."""
        own = _describe(self.rank, error)
        if not isinstance(error, SslSegError | KeyboardInterrupt):
            time.sleep(ECHO_SECONDS)  # if another process is the cause, the thread ends this one
        elif self.rank != 0:
            time.sleep(2 * POLL_SECONDS)  # an error that all have is shown by the first one itself
        with suppress(RuntimeError):  # the store has gone with the first process
            if self.rank != 0 and own.code == 1:
                traceback.print_exception(error)
            self._post(own)
            if self.rank == 0:
                self._stop()
                self._wait_for_others()
                return
            self.thread.join(FAREWELL_SECONDS)  # it ends this process when the first one has been told
        if self.rank != 0:
            os._exit(own.code)

    def _stop(self) -> None:
        self.ended.set()
        self.thread.join()

    def _wait_for_others(self) -> None:
        """Say that this process has come to its end; the first one, by which all talk, waits for the others."""
        end = time.monotonic() + FAREWELL_SECONDS
        with suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", "")
            while self.rank == 0 and time.monotonic() < end and not all(map(self._has_left, range(1, self.world_size))):
                time.sleep(POLL_SECONDS / 10)

    def _has_left(self, rank: int) -> bool:
        gone = rank <= len(self.children) and self.children[rank - 1].poll() is not None
        return gone or bool(self.store.check([f"left/{rank}"]))

    def _post(self, failure: ProcessFailure) -> None:
        self.store.compare_set("failure", "", json.dumps(asdict(failure)))

    def _look(self) -> None:
        beat = 0
        while not self.ended.wait(POLL_SECONDS):
            beat += 1
            try:
                self.store.set(f"beat/{self.rank}", str(beat))
                failure = self._find_failure()
            except RuntimeError:
                failure = ProcessFailure(0, 2, "it has ended without a message")
            if failure is not None and not self.ended.is_set():
                self._leave(failure)

    def _find_failure(self) -> ProcessFailure | None:
        """Return what another process has posted, or that one has gone without a word."""
        gone = [(rank, code) for rank, child in enumerate(self.children, 1) if (code := child.poll()) is not None]
        if self.store.check(["failure"]):
            return ProcessFailure(**json.loads(self.store.get("failure")))
        for rank, code in gone:
            if not self.store.check([f"left/{rank}"]):
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return ProcessFailure(
                    rank,
                    2,
                    f"it {how} without a message; the system kills what takes too much memory. What was saved is kept: "
                    "continue the run with --resume",
                )
        for rank in range(self.world_size):
            if rank != self.rank and not self.store.check([f"left/{rank}"]) and self._is_silent(rank):
                return ProcessFailure(
                    rank, 2, f"no sign of life for {SILENCE_SECONDS:.0f} s; continue the run with --resume"
                )
        return None

    def _is_silent(self, rank: int) -> bool:
        key = f"beat/{rank}"
        beat, now = self.store.get(key) if self.store.check([key]) else b"", time.monotonic()
        last = self.beats.get(rank)
        if last is None or last[0] != beat:
            self.beats[rank] = (beat, now)
            return False
        return now - last[1] > SILENCE_SECONDS

    def _leave(self, failure: ProcessFailure) -> NoReturn:
        """End this process at once: its main thread may wait in a collective call, which nothing interrupts."""
        with suppress(RuntimeError):
            self._post(failure)
        if self.rank == 0 or failure.rank == 0:  # the first one speaks for all, unless it has gone
            text = f"process {failure.rank} of {self.world_size} (counted from 0): {failure.text}"
            sys.stderr.write(f"ssl-seg: error: {text}\n")
            sys.stderr.flush()
        with suppress(Exception):
            sys.stdout.flush()
        self._wait_for_others()
        for child in self.children:
            child.kill()
        os._exit(failure.code)


def _describe(rank: int, error: BaseException) -> ProcessFailure:
    if isinstance(error, SslSegError):
        return ProcessFailure(rank, error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return ProcessFailure(rank, 130, "interrupted")
    return ProcessFailure(rank, 1, f"{type(error).__name__}: {error}")
