"""Intensity changes and blanked boxes of the strong view; no voxel moves.

albumentations makes them in 2D and MONAI in 3D. The low resolution is MONAI's in both: that of albumentations rounds
the image to 8 bits.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
StrongFn = Callable[[Array, int], Array]
"""A patch (C,*P) in the unit range and a seed -> its strong view."""


def make_strong(ndim: int, strength: float, cutout: float) -> StrongFn:
    """Return the function that makes strong views of 2D or 3D patches.

    Args:
        ndim: 2 or 3.
        strength: of brightness, contrast, gamma, noise, blur and low resolution, in [0, 1]; 0 leaves values alone.
        cutout: probability of blanked boxes.
    """
    return _make_albumentations(strength, cutout) if ndim == 2 else _make_monai(strength, cutout)


def _make_coarse(strength: float, upsample_mode: str) -> Any:
    from monai import transforms as mt

    # As in nnU-Net a quarter of the patches, down to about half the resolution. By "area", because MONAI's default,
    # the nearest voxel, would shift the content by up to half a voxel.
    return mt.RandSimulateLowResolution(
        prob=0.25, downsample_mode="area", upsample_mode=upsample_mode, zoom_range=(1 - 0.45 * strength, 1.0)
    )


def _make_albumentations(strength: float, cutout: float) -> StrongFn:
    # On import it asks the network for a newer version otherwise.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as alb

    changes = [
        alb.RandomBrightnessContrast(0.4 * strength, 0.6 * strength, brightness_by_max=True, p=0.8),
        alb.RandomGamma((100 - 60 * strength, 100 + 100 * strength), p=0.5),
        alb.GaussNoise(std_range=(0.0, 0.15 * strength), p=0.5),
        alb.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 0.1 + 3 * strength), p=0.3),
    ]
    blank = alb.CoarseDropout(
        num_holes_range=(1, 3),
        hole_height_range=(0.1, 0.3),
        hole_width_range=(0.1, 0.3),
        fill="random_uniform",
        p=cutout,
    )
    coarse = [_make_coarse(strength, "bilinear")]
    return partial(_run_albumentations, *((coarse, [*changes, blank]) if strength else ([], [blank])))


def _run_albumentations(coarse: list[Any], changes: list[Any], unit: Array, seed: int) -> Array:
    unit = _run_steps(coarse, unit, seed) if coarse else unit
    # A Compose gives every transform the same draws, so that all apply or none; here they share a stream.
    drawn, chosen = np.random.default_rng(seed), random.Random(seed)
    image = np.moveaxis(unit, 0, -1).copy()
    for transform in changes:
        transform.set_random_state(drawn, chosen)
        image = transform(image=image)["image"]
    return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def _make_monai(strength: float, cutout: float) -> StrongFn:
    from monai import transforms as mt

    changes = [
        _make_coarse(strength, "trilinear"),
        mt.RandScaleIntensity(factors=0.4 * strength, prob=0.8),
        mt.RandShiftIntensity(offsets=0.2 * strength, prob=0.8),
        mt.RandAdjustContrast(gamma=(1 - 0.6 * strength, 1 + strength), prob=0.5),
        mt.RandGaussianNoise(std=0.15 * strength, prob=0.5),
        mt.RandGaussianSmooth(*[(0.1, 0.1 + 1.5 * strength)] * 3, prob=0.3),
    ]
    return partial(_run_monai, changes if strength else [], cutout)


def _run_monai(changes: list[Any], cutout: float, unit: Array, seed: int) -> Array:
    from monai import transforms as mt

    smallest, largest = ([max(1, size // part) for size in unit.shape[1:]] for part in (10, 3))
    blank = mt.RandCoarseDropout(1, smallest, fill_value=(0.0, 1.0), max_holes=3, max_spatial_size=largest, prob=cutout)
    return _run_steps([*changes, blank], unit, seed)


def _run_steps(steps: list[Any], unit: Array, seed: int) -> Array:
    from monai import transforms as mt

    # A copy, because MONAI blanks boxes in place: the weak view would have them too.
    return np.asarray(mt.Compose(steps).set_random_state(seed)(unit.copy()), dtype=np.float32)
