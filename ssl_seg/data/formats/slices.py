"""A folder of 2D images as one volume, and a 2D mask for all slices of one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.layout import Box
from ssl_seg.data.formats.stored import Stored
from ssl_seg.errors import DataError

_NUMBERED = re.compile(r"(.*?)(\d+)")


def sort_slices(names: Iterable[str]) -> list[str]:
    """Return the names that end in a number, by that; none unless two or more differ in nothing but the number.

    Args:
        names: names of files, without suffix; others, such as ``inklabels``, are left out.
    """
    found = [(match[1], int(match[2]), name) for name in names if (match := _NUMBERED.fullmatch(name))]
    places = {(prefix, number) for prefix, number, _ in found}
    alike = len({prefix for prefix, _, _ in found}) == 1 and len(places) == len(found) > 1
    return [name for _, _, name in sorted(found)] if alike else []


def number_slices(files: Sequence[Path]) -> list[int]:
    """Return the number at the end of each name, without suffix, of files in the order of ``sort_slices``."""
    found = (re.search(r"(\d+)(?:\.[A-Za-z]\w*)*$", path.name) for path in files)
    return [int(match[1]) for match in found if match is not None]


def find_gap(numbers: Sequence[int]) -> tuple[int, int] | None:
    """Return the first two successive numbers that are farther apart than others are; None where steps are equal."""
    pairs = list(itertools.pairwise(numbers))
    usual = min((b - a for a, b in pairs), default=0)
    return next(((a, b) for a, b in pairs if b - a > usual), None)


def stack_slices(folder: str, files: Sequence[Path], open_one: Callable[[str], Stored]) -> Stored:
    """Return the volume (C, Z, Y, X) whose slices are ``files``; each is read when a box needs it.

    Raises:
        DataError: if the first one cannot be opened or is no 2D image; on reading, if another one is of another kind.
    """
    first = open_one(str(files[0]))
    if len(first.shape) != 3:
        raise DataError(f"{files[0]} is a volume; {folder} is read as a folder of 2D slices. Use data.layout=folders.")
    fetch = partial(_fetch_slices, tuple(map(str, files)), open_one, first.shape, first.dtype)
    channels, height, width = first.shape
    shape, notes = (channels, len(files), height, width), first.notes
    if gap := find_gap(number_slices(files)):
        notes += (f"WARNING slices are missing between {gap[0]} and {gap[1]}: the others are read as neighbors",)
    return replace(
        first, shape=shape, geometry=None, by_box=True, location=folder, fetch=fetch, chunk_rows=1, notes=notes
    )


def _fetch_slices(
    files: Sequence[str], open_one: Callable[[str], Stored], shape: tuple[int, ...], dtype: np.dtype[Any], box: Box
) -> NDArray[Any]:
    depth = range(*box[0].indices(len(files)))
    planes = []
    for z in depth:
        plane = open_one(files[z])
        if plane.shape != shape or plane.dtype != dtype:
            raise DataError(
                f"{files[z]} is {plane.dtype} of the shape {plane.shape}, {files[0]} is {dtype} of {shape}. The slices "
                "of a volume must be alike."
            )
        planes.append(plane.read(box[1:]))
    return np.stack(planes, axis=1)


def repeat_slices(mask: Stored, depth: int) -> Stored:
    """Return a 2D mask (C, Y, X) as (C, Z, Y, X) the same in each of ``depth`` slices; a 3D mask as it is."""
    if len(mask.shape) != 3:
        return mask
    shape = (mask.shape[0], depth, *mask.shape[1:])
    return replace(mask, shape=shape, by_box=True, fetch=partial(_fetch_repeated, mask, depth))


def _fetch_repeated(mask: Stored, depth: int, box: Box) -> NDArray[Any]:
    plane = mask.read(box[1:])
    number = len(range(*box[0].indices(depth)))
    return np.broadcast_to(plane[:, None], (len(plane), number, *plane.shape[1:]))
