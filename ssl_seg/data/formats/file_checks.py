"""Is an image file whole, and can it hold what its header claims? Asked before a decoder sees it.

Decoders return half an image for a truncated file, or write complaints of their own to the terminal, or reserve
whatever a broken header asks for. The checks here raise ``ValueError`` with the reason instead; the caller adds the
file's name. What they cannot see: flipped bits inside the pixels of JPG, BMP, NPY and whatever else is stored
uncompressed, which carry no checksum (and for a JPG the decoder may still complain on stderr).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO

_DEFLATE_RATIO = 1100
"""Deflate expands at most 1032 times; a JPG of one gray value reaches 512 pixels a byte."""

_ALWAYS_ALLOWED = 64 * 2**20
"""Bytes that are decoded whatever the file's size: small enough not to hurt."""

_JPG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def check_claim(claimed: int, stored: int, ratio: int = _DEFLATE_RATIO) -> None:
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


def check_png(data: bytes) -> None:
    """Walk the chunks: checksums of the critical ones, claimed size, end marker.

    Raises:
        ValueError: if the file is truncated or damaged.
    """
    view = memoryview(data)
    position, stored, claimed = 8, 0, 0
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            break
        critical = not kind[0] & 0x20  # a lower-case first letter marks a chunk that readers may skip
        if critical and zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"its {kind.decode('latin-1')} chunk has a wrong checksum")
        if kind == b"IHDR" and length == 13:
            width, height, depth, color = struct.unpack(">IIBB", view[position + 8 : position + 18])
            claimed = height * width * {2: 3, 4: 2, 6: 4}.get(color, 1) * depth // 8
        elif kind == b"IDAT":
            stored += length
        elif kind == b"IEND":
            return check_claim(claimed, stored)
        position = end
    raise ValueError("it ends before its end marker (IEND), so it is truncated")


def check_jpg(data: bytes) -> None:
    """Walk the headers up to the first scan, then look for the end marker behind it.

    Behind it, because a preview image inside the headers has an end marker of its own.

    Raises:
        ValueError: if the file is truncated or damaged.
    """
    position, claimed = 2, 0
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise ValueError(f"byte {position} should start a marker and does not")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in _JPG_FRAMES and position + 10 <= len(data):
            height, width, components = struct.unpack(">HHB", data[position + 5 : position + 10])
            claimed = height * width * components
        if marker == 0xDA:
            if data.find(b"\xff\xd9", position) < 0:
                break
            return check_claim(claimed, len(data))
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise ValueError("it ends before its end marker (EOI), so it is truncated")


def check_bmp(data: bytes) -> None:
    """Compare the size that the header claims with the bytes that are there.

    Raises:
        ValueError: if the file is truncated or damaged.
    """
    if len(data) < 34:
        raise ValueError("it ends inside its header, so it is truncated")
    start, header, width, height, _, bits, compression = struct.unpack("<IIiiHHI", data[10:34])
    if header < 40:
        raise ValueError("its header is of the old OS/2 kind, which is read without colors; save it as PNG")
    row = (abs(width) * bits + 31) // 32 * 4
    if compression in (1, 2):
        return check_claim(row * abs(height), len(data))
    return check_length(start + row * abs(height), len(data))


CHECKS: dict[str, Callable[[bytes], None]] = {
    ".png": check_png,
    ".jpg": check_jpg,
    ".jpeg": check_jpg,
    ".bmp": check_bmp,
}


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


_TIFF_RATIO = {1: 8, 5: 4096, 8: _DEFLATE_RATIO, 32773: 128, 32946: _DEFLATE_RATIO}
"""TIFF compression code -> largest expansion: none (8 for one bit a pixel), LZW, deflate, PackBits, deflate."""

ANY_RATIO = 40_000
"""Of a codec that is not known: Zstandard and LZMA store an empty mask in 1/30,000 of its size."""


def check_tiff_segments(segments: list[tuple[int, int]], claimed: int, compression: int, size: int) -> None:
    """Check that each (offset, byte count) lies in the file and that together they can hold ``claimed`` bytes.

    Raises:
        ValueError: if not.
    """
    for offset, count in segments:
        if offset + count > size:
            raise ValueError(f"pixels at byte {offset:,} lie beyond its end at {size:,}, so it is truncated")
    check_claim(claimed, sum(count for _, count in segments), _TIFF_RATIO.get(compression, ANY_RATIO))
