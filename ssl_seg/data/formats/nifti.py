"""NIfTI-1 and NIfTI-2: ``.nii`` is read by box, ``.nii.gz`` decoded whole.

The axes of the file (X, Y, Z[, C]) are transposed to (C, Z, Y, X); a depth of one gives an image (C, Y, X).
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.file_checks import check_claim, check_length
from ssl_seg.data.formats.layout import Box, Layout, lay_out_axes
from ssl_seg.data.formats.stored import Geometry, RawVoxels, Stored, defer, hold, make_geometry

_HEADER_BYTES = {1: 348, 2: 540}
_CHUNK = 2**20

_SILENT = logging.Logger("ssl_seg.nifti")
_SILENT.addHandler(logging.NullHandler())


@dataclass(frozen=True)
class _Header:
    """What a header says; ``scale`` is slope and intercept, None where values are meant as they are."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int
    layout: Layout
    scale: tuple[float, float] | None
    geometry: Geometry | None

    @property
    def end(self) -> int:
        return self.offset + prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Scaled:
    """Voxels times slope plus intercept; float32 holds them exactly enough where the file has 16 bits or less."""

    read: Callable[[Box], NDArray[Any]]
    slope: float
    intercept: float
    dtype: np.dtype[Any]

    def __call__(self, selection: Box) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused by name later
            return (self.read(selection) * self.slope + self.intercept).astype(self.dtype)


def open_nifti(path: Path) -> Stored:
    """Return an opened NIfTI file, scaled by its slope and intercept.

    Raises:
        ValueError: or an error of the decoder, if the file is damaged.
    """
    if path.suffix.lower() == ".gz":
        header, voxels = _decompress(path)
        return hold(str(path), _scale_all(voxels, header), header.layout, header.geometry)
    with path.open("rb") as file:
        header = _read_header(file)
    raw = RawVoxels(path, header.offset, header.dtype, header.shape, "F")
    raw.check()
    if header.scale is None:
        return defer(str(path), raw, header.layout, header.shape, header.dtype, header.geometry)
    scaled = _Scaled(raw, *header.scale, _scaled_dtype(header))
    return defer(str(path), scaled, header.layout, header.shape, scaled.dtype, header.geometry)


def read_nifti_geometry(path: Path) -> Geometry | None:
    """Return spacing and affine, from the header alone; None where they are not usable.

    Raises:
        ValueError: or an error of the decoder, if the file is damaged.
    """
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        return _read_header(cast(BinaryIO, file)).geometry


def write_nifti(path: Path, array: NDArray[np.generic], geometry: Geometry | None, *, compressed: bool) -> None:
    """Write (*S), with spacing and affine; without an affine, the axes lie along those of the world."""
    import nibabel
    from nibabel.affines import voxel_sizes

    volume = array.T if array.ndim == 3 else array.T[..., None]
    spacing = np.ones(3) if geometry is None else np.array([*geometry.spacing[::-1], 1.0])[:3]
    affine = np.diag([*spacing, 1.0])
    if geometry is not None and geometry.affine is not None:
        affine = np.array(geometry.affine)
        spacing[array.ndim :] = voxel_sizes(affine)[array.ndim :]
    kind = nibabel.Nifti1Image if max(volume.shape) < 2**15 else nibabel.Nifti2Image
    image = kind(volume, affine)
    image.header.set_zooms(spacing)
    with path.open("wb") as file:
        if not compressed:
            image.to_stream(file)
            return
        # Level 1, as nibabel does: level 9 takes ten times as long. Without name and time, equal masks are equal files.
        with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            image.to_stream(packed)


def _read_header(file: BinaryIO) -> _Header:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    block = file.read(_HEADER_BYTES[1])
    version = 2 if block[4:7] == b"n+2" else 1
    block += file.read(_HEADER_BYTES[version] - len(block))
    if len(block) < _HEADER_BYTES[version]:
        raise ValueError("it ends inside its header, so it is truncated")
    if version == 1 and block[344:347] != b"n+1":
        raise ValueError("its header is not that of a NIfTI file that holds voxels (.hdr and .img pairs are not read)")
    try:
        header = (Nifti2Header if version == 2 else Nifti1Header)(block, check=False)
        zooms = np.abs(header.get_zooms())  # before the repair, which turns an unknown distance of 0 into 1
        header.check_fix(_SILENT, logging.CRITICAL)
        shape = tuple(int(n) for n in header.get_data_shape())
        if min(shape, default=0) < 1:
            raise ValueError(f"its header claims the shape {shape}")
        layout = lay_out_axes(shape, "XYZCCCC"[: len(shape)])
        with np.errstate(invalid="ignore"):
            geometry = make_geometry(tuple(zooms[list(layout.spatial)].tolist()), header.get_best_affine())
        scale = header.get_slope_inter()
        offset = int(header.get_data_offset())
        dtype = header.get_data_dtype()
    except HeaderDataError as error:
        raise ValueError(f"its header is damaged: {error}") from error
    if offset < len(block):
        raise ValueError(f"its header says that the voxels start at byte {offset}, inside the header")
    scaled = None if scale[0] is None or tuple(scale) == (1.0, 0.0) else (float(scale[0]), float(scale[1]))
    return _Header(shape, dtype, offset, layout, scaled, geometry)


def _decompress(path: Path) -> tuple[_Header, NDArray[Any]]:
    """Return header and voxels as stored; the checksum at the end is compared."""
    stored = path.stat().st_size
    with gzip.open(path) as file:
        header = _read_header(cast(BinaryIO, file))
        check_claim(header.end, stored)
        file.seek(0)
        buffer = bytearray(header.end)
        filled = 0
        while chunk := file.read(min(_CHUNK, header.end - filled)):
            buffer[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        check_length(header.end, filled)
        while file.read(_CHUNK):
            pass
    voxels = np.frombuffer(buffer, header.dtype, prod(header.shape), header.offset)
    return header, voxels.reshape(header.shape, order="F")


def _scaled_dtype(header: _Header) -> np.dtype[Any]:
    small = header.dtype.itemsize <= 2 or header.dtype == np.dtype(np.float32)
    return np.dtype(np.float32 if small else np.float64)


def _scale_all(voxels: NDArray[Any], header: _Header) -> NDArray[Any]:
    if header.scale is None:
        return voxels
    return _Scaled(voxels.__getitem__, *header.scale, _scaled_dtype(header))((slice(None),) * voxels.ndim)
