"""The values of one mask, and what shows whether they are classes, numbers of objects, or gray steps.

Memory grows with the block that is looked at and with the number of values, not with their product.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, PlainValidator
from scipy import ndimage

from ssl_seg.data.blocks import iterate_blocks
from ssl_seg.data.views.transforms import find_gaps
from ssl_seg.data.volumes import Stored, are_whole, to_integers

LEVELS = 256
"""Steps, over its range, that the values of a mask of fractions are counted in."""

LOOKED_AT = 2**24
"""Voxels of a mask whose neighbors are looked at: a tile of 4096 x 4096, or the first blocks with several values of a
volume."""

BLOCK_BYTES = 2**21
"""Bytes that are looked at in one go: what is made of them takes up to 50 times as many, in each thread that reads."""

_CENTER_VOXELS = 2**16
"""Foreground voxels of a block that centers are taken from."""

_FEW = 4
"""Values of a block up to which it is faster to look for each of them than for all at once."""

_TABLE = 2**22
"""Values of a block within so wide a range are counted in a table, which is several times as fast as sorting."""


def _pack(array: NDArray[np.generic]) -> tuple[str, tuple[int, ...], str]:
    return array.dtype.str, array.shape, b64encode(zlib.compress(array.tobytes(), 1)).decode()


def _unpack(packed: Any) -> NDArray[np.generic]:
    if isinstance(packed, np.ndarray):
        return packed
    dtype, shape, text = packed
    return np.frombuffer(zlib.decompress(b64decode(text)), dtype).reshape(shape)


Array = TypeVar("Array")
Kept = Annotated[Array, PlainValidator(_unpack), PlainSerializer(_pack)]
"""An array that pydantic writes as text."""


@dataclass(frozen=True)
class MaskScan:
    """The values of a mask as stored, sorted, and for each of them (V,):

    ``counts`` its voxels; ``part`` the share of them in its largest connected part; ``solid`` the share that begin a
    square (a cube) of two equal voxels a side, near 1 inside regions and near 0 in steps along an edge; ``center`` (V,
    ndim) where it lies on average, 0..1 along each axis; ``box`` (V, 2, ndim) its first voxel along each axis and the
    one behind its last. ``part``, ``solid`` and ``center`` are NaN where nobody looked: in blocks with one value other
    than 0, and in those after ``LOOKED_AT``.

    ``fractions``: the values are not integers. They are ``LEVELS`` steps then, or, where a threshold was given, the
    smallest and the largest value, for all up to it and for all above it.
    """

    values: Kept[NDArray[np.generic]]
    counts: Kept[NDArray[np.int64]]
    part: Kept[NDArray[np.float32]]
    solid: Kept[NDArray[np.float32]]
    center: Kept[NDArray[np.float32]]
    box: Kept[NDArray[np.int32]]
    fractions: bool = False
    rounded: bool = False
    """Whether values were near integers, and none of them is left."""


def scan_mask(mask: Stored, threshold: float | None = None, image: Stored | None = None) -> tuple[str, MaskScan]:
    """Return the SHA-256 of a mask's voxels, and its values; read in blocks.

    Args:
        mask: opened; it may hold fractions.
        threshold: that fractions will be compared with; None if it is not known yet.
        image: that it belongs to, if it has voxels without data: those are not counted.

    Raises:
        DataError: if it cannot be read.
    """
    extremes, rounded = (None, False) if mask.dtype.kind in "iu" else _find_fractions(mask)
    if extremes is None:
        mask = to_integers(mask)
    shape = mask.shape[1:]
    digest = hashlib.sha256(f"{mask.dtype.name} {shape}".encode())
    tables, boxes, budget = [], [], LOOKED_AT
    for block in iterate_blocks(mask, BLOCK_BYTES):
        digest.update(np.ascontiguousarray(block.voxels).data)
        voxels = block.voxels if extremes is None else _to_levels(block.voxels, *extremes, threshold)
        gaps = None if image is None else find_gaps(image.read(block.box))
        values, counts, index = _index(voxels if gaps is None else np.where(gaps, voxels.dtype.type(0), voxels))
        if gaps is not None:
            counts = counts - gaps.sum() * (values == 0)
        table = np.full((len(values), 7 + len(shape)), 0.0)
        table[:, 0], table[:, 1] = values, counts
        if np.count_nonzero(values) > 1 and budget > 0 and threshold is None:
            budget -= voxels.size
            table[:, 2:] = _look(index, values, counts, block.start, shape)
        tables.append(table)
        boxes.append(_find_boxes(index, len(values)) + np.array([block.start, *(0 for _ in shape[1:])], np.int32))
    found, sums, box = _join_blocks(np.concatenate(tables), np.concatenate(boxes))
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of what nobody looked at
        part, solid = sums[:, 3] / sums[:, 2], sums[:, 5] / sums[:, 4]
        center = sums[:, 7:] / sums[:, 6:7] / np.array(shape)
    if extremes is not None:
        low, high = extremes
        exact: NDArray[np.generic] = low + found * ((high - low) / (LEVELS - 1))
    else:
        exact = found.astype(np.int64)
    single = np.float32
    scan = MaskScan(
        exact,
        sums[:, 1].astype(np.int64),
        part.astype(single),
        solid.astype(single),
        center.astype(single),
        box,
        extremes is not None,
        rounded,
    )
    return digest.hexdigest(), scan


def _join_blocks(
    tables: NDArray[np.float64], boxes: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Return the values that all blocks hold, the sums of their rows, and the box around their boxes.

    Args:
        tables: (R, 7 + ndim) a row for each value of each block: value, voxels, and what ``_look`` has summed.
        boxes: (R, 2, ndim) where the value lies in the block.
    """
    there = tables[:, 1] > 0
    tables, boxes = tables[there], boxes[there]
    values, rows = np.unique(tables[:, 0], return_inverse=True)
    sums = np.zeros((len(values), tables.shape[1]))
    np.add.at(sums, rows, tables)
    box = np.empty((len(values), *boxes.shape[1:]), np.int32)
    box[:, 0], box[:, 1] = np.iinfo(np.int32).max, 0
    np.minimum.at(box[:, 0], rows, boxes[:, 0])
    np.maximum.at(box[:, 1], rows, boxes[:, 1])
    return values, sums, box


def _find_fractions(mask: Stored) -> tuple[tuple[float, float] | None, bool]:
    """Return the smallest and the largest value of a mask of floats, or None where all are integers, or near them."""
    low, high, whole, exact = np.inf, -np.inf, True, True
    for block in iterate_blocks(mask):
        low, high = min(low, float(block.voxels.min())), max(high, float(block.voxels.max()))
        whole = whole and bool(are_whole(block.voxels).all())
        exact = exact and bool((block.voxels == np.round(block.voxels)).all())
    return (None, not exact) if whole else ((low, high), False)


def _to_levels(voxels: NDArray[np.floating], low: float, high: float, threshold: float | None) -> NDArray[np.uint8]:
    if threshold is not None:  # where it parts nothing, both extremes are still shown
        return np.where(voxels > (threshold if low <= threshold < high else low), np.uint8(LEVELS - 1), np.uint8(0))
    scaled = (voxels - low) * ((LEVELS - 1) / ((high - low) or 1.0))
    return np.round(scaled).astype(np.uint8)


def _index(voxels: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return the sorted values of a block, how many voxels each has, and for each voxel which of them it has."""
    low, high = int(voxels.min()), int(voxels.max())
    if low == high:
        return np.array([low]), np.array([voxels.size]), np.zeros(voxels.shape, np.int32)
    if high - low >= _TABLE:
        values, index, counts = np.unique(voxels, return_inverse=True, return_counts=True)
        return values.astype(np.int64), counts, index.reshape(voxels.shape).astype(np.int32)
    base = 0 if low >= 0 and high < _TABLE else low
    shifted = voxels if base == 0 else voxels.astype(np.int64) - base
    table = np.bincount(shifted.ravel())
    values = np.flatnonzero(table)
    places = np.zeros(len(table), np.int32)
    places[values] = np.arange(len(values))
    return values + base, table[values], places[shifted]


def _find_boxes(index: NDArray[np.int32], number: int) -> NDArray[np.int32]:
    """Return (V, 2, ndim) for a block: the first voxel of each value along each axis, and the one behind its last."""
    if number == 1:
        return np.array([[[0] * index.ndim, index.shape]], np.int32)
    if number > _FEW:
        found = [[(part.start, part.stop) for part in box] for box in ndimage.find_objects(index + 1)]
        return np.array(found, np.int32).transpose(0, 2, 1)
    boxes = np.empty((number, 2, index.ndim), np.int32)
    for value in range(number):
        here = index == value
        for axis in range(index.ndim):
            places = np.flatnonzero(here.any(axis=tuple(other for other in range(index.ndim) if other != axis)))
            boxes[value, :, axis] = places[0], places[-1] + 1
    return boxes


def _look(
    index: NDArray[np.int32], values: NDArray[np.int64], counts: NDArray[np.int64], start: int, shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return sums over a block for each value: voxels of connected parts, of the largest one; voxels, those that begin
    a square of equal ones; voxels sampled, and their coordinates along each axis."""
    found = np.zeros((len(values), 5 + len(shape)))
    keep = (values != 0)[index]
    for axis in range(index.ndim):
        # Where two objects touch, one side goes: what is left connected has one value.
        here, there = _halves(axis, index.ndim)
        keep[here] &= ~((index[here] != index[there]) & (values != 0)[index[there]])
    parts, number = ndimage.label(keep)
    sizes = np.bincount(parts.ravel(), minlength=number + 1)
    owner = np.zeros(number + 1, np.int32)
    owner[parts[keep]] = index[keep]
    np.add.at(found[:, 0], owner[1:], sizes[1:])
    np.maximum.at(found[:, 1], owner[1:], sizes[1:])
    low = high = index
    for axis in range(index.ndim):
        if index.shape[axis] > 1:
            here, there = _halves(axis, index.ndim)
            low, high = np.minimum(low[here], low[there]), np.maximum(high[here], high[there])
    found[:, 2] = counts
    found[:, 3] = np.bincount(low[low == high], minlength=len(values))
    positive = np.flatnonzero((values != 0)[index])
    sample = positive[:: max(1, len(positive) // _CENTER_VOXELS)]
    of = index.ravel()[sample]
    found[:, 4] = np.bincount(of, minlength=len(values))
    for axis, coordinate in enumerate(np.unravel_index(sample, index.shape)):
        found[:, 5 + axis] = np.bincount(of, coordinate + start * (axis == 0), minlength=len(values))
    return found


def _halves(axis: int, ndim: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return all but the last along an axis, and their neighbors: all but the first."""
    whole = [slice(None)] * ndim
    here, there = list(whole), list(whole)
    here[axis], there[axis] = slice(None, -1), slice(1, None)
    return tuple(here), tuple(there)
