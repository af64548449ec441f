"""NRRD (``.nrrd``) and MetaImage (``.mha``): a header of text, then the voxels, as they are or compressed.

They are read as a NIfTI file of the same voxels at the same place is (see ``nifti.py``), and results are written as
NIfTI. Uncompressed files are read by box. Volumes whose header does not name the directions of space, and images, come
with their axes as stored. A file whose voxels lie in another file is refused: nobody would see when that one changes.

Formats: teem.sourceforge.net/nrrd/format.html and itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.file_checks import ANY_RATIO, DEFLATE_RATIO, check_claim
from ssl_seg.data.formats.layout import Box, NotAnImageError
from ssl_seg.data.formats.nifti import make_header
from ssl_seg.data.formats.stored import Fetch, RawVoxels, Stored, from_array, lazy

_LONGEST_HEADER = 2**20
"""Bytes in which a header must end; those of 3D Slicer have a few hundred for each segment."""

_NRRD_TYPES = {
    name: code
    for code, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""Without MET_LONG, whose size depends on who wrote it."""

_NRRD_CODECS = {"raw": "raw", "gz": "gzip", "gzip": "gzip", "bz2": "bzip2", "bzip2": "bzip2"}
_SPATIAL_KINDS = ("domain", "space")

_RAS_SIGNS = {
    "right-anterior-superior": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "left-posterior-superior": (-1, -1, 1),
    "ras": (1, 1, 1), "las": (-1, 1, 1), "lps": (-1, -1, 1),
}  # fmt: skip
"""Names of a space, in lower case -> 1 for each of its axes that points to right, anterior or superior, else -1."""

_ZLIB_OR_GZIP = 47
"""Window bits with which zlib finds out by itself which of the two it reads."""


@dataclass(frozen=True)
class _Header:
    """A parsed header.

    ``shape`` is that of the array as stored, the axis that changes fastest first; ``channels`` is the axis of channels,
    None without one. ``spacing`` and ``affine`` are of the other axes, in their order: the sizes of voxels, 1 where
    unknown, and the 4 x 4 matrix to millimeters to the right, anterior and superior, None where unknown.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    codec: str
    offset: int
    channels: int | None
    spacing: tuple[float, ...]
    affine: NDArray[np.float64] | None


def open_nrrd(path: Path) -> Stored:
    """Return an opened NRRD file.

    Raises:
        NotAnImageError: for one that is no image or volume, is stored as text, or keeps its voxels in another file.
        ValueError: if the file is damaged.
    """
    return _open(path, _parse_nrrd)


def open_metaimage(path: Path) -> Stored:
    """Return an opened MetaImage file; errors as for ``open_nrrd``."""
    return _open(path, _parse_metaimage)


def _open(path: Path, parse: Callable[[bytes], _Header]) -> Stored:
    with path.open("rb") as file:
        header = parse(file.read(_LONGEST_HEADER))
    number = len(header.shape) - (header.channels is not None)
    if number not in (2, 3) or min(header.shape) < 1:
        raise NotAnImageError(
            f"its axes {header.shape} are neither those of an image nor of a stack: save points in time, or channels, "
            "as files of their own"
        )
    shape = header.shape if number == 3 else (*header.shape, 1)
    order = [axis for axis in range(len(shape)) if axis != header.channels]
    order += [] if header.channels is None else [header.channels]
    place = make_header([shape[axis] for axis in order], header.dtype, header.affine, header.spacing)
    size = prod(shape) * header.dtype.itemsize
    if header.codec == "raw":
        raw = RawVoxels(path, header.offset, header.dtype, shape, "F")
        raw.check()
        fetch = partial(_fetch, raw, order)
        return lazy(str(path), fetch, place.layout, place.shape, header.dtype, place.geometry, order="F")
    with path.open("rb") as file:
        file.seek(header.offset)
        packed = file.read()
    check_claim(size, len(packed), ANY_RATIO if header.codec == "bzip2" else DEFLATE_RATIO)
    voxels = np.frombuffer(_unpack(packed, size, header.codec), header.dtype).reshape(shape, order="F")
    return from_array(str(path), voxels.transpose(order), place.layout, place.geometry)


def _fetch(read: Fetch, order: Sequence[int], selection: Box) -> NDArray[Any]:
    """Return a part of an array whose axes are stored in another order than the one they are asked for in."""
    stored = dict(zip(order, selection, strict=True))
    return read(tuple(stored[axis] for axis in range(len(order)))).transpose(order)


def _unpack(packed: bytes, size: int, codec: str) -> bytes:
    """Return ``size`` bytes; zlib, gzip and bzip2 compare their own checksums.

    Raises:
        ValueError: if there are more or fewer.
    """
    parts, left = [], size + 1
    while packed and left > 0:  # gzip and bzip2 files may have several parts
        decoder = bz2.BZ2Decompressor() if codec == "bzip2" else zlib.decompressobj(_ZLIB_OR_GZIP)
        parts.append(decoder.decompress(packed, left))
        left -= len(parts[-1])
        if left > 0 and not decoder.eof:
            raise ValueError("its compressed voxels are cut off")
        packed = decoder.unused_data
    if left != 1:
        found = f"{size + 1 - left:,} bytes" if left > 0 else "more bytes"
        raise ValueError(f"its voxels are {found}, and its header claims {size:,}")
    return b"".join(parts)


def _parse_nrrd(block: bytes) -> _Header:
    text, offset = _cut_header(block, re.compile(rb"\r?\n\r?\n"))
    lines = [line for line in text.splitlines()[1:] if not line.startswith("#") and ":=" not in line]
    fields = {name.strip().lower(): value.strip() for line in lines for name, _, value in [line.partition(":")]}
    for name in ("data file", "datafile", "line skip", "byte skip", "lineskip", "byteskip"):
        if fields.get(name, "0") != "0":
            raise NotAnImageError(f"its voxels are elsewhere ({name}: {fields[name]}): save it as one file")
    shape = tuple(int(number) for number in _list_numbers(fields, "sizes"))
    codec = _NRRD_CODECS.get(fields.get("encoding", "").lower())
    if codec is None:
        raise NotAnImageError(f"its encoding is {fields.get('encoding')}; {', '.join(_NRRD_CODECS)} are read")
    directions = re.findall(r"none|\(.*?\)", fields.get("space directions", ""))
    kinds = fields.get("kinds", "").lower().split()
    are_spatial = [vector != "none" for vector in directions] or [kind in _SPATIAL_KINDS for kind in kinds]
    are_spatial = are_spatial or [len(shape) <= 3] * len(shape)
    if len(are_spatial) != len(shape) or "time" in kinds or are_spatial.count(False) > 1:
        said = fields.get("kinds") or fields.get("space directions") or "does not say what they are"
        raise NotAnImageError(f"its {len(shape)} axes are not those of an image or stack with channels ({said})")
    vectors = np.array(
        [_parse_vector(vector, "space directions") for vector in directions if vector != "none"], np.float64
    )
    steps = np.linalg.norm(vectors, axis=-1) if len(vectors) else _list_numbers(fields, "spacings", [1.0] * len(shape))
    spacing = tuple(np.asarray(steps)[are_spatial if len(steps) == len(shape) else slice(None)].tolist())
    signs = _RAS_SIGNS.get(fields.get("space", "").lower())
    origin = _parse_vector(fields.get("space origin", "(0,0,0)"), "space origin")
    affine = None
    if signs is not None and vectors.shape == (3, 3) and len(origin) == 3:
        affine = _make_affine(vectors, origin, signs)
    return _Header(
        shape,
        _find_type(fields.get("type", ""), _NRRD_TYPES, fields.get("endian", "").lower()),
        codec,
        offset,
        None if all(are_spatial) else are_spatial.index(False),
        spacing,
        affine,
    )


def _parse_metaimage(block: bytes) -> _Header:
    text, offset = _cut_header(block, re.compile(rb"^ElementDataFile[ \t]*=[^\n]*\n", re.M))
    fields = {name.strip(): value.strip() for line in text.splitlines() for name, _, value in [line.partition("=")]}
    if fields["ElementDataFile"] != "LOCAL" or fields.get("HeaderSize", "0") != "0":
        raise NotAnImageError(f"its voxels are elsewhere ({fields['ElementDataFile']}): save it as one file")
    if fields.get("BinaryData", "True").lower() != "true":
        raise NotAnImageError("its voxels are stored as text: save it again")
    shape = tuple(int(number) for number in _list_numbers(fields, "DimSize"))
    ndim, channels = len(shape), int(_list_numbers(fields, "ElementNumberOfChannels", [1])[0])
    spacing = _list_numbers(fields, _find(fields, "ElementSpacing", "ElementSize"), [1.0] * ndim)
    matrix = _list_numbers(fields, _find(fields, "TransformMatrix", "Rotation", "Orientation"), [])
    origin = _list_numbers(fields, _find(fields, "Offset", "Position", "Origin"), [0.0] * ndim)
    affine = None
    if ndim == 3 and len(matrix) == 9 and len(spacing) == len(origin) == 3:
        affine = _make_affine(np.reshape(matrix, (3, 3)) * np.reshape(spacing, (3, 1)), origin, _RAS_SIGNS["lps"])
    is_big = fields.get(_find(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB"), "False").lower() == "true"
    endian = "big" if is_big else "little"
    return _Header(
        shape if channels == 1 else (channels, *shape),
        _find_type(fields.get("ElementType", ""), _META_TYPES, endian),
        "zlib" if fields.get("CompressedData", "False").lower() == "true" else "raw",
        offset,
        None if channels == 1 else 0,
        tuple(spacing),
        affine,
    )


def _cut_header(block: bytes, end: re.Pattern[bytes]) -> tuple[str, int]:
    """Return the text up to the end of what is looked for, and where the voxels start."""
    found = end.search(block)
    if found is None:
        reason = "is longer than 1 MiB" if len(block) == _LONGEST_HEADER else "has no end, so it is truncated"
        raise ValueError(f"its header {reason}")
    return block[: found.end()].decode("utf-8", errors="replace"), found.end()


def _find(fields: Mapping[str, str], *names: str) -> str:
    """Return the first name that there is, else the first."""
    return next((name for name in names if name in fields), names[0])


def _list_numbers(fields: Mapping[str, str], name: str, default: Sequence[float] | None = None) -> list[float]:
    """Return the numbers of a field.

    Raises:
        ValueError: if it is missing and has no default, or holds something else.
    """
    if name not in fields and default is not None:
        return list(default)
    try:
        return [float(number) for number in fields[name].split()]
    except (KeyError, ValueError) as error:
        raise ValueError(f"its header says '{name}: {fields.get(name, '')}', where numbers are expected") from error


def _parse_vector(text: str, name: str) -> list[float]:
    return _list_numbers({name: text.strip("()").replace(",", " ")}, name)


def _find_type(name: str, types: Mapping[str, str], endian: str) -> np.dtype[Any]:
    """Return the type of the voxels; ``endian`` is ``little`` or ``big``, and does not matter for bytes."""
    if name not in types:
        raise NotAnImageError(f"its voxels are of the type '{name}': save integers of 8 to 64 bits, float or double")
    dtype, order = np.dtype(types[name]), {"little": "<", "big": ">"}.get(endian)
    if dtype.itemsize > 1 and order is None:
        raise ValueError(f"its header says 'endian: {endian}', where little or big is expected")
    return np.dtype(f"{order or '='}{types[name]}")


def _make_affine(steps: NDArray[np.float64], origin: Sequence[float], signs: Sequence[int]) -> NDArray[np.float64]:
    """Return the matrix from voxels to RAS; ``steps`` has a row for each axis: where one voxel further lies."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.transpose(steps), origin
    return np.diag([*signs, 1.0]) @ affine
