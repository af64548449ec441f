"""Decoded copies of compressed volumes on disk: written once, then read by box.

A copy is an uncompressed ``.npy`` file, which maps into memory: boxes are read 10 to 15 times as fast as from blosc2
and Zarr, and training patches come 21 times as fast as from zlib TIFF (``scripts/benchmark_loading.py``).
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.catalog import Catalog, Track, pass_through
from ssl_seg.data.formats.stored import take_region
from ssl_seg.data.home import find_cache_folder
from ssl_seg.data.layouts.listing import Case, Region
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.data.resample import find_shape, resample_image, resample_labels
from ssl_seg.data.volumes import Stored, open_image, open_mask, split_location
from ssl_seg.errors import DataError, counted
from ssl_seg.files import atomic_write

WORTH_A_COPY = 2**20
"""Decoded bytes from which on a copy pays: below, decoding takes a few milliseconds."""

LEFT_FREE = 10 * 2**30
"""Bytes of the disk that copies leave free; of a disk below ten times that, a tenth."""

_HEADER = 128
"""Bytes before the voxels of a ``.npy`` file."""

LEFT_BEHIND = 86_400
"""Seconds after which a copy that is half written belongs to a process that was killed."""


class DiskFullError(DataError):
    """A decoded copy finds no space."""


@dataclass(frozen=True)
class Grid:
    """The grid of a resampled copy: ``shape`` (*S), of a case or of the ``region`` of its files that it is."""

    region: Region | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DiskCache:
    """A folder of copies, limited to ``max_bytes``; copies of files that have changed since are not found."""

    folder: Path
    max_bytes: int

    def find(
        self, *locations: str, is_mask: bool = False, reading: Reading = AS_STORED, grid: Grid | None = None
    ) -> Path | None:
        """Return the copy of an image (several locations: its channels) or a mask, or None.

        With a ``grid``, that is the copy that was resampled to it.
        """
        path = self.name(*locations, is_mask=is_mask, reading=reading, grid=grid)
        return path if path is not None and path.is_file() else None

    def write(self, path: Path, make: Callable[[], NDArray[Any]], least: int, held: int) -> int:
        """Write a copy, and return its bytes.

        Args:
            path: what ``name`` has returned.
            make: returns the voxels (C, *S).
            least: bytes that they have at least: nothing is made where these find no space.
            held: bytes of all copies.

        Raises:
            DiskFullError: if there is no space for it.
            DataError: if the image cannot be read or the copy cannot be written.
        """
        self._check_space(least, held)
        voxels = make()
        self._check_space(voxels.nbytes, held)
        # (Y, X) or (C, Z, Y, X): no axis of these can be taken for another.
        channels, *shape = voxels.shape
        stored = shape if voxels.ndim == 3 and channels == 1 else (channels, *(1,) * (voxels.ndim == 3), *shape)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, voxels.reshape(stored), allow_pickle=False)
        except OSError as error:
            raise DataError(
                f"{path}: a decoded copy cannot be written ({error.strerror or error}). Free space, set SSL_SEG_CACHE "
                "to another folder, or set data.disk_cache_gb=0."
            ) from error
        return voxels.nbytes + _HEADER

    def measure(self) -> int:
        """Return the bytes of all copies, and of those that are being written; remove what killed processes left."""
        held = 0
        for path in (*self.folder.glob("*.npy"), *self.folder.glob(".*.part")):
            with suppress(OSError):  # gone since
                state = path.stat()
                if path.suffix == ".part" and time.time() - state.st_mtime > LEFT_BEHIND:
                    path.unlink()
                else:
                    held += state.st_size
        return held

    def name(
        self, *locations: str, is_mask: bool = False, reading: Reading = AS_STORED, grid: Grid | None = None
    ) -> Path | None:
        """Return the path of a copy, named after path, size and time of the files; None for what is no file.

        One file may hold an image and its mask, so how it is read belongs to the name.
        """
        parts = [repr(replace(reading, is_mask=is_mask)), *([] if grid is None else [repr(grid)])]
        for location in locations:
            path = Path(split_location(location)[0])
            if not path.is_file():
                return None
            state = path.stat()
            parts.append(f"{path.resolve()}|{split_location(location)[1]}|{state.st_size}|{state.st_mtime_ns}")
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        return self.folder / f"{name}.npy"

    def _check_space(self, size: int, held: int) -> None:
        """Check that a copy stays within the limit, and leaves enough of the disk free.

        Raises:
            DiskFullError: if it does not; says what to do.
        """
        existing = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        disk, size = shutil.disk_usage(existing), size + _HEADER
        if held + size > self.max_bytes:
            raise DiskFullError(
                f"{self.folder} holds at most data.disk_cache_gb={self.max_bytes / 2**30:g} GB. Raise it, or empty the "
                "folder."
            )
        if disk.free - size < min(LEFT_FREE, disk.total // 10):
            raise DiskFullError(
                f"the disk of {self.folder} has only {disk.free / 2**30:.1f} GB free. Free some, or set SSL_SEG_CACHE "
                "to a folder on another disk."
            )


def find_grid(catalog: Catalog, case: Case, resample_to: tuple[float, ...]) -> Grid:
    """Return the grid of a case at the voxel size ``resample_to``.

    Raises:
        DataError: if its own voxel size is not known.
    """
    facts = catalog.facts[case.id]
    return Grid(case.region, find_shape(facts.shape, facts.spacing, resample_to, case.image))


def open_copy(path: Path) -> Stored:
    """Return an opened copy: (Y, X) or (C, Z, Y, X), read before in the way that was asked for.

    Raises:
        DataError: if it is damaged.
    """
    return open_image(str(path), reading=Reading(axes="CZYX", nonfinite="ignore"))


def open_disk_cache(max_gb: float) -> DiskCache | None:
    """Return the user's cache; None if ``max_gb`` is 0."""
    if max_gb <= 0:
        return None
    return DiskCache(find_cache_folder(), int(max_gb * 2**30))


def fill_disk_cache(
    cache: DiskCache,
    catalog: Catalog,
    track: Track = pass_through,
    *,
    resample_to: tuple[float, ...] | None = None,
) -> str | None:
    """Copy what would be decoded or resampled each time, while there is space; return a note on the rest.

    Args:
        resample_to: voxel size (*S) at which every case is copied, on its new grid; see ``CaseStore``.

    Raises:
        DataError: if a file cannot be read, a copy cannot be written, or a case has no voxel size to resample from.
    """
    missed, reason, held = 0, "", cache.measure()
    for case in track(catalog.cases, len(catalog.cases)):
        grid = None if resample_to is None else find_grid(catalog, case, resample_to)
        try:
            for path, make, least in _plan_copies(cache, catalog, case, grid):
                if path is not None and not path.is_file():
                    held += cache.write(path, make, least, held)
        except DiskFullError as error:
            missed, reason = missed + 1, reason or str(error)
    return f"{counted(missed, 'volume', 'have')} no decoded copy, decoded each time: {reason}" if missed else None


_Copy = tuple[Path | None, Callable[[], NDArray[Any]], int]
"""A place, what makes the voxels, and how many bytes these have at least."""


def _plan_copies(cache: DiskCache, catalog: Catalog, case: Case, grid: Grid | None) -> Iterator[_Copy]:
    """Yield the copies to make on a grid, or without one, of large files that are decoded whole; opens no file."""
    facts, reading, locations = catalog.facts[case.id], catalog.reading, (case.image, *case.more_channels)
    shape, itemsize = (facts.shape, np.dtype(facts.dtype).itemsize) if grid is None else (grid.shape, 4)
    size = prod(shape) * facts.channels * itemsize
    if grid is None and size < WORTH_A_COPY:
        return

    def make_image() -> NDArray[Any]:
        image = open_image(*locations, reading=reading)
        return image.read() if grid is None else resample_image(take_region(image, grid.region).read(), shape)

    def make_mask(location: str) -> NDArray[Any]:
        mask = open_mask(location, reading=reading)
        return mask.read() if grid is None else resample_labels(take_region(mask, grid.region).read()[0], shape)[None]

    if grid or (facts.decoded[0] and (len(shape) == 3 or facts.channels == 1)):
        yield cache.name(*locations, reading=reading, grid=grid), make_image, size
    if case.mask is not None and (grid or facts.decoded[1]):
        path = cache.name(case.mask, is_mask=True, reading=reading, grid=grid)
        yield path, partial(make_mask, case.mask), prod(shape)
