"""Processes that work for one call: what they tell and how they end; and which of them may make a file."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from forking import HOURS

from ssl_seg.errors import DataError, MachineError
from ssl_seg.files import atomic_write
from ssl_seg.results import claims
from ssl_seg.results.claims import claim_each, read_state, try_lock
from ssl_seg.results.workers import _check_end, run_workers

Tell = Callable[[object], None]


def count(tell: Tell, number: int) -> None:
    for n in range(number):
        tell((os.getpid(), n))


def take_one_case_each(tell: Tell, folder: Path, case: str) -> None:
    """One process does what the case says when the other has begun, which then waits for its end."""
    lock = try_lock(folder / "lock")
    tell(lock is None)
    if lock is not None:
        with atomic_write(folder / "whole"):
            (folder / "begun").touch()
            time.sleep(HOURS)
    while not (folder / "begun").exists():
        time.sleep(0.01)
    if case == "data":
        raise DataError("7.png is unreadable")
    if case == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "out.tif")
    if case == "bug":
        raise ZeroDivisionError("a bug")
    if case == "quit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[case])
    time.sleep(HOURS)


def tell_forever(tell: Tell) -> None:
    while True:
        tell(None)
        time.sleep(0.01)


def refuse_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def make_files(tell: Tell, folder: Path, has_locks: bool) -> None:
    """Make files that nobody else makes; the first one is done when the other process has begun one, too."""
    claims.WAIT = 0.01
    if not has_locks:
        fcntl.flock = refuse_locks
    paths = [folder / f"{n}.png" for n in range(6)]
    for number, claim in claim_each(paths, [None] * 6, [path.with_suffix(".lock") for path in paths]):
        if claim is not None:
            tell((os.getpid(), number))
            (folder / f"{os.getpid()}.begun").touch()
            while len(list(folder.glob("*.begun"))) < 2:
                time.sleep(0.01)
            paths[number].touch()


@pytest.mark.parametrize("has_locks", [True, False])
def test_two_processes_share_a_folder(tmp_path: Path, has_locks: bool) -> None:
    told = list(run_workers(2, make_files, tmp_path, has_locks))
    assert len({process for process, _ in told}) == 2
    assert (sorted(number for _, number in told) == list(range(6))) is has_locks  # or some are made twice
    assert {number for _, number in told} == set(range(6))


def test_all_is_told_and_in_order() -> None:
    told = list(run_workers(2, count, 50))
    assert len({process for process, _ in told} - {os.getpid()}) == 2
    for process in {process for process, _ in told}:
        assert [n for own, n in told if own == process] == list(range(50))


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("data", DataError, "^7.png is unreadable$"),
        ("disk", OSError, "No space left on device"),
        ("bug", RuntimeError, "(?s)in another process.*in take_one_case_each.*ZeroDivisionError: a bug"),
        ("SIGKILL", MachineError, r"worker \d of 2 was killed by signal 9.*the same command again, with fewer"),
        ("SIGTERM", MachineError, r"worker \d of 2 ended with 143"),
        ("quit", MachineError, r"worker \d of 2 ended with 3"),
    ],
)
def test_an_error_in_one_ends_all(tmp_path: Path, case: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        list(run_workers(2, take_one_case_each, tmp_path, case))
    assert not isinstance(caught.value, OSError) or caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "lock") == ["begun"]  # nothing half written
    assert try_lock(tmp_path / "lock") is not None  # the other one is gone


def test_a_script_that_starts_anew_in_each_worker_is_told_so() -> None:
    ended = cast("SpawnProcess", SimpleNamespace(exitcode=1, name="worker 1 of 2", join=lambda: None))
    with pytest.raises(MachineError, match=r"below `if __name__ == \"__main__\":`"):
        _check_end(ended)


def test_they_end_where_nobody_asks_for_more() -> None:
    told = run_workers(1, tell_forever)
    assert next(told) is None
    told.close()  # type: ignore[attr-defined] (a generator)


def test_they_end_when_the_first_process_is_killed(tmp_path: Path) -> None:
    """The call returns when nobody holds the output any more."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from test_workers import tell_forever\n"
        "from ssl_seg.results.workers import run_workers\n"
        "if __name__ == '__main__':\n"
        "    for _ in run_workers(2, tell_forever):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    places = os.pathsep.join(filter(None, sys.path))
    ended = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": places}, capture_output=True, timeout=HOURS,
        check=False,
    )  # fmt: skip
    assert (ended.returncode, b"Traceback" in ended.stderr) == (-signal.SIGKILL, False)


class TestClaims:
    def make(self, folder: Path, number: int) -> tuple[list[Path], list[Path]]:
        paths = [folder / f"{n}.png" for n in range(number)]
        return paths, [path.with_name(f".{path.name}.lock") for path in paths]

    def test_each_file_comes_once_and_locks_are_removed(self, tmp_path: Path) -> None:
        paths, locks = self.make(tmp_path, 3)
        paths[1].touch()
        for number, claim in claim_each(paths, [read_state(path) for path in paths], locks):
            assert claim is not None
            assert claim.number == number
            assert try_lock(locks[number]) is None
        assert list(tmp_path.iterdir()) == [paths[1]]

    def test_what_another_works_on_comes_last_and_is_waited_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paths, locks = self.make(tmp_path, 4)
        held = {n: try_lock(locks[n]) for n in (0, 2)}
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:  # one is made, the other process dies at the other
                paths[2].touch()
                for lock in held.values():
                    assert lock is not None
                    lock.release()

        monkeypatch.setattr(claims.time, "sleep", wait)
        found = [(number, claim is not None) for number, claim in claim_each(paths, [None] * 4, locks)]
        assert found == [(1, True), (3, True), (0, True), (2, False)]
        assert len(waits) == 2

    def test_a_file_that_was_replaced_is_made(self, tmp_path: Path) -> None:
        paths, locks = self.make(tmp_path, 2)
        for path in paths:
            path.touch()
        states = [read_state(path) for path in paths]
        with atomic_write(paths[0]):
            pass
        assert [claim is None for _, claim in claim_each(paths, states, locks)] == [True, False]

    def test_the_image_that_is_worked_on_is_not_made_twice(self, tmp_path: Path) -> None:
        paths, locks = self.make(tmp_path, 1)
        lock = try_lock(locks[0])
        seen = []

        def follow() -> None:
            seen.extend(claim_each(paths, [None], locks))

        other = threading.Thread(target=follow)
        other.start()
        paths[0].touch()
        assert lock is not None
        lock.release()
        other.join()
        assert seen == [(0, None)]
