"""What a picture shows of an image, and which ones of many.

Shapes: C channels, ``*S`` spatial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

CLIP = (0.5, 99.5)
"""Percentiles of an image that become black and white."""


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return ``count`` of the items at the most, evenly spread, with the first and the last one."""
    count = min(count, len(items))
    return [items[round(n * (len(items) - 1) / max(count - 1, 1))] for n in range(count)]


def find_fullest(areas: NDArray[Any]) -> int:
    """Return the plane with the most foreground, of the areas (Z) that it has in each; the middle one without any."""
    return int(areas.argmax()) if areas.any() else len(areas) // 2


def stretch(image: NDArray[Any], like: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Return an image (*S) of any range in [0, 1], a few extreme values clipped; of ``like`` where that is given."""
    scale = (image if like is None else like).astype(np.float64)
    low, high = np.percentile(scale, CLIP)
    if high <= low:
        low, high = float(scale.min()), float(scale.max())
    stretched: NDArray[np.float64] = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
    return stretched


def to_picture(image: NDArray[Any]) -> NDArray[Any]:
    """Return the colors (Y, X, 3) of an image (C, Y, X) of three channels, else its first channel (Y, X)."""
    return np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
