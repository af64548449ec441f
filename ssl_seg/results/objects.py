"""The objects of a predicted mask, its connected parts or instances: a label image and a table.

Shapes: C channels, *S spatial = (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.data.instances import find_instances
from ssl_seg.errors import DataError
from ssl_seg.files import name_unwritable, write_text
from ssl_seg.labels import Task

TABLE = "objects.csv"
"""Table of all images of a folder."""
AXES = {2: ("y", "x"), 3: ("z", "y", "x")}


def list_columns(ndim: int, channels: int) -> list[str]:
    """Return the columns of a table: ``size`` is in the unit of the voxel size, empty where that is unknown; centers
    and ends of the bounding box (both included) are in voxels of the label image's file, from 0, of which z is the
    third axis in NIfTI; means are of the image as it is."""
    means = ["mean"] if channels == 1 else [f"mean_{channel}" for channel in range(channels)]
    box = [f"{end}_{axis}" for end in ("min", "max") for axis in AXES[ndim]]
    return ["image", "object", "class", "voxels", "size", *(f"center_{a}" for a in AXES[ndim]), *box, *means]


def find_objects(
    classes: NDArray[np.integer[Any]],
    image: NDArray[np.generic],
    label_values: Sequence[int],
    spacing: Sequence[float] | None,
    task: Task = "semantic",
    lay_out: Callable[[NDArray[np.generic]], NDArray[Any]] = lambda array: array,
) -> tuple[NDArray[np.int64], list[list[Any]]]:
    """Return the objects of a mask: each part of a class whose voxels share faces, or its instances.

    Args:
        classes: (*S) class indices.
        image: (C,*S).
        label_values: mask value of each class, background first.
        spacing: voxel size (*S), where it is known.
        task: task of the training; instances are of the first class.
        lay_out: gives (*S) the order of the file that rows are to name places in.

    Returns:
        A label image (*S), 0 for background and 1, 2, ... for the objects, class after class; and a row for each object
        with the columns of ``list_columns`` but the first.
    """
    labels = np.zeros(classes.shape, np.int64)
    rows: list[list[Any]] = []
    for index, value in enumerate(label_values[1:2] if task == "instances" else label_values[1:], start=1):
        parts = find_instances(classes) if task == "instances" else ndimage.label(classes == index)[0]
        if not (number := int(parts.max(initial=0))):
            continue
        ids = np.arange(1, number + 1)
        voxels = np.bincount(parts.ravel())[1:]
        laid_out = lay_out(parts)
        centers = ndimage.center_of_mass(laid_out > 0, laid_out, ids)
        means = [ndimage.mean(channel, parts, ids) for channel in image.astype(np.float64, copy=False)]
        for n, box in enumerate(ndimage.find_objects(laid_out)):
            size = "" if spacing is None else f"{voxels[n] * np.prod(spacing):g}"
            ends = [part.start for part in box] + [part.stop - 1 for part in box]
            center = [round(float(place), 2) for place in centers[n]]
            own = [f"{channel[n]:.6g}" for channel in means]
            rows.append([len(rows) + 1, value, int(voxels[n]), size, *center, *ends, *own])
        labels = np.where(parts > 0, parts + labels.max(initial=0), labels)
    return labels, rows


def write_rows(path: Path, ndim: int, channels: int, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows with the columns of ``list_columns`` as CSV, in one step; the folder is made.

    Raises:
        DataError: when it cannot be written.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list_columns(ndim, channels), *rows])
    with name_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text.getvalue())


def check_table(path: Path, ndim: int, channels: int) -> None:
    """Check that a table that is there already is one of ours.

    Raises:
        DataError: for another file of that name.
    """
    header = ",".join(list_columns(ndim, channels)).encode()
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(header + b"\n")):
        raise DataError(f"{path} exists already and is not a table of objects: choose another output")


def join_tables(tables: Iterable[Path], path: Path, ndim: int, channels: int) -> None:
    """Write one table of the tables that there are.

    Raises:
        DataError: when it cannot be written.
    """
    rows: list[list[str]] = []
    for table in tables:
        if table.is_file():
            with table.open(newline="", encoding="utf-8") as file:
                rows += list(csv.reader(file))[1:]
    write_rows(path, ndim, channels, rows)
