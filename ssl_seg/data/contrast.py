"""Values of the foreground of labeled cases, and whether it is brighter or darker than the rest of its image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.catalog import Catalog
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
        most: of them are read, evenly spread.
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
