"""One image or mask: from a location to an array, and back to a file.

Shapes: images (C, *S), masks (*S), with *S = (Z, Y, X) or (Y, X). A location is a path or ``synthetic:particles/0007``.
Values come as stored: no rescaling, no orientation tag, no inversion of TIFFs whose zero means white.
"""

from __future__ import annotations

import logging
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from ssl_seg.data import synthetic
from ssl_seg.data.file_checks import CHECKS, check_tiff_pages, check_tiff_segments
from ssl_seg.errors import DataError
from ssl_seg.rundir import atomic_write

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""Suffixes of files that are taken for images, in lower case."""

_MAGIC = {
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".jpg": (b"\xff\xd8\xff",),
    ".bmp": (b"BM",),
    ".tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_SAME_FORMAT = {".jpeg": ".jpg", ".tiff": ".tif"}

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
    TypeError,
    ValueError,
    cv2.error,
    lzma.LZMAError,
    struct.error,
    zlib.error,
)


def read_image(location: str) -> NDArray[np.generic]:
    """Return an image as (C, *S) in its own dtype; color images are RGB, without alpha.

    An image whose three channels are equal has C = 1.

    Raises:
        DataError: if the file is missing, damaged, of an unknown kind, or holds NaN or infinity.
    """
    if synthetic.is_synthetic(location):
        return synthetic.generate(*synthetic.parse_location(location))[0][None]
    path = Path(location)
    image = _decode(path)
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        bad = int((~np.isfinite(image)).sum())
        raise DataError(f"{path}: {bad} of {image.size} values are NaN or infinite. Replace them, or remove the image.")
    return image


def read_mask(location: str) -> NDArray[np.integer[Any]]:
    """Return a mask as (*S) of integers, with the values of the file.

    Raises:
        DataError: as for ``read_image``; also for a JPG, for colors, and for values that are not integers.
    """
    if synthetic.is_synthetic(location):
        return synthetic.generate(*synthetic.parse_location(location))[1]
    path = Path(location)
    if _format(path) == ".jpg":
        raise DataError(f"{path}: JPG does not keep the values of a mask. Save masks as PNG or TIFF.")
    channels = _decode(path)
    if len(channels) != 1:
        raise DataError(
            f"{path}: a mask has one channel, this one has {len(channels)} that differ (colors instead of labels?). "
            "Save it with one integer per pixel: 0 for background, then 1, 2, ..."
        )
    return _to_integers(channels[0], path)


def _to_integers(mask: NDArray[np.generic], path: Path) -> NDArray[np.integer[Any]]:
    """Return ``mask`` with an integer dtype, if all its values are integers."""
    if np.issubdtype(mask.dtype, np.integer):
        return cast(NDArray[np.integer[Any]], mask)
    values = mask.astype(np.float64)
    whole = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 2**31)
    if not whole.all():
        raise DataError(
            f"{path}: mask values must be integers, found e.g. {values[~whole].flat[0]:g}. "
            "Threshold probabilities first, and save the result as integers."
        )
    return values.astype(np.int32)


def write_mask(path: Path, mask: NDArray[np.integer[Any]]) -> None:
    """Write a mask: ``.png`` for (Y, X), ``.tif`` (zlib) for (Y, X) or (Z, Y, X). Replaces ``path`` in one step.

    Args:
        path: ends in ``.png``, ``.tif`` or ``.tiff``; its folder is made if it is missing.
        mask: (*S), values 0..65535.

    Raises:
        DataError: if shape, values and suffix do not fit, or the file cannot be written.
    """
    top = int(mask.max(initial=0))
    if mask.ndim not in (2, 3) or top > 65535 or int(mask.min(initial=0)) < 0:
        raise DataError(f"{path}: a mask has 2 or 3 dimensions and values 0..65535, got {mask.shape} and up to {top}.")
    stored = mask.astype(np.uint8 if top < 256 else np.uint16)
    if _format(path) == ".tif":
        _write(path, lambda file: _imwrite(file, stored, compression="zlib"))
    elif _format(path) == ".png" and mask.ndim == 2:
        _write(path, lambda file: file.write_bytes(cv2.imencode(".png", stored)[1].tobytes()))
    else:
        raise DataError(
            f"{path}: a mask with {mask.ndim} dimensions is written as {'.png or ' * (mask.ndim == 2)}.tif."
        )


def write_probabilities(path: Path, probs: NDArray[np.floating[Any]]) -> None:
    """Write (*S) probabilities as float32 TIFF, uncompressed so that it can be mapped into memory.

    Raises:
        DataError: if ``path`` does not end in ``.tif`` or ``.tiff``, or cannot be written.
    """
    if _format(path) != ".tif":
        raise DataError(f"{path}: probabilities are written as .tif.")
    _write(path, lambda file: _imwrite(file, probs.astype(np.float32), compression=None))


def _imwrite(file: Path, array: NDArray[np.generic], *, compression: str | None) -> None:
    """Write (*S) with the axes named, or tifffile takes a stack of one-pixel slices for something else."""
    axes = "ZYX"[-array.ndim :]
    tifffile.imwrite(file, array, compression=compression, photometric="minisblack", metadata={"axes": axes})


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            write(temporary)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}).") from error


def _format(path: Path) -> str:
    suffix = path.suffix.lower()
    return _SAME_FORMAT.get(suffix, suffix)


def _decode(path: Path) -> NDArray[np.generic]:
    """Return the file's pixels as (C, *S), alpha dropped, equal channels merged, or raise ``DataError``."""
    _check_start(path)
    try:
        pixels = _decode_tiff(path) if _format(path) == ".tif" else _decode_raster(path)
    except _DECODER_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: cannot be read: {reason}. Copy or export it again, or remove it.") from error
    if pixels.dtype.kind not in "buif" or pixels.size == 0:
        raise DataError(f"{path}: pixels of type {pixels.dtype} and shape {pixels.shape} are not supported.")
    if pixels.dtype.kind == "b":
        pixels = pixels.astype(np.uint8)
    if len(pixels) == 3 and (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all():
        pixels = pixels[:1]
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("="))


def _check_start(path: Path) -> None:
    """Refuse what is no file, empty, or not of the kind that its suffix says."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: unknown suffix '{path.suffix}'. Known are {', '.join(IMAGE_SUFFIXES)}.")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}).") from error
    if not head:
        raise DataError(f"{path}: the file is empty (0 bytes). Copy or export it again, or remove it.")
    if not head.startswith(_MAGIC[_format(path)]):
        found = [suffix for suffix, magic in _MAGIC.items() if head.startswith(magic)]
        hint = f"It looks like {found[0]}: rename it" if found else "It is damaged: copy or export it again"
        raise DataError(f"{path}: this is no {_format(path)[1:].upper()} file. {hint}, or remove it.")


def _decode_raster(path: Path) -> NDArray[np.generic]:
    """Decode PNG, JPG or BMP to (C, Y, X)."""
    data = path.read_bytes()
    CHECKS[path.suffix.lower()](data)
    # OpenCV's log level belongs to the process; set here and not on import, so that importing has no side effect.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("the decoder finds it damaged")
    if pixels.ndim == 2:
        return np.asarray(pixels[None])
    return np.moveaxis(pixels[..., 2::-1], -1, 0)  # BGR or BGRA -> RGB


def _decode_tiff(path: Path) -> NDArray[np.generic]:
    """Decode a TIFF of one image or one stack to (C, *S)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        pages = check_tiff_pages(file, size)
    with _tifffile_quiet(), tifffile.TiffFile(path) as tiff:
        if len(tiff.series) != 1:
            raise ValueError(f"it holds {len(tiff.series)} images of different shapes, expected one image or one stack")
        series = tiff.series[0]
        page = series.keyframe
        segments = (
            [(series.dataoffset, series.nbytes)]
            if series.dataoffset is not None
            else [s for p in series.pages if p is not None for s in zip(p.dataoffsets, p.databytecounts, strict=True)]
        )
        check_tiff_segments(segments, series.nbytes, int(page.compression), size)
        if len(tiff.pages) != pages:
            raise ValueError(f"only {len(tiff.pages)} of its {pages} pages can be read")
        try:
            pixels = series.asarray(maxworkers=1)
        except (ValueError, ImportError) as error:
            if isinstance(error, ImportError) or "imagecodecs" in str(error):
                raise _codec_missing(path, page) from error
            raise
        return _channels_first(pixels, series.axes, drop_alpha=bool(page.extrasamples))


def _codec_missing(path: Path, page: tifffile.TiffPage) -> DataError:
    codec = page.compression.name + ("" if page.predictor == 1 else f", {page.predictor.name} predictor")
    return DataError(
        f"{path}: its compression ({codec}) needs the package imagecodecs. "
        "Run pip install 'ssl-seg[codecs]', or save the file uncompressed or with zlib."
    )


def _channels_first(pixels: NDArray[np.generic], axes: str, *, drop_alpha: bool) -> NDArray[np.generic]:
    """Return (C, *S) for the axes that tifffile reports; S and C are channels, Y and X the plane, any other is Z."""
    kept = [n for n, axis in enumerate(axes) if axis in "YX" or pixels.shape[n] > 1]
    pixels, axes = pixels.reshape([pixels.shape[n] for n in kept]), "".join(axes[n] for n in kept)
    channel_axes = [a for a in axes if a in "SC"]
    depth_axes = [a for a in axes if a not in "SCYX"]
    if len(channel_axes) > 1 or len(depth_axes) > 1 or "Y" not in axes or "X" not in axes:
        raise ValueError(f"its axes {axes} {pixels.shape} are neither an image (Y, X) nor a stack (Z, Y, X)")
    pixels = np.transpose(pixels, [axes.index(a) for a in [*channel_axes, *depth_axes, "Y", "X"]])
    if not channel_axes:
        return pixels[None]
    return pixels[:-1] if drop_alpha and "S" in channel_axes and len(pixels) in (2, 4) else pixels


@contextmanager
def _tifffile_quiet() -> Iterator[None]:
    """Keep tifffile's log records off the terminal, where logging puts them if nobody else takes them."""
    handler = logging.NullHandler()
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
