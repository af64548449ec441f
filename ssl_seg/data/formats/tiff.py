"""TIFF, by tifffile: uncompressed gray images and stacks are read by box, all others decoded whole."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from ssl_seg.data.formats.file_checks import check_tiff_pages, check_tiff_segments
from ssl_seg.data.formats.layout import (
    ORIENTATION,
    AxisLayout,
    Box,
    NotAnImageError,
    lay_out_array,
    lay_out_axes,
    turn_upright,
)
from ssl_seg.data.formats.pixels import LabelColors, choose_palette_labels, invert_labels
from ssl_seg.data.formats.stored import (
    BOXES_FROM,
    AnyArray,
    Geometry,
    RawVoxels,
    Stored,
    from_array,
    iterate_rows,
    lazy,
    make_geometry,
)
from ssl_seg.data.reading import Reading
from ssl_seg.errors import DataError
from ssl_seg.files import reserve

_Color = tifffile.PHOTOMETRIC
_OTHER_COLORS = (
    _Color.SEPARATED,
    _Color.YCBCR,
    _Color.CIELAB,
    _Color.ICCLAB,
    _Color.ITULAB,
    _Color.LOGL,
    _Color.LOGLUV,
)
_JPEG = (6, 7)
"""Compressions whose decoder turns YCbCr into RGB."""

_REDUCED_OR_MASK = 0b101
"""Bits of the subfile type: a reduced copy of another image of the file, a transparency mask."""

_SHOWN_SERIES = 4

PLANES = "the planes of its file are read as colors, as its header says: data.axes=ZYX makes them slices"
"""tifffile and scikit-image write a stack of three or four slices as colors unless they are told otherwise."""

_TILE = 256
"""Rows and columns of the tiles of an image that is written in parts."""


def open_tiff(path: Path, reading: Reading) -> Stored:
    """Return an opened TIFF of one image or one stack, upright and so that white is large.

    Raises:
        ValueError: or another error of the decoder, if the file is damaged.
        DataError: if a decoder is not installed.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        pages = check_tiff_pages(file, size)
    with _open_quietly(path) as tiff:
        series, notes = _choose_series(tiff)
        if tiff.is_ome:
            _check_planes(tiff, series)
        page = series.keyframe
        segments = (
            [(series.dataoffset, series.nbytes)]
            if series.dataoffset is not None
            else [s for p in series.pages if p is not None for s in zip(p.dataoffsets, p.databytecounts, strict=True)]
        )
        check_tiff_segments(segments, series.nbytes, int(page.compression), size)
        if len(tiff.pages) != pages:
            raise ValueError(f"only {len(tiff.pages)} of its {pages} pages can be read")
        layout, guess = _lay_out(series, reading)
        notes = (*notes, *guess)
        geometry = _find_geometry(tiff, layout)
        has_alpha = reading.axes is None and layout.channel is not None and page.extrasamples[-1:] in ((1,), (2,))
        is_bool = _is_array_of_bool(page)
        is_display = page.photometric == _Color.MINISWHITE and tiff.is_imagej and reading.is_mask
        is_inverted = page.photometric == _Color.MINISWHITE and not is_bool and not is_display
        is_plain = not has_alpha and not is_inverted and page.photometric != _Color.PALETTE
        notes += ("its bits are read as tifffile wrote them, though its header says that 1 is black",) * is_bool
        notes += ("zero is white in its file, as ImageJ shows masks: its values are read",) * is_display
        label_colors: LabelColors = ()
        # Whether the channels of a color image are equal shows only when they are decoded.
        if series.dataoffset is not None and is_plain and layout.shape(series.shape)[0] != 3:
            dtype = series.dtype.newbyteorder(tiff.byteorder)
            raw = RawVoxels(path, series.dataoffset, dtype, series.shape)
            stored = lazy(str(path), raw, layout, series.shape, dtype, geometry, notes=notes)
        elif reading.scratch is not None and is_plain and _has_boxes(series):
            fetch = partial(_fetch_segments, path)
            stored = lazy(
                str(path), fetch, layout, series.shape, series.dtype, geometry, chunks=_find_chunks(series), notes=notes
            )
        else:
            voxels = _decode(series, path)
            if is_inverted:
                voxels, note = _invert(voxels, page.bitspersample, is_mask=reading.is_mask)
                notes = (*notes, note)
            elif page.photometric == _Color.PALETTE:
                voxels, layout, note, label_colors = _apply_palette(
                    voxels, layout, page.colormap, reading, is_display=tiff.is_imagej
                )
                notes = (*notes, note)
            stored = from_array(str(path), voxels, layout, geometry, notes=notes, has_alpha=has_alpha)
        return replace(stored, label_colors=label_colors, nodata=_find_nodata(page) if is_plain else None)


def write_tiff(path: Path, array: AnyArray, *, compression: str | None, geometry: Geometry | None = None) -> None:
    """Write (*S) with the axes named, or tifffile takes a stack of one-pixel slices for something else; where the voxel
    size is known, as OME-TIFF."""
    axes = "ZYX"[-array.ndim :]
    metadata: dict[str, Any] = {"axes": axes}
    if geometry is not None:
        for axis, size in zip(axes, geometry.spacing, strict=True):
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": geometry.unit or "pixel"}
    options: dict[str, Any] = {
        "photometric": "minisblack",
        "metadata": metadata,
        "ome": geometry is not None,
        "shape": array.shape,
        "dtype": array.dtype,
    }
    if isinstance(array, np.ndarray):
        tifffile.imwrite(path, array, compression=compression, **options)
    elif compression is None:
        mapped = tifffile.memmap(path, **options)
        reserve(path)
        for first, rows in iterate_rows(array):
            mapped[first : first + len(rows)] = rows
        mapped.flush()
    elif array.ndim == 3:
        pages = (page for _, rows in iterate_rows(array) for page in rows)
        tifffile.imwrite(path, pages, compression=compression, **options)
    else:
        tifffile.imwrite(path, _cut_tiles(array), compression=compression, tile=(_TILE, _TILE), **options)


def _cut_tiles(image: AnyArray) -> Iterator[NDArray[Any]]:
    for first in range(0, image.shape[0], _TILE):
        rows = image[first : first + _TILE]
        for column in range(0, image.shape[1], _TILE):
            yield rows[:, column : column + _TILE]


def _choose_series(tiff: tifffile.TiffFile) -> tuple[tifffile.TiffPageSeries, tuple[str, ...]]:
    """Return the one image or stack of a file, and a note on what belongs to it and is not read."""
    whole = [series for series in tiff.series if not series.keyframe.subfiletype & _REDUCED_OR_MASK]
    if len(whole) == 1:
        return whole[0], () if len(tiff.series) == 1 else ("its reduced copies and transparency masks are not read",)
    kinds = ", ".join(f"{' x '.join(map(str, series.shape))} {series.dtype}" for series in tiff.series[:_SHOWN_SERIES])
    more = ", ..." if len(tiff.series) > _SHOWN_SERIES else ""
    raise NotAnImageError(
        f"its {len(tiff.pages)} pages are {len(tiff.series)} images ({kinds}{more}): an image and its thumbnail, or "
        "several series. Save the image, or the stack, that is meant in a file of its own"
    )


def _check_planes(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> None:
    """Check that the planes that an OME text names are the pages of its file: tifffile reads those of other files too,
    zeros in the place of missing ones, and no page that is not named."""
    held = sum(page is not None and page.parent is tiff for page in series.pages)
    named = sum(len(own.pages) for own in tiff.series)
    if held < len(series.pages) or named < len(tiff.pages):
        raise NotAnImageError(
            f"its OME text names {named} planes, {named - held} of them in other files or nowhere, and it has "
            f"{len(tiff.pages)} pages. Save the whole image in one file, for example with Bio-Formats in Fiji"
        )


def _lay_out(series: tifffile.TiffPageSeries, reading: Reading) -> tuple[AxisLayout, tuple[str, ...]]:
    """Return the layout and a note on a guess: that of the file's axes, where it names them and no setting does."""
    page = series.keyframe
    if page.photometric in _OTHER_COLORS and not (page.photometric == _Color.YCBCR and page.compression in _JPEG):
        raise NotAnImageError(f"its colors are {page.photometric.name}: save it as RGB or gray")
    if reading.axes is None and ("S" in series.axes or {*"QI"}.isdisjoint(series.axes)):
        layout = lay_out_axes(series.shape, series.axes)
        guess = (PLANES,) * (layout.channel is not None and layout.channel < min(layout.spatial) and "S" in series.axes)
    else:
        layout, guess = lay_out_array(series.shape, reading, is_pages=True)
    tag = page.tags.get(ORIENTATION)
    layout, turned = turn_upright(layout, 1 if tag is None else int(tag.value))
    return layout, (*guess, *turned)


def _is_array_of_bool(page: tifffile.TiffPage | tifffile.TiffFrame) -> bool:
    """Return whether tifffile (or scikit-image, which calls it) wrote an array of bool: unasked, it calls zero white
    and keeps the bits, so that what was True is 1."""
    tag = page.tags.get("Software")
    by_tifffile = tag is not None and str(tag.value).startswith("tifffile")
    return page.photometric == _Color.MINISWHITE and page.bitspersample == 1 and by_tifffile


def _invert(voxels: NDArray[Any], bits: int, *, is_mask: bool) -> tuple[NDArray[Any], str]:
    """Return the values of a file whose zero is white so that they grow with brightness."""
    if voxels.dtype.kind not in "bu":
        return voxels, f"zero is white in its file, and its {voxels.dtype} values are read as stored"
    top, values = 2**bits - 1, voxels.astype(np.uint8) if voxels.dtype.kind == "b" else voxels
    if is_mask:
        return invert_labels(values, top)
    return top - values, "zero is white in its file: its values are inverted, so that bright is large"


def _apply_palette(
    indices: NDArray[Any], layout: AxisLayout, palette: NDArray[Any], reading: Reading, *, is_display: bool
) -> tuple[NDArray[Any], AxisLayout, str, LabelColors]:
    """Return the labels of a mask, with their colors, the colors of an image, or its values where the palette is there
    for display."""
    if is_display:
        return indices, layout, "its color table is taken for one of display: the values are read", ()
    colors = (palette >> 8 if palette.max() > 255 else palette).astype(np.uint8)[:, indices]
    if reading.is_mask:
        labels, note, named = choose_palette_labels(indices, colors)
        return labels, layout, note, named
    if layout.channel is not None:
        return indices, layout, "its color table is taken for one of display: the values are read", ()
    return (
        colors,
        replace(layout, spatial=tuple(axis + 1 for axis in layout.spatial), channel=0),
        "the colors of its palette are read",
        (),
    )


def _has_boxes(series: tifffile.TiffPageSeries) -> bool:
    """Return whether a series is so large that its tiles or strips are decoded one by one, and can be."""
    page = series.keyframe
    whole = page.shape == series.shape[len(series.shape) - len(page.shape) :] and page.planarconfig == 1
    return bool(series.nbytes >= BOXES_FROM and whole and len(series.pages) * prod(page.shape) == prod(series.shape))


def _find_chunks(series: tifffile.TiffPageSeries) -> tuple[int, ...]:
    page = series.keyframe
    return (*(1 for _ in range(len(series.shape) - len(page.shape))), *page.chunks, *page.shape[len(page.chunks) :])


def _fetch_segments(path: Path, selection: Box) -> NDArray[Any]:
    """Return a part of a series of pages; only the tiles or strips that it touches are decoded."""
    with _open_quietly(path) as tiff:
        series, _ = _choose_series(tiff)
        keyframe, lead = series.keyframe, len(series.shape) - len(series.keyframe.shape)
        found = np.zeros([part.stop - part.start for part in selection], series.dtype)
        flat = found.reshape(-1, *found.shape[lead:], *(() if len(keyframe.shape) == 3 else (1,)))
        y, x, *samples = selection[lead:]
        depth = samples[0] if samples else slice(None)
        touched = []
        for number in range(len(keyframe.dataoffsets)):
            _, (_, _, top, left, _), (_, height, width, _) = keyframe.decode(None, number)
            if top < y.stop and top + height > y.start and left < x.stop and left + width > x.start:
                touched.append((number, top, left))
        places = itertools.product(*(range(part.start, part.stop) for part in selection[:lead]))
        for out, place in zip(flat, places, strict=True):
            page = series.pages[int(np.ravel_multi_index(place, series.shape[:lead])) if lead else 0]
            for number, top, left in () if page is None else touched:
                tiff.filehandle.seek(page.dataoffsets[number])
                packed = tiff.filehandle.read(page.databytecounts[number])
                tables = (
                    {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
                    if keyframe.compression in _JPEG
                    else {}
                )
                segment = keyframe.decode(packed or None, number, **tables)[0]
                if segment is None:  # not stored: zeros
                    continue
                rows, columns = (
                    (max(first, part.start), min(first + size, part.stop))
                    for first, size, part in zip((top, left), segment.shape[1:3], (y, x), strict=True)
                )
                part = segment[0, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left, depth]
                out[rows[0] - y.start : rows[1] - y.start, columns[0] - x.start : columns[1] - x.start] = part
    return found


def _decode(series: tifffile.TiffPageSeries, path: Path) -> NDArray[Any]:
    try:
        return np.asarray(series.asarray(maxworkers=1))
    except (ValueError, ImportError) as error:
        if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
            raise
        page = series.keyframe
        codec = page.compression.name + ("" if page.predictor == 1 else f", {page.predictor.name} predictor")
        raise DataError(
            f"{path}: its compression ({codec}) needs the package imagecodecs. "
            "Run pip install 'ssl-seg[codecs]', or save the file uncompressed or with zlib."
        ) from error


def _find_nodata(page: Any) -> float | None:
    """Return the value that GDAL writes where nothing was measured, or None."""
    tag = page.tags.get("GDAL_NODATA")
    try:
        return None if tag is None else float(tag.value)
    except (TypeError, ValueError):
        return None


def _find_geometry(tiff: tifffile.TiffFile, layout: AxisLayout) -> Geometry | None:
    """Return the spacing if it is known for all axes; dots per inch are a matter of printers and do not count."""
    sizes, unit = _imagej_sizes(tiff) if tiff.is_imagej else _ome_sizes(tiff.ome_metadata or "")
    *depth, y, x = layout.spatial
    axes = "YX" if y < x else "XY"  # rows and columns of the file
    return make_geometry(tuple(sizes.get(axis, 0.0) for axis in "Z" * len(depth) + axes), unit=unit)


def _imagej_sizes(tiff: tifffile.TiffFile) -> tuple[dict[str, float], str | None]:
    """Return the size of a voxel by axis, and its unit: one number is in the text, two in the resolution tags."""
    metadata, tags = tiff.imagej_metadata or {}, tiff.pages[0].tags
    unit = str(metadata.get("unit", "pixel"))
    if unit in ("", "pixel", "inch"):
        return {}, None
    sizes = {"Z": float(metadata.get("spacing", 0))}
    for axis, tag in (("Y", "YResolution"), ("X", "XResolution")):
        if tag in tags and tags[tag].value[0] > 0:
            pixels, length = tags[tag].value
            sizes[axis] = length / pixels
    return sizes, "µm" if unit in ("micron", "um", "\\u00B5m", "µm") else unit


def _ome_sizes(xml: str) -> tuple[dict[str, float], str | None]:
    """Return size and unit of a voxel by axis from the first ``Pixels`` element; nothing where units differ."""
    element = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    pixels = dict(re.findall(r'\bPhysicalSize([XYZ](?:Unit)?)="([^"]+)"', element[0])) if element else {}
    sizes = {axis: float(value) for axis, value in pixels.items() if len(axis) == 1}
    units = {pixels.get(f"{axis}Unit", "µm") for axis in sizes}
    return (sizes, units.pop()) if len(units) == 1 else ({}, None)


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
