"""Zarr (versions 2 and 3) and OME-Zarr (0.1 to 0.5) folders: arrays are read by box, an OME image at its full size.

No size is compared with the stored bytes: chunks that hold the fill value are not stored, so an empty mask has none.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.layout import AxisLayout, Box, lay_out_array, lay_out_axes
from ssl_seg.data.formats.stored import AnyArray, Geometry, LazyArray, Stored, import_optional, lazy, make_geometry
from ssl_seg.data.reading import Reading

UNITS = {"mm": "millimeter", "µm": "micrometer", "nm": "nanometer"}
"""Units of OME-TIFF, and their names in OME-Zarr."""

_CHUNK = {2: (512, 512), 3: (64, 128, 128)}
_SMALLEST_LEVEL = 512
"""Voxels along the longest axis from which a level of half the size is written beside it."""

_MAX_DEPTH = 6
"""Levels of groups that are searched for arrays."""

_MAX_CHUNKS = 2**20
"""Chunks of one read. Each takes zarr about 0.1 ms, also where it is not stored: this many are two minutes."""


def list_zarr(path: Path) -> Mapping[str, None]:
    """Return the names of the arrays and OME images in a group; none for a lone one, which needs no name."""
    node = _open_node(path, "")
    if hasattr(node, "shape") or _multiscales(node.attrs):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what else lies in the folder does not matter
        members = dict(node.members(max_depth=_MAX_DEPTH))
    images = [name for name, member in members.items() if not hasattr(member, "shape") and _multiscales(member.attrs)]
    inside = tuple(f"{name}/" for name in images)  # levels and labels of an image are none of their own
    arrays = [name for name, member in members.items() if hasattr(member, "shape") and member.ndim >= 2]
    return dict.fromkeys(sorted(name for name in (*images, *arrays) if not name.startswith(inside)))


def open_zarr(path: Path, key: str, reading: Reading) -> Stored:
    """Return an opened array, or the first level of an OME image; an empty ``key`` is the folder itself.

    Raises:
        ValueError: or another error of zarr, if the folder is damaged or holds no image there.
        DataError: if zarr is not installed.
    """
    location = f"{path}::{key}" if key else str(path)
    node = _open_node(path, key)
    if hasattr(node, "shape"):
        layout, notes = lay_out_array(node.shape, reading)
        read = partial(_fetch, path, key)
        return lazy(location, read, layout, node.shape, node.dtype, chunks=node.chunks, notes=notes)
    scales = _multiscales(node.attrs)
    if not scales:
        raise ValueError("it is a group without an OME image; name an array in it")
    name = scales[0]["datasets"][0]["path"]
    level = node[name]
    layout, geometry = _read_ome(scales[0], level.shape, reading)
    read = partial(_fetch, path, f"{key}/{name}" if key else name)
    return lazy(location, read, layout, level.shape, level.dtype, geometry, chunks=level.chunks)


def write_zarr(path: Path, array: AnyArray, geometry: Geometry | None) -> None:
    """Write (*S) as OME-Zarr 0.4 with levels of every second voxel of the one before."""
    zarr = import_optional("zarr", "zarr", str(path))
    group = zarr.open_group(path, mode="w", zarr_format=2)
    ndim, source = array.ndim, array
    levels: list[dict[str, Any]] = []
    scale = [1.0] * ndim if geometry is None else list(geometry.spacing)
    while True:
        name, chunks = str(len(levels)), tuple(map(min, _CHUNK[ndim], source.shape))
        level = group.create_array(
            name,
            shape=source.shape,
            chunks=chunks,
            dtype=source.dtype,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        for first in range(0, source.shape[0], chunks[0]):
            level[first : first + chunks[0]] = source[first : first + chunks[0]]
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [size * 2 ** len(levels) for size in scale]}]
        if geometry is not None and geometry.affine is not None:
            transforms.append(
                {"type": "translation", "translation": [geometry.affine[n][3] for n in range(ndim)][::-1]}
            )
        levels.append({"path": name, "coordinateTransformations": transforms})
        if max(source.shape) < _SMALLEST_LEVEL or min(source.shape) < 2:
            break
        source = _halve(level)
    unit = UNITS.get("" if geometry is None else geometry.unit or "")
    axes = [{"name": axis, "type": "space", **({} if unit is None else {"unit": unit})} for axis in "zyx"[-ndim:]]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]


def _halve(level: Any) -> LazyArray:
    """Return every second voxel of an array of a store."""
    shape = tuple(-(-size // 2) for size in level.shape)
    step = (slice(None, None, 2),) * len(shape)

    def read(rows: slice) -> NDArray[Any]:
        first, last, _ = rows.indices(shape[0])
        return np.asarray(level[2 * first : 2 * last])[step]

    return LazyArray(shape, np.dtype(level.dtype), read)


def _fetch(path: Path, key: str, selection: Box) -> NDArray[Any]:
    node = _open_node(path, key)
    touched = prod((p.stop - 1) // c - p.start // c + 1 for p, c in zip(selection, node.chunks, strict=True))
    if touched > _MAX_CHUNKS:
        raise ValueError(f"{touched:,} chunks {node.chunks} would be read at once; store it in larger chunks")
    return np.asarray(node[selection])


def _open_node(path: Path, key: str) -> Any:
    """Return an array or a group."""
    return import_optional("zarr", "zarr", str(path)).open(path, path=key, mode="r")


def _multiscales(attributes: Mapping[str, Any]) -> Sequence[Any]:
    """Return the images of an OME group; version 0.5 has them under ``ome``."""
    found: Sequence[Any] = attributes.get("ome", attributes).get("multiscales", ())
    return found


def _read_ome(image: Mapping[str, Any], shape: tuple[int, ...], reading: Reading) -> tuple[AxisLayout, Geometry | None]:
    """Return layout and spacing of the first level."""
    named = image.get("axes") or "tczyx"
    axes = "".join(axis if isinstance(axis, str) else axis["name"] for axis in named).upper()
    if len(axes) != len(shape) or not set(axes) <= set("TCZYX"):
        raise ValueError(f"its axes {axes} do not fit its shape {shape}")
    layout = lay_out_axes(shape, axes) if reading.axes is None else lay_out_array(shape, reading)[0]
    level = image["datasets"][0].get("coordinateTransformations", ())
    scale, origin = np.ones(len(shape)), np.zeros(len(shape))
    transforms = [*level, *image.get("coordinateTransformations", ())]  # applied one after the other
    for transform in transforms:
        if transform.get("type") == "scale":
            factors = np.asarray(transform["scale"], np.float64)
            scale, origin = scale * factors, origin * factors
        elif transform.get("type") == "translation":
            origin = origin + np.asarray(transform["translation"], np.float64)
    if not any(t.get("type") == "scale" for t in transforms):
        return layout, None
    spacing = tuple(scale[axis] for axis in layout.spatial)
    affine = np.diag([*spacing[::-1], 1.0, 1.0][:4])
    affine[: len(spacing), 3] = origin[list(layout.spatial)][::-1]
    spatial = [named[axis] for axis in layout.spatial]
    units = {None if isinstance(axis, str) else axis.get("unit") for axis in spatial}
    unit = next((short for short, name in UNITS.items() if units == {name}), None)
    return layout, make_geometry(spacing, affine, unit=unit)
