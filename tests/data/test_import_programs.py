"""Labels as programs save them: Fiji, QuPath, CVAT, Label Studio."""

from __future__ import annotations

import base64
import json
import zipfile
import zlib
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ssl_seg.data.imports import find_labels, import_labels
from ssl_seg.errors import DataError

SIZE = (48, 64)
ROIS = {
    "0001-0012.roi": "eNrzzC8tYXjKzsDAysDFIMogz8DCQAhoILEDgFgECCGAHwgxwQQg5mQgFhiAoSGDLpQ2AgA9RwXd",
    "0002.roi": "eNrzzC8tYXjKzsDAwaDBIMZgysDMQAisQGKnADEPAxuYzeukxMDgFATEVgwMjixQvAyrGUuAmIWBWGAAhkYAny4Ihg==",
    "0003.roi": "eNrzzC8tYXjMyMAgx8DMoMPAyUAacMAi1gDELESbYACGxgCqWgRj",
    "0004.roi": "eNrzzC8tYXjMxMAgwyDCoMOgwUAacMAi1gDELESbYACGJgDA0wST",
    "0005.roi": "eNrzzC8tYXjKxcDACoRsQMjIQAhoILFdcKhpAWIWBmKBARiaAgCs4QRh",
    "0006.roi": "eNrzzC8tYXjMyMAgwaDDoMdgw4AdSOEQXwEinAwYGBwPMDDYNwDZBahsJwso2wDCdmiAaHRyAKp7AJVLQGU7KUDZDhA2TA8"
    "aeAHELAzEAgMwNAMAu6UWLg==",
}
"""A RoiSet as the library roifile writes it: a polygon of whole pixels, one of parts of pixels, a rectangle, an oval, a
point, and a composite of a rectangle with a hole."""


def unpack(name: str) -> bytes:
    return zlib.decompress(base64.b64decode(ROIS[name]))


def write_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, size, np.uint8)).save(path)
    return path


def write_rois(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_json(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


def read_mask(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def centers() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x and y of the centers of all pixels."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    return x, y


def is_in(x0: float, y0: float, x1: float, y1: float) -> NDArray[np.bool_]:
    x, y = centers()
    return (x > x0) & (x < x1) & (y > y0) & (y < y1)


def test_a_roi_set_of_fiji(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "cell.tif")
    write_rois(tmp_path / "in" / "cell.zip", {name: unpack(name) for name in ROIS})
    notes = import_labels(tmp_path / "in", tmp_path / "out")
    assert any("1 shape without an area (point or line) is left out" in note for note in notes)
    x, y = centers()
    triangle = (y > 8.25) & (abs(x - 46.5) * 12.5 < 6 * (20.75 - y) + 1e-9 * (x < 46.5))  # a left border belongs to it
    oval = ((x - 30) / 10) ** 2 + ((y - 36) / 8) ** 2 < 1
    composite = is_in(44, 24, 60, 46) & ~is_in(48, 28, 56, 40)
    expected = is_in(10, 5, 30, 20) | triangle | is_in(3, 30, 9, 44) | oval | composite
    mask = read_mask(tmp_path / "out" / "masks" / "cell.png")
    assert np.array_equal(mask, expected)
    import_labels(tmp_path / "in", tmp_path / "objects", instances=True)
    objects = read_mask(tmp_path / "objects" / "masks" / "cell.png")
    assert sorted(np.unique(objects)) == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(objects > 0, expected)


def test_a_single_selection_of_fiji(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "a.roi").write_bytes(unpack("0003.roi"))
    import_labels(tmp_path, tmp_path / "out")
    assert np.array_equal(read_mask(tmp_path / "out" / "masks" / "a.png"), is_in(3, 30, 9, 44))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Iout", "this selection cannot be read"),
        (b"no selection" * 20, "does not begin with 'Iout'"),
        (unpack("0001-0012.roi")[:70], "this selection cannot be read"),
        (unpack("0006.roi")[:80], "this selection cannot be read"),
        (unpack("0006.roi").replace(np.array([1], ">f4").tobytes(), np.array([3], ">f4").tobytes()), "curves"),
        (unpack("0006.roi").replace(np.array([1], ">f4").tobytes(), np.array([np.inf], ">f4").tobytes()), "infinity"),
        (unpack("0003.roi")[:6] + b"\x63" + unpack("0003.roi")[7:], "its type is 99"),
    ],
)
def test_an_unusable_selection_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    write_image(tmp_path / "in" / "cell.png")
    write_rois(tmp_path / "in" / "cell.zip", {"good.roi": unpack("0003.roi"), "bad.roi": data})
    with pytest.raises(DataError, match=message) as raised:
        import_labels(tmp_path / "in", tmp_path / "out")
    assert "cell.zip, bad.roi" in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["stored bytes", "encrypted"])
def test_a_damaged_roi_set_is_named(tmp_path: Path, damage: str) -> None:
    write_image(tmp_path / "in" / "cell.png")
    path = write_rois(tmp_path / "in" / "cell.zip", {"a.roi": unpack("0003.roi")})
    packed = bytearray(path.read_bytes())
    if damage == "encrypted":  # a bit of the flags, in the entry and in the directory
        packed[6] |= 1
        packed[packed.index(b"PK\1\2") + 8] |= 1
    else:
        packed[60] ^= 255
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"cell\.zip: cannot be read"):
        import_labels(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_roi_set_is_of_the_image_of_its_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "in" / f"{name}.png")
    write_rois(tmp_path / "in" / "RoiSet.zip", {"0003.roi": unpack("0003.roi")})
    with pytest.raises(DataError, match=r"RoiSet\.zip \(a file of an image has its name\).*there is none"):
        import_labels(tmp_path / "in", tmp_path / "out")
    write_rois(tmp_path / "in" / "other.zip", {"readme.txt": b"x"})
    (tmp_path / "in" / "RoiSet.zip").unlink()
    assert find_labels(tmp_path / "in") is None


@pytest.mark.parametrize(
    ("classification", "expected"),
    [
        ({"names": ["Tumor", "Positive"]}, "Tumor: Positive"),
        ("Tumor", "Tumor"),
        ({"name": "Tumor", "color": [1, 2, 3]}, "Tumor"),
        ({"color": [1, 2, 3]}, "object"),
        (None, "object"),
    ],
)
def test_classes_of_qupath(tmp_path: Path, classification: Any, expected: str) -> None:
    write_image(tmp_path / "in" / "slide.tif")
    feature = make_feature("Polygon", [ring(2, 2, 20, 20)])
    feature["properties"]["classification"] = classification
    write_json(tmp_path / "in" / "slide.geojson", [feature])
    import_labels(tmp_path / "in", tmp_path / "out")
    classes = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert classes == {"0": "background", "1": expected}


def make_feature(kind: str, coordinates: Any, name: str | None = None) -> dict[str, Any]:
    found = {} if name is None else {"classification": {"name": name, "color": [200, 0, 0]}}
    properties = {"objectType": "annotation", **found}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "5a1c", "geometry": geometry, "properties": properties}


def ring(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


FEATURES = [
    make_feature("Polygon", [ring(2, 2, 20, 20), ring(6, 6, 12, 14)], "Tumor"),
    make_feature("MultiPolygon", [[ring(30, 5, 40, 9)], [ring(50, 5, 60, 9)]], "Stroma"),
    make_feature("Point", [5, 40]),
    make_feature("Polygon", [ring(30, 30, 50, 44)]),
]


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("name", ["slide.geojson", "slide.tif.geojson", "slide.json"])
def test_objects_of_qupath(tmp_path: Path, name: str, as_list: bool) -> None:
    write_image(tmp_path / "in" / "slide.tif")
    write_json(tmp_path / "in" / name, FEATURES if as_list else {"type": "FeatureCollection", "features": FEATURES})
    notes = import_labels(tmp_path / "in", tmp_path / "out")
    assert any("1 shape without an area (point or line) is left out" in note for note in notes)
    expected = np.zeros(SIZE, np.uint8)
    expected[is_in(30, 5, 40, 9) | is_in(50, 5, 60, 9)] = 1
    expected[is_in(2, 2, 20, 20) & ~is_in(6, 6, 12, 14)] = 2
    expected[is_in(30, 30, 50, 44)] = 3
    assert np.array_equal(read_mask(tmp_path / "out" / "masks" / "slide.png"), expected)
    classes = json.loads(next((tmp_path / "out").glob("*.json")).read_text())
    assert classes == {"0": "background", "1": "Stroma", "2": "Tumor", "3": "object"}


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (make_feature("Circle", [ring(0, 0, 9, 9)]), "a Polygon or a MultiPolygon"),
        (make_feature("Polygon", []), "a Polygon or a MultiPolygon"),
        (make_feature("Polygon", [[[1, 1], [2, 2]]]), "three points or more"),
        (make_feature("Polygon", [[["a", "b"]]]), "in numbers"),
        (make_feature("Polygon", [ring(0, 0, 900, 9)]), "Is it the image that was annotated"),
        ({**make_feature("Polygon", []), "geometry": None}, "a Polygon or a MultiPolygon"),
    ],
)
def test_an_unusable_feature_is_named(tmp_path: Path, feature: dict[str, Any], message: str) -> None:
    write_image(tmp_path / "in" / "slide.png")
    write_json(tmp_path / "in" / "slide.geojson", {"type": "FeatureCollection", "features": [FEATURES[0], feature]})
    with pytest.raises(DataError, match=message) as raised:
        import_labels(tmp_path / "in", tmp_path / "out")
    assert "slide.geojson, feature 2" in str(raised.value)


def test_a_geojson_that_is_cut_off_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "slide.png")
    text = json.dumps({"type": "FeatureCollection", "features": FEATURES})
    (tmp_path / "in" / "slide.geojson").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"slide\.geojson: cannot be read as GeoJSON"):
        import_labels(tmp_path / "in", tmp_path / "out")


def test_coco_of_cvat_with_a_brush_and_a_polygon(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "images" / "default" / "cell.png")
    brush = np.zeros(SIZE, bool)
    brush[10:20, 5:9] = True
    counts = [len(list(run)) for _, run in groupby(brush.T.ravel())]  # down the columns, background first
    common = {"image_id": 1, "category_id": 1, "attributes": {"occluded": False}, "area": 40.0, "bbox": [5, 10, 4, 10]}
    polygon = [float(v) for point in ring(30, 30, 40, 40)[:4] for v in point]
    runs = {"counts": counts, "size": list(SIZE)}
    values = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [{"id": 1, "name": "cell", "supercategory": ""}],
        "images": [
            {"id": 1, "width": 64, "height": 48, "file_name": "cell.png", "license": 0, "flickr_url": "",
             "coco_url": "", "date_captured": 0}
        ],
        "annotations": [
            {"id": 1, "segmentation": runs, "iscrowd": 1, **common},
            {"id": 2, "segmentation": [polygon], "iscrowd": 0, **common},
        ],
    }  # fmt: skip
    (tmp_path / "in" / "annotations").mkdir()
    write_json(tmp_path / "in" / "annotations" / "instances_default.json", values)
    import_labels(tmp_path / "in" / "annotations" / "instances_default.json", tmp_path / "out")
    assert np.array_equal(read_mask(tmp_path / "out" / "masks" / "cell.png"), brush | is_in(30, 30, 40, 40))


def test_coco_of_label_studio(tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "images" / "9c2f1a7e-cell.png")
    polygon = [float(v) for point in ring(30, 30, 40, 40)[:4] for v in point]
    values = {
        "images": [{"width": 64, "height": 48, "id": 0, "file_name": "images\\9c2f1a7e-cell.png"}],
        "categories": [{"id": 0, "name": "cell"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "segmentation": [polygon], "bbox": [30, 30, 10, 10],
             "ignore": 0, "iscrowd": 0, "area": 100}
        ],
        "info": {"year": 2025, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""},
    }  # fmt: skip
    write_json(tmp_path / "in" / "result.json", values)
    import_labels(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(read_mask(tmp_path / "out" / "masks" / "9c2f1a7e-cell.png"), is_in(30, 30, 40, 40))
