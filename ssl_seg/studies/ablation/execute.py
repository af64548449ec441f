"""Runs the cells that are missing, some at a time, until all have a score or have failed.

How far an ablation has come stands on the disk alone, so that one that was killed anywhere is run again and goes on.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_seg.errors import RunDirError, SslSegError
from ssl_seg.files import DISK_FULL, is_disk_full, write_json
from ssl_seg.scores.text import shown_f1
from ssl_seg.studies.ablation.cells import Cell, CellFolder, open_folder, read_failure, read_result
from ssl_seg.studies.ablation.launchers import Launcher, Worker
from ssl_seg.studies.ablation.spec import ScoreConfig
from ssl_seg.studies.ablation.worker import HELD, INVISIBLE, NO_SPACE

Stage = Literal["queued", "running", "elsewhere", "done", "collapsed", "refused", "failed"]
"""How far a cell is; ``elsewhere`` means that another process works on it."""

TICK = 0.3
"""Seconds between two looks at the workers."""
HELD_PAUSE = 10.0
"""Seconds until a cell that another process works on is tried again."""
GRACE = 60.0
"""Seconds that stopped trainings get to save their state."""


@dataclass(frozen=True)
class CellState:
    """What a person wants to know of a cell."""

    cell: Cell
    stage: Stage
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
) -> Literal["finished", "interrupted"]:
    """Run all cells that have no score yet, in their order, parents before their children.

    A cell that fails is recorded, and the others go on. Cells that failed before are tried again. Whatever ends it,
    also Ctrl-C, the cells that run save their state first.

    Args:
        cells: whose folders exist.
        out: directory of the ablation.
        wanted: what is scored.
        launcher: where they run.
        show: is told the states of all cells, often.

    Raises:
        RunDirError: when the disk is full, or the directory cannot be written to. Whatever is finished stays.
    """
    work = _Work(cells, out, wanted, launcher)
    try:
        try:
            while True:
                work.start_ready()
                show(work.describe())
                if work.collect():
                    continue
                if not work.is_busy:
                    return "finished"
                time.sleep(TICK)
        finally:
            work.stop()
    except KeyboardInterrupt:
        return "interrupted"
    except OSError as error:
        if is_disk_full(error):
            raise work.explain_full_disk() from error
        raise RunDirError(f"{out} cannot be written to: {error.strerror or error}") from error


class _Work:
    """The stage of each cell, and the workers that run."""

    def __init__(self, cells: Sequence[Cell], out: Path, wanted: ScoreConfig, launcher: Launcher) -> None:
        self.cells = {cell.id: cell for cell in cells}
        self.out, self.wanted, self.launcher = out, wanted, launcher
        self.stages = {name: self._find_stage(cell) for name, cell in self.cells.items()}
        self.workers: dict[str, Worker] = {}
        self.due: dict[str, float] = {}
        """When a cell that another process works on is tried again."""

    @property
    def is_busy(self) -> bool:
        return bool(self.workers) or "elsewhere" in self.stages.values()

    def start_ready(self) -> None:
        """Start as many cells as there is room for."""
        for name, cell in self.cells.items():
            if self.stages[name] == "elsewhere" and time.monotonic() > self.due[name]:
                self.stages[name] = "queued"
            if self.stages[name] == "queued":
                try:
                    self.stages[name] = self._start(cell)
                except SslSegError as error:
                    self._fail(name, error)

    def collect(self) -> bool:
        """Take note of the workers that have ended; return whether there were any."""
        ended = {name: code for name, worker in self.workers.items() if (code := worker.poll()) is not None}
        for name, code in ended.items():
            del self.workers[name]
            self.due[name] = time.monotonic() + HELD_PAUSE
            try:
                self.stages[name] = self._settle(self.cells[name], code)
            except SslSegError as error:
                self._fail(name, error)
        return bool(ended)

    def stop(self) -> None:
        """Let the cells that run save their state, and wait for them."""
        for worker in self.workers.values():
            worker.stop()
        end = time.monotonic() + GRACE
        while any(worker.poll() is None for worker in self.workers.values()) and time.monotonic() < end:
            time.sleep(TICK)

    def describe(self) -> list[CellState]:
        """Return the states of all cells."""
        return [_describe(cell, self._folder(name), self.stages[name]) for name, cell in self.cells.items()]

    def explain_full_disk(self) -> RunDirError:
        """Return the error that says what is finished, and what a cell takes."""
        finished = [self._folder(name) for name, cell in self.cells.items() if self._find_stage(cell) != "queued"]
        sizes = [sum(p.stat().st_size for p in folder.path.rglob("*") if p.is_file()) for folder in finished]
        need = f"; a finished cell takes about {max(sizes) / 2**20:.0f} MB" if sizes else ""
        return RunDirError(
            f"the disk of {self.out} {DISK_FULL}. {len(finished)} of {len(self.cells)} cells are finished and kept. "
            f"Free some space{need}, then give the same command again: only what is missing is run."
        )

    def _folder(self, name: str) -> CellFolder:
        return open_folder(self.out, name)

    def _find_stage(self, cell: Cell) -> Stage:
        """Return the stage by what is on the disk."""
        if not self._folder(cell.id).score(self.wanted).is_file():
            return "queued"
        status = read_result(self.out, cell, self.wanted).status
        return status if status in ("collapsed", "refused") else "done"

    def _is_ready(self, cell: Cell) -> bool:
        """Return whether a queued cell may begin; raise SslSegError where its parent has failed."""
        if cell.parent is None:
            return True
        if self.stages[cell.parent] == "failed":
            reason = read_failure(self._folder(cell.parent))
            raise SslSegError(f"its parent failed ({self.cells[cell.parent].name}): {reason}")
        return self.stages[cell.parent] in ("done", "collapsed", "refused")

    def _start(self, cell: Cell) -> Stage:
        """Start a queued cell if it is ready and there is room; return its stage. Raises as ``_is_ready``."""
        if (found := self._find_stage(cell)) != "queued":  # another process has finished it
            return found
        if not self._is_ready(cell) or len(self.workers) >= self.launcher.slots:
            return "queued"
        folder, wanted = self._folder(cell.id), self.wanted
        folder.forget_attempt()
        # Absolute: the node of a cluster works in another directory.
        parent = [] if cell.parent is None else [str(self._folder(cell.parent).run.best.absolute())]
        arguments = [str(folder.path.absolute()), wanted.part, wanted.checkpoint, wanted.net, *parent]
        self.workers[cell.id] = self.launcher.start(folder, arguments)
        return "running"

    def _settle(self, cell: Cell, code: int) -> Stage:
        """Return the stage of a cell whose worker has ended; raise SslSegError for one that has failed."""
        folder = self._folder(cell.id)
        if code == NO_SPACE:
            raise OSError(errno.ENOSPC, "No space left on device")
        if code == HELD:
            return "elsewhere"
        if code == INVISIBLE:
            raise SslSegError(f"its node does not see {folder.path}: --out must be on storage that all nodes share")
        status = read_result(self.out, cell, self.wanted).status
        if status == "missing":
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise SslSegError(f"its process {how} before it had a score; see {folder.log}")
        return status

    def _fail(self, name: str, error: SslSegError) -> None:
        write_json(self._folder(name).failure, {"message": str(error)})
        self.stages[name] = "failed"


def _describe(cell: Cell, folder: CellFolder, stage: Stage) -> CellState:
    """Return the state of a cell."""
    if stage == "failed":
        return CellState(cell, stage, message=read_failure(folder) or "")
    if stage not in ("running", "elsewhere"):
        return CellState(cell, stage, 0 if stage == "queued" else cell.steps)
    if (step := folder.read_step()) is None and stage == "running":  # it waits for a place
        return CellState(cell, "queued")
    latest = folder.run.read_last_metrics()
    scores = [latest.get(f"val/{net}/{shown_f1(latest)[0]}") for net in ("student", "teacher")]
    return CellState(cell, stage, step or 0, max((float(s) for s in scores if s is not None), default=None))
