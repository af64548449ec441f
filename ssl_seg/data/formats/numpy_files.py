"""NPY, read by box, and NPZ, of which each array is decoded whole."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssl_seg.data.formats.file_checks import check_claim, check_length
from ssl_seg.data.formats.layout import lay_out_array
from ssl_seg.data.formats.stored import RawVoxels, Stored, defer, hold
from ssl_seg.data.reading import Reading

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
    return defer(str(path), raw, lay_out_array(shape, reading), shape, dtype)


def list_npz(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in an archive."""
    with zipfile.ZipFile(path) as archive:
        return tuple(sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")))


def open_npz(path: Path, key: str, reading: Reading) -> Stored:
    """Return an opened array of an archive; those of Python objects are refused.

    Raises:
        ValueError: or an error of the decoder, if the file is damaged, or its array is no image.
    """
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{key}.npy")
        check_claim(member.file_size, member.compress_size)
        with archive.open(member) as file:
            shape, _, dtype = _read_header(file)
            check_length(file.tell() + prod(shape) * dtype.itemsize, member.file_size)
        with archive.open(member) as file:
            voxels = np.lib.format.read_array(file, allow_pickle=False)
    return hold(f"{path}::{key}", voxels, lay_out_array(shape, reading))


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether the order is that of Fortran, and dtype."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"its NPY version {version[0]}.{version[1]} is not known")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which could run code when they are read; save plain numbers")
    if min(shape, default=0) < 0:
        raise ValueError(f"its header claims the shape {shape}")
    return shape, fortran, dtype
