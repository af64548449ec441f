"""Parts of large labeled images as cases of their own: where one or two images are all that is labeled, training,
validation and test are parts of them, with gaps that belong to no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from ssl_seg.data.facts import format_size
from ssl_seg.data.layouts.listing import Case, Region
from ssl_seg.errors import DataError

FEWEST = 3
"""Labeled cases that a split into training, validation and test needs."""
PARTS = (8, 60)
"""Parts that all labeled images together are cut into where there are fewer than ``FEWEST``: at least the first number,
and up to about the second, from which intervals can be given, as long as parts are ``ROOMY``."""
SMALLEST = {2: 64, 3: 32}
"""Shortest side of a part, by dimensions."""
ROOMY = {2: 256, 3: 128}
"""Side from which a part is larger than most patches."""
WIDEST_GAP = {2: 32, 3: 16}
"""A quarter of the patch that a CPU trains with; gaps are at most that, and at most a quarter of a part."""


@dataclass(frozen=True)
class Tiling:
    """The regions of each image that is cut, by its id; ``parts`` is how many were asked for, 1 where none is cut."""

    regions: Mapping[str, tuple[Region, ...]]
    parts: int = 1
    note: str | None = None


def plan_tiles(cases: Sequence[Case], shapes: Mapping[str, Sequence[int]], parts: int | None) -> Tiling:
    """Choose which labeled images are cut into parts.

    Args:
        cases: all of them; unlabeled ones stay whole.
        shapes: id -> (*S), of the cases that can be read.
        parts: at least so many of each labeled image, if they keep sides of ``SMALLEST``; 1 cuts none; None
            cuts where there are fewer than three labeled images.

    Raises:
        DataError: if parts are asked for and no labeled image is large enough.
    """
    labeled = {c.id: tuple(shapes[c.id]) for c in cases if c.mask is not None and c.id in shapes}
    if not labeled or parts == 1 or (parts is None and len(labeled) >= FEWEST):
        return Tiling({})
    few, many = (-(-count // len(labeled)) for count in PARTS)
    roomy = min(len(cut_shape(shape, many, ROOMY[len(shape)])) for shape in labeled.values())
    wanted = parts or max(few, roomy)
    regions = {i: cut_shape(shape, wanted, SMALLEST[len(shape)]) for i, shape in labeled.items()}
    regions = {i: found for i, found in regions.items() if len(found) > 1}
    if parts is not None and not regions:
        largest = max(labeled.values(), key=max)
        raise DataError(
            f"data.tiles={parts}: the largest labeled image is {format_size(largest)}. {describe_limit()} "
            "Leave data.tiles out, or label more images."
        )
    if not regions:
        return Tiling({})
    shape = next(iter(regions.values()))[0]
    note = (
        f"{sum(map(len, regions.values()))} parts of {len(regions)} labeled image(s) are labeled cases, the first of "
        f"{format_size([stop - start for start, stop in shape])} voxels, with gaps of up to {WIDEST_GAP[len(shape)]} "
        "voxels that are in no part"
    )
    if parts is None:
        note = (
            f"{len(labeled)} labeled image(s) are too few for training, validation and test: {note}. Scores on other "
            "parts of an image are better than on new images; data.tiles=1 keeps images whole"
        )
    return Tiling(regions, wanted, note)


def cut_shape(shape: Sequence[int], parts: int, smallest: int) -> tuple[Region, ...]:
    """Return a grid of at least ``parts`` regions, or as many as keep sides of ``smallest``.

    The longest side is halved, then cut into three and so on. All regions along an axis are equally long, to one voxel,
    and lie apart by a gap of a quarter of that, at most ``WIDEST_GAP``.
    """
    counts = [1] * len(shape)
    while prod(counts) < parts:
        possible = [a for a, n in enumerate(shape) if _side(n, counts[a] + 1, len(shape)) >= smallest]
        if not possible:
            break
        counts[max(possible, key=lambda a: _side(shape[a], counts[a], len(shape)))] += 1
    grid: list[Region] = [()]
    for n, count in zip(shape, counts, strict=True):
        grid = [(*region, span) for region in grid for span in _spans(n, count, len(shape))]
    return tuple(grid)


def describe_limit() -> str:
    """Return a sentence on which images are large enough to be cut."""
    flat, deep = (SMALLEST[ndim] * 9 // 4 for ndim in (2, 3))
    return f"Images are cut into parts from a side of {flat} voxels on, volumes from {deep}."


def part_case(case: Case, region: Region) -> Case:
    """Return a part of a case; its id names the first voxel: ``scan@y0_x181``."""
    place = "_".join(f"{axis}{start}" for axis, (start, _) in zip("zyx"[-len(region) :], region, strict=True))
    return replace(case, id=f"{case.id}@{place}", region=region, group=None)


def _gap(length: int, count: int, ndim: int) -> int:
    """Return a quarter of a part, rounded up, within the limit; 0 between no parts."""
    return min(WIDEST_GAP[ndim], -(-length // (5 * count - 1))) if count > 1 else 0


def _side(length: int, count: int, ndim: int) -> int:
    return (length - (count - 1) * _gap(length, count, ndim)) // count


def _spans(length: int, count: int, ndim: int) -> list[tuple[int, int]]:
    gap = _gap(length, count, ndim)
    inside = length - (count - 1) * gap
    edges = [inside * k // count for k in range(count + 1)]
    return [(start + k * gap, stop + k * gap) for k, (start, stop) in enumerate(pairwise(edges))]
