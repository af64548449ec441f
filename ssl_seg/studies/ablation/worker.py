"""One cell in a process of its own: ``python -m ssl_seg.studies.ablation.worker FOLDER PART CHECKPOINT NET [PARENT]``.

A process a cell, so that a cell that runs out of memory, or that is killed, takes nothing with it. It stops when its
standard input closes: whoever started it has died, and would train the cell a second time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from ssl_seg.config.layers import Layer
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.errors import DataError, InUseError, RefusedError, SslSegError
from ssl_seg.files import hold_directory, is_disk_full, write_json
from ssl_seg.inference.model import better_net
from ssl_seg.inference.scoring import pack_cases
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train
from ssl_seg.studies.ablation.cells import Cell, CellFolder, read_cell
from ssl_seg.studies.ablation.spec import ScoreConfig
from ssl_seg.studies.training import Training, make_request, read_outcome

DONE, FAILED, HELD, NO_SPACE, INVISIBLE, STOPPED = 0, 2, 5, 6, 7, 130
"""Exit codes: HELD, another process works on the cell; INVISIBLE, the folder is not there; STOPPED, it was told to stop
and has saved its state."""

STEP_SECONDS = 1.0
"""How often a running cell tells its step."""


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
        if isinstance(error, SslSegError):
            sys.stderr.write(f"ssl-seg: error: {error}\n")
            refused = parent is not None and isinstance(error, RefusedError)
            message = str(error) + "\nbootstrap.gate = none asks a parent for nothing" * refused
        else:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            write_json(folder.failure, {"message": message})
        return FAILED


def _run(folder: CellFolder, wanted: ScoreConfig, parent: Path | None) -> int:
    if folder.score(wanted).is_file():  # another process has just finished it
        return DONE
    folder.failure.unlink(missing_ok=True)
    cell, console, started = read_cell(folder), _Log(folder), time.monotonic()
    folder.tell_step(0)
    layer = Layer(f"cell {cell.id}", cell.config, is_file=True)
    begun = Training(TrainRequest((layer,), bootstrap=parent), cell.name)
    request = make_request(folder.run, begun, note=console.note)
    if request is not None and train(request, console).ending == "interrupted":
        return STOPPED
    score = _make_score(folder, cell, wanted, console)
    seconds = _sum_sessions(folder.run.read_events()) or time.monotonic() - started
    write_json(folder.score(wanted), {**score, "seconds": round(seconds, 1)})
    return DONE


def _make_score(folder: CellFolder, cell: Cell, wanted: ScoreConfig, console: _Log) -> dict[str, Any]:
    """Return the score of a trained cell: on validation that which its run has written, on test a new one."""
    run, outcome = folder.run, read_outcome(folder.run)
    path = run.best if wanted.checkpoint == "best" else run.last
    checkpoint = load_checkpoint(path, lazy=True)
    found = split_from_dict(checkpoint.split).fingerprint
    if found != cell.fingerprint:
        raise DataError(
            f"the split of the run is {found}, that of the cell {cell.fingerprint}: the images have changed since the "
            "cells were made. Run the ablation again: the cells of the new data are others."
        )
    net = better_net(checkpoint) if wanted.net == "better" else wanted.net
    if wanted.part == "test":
        rows = evaluate(EvaluateRequest(path, part="test", which=net), note=console.note)["cases"]
        counts = {row["id"]: row["counts"] for row in rows}
    else:
        source = outcome.final.used.source if wanted.checkpoint == "best" else "last"
        counts = {row["id"]: row["classes"] for row in pack_cases(outcome.final.of(source)[net])}
    return {
        "collapsed": outcome.collapsed,
        "broken_gates": list(outcome.broken_gates),
        "codes": list(outcome.codes),
        "net": net,
        "step": checkpoint.progress.step,
        "case_ids": list(counts),
        "counts": list(counts.values()),
    }


def _sum_sessions(events: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds that a training took, without the pauses between its sessions."""
    own = [event for event in events if event["event"] != "test_opened"]  # by whoever scores it, perhaps days later
    times = [datetime.fromisoformat(event["time"]) for event in own]
    gaps = zip(pairwise(times), own[1:], strict=True)
    spent = [after - before for (before, after), event in gaps if event["event"] not in ("started", "resumed")]
    return sum(spent, timedelta()).total_seconds()


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

    def track(self, label: str) -> Track:
        self.note(f"{label} ...")
        return pass_through

    def start(self, first_step: int, total_steps: int) -> None:
        self.note(f"training from step {first_step} to {total_steps}")

    def advance(self, step: int) -> None:
        if time.monotonic() - self.told > STEP_SECONDS:
            self.folder.tell_step(step)
            self.told = time.monotonic()

    def stop(self) -> None:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
