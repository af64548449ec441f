"""Cells of an ablation with known scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from score_counts import as_counts

from ssl_seg.studies.ablation.cells import CellResult, CellStatus
from ssl_seg.studies.ablation.spec import Arm

CASES = 20
FRACTIONS = {0.01: 4, 0.1: 36, 1.0: 360}
"""Labels, and the number of labeled cases."""


def make_arm(method: str = "supervised", recipe: str = "base", start: str = "scratch", labels: float = 0.1) -> Arm:
    return Arm(method, recipe, start, labels)


def make_cell(
    arm: Arm,
    dice: float | NDArray[Any] | None,
    split_seed: int = 0,
    seed: int = 0,
    status: CellStatus | None = None,
    **more: Any,
) -> CellResult:
    """Return a cell; ``dice`` of each case, or one for all, or None without a score."""
    counts = None if dice is None else as_counts(np.broadcast_to(dice, CASES))
    name = f"{arm.method}-{arm.recipe}-{arm.start}-{arm.labels:g}-{split_seed}-{seed}"
    status = status or ("failed" if dice is None else "done")
    labeled = FRACTIONS.get(arm.labels)
    return CellResult(name, arm, split_seed, seed, status, counts, **{"labeled": labeled, "step": 60, **more})


def make_grid(
    gains: dict[str, float],
    *,
    splits: int = 3,
    seeds: int = 1,
    starts: tuple[str, ...] = ("scratch",),
    noise: float = 0.02,
) -> list[CellResult]:
    """Return cells of methods whose Dice is that of a curve over labels plus a gain, with noise of cases and runs."""
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 0.08, CASES)
    cells = []
    for method, gain in gains.items():
        for start in starts:
            for labels, number in FRACTIONS.items():
                level = 0.3 + 0.2 * np.log10(number / 4) + gain + 0.03 * (start != "scratch")
                for split in range(splits):
                    for seed in range(seeds):
                        own = rng.normal(0, noise / 2) + rng.normal(0, noise, CASES)
                        dice = np.clip(level + easy + own, 0, 1)
                        cells.append(make_cell(make_arm(method, "base", start, labels), dice, split, seed))
    return cells
