"""Weak and strong views of a patch.

Both views share one geometry (mirrors, quarter turns), so that a pseudo-label made on the weak view fits the strong
one voxel by voxel. The strong view adds intensity changes: albumentations in 2D, MONAI in 3D.

Patches come in the unit range [0, 1] of their image, which is what both libraries expect; ``Intensity`` holds the
affine map from there to the z-scores that the network sees.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
StrongFn = Callable[[Array, int], Array]


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
        intensity: strength of the strong view in [0, 1]; 0 leaves intensities alone.
        cutout: probability of blanked boxes in the strong view.
    """

    ndim: int
    flips: bool = True
    rotate90: bool = True
    intensity: float = 0.5
    cutout: float = 0.3
    _strong: StrongFn = field(init=False, repr=False)

    def __post_init__(self) -> None:
        make = _make_albumentations if self.ndim == 2 else _make_monai
        object.__setattr__(self, "_strong", make(self.intensity, self.cutout))

    def apply_geometry(
        self, image: Array, target: NDArray[np.integer] | None, rng: np.random.Generator
    ) -> tuple[Array, NDArray[np.integer] | None]:
        """Return image (C,*P) and target (*P) under one random mirror and quarter turn."""
        axes = [a for a in range(-self.ndim, 0) if self.flips and rng.random() < 0.5]
        turns = int(rng.integers(4)) if self.rotate90 else 0
        if image.shape[-1] != image.shape[-2]:
            turns -= turns % 2

        def turn(array: NDArray[np.generic]) -> NDArray[np.generic]:
            return np.ascontiguousarray(np.rot90(np.flip(array, tuple(axes)), turns, axes=(-2, -1)))

        return turn(image).astype(np.float32), None if target is None else turn(target).astype(target.dtype)

    def strengthen(self, unit: Array, rng: np.random.Generator) -> Array:
        """Return the strong view (C,*P) of a patch in [0, 1]; voxels stay where they are."""
        return self._strong(unit, int(rng.integers(2**31)))


def _make_albumentations(strength: float, cutout: float) -> StrongFn:
    os.environ.setdefault(
        "NO_ALBUMENTATIONS_UPDATE", "1"
    )  # it asks the network for a newer version on import otherwise
    import albumentations as alb

    compose = alb.Compose(
        [
            alb.RandomBrightnessContrast(0.4 * strength, 0.6 * strength, brightness_by_max=True, p=0.8),
            alb.RandomGamma((100 - 60 * strength, 100 + 100 * strength), p=0.5),
            alb.GaussNoise(std_range=(0.0, 0.15 * strength), p=0.5),
            alb.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 0.1 + 3 * strength), p=0.3),
            alb.CoarseDropout(
                num_holes_range=(1, 3),
                hole_height_range=(0.1, 0.3),
                hole_width_range=(0.1, 0.3),
                fill="random_uniform",
                p=cutout,
            ),
        ]
    )
    return partial(_run_albumentations, compose)


def _run_albumentations(compose: Any, unit: Array, seed: int) -> Array:
    # compose.set_random_seed gives every transform the same draws, so that all apply or none; here they share a stream.
    drawn, chosen = np.random.default_rng(seed), random.Random(seed)
    for transform in compose.transforms:
        transform.set_random_state(drawn, chosen)
    changed = compose(image=np.moveaxis(unit, 0, -1).copy())["image"]
    return np.ascontiguousarray(np.moveaxis(changed, -1, 0))


def _make_monai(strength: float, cutout: float) -> StrongFn:
    from monai import transforms as mt

    steps = [
        mt.RandScaleIntensity(factors=0.4 * strength, prob=0.8),
        mt.RandShiftIntensity(offsets=0.2 * strength, prob=0.8),
        mt.RandAdjustContrast(gamma=(1 - 0.6 * strength, 1 + strength), prob=0.5),
        mt.RandGaussianNoise(std=0.15 * strength, prob=0.5),
        mt.RandGaussianSmooth(*[(0.1, 0.1 + 1.5 * strength)] * 3, prob=0.3),
    ]
    return partial(_run_monai, steps, cutout)


def _run_monai(steps: list[Any], cutout: float, unit: Array, seed: int) -> Array:
    from monai import transforms as mt

    smallest, largest = ([max(1, size // part) for size in unit.shape[1:]] for part in (10, 3))
    blank = mt.RandCoarseDropout(1, smallest, fill_value=(0.0, 1.0), max_holes=3, max_spatial_size=largest, prob=cutout)
    compose = mt.Compose([*steps, blank])
    compose.set_random_state(seed)
    return np.asarray(compose(unit), dtype=np.float32)


def _per_channel(values: Array, like: NDArray[np.generic]) -> Array:
    return values.reshape(-1, *[1] * (like.ndim - 1))
