"""Processes that stop at an exact step: no test depends on how fast the machine is, or on what else it does."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

HOURS = 6 * 3600
"""Seconds after which a test gives up: something hangs, however busy the machine is."""

_STOP_AFTER = """
import os, runpy, signal, sys, threading
from ssl_seg.engine.engine import Engine

last, how, module, *arguments = sys.argv[1:]
take_step = Engine.step

def step_and_stop(self, batch, number, lr, restraint):
    record = take_step(self, batch, number, lr, restraint)
    if number + 1 == int(last):
        if how == "orphaned":
            print("waits", flush=True)
            next(t for t in threading.enumerate() if "_stop_with_parent" in t.name).join()
        else:
            os.kill(os.getpid(), signal.Signals[how])
    return record

Engine.step = step_and_stop
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def start(module: str, *arguments: str, stop: tuple[int, str] | None = None, **options: Any) -> subprocess.Popen[Any]:
    """Start ``python -m MODULE``.

    Args:
        module: is run as the main program.
        arguments: of it.
        stop: after how many steps of the run it sends itself a signal of this name; for ``orphaned`` it then prints
            ``waits``, and goes on when standard input has closed and it was told so.
        options: of ``Popen``.
    """
    command = ["-m", module] if stop is None else ["-c", _STOP_AFTER, str(stop[0]), stop[1], module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *command, *arguments], env=environment, **options)


def run(*arguments: str, stop: tuple[int, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Return what ``ssl-seg`` says and how it ends; see ``start``."""
    process = start("ssl_seg", *arguments, stop=stop, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate(timeout=HOURS)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
