"""Mask values and class indices.

A mask file holds arbitrary numbers (0/255, 0..K-1, numbers of objects, probabilities); the network knows class indices
0..K-1 with background 0. ``Meaning`` says how the one becomes the other, for all who read masks.
``label_values[k]`` is the value that stands for class ``k``, in the files and in masks that are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_seg.errors import DataError, name_examples

IGNORE_INDEX = -100
"""Class index of voxels that neither the losses nor the metrics look at (torch's own default)."""

MaskKind = Literal["semantic", "binary", "instances", "probability"]
Task = Literal["semantic", "instances"]
THRESHOLDED: tuple[MaskKind, ...] = ("binary", "probability")
"""Kinds whose values are compared with a threshold, so that they need not be integers."""


@dataclass(frozen=True)
class Meaning:
    """What the values of masks mean. None: the data are to say it, see ``ssl_seg.data.audit.meaning.settle_meaning``.

    ``kind`` says how a value of a file becomes a label value:

    - semantic: it is one, after ``label_map``.
    - instances: it is the number of an object, after ``label_map``: all but the background are foreground.
    - binary and probability: above ``threshold`` it is foreground. They differ in the threshold that is the default:
      half of the largest value there is, or of the full range of the type (1, 255 or 65535).

    ``ignore_value`` stays what it is, in every kind. Background is ``label_values[0]``, or 0.

    ``task`` says what is learned of them: the classes, or of instances which voxels belong to one object, as in
    ``ssl_seg.data.instances``.
    """

    kind: MaskKind | None = None
    threshold: float | None = None
    label_values: tuple[int, ...] | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    ignore_value: int | None = None
    task: Task = "semantic"

    @property
    def class_values(self) -> tuple[int, ...]:
        """Value of each class that is learned, background first: the label values, and one more for the boundary of
        instances."""
        values = self.label_values or (0, 1)
        if self.task == "semantic":
            return values
        return (*values, next(value for value in count(1) if value not in (*values, self.ignore_value)))

    @property
    def background(self) -> int:
        """Label value of the background."""
        return self.label_values[0] if self.label_values else 0

    @property
    def takes_fractions(self) -> bool:
        """Whether values of files need not be integers."""
        return self.kind in THRESHOLDED

    def to_labels(self, mask: NDArray[Any]) -> NDArray[np.integer[Any]]:
        """Return a mask (*S) with label values, and ``ignore_value``, in place of the values of the file."""
        if self.kind in (None, "semantic"):
            return apply_label_map(mask, self.label_map)
        if self.takes_fractions:
            values, positive = mask, mask > (0 if self.threshold is None else self.threshold)
        else:
            values = apply_label_map(mask, self.label_map)
            positive = values != self.background
        foreground = self.label_values[1] if self.label_values else 1
        labels = np.where(positive, np.int32(foreground), np.int32(self.background))
        if self.ignore_value is not None:
            labels[values == self.ignore_value] = self.ignore_value
        return labels

    def to_target(self, mask: NDArray[Any]) -> NDArray[np.int64]:
        """Return class indices (*S), see ``to_target``; the label values must be known.

        Raises:
            DataError: for a value without a class.
        """
        return to_target(self.to_labels(mask), self.label_values or (0, 1), self.ignore_value)

    def to_objects(self, mask: NDArray[Any]) -> NDArray[np.int32]:
        """Return 0 for background, 1..n for the objects of instances, in the order of their numbers, and IGNORE_INDEX;
        (*S) as the mask."""
        values, index = np.unique(apply_label_map(mask, self.label_map), return_inverse=True)
        ignored = values == self.ignore_value if self.ignore_value is not None else np.zeros(len(values), np.bool_)
        is_object = (values != self.background) & ~ignored
        numbers = np.where(is_object, np.cumsum(is_object), np.where(ignored, IGNORE_INDEX, 0)).astype(np.int32)
        return numbers[index].reshape(mask.shape)

    def to_foreground(self, mask: NDArray[Any]) -> NDArray[np.int16]:
        """Return 0 for background, 1 for any foreground and IGNORE_INDEX."""
        labels = self.to_labels(mask)
        target: NDArray[np.int16] = (labels != self.background).astype(np.int16)
        if self.ignore_value is not None:
            target[labels == self.ignore_value] = IGNORE_INDEX
        return target


def infer_label_values(values: Iterable[int]) -> tuple[int, ...] | None:
    """Return the label values of a data set from the union of the values in its masks.

    ``{0, 255}`` is binary; ``{0, ..., K-1}`` without gaps is K classes; at least two classes are assumed. None for any
    other set.
    """
    found = sorted(set(values) | {0})
    if found == [0, 255]:
        return (0, 255)
    usable = found == list(range(len(found))) and len(found) <= 256
    return tuple(range(max(len(found), 2))) if usable else None


def apply_label_map(mask: NDArray[Any], label_map: Mapping[int, int]) -> NDArray[Any]:
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
