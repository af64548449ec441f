"""From probabilities to classes: a threshold, and parts that are dropped or filled.

Shapes: K classes, *S spatial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.errors import counted


@dataclass(frozen=True)
class Cleaning:
    """What is done to the mask of a foreground class. Voxels that share a face belong to one part."""

    least_voxels: int = 0
    """Smaller parts are dropped."""
    largest: bool = False
    """All parts but the largest are dropped."""
    fill: bool = False
    """Background that the class encloses becomes the class."""

    def __str__(self) -> str:
        parts = [
            *(["keep the largest part"] if self.largest else []),
            *([f"drop parts below {counted(self.least_voxels, 'voxel')}"] if self.least_voxels else []),
            *(["fill holes"] if self.fill else []),
        ]
        return " and ".join(parts) or "nothing"

    def apply(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the cleaned mask (*S)."""
        if (self.least_voxels > 1 or self.largest) and mask.any():
            parts, _ = ndimage.label(mask)
            sizes = np.bincount(parts.ravel())
            sizes[0] = 0
            kept = sizes >= max(self.least_voxels, 1)
            if self.largest:
                kept &= np.arange(len(sizes)) == sizes.argmax()
            mask = kept[parts]
        return ndimage.binary_fill_holes(mask) if self.fill else mask


@dataclass(frozen=True)
class Decision:
    """Which class a voxel has, by its probabilities."""

    threshold: float | None = None
    """Probability above which a voxel is foreground, for two classes only; None takes the likeliest class."""
    cleaning: tuple[Cleaning, ...] = ()
    """One cleaning per foreground class; empty where no mask is cleaned."""
    source: str = "default"
    """What the threshold was given by."""

    def __call__(self, probs: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the class indices (*S) of probabilities (K,*S)."""
        likeliest = self.threshold is None
        classes: NDArray[np.int64] = probs.argmax(axis=0) if likeliest else (probs[1] > self.threshold).astype(np.int64)
        return clean_classes(classes, self.cleaning)


LIKELIEST = Decision()
"""The likeliest class, as it is."""


def measure_parts(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of voxels (n) of each part of a mask (*S)."""
    parts, _ = ndimage.label(mask)
    sizes: NDArray[np.int64] = np.bincount(parts.ravel())[1:]
    return sizes


def clean_classes(classes: NDArray[Any], cleaning: Sequence[Cleaning]) -> NDArray[Any]:
    """Return class indices (*S) with each foreground class cleaned: what is dropped becomes background, and what is
    filled was background."""
    for label, own in enumerate(cleaning, start=1):
        mask = classes == label
        cleaned = own.apply(mask)
        classes = np.where(mask & ~cleaned, 0, np.where(cleaned & (classes == 0), label, classes)).astype(classes.dtype)
    return classes
