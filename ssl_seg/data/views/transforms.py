"""From raw values to the z-scores that the network sees: the one normalization of this program.

Patches are cut and moved in the unit range [0, 1] of their image; ``Intensity`` holds the affine map from there to
z-scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

MEASURED_VOXELS = 2**18
"""Voxels that are measured in one go: ten times as fast in parts that fit into the cache."""


@dataclass(frozen=True)
class Intensity:
    """Per-channel statistics of one whole image, each (C,) float64; NaN has no part in them and becomes the mean.

    They are subtracted from values before these become float32, so that a small contrast on a large offset survives.
    ``clips``: values below ``low`` and above ``high`` become these.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    clips: bool = False

    def to_unit(self, patch: NDArray[np.generic]) -> Array:
        """Map raw values (C,*P) to [0, 1]."""
        unit = _scale(patch, self.low, self._range)
        if self.clips:
            unit.clip(0, 1, out=unit)
        return _fill(unit, self.mean_unit)

    def unit_to_zscore(self, unit: Array) -> Array:
        """Map [0, 1] to what ``normalize`` gives for the raw values."""
        scale, offset = self._range / self.std, (self.low - self.mean) / self.std
        scaled: Array = unit * _per_channel(scale.astype(np.float32), unit)
        scaled += _per_channel(offset.astype(np.float32), unit)
        return scaled

    def to_zscore(self, image: NDArray[np.generic]) -> Array:
        """Map raw values (C,*P) to z-scores; NaN becomes 0."""
        if self.clips:
            return self.unit_to_zscore(self.to_unit(image))
        return _fill(_scale(image, self.mean, self.std), np.zeros(len(image), np.float32))

    @property
    def mean_unit(self) -> Array:
        """The mean of each channel in the unit range, which becomes z-score 0."""
        return ((self.mean - self.low) / self._range).astype(np.float32)

    @property
    def _range(self) -> NDArray[np.float64]:
        return np.where(self.high > self.low, self.high - self.low, 1)


def measure_intensity(image: NDArray[np.generic]) -> Intensity:
    """Return the statistics of an image (C,*S); a constant channel gets std 1 so that its z-score is 0."""
    rows = max(1, MEASURED_VOXELS // prod(image.shape[2:]))
    parts = ((c, own[first : first + rows]) for c, own in enumerate(image) for first in range(0, len(own), rows))
    return measure_parts(parts, len(image))


def make_window(window: Sequence[float], channels: int) -> Intensity:
    """Return the statistics that stand for an image where intensities have a fixed meaning, as in CT.

    They are those of values that are spread evenly over the window [low, high]: it becomes -1.73 .. 1.73.
    """
    low, high = (np.full(channels, float(limit)) for limit in window)
    return Intensity(low, high, (low + high) / 2, (high - low) / 12**0.5, clips=True)


def measure_parts(parts: Iterable[tuple[int, NDArray[np.generic]]], channels: int) -> Intensity:
    """Return the statistics of an image that comes in parts: pairs of a channel's index and some of its voxels."""
    count, mean, squares = (np.zeros(channels) for _ in range(3))
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for c, part in parts:
        voxels = part.astype(np.float64)
        if part.dtype.kind == "f":
            voxels = voxels[~np.isnan(voxels)]
        if not voxels.size:
            continue
        low[c], high[c] = min(low[c], voxels.min()), max(high[c], voxels.max())
        # Means and squared deviations of two parts, put together (Chan, Golub and LeVeque 1983).
        own = voxels.mean()
        total, delta = count[c] + voxels.size, own - mean[c]
        squares[c] += np.square(voxels - own).sum() + delta**2 * count[c] * voxels.size / total
        mean[c] += delta * voxels.size / total
        count[c] = total
    std = np.sqrt(squares / np.maximum(count, 1))
    low, high = (np.where(count > 0, limit, 0) for limit in (low, high))
    return Intensity(low, high, np.clip(mean, low, high), np.where((high > low) & (std > 0), std, 1))


def normalize(image: NDArray[np.generic], window: Sequence[float] | None = None) -> Array:
    """Return the z-scores (C,*S) float32 of a whole image, per channel: the one normalization of this program.

    Args:
        image: raw values; NaN, where nothing was measured, becomes 0.
        window: see ``make_window``; None takes the statistics of the image.
    """
    stats = measure_intensity(image) if window is None else make_window(window, len(image))
    return stats.to_zscore(image)


def find_gaps(image: NDArray[np.generic]) -> NDArray[np.bool_] | None:
    """Return where (*S) no channel of an image (C,*S) has data; None where all have some."""
    if image.dtype.kind != "f":
        return None
    gaps: NDArray[np.bool_] = np.isnan(image).all(axis=0)
    return gaps if gaps.any() else None


def blacken_gaps(image: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return an image, to be shown, with its smallest value in place of NaN."""
    gaps = np.isnan(image) if image.dtype.kind == "f" else np.zeros(1, bool)
    return np.where(gaps, 0 if gaps.all() else np.nanmin(image), image) if gaps.any() else image


def _scale(image: NDArray[Any], offset: NDArray[np.float64], scale: NDArray[np.float64]) -> Array:
    """Return ``(image - offset) / scale`` per channel; the subtraction is in float32 where that holds the image."""
    dtype = np.promote_types(image.dtype, np.float32)
    near = offset.astype(dtype)
    rest = offset - near  # what ``near`` lacks of the offset; the difference of image and ``near`` is next to exact
    centered: NDArray[np.floating] = np.subtract(image, _per_channel(near, image), dtype=dtype)
    centered -= _per_channel(rest, image).astype(dtype)
    centered /= _per_channel(scale, image).astype(dtype)
    return centered.astype(np.float32, copy=False)


def _fill(image: Array, values: Array) -> Array:
    """Put the ``values`` (C,) of the channels in place of NaN."""
    gaps = np.isnan(image)
    if gaps.any():
        np.copyto(image, _per_channel(values, image), where=gaps)
    return image


def _per_channel(values: NDArray[np.floating], like: NDArray[np.generic]) -> NDArray[np.floating]:
    return values.reshape(-1, *[1] * (like.ndim - 1))
