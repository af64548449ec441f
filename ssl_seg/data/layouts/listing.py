"""The result of a layout: the cases with the locations of their files, notes and findings.

A location is ``PATH``, or ``PATH::KEY`` for an array inside a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ssl_seg.data.findings import Finding
from ssl_seg.errors import DataError

CLASSES_FILE = "classes.json"
"""File of a data set with the name of each mask value, such as {"0": "background", "1": "cell"}."""

Region = tuple[tuple[int, int], ...]
"""First voxel and the one behind the last, along each axis of *S."""


@dataclass(frozen=True, slots=True)
class Case:
    """One image, with its mask if there is one.

    ``image``, ``mask`` and ``more_channels`` (files of the same image that hold further channels) are locations.
    ``mask`` is None for an unlabeled case; a mask of zeros makes a labeled negative. ``group`` names what must not be
    torn apart (a patient, a paper). With a ``region``, only that part of image and mask is the case.
    """

    id: str
    image: str
    mask: str | None
    group: str | None
    more_channels: tuple[str, ...] = ()
    region: Region | None = None


@dataclass(frozen=True)
class Listing:
    """All cases of a data set, sorted by id; ``layout`` is the key in ``LAYOUTS``.

    ``notes`` are for whoever starts a training, ``findings`` for the report on the data. ``label_values`` (background
    first), ``class_names`` and ``ignore_value`` are what the layout itself declares. ``declared`` says of a case
    whether it has a segmentation, where a manifest does: something to hold against the content of its mask.
    ``leaves_labeling_open`` is set where a manifest names masks without saying which images somebody has labeled.
    """

    layout: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    label_values: tuple[int, ...] | None = None
    ignore_value: int | None = None
    class_names: tuple[str, ...] = ()
    declared: Mapping[str, bool] = field(default_factory=dict)
    leaves_labeling_open: bool = False


def check_id(case_id: str, where: str) -> str:
    """Return ``case_id``, which is also the path of result files below an output folder.

    Raises:
        DataError: if it is empty, absolute, or leaves that folder.
    """
    parts = case_id.split("/")
    if PurePosixPath(case_id).is_absolute() or {"", ".", ".."} & set(parts) or "\\" in case_id:
        raise DataError(f"{where}: the id '{case_id}' must be a relative path such as scan_1 or site/scan_1.")
    return case_id
