"""Where the voxels of a patch come from: mirrors and quarter turns, rotation, scale and elastic deformation.

A ``Geometry`` is drawn once and applied to image and target alike, so they cannot come apart. Rotation, scale and
deformation are one interpolation; it reads what it needs from around the patch, so that only what lies outside the
image is empty. The same few lines of scipy serve 2D and 3D; MONAI's 3D deformation would smooth a whole field of noise
for each patch, and albumentations has no 3D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

ELASTIC_CELLS = 4
"""Cells of the control grid of an elastic deformation along each axis of the patch."""
ELASTIC_SHIFT = 0.35
"""Largest shift of a control point in cells. Below 0.40 a cubic B-spline deformation never folds (Choi and Lee 2000:
0.48 in 2D, 0.40 in 3D)."""


@dataclass(frozen=True)
class Geometry:
    """One draw of all geometric changes of a patch.

    ``sources`` (len(P), *P) are the coordinates that the voxels are read from, relative to the corner of the box to
    read, or None where they are those of the patch; then it is mirrored along ``mirrored`` axes and turned ``turns``
    times by 90 degrees in the (Y, X) plane. The box to read starts at ``offset`` from the patch and has size ``size``.
    """

    offset: tuple[int, ...]
    size: tuple[int, ...]
    sources: NDArray[np.float64] | None
    mirrored: tuple[int, ...]
    turns: int

    def locate(self, start: Sequence[int]) -> tuple[int, ...]:
        """Return where the box to read starts for a patch that starts at ``start``."""
        return tuple(s + o for s, o in zip(start, self.offset, strict=True))

    def move_image(self, box: Array) -> Array:
        """Return the patch (C,*P) out of the box (C,*size), interpolated linearly."""
        from scipy.ndimage import map_coordinates

        if self.sources is not None:
            box = np.stack([map_coordinates(channel, self.sources, order=1, mode="nearest") for channel in box])
        return self._turn(box).astype(np.float32, copy=False)

    def move_target(self, box: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the target (*P) out of the box (*size): the class of the nearest voxel."""
        from scipy.ndimage import map_coordinates

        if self.sources is not None:
            box = map_coordinates(box, self.sources, order=0, mode="nearest")
        return self._turn(box).astype(np.int64, copy=False)

    def _turn(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.ascontiguousarray(np.rot90(np.flip(array, self.mirrored), self.turns, axes=(-2, -1)))


def draw_geometry(
    patch_size: Sequence[int],
    rng: np.random.Generator,
    *,
    flips: bool = True,
    rotate90: bool = True,
    rotation: float = 0.0,
    scale: float = 0.0,
    elastic: float = 0.0,
) -> Geometry:
    """Return a random geometry of a patch (*P).

    Args:
        patch_size: (*P).
        rng: source of the draw.
        flips: mirror along random axes.
        rotate90: quarter turns in the (Y, X) plane; half turns only where the patch is not square.
        rotation: largest angle in the (Y, X) plane, in degrees.
        scale: enlarge, or shrink, by a factor of up to 1 + ``scale``.
        elastic: probability of an elastic deformation.
    """
    ndim = len(patch_size)
    mirrored = tuple(axis for axis in range(-ndim, 0) if flips and rng.random() < 0.5)
    turns = int(rng.integers(4)) if rotate90 else 0
    if patch_size[-1] != patch_size[-2]:
        turns -= turns % 2
    deformed = rng.random() < elastic
    if not (rotation or scale or deformed):
        return Geometry((0,) * ndim, tuple(patch_size), None, mirrored, turns)

    angle = np.deg2rad(rng.uniform(-rotation, rotation))
    factor = (1 + scale) ** rng.uniform(-1, 1)
    sources = _rotate_and_scale(patch_size, angle, factor)
    if deformed:
        sources += _draw_deformation(patch_size, rng)
    flat = sources.reshape(ndim, -1)
    low, high = np.floor(flat.min(axis=1)), np.ceil(flat.max(axis=1))
    sources -= low.reshape(-1, *[1] * ndim)
    return Geometry(_to_ints(low), _to_ints(high - low + 1), sources, mirrored, turns)


def _rotate_and_scale(patch_size: Sequence[int], angle: float, factor: float) -> NDArray[np.float64]:
    """Return source coordinates (len(P), *P) of a patch rotated about its center and enlarged by ``factor``."""
    ndim = len(patch_size)
    center = (np.asarray(patch_size) - 1).reshape(-1, *[1] * ndim) / 2
    matrix = np.eye(ndim)
    matrix[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    rotated: NDArray[np.float64] = np.tensordot(matrix / factor, np.indices(patch_size) - center, axes=1) + center
    return rotated


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
