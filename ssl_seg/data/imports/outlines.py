"""Readers of outlines and run lengths: COCO, labelme, YOLO, and tables of run lengths."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import yaml

from ssl_seg.data.imports.shapes import (
    Patch,
    Size,
    check_points,
    fill_polygons,
    fill_runs,
    join_patches,
    make_ellipse,
    unpack_counts,
)
from ssl_seg.data.layouts.files import walk_files
from ssl_seg.data.layouts.table import read_columns, read_table
from ssl_seg.data.volumes import is_image, split_suffix
from ssl_seg.errors import DataError, counted, name_examples
from ssl_seg.files import decode_text, read_text

_HEAD = 4096
"""Bytes of a JSON file, at its start and its end, that tell what it is."""
_IDS = ("imageid", "id", "img", "image", "filename", "file", "imageidclassid", "imagelabel")
_RUNS = ("encodedpixels", "rle", "rlemask", "maskrle", "encoding", "segmentation", "annotation")
_CLASSES = ("classid", "class", "label", "category", "celltype")
_NOTHING = ("", "-1", "nan")
_YOLO_LINE = re.compile(r"\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Shape:
    """An object: its class, its place in the file for errors, and how it is drawn on an image of a size."""

    label: str
    draw: Callable[[Size], Patch]


@dataclass(frozen=True)
class Labels:
    """The objects of each image that is labeled, perhaps none; the mask value of each class; sizes where stated."""

    shapes: Mapping[Path, Sequence[Shape]]
    values: dict[str, int]
    sizes: Mapping[Path, Size] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Images:
    """The images below a folder, found by the names that labels have for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = tuple(path for path in walk_files(folder) if is_image(path))
        self._by_name: dict[str, list[Path]] = {}
        for path in self.files:
            for name in {path.name, split_suffix(path.name)[0]}:
                self._by_name.setdefault(name, []).append(path)

    def find(self, name: str, where: str) -> Path:
        """Return the image of this name, with or without folders and suffix.

        Raises:
            DataError: if there is none, or more than one.
        """
        parts = [part for part in PurePosixPath(str(name).replace("\\", "/")).parts if part not in ("/", "..", ".")]
        last = parts[-1] if parts else ""
        found = self._by_name.get(last) or self._by_name.get(split_suffix(last)[0]) or []
        for depth in range(2, len(parts) + 1):
            found = [path for path in found if path.parts[-depth] == parts[-depth]] or found
        if len(found) != 1:
            several = f"there are {len(found)} of that name ({found[0]}, {found[1]})" if found else "there is none"
            raise DataError(f"{where}: image '{name}': {several} below {self.folder}. Name its folder by --images.")
        return found[0]

    def find_own(self, name: str, where: str, path: Path, known: Collection[Path]) -> Path:
        """Return the image of this name, of which no other file than ``path`` holds labels: it is not yet known."""
        image = self.find(name, where)
        if image in known:
            raise DataError(f"{path}: another file holds labels of {image} too. Keep one of them.")
        return image


def note_left_out(count: int) -> tuple[str, ...]:
    """Return a note on what has no area; nothing without any."""
    return (f"{counted(count, 'shape', 'without an area (point or line) are')} left out",) if count else ()


def recognize(path: Path, stems: Collection[str] | None) -> str | None:
    """Return the kind of labels that a file holds, or None.

    Args:
        path: any file.
        stems: names of images without suffix, one of which a YOLO file has unless its folder is labels/; None asks for
            no such name. One without a line says that there is nothing.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = _read_ends(path)
        if '"shapes"' in text and ('"points"' in text or '"imagePath"' in text):
            return "labelme"
        return "COCO" if '"file_name"' in text or ('"category_id"' in text and '"image_id"' in text) else None
    if suffix == ".csv":
        return "run-length" if _has_runs(path) else None
    if suffix == ".txt" and (stems is None or path.stem in stems or path.parent.name == "labels"):
        line = _read_ends(path).strip().partition("\n")[0].strip()
        return "YOLO" if not line or _YOLO_LINE.match(line) else None
    return None


def read_coco(files: Sequence[Path], index: Images) -> Labels:
    """Read COCO instances: polygons, run lengths, and crowds as any object; classes are numbered by their ids."""
    (path,) = files
    data = _read_json(path)
    images, entries, categories = (_list_entries(data, key, path) for key in ("images", "annotations", "categories"))
    for key, own in (("images", images), ("categories", categories)):
        if twice := [number for number, count in Counter(entry["id"] for entry in own).items() if count > 1]:
            ids = counted(len(twice), "id", "stand")
            raise DataError(f"{path}: {ids} for several '{key}' each, the first is {twice[0]}.")
    names = {c["id"]: str(c.get("name", c["id"])) for c in sorted(categories, key=lambda c: str(c["id"]).zfill(20))}
    if len(set(names.values())) < len(names):
        names = {number: f"{number} {name}" for number, name in names.items()}
    place: dict[Any, Path] = {}
    owners: dict[Path, Any] = {}
    sizes: dict[Path, Size] = {}
    for entry in images:
        where = f"{path}, image {entry['id']}"
        found = index.find(entry.get("file_name", ""), where)
        place[entry["id"]] = found
        if (other := owners.setdefault(found, entry["id"])) != entry["id"]:
            raise DataError(f"{where}: {found} is image {other} already. Each image needs a file of its own.")
        if entry.get("height") and entry.get("width"):
            sizes[found] = int(entry["height"]), int(entry["width"])
    shapes: dict[Path, list[Shape]] = {found: [] for found in place.values()}
    for entry in entries:
        where = f"{path}, annotation {entry['id']}"
        if entry.get("image_id") not in place:
            raise DataError(f"{where}: no image has the id {entry.get('image_id')}.")
        if entry.get("category_id") not in names:
            known = ", ".join(map(str, list(names)[:8]))
            raise DataError(f"{where}: no category has the id {entry.get('category_id')}; there are {known}.")
        if not (outline := entry.get("segmentation")):
            raise DataError(f"{where}: it has no segmentation, only a box or points. Boxes make no masks: remove it.")
        shapes[place[entry["image_id"]]].append(Shape(names[entry["category_id"]], partial(_draw_coco, outline, where)))
    return Labels(shapes, {name: n for n, name in enumerate(names.values(), 1)}, sizes)


def _draw_coco(outline: Any, where: str, size: Size) -> Patch:
    if not isinstance(outline, dict):
        if not isinstance(outline, list):
            raise DataError(f"{where}: a segmentation is a list of outlines, or has size and counts.")
        return fill_polygons([check_points(part, size, where) for part in outline], size)
    try:
        counts = outline["counts"]
        runs = unpack_counts(counts) if isinstance(counts, str) else [int(n) for n in counts]
        stated = tuple(map(int, outline["size"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: its run lengths cannot be read ({error!r}).") from error
    if stated != size or sum(runs) != size[0] * size[1] or min(runs) < 0:
        raise DataError(
            f"{where}: runs of {sum(runs):,} pixels for a size of {list(stated)}; the image is {list(size)}."
        )
    return fill_runs(np.cumsum(runs)[:-1:2].tolist() if len(runs) > 1 else [], runs[1::2], size, where)


def read_labelme(files: Sequence[Path], index: Images) -> Labels:
    """Read one labelme file an image: polygons, rectangles, circles and masks, those of one label and group_id as one
    object; classes are numbered by their names."""
    shapes: dict[Path, list[Shape]] = {}
    sizes: dict[Path, Size] = {}
    left_out = 0
    for path in files:
        data = _read_json(path)
        name = str(data.get("imagePath") or path.stem).replace("\\", "/")
        image = index.find_own(os.path.normpath(path.parent / name), str(path), path, shapes)
        objects: dict[tuple[str, Any], list[Callable[[Size], Patch]]] = {}
        if data.get("imageHeight") and data.get("imageWidth"):
            sizes[image] = int(data["imageHeight"]), int(data["imageWidth"])
        for number, entry in enumerate(data.get("shapes") or (), 1):
            if not isinstance(entry, dict):
                raise DataError(f"{path}, shape {number}: a shape has label, points and shape_type.")
            where, kind = f"{path}, shape {number}", str(entry.get("shape_type") or "polygon")
            if kind in ("line", "linestrip", "point", "points"):
                left_out += 1
            elif kind not in ("polygon", "rectangle", "circle", "mask") or "label" not in entry:
                raise DataError(
                    f"{where}: shapes are polygon, rectangle, circle or mask, with a label; this is '{kind}'."
                )
            else:
                group = number if entry.get("group_id") is None else f"group {entry['group_id']}"
                part = partial(_draw_labelme, kind, entry, where)
                objects.setdefault((str(entry["label"]), group), []).append(part)
        shapes[image] = [Shape(label, partial(_draw_parts, parts)) for (label, _), parts in objects.items()]
    return Labels(shapes, _number(shapes), sizes, note_left_out(left_out))


def _draw_parts(parts: Sequence[Callable[[Size], Patch]], size: Size) -> Patch:
    return join_patches([draw(size) for draw in parts], size)


def _draw_labelme(kind: str, entry: Mapping[str, Any], where: str, size: Size) -> Patch:
    points = entry.get("points")
    points = points if isinstance(points, list) else []
    if kind == "polygon":
        return fill_polygons([check_points(points, size, where)], size)
    opposite = points[len(points) // 2 :][:1]  # the second of two, or the third of the four corners
    (x0, y0), (x1, y1) = check_points([*points[:1], *opposite, *points[:1]], size, where)[:2]
    if kind == "mask":
        return _unpack_mask(entry.get("mask"), round(x0), round(y0), size, where)
    if kind == "rectangle":
        return fill_polygons([np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])], size)
    radius = float(np.hypot(x1 - x0, y1 - y0))
    return fill_polygons([make_ellipse((x0, y0), (radius, radius))], size)


def _unpack_mask(text: Any, left: int, top: int, size: Size, where: str) -> Patch:
    try:
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_GRAYSCALE)
    except (TypeError, ValueError, binascii.Error, cv2.error):
        pixels = None
    if pixels is None or min(left, top) < 0 or top + pixels.shape[0] > size[0] or left + pixels.shape[1] > size[1]:
        raise DataError(
            f"{where}: its mask is damaged, or leaves the image, which is {size[1]} wide and {size[0]} high."
        )
    return top, left, pixels > 0


def read_yolo(files: Sequence[Path], index: Images) -> Labels:
    """Read one text file an image: lines of a class, from 0, and an outline as shares of width and height."""
    common = Path(os.path.commonpath([path.parent for path in files]))
    places = dict.fromkeys((index.folder, common, common.parent))
    names: dict[int, str] = next(filter(None, map(_read_yolo_names, places)), {})
    shapes: dict[Path, list[Shape]] = {}
    for path in files:
        image = index.find_own(str(path.with_suffix("")), str(path), path, shapes)
        shapes[image] = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            where, (first, *numbers) = f"{path}, line {number}", line.split()
            if len(numbers) in (4, 5):
                raise DataError(
                    f"{where}: this is a box, not an outline. Boxes make no masks: export the segmentation."
                )
            if not first.isdigit() or (names and int(first) not in names):
                known = f"there are names for {name_examples(names)}" if names else "the first is 0"
                raise DataError(f"{where}: the class is '{first}'; {known}.")
            label = names[int(first)] if names else f"class {first}"
            shapes[image].append(Shape(label, partial(_draw_yolo, numbers, where)))
    if names:
        return Labels(shapes, {name: n + 1 for n, name in names.items()})
    used = {shape.label for found in shapes.values() for shape in found}
    notes = ("no data.yaml names the classes: class 0 has the mask value 1, and so on",)
    return Labels(shapes, {label: 1 + int(label.removeprefix("class ")) for label in used}, notes=notes)


def _draw_yolo(numbers: Sequence[str], where: str, size: Size) -> Patch:
    points = check_points(numbers, (1, 1), where) * size[::-1]
    return fill_polygons([check_points(points, size, where)], size)


def _read_yolo_names(folder: Path) -> dict[int, str]:
    """Return the names of the classes in data.yaml, classes.txt (Label Studio) or obj.names (CVAT), by their numbers;
    none without such a file."""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            names = (yaml.safe_load(read_text(path)) or {}).get("names")
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read as YAML ({error}).") from error
        if names:
            listed = names if isinstance(names, list | dict) else [names]
            numbered = listed if isinstance(listed, dict) else dict(enumerate(listed))
            if not all(str(number).isdigit() for number in numbered):
                raise DataError(f"{path}: names must be a list, or name the classes 0, 1, ... by their numbers.")
            return _tell_apart({int(number): str(name) for number, name in numbered.items()})
    lists = [path for name in ("classes.txt", "obj.names") if (path := folder / name).is_file()]
    lines = decode_text(lists[0].read_bytes(), "replace").splitlines() if lists else []
    return _tell_apart({number: line.strip() for number, line in enumerate(lines) if line.strip()})


def _tell_apart(names: Mapping[int, str]) -> dict[int, str]:
    """Return the names of classes, with its number in front of one that several have."""
    often = Counter(names.values())
    return {number: name if often[name] == 1 else f"{number} {name}" for number, name in names.items()}


def read_runs(files: Sequence[Path], index: Images, *, by_rows: bool = False) -> Labels:
    """Read a table of run lengths: the start, from 1, and the length of each run; an image can have several rows."""
    (path,) = files
    columns, rows = read_table(path, set(read_columns(path)))
    name, runs, label = (_choose(columns, known) for known in (_IDS, _RUNS, _CLASSES))
    shapes: dict[Path, list[Shape]] = {}
    for row in rows:
        text, own = row.cells[name], row.cells[label] if label else "object"
        if _plain(name) in ("imageidclassid", "imagelabel"):
            text, _, own = text.rpartition("_")
        found = shapes.setdefault(index.find(text, row.where), [])
        if row.cells[runs].lower() not in _NOTHING:
            found.append(Shape(own, partial(_draw_runs, row.cells[runs], row.where, by_rows)))
    order = "along the rows" if by_rows else "down the columns, as Kaggle counts; --by-rows reads them along the rows"
    return Labels(shapes, _number(shapes), notes=(f"runs are read {order}",))


def _draw_runs(text: str, where: str, by_rows: bool, size: Size) -> Patch:
    try:
        numbers = [int(word) for word in text.split()]
    except ValueError as error:
        raise DataError(f"{where}: run lengths are whole numbers, start and length in turn ({error}).") from error
    if len(numbers) % 2:
        raise DataError(f"{where}: {len(numbers)} numbers are not pairs of start and length.")
    return fill_runs([n - 1 for n in numbers[::2]], numbers[1::2], size, where, by_rows=by_rows)


def _has_runs(path: Path) -> bool:
    try:
        columns = read_columns(path)
        runs = _choose(columns, _RUNS) if _choose(columns, _IDS) else ""
        cells = [row.cells[runs] for row in read_table(path, {runs})[1]] if runs else []
    except DataError:
        return False
    words = next((cell.split() for cell in cells if cell.lower() not in _NOTHING), [])
    return len(words) > 1 and all(word.isdigit() for word in words[:2])


def _choose(columns: Sequence[str], known: Sequence[str]) -> str:
    """Return the column with the first of the known names, or an empty string."""
    return next((column for name in known for column in columns if _plain(column) == name), "")


def _plain(column: str) -> str:
    return re.sub(r"[\W_]", "", column.lower())


def _number(shapes: Mapping[Path, Sequence[Shape]]) -> dict[str, int]:
    """Return the value of each class: in the order of names, or of numbers where all names are numbers."""
    names = {shape.label for found in shapes.values() for shape in found}
    ordered = sorted(names, key=lambda n: (int(n), n) if all(map(str.isdigit, names)) else (0, n))
    return {name: value for value, name in enumerate(ordered, 1)}


def _read_ends(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(max(len(head), path.stat().st_size - _HEAD))
            return decode_text(head + file.read(), "replace")
    except OSError:
        return ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}). Copy or export it again.") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: a JSON object is expected, this is a {type(data).__name__}.")
    return data


def _list_entries(data: Mapping[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """Return a list of a COCO file, after a check that each entry has an id."""
    entries = data.get(key)
    if not isinstance(entries, list) or (not entries and key != "annotations"):
        raise DataError(f"{path}: '{key}' must be a list of entries. Is this the file of instances?")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
            raise DataError(f"{path}: entry {number} of '{key}' has no id.")
    return entries
