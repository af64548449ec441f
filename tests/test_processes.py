"""What becomes of several processes when one of them ends: each case runs two real ones, on gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from forking import HOURS, run

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch
from ssl_seg.cli.main import main
from ssl_seg.config import RuntimeConfig
from ssl_seg.engine import processes
from ssl_seg.engine.devices import call_on_main
from ssl_seg.errors import DataError, RefusedError
import ssl_seg.cli.app

case, folder = sys.argv[1], Path(sys.argv[2])

def run(*_, **__):
    with processes.open_fabric(RuntimeConfig(accelerator="cpu", devices=2)) as fabric:
        rank = fabric.global_rank
        (folder / f"pid{rank}").write_text(str(os.getpid()))
        fabric.barrier()
        if case == f"data{rank}":
            raise DataError("images/7.png is unreadable")
        if case == f"refused{rank}":
            raise RefusedError("a gate says no")
        if case == f"bug{rank}":
            raise ZeroDivisionError("a bug")
        if case == f"kill{rank}":
            os.kill(os.getpid(), signal.SIGKILL)
        if case == f"quit{rank}":
            os._exit(0)
        if case == "symmetric":
            def fail():
                raise DataError("all know it")
            call_on_main(fabric, fail)
        if case != "well":
            fabric.barrier()
            time.sleep(3600)
    os.write(1, f"rank {rank} is done\\n".encode())  # one write: two processes share this output

ssl_seg.cli.app.app = run
main()
"""


def run_two(case: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Return the outcome; the second process has ended too, or it would be waited for."""
    (folder / "script.py").write_text(SCRIPT)
    return run([str(folder / "script.py"), case, str(folder)], folder)


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("case", "code", "text"),
    [
        ("data1", 2, "ssl-seg: error: process 1 of 2 (counted from 0): images/7.png is unreadable\n"),
        ("kill1", 2, "process 1 of 2 (counted from 0): it was killed by signal 9"),
        ("data0", 2, "ssl-seg: error: images/7.png is unreadable\n"),
        ("symmetric", 2, "ssl-seg: error: all know it\n"),
        ("refused1", 3, "a gate says no"),
        ("bug1", 1, "ZeroDivisionError: a bug"),
        ("quit1", 2, "it ended with exit code 0 without a message"),
        ("kill0", -9, "process 0 of 2 (counted from 0): it has ended"),
    ],
)
def test_one_that_ends_ends_all_with_its_text_and_code(case: str, code: int, text: str, tmp_path: Path) -> None:
    process = run_two(case, tmp_path)
    assert process.returncode == code, process.stderr
    assert process.stderr.count(text) == (2 if case == "bug1" else 1), process.stderr  # its traceback ends in it too
    assert ("Traceback" in process.stderr) == (case == "bug1")
    assert "is done" not in process.stdout


@pytest.mark.slow
@pytest.mark.ddp
def test_all_end_well_together(tmp_path: Path) -> None:
    """Both processes begin from nothing here, as they do for a user."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "well", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=HOURS, check=False)
    assert process.returncode == 0, process.stderr
    assert sorted(process.stdout.splitlines()) == ["rank 0 is done", "rank 1 is done"]
    assert "error" not in process.stderr
