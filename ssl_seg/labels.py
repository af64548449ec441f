"""Mask values and class indices.

A mask file holds arbitrary integer values (0/255, or 0..K-1); the network knows class indices 0..K-1 with background 0.
``label_values[k]`` is the value that stands for class ``k`` in the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ssl_seg.errors import DataError, name_examples

IGNORE_INDEX = -100
"""Class index of voxels that neither the losses nor the metrics look at (torch's own default)."""


def infer_label_values(values: Iterable[int]) -> tuple[int, ...]:
    """Return the label values of a data set from the union of the values in its masks.

    ``{0, 255}`` is binary; ``{0, ..., K-1}`` without gaps is K classes; at least two classes are assumed.

    Raises:
        DataError: for any other set, with the map that would make it usable.
    """
    found = sorted(set(values) | {0})
    if found == [0, 255]:
        return (0, 255)
    if _is_contiguous(found) and len(found) <= 256:
        return tuple(range(max(len(found), 2)))
    hint = f"data.label_values={found}"
    if 255 in found and _is_contiguous(found[:-1]):
        hint = f"data.ignore_value=255 if 255 marks unlabeled pixels, else {hint}"
    raise DataError(
        f"mask values {_short(found)} are neither 0/255 nor 0..K-1 without gaps. "
        f"Values map to classes in the order given: set {hint}."
    )


def _is_contiguous(values: Sequence[int]) -> bool:
    """Return whether sorted ``values`` are 0, 1, ..., n-1."""
    return list(values) == list(range(len(values)))


def apply_label_map(mask: NDArray[np.integer], label_map: Mapping[int, int]) -> NDArray[np.integer]:
    """Return a mask with each value that the map names replaced; other values stay.

    All replacements happen at once: ``{1: 2, 2: 1}`` swaps.
    """
    if not label_map:
        return mask
    mapped = mask.astype(np.int64)
    for old, new in label_map.items():
        mapped[mask == old] = new
    return mapped


def to_target(
    mask: NDArray[np.generic], label_values: Sequence[int], ignore_value: int | None = None
) -> NDArray[np.int64]:
    """Map file values to class indices; ``ignore_value`` becomes ``IGNORE_INDEX``.

    Args:
        mask: (*S), integer values as in the file.
        label_values: value of each class, background first.
        ignore_value: value of voxels to leave out, or None.

    Returns:
        (*S) int64 in 0..K-1 or ``IGNORE_INDEX``.

    Raises:
        DataError: for a value that is in neither.
    """
    target = np.full(mask.shape, -1, np.int64)
    for index, value in enumerate(label_values):
        target[mask == value] = index
    if ignore_value is not None:
        target[mask == ignore_value] = IGNORE_INDEX
    if (target == -1).any():
        unknown = sorted(int(v) for v in np.unique(mask[target == -1]))
        raise DataError(
            f"mask values {_short(unknown)} are not among the label values {list(label_values)}. "
            "Correct the mask, or list every value in data.label_values."
        )
    return target


def to_mask(target: NDArray[np.integer], label_values: Sequence[int]) -> NDArray[np.uint8 | np.uint16]:
    """Map class indices back to the values used in the files: the inverse of ``to_target``."""
    dtype = np.uint8 if max(label_values) < 256 else np.uint16
    values: NDArray[np.uint8 | np.uint16] = np.asarray(label_values, dtype)[target]
    return values


def _short(values: Sequence[int]) -> str:
    return f"{{{name_examples(values, 8)}}}"
