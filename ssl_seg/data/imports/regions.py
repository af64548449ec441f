"""Readers of what Fiji and QuPath save for one image: selections (.roi, or a .zip of them), and GeoJSON."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.stored import name_errors
from ssl_seg.data.imports.outlines import Images, Labels, Shape, note_left_out
from ssl_seg.data.imports.shapes import Patch, Size, check_points, fill_rings, make_ellipse
from ssl_seg.errors import DataError
from ssl_seg.files import decode_text, read_text

ROIS, GEOJSON = "Fiji", "GeoJSON"
_OBJECT = "object"
"""Class of what has none."""
_HEAD = 4096
_RECTANGLE, _OVAL, _WITHOUT_AREA, _OUTLINES = 1, 2, (3, 4, 5, 6, 9, 10), (0, 7, 8)
_SUBPIXEL = 128
_MOVE, _LINE, _CLOSE = 0, 1, 4

_Object = tuple[str, Sequence[Any], str]
"""Class, rings, and its place in the file for errors."""


def recognize(path: Path) -> str | None:
    """Return ``ROIS`` for selections of Fiji, ``GEOJSON`` for features of QuPath, or None."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".roi":
            return ROIS
        if suffix == ".zip" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return ROIS if any(name.endswith(".roi") for name in archive.namelist()) else None
        if suffix in (".geojson", ".json"):
            with path.open("rb") as file:
                head = decode_text(file.read(_HEAD), "replace")
            return GEOJSON if '"Feature' in head and (suffix == ".geojson" or '"geometry"' in head) else None
    except (OSError, zipfile.BadZipFile):
        pass
    return None


def read_rois(files: Sequence[Path], index: Images) -> Labels:
    """Read one file of selections an image, which has its name; each selection with an area is an object."""
    shapes, notes = _read(files, index, _list_rois)
    return Labels(shapes, {_OBJECT: 1}, notes=notes)


def read_geojson(files: Sequence[Path], index: Images) -> Labels:
    """Read one file of features an image, which has its name; classes are those of QuPath, numbered by their names."""
    shapes, notes = _read(files, index, _list_features)
    names = sorted({shape.label for found in shapes.values() for shape in found})
    return Labels(shapes, {name: n for n, name in enumerate(names, 1)}, notes=notes)


def _read(
    files: Sequence[Path], index: Images, list_objects: Callable[[Path], Iterator[_Object]]
) -> tuple[dict[Path, list[Shape]], tuple[str, ...]]:
    """Return the objects of the image that each file is named after (a.zip, a.geojson or a.tif.geojson of a.tif), and a
    note on those without an area, which have no rings."""
    shapes: dict[Path, list[Shape]] = {}
    left_out = 0
    for path in files:
        image = index.find_own(str(path.with_suffix("")), f"{path} (a file of an image has its name)", path, shapes)
        shapes[image] = []
        for label, rings, where in list_objects(path):
            left_out += not rings
            if rings:
                shapes[image].append(Shape(label, partial(_draw, rings, where)))
    return shapes, note_left_out(left_out)


def _draw(rings: Sequence[Any], where: str, size: Size) -> Patch:
    return fill_rings([check_points(ring, size, where) for ring in rings], size)


def _list_features(path: Path) -> Iterator[_Object]:
    try:
        data = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as GeoJSON ({error}). Copy or export it again.") from error
    features = data.get("features", [data]) if isinstance(data, dict) else data
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise DataError(f"{path}: GeoJSON is a list of features. Export the objects of the image again.")
    for number, feature in enumerate(features, 1):
        where = f"{path}, feature {number}"
        yield _read_class(feature), _read_geometry(feature, where), where


def _read_geometry(feature: Mapping[str, Any], where: str) -> list[Any]:
    """Return the rings of a polygon, outer ones and holes; none of what has no area."""
    geometry = feature.get("geometry")
    kind, coordinates = (
        (geometry.get("type"), geometry.get("coordinates")) if isinstance(geometry, dict) else ("", None)
    )
    if kind in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        return []
    polygons = {"Polygon": [coordinates], "MultiPolygon": coordinates}.get(str(kind))
    if not isinstance(polygons, list) or not all(isinstance(rings, list) and rings for rings in polygons):
        raise DataError(f"{where}: a geometry is a Polygon or a MultiPolygon with coordinates; this is '{kind}'.")
    return [ring for rings in polygons for ring in rings]


def _read_class(feature: Mapping[str, Any]) -> str:
    properties = feature.get("properties")
    found = properties.get("classification") if isinstance(properties, dict) else None
    if not isinstance(found, dict):
        return str(found) if found else _OBJECT
    names = found.get("names") or [found.get("name")]  # a class of several parts has a list of them
    return ": ".join(map(str, names)) if isinstance(names, list) and all(names) else _OBJECT


def _list_rois(path: Path) -> Iterator[_Object]:
    with name_errors(str(path)):
        if path.suffix.lower() == ".roi":
            yield _OBJECT, _read_roi(path.read_bytes(), str(path)), str(path)
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".roi"):
                    where = f"{path}, {name}"
                    yield _OBJECT, _read_roi(archive.read(name), where), where


def _read_roi(data: bytes, where: str) -> list[NDArray[np.float64]]:
    """Return the outlines (n, 2) of (x, y) of a selection, which are filled by the even-odd rule; none without area.

    The format is that of ImageJ's RoiDecoder: big-endian, a header of 64 bytes, then the coordinates.

    Raises:
        DataError: for what is damaged, or made of curves.
    """
    try:
        if data[:4] != b"Iout":
            raise ValueError("it does not begin with 'Iout'")
        version, kind = int(np.frombuffer(data, ">i2", 1, 4)[0]), data[6]
        top, left, bottom, right = np.frombuffer(data, ">i2", 4, 8).astype(float)
        count, compound = int(np.frombuffer(data, ">u2", 1, 16)[0]), int(np.frombuffer(data, ">i4", 1, 36)[0])
        is_fine = version >= 222 and bool(np.frombuffer(data, ">u2", 1, 50)[0] & _SUBPIXEL)
        if compound > 0:
            return _read_path(np.frombuffer(data, ">f4", compound, 64).astype(float))
        if kind in _WITHOUT_AREA:
            return []
        if kind in (_RECTANGLE, _OVAL):
            if is_fine:
                left, top, width, height = np.frombuffer(data, ">f4", 4, 18).astype(float)
                right, bottom = left + width, top + height
            return [_outline_box(left, top, right, bottom, is_oval=kind == _OVAL)]
        if kind not in _OUTLINES:
            raise ValueError(f"its type is {kind}")
        if is_fine:
            return [np.frombuffer(data, ">f4", 2 * count, 64 + 4 * count).astype(float).reshape(2, count).T]
        return [np.frombuffer(data, ">i2", 2 * count, 64).astype(float).reshape(2, count).T + np.array([left, top])]
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{where}: this selection cannot be read ({error}). Save it again in Fiji.") from error


def _outline_box(left: float, top: float, right: float, bottom: float, *, is_oval: bool) -> NDArray[np.float64]:
    if is_oval:
        return make_ellipse(((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2))
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _read_path(values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the rings of a composite selection, one made of several or with holes: moves, lines and ends."""
    rings: list[list[NDArray[np.float64]]] = []
    place = 0
    while place < len(values):
        segment = int(values[place])
        if segment == _CLOSE:
            place += 1
            continue
        if segment not in (_MOVE, _LINE):
            raise ValueError("it is made of curves; turn it into a polygon by Edit > Selection > Interpolate")
        if segment == _MOVE:
            rings.append([])
        rings[-1].append(values[place + 1 : place + 3])
        place += 3
    return [np.array(ring) for ring in rings if len(ring) > 2]
