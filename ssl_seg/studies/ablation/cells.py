"""The cells of an ablation, their results and their folders, in each of which one process works at a time.

::

    OUT/cells/ID/cell.json   run/   score_PART_CHECKPOINT_NET.json or failure.json   log.txt   lock
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssl_seg import __version__
from ssl_seg.errors import RunDirError
from ssl_seg.files import write_json, write_text
from ssl_seg.run.directory import RunDir
from ssl_seg.studies.ablation.spec import Arm, ScoreConfig

T = TypeVar("T")
CellStatus = Literal["done", "collapsed", "refused", "failed", "missing"]

MARKER = "ABLATION.txt"
"""File that marks the directory of an ablation; nothing is written into a directory without it."""
MACHINE = "machine.json"
"""File with the kind of machine that the cells are planned for: that of the first call."""
STEP_FILE = "step"
SCHEMA = 1
"""Version of the files of a cell."""


@dataclass(frozen=True)
class Cell:
    """A training with resolved settings."""

    id: str
    """Content of the settings, the split and the parent: equal for equal trainings, in any ablation."""
    name: str
    arm: Arm
    split_seed: int
    seed: int
    parent: str | None
    """Id of the cell whose best checkpoint it starts from."""
    config: dict[str, Any]
    fingerprint: str
    """Fingerprint of its split."""
    labeled: int
    """Number of labeled cases."""
    steps: int


@dataclass(frozen=True)
class CellResult:
    """One training of an arm and how it ended.

    ``collapsed`` cells, and those that a gate of theirs has ended (``refused``), have scores, those of the same
    checkpoint as all; ``failed`` and ``missing`` ones have none.
    """

    id: str
    arm: Arm
    split_seed: int
    """Which training cases are labeled."""
    seed: int
    """Seed of the training: start, batches, augmentation."""
    status: CellStatus
    counts: NDArray[np.int64] | None = None
    """(cases, foreground classes, 4): voxels tp, fp, fn, tn. The cases are the same, in equal order, in all cells."""
    label_values: tuple[int, ...] = ()
    """Mask values of the foreground classes."""
    labeled: int | None = None
    """Number of labeled cases."""
    step: int | None = None
    """Step of the checkpoint that was scored."""
    codes: tuple[str, ...] = ()
    """Codes of the last verdict's findings."""
    message: str = ""
    """Why it failed, or which gates it has broken."""
    seconds: float | None = None
    """Time it took, over all its sessions."""


@dataclass(frozen=True)
class CellFolder:
    """Paths and records of one cell."""

    path: Path

    @property
    def run(self) -> RunDir:
        """The training."""
        return RunDir(self.path / "run")

    @property
    def about(self) -> Path:
        """What the cell is."""
        return self.path / "cell.json"

    @property
    def failure(self) -> Path:
        """Why the last attempt failed; absent otherwise."""
        return self.path / "failure.json"

    @property
    def log(self) -> Path:
        """What the training said."""
        return self.path / "log.txt"

    def tell_step(self, step: int) -> None:
        """Write the step that the training is at."""
        (self.path / STEP_FILE).write_text(str(step), encoding="ascii")

    def read_step(self) -> int | None:
        """Return the step that a started cell is at; None while it waits for a place."""
        try:
            return int((self.path / STEP_FILE).read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            return None

    def forget_attempt(self) -> None:
        """Remove what an earlier attempt said."""
        for path in (self.path / STEP_FILE, self.failure):
            path.unlink(missing_ok=True)

    def score(self, wanted: ScoreConfig) -> Path:
        """Scores of one checkpoint and network on one list of cases."""
        return self.path / f"score_{wanted.part}_{wanted.checkpoint}_{wanted.net}.json"


def open_folder(out: Path, cell_id: str) -> CellFolder:
    """Return the folder of a cell below the directory of an ablation; it need not exist."""
    return CellFolder(out / "cells" / cell_id)


def is_planned_for_gpu(out: Path) -> bool | None:
    """Return whether the cells of a directory are planned for GPUs; None where there are none yet.

    What the settings leave open is planned for the machine, and a cell is known by its settings: planned for another
    machine, the finished cells would not be found again.
    """
    path = out / MACHINE
    return _parse(path, lambda values: bool(values["gpu"])) if path.is_file() else None


def write_cells(out: Path, cells: Sequence[Cell], *, gpu: bool = False) -> None:
    """Create the folders of new cells; what has been trained stays as it is.

    Args:
        out: directory of the ablation.
        cells: all of them.
        gpu: whether they were planned for GPUs.

    Raises:
        RunDirError: for a folder that another version wrote, or ``out`` that is no directory of an ablation.
    """
    check_place(out)
    for cell in cells:
        check_version(open_folder(out, cell.id))
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / MARKER, "The cells of ablations by `ssl-seg ablate`, and the tables of the last one.\n")
        write_json(out / MACHINE, {"gpu": gpu})
        for cell in cells:
            folder = open_folder(out, cell.id)
            folder.path.mkdir(parents=True, exist_ok=True)
            # What is not begun takes the data from where they are now.
            if not (folder.run.last.is_file() and folder.about.is_file()):
                write_json(folder.about, {"schema": SCHEMA, "version": __version__, **asdict(cell)})
    except OSError as error:
        raise RunDirError(f"{out} cannot be written to: {error.strerror}") from error


def check_place(out: Path) -> None:
    """Raise RunDirError unless ``out`` is free or the directory of an ablation."""
    if not out.exists() or (out / MARKER).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise RunDirError(f"{out} exists and holds no ablation: choose another --out, nothing was written there")


def _parse(path: Path, take: Callable[[Any], T]) -> T:
    """Return what ``take`` finds in a JSON file; raise RunDirError for a damaged file."""
    try:
        return take(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RunDirError(
            f"{path} is damaged ({error!r}): remove it, and what it says is found again by the next call"
        ) from None


def check_version(folder: CellFolder) -> None:
    """Raise RunDirError for the folder of another version: trainings of two versions must not meet in one table."""
    if not folder.about.is_file():
        return
    written = _parse(folder.about, lambda about: (about["schema"], about["version"]))
    if written != (SCHEMA, __version__):
        raise RunDirError(
            f"{folder.path} was written by ssl-seg {written[1]} (format {written[0]}); this is {__version__} (format "
            f"{SCHEMA}). Trainings of two versions cannot be compared: use another --out, or remove that folder."
        )


def read_cell(folder: CellFolder) -> Cell:
    """Return what ``write_cells`` wrote.

    Raises:
        RunDirError: see ``check_version``.
    """
    check_version(folder)
    about = json.loads(folder.about.read_text(encoding="utf-8"))
    fields = {key: value for key, value in about.items() if key not in ("schema", "version")}
    return Cell(**{**fields, "arm": Arm(**fields["arm"])})


def read_result(out: Path, cell: Cell, wanted: ScoreConfig) -> CellResult:
    """Return the result of a cell so far.

    Raises:
        RunDirError: for a cell of another version, or a damaged file.
    """
    folder = open_folder(out, cell.id)
    check_version(folder)
    values = tuple(cell.config["data"]["label_values"][1:])
    known = CellResult(
        cell.id, cell.arm, cell.split_seed, cell.seed, "missing", label_values=values, labeled=cell.labeled
    )
    if (path := folder.score(wanted)).is_file():
        return _parse(path, lambda score: _add_score(known, score))
    message = read_failure(folder)
    return known if message is None else replace(known, status="failed", message=message)


def _add_score(cell: CellResult, score: Mapping[str, Any]) -> CellResult:
    counts = np.array(score["counts"], np.int64)
    if counts.ndim != 3 or counts.shape[-1] != 4 or not counts.size:
        raise ValueError(f"counts of shape {counts.shape}")
    broken = score.get("broken_gates", ())
    return replace(
        cell,
        status="collapsed" if score["collapsed"] else "refused" if broken else "done",
        message="; ".join(broken),
        counts=counts,
        step=score["step"],
        codes=tuple(score["codes"]),
        seconds=score["seconds"],
    )


def read_failure(folder: CellFolder) -> str | None:
    """Return why the last attempt failed; None if it did not.

    Raises:
        RunDirError: for a damaged file.
    """
    return _parse(folder.failure, lambda values: str(values["message"])) if folder.failure.is_file() else None
