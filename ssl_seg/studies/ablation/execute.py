"""Runs the cells that are missing, some at a time, until all have a score or have failed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_seg.errors import RunDirError, SslSegError
from ssl_seg.files import is_disk_full, write_json
from ssl_seg.scores.text import shown_f1
from ssl_seg.studies.ablation.cells import Cell, CellFolder, open_folder, read_failure, read_latest, read_result
from ssl_seg.studies.ablation.launchers import Launcher
from ssl_seg.studies.ablation.spec import ScoreConfig
from ssl_seg.studies.ablation.worker import HELD, INVISIBLE, NO_SPACE
from ssl_seg.studies.runner import Stage, Worker, run_trainings


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
    """Run all cells that have no score yet, parents before their children; see ``run_trainings``.

    A cell that fails is recorded, and the others go on. Cells that failed before are tried again.

    Args:
        cells: whose folders exist.
        out: directory of the ablation.
        wanted: what is scored.
        launcher: where they run.
        show: is told the states of all cells, often.

    Raises:
        RunDirError: when the disk is full, or the directory cannot be written to. Whatever is finished stays.
    """
    own = {cell.id: cell for cell in cells}
    try:
        return run_trainings(own, _InWorkers(own, out, wanted, launcher, show), launcher.slots)
    except OSError as error:
        if is_disk_full(error):
            raise _describe_full_disk(own, out, wanted) from error
        raise RunDirError(f"{out} cannot be written to: {error.strerror or error}") from error


@dataclass(frozen=True)
class _InWorkers:
    """The steps of ``run_trainings`` for cells, each of which has a worker and a folder of its own."""

    cells: Mapping[str, Cell]
    out: Path
    wanted: ScoreConfig
    launcher: Launcher
    tell: Callable[[Sequence[CellState]], None]

    def find(self, cell: Cell) -> Stage:
        return _find_stage(self.out, cell, self.wanted)

    def is_ready(self, cell: Cell, stages: Mapping[str, Stage]) -> bool:
        if cell.parent is None:
            return True
        if stages[cell.parent] == "failed":
            reason = read_failure(self._folder(cell.parent))
            raise SslSegError(f"its parent failed ({self.cells[cell.parent].name}): {reason}")
        return stages[cell.parent] in ("done", "collapsed", "refused")

    def start(self, cell: Cell) -> Worker:
        folder, wanted = self._folder(cell.id), self.wanted
        folder.forget_attempt()
        # Absolute: the node of a cluster works in another directory.
        parent = [] if cell.parent is None else [str(self._folder(cell.parent).run.best.absolute())]
        arguments = [str(folder.path.absolute()), wanted.part, wanted.checkpoint, wanted.net, *parent]
        return self.launcher.start(folder, arguments)

    def settle(self, cell: Cell, code: int) -> Stage:
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

    def fail(self, cell: Cell, error: SslSegError) -> Stage:
        write_json(self._folder(cell.id).failure, {"message": str(error)})
        return "failed"

    def show(self, stages: Mapping[str, Stage]) -> None:
        self.tell([_describe(cell, self._folder(name), stages[name]) for name, cell in self.cells.items()])

    def _folder(self, cell_id: str) -> CellFolder:
        return open_folder(self.out, cell_id)


def _find_stage(out: Path, cell: Cell, wanted: ScoreConfig) -> Stage:
    if not open_folder(out, cell.id).score(wanted).is_file():
        return "queued"
    status = read_result(out, cell, wanted).status
    return status if status in ("collapsed", "refused") else "done"


def _describe(cell: Cell, folder: CellFolder, stage: Stage) -> CellState:
    """Return the state of a cell."""
    if stage == "failed":
        return CellState(cell, stage, message=read_failure(folder) or "")
    if stage not in ("running", "elsewhere"):
        return CellState(cell, stage, 0 if stage == "queued" else cell.steps)
    if (step := folder.read_step()) is None and stage == "running":  # it waits for a place
        return CellState(cell, "queued")
    latest = read_latest(folder) or {}
    scores = [latest.get(f"val/{net}/{shown_f1(latest)[0]}") for net in ("student", "teacher")]
    return CellState(cell, stage, step or 0, max((float(s) for s in scores if s is not None), default=None))


def _describe_full_disk(cells: Mapping[str, Cell], out: Path, wanted: ScoreConfig) -> RunDirError:
    """Return the error that says what is finished, and what a cell takes."""
    finished = [open_folder(out, i) for i, cell in cells.items() if _find_stage(out, cell, wanted) != "queued"]
    sizes = [sum(p.stat().st_size for p in folder.path.rglob("*") if p.is_file()) for folder in finished]
    need = f"; a finished cell takes about {max(sizes) / 2**20:.0f} MB" if sizes else ""
    return RunDirError(
        f"the disk of {out} is full. {len(finished)} of {len(cells)} cells are finished and kept. Free "
        f"some space{need}, then give the same command again: only what is missing is run."
    )
