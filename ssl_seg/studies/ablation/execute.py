"""Runs the cells that are missing, some at a time, until all have a score or have failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from ssl_seg.errors import RunDirError
from ssl_seg.files import is_disk_full, write_json
from ssl_seg.studies.ablation.cells import Cell, open_folder, read_failure, read_latest, read_result
from ssl_seg.studies.ablation.launchers import Launcher, Worker
from ssl_seg.studies.ablation.spec import ScoreConfig
from ssl_seg.studies.ablation.worker import DONE, HELD, INVISIBLE, NO_SPACE

CellStage = Literal["queued", "running", "elsewhere", "done", "collapsed", "failed"]

TICK = 0.3
"""Seconds between two looks at the workers."""
HELD_PAUSE = 10.0
"""Seconds until a cell that another process holds is tried again."""
GRACE = 60.0
"""Seconds that stopped cells get to save their state."""


@dataclass(frozen=True)
class CellState:
    """What a person wants to know of a cell."""

    cell: Cell
    stage: CellStage
    step: int = 0
    f1: float | None = None
    """Validation F1 of the better network at the last look."""
    message: str = ""


def execute(
    cells: Sequence[Cell],
    out: Path,
    wanted: ScoreConfig,
    launcher: Launcher,
    show: Callable[[Sequence[CellState]], None],
) -> None:
    """Run all cells that have no score yet, parents before their children.

    Cells that failed before are tried again. When the caller is interrupted, the cells that run save their state.

    Args:
        cells: whose folders exist.
        out: directory of the ablation.
        wanted: what is scored.
        launcher: where they run.
        show: is told the states of all cells, often.

    Raises:
        RunDirError: when the disk is full, or the directory cannot be written to. Whatever is finished stays.
    """
    work = _Work({cell.id: cell for cell in cells}, out, wanted, launcher)
    try:
        while True:
            work.collect()
            work.start_ready()
            show([work.describe(cell) for cell in work.cells.values()])
            if work.is_done:
                return
            time.sleep(TICK)
    except OSError as error:
        if is_disk_full(error):
            work.refuse_full_disk()
        raise RunDirError(f"{out} cannot be written to: {error.strerror or error}") from error
    finally:
        work.stop()


class _Work:
    """The stage of each cell, and the workers that run."""

    def __init__(self, cells: dict[str, Cell], out: Path, wanted: ScoreConfig, launcher: Launcher) -> None:
        self.cells, self.out, self.wanted, self.launcher = cells, out, wanted, launcher
        self.stages: dict[str, CellStage] = {}
        for cell_id, cell in cells.items():
            status = read_result(out, cell, wanted).status
            self.stages[cell_id] = status if status in ("done", "collapsed") else "queued"
        self.workers: dict[str, Worker] = {}
        self.due: dict[str, float] = {}
        """When a cell that another process holds is tried again."""

    @property
    def is_done(self) -> bool:
        return not {"queued", "running", "elsewhere"} & set(self.stages.values())

    def collect(self) -> None:
        """Take note of the workers that have ended."""
        for cell_id, worker in list(self.workers.items()):
            if (code := worker.poll()) is not None:
                del self.workers[cell_id]
                self._settle(cell_id, code)

    def start_ready(self) -> None:
        """Start as many cells as there is room for."""
        for cell_id, cell in self.cells.items():
            if self.stages[cell_id] == "elsewhere" and time.monotonic() > self.due[cell_id]:
                self.stages[cell_id] = "queued"
            if self.stages[cell_id] == "queued":
                self._start(cell)

    def stop(self) -> None:
        """Let the cells that run save their state, and wait for them."""
        for worker in self.workers.values():
            worker.stop()
        end = time.monotonic() + GRACE
        while any(worker.poll() is None for worker in self.workers.values()) and time.monotonic() < end:
            time.sleep(TICK)

    def _start(self, cell: Cell) -> None:
        """Start the worker of a cell where there is room; a child waits for its parent."""
        folder, wanted = open_folder(self.out, cell.id), self.wanted
        parent = None if cell.parent is None else self.cells[cell.parent]
        if folder.score(wanted).is_file():  # another process has finished it
            self._settle(cell.id, DONE)
        elif parent is not None and self.stages[parent.id] == "failed":
            reason = read_failure(open_folder(self.out, parent.id))
            self._fail(cell.id, f"its parent failed ({parent.name}): {reason}")
        elif len(self.workers) < self.launcher.slots and (
            parent is None or self.stages[parent.id] in ("done", "collapsed")
        ):
            folder.forget_attempt()
            # Absolute: the node of a cluster works in another directory.
            start = [] if parent is None else [str(open_folder(self.out, parent.id).run.best.absolute())]
            arguments = [str(folder.path.absolute()), wanted.part, wanted.checkpoint, wanted.net, *start]
            self.workers[cell.id] = self.launcher.start(folder, arguments)
            self.stages[cell.id] = "running"

    def _settle(self, cell_id: str, code: int) -> None:
        """Take note of how the worker of a cell has ended."""
        folder = open_folder(self.out, cell_id)
        if code == NO_SPACE:
            self.refuse_full_disk()
        if code == HELD:
            self.stages[cell_id] = "elsewhere"
            self.due[cell_id] = time.monotonic() + HELD_PAUSE
        elif code == INVISIBLE:
            self._fail(cell_id, f"its node does not see {folder.path}: --out must be on storage that all nodes share")
        elif (status := read_result(self.out, self.cells[cell_id], self.wanted).status) == "missing":
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._fail(cell_id, f"its process {how} before it had a score; see {folder.log}")
        else:
            self.stages[cell_id] = status

    def _fail(self, cell_id: str, message: str) -> None:
        write_json(open_folder(self.out, cell_id).failure, {"message": message})
        self.stages[cell_id] = "failed"

    def describe(self, cell: Cell) -> CellState:
        """Return the state of a cell."""
        folder, stage = open_folder(self.out, cell.id), self.stages[cell.id]
        if stage == "failed":
            return CellState(cell, stage, message=read_failure(folder) or "")
        if stage not in ("running", "elsewhere"):
            return CellState(cell, stage, 0 if stage == "queued" else cell.steps)
        if (step := folder.read_step()) is None and stage == "running":  # it waits for a place
            return CellState(cell, "queued")
        latest = read_latest(folder) or {}
        scores = [latest.get(f"val/{net}/f1") for net in ("student", "teacher")]
        return CellState(cell, stage, step or 0, max((float(s) for s in scores if s is not None), default=None))

    def refuse_full_disk(self) -> NoReturn:
        """Say what is finished, and what a cell takes."""
        finished = [open_folder(self.out, i) for i, stage in self.stages.items() if stage in ("done", "collapsed")]
        sizes = [sum(p.stat().st_size for p in folder.path.rglob("*") if p.is_file()) for folder in finished]
        need = f"; a finished cell takes about {max(sizes) / 2**20:.0f} MB" if sizes else ""
        raise RunDirError(
            f"the disk of {self.out} is full. {len(finished)} of {len(self.cells)} cells are finished and kept. Free "
            f"some space{need}, then give the same command again: only what is missing is run."
        )
