"""Parts of large labeled images as cases of their own: where one or two images are all that is labeled, training,
validation and test are parts of them, with gaps that belong to no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

from ssl_seg.data.facts import CaseFacts, format_size
from ssl_seg.data.layouts.listing import Case, Region
from ssl_seg.errors import DataError, counted

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


def plan_tiles(
    cases: Sequence[Case],
    facts: Mapping[str, CaseFacts],
    parts: int | None,
) -> Tiling:
    """Choose which labeled images are cut into parts.

    Where only a box of an image is labeled, that is cut; what lies around it are parts too, without labels.

    Args:
        cases: all of them; unlabeled ones stay whole.
        facts: those of the cases that can be read: their shapes, and boxes of labels that do not span the image.
        parts: at least so many of each labeled image, if they keep sides of ``SMALLEST``; 1 cuts none; None
            cuts where there are fewer than three labeled images.

    Raises:
        DataError: if parts are asked for and no labeled image is large enough.
    """
    labeled = {
        c.id: facts[c.id].labeled_box or tuple((0, n) for n in facts[c.id].shape)
        for c in cases
        if c.mask is not None and c.id in facts
    }
    if not labeled or parts == 1 or (parts is None and len(labeled) >= FEWEST):
        return Tiling({})
    few, many = (-(-count // len(labeled)) for count in PARTS)
    roomy = min(len(cut_shape(_sizes(box), many, ROOMY[len(box)])) for box in labeled.values())
    wanted = parts or max(few, roomy)
    regions = {i: cut_box(box, facts[i].shape, wanted) for i, box in labeled.items()}
    regions = {i: found for i, found in regions.items() if len(found) > 1}
    if parts is not None and not regions:
        largest = max(map(_sizes, labeled.values()), key=max)
        raise DataError(
            f"data.tiles={parts}: the largest labeled image is {format_size(largest)}. {describe_limit()} "
            "Leave data.tiles out, or label more images."
        )
    if not regions:
        return Tiling({})
    around = {i: surround(found, facts[i].shape) for i, found in regions.items()}
    first, others = next(iter(regions.values()))[0], sum(map(len, around.values()))
    note = (
        f"{sum(map(len, regions.values()))} parts of {counted(len(regions), 'labeled image')} are labeled cases, the "
        f"first of {format_size(_sizes(first))} voxels, with gaps of up to {WIDEST_GAP[len(first)]} voxels that are "
        "in no part"
    )
    if others:
        note += f"; what lies around the labels is {counted(others, 'unlabeled case')}"
    if parts is None:
        note = (
            f"{counted(len(labeled), 'labeled image', 'are')} too few for training, validation and test: {note}. "
            "Scores on other parts of an image are better than on new images; data.tiles=1 keeps images whole"
        )
    return Tiling({i: found + around[i] for i, found in regions.items()}, wanted, note)


def cut_box(box: Region, shape: Sequence[int], parts: int) -> tuple[Region, ...]:
    """Return ``cut_shape`` of a box of an image. Along axes that are not cut, parts reach so far beyond it that they
    are ``ROOMY``: networks need surroundings, and a box may be one slice."""
    ndim = len(shape)
    grid = cut_shape(_sizes(box), parts, SMALLEST[ndim])
    moved = [tuple((a + start, b + start) for (a, b), (start, _) in zip(r, box, strict=True)) for r in grid]
    return tuple(
        tuple(
            _widen(span, n, ROOMY[ndim]) if span == whole else span
            for span, whole, n in zip(region, box, shape, strict=True)
        )
        for region in moved
    )


def surround(parts: Sequence[Region], shape: Sequence[int]) -> tuple[Region, ...]:
    """Return what lies around the parts of an image, beyond a gap: before and behind them along each axis, where that
    has sides of ``SMALLEST``."""
    ndim, inner = len(shape), [(0, n) for n in shape]
    gap, smallest, found = WIDEST_GAP[ndim], SMALLEST[ndim], list[Region]()
    for axis, n in enumerate(shape):
        start, stop = min(part[axis][0] for part in parts), max(part[axis][1] for part in parts)
        found += [(*inner[:axis], span, *inner[axis + 1 :]) for span in ((0, start - gap), (stop + gap, n))]
        inner[axis] = (start, stop)
    return tuple(region for region in found if min(_sizes(region)) >= smallest)


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
    return f"Images are cut into parts from a side of {flat} labeled voxels on, volumes from {deep}."


def part_case(case: Case, region: Region) -> Case:
    """Return a part of a case; its id names the first voxel: ``scan@y0_x181``."""
    place = "_".join(f"{axis}{start}" for axis, (start, _) in zip("zyx"[-len(region) :], region, strict=True))
    return replace(case, id=f"{case.id}@{place}", region=region, group=None)


def _gap(length: int, count: int, ndim: int) -> int:
    """Return a quarter of a part, rounded up, within the limit; 0 between no parts."""
    return min(WIDEST_GAP[ndim], -(-length // (5 * count - 1))) if count > 1 else 0


def _sizes(region: Region) -> list[int]:
    return [stop - start for start, stop in region]


def _widen(span: tuple[int, int], n: int, side: int) -> tuple[int, int]:
    """Return a span of at least ``side`` voxels, or all ``n``, around one."""
    start, stop = span
    if stop - start >= side:
        return span
    start = max(0, min((start + stop - side) // 2, n - side))
    return start, min(n, start + side)


def _side(length: int, count: int, ndim: int) -> int:
    return (length - (count - 1) * _gap(length, count, ndim)) // count


def _spans(length: int, count: int, ndim: int) -> list[tuple[int, int]]:
    gap = _gap(length, count, ndim)
    inside = length - (count - 1) * gap
    edges = [inside * k // count for k in range(count + 1)]
    return [(start + k * gap, stop + k * gap) for k, (start, stop) in enumerate(pairwise(edges))]
