"""Labels that are no mask images: read as an independent program reads them, or refused by name."""

from __future__ import annotations

import base64
import csv
import json
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from PIL import Image
from typer.testing import CliRunner

from ssl_seg.cli import app
from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.imports import _write, find_labels, import_labels
from ssl_seg.data.imports.outlines import Images, Labels, Shape
from ssl_seg.data.imports.shapes import fill_polygons, fill_runs, unpack_counts
from ssl_seg.data.layouts import find_listing
from ssl_seg.data.volumes import read_mask
from ssl_seg.errors import DataError

SIZE = (24, 36)


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8))
    return path


def write_json(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def box(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def place(patch: tuple[int, int, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    top, left, inside = patch
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


def write_coco(root: Path, entries: list[dict[str, Any]], **changes: Any) -> Path:
    for n in range(2):
        write_image(root / "train" / f"a{n}.png", seed=n)
    values = {
        "images": [{"id": 10 + n, "file_name": f"train/a{n}.png", "height": 24, "width": 36} for n in range(2)],
        "annotations": [{"id": n, "image_id": 10, "category_id": 5, **a} for n, a in enumerate(entries)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 5, "name": "cat"}, {"id": 7, "name": "unused"}],
    }
    return write_json(root / "annotations" / "instances.json", values | changes)


# shapes


@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 30)), min_size=3, max_size=9))
def test_a_pixel_is_in_an_outline_if_its_center_is(points: list[tuple[float, float]]) -> None:
    array = np.array(points)
    found = place(fill_polygons([array], SIZE), SIZE)
    centers = np.stack(np.meshgrid(np.arange(36) + 0.5, np.arange(24) + 0.5), axis=-1).reshape(-1, 2)
    # Winding and parity agree for each triangle; sums of the triangles of a fan, modulo 2, are the parity of the whole.
    parity = np.zeros(len(centers), int)
    near = np.zeros(len(centers), bool)
    for b, c in pairwise(array[1:]):
        triangle = np.array([array[0], b, c])
        (ux, uy), (vx, vy) = triangle[1] - triangle[0], triangle[2] - triangle[0]
        if abs(ux * vy - uy * vx) > 1e-9:
            parity += Outline([*triangle, triangle[0]], closed=True).contains_points(centers)
        for p, q in ((array[0], b), (b, c), (array[0], c)):
            t = np.clip(((centers - p) @ (q - p)) / max(float((q - p) @ (q - p)), 1e-30), 0, 1)
            near |= np.linalg.norm(centers - p - t[:, None] * (q - p), axis=1) < 1e-3
    np.testing.assert_array_equal(found.ravel()[~near], (parity % 2 == 1)[~near])


def test_outlines_that_share_a_border_share_no_pixel_and_leave_none_out() -> None:
    cut = [(0, 0), (36, 0), (17.5, 24), (0, 24)], [(36, 0), (36, 24), (17.5, 24)]
    parts = [place(fill_polygons([np.array(p, float)], SIZE), SIZE) for p in cut]
    assert (parts[0].astype(int) + parts[1] == 1).all()
    assert place(fill_polygons([np.array(box(10, 10, 20, 13)).reshape(-1, 2)], SIZE), SIZE).sum() == 30


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_runs_are_those_of_the_flat_mask(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    for by_rows, flat in ((False, mask.T.ravel()), (True, mask.ravel())):
        edges = np.flatnonzero(np.diff(np.pad(flat.astype(int), 1)))
        runs = edges[::2].tolist(), (edges[1::2] - edges[::2]).tolist()
        patch = fill_runs(*runs, (height, width), "here", by_rows=by_rows)
        np.testing.assert_array_equal(place(patch, mask.shape), mask)


def test_compressed_counts_are_those_of_pycocotools() -> None:
    # Written by pycocotools 2.0.10 of runs of these lengths.
    assert unpack_counts("52203") == [5, 2, 2, 2, 5]
    assert unpack_counts("T33X1Ql0oNoSO") == [100, 3, 40, 900, 7, 3]
    coco = pytest.importorskip("pycocotools.mask", reason="the oracle is not installed")
    rng = np.random.default_rng(0)
    for share in (0.0, 0.001, 0.1, 0.5, 1.0):
        mask = rng.random((90, 110)) < share
        counts = unpack_counts(coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())
        assert sum(counts) == mask.size
        flat = np.repeat(np.arange(len(counts)) % 2, counts)
        np.testing.assert_array_equal(flat.reshape(110, 90).T, mask)


# COCO


def test_coco(tmp_path: Path) -> None:
    runs = np.zeros(SIZE, bool)
    runs[2:6, 30:34] = True
    flat = np.flatnonzero(np.diff(np.concatenate([[0], runs.T.ravel().astype(int), [0]])))
    counts = np.diff([0, *flat, runs.size]).tolist()
    source = write_coco(
        tmp_path / "data",
        [
            {"segmentation": [box(2, 2, 12, 10)]},
            {"segmentation": [box(4, 4, 6, 6)], "category_id": 9},  # smaller, inside the first: on top
            {"segmentation": [box(15, 1, 18, 3), box(20, 1, 22, 3)], "category_id": 9},
            {"segmentation": {"size": [24, 36], "counts": counts}, "iscrowd": 1},
            {"segmentation": [box(14.6, 20, 14.9, 21)]},
        ],
    )
    notes = import_labels(source, tmp_path / "out")
    true = np.zeros(SIZE, int)
    true[2:10, 2:12], true[4:6, 4:6], true[1:3, 15:18], true[1:3, 20:22], true[2:6, 30:34] = 1, 3, 3, 3, 1
    np.testing.assert_array_equal(read_mask(str(tmp_path / "out/masks/a0.png")), true)
    assert not read_mask(str(tmp_path / "out/masks/a1.png")).any()
    text = "\n".join(notes)
    assert "2 images with masks (1 of them without an object), 0 without labels" in text
    assert "mask values: 1 cat, 3 dog" in text
    assert "1 object covers the center of no pixel" in text
    assert "1 object is partly hidden" in text
    assert (tmp_path / "out/images/a0.png").samefile(tmp_path / "data/train/a0.png")
    catalog = open_catalog(str(tmp_path / "out"))
    assert catalog.label_values == (0, 1, 3)
    assert [row["name"] for row in audit(str(tmp_path / "out")).summary["classes"]] == ["background", "cat", "dog"]
    import_labels(source, tmp_path / "numbers", instances=True)
    assert set(np.unique(read_mask(str(tmp_path / "numbers/masks/a0.png")))) == {0, 1, 2, 3, 4}


def test_a_compressed_coco_mask_is_drawn(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="the oracle is not installed")
    mask = np.random.default_rng(1).random(SIZE) < 0.3
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    segmentation = {"size": packed["size"], "counts": packed["counts"].decode()}
    import_labels(write_coco(tmp_path / "data", [{"segmentation": segmentation}]), tmp_path / "out")
    np.testing.assert_array_equal(read_mask(str(tmp_path / "out/masks/a0.png")) == 1, mask)


@pytest.mark.parametrize(
    ("entry", "changes", "message"),
    [
        ({"segmentation": []}, {}, "annotation 0: it has no segmentation, only a box"),
        ({"segmentation": [[1, 1, 5, 5]]}, {}, "annotation 0: an outline has three points"),
        ({"segmentation": [[1, 1, 5, 5, 3]]}, {}, "annotation 0: an outline is a list of x, y"),
        ({"segmentation": [[1, 1, 5, 5, "a", 2]]}, {}, "annotation 0: an outline is a list of x, y"),
        ({"segmentation": "abc"}, {}, "annotation 0: a segmentation is a list"),
        ({"segmentation": [box(30, 2, 90, 9)]}, {}, "annotation 0: the outline spans x 30 .. 90"),
        ({"segmentation": {"size": [36, 24], "counts": [864]}}, {}, r"annotation 0: runs of 864 pixels .* \[36, 24\]"),
        ({"segmentation": {"size": [24, 36], "counts": [9, 9]}}, {}, "annotation 0: runs of 18 pixels"),
        ({"segmentation": {"size": [24, 36], "counts": "é"}}, {}, "annotation 0: its run lengths cannot be read"),
        ({"segmentation": {"size": [24, 36]}}, {}, "annotation 0: its run lengths cannot be read"),
        (
            {"segmentation": [box(1, 1, 5, 5)], "category_id": 8},
            {},
            "annotation 0: no category has the id 8; .* 5, 7, 9",
        ),
        ({"segmentation": [box(1, 1, 5, 5)], "image_id": 3}, {}, "annotation 0: no image has the id 3"),
        ({}, {"images": [{"id": 1, "file_name": "b.png"}]}, "image 1: image 'b.png': there is none below"),
        (
            {},
            {"images": [{"id": 1, "file_name": "train/a0.png", "height": 36, "width": 24}], "annotations": []},
            "24 x 36",
        ),
        ({}, {"images": [{"file_name": "b.png"}]}, "entry 1 of 'images' has no id"),
        (
            {},
            {"images": [{"id": n, "file_name": f"{part}/a0.png"} for n, part in ((1, "val"), (2, "train"))]},
            "image 2: .*a0.png is image 1 already",  # that of val/ is not there
        ),
        ({}, {"images": [{"id": 4, "file_name": f"a{n}.png"} for n in (0, 1)]}, "1 id.* several 'images' .* is 4"),
        ({}, {"categories": [{"id": 7, "name": n} for n in "ab"]}, "1 id.* several 'categories' .* is 7"),
        ({}, {"categories": {}}, "'categories' must be a list"),
        ({}, {"annotations": [3]}, "entry 1 of 'annotations' has no id"),
    ],
)
def test_unusable_coco_is_refused_by_name(tmp_path: Path, entry: Any, changes: Any, message: str) -> None:
    source = write_coco(tmp_path / "data", [entry], **changes)
    with pytest.raises(DataError, match=message):
        import_labels(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_labels_of_images_with_an_orientation_tag(tmp_path: Path, orientation: int) -> None:
    """Labels lie on what is seen, with a warning: a program may have shown the image otherwise."""
    source = write_coco(tmp_path / "data", [{"segmentation": [box(1, 2, 5, 8)]}])
    tag = Image.Exif()
    tag[274] = orientation
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "data" / "train" / "a0.png", exif=tag)
    if orientation == 6:
        with pytest.raises(DataError, match=r"24 wide and 36 high \(it is turned upright.*its labels are for 36 x 24"):
            import_labels(source, tmp_path / "out")
    else:
        said = import_labels(source, tmp_path / "out")
        assert any(line.startswith("WARNING 1 image: it is turned upright") for line in said) == (orientation == 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_labels_of_flat_nifti_are_drawn_only_where_its_pixels_are_read_as_stored(tmp_path: Path, sign: int) -> None:
    names = [f"a{n}.nii" for n in range(2)]
    images = [{"id": 10 + n, "file_name": name} for n, name in enumerate(names)]
    source = write_coco(tmp_path / "data", [{"segmentation": [box(1, 2, 5, 8)]}], images=images)
    for name in names:
        image = nibabel.Nifti1Image(np.zeros((36, 24, 1), np.uint8), np.diag([sign, sign, 1.0, 1.0]))
        nibabel.save(image, tmp_path / "data" / name)
    if sign < 0:
        with pytest.raises(DataError, match=r"a0\.nii: NIfTI that is stored along other axes"):
            import_labels(source, tmp_path / "out")
    else:
        import_labels(source, tmp_path / "out")
        np.testing.assert_array_equal(np.argwhere(read_mask(str(tmp_path / "out" / "masks" / "a0.png")))[0], [2, 1])


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, cut: float) -> None:
    source = write_coco(tmp_path / "data", [{"segmentation": [box(1, 1, 5, 5)]}])
    text = source.read_text()
    source.write_text(text[: int(cut * len(text))])
    done = CliRunner().invoke(app.app, ["data", "import", str(source), str(tmp_path / "out")])
    with pytest.raises(DataError, match=r"instances\.json: cannot be read as JSON"):
        import_labels(source, tmp_path / "out")
    assert done.exit_code != 0
    assert not (tmp_path / "out").exists()


def test_images_of_one_name_in_two_folders_are_told_apart_or_named(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "data", [{"segmentation": [box(1, 1, 5, 5)]}])
    write_image(tmp_path / "data" / "other" / "a0.png", seed=9)
    import_labels(source, tmp_path / "out")
    assert (tmp_path / "out/images/a0.png").samefile(tmp_path / "data/train/a0.png")
    source.write_text(source.read_text().replace("train/a0", "a0"))
    with pytest.raises(DataError, match=r"image 'a0.png': there are 2 of that name .* --images"):
        import_labels(source, tmp_path / "again")
    import_labels(source, tmp_path / "again", images=tmp_path / "data" / "train")
    assert len(find_listing(tmp_path / "again").cases) == 2


def test_nothing_is_overwritten_and_several_files_are_named(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "data", [])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"out exists already and is never overwritten: choose .*out-2"):
        import_labels(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    source.with_name("other.json").write_text(source.read_text())
    with pytest.raises(
        DataError, match=r"2 files of COCO labels \(annotations/instances.json, annotations/other.json\)"
    ):
        import_labels(tmp_path / "data", tmp_path / "new")
    with pytest.raises(DataError, match="holds no labels that can be imported"):
        import_labels(tmp_path / "out", tmp_path / "new")
    with pytest.raises(DataError, match="does not exist"):
        import_labels(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(DataError, match="--by-rows is for a table"):
        import_labels(source, tmp_path / "new", by_rows=True)


# labelme


def write_labelme(folder: Path, name: str, shapes: list[dict[str, Any]], **changes: Any) -> Path:
    write_image(folder / f"{name}.png")
    values = {"version": "5", "shapes": shapes, "imagePath": f"..\\x\\{name}.png", "imageHeight": 24, "imageWidth": 36}
    return write_json(folder / f"{name}.json", values | changes)


def test_labelme(tmp_path: Path) -> None:
    inner = np.zeros((4, 5), np.uint8)
    inner[1:3, 1:4] = 255
    mask = base64.b64encode(cv2.imencode(".png", inner)[1].tobytes()).decode()
    write_labelme(
        tmp_path / "data",
        "a",
        [
            {"label": "wall", "shape_type": "rectangle", "points": [[20, 2], [30, 5]]},
            {"label": "cell", "shape_type": "circle", "points": [[8, 12], [8, 17]]},
            {"label": "cell", "shape_type": "mask", "points": [[28, 15], [32, 18]], "mask": mask},
            {"label": "cell", "points": [[20, 10], [24, 10], [24, 12], [20, 12]]},
            {"label": "spot", "shape_type": "point", "points": [[1, 1]]},
        ],
    )
    write_labelme(tmp_path / "data", "b", [])
    write_image(tmp_path / "data" / "c.png")
    notes = "\n".join(import_labels(tmp_path / "data", tmp_path / "out"))
    true = np.zeros(SIZE, int)
    y, x = np.mgrid[:24, :36] + 0.5
    true[(x - 8) ** 2 + (y - 12) ** 2 < 25] = 1
    true[16:18, 29:32], true[10:12, 20:24], true[2:5, 20:30] = 1, 1, 2
    np.testing.assert_array_equal(read_mask(str(tmp_path / "out/masks/a.png")), true)
    assert not read_mask(str(tmp_path / "out/masks/b.png")).any()
    assert "mask values: 1 cell, 2 wall" in notes
    assert "1 shape without an area (point or line) is left out" in notes
    assert "1 without labels: unlabeled" in notes
    cases = find_listing(tmp_path / "out").cases
    assert [(case.id, case.mask is None) for case in cases] == [("a", False), ("b", False), ("c", True)]


def test_shapes_of_one_group_of_labelme_are_one_object(tmp_path: Path) -> None:
    places = [(2, "cell", 1), (10, "cell", 1), (18, "cell", None), (24, "wall", 1), (30, "cell", None)]
    corners = [(0, 0), (3, 0), (3, 3), (0, 3)]
    shapes = [
        {"label": label, "group_id": group, "points": [[left + x, 5 + y] for x, y in corners]}
        for left, label, group in places
    ]
    write_labelme(tmp_path / "data", "a", shapes)
    import_labels(tmp_path / "data", tmp_path / "out", instances=True)
    mask = read_mask(str(tmp_path / "out/masks/a.png"))
    numbers = [int(mask[6, left + 1]) for left, *_ in places]
    assert numbers[0] == numbers[1]
    assert sorted({*numbers}) == [1, 2, 3, 4]
    assert np.count_nonzero(mask) == 5 * 9


def test_labelme_files_of_one_name_belong_to_the_image_beside_them(tmp_path: Path) -> None:
    for folder, y in (("p", 2), ("q", 12)):
        write_image(tmp_path / "data" / folder / "images" / "1.png")
        shapes = [{"label": "a", "shape_type": "rectangle", "points": [[2, y], [9, y + 5]]}]
        write_json(tmp_path / "data" / folder / "json" / "1.json", {"shapes": shapes, "imagePath": "..\\images\\1.png"})
    import_labels(tmp_path / "data", tmp_path / "out")
    assert [(case.id, bool(case.mask)) for case in find_listing(tmp_path / "out").cases] == [
        ("p/1", True),
        ("q/1", True),
    ]
    for folder, y in (("p", 2), ("q", 12)):
        mask = read_mask(str(tmp_path / "out" / "masks" / folder / "1.png"))
        assert mask[y : y + 5, 2:9].sum() == mask.sum() == 35


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "a", "shape_type": "ellipse", "points": [[1, 1], [2, 2]]}, "shape 1: .* this is 'ellipse'"),
        ({"points": [[1, 1], [2, 2], [3, 1]]}, "shape 1: .* with a label"),
        ({"label": "a", "points": [[1, 1]]}, "shape 1: an outline has three points"),
        ({"label": "a", "points": [[1, 1], [900, 2], [3, 1]]}, "shape 1: the outline spans x 1 .. 900"),
        ({"label": "a", "shape_type": "circle", "points": []}, "shape 1: an outline has three points"),
        (
            {"label": "a", "shape_type": "mask", "points": [[1, 1], [2, 2]], "mask": "???"},
            "shape 1: its mask is damaged",
        ),
        ({"label": "a", "shape_type": "mask", "points": [[1, 1], [2, 2]]}, "shape 1: its mask is damaged"),
        (7, "shape 1: a shape has label"),
    ],
)
def test_unusable_labelme_is_refused_by_name(tmp_path: Path, shape: Any, message: str) -> None:
    write_labelme(tmp_path / "data", "a", [shape])
    with pytest.raises(DataError, match=message):
        import_labels(tmp_path / "data", tmp_path / "out")


# YOLO


def write_yolo(root: Path, lines: dict[str, str], names: str = "") -> Path:
    for name, text in lines.items():
        write_image(root / "images" / f"{name}.png", size=(20, 40))
        path = root / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.joinpath(path.name).write_text(text)
    if names:
        (root / "data.yaml").write_text(names)
    return root


@pytest.mark.parametrize(
    "names", ["names: [cell, wall]", "names: {0: cell, 1: wall}", "names: {5: x, 1: wall, 0: cell}", ""]
)
def test_yolo(tmp_path: Path, names: str) -> None:
    lines = "1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n\n0 0.6 0 1 0 1 0.2 0.6 0.2\n"
    root = write_yolo(tmp_path / "data", {"train": lines, "none": ""}, names)
    (root / "labels" / "train.txt").rename(root / "labels" / "k1.txt")
    (root / "images" / "train.png").rename(root / "images" / "k1.png")
    write_image(root / "images" / "more.png")
    notes = "\n".join(import_labels(root, tmp_path / "out"))
    true = np.zeros((20, 40), int)
    true[2:10, 4:20], true[:4, 24:] = 2, 1
    np.testing.assert_array_equal(read_mask(str(tmp_path / "out/masks/k1.png")), true)
    assert not read_mask(str(tmp_path / "out/masks/none.png")).any()
    assert ("1 cell, 2 wall" if names else "1 class 0, 2 class 1") in notes
    assert sorted(c.id for c in find_listing(tmp_path / "out").cases if c.mask is None) == ["more"]


@pytest.mark.parametrize("file", ["classes.txt", "obj.names", "labels/classes.txt", "data.yaml"])
def test_yolo_names_of_other_programs(tmp_path: Path, file: str) -> None:
    """Also where the images are elsewhere; one class may be named by a word."""
    root = write_yolo(tmp_path / "data", {"k1": "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"})
    (root / "images").rename(tmp_path / "images")
    (root / file).write_text("names: cell" if file == "data.yaml" else "cell\nwall\n")
    notes = import_labels(root, tmp_path / "out", images=tmp_path / "images")
    assert "mask values: 1 cell" in notes
    assert not any("class 0" in note for note in notes)


def test_yolo_of_two_parts_keeps_them_apart(tmp_path: Path) -> None:
    line = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
    for part, text in (("train", line), ("val", "")):
        write_image(tmp_path / "d" / "images" / part / "k1.png")
        (tmp_path / "d" / "labels" / part).mkdir(parents=True)
        (tmp_path / "d" / "labels" / part / "k1.txt").write_text(text)
    import_labels(tmp_path / "d", tmp_path / "out")
    cases = find_listing(tmp_path / "out").cases
    assert [(case.id, bool(case.mask)) for case in cases] == [("train/k1", True), ("val/k1", True)]
    assert read_mask(str(tmp_path / "out/masks/train/k1.png")).any()
    assert not read_mask(str(tmp_path / "out/masks/val/k1.png")).any()
    (tmp_path / "d" / "labels" / "train" / "k1.txt").rename(tmp_path / "d" / "labels" / "lost.txt")
    with pytest.raises(DataError, match=r"lost\.txt: image '.*d/labels/lost': there is none below"):
        import_labels(tmp_path / "d", tmp_path / "again")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "k.txt, line 1: this is a box, not an outline"),
        ("0 0.5 0.5 0.2 0.2 0.9", "k.txt, line 1: this is a box"),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5 0.2", "k.txt, line 1: an outline is a list of x, y"),
        ("0 10 10 50 10 50 50", "k.txt, line 1: the outline spans x 10 .. 50"),
        ("2 0.1 0.1 0.5 0.1 0.5 0.5", "k.txt, line 1: the class is '2'; there are names for 0, 1"),
    ],
)
def test_unusable_yolo_is_refused_by_name(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_labels(write_yolo(tmp_path / "data", {"k": line}, "names: [a, b]"), tmp_path / "out")


# run lengths


def write_runs(root: Path, columns: list[str], rows: list[tuple[str, ...]], folder: str = "images") -> Path:
    for n in range(3):
        write_image(root / folder / f"a{n}.jpg", seed=n)
    with (root / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return root / "train.csv"


@pytest.mark.parametrize("columns", [["ImageId", "EncodedPixels"], ["img", "rle_mask"], ["id", "rle"]])
@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_run_lengths_of_one_class(tmp_path: Path, columns: list[str], suffix: str) -> None:
    rows = [("a0" + suffix, "1 3 25 2"), ("a0" + suffix, "864 1"), ("a1" + suffix, "")]
    source = write_runs(tmp_path / "data", columns, rows)
    notes = "\n".join(import_labels(source, tmp_path / "out"))
    true = np.zeros(SIZE, int)
    true[:3, 0], true[:2, 1], true[23, 35] = 1, 1, 1
    np.testing.assert_array_equal(read_mask(str(tmp_path / "out/masks/a0.png")), true)
    assert not read_mask(str(tmp_path / "out/masks/a1.png")).any()
    assert "down the columns" in notes
    assert sorted(c.id for c in find_listing(tmp_path / "out").cases if c.mask is None) == ["a2"]
    import_labels(source, tmp_path / "rows", by_rows=True)
    true = np.zeros(SIZE, int)
    true[0, :3], true[0, 24:26], true[23, 35] = 1, 1, 1
    np.testing.assert_array_equal(read_mask(str(tmp_path / "rows/masks/a0.png")), true)


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (["ImageId", "ClassId", "EncodedPixels"], [("a0", "10", "1 3"), ("a0", "2", "25 2"), ("a1", "2", "-1")]),
        (["ImageId_ClassId", "EncodedPixels"], [("a0.jpg_10", "1 3"), ("a0.jpg_2", "25 2"), ("a1.jpg_2", "")]),
        (["Image_Label", "EncodedPixels"], [("a0.jpg_10", "1 3"), ("a0.jpg_2", "25 2"), ("a1.jpg_2", "")]),
    ],
)
def test_run_lengths_of_several_classes(tmp_path: Path, columns: list[str], rows: list[tuple[str, ...]]) -> None:
    notes = import_labels(write_runs(tmp_path / "data", columns, rows), tmp_path / "out")
    mask = read_mask(str(tmp_path / "out/masks/a0.png"))
    assert (mask[:3, 0] == 2).all()
    assert (mask[:2, 1] == 1).all()
    assert "mask values: 1 2, 2 10" in notes


def test_images_in_folders_of_their_own_are_cases_with_masks(tmp_path: Path) -> None:
    for name in ("4f", "7b"):
        write_image(tmp_path / "data" / "stage1_train" / name / "images" / f"{name}.png")
    (tmp_path / "data" / "labels.csv").write_text("ImageId,EncodedPixels\n4f,1 3\n4f,9 2\n7b,5 1\n")
    import_labels(tmp_path / "data", tmp_path / "out")
    catalog = open_catalog(str(tmp_path / "out"))
    assert [case.id for case in catalog.labeled] == ["4f/4f", "7b/7b"] == [case.id for case in catalog.cases]
    assert catalog.facts["4f/4f"].counts == (24 * 36 - 5, 5)


def test_a_mask_of_many_runs_is_read(tmp_path: Path) -> None:
    write_image(tmp_path / "data" / "images" / "a.png", size=(400, 400))
    (tmp_path / "data" / "t.csv").write_text("id,rle\na," + " ".join(f"{n} 1" for n in range(1, 400 * 400, 2)) + "\n")
    assert (tmp_path / "data" / "t.csv").stat().st_size > 131072
    import_labels(tmp_path / "data", tmp_path / "out")
    mask = read_mask(str(tmp_path / "out/masks/a.png"))
    assert mask[::2].all()
    assert not mask[1::2].any()


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1 3 5", "line 2: 3 numbers are not pairs"),
        ("1 3 x", "line 2: run lengths are whole numbers"),
        ("860 9", "line 2: the runs reach pixel 868; the image is 24 x 36, 864 pixels"),
        ("0 2", "line 2: a run starts at 0: starts count from 1"),
        ("30 4 25 5 21 5", "line 2: runs overlap: each start counts from the first pixel"),
        ("30 4 20 3 21 3", "line 2: runs overlap: each start counts from the first pixel"),
    ],
)
def test_unusable_run_lengths_are_refused_by_name(tmp_path: Path, runs: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_labels(write_runs(tmp_path / "data", ["id", "rle"], [("a0", runs)]), tmp_path / "out")


# what other commands say


def test_commands_name_the_file_and_the_command_that_reads_it(tmp_path: Path) -> None:
    roots = {
        "coco": write_coco(tmp_path / "coco", [{"segmentation": [box(1, 1, 9, 9)]}]).parents[1],
        "labelme": write_labelme(tmp_path / "labelme", "a", []).parent,
        "yolo": write_yolo(tmp_path / "yolo", {"k": "0 0.1 0.1 0.5 0.1 0.5 0.5"}),
        "runs": write_runs(tmp_path / "runs", ["ImageId", "EncodedPixels"], [("a0", "1 2")]).parent,
        "flat": write_runs(tmp_path / "flat", ["id", "rle"], [("a0", "1 2")], folder=".").parent,
        "table": write_runs(tmp_path / "table", ["image", "rle"], [("a0", "1 2")], folder="."),
    }
    for name, root in roots.items():
        for words in (["data", "audit"], ["train", "--data"]):
            done = CliRunner().invoke(app.app, [*words, str(root)])
            text = " ".join((done.output + str(done.exception)).split())
            assert done.exit_code != 0, (name, text)
            (command,) = set(re.findall(r"`ssl-seg (data import \S+) \S+`", text))
            assert "none of the" not in text
        done = CliRunner().invoke(app.app, [*command.split(), str(tmp_path / "made" / name)])
        assert done.exit_code == 0, done.output
        assert audit(str(tmp_path / "made" / name)).summary["counts"]["labeled"] >= 1


def test_masks_beside_labels_need_no_import(tmp_path: Path) -> None:
    write_labelme(tmp_path / "images", "a", [])
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.ones(SIZE, np.uint8))
    assert not [f for f in find_listing(tmp_path).findings if f.code == "labels_to_import"]
    assert find_labels(tmp_path) is not None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["COCO", "run-length", "YOLO"])
def test_labels_as_windows_writes_them(tmp_path: Path, kind: str, encoding: str) -> None:
    """A file that is not recognized would leave its image unlabeled."""
    root = tmp_path / "data"
    if kind == "COCO":
        path = write_coco(root, [])
    elif kind == "YOLO":
        path = write_yolo(root, {"a": "0 0.1 0.1 0.5 0.1 0.5 0.5\n", "b": ""}) / "labels" / "a.txt"
    else:
        path = write_runs(root, ["id", "rle"], [("a0", "1 3")])
    path.write_bytes(path.read_text().encode(encoding))
    found = find_labels(root)
    assert found is not None
    assert found.kind == kind
    assert path in found.files
    assert import_labels(found.source, tmp_path / "out", images=root)


def test_a_table_in_another_encoding_says_so(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "data", ["id", "rle"], [("é", "1 3")])
    path.write_bytes(path.read_text().encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.csv: the table cannot be read .* Save it as UTF-8"):
        import_labels(path, tmp_path / "out")


@pytest.mark.parametrize(("value", "suffix"), [(2**16 - 1, ".png"), (2**16, ".tif"), (3 * 2**16, ".tif")])
def test_more_values_than_a_png_holds(tmp_path: Path, value: int, suffix: str) -> None:
    """As of 65,536 objects in an image, which take seconds to draw."""
    image = write_image(tmp_path / "a.png")
    shape = Shape("x", lambda size: (0, 0, np.eye(*size, dtype=bool)))
    _write(Labels({image: [shape]}, {"x": value}), Images(tmp_path), tmp_path / "out", instances=False)
    mask = read_mask(str(tmp_path / "out" / "masks" / f"a{suffix}"))
    np.testing.assert_array_equal(mask, value * np.eye(*SIZE, dtype=int))


def test_other_tables_and_texts_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "paths.csv").write_text("image,segmentation\na.png,b.png\n")
    (tmp_path / "none.csv").write_text("id,rle\na,\n")
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.txt").write_text("seen on 3 May\n")
    (tmp_path / "areas.csv").write_text("image,area\na,3\n")
    write_json(tmp_path / "settings.json", {"images": 3})
    assert find_labels(tmp_path) is None


@pytest.mark.parametrize("text", ["[]", '{"a": "b"}', "{"])
def test_a_damaged_list_of_classes_is_named(tmp_path: Path, text: str) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=r"classes\.json: must name mask values"):
        find_listing(tmp_path)


def test_a_list_of_classes_names_two_and_perhaps_what_is_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png")
    (tmp_path / "classes.json").write_text('{"0": "nothing", "7": "cell", "255": "ignore"}')
    found = find_listing(tmp_path)
    assert (found.label_values, found.class_names, found.ignore_value) == ((0, 7), ("nothing", "cell"), 255)
    for text in ("{}", '{"0": "nothing", "255": "ignore"}', '{"-1": "nothing", "0": "cell"}'):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(DataError, match=r"classes\.json: it names the mask values"):
            find_listing(tmp_path)


def _change(value: Any, rng: np.random.Generator) -> Any:
    """Return a JSON value in which one part, anywhere, is another kind of value."""
    odd = [None, "x", -1, 1e300, [], {}, True, [[]], "", 10**30, {"a": 1}]
    if isinstance(value, list | dict) and len(value) and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[rng.integers(len(keys))]
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[key] = _change(value[key], rng)
        return copy
    return odd[rng.integers(len(odd))]


@pytest.mark.parametrize("seed", range(40))
def test_odd_values_anywhere_end_in_one_error_or_do_no_harm(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = {"size": [24, 36], "counts": [9, 9, 846]}
    entries = [{"segmentation": [box(2, 2, 12, 10)]}, {"segmentation": runs, "iscrowd": 1}]
    circle = {"label": "cell", "shape_type": "circle", "points": [[8, 12], [8, 17]]}
    sources = [
        write_coco(tmp_path / "coco", entries),
        write_labelme(tmp_path / "labelme", "a", [circle, {"label": "b", "points": [[2, 3], [9, 4], [5, 9]]}]),
    ]
    for source in sources:
        values = json.loads(source.read_text())
        for n in range(5):
            write_json(source, _change(values, rng))
            with suppress(DataError):  # anything else would be a traceback
                import_labels(source, tmp_path / f"{source.stem}{n}")
