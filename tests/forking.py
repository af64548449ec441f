"""Python programs that begin with the package loaded: forked from a server of their own, not from the test process.

Loading torch takes seconds, and these tests are about how a program ends. Others start it as a user does.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

HOURS = 6 * 3600
"""Seconds after which a test gives up: something hangs, however busy the machine is."""

SERVER = multiprocessing.get_context("forkserver")
_LOADED = [
    "torch._dynamo",
    "monai.networks.nets",
    "ssl_seg.run.training",
    "ssl_seg.results.prediction",
    "ssl_seg.cli.train",
    "pytest",
    "hypothesis",
    "typer",
]
SERVER.set_forkserver_preload(_LOADED)


class Program:
    """``python *command`` in a process of its own; its output is appended to files.

    Args:
        command: ``-m MODULE``, ``-c CODE`` or the path of a script, and arguments.
        stdout: where its output goes.
        stderr: the same for errors.
        env: its variables are added to those of this process.
    """

    def __init__(self, command: list[str], stdout: Path, stderr: Path, env: Mapping[str, str] | None = None) -> None:
        theirs, self.stdin = SERVER.Pipe(duplex=False)
        self._silence, sign_of_life = SERVER.Pipe(duplex=False)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        arguments = (command, theirs, sign_of_life, (stdout, stderr), environment)
        self._process = SERVER.Process(target=_begin, args=arguments)
        self._process.start()
        theirs.close()
        sign_of_life.close()

    def poll(self) -> int | None:
        """Return the exit code, ``-N`` after signal N, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = HOURS) -> int | None:
        """Wait for its end, and that of all that it has started; return the exit code."""
        assert self._silence.poll(timeout), "it hangs"
        self._process.join(timeout)
        return self.poll()


def run(command: list[str], folder: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Return how a program ends and what it and the processes that it has started have said."""
    files = folder / "program.stdout", folder / "program.stderr"
    code = Program(command, *files, env).wait()
    assert code is not None
    texts = [file.read_text() for file in files]
    for file in files:
        file.unlink()
    return subprocess.CompletedProcess(command, code, *texts)


def _begin(
    command: list[str], stdin: Connection, life: Connection, files: tuple[Path, Path], environment: dict[str, str]
) -> None:
    """Run a program; ``life`` is open as long as a process that was forked for it is there."""
    os.dup2(stdin.fileno(), 0)
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    import torch

    from ssl_seg.engine import processes

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # torch is loaded: it no longer asks the environment
    processes.subprocess = SimpleNamespace(Popen=_Rank)  # type: ignore[assignment]
    _run(command, environment)


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv = [sys.executable, *command]
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    first, *rest = command
    sys.argv = command
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(first, run_name="__main__")


class _Rank:
    """Another process of a run, forked from the first one where the package would start it."""

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=_run, args=(command[1:], env))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
