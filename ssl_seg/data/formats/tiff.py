"""TIFF, by tifffile: uncompressed gray images and stacks are read by box, all others decoded whole."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ssl_seg.data.formats.file_checks import check_tiff_pages, check_tiff_segments
from ssl_seg.data.formats.layout import Layout, fit_axes, lay_out_axes
from ssl_seg.data.formats.stored import Geometry, RawVoxels, Stored, defer, hold, make_geometry
from ssl_seg.data.reading import Reading
from ssl_seg.errors import DataError


def open_tiff(path: Path, reading: Reading) -> Stored:
    """Return an opened TIFF of one image or one stack; alpha is dropped.

    Raises:
        ValueError: or another error of the decoder, if the file is damaged.
        DataError: if a decoder is not installed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        pages = check_tiff_pages(file, size)
    with _open_quietly(path) as tiff:
        series = _only_series(tiff)
        page = series.keyframe
        segments = (
            [(series.dataoffset, series.nbytes)]
            if series.dataoffset is not None
            else [s for p in series.pages if p is not None for s in zip(p.dataoffsets, p.databytecounts, strict=True)]
        )
        check_tiff_segments(segments, series.nbytes, int(page.compression), size)
        if len(tiff.pages) != pages:
            raise ValueError(f"only {len(tiff.pages)} of its {pages} pages can be read")
        layout = _lay_out(series, reading)
        geometry = _find_geometry(tiff, layout)
        # Whether the channels of a color image are equal shows only when they are decoded.
        if series.dataoffset is not None and layout.channels != 3:
            dtype = series.dtype.newbyteorder(tiff.byteorder)
            raw = RawVoxels(path, series.dataoffset, dtype, series.shape)
            stored = defer(str(path), raw, layout, series.shape, dtype, geometry)
        else:
            stored = hold(str(path), _decode(series, path), layout, geometry)
        return replace(stored, nodata=_find_nodata(page))


def read_tiff_geometry(path: Path, reading: Reading) -> Geometry | None:
    """Return the spacing that ImageJ or OME metadata give for every axis, or None. No pixels are read.

    Raises:
        ValueError: or another error of the decoder, if the file is damaged.
    """
    with path.open("rb") as file:
        check_tiff_pages(file, path.stat().st_size)
    with _open_quietly(path) as tiff:
        series = _only_series(tiff)
        return _find_geometry(tiff, _lay_out(series, reading))


def write_tiff(path: Path, array: NDArray[np.generic], *, compression: str | None) -> None:
    """Write (*S) with the axes named, or tifffile takes a stack of one-pixel slices for something else."""
    axes = "ZYX"[-array.ndim :]
    tifffile.imwrite(path, array, compression=compression, photometric="minisblack", metadata={"axes": axes})


def _only_series(tiff: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    if len(tiff.series) != 1:
        raise ValueError(f"it holds {len(tiff.series)} images of different shapes, expected one image or one stack")
    return tiff.series[0]


def _lay_out(series: tifffile.TiffPageSeries, reading: Reading) -> Layout:
    if reading.axes is not None:
        return lay_out_axes(series.shape, fit_axes(series.shape, reading.axes, is_mask=reading.is_mask))
    return lay_out_axes(series.shape, series.axes, drop_alpha=bool(series.keyframe.extrasamples))


def _decode(series: tifffile.TiffPageSeries, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(series.asarray(maxworkers=1))
    except (ValueError, ImportError) as error:
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            raise _codec_missing(path, series.keyframe) from error
        raise


def _codec_missing(path: Path, page: tifffile.TiffPage) -> DataError:
    codec = page.compression.name + ("" if page.predictor == 1 else f", {page.predictor.name} predictor")
    return DataError(
        f"{path}: its compression ({codec}) needs the package imagecodecs. "
        "Run pip install 'ssl-seg[codecs]', or save the file uncompressed or with zlib."
    )


def _find_nodata(page: Any) -> float | None:
    """Return the value that GDAL writes where nothing was measured, or None."""
    tag = page.tags.get("GDAL_NODATA")
    try:
        return None if tag is None else float(tag.value)
    except (TypeError, ValueError):
        return None


def _find_geometry(tiff: tifffile.TiffFile, layout: Layout) -> Geometry | None:
    """Return the spacing if it is known for all axes; dots per inch are a matter of printers and do not count."""
    sizes = _imagej_sizes(tiff) if tiff.is_imagej else _ome_sizes(tiff.ome_metadata or "")
    spacing = tuple(sizes.get(axis, 0.0) for axis in "ZYX"[-len(layout.spatial) :])
    return make_geometry(spacing)


def _imagej_sizes(tiff: tifffile.TiffFile) -> dict[str, float]:
    """Return the size of a voxel by axis, as ImageJ stores it: one number in the text, two in the resolution tags."""
    metadata, tags = tiff.imagej_metadata or {}, tiff.pages[0].tags
    if str(metadata.get("unit", "pixel")) in ("", "pixel", "inch"):
        return {}
    sizes = {"Z": float(metadata.get("spacing", 0))}
    for axis, tag in (("Y", "YResolution"), ("X", "XResolution")):
        if tag in tags and tags[tag].value[0] > 0:
            pixels, length = tags[tag].value
            sizes[axis] = length / pixels
    return sizes


def _ome_sizes(xml: str) -> dict[str, float]:
    """Return the size of a voxel by axis from the first ``Pixels`` element, if all have one unit."""
    element = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    pixels = dict(re.findall(r'\bPhysicalSize([XYZ](?:Unit)?)="([^"]+)"', element[0])) if element else {}
    sizes = {axis: float(value) for axis, value in pixels.items() if len(axis) == 1}
    units = {pixels.get(f"{axis}Unit", "µm") for axis in sizes}
    return sizes if len(units) == 1 else {}


@contextmanager
def _open_quietly(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF; tifffile's log records stay off the terminal, where logging puts them if nobody else takes them."""
    handler = logging.NullHandler()
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        with tifffile.TiffFile(path) as tiff:
            yield tiff
    finally:
        logger.removeHandler(handler)
