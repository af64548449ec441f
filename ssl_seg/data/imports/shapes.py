"""Outlines and run lengths as pixels.

The pixel in row r and column c covers [c, c + 1] x [r, r + 1] in (x, y), and belongs to an outline when its center lies
inside: centers on a left or upper border do, those on a right or lower one do not, so neighbors share no pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.facts import format_size
from ssl_seg.errors import DataError

Patch = tuple[int, int, NDArray[np.bool_]]
"""First row, first column, and which pixels from there on are meant."""

Size = tuple[int, int]
"""Height and width."""


def fill_polygons(outlines: Sequence[NDArray[np.float64]], size: Size) -> Patch:
    """Return the pixels inside any of the outlines (n, 2) of (x, y), each by the even-odd rule; cut at the border."""
    return join_patches([_fill(points, size) for points in outlines], size)


def join_patches(patches: Sequence[Patch], size: Size, join: np.ufunc = np.logical_or) -> Patch:
    """Return the pixels of any of the patches, or what else ``join`` makes of them."""
    if len(patches) == 1:
        return patches[0]
    canvas = np.zeros(size, bool)
    for top, left, inside in patches:
        place = (slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1]))
        canvas[place] = join(canvas[place], inside)
    return 0, 0, canvas


def fill_rings(rings: Sequence[NDArray[np.float64]], size: Size) -> Patch:
    """Return the pixels that lie inside an odd number of rings (n, 2) of (x, y), so that holes are left out."""
    return join_patches([_fill(points, size) for points in rings], size, np.logical_xor)


def make_ellipse(center: Sequence[float], radii: Sequence[float]) -> NDArray[np.float64]:
    """Return 256 points (n, 2) of (x, y) on an ellipse along the axes."""
    angles = np.linspace(0, 2 * np.pi, 256, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + center


def _fill(points: NDArray[np.float64], size: Size) -> Patch:
    (left, top), (right, bottom) = (np.clip(np.ceil(f(axis=0) - 0.5), 0, size[::-1]) for f in (points.min, points.max))
    top, left, bottom, right = int(top), int(left), int(bottom), int(right)
    crossings = np.zeros((bottom - top, right - left + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        low, high = min(y0, y1), max(y0, y1)
        rows = np.arange(max(ceil(low - 0.5), top), min(ceil(high - 0.5), bottom))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossings[rows - top, np.clip(np.ceil(x - 0.5), left, right).astype(int) - left] += 1
    return top, left, np.cumsum(crossings[:, :-1], axis=1) % 2 == 1


def fill_runs(starts: Sequence[int], lengths: Sequence[int], size: Size, where: str, *, by_rows: bool = False) -> Patch:
    """Return the pixels of runs that go down the columns, or along the rows; the first pixel is 0.

    Raises:
        DataError: for runs that leave the image, or overlap.
    """
    first, ends = np.asarray(starts, np.int64), np.asarray(starts, np.int64) + np.asarray(lengths, np.int64)
    if not len(first):
        return 0, 0, np.zeros((0, 0), bool)
    if first.min() < 0:
        raise DataError(f"{where}: a run starts at {1 + first.min()}: starts count from 1, the first pixel.")
    if min(lengths) < 0 or ends.max() > prod(size):
        raise DataError(
            f"{where}: the runs reach pixel {ends.max():,}; the image is {format_size(size)}, {prod(size):,} pixels."
        )
    order = np.argsort(first, kind="stable")
    if (ends[order][:-1] > first[order][1:]).any():
        raise DataError(
            f"{where}: runs overlap: each start counts from the first pixel of the image. Where it counts on from the "
            "end of the run before, add the numbers up first."
        )
    line = size[1] if by_rows else size[0]
    origin = int(first.min()) // line
    flat = np.zeros((-(-int(ends.max()) // line) - origin) * line, bool)
    for start, end in zip((first - origin * line).tolist(), (ends - origin * line).tolist(), strict=True):
        flat[start:end] = True
    lines = flat.reshape(-1, line)
    return (origin, 0, lines) if by_rows else (0, origin, lines.T)


def unpack_counts(text: str) -> list[int]:
    """Return the run lengths of a compressed COCO mask: five bits a character, differences to the last run but one."""
    counts: list[int] = []
    value = shift = 0
    for char in text.encode("ascii"):
        bits = char - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def check_points(values: object, size: Size, where: str) -> NDArray[np.float64]:
    """Return an outline (n, 2) from a list of x, y, x, y, ... or of pairs.

    Raises:
        DataError: for what is no outline of three points or more, or lies more than 2 pixels and 1 % out of the image.
    """
    try:
        points = np.asarray(values, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise DataError(f"{where}: an outline is a list of x, y, x, y, ... in numbers.") from None
    if len(points) < 3 or not np.isfinite(points).all():
        raise DataError(
            f"{where}: an outline has three points or more, all of them finite; this one has {len(points)}."
        )
    margin = 2 + 0.01 * np.array(size[::-1])
    if (points < -margin).any() or (points > size[::-1] + margin).any():
        low, high = points.min(axis=0), points.max(axis=0)
        raise DataError(
            f"{where}: the outline spans x {low[0]:g} .. {high[0]:g} and y {low[1]:g} .. {high[1]:g}; the image is "
            f"{size[1]} wide and {size[0]} high. Is it the image that was annotated, in its size?"
        )
    return points
