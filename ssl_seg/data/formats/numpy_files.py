"""NPY, read by box, and NPZ, of which each array is decoded whole."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ssl_seg.data.formats.file_checks import check_claim, check_length
from ssl_seg.data.formats.layout import lay_out_array
from ssl_seg.data.formats.stored import AnyArray, RawVoxels, Stored, from_array, iterate_rows, lazy, once_a_version
from ssl_seg.data.reading import Reading

_LOCAL_HEADER = struct.Struct("<4s2xH18xHH")
"""Before each member of an archive: magic, flags, and the lengths of name and extra field, which follow."""

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_npy(path: Path, reading: Reading) -> Stored:
    """Return an opened array; those of Python objects are refused.

    Raises:
        ValueError: if the file is damaged, or its array is no image.
    """
    with path.open("rb") as file:
        shape, fortran, dtype = _read_header(file)
        raw = RawVoxels(path, file.tell(), dtype, shape, "F" if fortran else "C")
    raw.check()
    layout, notes = lay_out_array(shape, reading)
    return lazy(str(path), raw, layout, shape, dtype, order=raw.order, notes=notes)


def write_npy(path: Path, array: AnyArray) -> None:
    """Write (*S)."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _, rows in iterate_rows(array):
            file.write(np.ascontiguousarray(rows).data)


@once_a_version
def list_npz(path: Path) -> Mapping[str, None]:
    """Return the names of the arrays in an archive."""
    return dict.fromkeys(sorted(name.removesuffix(".npy") for name in _read_members(path) if name.endswith(".npy")))


def open_npz(path: Path, key: str, reading: Reading) -> Stored:
    """Return an opened array of an archive; those of Python objects are refused.

    Raises:
        ValueError: or an error of the decoder, if the file is damaged, or its array is no image.
    """
    member = _read_members(path)[f"{key}.npy"]
    check_claim(member.file_size, member.compress_size)
    with _open_member(path, member) as file:
        shape, _, dtype = _read_header(file)
        check_length(file.tell() + prod(shape) * dtype.itemsize, member.file_size)
    with _open_member(path, member) as file:
        voxels = np.lib.format.read_array(file, allow_pickle=False)
    layout, notes = lay_out_array(shape, reading)
    return from_array(f"{path}::{key}", voxels, layout, notes=notes)


@once_a_version
def _read_members(path: Path) -> Mapping[str, zipfile.ZipInfo]:
    """Return the members of an archive, which each ``ZipFile`` would list anew."""
    with zipfile.ZipFile(path) as archive:
        return {member.filename: member for member in archive.infolist()}


@contextmanager
def _open_member(path: Path, member: zipfile.ZipInfo) -> Iterator[zipfile.ZipExtFile]:
    """Open a member where the list says that it is, as ``ZipFile.open`` does; its checksum is compared."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        start = file.read(_LOCAL_HEADER.size)
        magic, flags, name_length, extra_length = _LOCAL_HEADER.unpack(start)
        name = file.read(name_length)
        wanted = member.orig_filename.encode("utf-8" if flags >> 11 & 1 else "cp437")
        if magic != b"PK\x03\x04" or flags & 1 or name != wanted:
            raise zipfile.BadZipFile(f"{member.filename} is not where the list says that it is, or is encrypted")
        file.seek(extra_length, os.SEEK_CUR)
        with zipfile.ZipExtFile(file, "r", member) as voxels:
            yield voxels


def _read_header(file: BinaryIO | zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is that of Fortran, and dtype."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its NPY version {version[0]}.{version[1]} is not known")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError(
            "it holds Python objects, which could run code when they are read; save plain numbers (of Cellpose: "
            "numpy.load(old, allow_pickle=True).item()['masks'])"
        )
    if min(shape, default=0) < 0:
        raise ValueError(f"its header claims the shape {shape}")
    return shape, fortran, dtype
