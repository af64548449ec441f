"""Images and masks on another voxel grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.errors import DataError

Voxel = TypeVar("Voxel", bound=np.generic)


MOST_TIMES = 100
"""Voxels that are larger or smaller by more than that are in another unit: mm and µm differ by 1000."""


def compute_resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]
) -> tuple[int, ...]:
    """Return the number of voxels per axis that cover the same extent at another voxel size; at least 1.

    Raises:
        DataError: if the two sizes can hardly be in one unit.
    """
    ratio = max(max(old / new, new / old) for old, new in zip(spacing, new_spacing, strict=True))
    if ratio > MOST_TIMES:
        sizes = [" x ".join(f"{size:.4g}" for size in own) for own in (spacing, new_spacing)]
        raise DataError(
            f"voxels of {sizes[0]} cannot be resampled to {sizes[1]}: they differ {ratio:.0f} times, so one size is in "
            "another unit. Give that of the images in the unit of data.resample_to: --spacing, or data.spacing."
        )
    extents = zip(shape, spacing, new_spacing, strict=True)
    return tuple(max(1, round(count * old / new)) for count, old, new in extents)


def find_shape(
    shape: Sequence[int], spacing: Sequence[float] | None, new_spacing: Sequence[float], location: str
) -> tuple[int, ...]:
    """Return ``compute_resampled_shape`` for an image.

    Raises:
        DataError: if its spacing is not known.
    """
    if spacing is None:
        raise DataError(
            f"{location} does not say how large its voxels are, so it cannot be resampled. "
            "Give data.spacing, or leave data.resample_to unset."
        )
    return compute_resampled_shape(shape, spacing, new_spacing)


def resample_image(image: NDArray[np.generic], shape: Sequence[int]) -> NDArray[np.floating]:
    """Return an image, or probabilities, (C, *S) on a grid of ``shape`` that covers the same extent.

    Linear interpolation; an axis that gets coarser is smoothed first (sigma = (ratio - 1) / 2 voxels, which is what
    scikit-image uses), or details finer than the new grid would come back as false structure. The type is float32, or
    float64 where float32 would round the values. NaN stays where the nearest voxel is NaN, and reaches no other.
    """
    ratios = [old / new for old, new in zip(image.shape[1:], shape, strict=True)]
    sigmas = [max(0.0, (ratio - 1) / 2) for ratio in ratios]
    channels = image.astype(np.promote_types(image.dtype, np.float32))
    return np.stack([_resample_channel(channel, shape, sigmas) for channel in channels])


def _resample_channel(
    channel: NDArray[np.floating], shape: Sequence[int], sigmas: Sequence[float]
) -> NDArray[np.floating]:
    gaps = np.isnan(channel)
    if not gaps.any():
        return _zoom(ndimage.gaussian_filter(channel, sigmas), shape, order=1)
    if gaps.all():
        return np.full(shape, np.nan, channel.dtype)
    filled = np.where(gaps, channel[~gaps].mean(), channel)
    zoomed = _zoom(ndimage.gaussian_filter(filled, sigmas), shape, order=1)
    return np.where(resample_labels(gaps.astype(np.uint8), shape) > 0, np.nan, zoomed)


def resample_labels(labels: NDArray[np.integer], shape: Sequence[int]) -> NDArray[np.integer]:
    """Return a mask (*S) on a grid of ``shape``: each voxel gets the value of the nearest one."""
    return _zoom(labels, shape, order=0)


def _zoom(array: NDArray[Voxel], shape: Sequence[int], order: int) -> NDArray[Voxel]:
    factors = [new / old for old, new in zip(array.shape, shape, strict=True)]
    # grid_mode: voxels are cells and the extents of both grids coincide, as in every image viewer.
    zoomed: NDArray[Voxel] = ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)
    return zoomed
