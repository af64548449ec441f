"""An opened image, and what all readers of files share.

Shapes: C channels, *S spatial = (Z, Y, X) or (Y, X), *P the shape of a box.
"""

from __future__ import annotations

import importlib
import lzma
import os
import struct
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, wraps
from math import prod
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.file_checks import check_length
from ssl_seg.data.formats.layout import AxisLayout, Box, NotAnImageError
from ssl_seg.data.formats.pixels import LabelColors, drop_alpha
from ssl_seg.data.reading import Reading
from ssl_seg.errors import DataError, is_out_of_memory

Fetch = Callable[[Box], NDArray[Any]]
Read = TypeVar("Read")

_IMPORTING = threading.Lock()

_ROW_BYTES = 2**25
"""Bytes of an array that are written at once."""

BOXES_FROM = 2**26
"""Bytes of the voxels from which a compressed file is read by box, where there is a scratch folder."""

_TILE = 32
"""Rows and columns that are copied in one go where the order of axes changes: so many lines fit into the cache."""

# What the decoders raise for damaged files, found by truncating files at every byte and by flipping bytes.
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,  # all errors of imagecodecs
    SyntaxError,  # the header of NPY is a Python literal
    SystemError,  # of numcodecs
    TypeError,
    ValueError,
    cv2.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Geometry:
    """Where the voxels lie in the world.

    ``spacing`` is the distance of neighbors in the order of *S, above 0, in mm or the unit of the file. ``affine`` is
    the 4 x 4 matrix from voxels (x, y, z), as they are read, to the world, None where the file does not say (of an
    image, z is the axis of its slice). ``header`` is that of a NIfTI file, in whose frame results are written back.
    ``unit`` is that of the spacing as OME writes it (mm, µm, nm), where the file says.
    """

    spacing: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...] | None = None
    header: bytes | None = field(default=None, repr=False, compare=False)
    unit: str | None = field(default=None, compare=False)


def make_geometry(
    spacing: tuple[float, ...],
    affine: NDArray[np.floating[Any]] | None = None,
    header: bytes | None = None,
    unit: str | None = None,
) -> Geometry | None:
    """Return the geometry, or None where a number of it is not usable: unknown is better than wrong."""
    numbers = np.asarray(spacing, np.float64)
    if not (np.isfinite(numbers) & (numbers > 0)).all() or not (affine is None or np.isfinite(affine).all()):
        return None
    rows = None if affine is None else tuple(tuple(row) for row in affine.tolist())
    return Geometry(tuple(numbers.tolist()), rows, header, unit)


@dataclass(frozen=True)
class Gaps:
    """Voxels of an opened image that come as NaN, because nothing was measured there.

    ``dtype`` is that of the file, and ``value`` what the file has there.
    """

    dtype: np.dtype[Any]
    value: float

    def fill(self, voxels: NDArray[Any]) -> NDArray[Any]:
        """Return voxels as the file has them."""
        return np.where(np.isnan(voxels), self.value, voxels).astype(self.dtype)


@dataclass(frozen=True)
class Stored:
    """An opened image.

    ``shape`` is (C, *S); ``dtype`` what ``read`` returns, in native byte order. With ``by_box``, reading a box costs
    about the box, and nothing of the voxels has been looked at yet; without, the whole was decoded on opening. It can
    be pickled and holds no open file, so that processes of a loader may share it; one that was opened with a scratch
    folder may hold a file there, and cannot. ``location`` is its name in errors; ``fetch`` returns the voxels of a box,
    one slice for each axis of *S, as (C, *P). ``chunk_rows`` rows of the first axis of *S cost as much as one: they are
    decoded together, or lie side by side in the file. ``nodata`` is what the file itself writes where nothing was
    measured. With ``gaps``, ``read`` returns NaN there. ``notes`` say what was done to the stored values, or guessed
    about them. ``label_colors`` are those of a mask with a palette or with colors.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    geometry: Geometry | None
    by_box: bool
    location: str
    fetch: Fetch = field(repr=False, compare=False)
    chunk_rows: int = 1
    nodata: float | None = None
    gaps: Gaps | None = None
    notes: tuple[str, ...] = ()
    label_colors: LabelColors = ()

    def read(self, box: Box | None = None) -> NDArray[Any]:
        """Return the voxels (C, *P) of ``box``, a slice for each axis of *S, or all of them; C-contiguous.

        Raises:
            DataError: if the file is damaged or has gone, the voxels do not fit into memory, or hold NaN or infinity.
        """
        sizes = self.shape[1:]
        parts = [slice(None)] * len(sizes) if box is None else box
        region = tuple(slice(*part.indices(size)[:2]) for part, size in zip(parts, sizes, strict=True))
        if self.by_box:
            self._check_memory(region)
        with name_errors(self.location):
            voxels = _make_contiguous(self.fetch(region), self.dtype)
        if self.gaps is None and self.dtype.kind == "f":
            _refuse_nonfinite(_find_nonfinite(voxels), self.location)
        return voxels

    def _check_memory(self, region: Box) -> None:
        """Refuse what no memory can hold, whether the file is that large or its header is broken."""
        asked = self.shape[0] * prod(max(0, part.stop - part.start) for part in region) * self.dtype.itemsize
        memory = physical_memory()
        if asked > memory:
            raise DataError(
                f"{self.location}: {asked:,} bytes would be read at once and this machine has {memory:,} bytes of "
                "memory. Cut the image into pieces, or read it by box."
            )


@dataclass(frozen=True)
class LazyArray:
    """An array whose parts are read when they are asked for: ``array[key]`` is ``read(key)``.

    Images (C,*S) and targets (*S) take keys ``(..., *box)`` with a slice for each axis of *S; what is written, a slice
    of the first axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Any], NDArray[Any]]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Return that part of the array."""
        return self.read(key)


AnyArray = NDArray[Any] | LazyArray
"""An array in memory, or one that is read in parts."""


def iterate_rows(array: AnyArray) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield all rows of an array in order, some megabytes at a time, each with the number of its first row."""
    step = max(1, _ROW_BYTES // max(1, prod(array.shape[1:]) * array.dtype.itemsize))
    for first in range(0, array.shape[0], step):
        yield first, array[first : first + step]


@dataclass(frozen=True)
class RawVoxels:
    """An array that lies uncompressed in a file, with the order of its axes as in numpy.

    A file that is given open has no name, and is gone when nothing refers to it any more.
    """

    file: Path | IO[bytes]
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"] = "C"

    def check(self) -> None:
        """Check that the file is long enough.

        Raises:
            ValueError: if it is not.
        """
        size = self.file.stat().st_size if isinstance(self.file, Path) else os.fstat(self.file.fileno()).st_size
        check_length(self.offset + prod(self.shape) * self.dtype.itemsize, size)

    def __call__(self, selection: Box) -> NDArray[Any]:
        """Return a copy of the selected part; the file is mapped into memory for as long as that takes."""
        return np.array(np.memmap(self.file, self.dtype, "r", self.offset, self.shape, self.order)[selection])


def leave_out(image: Stored, reading: Reading) -> Stored:
    """Return an opened image that gives NaN where it has no data; see ``data.nodata`` and ``data.nonfinite``."""
    known = () if reading.nodata == "none" else (image.nodata, reading.nodata)
    values = tuple(dict.fromkeys(float(value) for value in known if value is not None))
    can_be_nan = image.dtype.kind == "f"
    if not values and not (can_be_nan and reading.nonfinite == "ignore"):
        return image
    dtype = np.promote_types(image.dtype, np.float32)
    fetch = partial(_fetch_with_gaps, image, values, reading.nonfinite)
    return replace(image, dtype=dtype, fetch=fetch, gaps=Gaps(image.dtype, values[0] if values else np.nan))


def _fetch_with_gaps(image: Stored, values: Sequence[float], nonfinite: str, box: Box) -> NDArray[Any]:
    voxels = image.fetch(box)
    found = np.zeros(voxels.shape, bool)
    for value in values:
        here = _find_value(voxels, value)
        # A color may have a channel of 0 or 255 anywhere: only black or white as a whole is none.
        found |= here.all(axis=0) if value == 0 or voxels.dtype.itemsize == 1 else here
    if voxels.dtype.kind == "f":
        broken = _find_nonfinite(voxels) & ~found
        if nonfinite == "refuse":
            _refuse_nonfinite(broken, image.location)
        found |= broken
    return np.where(found, np.nan, voxels)


def _find_value(voxels: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Return where voxels have a value; nowhere if their type cannot hold it."""
    if np.isnan(value):
        return np.asarray(np.isnan(voxels))
    if voxels.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(voxels == np.float64(value).astype(voxels.dtype))
    return np.asarray(voxels == int(value)) if value.is_integer() else np.zeros(voxels.shape, bool)


def _find_nonfinite(voxels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where values are NaN, infinite, or too large for float32, in which networks compute."""
    fits = np.isfinite(voxels) if voxels.dtype.itemsize < 8 else np.abs(voxels) <= np.finfo(np.float32).max
    return np.asarray(~fits)


def _refuse_nonfinite(broken: NDArray[np.bool_], location: str) -> None:
    if broken.any():
        raise DataError(
            f"{location}: {np.count_nonzero(broken)} of {broken.size} values are NaN or infinite (beyond 3.4e38). "
            "Replace them, or train with --set data.nonfinite=ignore, which leaves these voxels out."
        )


def from_array(
    location: str,
    voxels: NDArray[Any],
    layout: AxisLayout,
    geometry: Geometry | None = None,
    *,
    notes: tuple[str, ...] = (),
    has_alpha: bool = False,
) -> Stored:
    """Return a decoded array as an opened image; three equal channels become one.

    Args:
        layout: how it becomes (C, *S).
        has_alpha: whether its last channel is alpha.

    Raises:
        DataError: if the type or the shape of the array is not supported.
    """
    dtype = check_voxels(location, voxels.dtype, voxels.shape)
    whole = layout.select((slice(None),) * len(layout.spatial), voxels.shape)
    image = layout.arrange(voxels[whole])
    if has_alpha:
        image, note = drop_alpha(image)
        notes = (*notes, note)
    image = np.ascontiguousarray(merge_equal_channels(image), dtype)
    return Stored(image.shape, dtype, geometry, by_box=False, location=location, fetch=partial(cut, image), notes=notes)


def lazy(
    location: str,
    read: Fetch,
    layout: AxisLayout,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    geometry: Geometry | None = None,
    *,
    chunks: tuple[int, ...] | None = None,
    order: Literal["C", "F"] = "C",
    notes: tuple[str, ...] = (),
) -> Stored:
    """Return an opened image whose voxels are read when asked for.

    Args:
        read: returns a part of the stored array.
        dtype: dtype of what ``read`` returns.
        chunks: shape of the pieces of the stored array that are decoded as a whole; None if there are none.
        order: order of the stored axes where there are no chunks.

    Raises:
        DataError: if the type or the shape of the array is not supported.
    """
    native = check_voxels(location, dtype, shape)
    fetch = partial(_fetch_arranged, read, layout, shape)
    rows = layout.spatial[0]
    if chunks is not None:
        together = chunks[rows]
    else:  # rows of the axis that changes slowest can be read one by one
        together = 1 if rows == (min if order == "C" else max)(layout.spatial) else shape[rows]
    return Stored(layout.shape(shape), native, geometry, True, location, fetch, together, notes=notes)


def take_region(stored: Stored, region: Sequence[tuple[int, int]] | None) -> Stored:
    """Return a part of an opened image as an image of its own, which knows its voxel size and not where it lies; None
    returns all of it."""
    if region is None:
        return stored
    shape = (stored.shape[0], *(stop - start for start, stop in region))
    geometry = None if stored.geometry is None else Geometry(stored.geometry.spacing)
    fetch = partial(_fetch_within, stored.fetch, tuple(start for start, _ in region))
    return replace(stored, shape=shape, geometry=geometry, fetch=fetch)


def _make_contiguous(voxels: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return ``np.ascontiguousarray``, by tiles where the last axis is not the one stored last: 8 times as fast."""
    if voxels.strides[-1] <= 2 * voxels.itemsize:
        return np.ascontiguousarray(voxels, dtype)
    found = np.empty(voxels.shape, dtype)
    for y in range(0, voxels.shape[-2], _TILE):
        for x in range(0, voxels.shape[-1], _TILE):
            tile = (..., slice(y, y + _TILE), slice(x, x + _TILE))
            found[tile] = voxels[tile]
    return found


def _fetch_within(fetch: Fetch, first: Sequence[int], box: Box) -> NDArray[Any]:
    # A copy: a view would keep all of a decoded image in memory.
    return np.array(fetch(tuple(slice(a + part.start, a + part.stop) for a, part in zip(first, box, strict=True))))


def cut(image: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return a box of an array (C, *S)."""
    return image[(slice(None), *box)]


def _fetch_arranged(read: Fetch, layout: AxisLayout, shape: tuple[int, ...], box: Box) -> NDArray[Any]:
    return layout.arrange(read(layout.select(box, shape)))


def check_voxels(location: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.dtype[Any]:
    """Return the dtype in native byte order, uint8 for booleans.

    Raises:
        DataError: if the dtype is not supported, or there are no voxels.
    """
    if dtype.kind not in "buif" or dtype.itemsize > 8 or prod(shape) == 0:
        raise DataError(
            f"{location}: pixels of type {dtype} and shape {shape} are not supported. Save numbers that are whole or "
            "floating-point, of 64 bits at most; colors as an axis of their own, complex numbers as two channels."
        )
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def merge_equal_channels(image: NDArray[Any]) -> NDArray[Any]:
    """Return (1, *S) for an image (3, *S) whose channels are equal, any other as it is."""
    gray = len(image) == 3 and (image[0] == image[1]).all() and (image[0] == image[2]).all()
    return image[:1].copy() if gray else image


def once_a_version(read: Callable[[Path], Read], kept: int = 64) -> Callable[[Path], Read]:
    """Return a function that remembers what it has read of some files, until their size or time changes."""
    known = lru_cache(maxsize=kept)(lambda path, *_: read(path))

    @wraps(read)
    def ask(path: Path) -> Read:
        state = path.stat()
        return known(path, state.st_size, state.st_mtime_ns)

    return ask


@contextmanager
def name_errors(location: str) -> Iterator[None]:
    """Turn what a decoder raises into a ``DataError`` that names the file."""
    try:
        yield
    except NotAnImageError as error:
        raise DataError(f"{location}: {error}.") from error
    except _DECODER_ERRORS as error:
        if is_out_of_memory(error):
            raise DataError(
                f"{location}: out of memory: its header states more voxels than fit. Read it on a machine with more "
                "memory, cut it into parts, or export it again if the header is damaged."
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{location}: cannot be read: {reason}. Copy or export it again, or remove it.") from error


def import_once(module: str) -> ModuleType:
    """Return a module; while one thread loads it, others wait: packages that import in circles fail them otherwise."""
    with _IMPORTING:
        return importlib.import_module(module)


def import_optional(module: str, extra: str, location: str) -> ModuleType:
    """Return a module of an optional dependency.

    Raises:
        DataError: if it is not installed; says what to run.
    """
    try:
        return import_once(module)
    except ImportError as error:
        raise DataError(
            f"{location}: reading it needs the package {module.partition('.')[0]}. Run pip install 'ssl-seg[{extra}]'."
        ) from error


def physical_memory() -> int:
    """Return the bytes of memory of this machine, or a number above all sizes where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**63
