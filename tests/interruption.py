"""Trainings that stop at an exact point: no test depends on how fast the machine is, or on what else it does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ssl_seg.engine.engine import Engine

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


class Killed(BaseException):
    """In place of kill -9: no handler of the package takes it for anything."""


@contextmanager
def killed(target: Any, name: str, when: Callable[..., bool]) -> Iterator[None]:
    """Die when ``target.name`` is called with arguments for which ``when`` holds."""
    original = getattr(target, name)

    def die(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            raise Killed
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, die)
        with pytest.raises(Killed):
            yield


@contextmanager
def dying_at(target: Any, name: str, number: int, when: str) -> Iterator[None]:
    """Raise ``Killed`` ``before`` or ``after`` the call of ``target.name`` with this number, the first one being 1."""
    original, calls = getattr(target, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            raise Killed
        result = original(*args, **kwargs)
        if calls == number:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, call)
        yield


def stop_after(last: int) -> Any:
    """Return what takes the place of ``stop_flag``: it is set after a step."""

    @contextmanager
    def flag(_: Any) -> Iterator[Callable[[int], bool]]:
        yield lambda step: step == last

    return flag


@contextmanager
def interrupted_after(steps: int) -> Iterator[None]:
    """Send this process an interrupt when so many steps are done."""
    step = Engine.step

    def interrupt(self: Engine, batch: Any, number: int, *rest: Any) -> Any:
        record = step(self, batch, number, *rest)
        if number + 1 == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", interrupt)
        yield


def stopping(module: str, *arguments: str, stop: tuple[int, str]) -> list[str]:
    """Return the command (see ``forking``) for ``python -m MODULE`` that sends itself a signal.

    Args:
        module: is run as the main program.
        arguments: of it.
        stop: after how many steps of the run, and the name of the signal; for ``orphaned`` it then prints ``waits``,
            and goes on when standard input has closed and it was told so.
    """
    return ["-c", _STOP_AFTER, str(stop[0]), stop[1], module, *arguments]
