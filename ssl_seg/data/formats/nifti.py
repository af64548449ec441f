"""NIfTI-1 and NIfTI-2: ``.nii`` is read by box, ``.nii.gz`` decoded whole, in memory or into a scratch folder.

Voxels come as (C, Z, Y, X), where X, Y and Z are the axes of the file that lie closest to right, anterior and superior
by its sform, else its qform, and point there; a file that has neither is taken to be stored as (X, Y, Z[, C]). A volume
that is one voxel thick, along whichever axis, is an image. Results are written back along the axes of the file.
"""

from __future__ import annotations

import gzip
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.file_checks import check_claim, check_length
from ssl_seg.data.formats.layout import AxisLayout, Box, lay_out_axes
from ssl_seg.data.formats.stored import (
    BOXES_FROM,
    AnyArray,
    Fetch,
    Geometry,
    LazyArray,
    RawVoxels,
    Stored,
    from_array,
    import_once,
    iterate_rows,
    lazy,
    make_geometry,
)
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.errors import DataError
from ssl_seg.files import reserve

_HEADER_BYTES = {1: 348, 2: 540}
_CHUNK = 2**20

_SILENT = logging.Logger("ssl_seg.nifti")
_SILENT.addHandler(logging.NullHandler())


_PLACE = (
    "pixdim", "xyzt_units", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "sform_code", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
"""Fields of a header that say where its voxels lie."""

_UNITS = {"mm": "mm", "µm": "micron"}
"""Names of units in NIfTI files."""

_LEAST_VOLUME = 1e-6
"""Smallest volume of a voxel, as a share of a box with the same edges; below it, an affine counts as damaged."""

_TILT = np.eye(4) + 1e-3 * np.array([[0, -1, 2, 0], [1, 0, -3, 0], [-2, 3, 0, 0], [0, 0, 0, 0]])
"""A turn by a fifth of a degree: which of two world axes is closest to an oblique one that lies halfway between them
must not depend on how the file stores it."""


@dataclass(frozen=True)
class Header:
    """A parsed header.

    ``shape`` has three axes or more. ``affine`` is the one of the file, or None. ``orientation`` has a row for each of
    the first three axes: which of (x, y, z) it is read as, and 1 or -1 (read the other way round). ``scale`` is slope
    and intercept, None where values are meant as they are. ``fields`` is nibabel's view of it.
    """

    fields: Any
    shape: tuple[int, ...]
    affine: NDArray[np.float64] | None
    orientation: NDArray[np.int64]
    layout: AxisLayout
    scale: tuple[float, float] | None
    geometry: Geometry | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as stored."""
        return cast(np.dtype[Any], self.fields.get_data_dtype())

    @property
    def is_first(self) -> bool:
        """Whether it is of NIfTI-1."""
        return int(self.fields["sizeof_hdr"]) == _HEADER_BYTES[1]

    @property
    def offset(self) -> int:
        """Where the voxels start."""
        return int(self.fields.get_data_offset())

    @property
    def end(self) -> int:
        """Where they end."""
        return self.offset + prod(self.shape) * self.dtype.itemsize


def open_nifti(path: Path, reading: Reading = AS_STORED) -> Stored:
    """Return an opened NIfTI file, scaled by its slope and intercept.

    Raises:
        ValueError: or an error of the decoder, if the file is damaged.
    """
    name, compressed = str(path), path.suffix.lower() == ".gz"
    opened: Path | IO[bytes] | NDArray[np.uint8] = path
    with gzip.open(path) if compressed else path.open("rb") as file:
        header = _read_header(cast(BinaryIO, file))
        if compressed:
            check_claim(header.end, path.stat().st_size)
            opened = _unpack(cast(BinaryIO, file), header.end, reading.scratch)
    dtype, scale = header.dtype, header.scale
    if scale is not None:
        small = dtype.itemsize <= 2 or dtype == np.dtype(np.float32)
        dtype = np.dtype(np.float32 if small else np.float64)
    if isinstance(opened, np.ndarray):
        voxels = opened[header.offset :].view(header.dtype).reshape(header.shape, order="F")
        scaled = voxels if scale is None else _scale(voxels, *scale, dtype)
        return from_array(name, scaled, header.layout, header.geometry)
    raw = RawVoxels(opened, header.offset, header.dtype, header.shape, "F")
    raw.check()
    if not isinstance(opened, Path):
        weakref.finalize(raw, opened.close)
    read = raw if scale is None else partial(_fetch_scaled, raw, *scale, dtype)
    return lazy(name, read, header.layout, header.shape, dtype, header.geometry, order="F")


def _fetch_scaled(read: Fetch, slope: float, intercept: float, dtype: np.dtype[Any], selection: Box) -> NDArray[Any]:
    return _scale(read(selection), slope, intercept, dtype)


def _scale(voxels: NDArray[Any], slope: float, intercept: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return voxels times slope plus intercept; float32 is exact enough where the file has 16 bits or less."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is refused by name later
        return (voxels * slope + intercept).astype(dtype)


def write_nifti(path: Path, array: AnyArray, geometry: Geometry | None, *, compressed: bool) -> None:
    """Write (*S): along the axes of the NIfTI file that ``geometry`` is from, with its sform, qform and units.

    Where it is from another file, the axes lie along those of the world.
    """
    import nibabel

    source = None if geometry is None or geometry.header is None else parse_header(geometry.header)
    voxels = np.broadcast_to(np.zeros((), array.dtype), array.shape) if isinstance(array, LazyArray) else array
    if source is not None:
        volume = _to_file_axes(voxels, source)
        image = (nibabel.Nifti1Image if source.is_first else nibabel.Nifti2Image)(volume, None)
        for name in _PLACE:
            image.header[name] = source.fields[name]
    else:
        volume = voxels.T if array.ndim == 3 else voxels.T[..., None]
        spacing = (1.0,) * array.ndim if geometry is None else geometry.spacing
        affine = np.diag([*spacing[::-1], 1.0, 1.0][:4])
        if geometry is not None and geometry.affine is not None:
            affine = np.array(geometry.affine)
        image = (nibabel.Nifti1Image if max(volume.shape) < 2**15 else nibabel.Nifti2Image)(volume, affine)
        if geometry is not None and geometry.unit in _UNITS:
            image.header.set_xyzt_units(_UNITS[geometry.unit])
    if isinstance(array, LazyArray):
        _write_by_rows(path, array, image, source, compressed=compressed)
        return
    with path.open("wb") as file:
        if not compressed:
            image.to_stream(file)
            return
        # Level 1, as nibabel does: level 9 takes ten times as long. Without name and time, equal masks are equal files.
        with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            image.to_stream(packed)


def _write_by_rows(path: Path, array: LazyArray, image: Any, source: Header | None, *, compressed: bool) -> None:
    """Write an array under the header of ``image``; a compressed file is written plainly first, beside it."""
    place = path.with_name(f"{path.name}.nii") if compressed else path
    try:
        offset = _HEADER_BYTES[1 if int(image.header["sizeof_hdr"]) == _HEADER_BYTES[1] else 2] + 4
        image.header.set_data_offset(offset)
        place.write_bytes(image.header.binaryblock + bytes(4))
        shape = (*image.shape, 1)[:3]
        mapped = np.memmap(place, image.header.get_data_dtype(), "r+", offset, shape, "F")
        view = source.layout.arrange(mapped)[0] if source else mapped.T if array.ndim == 3 else mapped[..., 0].T
        reserve(place)
        for first, rows in iterate_rows(array):
            view[first : first + len(rows)] = rows
        mapped.flush()
        if compressed:
            with (
                place.open("rb") as plain,
                path.open("wb") as file,
                gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
            ):
                shutil.copyfileobj(plain, packed, _CHUNK)
    finally:
        if compressed:
            place.unlink(missing_ok=True)


def is_read_as_stored(geometry: Geometry) -> bool:
    """Return whether the axes are those of the file, in reverse order, and none is flipped."""
    layout = parse_header(geometry.header or b"").layout
    return not layout.flips and list(layout.spatial) == sorted(layout.spatial, reverse=True)


def undo_orientation(array: NDArray[np.generic], geometry: Geometry | None) -> NDArray[np.generic]:
    """Return (*S) in the order in which the file that ``geometry`` is from stores it."""
    if geometry is None or geometry.header is None:
        return array
    stored = _to_file_axes(array, parse_header(geometry.header)).T
    return stored if stored.ndim == array.ndim else stored.squeeze(stored.shape.index(1))


def _to_file_axes(array: NDArray[np.generic], header: Header) -> NDArray[np.generic]:
    """Return (*S) with the first axes of the file, at most three of them."""
    volume = array.T if array.ndim == 3 else array.T[..., None]
    flipped = tuple(np.flatnonzero(header.orientation[:, 1] < 0).tolist())
    stored = np.flip(volume.transpose(header.orientation[:, 0]), flipped)
    return stored.squeeze(2) if len(header.fields.get_data_shape()) == 2 else stored


def _read_header(file: BinaryIO) -> Header:
    block = file.read(_HEADER_BYTES[1])
    if block[4:7] == b"n+2":
        block += file.read(_HEADER_BYTES[2] - len(block))
    return parse_header(block)


def parse_header(block: bytes) -> Header:
    """Return the header that the first bytes of a file hold.

    Raises:
        ValueError: if they are no header, or a damaged one.
    """
    import_once("nibabel")
    from nibabel.affines import voxel_sizes
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.orientations import inv_ornt_aff
    from nibabel.spatialimages import HeaderDataError

    version = 2 if block[4:7] == b"n+2" else 1
    if len(block) < _HEADER_BYTES[version]:
        raise ValueError("it ends inside its header, so it is truncated")
    if version == 1 and block[344:347] != b"n+1":
        raise ValueError("its header is not that of a NIfTI file that holds voxels (.hdr and .img pairs are not read)")
    try:
        fields = (Nifti2Header if version == 2 else Nifti1Header)(block, check=False)
        zooms = np.abs(fields.get_zooms())  # before the repair, which turns an unknown distance of 0 into 1
        fields.check_fix(_SILENT, logging.CRITICAL)
        shape = tuple(int(n) for n in fields.get_data_shape())
        scale = fields.get_slope_inter()
        offset = int(fields.get_data_offset())
    except HeaderDataError as error:
        raise ValueError(f"its header is damaged: {error}") from error
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"its header claims the shape {shape}")
    if offset < len(block):
        raise ValueError(f"its header says that the voxels start at byte {offset}, inside the header")
    zooms = np.append(zooms, np.ones(1))[:3]
    shape = (*shape, 1)[: max(3, len(shape))]
    affine = _find_affine(fields, zooms)
    orientation = _orient(affine, shape)
    names = "".join("XYZ"[axis] for axis in orientation[:, 0])
    layout = lay_out_axes(shape, names + "CCCC"[: len(shape) - 3])
    flipped = {axis for axis in range(3) if orientation[axis, 1] < 0}
    flips = tuple(place for place, axis in enumerate(layout.spatial, -len(layout.spatial)) if axis in flipped)
    as_read = None if affine is None else affine @ inv_ornt_aff(orientation, shape[:3])
    distances = zooms if affine is None else voxel_sizes(affine)
    unit = {short for short, name in _UNITS.items() if fields.get_xyzt_units()[0] == name}
    spacing = tuple(distances[list(layout.spatial)].tolist())
    geometry = make_geometry(spacing, as_read, block, next(iter(unit), None))
    scaled = None if scale[0] is None or tuple(scale) == (1.0, 0.0) else (float(scale[0]), float(scale[1]))
    return Header(fields, shape, affine, orientation, replace(layout, flips=flips), scaled, geometry)


def make_header(
    shape: Sequence[int], dtype: np.dtype[Any], affine: NDArray[np.float64] | None, spacing: Sequence[float]
) -> Header:
    """Return the header of a file with voxels (X, Y, Z[, C]), as ``parse_header`` does of one that is there."""
    import_once("nibabel")
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    fields = (Nifti1Header if max(shape) < 2**15 else Nifti2Header)()
    fields.set_data_dtype(dtype.newbyteorder("="))
    fields.set_data_shape(shape)
    fields.set_zooms([*(abs(step) for step in spacing), 1.0, 1.0][: len(shape)])
    fields.set_data_offset(len(fields.binaryblock) + 4)
    fields.set_xyzt_units("mm")
    if affine is not None:
        fields.set_sform(affine, code=1)
    return parse_header(bytes(fields.binaryblock))


def _find_affine(fields: Any, zooms: NDArray[np.floating[Any]]) -> NDArray[np.float64] | None:
    """Return the sform, else the qform, of those that the file declares and that can be inverted."""
    from nibabel.affines import voxel_sizes

    known = bool((np.isfinite(zooms) & (zooms > 0)).all())
    for code, read in ((fields["sform_code"], fields.get_sform), (fields["qform_code"] * known, fields.get_qform)):
        if code > 0:
            with np.errstate(all="ignore"), suppress(ValueError):  # of a quaternion that is longer than 1
                affine = read()
                volume = abs(np.linalg.det(affine[:3, :3])) / np.prod(voxel_sizes(affine))
                if np.isfinite(affine).all() and volume > _LEAST_VOLUME:
                    return cast(NDArray[np.float64], affine)
    return None


def _orient(affine: NDArray[np.float64] | None, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return how each of the first three axes is read: as which of (x, y, z), and 1 or -1.

    Where one of them has a single voxel, it comes last, as that of the slices of an image does.
    """
    from nibabel.orientations import io_orientation

    turned = np.array([[0, 1], [1, 1], [2, 1]]) if affine is None else io_orientation(_TILT @ affine).astype(np.int64)
    order = np.argsort(turned[:, 0])  # the stored axes of x, y and z
    thin = [axis for axis in order[::-1] if shape[axis] == 1][:1]
    for place, axis in enumerate([*(axis for axis in order if axis not in thin), *thin]):
        turned[axis, 0] = place
    return turned


def _unpack(packed: BinaryIO, end: int, scratch: Path | None) -> NDArray[np.uint8] | IO[bytes]:
    """Return the bytes up to ``end``, in memory, or of a large file in one without a name in the scratch folder.

    The checksum at the end of the packed file is compared.

    Raises:
        DataError: if the scratch folder does not take them.
    """
    if scratch is None or end < BOXES_FROM:
        buffer = np.empty(end, np.uint8)
        for start, chunk in _iterate_chunks(packed, end):
            buffer[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
        return buffer
    with _name_scratch(scratch):
        file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it is closed with the voxels
    for _, chunk in _iterate_chunks(packed, end):
        with _name_scratch(scratch):
            file.write(chunk)
    with _name_scratch(scratch):
        file.flush()
    return file


@contextmanager
def _name_scratch(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: a compressed volume cannot be unpacked there ({error.strerror or error}). Free space, or "
            "unpack it yourself (gunzip)"
        ) from error


def _iterate_chunks(packed: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the first ``end`` bytes, each chunk with where it starts; read what follows them, for the checksum."""
    packed.seek(0)
    start = 0
    while chunk := packed.read(min(_CHUNK, end - start)):
        yield start, chunk
        start += len(chunk)
    check_length(end, start)
    while packed.read(_CHUNK):
        pass
