"""Counts of voxels tp, fp, fn, tn, and the scores of a checkpoint, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_counts(dice: NDArray[Any], voxels: int = 200_000) -> NDArray[np.int64]:
    """Return (..., C, 1, 4) counts with the Dice of each case; a quarter of the voxels are true."""
    true = voxels // 4
    tp = np.round(np.asarray(dice) * true).astype(np.int64)
    wrong = true - tp  # as many false as missed: Dice = tp / true
    return np.stack([tp, wrong, wrong, voxels - true - wrong], axis=-1)[..., None, :]


def random_counts(shape: tuple[int, ...], seed: int = 0, low: int = 0) -> NDArray[np.int64]:
    """Return (*shape, 4) counts of which some are empty."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(low, 50, (*shape, 4))
    counts[rng.random(shape) < 0.2, :3] = 0
    return counts


def make_net_score(
    f1: float, margin: float = 0.2, low: float | None = 0.1, high: float | None = 0.3, *, nonfinite: int = 0
) -> dict[str, Any]:
    """Return what a checkpoint says of one network."""
    return {"f1": f1, "f1_macro": f1, "margin": margin, "margin_low": low, "margin_high": high, "nonfinite": nonfinite}


def make_scores(
    student: dict[str, Any], teacher: dict[str, Any], *, trivial: float = 0.4, collapsed: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the scores of a checkpoint; the network with the higher F1 is used, of equal ones the teacher."""
    net = "student" if student["f1"] > teacher["f1"] else "teacher"
    selected = {"by": "f1", "net": net, "score": max(student["f1"], teacher["f1"]), "collapsed": list(collapsed)}
    return {
        "source": "validation",
        "trivial_f1": trivial,
        "student": student,
        "teacher": teacher,
        "selected": selected,
    }
