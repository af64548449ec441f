"""The intensity window of CT, whose values mean the same in all images (Hounsfield units: air -1000, water 0)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from ssl_seg.data.catalog import Catalog
from ssl_seg.data.contrast import read_foreground
from ssl_seg.data.facts import CaseFacts

AIR = (-3100, -900)
"""The smallest value of a CT image lies here: that of air, or of what is outside the scanner (-1024, -2000, -3024)."""

DENSE = (100, 33000)
"""The largest value of a CT image lies here: tissue with contrast, bone, metal."""

WINDOW_IMAGES = 50
"""Images that are read, at most, to find a window."""


def looks_like_ct(facts: Collection[CaseFacts]) -> bool:
    """Return whether nine in ten images have the range of Hounsfield units, and half of them one smallest value."""
    looks = [f.appearance for f in facts if f.channels == 1 and f.appearance is not None]
    lows = Counter(
        a.low for a in looks if AIR[0] <= a.low <= AIR[1] and DENSE[0] <= a.high <= DENSE[1] and abs(a.low + a.high) > 1
    )
    return bool(lows) and lows.total() >= 0.9 * len(facts) and 2 * max(lows.values()) >= len(facts)


def measure_window(catalog: Catalog, labeled: Sequence[str]) -> tuple[int, int] | None:
    """Return the 0.5 and 99.5 percentiles of the foreground of labeled cases; None where there is nothing between them.

    As nnU-Net (Isensee et al. 2021) has it, but of voxels of each class that are as many as of any other.
    """
    values = [values.ravel() for _, values in read_foreground(catalog, labeled, WINDOW_IMAGES)]
    if not values:
        return None
    low, high = (round(float(limit)) for limit in np.percentile(np.concatenate(values), (0.5, 99.5)))
    return (low, high) if low < high else None
