"""Values of the foreground of labeled cases: whether it is brighter or darker than the rest of its image, and the
intensity window of CT, whose values mean the same in all images (Hounsfield units: air -1000, water 0)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.catalog import Catalog
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.store import CaseStore, LoadedCase

CONTRAST_IMAGES = 20
"""Images that are read, at most, to see whether foreground is bright or dark."""


def count_contrasts(catalog: Catalog, labeled: Sequence[str]) -> tuple[int, int]:
    """Return in how many labeled images the foreground is brighter, and in how many darker, than the rest.

    Those without foreground, or with nothing else, count as neither.
    """
    known = [i for i in labeled if i in catalog.facts and catalog.facts[i].appearance is not None]
    partly = [i for i in known if (catalog.facts[i].foreground or 1) < 1]
    signs = [
        np.sign(values.mean() - case.intensity.mean.mean())
        for case, values in read_foreground(catalog, partly, CONTRAST_IMAGES)
    ]
    return signs.count(1), signs.count(-1)


def count_skews(catalog: Catalog, ids: Iterable[str]) -> tuple[int, int]:
    """Return how many images have few bright values among many dark ones, and how many the reverse.

    That is the sign of their skewness, of the thumbnails that are remembered. Foreground that takes the smaller part of
    an image is so likely to be bright, or dark.
    """
    looks = (catalog.facts[i].appearance for i in ids if i in catalog.facts)
    skews = [float((look.thumbnail.astype(np.float64) ** 3).sum()) for look in looks if look is not None]
    return sum(skew > 0 for skew in skews), sum(skew < 0 for skew in skews)


def read_foreground(
    catalog: Catalog, labeled: Sequence[str], most: int
) -> Iterator[tuple[LoadedCase, NDArray[np.float64]]]:
    """Yield labeled cases that have foreground, and its values (C,n), as many of each class as of any other.

    Args:
        catalog: the data.
        labeled: ids of cases.
        most: largest number of cases that are read, evenly spread.
    """
    positive = [i for i in labeled if i in catalog.facts and catalog.facts[i].foreground]
    store = CaseStore(catalog, catalog.channels, max_bytes=1)  # by box where files can be read so
    for case_id in positive[:: max(1, -(-len(positive) // most))]:
        case = store.load(case_id)
        yield case, _read_points(case)


def _read_points(case: LoadedCase) -> NDArray[np.float64]:
    """Return the values (C,n) of the foreground voxels that the case remembers."""
    points = np.concatenate(case.foreground)
    rows = []
    for row in np.unique(points[:, 0]):
        inside = tuple(points[points[:, 0] == row, 1:].T)
        everything = (slice(None),) * len(inside)
        rows.append(case.image[(slice(None), slice(row, row + 1), *everything)][(slice(None), 0, *inside)])
    return np.concatenate(rows, axis=1).astype(np.float64)


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
