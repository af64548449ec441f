"""Runs the cells that are missing, some at a time, until all have a score or have failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, Protocol

from ssl_seg.errors import RunDirError
from ssl_seg.files import is_disk_full, write_json
from ssl_seg.studies.ablation.cells import CellFolder, open_folder, read_failure, read_latest, read_result
from ssl_seg.studies.ablation.results import Cell
from ssl_seg.studies.ablation.spec import ScoreConfig
from ssl_seg.studies.ablation.worker import HELD, INVISIBLE, NO_SPACE, forget_step, read_step

CellStage = Literal["queued", "running", "elsewhere", "done", "collapsed", "failed"]

TICK = 0.3
"""Seconds between two looks at the processes."""
HELD_PAUSE = 10.0
"""Seconds until a cell that another process holds is tried again."""
GRACE = 60.0
"""Seconds that stopped cells get to save their state."""


class Process(Protocol):
    """A cell that was started somewhere."""

    def poll(self) -> int | None:
        """Return the worker's exit code, or None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to save its state and end."""
        ...


class Launcher(Protocol):
    """Where cells run."""

    slots: int
    """How many cells may be started at a time."""

    def start(self, folder: CellFolder, arguments: Sequence[str]) -> Process:
        """Start the worker on a folder."""
        ...


@dataclass(frozen=True)
class CellState:
    """What a person wants to know of a cell."""

    cell: Cell
    stage: CellStage
    step: int = 0
    f1: float | None = None
    """Validation F1 of the better network at the last look."""
    message: str = ""


Show = Callable[[Sequence[CellState]], None]


def execute(cells: Sequence[Cell], out: Path, wanted: ScoreConfig, launcher: Launcher, show: Show) -> None:
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
        while not work.is_done:
            work.collect()
            work.start_ready()
            show(work.describe())
            if not work.is_done:
                time.sleep(TICK)
        show(work.describe())
    except OSError as error:
        if is_disk_full(error):
            work.refuse_full_disk()
        raise RunDirError(f"{out} cannot be written to: {error.strerror or error}") from error
    finally:
        work.stop()


class _Work:
    """What is still to be done, and what runs."""

    def __init__(self, cells: dict[str, Cell], out: Path, wanted: ScoreConfig, launcher: Launcher) -> None:
        self.cells, self.out, self.wanted, self.launcher = cells, out, wanted, launcher
        self.running: dict[str, Process] = {}
        self.held: dict[str, float] = {}
        self.stages: dict[str, CellStage] = {}
        self.queue = []
        for cell_id, cell in cells.items():
            result = read_result(out, cell, wanted)
            if result.status in ("done", "collapsed"):
                self.stages[cell_id] = "collapsed" if result.status == "collapsed" else "done"
            else:
                self.queue.append(cell_id)

    @property
    def is_done(self) -> bool:
        return not self.queue and not self.running and not self.held

    def collect(self) -> None:
        """Take note of what has ended."""
        for cell_id, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[cell_id]
            if code == NO_SPACE:
                self.refuse_full_disk()
            elif code == HELD:
                self.held[cell_id] = time.monotonic() + HELD_PAUSE
            else:
                self._settle(cell_id, code)
        for cell_id, due in list(self.held.items()):
            if time.monotonic() > due:
                del self.held[cell_id]
                self.queue.insert(0, cell_id)

    def start_ready(self) -> None:
        """Start as many cells as there is room for; a child waits for its parent."""
        for cell_id in list(self.queue):
            cell = self.cells[cell_id]
            parent = None if cell.parent is None else self.cells[cell.parent]
            if self._has_score(cell_id):  # another process has finished it
                self.queue.remove(cell_id)
                self._settle(cell_id, 0)
            elif parent is not None and self.stages.get(parent.id) == "failed":
                self.queue.remove(cell_id)
                message = f"its parent failed ({parent.name}): {read_failure(open_folder(self.out, parent.id))}"
                self._fail(cell_id, message)
            elif len(self.running) < self.launcher.slots and (parent is None or parent.id in self.stages):
                self.queue.remove(cell_id)
                folder = open_folder(self.out, cell_id)
                forget_step(folder)
                folder.failure.unlink(missing_ok=True)  # of an earlier attempt
                self.running[cell_id] = self.launcher.start(folder, self._arguments(folder, parent))

    def describe(self) -> list[CellState]:
        """Return the state of each cell."""
        return [self._describe(cell) for cell in self.cells.values()]

    def stop(self) -> None:
        """Let the cells that run save their state, and wait for them."""
        for process in self.running.values():
            process.stop()
        end = time.monotonic() + GRACE
        while any(process.poll() is None for process in self.running.values()) and time.monotonic() < end:
            time.sleep(TICK)

    def _arguments(self, folder: CellFolder, parent: Cell | None) -> list[str]:
        wanted = self.wanted
        # Absolute: the node of a cluster works in another directory.
        start = [] if parent is None else [str(open_folder(self.out, parent.id).run.best.absolute())]
        return [str(folder.path.absolute()), wanted.part, wanted.checkpoint, wanted.net, *start]

    def _has_score(self, cell_id: str) -> bool:
        return open_folder(self.out, cell_id).score(self.wanted).is_file()

    def _settle(self, cell_id: str, code: int) -> None:
        result = read_result(self.out, self.cells[cell_id], self.wanted)
        folder = open_folder(self.out, cell_id)
        if code == INVISIBLE:
            self._fail(cell_id, f"its node does not see {folder.path}: --out must be on storage that all nodes share")
        elif result.status == "missing":
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._fail(cell_id, f"its process {how} before it had a score; see {folder.log}")
        elif result.status == "failed":
            self.stages[cell_id] = "failed"
        else:
            self.stages[cell_id] = "collapsed" if result.status == "collapsed" else "done"

    def _fail(self, cell_id: str, message: str) -> None:
        write_json(open_folder(self.out, cell_id).failure, {"message": message})
        self.stages[cell_id] = "failed"

    def _describe(self, cell: Cell) -> CellState:
        folder = open_folder(self.out, cell.id)
        step = read_step(folder)
        if cell.id in self.held or (cell.id in self.running and step is not None):
            stage: CellStage = "elsewhere" if cell.id in self.held else "running"
            latest: Mapping[str, object] = read_latest(folder) or {}
            scores = [latest.get(f"val/{net}/f1") for net in ("student", "teacher")]
            known = [float(score) for score in scores if isinstance(score, int | float)]
            return CellState(cell, stage, step or 0, max(known, default=None))
        stage = self.stages.get(cell.id, "queued")
        message = (read_failure(folder) or "") if stage == "failed" else ""
        return CellState(cell, stage, cell.steps if stage in ("done", "collapsed") else 0, None, message)

    def refuse_full_disk(self) -> NoReturn:
        """Say what is finished, and what a cell takes."""
        finished = sum(stage in ("done", "collapsed") for stage in self.stages.values())
        sizes = [_size_of(open_folder(self.out, cell_id).path) for cell_id in self.stages]
        need = f"; a finished cell takes about {max(sizes) / 2**20:.0f} MB" if sizes else ""
        raise RunDirError(
            f"the disk of {self.out} is full. {finished} of {len(self.cells)} cells are finished and kept. Free some "
            f"space{need}, then give the same command again: only what is missing is run."
        )


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
