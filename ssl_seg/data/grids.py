"""Compare the grids of two files of one size, by what they say about their places in the world."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.nifti import is_read_as_stored, parse_header
from ssl_seg.data.formats.stored import Geometry
from ssl_seg.errors import DataError

GRID_TOLERANCE = 0.25
"""How far apart, in voxels, voxels of one index may lie: headers are rounded, and below half a voxel they are still the
nearest ones."""

SPACING_TOLERANCE = 0.01
"""Relative difference of voxel sizes that counts."""


class GridMismatchError(DataError):
    """Two files that belong together lie at different places in the world."""


def compare_grids(
    name: str, geometry: Geometry | None, other: str, other_geometry: Geometry | None, shape: Sequence[int]
) -> str | None:
    """Return a doubt that two files of one size lie on each other; None without doubt, or with nothing to compare.

    Only NIfTI, NRRD and MetaImage say for sure where voxels lie. Other formats state sizes and origins, often
    carelessly.

    Args:
        name: the one file, such as a mask.
        geometry: geometry of the one file.
        other: the file that it belongs to, such as the image.
        other_geometry: geometry of the other file.
        shape: (*S) of both.

    Raises:
        GridMismatchError: if both are NIfTI and lie on different grids, or one is NIfTI that is read along other axes
            than it is stored along, and the other does not say where its axes point.
    """
    framed = [g is not None and g.header is not None and g.affine is not None for g in (geometry, other_geometry)]
    if sum(framed) == 1:
        vague, sure, frame = (other, name, geometry) if framed[0] else (name, other, other_geometry)
        if frame is not None and not is_read_as_stored(frame):
            raise GridMismatchError(
                f"{vague} does not say where its axes point, and {sure} is stored along {_name_axes(frame)} and read "
                f"along RAS: they cannot be laid on each other. Save {vague} as NIfTI with the affine of {sure}."
            )
        if shape[0] == shape[-1] and None in (geometry, other_geometry):
            return (
                f"{sure} is stored as (x, y, ...) and {vague} is read as (..., y, x): one may be the other's transpose"
            )
    if geometry is None or other_geometry is None:
        return None
    if framed[0] == framed[1] and geometry.affine is not None and other_geometry.affine is not None:
        text = _describe_difference(np.array(geometry.affine), np.array(other_geometry.affine), shape)
        if text and framed[0]:
            raise GridMismatchError(
                f"{name} and {other} lie on different grids: {text}. Their affines are {_show_affine(geometry)} and "
                f"{_show_affine(other_geometry)}. If their voxels belong together anyway, save {name} with the "
                f"affine of {other}; else resample it onto that grid."
            )
        return text and f"{name} and {other}: {text}"
    sizes = np.array([geometry.spacing, other_geometry.spacing])
    known = (sizes != 1).any(axis=1).all()  # 1 is what programs write that do not know
    if known and (np.abs(sizes[0] / sizes[1] - 1) > SPACING_TOLERANCE).any():
        return f"{name} has voxels of {_show(sizes[0])} and {other} of {_show(sizes[1])}"
    return None


def _describe_difference(affine: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> str | None:
    """Return how two affines differ, from (x, y, z) as read to the world; None if it does not matter."""
    ends = [(0, n - 1) for n in (*shape[::-1], 1)[:3]]
    corners = np.array([(*corner, 1) for corner in product(*ends)], np.float64).T
    distance = float(np.abs(np.linalg.solve(other, affine @ corners) - corners).max())
    if distance <= GRID_TOLERANCE:
        return None
    sizes = [np.linalg.norm(a[:3, :3], axis=0) for a in (affine, other)]
    ways = [a[:3, :3] / size for a, size in zip((affine, other), sizes, strict=True)]
    origins = [a[:3, 3] for a in (affine, other)]
    parts = [f"voxels of the same index are up to {distance:.3g} voxels apart"]
    if not np.allclose(sizes[0], sizes[1], rtol=1e-3):
        parts.append(f"voxels (x, y, z) of {_show(sizes[0])} against {_show(sizes[1])}")
    if (np.abs(origins[0] - origins[1]) > GRID_TOLERANCE * sizes[1].min()).any():
        parts.append(f"origin {_show(origins[0], ', ')} against {_show(origins[1], ', ')}")
    if (angle := float(np.degrees(np.arccos(np.clip((ways[0] * ways[1]).sum(axis=0), -1, 1))).max())) > 0.1:
        parts.append(f"directions that differ by {angle:.3g} degrees")
    return "; ".join(parts)


def _name_axes(geometry: Geometry) -> str:
    from nibabel.orientations import aff2axcodes

    return "".join(aff2axcodes(parse_header(geometry.header or b"").affine))


def _show_affine(geometry: Geometry) -> str:
    """Return the affine as it is in the file."""
    rows = parse_header(geometry.header or b"").affine
    return "[" + "; ".join(_show(row, " ") for row in ([] if rows is None else rows[:3])) + "]"


def _show(numbers: NDArray[Any], between: str = " x ") -> str:
    return between.join(f"{float(n):.4g}" for n in numbers)
