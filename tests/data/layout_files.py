"""Small data sets on disk, for the tests of the layouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_seg.data.layouts.listing import Listing

DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "tumor": 2, "organ": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def touch(root: Path, *names: str) -> Path:
    """Make empty files: nothing may be decoded here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def pairs(listing: Listing, root: Path) -> dict[str, tuple[str, str | None]]:
    """Return id -> image and mask, relative to ``root``."""
    return {c.id: (below(c.image, root), c.mask and below(c.mask, root)) for c in listing.cases}


def below(location: str, root: Path) -> str:
    return location.removeprefix(f"{root}/")


def codes(listing: Listing) -> dict[str, tuple[str, ...]]:
    """Return code -> cases of the findings."""
    return {f.code: f.cases for f in listing.findings}


def said(listing: Listing, text: str) -> bool:
    return any(text in note for note in listing.notes)


def write_table(root: Path, suffix: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"manifest{suffix}"
    if suffix == ".csv":
        lines = [",".join("" if c is None else str(c) for c in row) for row in [columns, *rows]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    else:
        pq.write_table(pa.table({c: [row[n] for row in rows] for n, c in enumerate(columns)}), path)
    return path


def write_nnunet(root: Path, images: Sequence[str], masks: Sequence[str], **changes: Any) -> Path:
    """Write empty files and dataset.json; a change to None removes the key."""
    description = {k: v for k, v in (DESCRIPTION | changes).items() if v is not None}
    ending = description.get("file_ending", ".nii.gz")
    touch(root, *(f"imagesTr/{i}{ending}" for i in images), *(f"labelsTr/{i}{ending}" for i in masks))
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def write_h5(path: Path, keys: Sequence[str] = ("image", "label")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key in keys:
            file[key] = np.zeros((2, 2))
