"""Numbers of items on both sides of a limit of the code."""

from __future__ import annotations


def around(limit: int) -> list[int]:
    """Return one fewer, exactly as many, one more, and several times as many: a multiple, and one more than that."""
    return [limit - 1, limit, limit + 1, 3 * limit, 3 * limit + 1]
