"""One cell in a process of its own: ``python -m ssl_seg.studies.ablation.worker FOLDER PART CHECKPOINT NET [PARENT]``.

A process a cell, so that a cell that runs out of memory, or that is killed, takes nothing with it. It stops when its
standard input closes: whoever started it has died, and would train the cell a second time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.errors import DataError, InUseError, RefusedError, SslSegError
from ssl_seg.files import hold_directory, is_disk_full, write_json
from ssl_seg.studies.ablation.cells import CellFolder, read_cell
from ssl_seg.studies.ablation.results import Cell
from ssl_seg.studies.ablation.spec import ScoreConfig

DONE, FAILED, HELD, NO_SPACE, INVISIBLE, STOPPED = 0, 2, 5, 6, 7, 130
"""Exit codes: HELD, another process works on the cell; INVISIBLE, the folder is not there; STOPPED, it was told to stop
and has saved its state."""

STEP_FILE, STEP_SECONDS = "step", 1.0
"""Where a running cell writes its step, and how often."""


def main(arguments: list[str]) -> int:
    """Train and score the cell of a folder, from wherever it was left; return an exit code."""
    parent = Path(arguments[4]) if len(arguments) > 4 else None
    score = ScoreConfig.model_validate(dict(zip(("part", "checkpoint", "net"), arguments[1:4], strict=True)))
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    return run_cell(CellFolder(Path(arguments[0])), score, parent)


def run_cell(folder: CellFolder, score: ScoreConfig, parent: Path | None = None) -> int:
    """Train and score a cell, unless another process does so; return an exit code."""
    if not folder.about.is_file():
        return INVISIBLE
    try:
        with hold_directory(folder.path):
            return _run(folder, score, parent)
    except InUseError:
        return HELD
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the cell that failed, and the others go on)
        if is_disk_full(error):
            sys.stderr.write(f"no space left: {error}\n")
            return NO_SPACE
        traceback.print_exc()
        with contextlib.suppress(OSError):
            write_json(folder.failure, {"message": f"{type(error).__name__}: {error}"})
        return FAILED


def _run(folder: CellFolder, score: ScoreConfig, parent: Path | None) -> int:
    if folder.score(score).is_file():  # another process has just finished it
        return DONE
    folder.failure.unlink(missing_ok=True)
    cell = read_cell(folder)
    _tell_step(folder, 0)
    started = time.monotonic()
    try:
        if folder.run.read_ending() is None and not _train(folder, cell, parent):
            return STOPPED
        _write_score(folder, cell, score, time.monotonic() - started)
    except SslSegError as error:
        if is_disk_full(error) or isinstance(error, InUseError):
            raise
        sys.stderr.write(f"ssl-seg: error: {error}\n")
        way = "\nbootstrap.gate = none asks a parent for nothing" if parent and isinstance(error, RefusedError) else ""
        write_json(folder.failure, {"message": f"{error}{way}"})
        return FAILED
    return DONE


def _train(folder: CellFolder, cell: Cell, parent: Path | None) -> bool:
    """Train, or continue; return whether the training came to its own end."""
    from ssl_seg.config.layers import Layer
    from ssl_seg.run.prepare import TrainRequest
    from ssl_seg.run.training import train

    run = folder.run
    if run.last.is_file():
        request = TrainRequest(resume=run.path, in_series=True)
    else:
        shutil.rmtree(run.path, ignore_errors=True)  # a start that was killed before its first checkpoint
        layer = Layer(f"cell {cell.id}", cell.config, is_file=True)
        request = TrainRequest((layer,), out=run.path, bootstrap=parent, in_series=True)
    result = train(request, _Log(folder))
    return result.ending != "interrupted"


def _write_score(folder: CellFolder, cell: Cell, wanted: ScoreConfig, seconds: float) -> None:
    from ssl_seg.data.splits.files import split_from_dict
    from ssl_seg.inference.model import better_net
    from ssl_seg.networks.checkpoint import load_checkpoint
    from ssl_seg.results.evaluation import EvaluateRequest, evaluate

    run, ending = folder.run, folder.run.read_ending() or {}
    path = run.best if wanted.checkpoint == "best" else run.last
    checkpoint = load_checkpoint(path)
    found = split_from_dict(checkpoint.split).fingerprint
    if found != cell.fingerprint:
        raise DataError(
            f"the split of the run is {found}, that of the cell {cell.fingerprint}: the images have changed since the "
            "cells were made. Run the ablation again: the cells of the new data are others."
        )
    net = better_net(checkpoint) if wanted.net == "better" else wanted.net
    result = evaluate(EvaluateRequest(path, part=wanted.part, which=net), note=_Log(folder).note)
    values = {
        "collapsed": ending.get("verdict") == "collapsed",
        "codes": ending.get("codes", []),
        "net": net,
        "step": checkpoint.progress.step,
        "seconds": round(_seconds_of(run.read_events()) or seconds, 1),
        "case_ids": [row["id"] for row in result["cases"]],
        "counts": [row["counts"] for row in result["cases"]],
    }
    write_json(folder.score(wanted), values)


def _seconds_of(events: list[dict[str, Any]]) -> float | None:
    """Return the time between the start of each session of a training and its last event."""
    from datetime import datetime

    total, began, last = 0.0, None, None
    for event in events:
        if event["event"] == "test_opened":  # by whoever scores it, perhaps days later
            continue
        now = datetime.fromisoformat(event["time"])
        if event["event"] in ("started", "resumed"):
            total += (last - began).total_seconds() if began and last else 0.0
            began = now
        last = now
    return total + (last - began).total_seconds() if began and last else None


def _stop_with_parent() -> None:
    """End this process like Ctrl-C does, with its state saved, as soon as standard input closes."""
    while os.read(0, 1):  # not sys.stdin, whose lock a thread that waits would hold when the process ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Log:
    """Writes what a run says to standard output, line by line, and the step it is at into a file."""

    def __init__(self, folder: CellFolder) -> None:
        self.folder, self.told = folder, 0.0

    def note(self, text: str) -> None:
        print(text, flush=True)  # noqa: T201 (the output is the log)

    def probe(self, line: str, verdict: Any) -> None:
        self.note(line)
        for finding in verdict.findings:
            self.note(f"  {finding.level} {finding.code} ({finding.net}): {finding.message}")

    def track(self, label: str) -> Track:
        self.note(f"{label} ...")
        return pass_through

    def start(self, first_step: int, total_steps: int) -> None:
        self.note(f"training from step {first_step} to {total_steps}")

    def advance(self, step: int) -> None:
        if time.monotonic() - self.told > STEP_SECONDS:
            _tell_step(self.folder, step)
            self.told = time.monotonic()

    def stop(self) -> None:
        pass


def read_step(folder: CellFolder) -> int | None:
    """Return the step that a started cell is at; None while it waits for a place."""
    try:
        return int((folder.path / STEP_FILE).read_text(encoding="ascii") or 0)
    except (OSError, ValueError):
        return None


def forget_step(folder: CellFolder) -> None:
    """Remove what an earlier attempt said."""
    (folder.path / STEP_FILE).unlink(missing_ok=True)


def _tell_step(folder: CellFolder, step: int) -> None:
    (folder.path / STEP_FILE).write_text(str(step), encoding="ascii")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
