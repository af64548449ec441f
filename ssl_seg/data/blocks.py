"""Walk through an image in pieces, so that a volume larger than memory can be measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from numpy.typing import NDArray

from ssl_seg.data.volumes import Stored

BLOCK_BYTES = 8 * 2**20
"""Bytes that are looked at in one go; as float64 they can be eight times as many."""

SLAB_BYTES = 128 * 2**20
"""Bytes that are read in one go at most: a chunk of the file is then decoded once, not again for each block."""


@dataclass(frozen=True)
class Block:
    """Rows ``start, start + 1, ...`` along the first spatial axis of one channel: ``voxels`` (n, ...)."""

    channel: int
    start: int
    voxels: NDArray[Any]

    @property
    def box(self) -> tuple[slice, ...]:
        """Where the voxels are."""
        rows, *rest = self.voxels.shape
        return (slice(self.start, self.start + rows), *(slice(0, n) for n in rest))


def iterate_blocks(image: Stored, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield all voxels of an image (C, *S) once, those of each channel in C order.

    Raises:
        DataError: if the file turns out to be damaged on the way.
    """
    channels, rows, *rest = image.shape
    row_bytes = max(1, channels * prod(rest) * image.dtype.itemsize)
    step = max(1, block_bytes // row_bytes)
    whole = None if image.by_box else image.read()
    for first, last in _divide(rows, step, min(image.chunk_rows, rows), max(step, SLAB_BYTES // row_bytes)):
        box = (slice(first, last), *(slice(0, n) for n in rest))
        slab = image.read(box) if whole is None else whole[:, first:last]
        for start in range(first, last, step):
            part = slab[:, start - first : start - first + step]
            yield from (Block(channel, start, voxels) for channel, voxels in enumerate(part))


def _divide(rows: int, step: int, chunk: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield first and last row of each read: whole chunks of rows, as many as a block holds; or a chunk in few reads.

    Args:
        rows: to be read.
        step: rows of a block.
        chunk: rows that are decoded together.
        most: rows of one read.
    """
    if chunk <= step:
        length, period = step // chunk * chunk, rows
    else:
        length, period = -(-chunk // -(-chunk // most)), chunk
    for start in range(0, rows, period):
        end = min(start + period, rows)
        yield from ((first, min(first + length, end)) for first in range(start, end, length))
