"""Weak and strong views of a patch.

Both views share one geometry, so that a pseudo-label made on the weak view fits the strong one voxel by voxel. The
strong view adds intensity changes.

Patches come in the unit range [0, 1] of their image, which is what the libraries of ``strong`` expect;
``Intensity`` holds the affine map from there to the z-scores that the network sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.views.geometry import Geometry, draw_geometry
from ssl_seg.data.views.strong import StrongFn, make_strong

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Intensity:
    """Per-channel statistics of one whole image, each (C,)."""

    low: Array
    high: Array
    mean: Array
    std: Array

    def to_unit(self, patch: NDArray[np.generic]) -> Array:
        """Map raw values (C,*P) to [0, 1]."""
        return (patch.astype(np.float32) - _per_channel(self.low, patch)) / self._range(patch)

    def unit_to_zscore(self, unit: Array) -> Array:
        """Map [0, 1] to what ``normalize`` gives for the raw values."""
        raw = unit * self._range(unit) + _per_channel(self.low, unit)
        return ((raw - _per_channel(self.mean, unit)) / _per_channel(self.std, unit)).astype(np.float32)

    def _range(self, patch: NDArray[np.generic]) -> Array:
        return _per_channel(np.where(self.high > self.low, self.high - self.low, 1).astype(np.float32), patch)


def measure_intensity(image: NDArray[np.generic]) -> Intensity:
    """Return the statistics of an image (C,*S); a constant channel gets std 1 so that its z-score is 0."""
    flat = image.reshape(len(image), -1)
    std = flat.std(axis=1, dtype=np.float64)
    return Intensity(
        low=flat.min(axis=1).astype(np.float32),
        high=flat.max(axis=1).astype(np.float32),
        mean=flat.mean(axis=1, dtype=np.float64).astype(np.float32),
        std=np.where(std > 0, std, 1).astype(np.float32),
    )


def normalize(image: NDArray[np.generic]) -> Array:
    """Return the z-scores (C,*S) float32 of a whole image, per channel: the one normalization of this program."""
    stats = measure_intensity(image)
    centered = image.astype(np.float32) - _per_channel(stats.mean, image)
    return (centered / _per_channel(stats.std, image)).astype(np.float32)


@dataclass(frozen=True)
class Views:
    """Makes the views of patches of one dimensionality.

    Args:
        ndim: 2 or 3.
        flips: mirror along random axes.
        rotate90: quarter turns in the (Y, X) plane; half turns only where the patch is not square.
        intensity: strength of the intensity changes of the strong view in [0, 1]; 0 leaves intensities alone.
        cutout: probability of blanked boxes in the strong view.
        rotation: largest angle in the (Y, X) plane, in degrees.
        scale: enlarge, or shrink, by a factor of up to 1 + ``scale``.
        elastic: probability of an elastic deformation.
    """

    ndim: int
    flips: bool = True
    rotate90: bool = True
    intensity: float = 0.5
    cutout: float = 0.3
    rotation: float = 0.0
    scale: float = 0.0
    elastic: float = 0.0
    _strong: StrongFn = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_strong", make_strong(self.ndim, self.intensity, self.cutout))

    def draw_geometry(self, patch_size: Sequence[int], rng: np.random.Generator) -> Geometry:
        """Return a random geometry, for all views of one patch and its target."""
        return draw_geometry(
            patch_size,
            rng,
            flips=self.flips,
            rotate90=self.rotate90,
            rotation=self.rotation,
            scale=self.scale,
            elastic=self.elastic,
        )

    def strengthen(self, unit: Array, rng: np.random.Generator) -> Array:
        """Return the strong view (C,*P) of a patch in [0, 1]; voxels stay where they are."""
        return self._strong(unit, int(rng.integers(2**31)))


def _per_channel(values: Array, like: NDArray[np.generic]) -> Array:
    return values.reshape(-1, *[1] * (like.ndim - 1))
