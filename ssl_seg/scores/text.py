"""Figures as text, the same in every message, table and report. What is not known is ``-``."""

from __future__ import annotations

import math
from collections.abc import Iterable

UNKNOWN = "-"
MOST_PLAIN = 1e5
"""Figures from which powers of ten are easier to read."""


def number(value: float | None, digits: int = 3) -> str:
    """Return a figure with a number of decimals, a huge one in powers of ten; ``-`` for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.2e}" if abs(value) >= MOST_PLAIN else f"{value:.{digits}f}"


def shown_f1(names: Iterable[str]) -> tuple[str, str, str]:
    """Return which F1 of a look is shown, beside which trivial one, and its title: of several classes the mean over
    them, by which checkpoints are chosen. ``names`` are those of the figures of the look."""
    has_classes = any("/f1/" in name for name in names)
    return ("f1_macro", "trivial_f1_macro", "F1 (mean of classes)") if has_classes else ("f1", "trivial_f1", "F1")


def figure(value: float | None, digits: int = 4) -> str:
    """Return a figure of any size with a number of significant digits; ``-`` for None, NaN and infinities."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def share(value: float | None, digits: int = 2) -> str:
    """Return a share in percent; ``-`` for None, NaN and infinities."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}%}"


def short_share(value: float) -> str:
    """Return a share of foreground in percent, a small one with a decimal."""
    return share(value, 0 if value >= 0.1 else 1)


def log_odds(value: float) -> str:
    """Return a mean logit with its sign."""
    return f"{value:+.1e}" if abs(value) >= MOST_PLAIN else f"{value:+.2f}"


def points(value: float | None) -> str:
    """Return a difference in percentage points, with its sign; ``-`` for None, NaN and infinities."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{round(value, 1) + 0.0:+.1f} points"


def cut(value: float | None) -> str:
    """Return a threshold with two decimals, or as many as tell it from 0 and 1; ``-`` for None and NaN."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    within = 0.03 * min(value, 1 - value)
    digits = next((n for n in range(2, 6) if abs(round(value, n) - value) <= within), 6)
    return f"{value:.{digits}f}"
