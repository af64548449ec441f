"""Processes of this machine that work for one call."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, cast

from ssl_seg.errors import MachineError, SslSegError

GRACE = 30.0
"""Seconds that processes get to remove what is half written."""

Work = Callable[..., None]
"""A function of a module. Its first argument is a function that tells the first process something that can be pickled;
it stops the work when that process has gone."""


def run_workers(count: int, work: Work, *arguments: Any) -> Iterator[Any]:
    """Yield what ``count`` processes tell that each run ``work(tell, *arguments)``, until all have returned.

    When this ends in another way, by an error in one of them, by Ctrl-C or since nobody asks for more, all are ended.

    Raises:
        SslSegError: what one of them raised.
        OSError: as well.
        RuntimeError: with the traceback of any other error.
        MachineError: for one that ended without a word.
    """
    context = get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}
    processes: list[SpawnProcess] = []
    try:
        with _no_interrupts():
            for number in range(count):
                receiver, sender = context.Pipe(duplex=False)
                name = f"worker {number + 1} of {count}"
                process = context.Process(target=_run, args=(sender, work, arguments), name=name, daemon=True)
                process.start()
                sender.close()
                processes.append(process)
                running[receiver] = process
        while running:
            for ready in wait(list(running)):
                pipe = cast("Connection", ready)
                try:
                    told = pipe.recv()
                except (EOFError, OSError):  # perhaps in the middle of a word
                    _check_end(running.pop(pipe))
                    continue
                if isinstance(told, Exception):
                    raise told
                yield told
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(GRACE)
            process.kill()
            process.join()


def _check_end(process: SpawnProcess) -> None:
    process.join()
    if process.exitcode == 1:  # an error before `_run`: a new process imports the script that is running
        raise MachineError(
            f"{process.name} could not start; its error is printed above. A script that asks for workers must call "
            'this below `if __name__ == "__main__":`'
        )
    if process.exitcode:
        why = f"was killed by signal {-process.exitcode}" if process.exitcode < 0 else f"ended with {process.exitcode}"
        raise MachineError(
            f"{process.name} {why}, perhaps for lack of memory: what is finished is kept. Give the same "
            "command again, with fewer --workers if memory was short"
        )


def _run(sender: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process gets it too, and ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files are removed
    with suppress(BrokenPipeError):
        try:
            work(sender.send, *arguments)
        except BrokenPipeError:
            raise
        except (SslSegError, OSError) as error:
            sender.send(error)
        except Exception:  # noqa: BLE001 (raised by the first process)
            sender.send(RuntimeError(f"in another process:\n{traceback.format_exc()}"))


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this process and in those that are started in the block, which would show a traceback each."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
