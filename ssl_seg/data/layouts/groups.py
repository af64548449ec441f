"""The group file: which cases must not be torn apart."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path
from unicodedata import normalize

from ssl_seg.data.volumes import split_suffix
from ssl_seg.errors import DataError, did_you_mean, name_examples


def read_groups(path: Path, ids: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return id -> group from a CSV file with the columns name and group, and notes.

    Names may carry an image suffix. Cases that are missing form a group each. Names of no case are noted; if there are
    cases missing as well, one may be the other misspelt, which would let a group leak between train and test.

    Raises:
        DataError: if the file is not of that form, gives a case two groups, or may be misspelt.
    """
    group_of: dict[str, str] = {}
    for line, name, group in _read_rows(path):
        case_id = name if name in ids else split_suffix(name)[0]
        if not name or not group:
            raise DataError(f"{path}, line {line}: name and group must not be empty.")
        if group_of.setdefault(case_id, group) != group:
            raise DataError(f"{path}, line {line}: '{name}' is in two groups, '{group_of[case_id]}' and '{group}'.")
    unknown, missing = sorted(set(group_of) - set(ids)), sorted(set(ids) - set(group_of))
    if unknown and missing:
        raise DataError(
            f"{path}: no image is named {name_examples(unknown)}{did_you_mean(unknown[0], missing)}, and "
            f"{len(missing)} image(s) have no group ({name_examples(missing)}). Correct the names, or remove the rows "
            "of no image."
        )
    notes: tuple[str, ...] = ()
    if unknown:
        notes += (f"{len(unknown)} name(s) in {path.name} belong to no image ({name_examples(unknown)})",)
    if missing:
        notes += (f"{len(missing)} case(s) are not in {path.name}; each is its own group ({name_examples(missing)})",)
    return {i: g for i, g in group_of.items() if i in ids}, notes


def _read_rows(path: Path) -> list[tuple[int, str, str]]:
    """Return (line, name, group) of each row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [(name or "").strip() for name in reader.fieldnames or []]
            if not {"name", "group"} <= set(columns):
                raise DataError(f"{path}: the first line must be 'name,group', found '{','.join(columns)}'.")
            reader.fieldnames = columns
            return [
                (reader.line_num, normalize("NFC", (row["name"] or "").strip()), (row["group"] or "").strip())
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the group file cannot be read ({error}).") from error
