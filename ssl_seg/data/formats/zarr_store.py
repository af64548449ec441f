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
from ssl_seg.data.formats.stored import Geometry, Stored, import_optional, lazy, make_geometry
from ssl_seg.data.reading import Reading

_MAX_DEPTH = 6
"""Levels of groups that are searched for arrays."""

_MAX_CHUNKS = 2**20
"""Chunks of one read. Each takes zarr about 0.1 ms, also where it is not stored: this many are two minutes."""


def list_zarr(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in a group; none for a lone array or an OME image, which need no name."""
    node = _open_node(path, "")
    if hasattr(node, "shape") or _multiscales(node.attrs):
        return ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what else lies in the folder does not matter
        return tuple(sorted(k for k, v in node.members(max_depth=_MAX_DEPTH) if hasattr(v, "shape") and v.ndim >= 2))


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
    return layout, make_geometry(spacing, affine)
