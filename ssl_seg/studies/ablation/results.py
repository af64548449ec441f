"""What a cell of an ablation is, and what it has come to. Statistics, tables and figures need nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CellStatus = Literal["done", "collapsed", "failed", "missing"]


@dataclass(frozen=True, order=True)
class Arm:
    """What is compared. The cells of an arm differ in their seeds only."""

    method: str
    recipe: str
    start: str
    """``scratch``; ``bootstrap``: from the cell of the next smaller label fraction with the same seeds; or
    ``scratch_long``: from scratch, with as many steps as ``bootstrap`` and all its parents together."""
    labels: float
    """Share of the labeled training pool (0..1], or a number of cases above 1."""


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
    """Of its split."""
    labeled: int
    """Number of labeled cases."""
    steps: int


@dataclass(frozen=True)
class CellResult:
    """One training of an arm and how it ended.

    ``collapsed`` cells have scores, those of the same checkpoint as all; ``failed`` and ``missing`` ones have none.
    """

    id: str
    arm: Arm
    split_seed: int
    """Which training cases are labeled."""
    seed: int
    """Of the training: start, batches, augmentation."""
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
    """Of the last verdict."""
    message: str = ""
    """Why it failed."""
    seconds: float | None = None
    """Time it took, over all its sessions."""
