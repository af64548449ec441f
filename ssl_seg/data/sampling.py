"""Choose the case and the box that a patch comes from, as pure functions of a seed and a position.

Nothing here keeps a state: the k-th draw of a stream is the same whether a run went there in one go, was resumed, or
prepares its batches in other processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import floor, inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.stored import AnyArray

_PASSES = 16
"""Orders that are remembered: of 1,000,000 cases one takes 8 MB, and 30 ms to make."""

TRIES, COUNTED = 32, 2048
"""Boxes that are compared, and points of a class by which their foreground is estimated."""

NEGATIVE_STREAMS = 100
"""Distance between the stream numbers of positive and negative cases."""

ForegroundShift = Literal["more", "less"]
"""Whether labeled patches are drawn with more foreground than the settings ask for, or with less."""


def derive_seed(*parts: int) -> int:
    """Return a 32-bit seed for a position such as (seed, rank, step); different positions are independent."""
    return int(_mix(parts).generate_state(1)[0])


def derive_rng(*parts: int) -> np.random.Generator:
    """Return a generator for a position such as (seed, rank, step)."""
    return np.random.default_rng(_mix(parts))


def _mix(parts: Sequence[int]) -> np.random.SeedSequence:
    # The number of parts comes first, for a SeedSequence takes (7, 1) and (7, 1, 0) for the same.
    return np.random.SeedSequence((len(parts), *parts))


@dataclass(frozen=True)
class CaseStream:
    """Endless sequence of case ids: reshuffled passes over all of them, so that counts differ by one at most.

    A labeled set of three cases and an unlabeled one of thousands can be walked side by side; neither restarts.
    """

    ids: tuple[str, ...]
    seed: int
    stream: int

    def __getitem__(self, position: int) -> str:
        """Return the id at a position >= 0."""
        pass_number, index = divmod(position, len(self.ids))
        return self.ids[int(_order_of_pass(len(self.ids), self.seed, self.stream, pass_number)[index])]


@lru_cache(maxsize=_PASSES)
def _order_of_pass(count: int, seed: int, stream: int, pass_number: int) -> NDArray[np.int64]:
    """Return the order of ``count`` cases in one pass; made once for all of its draws."""
    return derive_rng(seed, stream, pass_number).permutation(count)


@dataclass(frozen=True)
class BalancedCaseStream:
    """Endless sequence of case ids in which a fixed share has foreground: a batch is a run of consecutive positions.

    Over any run of n positions the number of positive cases differs from ``reachable_ratio * n`` by less than 1, and
    inside the positive and inside the negative cases all are drawn equally often. Draws with weights meet the share
    only on average.

    Args:
        ids: all cases.
        positive: those with foreground; ids that are not in ``ids`` do not matter.
        target_ratio: wanted share of positive cases, in [0, 1].
        seed, stream: place of the sequence among others.
    """

    ids: tuple[str, ...]
    positive: frozenset[str]
    target_ratio: float
    seed: int
    stream: int

    def __getitem__(self, position: int) -> str:
        """Return the id at a position >= 0."""
        before, after = (floor(p * self.reachable_ratio + self._offset) for p in (position, position + 1))
        return self._positives[before] if after > before else self._negatives[position - before]

    @property
    def reachable_ratio(self) -> float:
        """Share of positive cases that is drawn: 0 or 1 where all cases are of one kind, else ``target_ratio``."""
        if self._positives.ids and self._negatives.ids:
            return self.target_ratio
        return 1.0 if self._positives.ids else 0.0

    @property
    def positive_weight(self) -> float:
        """Weight of a positive case, beside 1 for a negative one, with which weighted random draws have this ratio.

        Infinite for a ratio of 1; 1 where all cases are of one kind.
        """
        positives, negatives = len(self._positives.ids), len(self._negatives.ids)
        if not positives or not negatives:
            return 1.0
        return inf if self.target_ratio == 1 else negatives / positives * self.target_ratio / (1 - self.target_ratio)

    @cached_property
    def _offset(self) -> float:
        # In steps of 2^-20, so that a position plus the offset is exact.
        return int(derive_rng(self.seed, self.stream).integers(2**20)) / 2**20

    @cached_property
    def _positives(self) -> CaseStream:
        return CaseStream(tuple(i for i in self.ids if i in self.positive), self.seed, self.stream)

    @cached_property
    def _negatives(self) -> CaseStream:
        # Another stream: with that of the positives, two classes of one size would be walked in the same order. Without
        # positives it is that of draws without a ratio, which then changes nothing.
        negatives = tuple(i for i in self.ids if i not in self.positive)
        return CaseStream(negatives, self.seed, self.stream + (NEGATIVE_STREAMS if self._positives.ids else 0))


def choose_box(
    shape: Sequence[int],
    patch_size: Sequence[int],
    rng: np.random.Generator,
    foreground: Sequence[NDArray[np.integer]] = (),
) -> tuple[int, ...]:
    """Return the start of a random box of ``patch_size`` inside ``shape``.

    The box is centered on a random voxel and moved inside the image. Drawing the start uniformly instead would hardly
    ever show the borders: at half the image size, a corner voxel would be in 1 of 16,000 boxes, the center in all.

    Args:
        shape: (*S) of the image.
        patch_size: (*P).
        foreground: coordinates (n, len(S)) of the voxels of each class that is present; the center is a voxel of one
            of them, each class equally likely, so that a small class is seen as often as a large one. All voxels when
            empty.

    Returns:
        Start per axis; negative where the image is smaller than the patch, which is then centered.
    """
    limits = [size - patch for size, patch in zip(shape, patch_size, strict=True)]
    center = _choose_foreground(foreground, rng) if foreground else rng.integers(np.asarray(shape))
    wanted = [int(c) - patch // 2 for c, patch in zip(center, patch_size, strict=True)]
    return tuple(min(max(w, 0), limit) if limit >= 0 else limit // 2 for w, limit in zip(wanted, limits, strict=True))


def choose_box_by_share(
    shape: Sequence[int],
    patch_size: Sequence[int],
    rng: np.random.Generator,
    foreground: Sequence[NDArray[np.integer]],
    voxels_each: Sequence[int],
    share: float,
) -> tuple[int, ...]:
    """Return the start of that one of ``TRIES`` boxes whose share of foreground is nearest to ``share``.

    Half of them are centered on foreground; see ``choose_box``. Shares are estimated from at most ``COUNTED`` points a
    class, so that no mask is read.

    Args:
        shape: (*S) of the image.
        patch_size: (*P).
        foreground: coordinates (n, len(S)) of voxels of each class that is present, evenly drawn.
        voxels_each: how many voxels of its class each of these stands for.
        share: wanted; what no box can have (below 0, above 1) asks for the nearest.
    """
    patch, limits = np.asarray(patch_size), np.subtract(shape, patch_size)
    centers = rng.integers(shape, size=(TRIES, len(patch)))
    for index in range(TRIES // 2 if foreground else 0):
        of_class = foreground[index % len(foreground)]
        centers[index] = of_class[rng.integers(len(of_class))]
    starts = np.where(limits >= 0, np.clip(centers - patch // 2, 0, np.maximum(limits, 0)), limits // 2)
    ends = starts + patch
    voxels = (np.minimum(ends, shape) - np.maximum(starts, 0)).prod(axis=1)
    found = np.zeros(TRIES)
    for points, each in zip(foreground, voxels_each, strict=True):
        seen = points[:: -(-len(points) // COUNTED)]
        inside = np.ones((TRIES, len(seen)), bool)
        for axis in range(len(patch)):  # by axis: several times as fast as all axes at once
            inside &= (seen[:, axis] >= starts[:, axis, None]) & (seen[:, axis] < ends[:, axis, None])
        found += inside.sum(axis=1) * (each * len(points) / len(seen))
    return tuple(starts[np.abs(found / voxels - share).argmin()].tolist())


def choose_tile(
    shape: Sequence[int],
    patch_size: Sequence[int],
    rng: np.random.Generator,
    foreground: Sequence[NDArray[np.integer]] = (),
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a random tile of the grid that covers ``shape``: its start, and what other tiles hold of it.

    The last tile of an axis is moved inside the image; the voxels that it shares with the one before are to be ignored.
    So every voxel is equally likely to be looked at, and the share of foreground is that of whole images.

    Args:
        shape: (*S) of the image.
        patch_size: (*P).
        foreground: as for ``choose_box``: the tile holds a voxel of one of the classes. Any tile when empty.

    Returns:
        Start per axis (negative where the image is smaller), and the voxels to ignore at the front of each axis.
    """
    starts, ignored = [], []
    voxel = _choose_foreground(foreground, rng) if foreground else None
    for axis, (size, patch) in enumerate(zip(shape, patch_size, strict=True)):
        tile = int(rng.integers(-(-size // patch))) if voxel is None else int(voxel[axis]) // patch
        wanted = tile * patch
        start = min(wanted, size - patch) if size >= patch else (size - patch) // 2
        starts.append(start)
        ignored.append(max(wanted - start, 0) if size >= patch else 0)
    return tuple(starts), tuple(ignored)


def _choose_foreground(foreground: Sequence[NDArray[np.integer]], rng: np.random.Generator) -> NDArray[np.integer]:
    """Return the coordinates of a foreground voxel, each class equally likely."""
    of_class = foreground[int(rng.integers(len(foreground)))]
    voxel: NDArray[np.integer] = of_class[rng.integers(len(of_class))]
    return voxel


def locate_box(
    start: Sequence[int], patch_size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the part of a box that lies inside ``shape``, and the place of that part in the box."""
    inside = tuple(slice(max(s, 0), min(s + p, n)) for s, p, n in zip(start, patch_size, shape, strict=True))
    placed = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, start, strict=True))
    return inside, placed


def crop(array: AnyArray, start: Sequence[int], patch_size: Sequence[int], pad_value: float) -> NDArray[np.generic]:
    """Cut a box out of the last ``len(patch_size)`` axes; what lies outside the array becomes ``pad_value``."""
    lead = array.shape[: array.ndim - len(patch_size)]
    inside, placed = locate_box(start, patch_size, array.shape[len(lead) :])
    cut: tuple[Any, ...] = (Ellipsis, *inside)
    place: tuple[Any, ...] = (Ellipsis, *placed)
    patch: NDArray[Any] = array[cut]
    if patch.shape[len(lead) :] == tuple(patch_size):
        return patch
    padded = np.full((*lead, *patch_size), pad_value, array.dtype)
    padded[place] = patch
    return padded
