"""Decoded copies of compressed volumes on disk: written once, then read by box.

A copy is an uncompressed ``.npy`` file, which maps into memory. Boxes of 32 x 64 x 64 from volumes of 96 x 192 x 192
were read 10 times as fast as from blosc2 and 15 times as fast as from Zarr, for 12 % more space; training patches came
21 times as fast as by decoding the zlib TIFF for each (``scripts/benchmark_loading.py``, two cores).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssl_seg.data.catalog import Catalog, Track, pass_through
from ssl_seg.data.home import find_cache_folder
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.data.volumes import Stored, open_image, open_mask
from ssl_seg.errors import DataError
from ssl_seg.rundir import atomic_write

WORTH_A_COPY = 2**20
"""Decoded bytes from which on a copy pays: below, decoding takes a few milliseconds."""

_HEADER = 128
"""Bytes before the voxels of a ``.npy`` file."""


class DiskFullError(DataError):
    """A decoded copy finds no space."""


@dataclass(frozen=True)
class DiskCache:
    """A folder of copies, limited to ``max_bytes``; copies of files that have changed since are not found."""

    folder: Path
    max_bytes: int

    def find(self, *locations: str, is_mask: bool = False, reading: Reading = AS_STORED) -> Path | None:
        """Return the copy of an image (several locations: its channels) or a mask, if there is one."""
        path = self._path(locations, replace(reading, is_mask=is_mask))
        return path if path is not None and path.is_file() else None

    def add(self, *locations: str, is_mask: bool = False, reading: Reading = AS_STORED) -> Path | None:
        """Return the copy, written if there was none; None if the file is read by box anyway, or a copy does not pay.

        Raises:
            DiskFullError: if there is no space for it.
            DataError: if the image cannot be read or the copy cannot be written.
        """
        path = self._path(locations, replace(reading, is_mask=is_mask))
        if path is None or path.is_file():
            return path
        stored = open_mask(locations[0], reading=reading) if is_mask else open_image(*locations, reading=reading)
        size = int(np.prod(stored.shape)) * stored.dtype.itemsize
        is_flat = len(stored.shape) == 3
        if stored.by_box or size < WORTH_A_COPY or (is_flat and stored.shape[0] > 1):
            return None
        if not self._has_space(size + _HEADER):
            raise DiskFullError(f"{self.folder}: no space for a copy of {locations[0]} ({size:,} bytes)")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.save(file, stored.read()[0] if is_flat else stored.read(), allow_pickle=False)
        except OSError as error:
            raise DataError(
                f"{path}: a decoded copy of {locations[0]} cannot be written ({error.strerror or error}). Free space, "
                "set SSL_SEG_CACHE to another folder, or set data.disk_cache_gb=0."
            ) from error
        return path

    def _path(self, locations: Sequence[str], reading: Reading) -> Path | None:
        """Return where the copy belongs: named after path, size and time of the files; None for what is no file.

        One file may hold an image and its mask, so how it is read belongs to the name.
        """
        parts = [repr(reading)]
        for location in locations:
            path = Path(location.partition("::")[0])
            if not path.is_file():
                return None
            state = path.stat()
            parts.append(f"{path.resolve()}|{location.partition('::')[2]}|{state.st_size}|{state.st_mtime_ns}")
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        return self.folder / f"{name}.npy"

    def _has_space(self, size: int) -> bool:
        """Return whether a copy stays within the limit, and leaves a tenth of the disk free."""
        held = sum(p.stat().st_size for p in self.folder.glob("*.npy")) if self.folder.is_dir() else 0
        existing = next(p for p in (self.folder, *self.folder.parents) if p.exists())
        disk = shutil.disk_usage(existing)
        return held + size <= self.max_bytes and disk.free - size > disk.total // 10


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


def fill_disk_cache(cache: DiskCache, catalog: Catalog, track: Track = pass_through) -> str | None:
    """Copy every compressed volume of a catalog, as far as there is space; return a note on what was not copied.

    Raises:
        DataError: see ``DiskCache.add``.
    """
    missed = 0
    for case in track(catalog.cases, len(catalog.cases)):
        facts = catalog.facts[case.id]
        if int(np.prod(facts.shape)) * facts.channels * np.dtype(facts.dtype).itemsize < WORTH_A_COPY:
            continue
        try:
            cache.add(case.image, *case.more_channels, reading=catalog.reading)
            if case.mask is not None:
                cache.add(case.mask, is_mask=True, reading=catalog.reading)
        except DiskFullError:
            missed += 1
    if not missed:
        return None
    return (
        f"{missed} volume(s) have no decoded copy, for lack of space in {cache.folder} (limit "
        f"{cache.max_bytes / 2**30:g} GB): they are decoded each time. Raise data.disk_cache_gb, or empty the folder."
    )
