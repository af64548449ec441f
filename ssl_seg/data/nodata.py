"""Values that stand for "nothing was measured here", such as -9999, where no file says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 16
"""Fewer voxels of an odd value are rather broken pixels."""

HUGE = 1e10
"""A floating-point value of this size that repeats is rather a mark than a measurement: -3.4e38, 1e20, -1e30."""


@dataclass
class OddValues:
    """Finds the value of an image that looks like a mark for no data, while its voxels pass by.

    Such a value is one that programs write (-9999, -32768, 65535, -3.4e38, ...; never 0 or 255), is the smallest or the
    largest, many voxels have it exactly, and it is farther from all others than these are from each other.
    """

    _count: Counter[float] = field(default_factory=Counter)
    _low: float = np.inf
    _high: float = -np.inf

    def look_at(self, voxels: NDArray[np.generic], dtype: np.dtype[Any]) -> None:
        """Count in further voxels of an image whose file has ``dtype``."""
        odd = {v for v in (float(voxels.min()), float(voxels.max())) if looks_written(v, dtype)}
        for value in odd:
            here = voxels == value
            self._count[value] += int(np.count_nonzero(here))
            voxels = voxels[~here]
        if voxels.size:
            self._low, self._high = min(self._low, float(voxels.min())), max(self._high, float(voxels.max()))

    def find(self) -> float | None:
        """Return the value, or None."""
        spread = self._high - self._low
        for value, number in self._count.most_common():
            distance = max(self._low - value, value - self._high)
            if number >= FEWEST and 0 < spread < distance:
                return value
        return None


def find_nodata(odd_values: Iterable[float | None]) -> float | None:
    """Return the odd value of most images of a data set; None where none has one."""
    found = Counter(value for value in odd_values if value is not None)
    return found.most_common(1)[0][0] if found else None


def looks_written(value: float, dtype: np.dtype[Any]) -> bool:
    """Return whether programs write this value, in a file of ``dtype``, where nothing was measured."""
    if dtype.itemsize == 1:
        return False
    nines = f"{abs(value):.0f}"
    is_limit = dtype.kind in "iu" and value in (np.iinfo(dtype).min, np.iinfo(dtype).max) and value != 0
    return (
        is_limit
        or value in (-32768, -32767, 65535)
        or (value == round(value) and len(nines) > 2 and set(nines) == {"9"})
        or (dtype.kind == "f" and abs(value) >= HUGE)
    )
