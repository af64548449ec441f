"""HDF5, by h5py: data sets are read by box; the file is opened for each read, so that processes may share an image."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ssl_seg.data.formats.file_checks import ANY_RATIO, check_claim
from ssl_seg.data.formats.layout import Box, lay_out_array
from ssl_seg.data.formats.stored import AnyArray, Stored, import_optional, iterate_rows, lazy, once_a_version
from ssl_seg.data.reading import Reading


@once_a_version
def list_hdf5(path: Path) -> Mapping[str, None]:
    """Return the names of the data sets that can be images: numbers, with two axes or more."""
    names = []

    def collect(name: str, node: Any) -> None:
        if hasattr(node, "dtype") and node.dtype.kind in "buif" and node.ndim >= 2:
            names.append(name)

    with _open_file(path) as file:
        file.visititems(collect)
    return dict.fromkeys(sorted(names))


def open_hdf5(path: Path, key: str, reading: Reading) -> Stored:
    """Return an opened data set.

    Raises:
        ValueError: or another error of h5py, if the file is damaged or the data set is no image.
        DataError: if h5py is not installed.
    """
    with _open_file(path) as file:
        node = file[key]
        shape, dtype, chunks = tuple(node.shape), node.dtype, node.chunks
        _check_other_files(path, node)
        if not node.is_virtual:  # its bytes are in other files
            stored, largest = node.id.get_storage_size(), max(prod(shape), prod(chunks or ()))
            check_claim(largest * dtype.itemsize, stored, ANY_RATIO if chunks else 1)
    layout, notes = lay_out_array(shape, reading)
    return lazy(f"{path}::{key}", partial(_fetch, path, key), layout, shape, dtype, chunks=chunks, notes=notes)


def _check_other_files(path: Path, node: Any) -> None:
    """Check the files in which a virtual data set, or one with external storage, has its voxels: HDF5 gives zeros for
    what is not there.

    Raises:
        ValueError: if one is missing or too short.
    """
    for source in node.virtual_sources() if node.is_virtual else ():
        name = source.file_name
        if name != "." and "%" not in name and not ((path.parent / name).exists() or Path(name).exists()):
            raise ValueError(f"voxels of it are in {name}, which is not there")
    left = node.nbytes
    for name, offset, size in node.external or ():
        needed = min(size, left)
        if needed and (not Path(name).exists() or Path(name).stat().st_size < offset + needed):
            raise ValueError(f"voxels of it are in {name}, which is not there or too short")
        left -= needed


def write_hdf5(path: Path, array: AnyArray, name: str) -> None:
    """Write (*S) as a compressed data set.

    Raises:
        OSError: also where the disk has less space than the array takes: HDF5 does not survive a full disk.
    """
    if shutil.disk_usage(path.parent).free < prod(array.shape) * array.dtype.itemsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    h5py = import_optional("h5py", "hdf5", str(path))
    with h5py.File(path, "w") as file:
        stored = file.create_dataset(
            name, array.shape, array.dtype, chunks=True, compression="gzip", compression_opts=1
        )
        for first, rows in iterate_rows(array):
            stored[first : first + len(rows)] = rows


def _fetch(path: Path, key: str, selection: Box) -> NDArray[Any]:
    with _open_file(path) as file:
        part: NDArray[Any] = file[key][selection]
    return part


@contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    h5py = import_optional("h5py", "hdf5", str(path))
    # Nobody writes here, and locks fail on file systems that are read-only or shared over a network.
    with h5py.File(path, "r", locking=False) as file:
        yield file
