"""Predictions of images of one shape: do all have one foreground share, and are there places that none of them reaches?

A network that ignores its input predicts the same share everywhere; one that says foreground everywhere, behind an
inference that leaves out a border, predicts a product such as (312/320) x (312/320) of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAME = 1e-4
"""Foreground shares that differ by less are the same, as two decimals of a percentage are."""
FEWEST = 3
"""Images of a shape below which equal shares say nothing."""
MOST_IMAGES = 0.8
"""Share of the images that must reach the planes beside a hole."""
MAX_MAP_VOXELS = 2**26
"""Voxels of all shapes together for which it is counted how often each is predicted: 256 MB. Larger images, and shapes
that come later, go without."""


@dataclass(frozen=True)
class Hole:
    """Planes across an axis that no prediction reaches, although most reach the planes beside them."""

    runs: tuple[tuple[tuple[int, int], ...], ...]
    """For each axis the runs (first, behind the last) of such planes."""
    covered: tuple[int, ...]
    """Planes of each axis that are reached."""
    shape: tuple[int, ...]

    @property
    def share(self) -> float:
        """Share of the image that is never predicted because of it."""
        return 1 - prod(self.covered) / prod(self.shape)

    def bands(self) -> list[list[int]]:
        """Return the unreached planes at the front and at the back of each axis."""
        return [
            [sum(b for a, b in runs if a == 0), sum(b - a for a, b in runs if b == size)]
            for runs, size in zip(self.runs, self.shape, strict=True)
        ]


@dataclass
class ShapeTally:
    """Adds up the predictions of all images of one shape."""

    shape: tuple[int, ...]
    has_map: bool = True
    """Whether to count how often each voxel is predicted."""
    images: int = 0
    ratios: list[float] = field(default_factory=list)
    true_ratios: list[float] = field(default_factory=list)
    reached: list[NDArray[np.int64]] = field(default_factory=list)
    """For each axis, how many images have something predicted in each plane."""
    true_reached: list[NDArray[np.int64]] = field(default_factory=list)
    not_empty: int = 0
    counts: NDArray[np.int32] | None = None
    """How often each voxel is predicted; None without a map."""

    def __post_init__(self) -> None:
        self.reached = [np.zeros(size, np.int64) for size in self.shape]
        self.true_reached = [np.zeros(size, np.int64) for size in self.shape]
        if self.has_map:
            self.counts = np.zeros(self.shape, np.int32)

    def add(self, pred: NDArray[np.bool_], truth: NDArray[np.bool_] | None, true_ratio: float | None) -> None:
        """Add one image: ``pred`` and ``truth`` (*S)."""
        self.images += 1
        self.ratios.append(float(pred.mean()))
        self.not_empty += bool(pred.any())
        for axis in range(pred.ndim):
            self.reached[axis] += _planes(pred, axis)
            if truth is not None:
                self.true_reached[axis] += _planes(truth, axis)
        if true_ratio is not None:
            self.true_ratios.append(true_ratio)
        if self.counts is not None:
            self.counts += pred

    def summarize(self) -> dict[str, Any]:
        """Return the row of ``statistics["shapes"]``."""
        same, ratio = find_same(self.ratios)
        hole = self.find_hole()
        never = always = None
        if self.counts is not None:
            never, always = float((self.counts == 0).mean()), float((self.counts == self.images).mean())
        return {
            "shape": list(self.shape),
            "images": self.images,
            "same": same,
            "ratio": ratio,
            "ratio_min": min(self.ratios),
            "ratio_max": max(self.ratios),
            "true_known": len(self.true_ratios),
            "true_min": min(self.true_ratios, default=None),
            "true_max": max(self.true_ratios, default=None),
            "closed_form": self._find_closed_form(same, ratio, hole),
            "never": never,
            "always": always,
            "hole": None if hole is None else self._describe(hole),
        }

    def find_hole(self) -> Hole | None:
        """Return the planes that no prediction reaches, or None.

        At least three images must have something predicted. Where there are masks, the hole must hold true foreground.
        """
        if self.not_empty < FEWEST:
            return None
        runs = tuple(tuple(self._dead_runs(axis)) for axis in range(len(self.shape)))
        if not any(runs):
            return None
        covered = [size - sum(b - a for a, b in r) for size, r in zip(self.shape, runs, strict=True)]
        return Hole(runs, tuple(covered), self.shape)

    def _dead_runs(self, axis: int) -> Iterator[tuple[int, int]]:
        reached, true = self.reached[axis], self.true_reached[axis]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], reached == 0, [0]]).astype(np.int8)))
        for first, behind in edges.reshape(-1, 2).tolist():
            beside = [int(reached[i]) for i in (first - 1, behind) if 0 <= i < len(reached)]
            is_missed = not self.true_ratios or bool(true[first:behind].any())
            if beside and min(beside) >= MOST_IMAGES * self.not_empty and is_missed:
                yield first, behind

    def _describe(self, hole: Hole) -> dict[str, Any]:
        inside = None
        if self.counts is not None:
            most = self.counts >= self.images / 2
            inside = float(most.sum()) / prod(hole.covered)
        return {
            "band": hole.bands(),
            "runs": [[list(run) for run in runs] for runs in hole.runs],
            "share": hole.share,
            "inside": inside,
        }

    def _find_closed_form(self, same: int, ratio: float, hole: Hole | None) -> str | None:
        """Return the ratio as a product of covered over all planes, ``(312/320) x (312/320)``, where it is one."""
        if same < FEWEST or not 0 < ratio < 1:
            return None
        covered = _equal_margin(ratio, self.shape)
        if hole is not None and abs(prod(hole.covered) / prod(self.shape) - ratio) < SAME / 10:
            covered = hole.covered
        if covered is None:
            return None
        return " x ".join(f"({a}/{n})" for a, n in zip(covered, self.shape, strict=True))


def find_same(ratios: Sequence[float]) -> tuple[int, float]:
    """Return how many of the ratios are the same, and which one: the largest group within ``SAME``."""
    ordered = np.sort(np.asarray(ratios, np.float64))
    sizes = np.searchsorted(ordered, ordered + SAME, side="left") - np.arange(len(ordered))
    first = int(np.argmax(sizes))
    return int(sizes[first]), float(np.median(ordered[first : first + sizes[first]]))


def _equal_margin(ratio: float, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return the shape less the same margin on each axis, where that holds exactly ``ratio`` of the voxels."""
    wanted = round(ratio * prod(shape))
    for margin in range(1, min(shape)):
        covered = tuple(size - margin for size in shape)
        if prod(covered) <= wanted:
            return covered if prod(covered) == wanted else None
    return None


def _planes(mask: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    others = tuple(other for other in range(mask.ndim) if other != axis)
    return np.asarray(mask.any(axis=others))
