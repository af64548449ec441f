"""Ways to damage a file: each maps its bytes to others."""

from __future__ import annotations

import random
from collections.abc import Callable

WORDS = (b"-1", b"0", b"nan", b"1e999", b"null", b"true", b"[]", b"{}", b"''", b"9" * 40, b"../../x", b"\xff\xfe")


def cut(data: bytes, draw: random.Random) -> bytes:
    """Return the first part."""
    return data[: draw.randrange(max(len(data), 1))]


def empty(_data: bytes, _draw: random.Random) -> bytes:
    """Return nothing."""
    return b""


def flip(data: bytes, draw: random.Random) -> bytes:
    """Change a few bits."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 3, 30]) if data else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def blank(data: bytes, draw: random.Random) -> bytes:
    """Put zeros in place of a stretch, as a crash of the machine does."""
    start = draw.randrange(max(len(data), 1))
    length = draw.randrange(1, max(len(data) - start, 2))
    return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]


def repeat(data: bytes, _draw: random.Random) -> bytes:
    """Return the content twice."""
    return data + data


def replace_word(data: bytes, draw: random.Random) -> bytes:
    """Put an odd value where a number stands."""
    places = [n for n, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return draw.choice(WORDS)
    place = draw.choice(places)
    return data[:place] + draw.choice(WORDS) + data[place + 1 :]


def drop_line(data: bytes, draw: random.Random) -> bytes:
    """Remove a line."""
    lines = data.splitlines(keepends=True)
    if lines:
        lines.pop(draw.randrange(len(lines)))
    return b"".join(lines)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    function.__name__: function for function in (cut, empty, flip, blank, repeat, replace_word, drop_line)
}
