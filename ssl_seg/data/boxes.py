"""Arrays that are read from their files box by box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.stored import Stored


@dataclass(frozen=True)
class BoxReader:
    """An array that is read from its file box by box: ``reader[:, a:b, c:d]`` reads that box."""

    stored: Stored
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    convert: Callable[[NDArray[Any]], NDArray[Any]]
    beside: Stored | None = None
    """What ``convert`` gets the same box of as well."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Return ``array[key]``; the key ends in one slice for each spatial axis."""
        return self.convert(*(part.read(key[1:]) for part in (self.stored, self.beside) if part is not None))


Voxels = NDArray[Any] | BoxReader
"""An array in memory, or one that is read by box."""
