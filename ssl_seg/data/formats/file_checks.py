"""Check that an image file is whole and can hold what its header claims, before a decoder sees it.

Decoders return half an image for a truncated file, or write complaints of their own to the terminal, or reserve
whatever a broken header asks for. The checks here raise ``ValueError`` with the reason instead; the caller adds the
file's name. What they cannot see: flipped bits inside the pixels of JPG, BMP, NPY and whatever else is stored
uncompressed, which carry no checksum (and for a JPG the decoder may still complain on stderr).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

DEFLATE_RATIO = 1100
"""Deflate expands at most 1032 times; a JPG of one gray value reaches 512 pixels a byte."""

_ALWAYS_ALLOWED = 64 * 2**20
"""Bytes that are decoded whatever the file's size: small enough not to hurt."""


def check_claim(claimed: int, stored: int, ratio: int = DEFLATE_RATIO) -> None:
    """Refuse a header that claims more decoded bytes than ``stored`` bytes can expand to.

    Raises:
        ValueError: if ``claimed`` is above both 64 MiB and ``ratio`` times ``stored``.
    """
    if claimed > max(_ALWAYS_ALLOWED, ratio * stored):
        raise ValueError(
            f"its header claims {claimed:,} bytes of pixels, more than its {stored:,} stored bytes can hold"
        )


def check_length(needed: int, size: int) -> None:
    """Refuse a header whose voxels end behind the end of the file.

    Raises:
        ValueError: if ``needed`` is above ``size``.
    """
    if needed > size:
        raise ValueError(f"it holds {size:,} bytes and its header claims {needed:,}")


def check_tiff_pages(file: BinaryIO, size: int) -> int:
    """Follow the chain of page directories to its end and return the number of pages.

    tifffile stops quietly at a pointer beyond the end of the file: a truncated stack then looks like a shorter one.

    Raises:
        ValueError: if the chain leaves the file or loops.
    """
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(order + "H", head[2:4])[0] == 43
    count_format, entry, pointer = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    offset = _unpack(pointer, head[8:16] if big else head[4:8])
    seen: set[int] = set()
    while offset:
        if offset in seen:
            raise ValueError("its page directories form a loop")
        seen.add(offset)
        file.seek(offset)
        entries = _unpack(count_format, file.read(struct.calcsize(count_format)))
        end = offset + struct.calcsize(count_format) + entries * entry
        if end > size:
            raise ValueError(f"page directory {len(seen)} lies beyond its end, so it is truncated")
        file.seek(end)
        offset = _unpack(pointer, file.read(struct.calcsize(pointer)))
    return len(seen)


def _unpack(form: str, data: bytes) -> int:
    if len(data) < struct.calcsize(form):
        raise ValueError("it ends inside a page directory, so it is truncated")
    return int(struct.unpack(form, data)[0])


_TIFF_RATIO = {1: 8, 5: 4096, 8: DEFLATE_RATIO, 32773: 128, 32946: DEFLATE_RATIO}
"""TIFF compression code -> largest expansion: none (8 for one bit a pixel), LZW, deflate, PackBits, deflate."""

ANY_RATIO = 40_000
"""Largest expansion of an unknown codec: Zstandard and LZMA store an empty mask in 1/30,000 of its size."""


def check_tiff_segments(segments: list[tuple[int, int]], claimed: int, compression: int, size: int) -> None:
    """Check that each (offset, byte count) lies in the file and that together they can hold ``claimed`` bytes.

    Raises:
        ValueError: if not.
    """
    for offset, count in segments:
        if offset + count > size:
            raise ValueError(f"pixels at byte {offset:,} lie beyond its end at {size:,}, so it is truncated")
    check_claim(claimed, sum(count for _, count in segments), _TIFF_RATIO.get(compression, ANY_RATIO))
