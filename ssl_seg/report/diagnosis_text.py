"""Figures of a diagnosis as text, and tables of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Cause

UNKNOWN = "-"
MOST_PLAIN = 1e5
"""Figures from which powers of ten are easier to read."""

PART_TITLES = {
    "train": "labeled training",
    "val": "validation",
    "test": "sealed test (outputs only)",
    "new": "other",
    "all": "all",
}

Statistics = Mapping[str, Any]
"""Statistics of a diagnosis, see there."""


@dataclass(frozen=True)
class Table:
    """``rows`` of text below ``columns``, the first column being names; ``text`` says how to read it."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with so many decimals, a huge one in powers of ten; ``-`` for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.2e}" if abs(value) >= MOST_PLAIN else f"{value:.{digits}f}"


def cut(value: float | None) -> str:
    """Return a threshold with two decimals, or as many as tell it from 0 and 1; ``-`` for None and NaN."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    within = 0.03 * min(value, 1 - value)
    digits = next((n for n in range(2, 6) if abs(round(value, n) - value) <= within), 6)
    return f"{value:.{digits}f}"


def share(value: float | None, digits: int = 2) -> str:
    """Return a share in percent; ``-`` for None, NaN and infinities."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}%}"


def size(shape: Sequence[int]) -> str:
    """Return a shape such as ``320 x 320``."""
    return " x ".join(map(str, shape))


def points(value: float | None) -> str:
    """Return a difference in percentage points, with its sign."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{round(value, 1) + 0.0:+.1f} points"


def list_evidence(causes: Sequence[Cause]) -> list[list[str]]:
    """Return the evidence of each cause; what was said for an earlier one is only referred to."""
    first: dict[str, int] = {}
    listed = []
    for rank, cause in enumerate(causes, start=1):
        earlier = dict.fromkeys(first[text] for text in cause.evidence if text in first)
        new = [text for text in cause.evidence if text not in first]
        listed.append([*new, *(f"as for cause {other}" for other in earlier)])
        first |= dict.fromkeys(new, rank)
    return listed
