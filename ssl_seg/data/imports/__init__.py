"""Labels that are no mask images, as a data set in the layout folders: `ssl-seg data import`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ssl_seg.data.facts import format_size
from ssl_seg.data.formats.layout import TURNED
from ssl_seg.data.formats.nifti import is_read_as_stored
from ssl_seg.data.formats.stored import Stored, name_errors
from ssl_seg.data.imports import dicom, outlines, regions
from ssl_seg.data.imports.outlines import Images, Labels, Shape
from ssl_seg.data.imports.shapes import Size
from ssl_seg.data.layouts.files import add_image, walk_files
from ssl_seg.data.layouts.listing import CLASSES_FILE
from ssl_seg.data.layouts.names import place_of
from ssl_seg.data.layouts.table import read_columns
from ssl_seg.data.volumes import is_image, open_image, split_suffix, write_labels, write_mask
from ssl_seg.errors import DataError, counted, name_examples, quote
from ssl_seg.files import atomic_folder, find_obstacle, name_unwritable, next_free

RUNS = "run-length"
READERS = {
    "COCO": outlines.read_coco,
    "labelme": outlines.read_labelme,
    RUNS: outlines.read_runs,
    "YOLO": outlines.read_yolo,
    regions.ROIS: regions.read_rois,
    regions.GEOJSON: regions.read_geojson,
}


@dataclass(frozen=True)
class Found:
    """Labels that were found in ``root``: their kind, the files that hold them, and what to name as source."""

    kind: str
    files: tuple[Path, ...]
    source: Path
    root: Path

    @property
    def advice(self) -> str:
        """What they are, and the command that makes masks of them."""
        out = quote(next_free(Path(f"{self.root.resolve().with_suffix('').name}_masks")))
        holds = "holds" if len(self.files) == 1 else f"and {counted(len(self.files) - 1, 'more file', 'hold')}"
        what = "series of images" if self.kind == dicom.KIND else "labels"
        return (
            f"{self.files[0]} {holds} {self.kind} {what}: `ssl-seg data import {quote(self.source)} {out}` makes a "
            "folder of images and masks of them."
        )


def find_labels(source: Path) -> Found | None:
    """Return the labels that a file or a folder holds in another form than mask images, or None."""
    files = [source] if source.is_file() else list(walk_files(source)) if source.is_dir() else []
    stems = {split_suffix(path.name)[0] for path in files if is_image(path)} or None
    kinds: dict[str, list[Path]] = {}
    for path in files:
        if kind := dicom.recognize(path) or regions.recognize(path) or outlines.recognize(path, stems):
            kinds.setdefault(kind, []).append(path)
    if not any(path.read_bytes().strip() for path in kinds.get("YOLO", ())):
        kinds.pop("YOLO", None)
    for kind in (*READERS, dicom.KIND):
        if found := kinds.get(kind):
            single = kind in ("COCO", RUNS) and len(found) == 1
            return Found(kind, tuple(found), found[0] if single else source, source)
    return None


def import_labels(
    source: Path, out: Path, *, images: Path | None = None, instances: bool = False, by_rows: bool = False
) -> list[str]:
    """Write ``out/images`` (hard links where possible), ``out/masks`` and the names of the classes; return what to say.

    Args:
        images: folder of the images; by default they are looked for below the source, then beside it.
        instances: number the objects of each image instead of giving each the value of its class.
        by_rows: the runs of a table go along rows instead of down columns.

    Raises:
        DataError: if there are no labels, anything about them is damaged or does not fit an image, or ``out`` exists.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists already and is never overwritten: choose {quote(next_free(out))}.")
    if obstacle := find_obstacle(out):
        raise DataError(f"{out} cannot be written: {obstacle}.")
    if not source.exists():
        raise DataError(f"{source} does not exist. Name a file of labels, or the folder that holds them.")
    found = find_labels(source)
    if found is None:
        if source.suffix.lower() == ".csv" and source.is_file():
            read_columns(source)  # says so where it cannot be read
        raise DataError(
            f"{source} holds no labels that can be imported: COCO or labelme JSON, YOLO outlines (one .txt an image), "
            "Fiji selections (.roi, .zip) or GeoJSON of QuPath (one file an image), a CSV of run lengths "
            "with a column such as EncodedPixels, or DICOM series."
        )
    if found.source == source and source.is_dir() and found.kind in ("COCO", RUNS):
        names = name_examples([path.relative_to(source) for path in found.files])
        raise DataError(f"{source} holds {len(found.files)} files of {found.kind} labels ({names}). Name one of them.")
    with name_unwritable(out), atomic_folder(out) as folder:
        if by_rows and found.kind != RUNS:
            raise DataError(f"{found.source}: --by-rows is for a table of run lengths; this holds {found.kind} labels.")
        if found.kind == dicom.KIND:
            base = source if source.is_dir() else source.parent
            masks = [path for path in walk_files(base / "masks") if is_image(path)]
            for path in masks:
                _link(path, folder / "masks" / path.relative_to(base / "masks"))
            return [*dicom.write_series(found.files, base, folder), f"{counted(len(masks), 'mask file')} taken along"]
        index = Images(images or _folder_of_images(found.source))
        read = partial(outlines.read_runs, by_rows=True) if by_rows else READERS[found.kind]
        with name_errors(str(found.source)):
            labels = read(found.files, index)
        return _write(labels, index, folder, instances=instances)


def _folder_of_images(source: Path) -> Path:
    """Return the folder itself; of a file that with images in it, or the one above."""
    if source.is_dir():
        return source
    folder = source.absolute().parent
    return folder if any(map(is_image, walk_files(folder))) else folder.parent


def _write(labels: Labels, index: Images, out: Path, *, instances: bool) -> list[str]:
    """Write images and masks; images without labels that lie beside those with some come along as unlabeled."""
    folders = {path.parent for path in labels.shapes}
    images = [path for path in index.files if path.parent in folders]
    common = Path(os.path.commonpath(folders))
    owners: dict[str, Path] = {}
    used: set[str] = set()
    counts = dict.fromkeys(("hidden", "empty", "turned"), 0)
    for path in images:
        case_id, suffix = split_suffix(path.relative_to(common).as_posix())
        case_id = place_of(case_id).bare  # a folder images/ inside of images/ would say something else there
        add_image(owners, case_id, path)
        _link(path, out / "images" / f"{case_id}{suffix}")
        if path in labels.shapes:
            image = open_image(str(path))
            shapes, size = labels.shapes[path], _size_of(path, image, labels.sizes.get(path))
            counts["turned"] += TURNED in image.notes
            used |= {shape.label for shape in shapes}
            mask = _paint(shapes, size, None if instances else labels.values, counts)
            is_many = int(mask.max(initial=0)) > np.iinfo(np.uint16).max
            write, ending = (write_labels, ".tif") if is_many else (write_mask, ".png")
            write(out / "masks" / f"{case_id}{ending}", mask)
    classes = {labels.values[name]: name for name in sorted(used, key=lambda name: labels.values[name])}
    if classes and not instances:
        text = json.dumps({0: "background", **classes}, indent=2, ensure_ascii=False)
        (out / CLASSES_FILE).write_text(text + "\n", encoding="utf-8")
    notes = [
        f"{len(labels.shapes)} images with masks ({sum(not s for s in labels.shapes.values())} of them without an "
        f"object), {len(images) - len(labels.shapes)} without labels: unlabeled",
        "mask values: the objects of each image are numbered"
        if instances
        else f"mask values: {name_examples([f'{value} {name}' for value, name in classes.items()], 20) or 'all 0'}",
        *labels.notes,
    ]
    if counts["turned"]:
        notes.append(f"WARNING {counted(counts['turned'], 'image')}: {TURNED}; labels count as drawn on what is seen")
    if counts["empty"]:
        notes.append(f"{counted(counts['empty'], 'object', 'cover')} the center of no pixel: in no mask")
    if counts["hidden"]:
        notes.append(f"{counted(counts['hidden'], 'object', 'are')} partly hidden by others: smaller ones are on top")
    return notes


def _size_of(path: Path, image: Stored, stated: Size | None) -> Size:
    shape, frame = image.shape[1:], image.geometry
    if frame is not None and frame.header is not None and not is_read_as_stored(frame):
        raise DataError(
            f"{path}: NIfTI that is stored along other axes than it is read along; who drew the labels saw one or the "
            "other. Save the images as PNG or TIFF as they were shown, and name their folder by --images."
        )
    if len(shape) != 2:
        raise DataError(f"{path}: labels are of flat images, this one is {format_size(shape)}.")
    if stated is not None and shape != stated:
        raise DataError(
            f"{path} is {shape[1]} wide and {shape[0]} high{f' ({TURNED})' * (TURNED in image.notes)}; its labels are "
            f"for {stated[1]} x {stated[0]}. Name the folder of the images that were annotated by --images."
        )
    return shape[0], shape[1]


def _paint(
    shapes: Sequence[Shape], size: Size, values: dict[str, int] | None, counts: dict[str, int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    """Return the mask (Y, X): the value of each object's class, or its number; smaller objects on top."""
    drawn = sorted(((shape, shape.draw(size)) for shape in shapes), key=lambda pair: -int(pair[1][2].sum()))
    mask = np.zeros(size, np.uint32)
    for number, (shape, (top, left, inside)) in enumerate(drawn, 1):
        part = mask[top : top + inside.shape[0], left : left + inside.shape[1]]
        value = number if values is None else values[shape.label]
        counts["empty"] += not inside.any()
        counts["hidden"] += len(set(np.unique(part[inside])) - {0, value})
        part[inside] = value
    return mask


def _link(path: Path, place: Path) -> None:
    """Make a hard link, or a copy where the file system has none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), place)
    except OSError:
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, place)
