"""Where the voxels of a patch come from: mirrors and quarter turns, rotation, scale and elastic deformation.

A ``GeometricTransform`` is drawn once and applied to image and target alike, so they cannot come apart. Rotation, scale
and deformation are one interpolation; it reads what it needs from around the patch, so that only what lies outside the
image is empty. The same few lines serve 2D and 3D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ssl_seg.config.data import AugmentConfig

Array = NDArray[np.float32]

ELASTIC_CELLS = 4
"""Cells of the control grid of an elastic deformation along each axis of the patch."""
ELASTIC_SHIFT = 0.35
"""Largest shift of a control point in cells. Below 0.40 a cubic B-spline deformation never folds (Choi and Lee 2000:
0.48 in 2D, 0.40 in 3D)."""
SQUARE = 1.5
"""Up to this ratio of their sides in the (Y, X) plane, voxels get quarter turns: nothing is stretched by more."""


@dataclass(frozen=True)
class GeometricTransform:
    """One draw of all geometric changes of a patch.

    ``sources`` (len(P), *P) float32 are the coordinates that the voxels are read from, relative to the corner of the
    box to read, or None where they are those of the patch; then it is mirrored along ``mirrored`` axes and turned
    ``turns`` times by 90 degrees in the (Y, X) plane. The box to read starts at ``offset`` from the patch and has size
    ``size``.
    """

    offset: tuple[int, ...]
    size: tuple[int, ...]
    sources: Array | None
    mirrored: tuple[int, ...]
    turns: int

    def locate(self, start: Sequence[int]) -> tuple[int, ...]:
        """Return where the box to read starts for a patch that starts at ``start``."""
        return tuple(s + o for s, o in zip(start, self.offset, strict=True))

    def move_image(self, box: Array) -> Array:
        """Return the patch (C,*P) out of the box (C,*size), interpolated linearly."""
        return self._turn(self._sample(box, "bilinear")).astype(np.float32, copy=False)

    def move_target(self, box: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the target (*P) out of the box (*size): the class of the nearest voxel."""
        # float32 holds class indices exactly.
        return self._turn(self._sample(box[None].astype(np.float32), "nearest")[0]).astype(np.int64)

    def _sample(self, box: Array, mode: str) -> Array:
        if self.sources is None:
            return box
        last = np.maximum(np.array(self.size, np.float32) - 1, 1).reshape(-1, *[1] * len(self.size))
        grid = np.moveaxis((self.sources * (2 / last) - 1)[::-1], 0, -1)  # in -1 .. 1 and in the order X, Y, Z
        tensor, places = torch.from_numpy(box)[None], torch.from_numpy(np.ascontiguousarray(grid))[None]
        moved = functional.grid_sample(tensor, places, mode, padding_mode="border", align_corners=True)
        sampled: Array = moved[0].numpy()
        return sampled

    def _turn(self, array: Array) -> Array:
        return np.ascontiguousarray(np.rot90(np.flip(array, self.mirrored), self.turns, axes=(-2, -1)))


def draw_geometry(
    patch_size: Sequence[int],
    rng: np.random.Generator,
    augment: AugmentConfig,
    spacing: Sequence[float] | None = None,
) -> GeometricTransform:
    """Return a random geometry of a patch (*P).

    Args:
        patch_size: (*P).
        augment: which changes there are; half turns take the place of quarter turns where these would stretch.
        spacing: size of a voxel (*P), in which shapes keep their angles; None takes it for a cube.
    """
    ndim, voxel = len(patch_size), np.array(spacing or [1.0] * len(patch_size))
    mirrored = tuple(axis for axis in range(-ndim, 0) if augment.flips and rng.random() < 0.5)
    turns = int(rng.integers(4)) if augment.rotate90 else 0
    if patch_size[-1] != patch_size[-2] or voxel[-2:].max() > SQUARE * voxel[-2:].min():
        turns -= turns % 2
    matrix = _draw_matrix(rng, augment, voxel)
    deformed = rng.random() < augment.elastic
    if not deformed and np.array_equal(matrix, np.eye(ndim)):
        return GeometricTransform((0,) * ndim, tuple(patch_size), None, mirrored, turns)

    sources = _transform_grid(patch_size, matrix)
    if deformed:
        sources += _draw_deformation(patch_size, rng)
    flat = sources.reshape(ndim, -1)
    low, high = np.floor(flat.min(axis=1)), np.ceil(flat.max(axis=1))
    sources -= low.reshape(-1, *[1] * ndim)
    return GeometricTransform(_to_ints(low), _to_ints(high - low + 1), sources, mirrored, turns)


def _draw_matrix(rng: np.random.Generator, augment: AugmentConfig, spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix (n,n) from voxels of the patch to those of the image, both counted from the patch's center."""
    ndim, matrix = len(spacing), np.eye(len(spacing))
    # As many numbers are drawn in each case, so that probabilities and ranges change nothing else.
    rotates, scales = rng.random(2) < augment.affine
    *turns, zoom = rng.uniform(-1, 1, 4)
    if rotates:
        # Thick slices are tilted by less: they have nothing to tell about what lies between them.
        tilt = augment.tilt * min(spacing[1:].min() / spacing[0], spacing[0] / spacing[1:].max(), 1)
        planes = [((-2, -1), augment.rotation), ((-3, -2), tilt), ((-3, -1), tilt)][: 1 if ndim == 2 else 3]
        for ((a, b), largest), share in zip(planes, turns, strict=False):
            angle, turn = np.deg2rad(largest * share), np.eye(ndim)
            turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            matrix = matrix @ turn
        matrix = matrix * spacing / spacing[:, None]
    return matrix / (1 + augment.scale) ** zoom if scales else matrix


def _transform_grid(patch_size: Sequence[int], matrix: NDArray[np.float64]) -> Array:
    """Return source coordinates (len(P), *P) of a patch whose voxels are moved around its center."""
    center = (np.asarray(patch_size) - 1) / 2
    axes = [axis - middle for axis, middle in zip(np.ogrid[tuple(map(slice, patch_size))], center, strict=True)]
    sources = np.empty((len(patch_size), *patch_size), np.float32)
    for source, row, middle in zip(sources, matrix, center, strict=True):
        source[...] = sum((weight * axis for weight, axis in zip(row, axes, strict=True)), start=middle)
    return sources


def _draw_deformation(patch_size: Sequence[int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return smooth shifts (len(P), *P) in voxels: a cubic B-spline over random control points."""
    from scipy.interpolate import BSpline

    ndim, knots = len(patch_size), np.arange(-3.0, ELASTIC_CELLS + 4)
    shifts = rng.uniform(-ELASTIC_SHIFT, ELASTIC_SHIFT, (ndim, *[ELASTIC_CELLS + 3] * ndim))
    shifts *= np.asarray(patch_size).reshape(-1, *[1] * ndim) / ELASTIC_CELLS
    for axis, size in enumerate(patch_size, start=1):
        basis = BSpline.design_matrix((np.arange(size) + 0.5) * ELASTIC_CELLS / size, knots, 3).toarray()
        shifts = np.moveaxis(np.tensordot(basis, shifts, axes=(1, axis)), 0, axis)
    return shifts


def _to_ints(values: NDArray[np.floating]) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
