"""Walking through an image in pieces, so that a volume larger than memory can be measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from numpy.typing import NDArray

from ssl_seg.data.volumes import Stored

BLOCK_BYTES = 8 * 2**20
"""Bytes that are looked at in one go; as float64 they can be eight times as many."""


@dataclass(frozen=True)
class Block:
    """Rows ``start, start + 1, ...`` along the first spatial axis of one channel: ``voxels`` (n, ...)."""

    channel: int
    start: int
    voxels: NDArray[Any]


def iterate_blocks(image: Stored, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield all voxels of an image (C, *S) once, those of each channel in C order.

    Raises:
        DataError: if the file turns out to be damaged on the way.
    """
    channels, rows, *rest = image.shape
    step = max(1, block_bytes // max(1, channels * prod(rest) * image.dtype.itemsize))
    whole = None if image.by_box else image.read()
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        box = (slice(start, stop), *(slice(0, n) for n in rest))
        part = image.read(box) if whole is None else whole[:, start:stop]
        yield from (Block(channel, start, voxels) for channel, voxels in enumerate(part))
