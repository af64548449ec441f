"""Find the cases that must stay together: by the group file, or by names such as patient03_slice07."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from unicodedata import normalize

from ssl_seg.data.layouts.names import PARTS, UNLABELED
from ssl_seg.data.layouts.table import read_table
from ssl_seg.data.volumes import split_suffix
from ssl_seg.errors import DataError, counted, did_you_mean, name_examples

NO_GROUPS = Path("none")
"""Stands for no groups at all in the place of a group file."""

_HANDFUL = 5
"""Names must show more groups than this; with a word for a patient, a scan or the like, at least three."""
_TOKEN = re.compile(r"[^_\-. /]+")
_RUNNING = re.compile(r"[a-z]*\d+[a-z]?|left|right|od|os|l|r", re.IGNORECASE)
_SUBJECT = re.compile(
    r"(?:p|pat|patient|pt|s|sub|subj|subject|case|id|vol|volume|scan|stack|series|study|mouse|rat|animal|donor|slide)\d+",
    re.IGNORECASE,
)


def infer_groups(ids: Collection[str]) -> dict[str, str]:
    """Return id -> group, where the names or folders of many cases begin with that of one of many groups.

    A group is what precedes a running number and has a number itself (``patient03`` of ``patient03_slice07``), or a
    folder. The shortest such beginning counts that makes several groups, none with more than half of the cases, and
    puts half of the cases or more beside another one. Folders for train, val, test and unlabeled are looked through.
    """
    plain = {case_id: _skip_parts(case_id) for case_id in ids}
    tokens = {case_id: list(_TOKEN.finditer(name)) for case_id, name in plain.items()}
    for depth in range(1, max(map(len, tokens.values()), default=0)):
        found: dict[str, str] = {}
        named = 0
        for case_id, parts in tokens.items():
            if len(parts) <= depth:
                continue
            name, end = plain[case_id], parts[depth - 1].end()
            is_folder = name[end] == "/"
            before = parts[depth - 2][0] if depth > 1 and parts[depth - 1][0].isdigit() else ""
            is_subject = _SUBJECT.fullmatch(before + parts[depth - 1][0]) is not None
            counts = any(map(str.isdigit, parts[depth - 1][0])) and _RUNNING.fullmatch(parts[-1][0])
            if is_folder or is_subject or counts:
                found[case_id] = name[:end]
                named += is_subject
        sizes = Counter(found.values())
        shared = sum(size for size in sizes.values() if size > 1)
        fewest = 3 if 2 * named > len(found) else _HANDFUL + 1
        if len(sizes) >= fewest and 2 * shared >= len(plain) and 2 * max(sizes.values()) <= len(plain):
            return found
    return {}


def _skip_parts(case_id: str) -> str:
    first, slash, rest = case_id.partition("/")
    return (
        _skip_parts(rest) if slash and (first.lower() in PARTS or first.lower().rstrip("+") in UNLABELED) else case_id
    )


def read_groups(path: Path, ids: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return id -> group from a CSV file with the columns name and group, and notes.

    Names may carry an image suffix. Cases that are missing form a group each. Names of no case are noted; if there are
    cases missing as well, one may be the other misspelt, which would let a group leak between train and test.

    Raises:
        DataError: if the file is not of that form, gives a case two groups, or may be misspelt.
    """
    columns, rows = read_table(path, ("name", "group"))
    if not {"name", "group"} <= set(columns):
        raise DataError(f"{path}: the first line must be 'name,group', found '{','.join(columns)}'.")
    if not rows:
        raise DataError(f"{path}: it has no rows below the first. Name images and their groups, or remove the file.")
    group_of: dict[str, str] = {}
    for row in rows:
        name, group = normalize("NFC", row.cells["name"]), row.cells["group"]
        case_id = name if name in ids else split_suffix(name)[0]
        if not name or not group:
            raise DataError(f"{row.where}: name and group must not be empty.")
        if group_of.setdefault(case_id, group) != group:
            raise DataError(f"{row.where}: '{name}' is in two groups, '{group_of[case_id]}' and '{group}'.")
    unknown, missing = sorted(set(group_of) - set(ids)), sorted(set(ids) - set(group_of))
    if unknown and missing:
        raise DataError(
            f"{path}: no image is named {name_examples(unknown)}{did_you_mean(unknown[0], missing)}, and "
            f"{counted(len(missing), 'image', 'have')} no group ({name_examples(missing)}). Correct the names, or "
            "remove the rows of no image."
        )
    notes: tuple[str, ...] = ()
    if unknown:
        notes += (f"{counted(len(unknown), 'name', f'in {path.name} belong')} to no image ({name_examples(unknown)})",)
    if missing:
        cases = counted(len(missing), "case", "are")
        notes += (f"{cases} not in {path.name}; each is its own group ({name_examples(missing)})",)
    return {i: g for i, g in group_of.items() if i in ids}, notes
