"""Counts of voxels tp, fp, fn, tn for tests of scores."""

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
