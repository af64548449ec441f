"""A table with one row for each image: CSV or Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from ssl_seg.data.findings import REMEDIES, Finding, report
from ssl_seg.data.layouts.listing import Case, Listing, check_id
from ssl_seg.data.layouts.table import FileRow, read_columns, read_table
from ssl_seg.data.volumes import is_image, split_suffix
from ssl_seg.errors import DataError, counted, name_examples

COLUMNS = ("image", "mask", "group", "labeled", "has_segmentation", "id")
SUFFIXES = (".csv", ".parquet")

_SPLIT_COLUMNS = ("split", "subset", "partition", "fold")
"""Columns that set images apart in other programs."""

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class _Entry:
    """A row; ``image`` and ``mask`` are locations, ``labeled`` and ``has_segmentation`` are None without a column."""

    where: str
    id: str
    image: str
    mask: str | None
    group: str | None
    labeled: bool | None
    has_segmentation: bool | None
    image_exists: bool
    mask_exists: bool

    @property
    def expects_mask(self) -> bool:
        """Whether the row says in any way that there is a mask to be used."""
        denied = self.labeled is False or self.has_segmentation is False
        return not denied and (self.mask is not None or bool(self.labeled) or bool(self.has_segmentation))

    @property
    def contradicts_itself(self) -> bool:
        return self.has_segmentation is False and (self.mask_exists or bool(self.labeled))


def recognize(root: Path) -> bool:
    """Return whether ``root`` is such a table, or holds one."""
    return (root.is_file() and root.suffix.lower() in SUFFIXES) or (root.is_dir() and bool(_candidates(root)))


def find(root: Path) -> Listing:
    """Return the images of the table, with their masks; paths are relative to its folder.

    An id is the path of the image without its suffix and without the folders that all images share (as in the layout
    folders), unless the table gives one. A case without a segmentation is unlabeled, whatever else its row says: no
    mask of zeros is ever made up. Images that are missing are left out.

    Raises:
        DataError: if there is no table or more than one, it has no column ``image``, a cell is not of the kind that its
            column asks for, two rows have one id, or none of the images is there.
    """
    path = root if root.is_file() else _choose(root)
    columns, rows = read_table(path, COLUMNS)
    if "image" not in columns:
        raise DataError(f"{path}: no column 'image', found '{','.join(columns)}'. Known are {', '.join(COLUMNS)}.")
    entries = _unique(_parse_row(row, path.parent) for row in rows)
    if "id" not in columns:
        entries = _drop_common_folder(entries)
    present = [e for e in entries if e.image_exists]
    if not present:
        missing = f"none of its {len(entries)} images is there, e.g. {entries[0].image}" if entries else "no rows"
        raise DataError(f"{path}: {missing}. Paths are relative to {path.parent}.")
    cases = (
        Case(e.id, e.image, e.mask if e.expects_mask and e.mask_exists else None, e.group)
        for e in sorted(present, key=lambda e: e.id)
    )
    declared = {e.id: e.has_segmentation for e in present if e.has_segmentation is not None}
    return Listing(
        "manifest",
        tuple(cases),
        (*_notes(path, columns), *_note_unlisted(path, present)),
        tuple(_check_entries(path, entries)),
        declared=declared,
        leaves_labeling_open=not {"labeled", "has_segmentation"} & set(columns),
    )


def _candidates(root: Path) -> list[Path]:
    """Return the tables of a folder that can be its manifest."""
    tables = sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES and p.name != "groups.csv")
    named = [p for p in tables if p.stem == "manifest"]
    has_folders = (root / "images").is_dir()
    return named or [p for p in tables if _lists_images(p, beside_images=has_folders)]


def _lists_images(path: Path, *, beside_images: bool) -> bool:
    """Return whether the columns are a manifest's; beside ``images/``, a table of measurements has ``image`` too."""
    try:
        columns = set(read_columns(path))
    except DataError:
        return False
    return "image" in columns and (not beside_images or bool(columns & {"mask", "labeled", "has_segmentation"}))


def _choose(root: Path) -> Path:
    found = _candidates(root)
    if not found:
        raise DataError(f"{root} holds no manifest.csv or manifest.parquet, and no other table with a column 'image'.")
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise DataError(f"{root} holds {len(found)} manifests ({names}). Name one of the files instead of the folder.")
    return found[0]


def _parse_row(row: FileRow, folder: Path) -> _Entry:
    image = row.cells["image"]
    if not image:
        raise DataError(f"{row.where}: image must not be empty.")
    image_location = _resolve(image, folder)
    mask = row.cells.get("mask")
    mask_location = _resolve(mask, folder) if mask else None
    return _Entry(
        where=row.where,
        id=check_id(normalize("NFC", row.cells.get("id") or _default_id(image, folder)), row.where),
        image=image_location,
        mask=mask_location,
        group=row.cells.get("group") or None,
        labeled=_parse_boolean(row, "labeled"),
        has_segmentation=_parse_boolean(row, "has_segmentation"),
        image_exists=_exists(image_location),
        mask_exists=mask_location is not None and _exists(mask_location),
    )


def _parse_boolean(row: FileRow, column: str) -> bool | None:
    if column not in row.cells:
        return None
    value = _BOOLEANS.get(row.cells[column].lower())
    if value is None:
        raise DataError(f"{row.where}: {column} is '{row.cells[column]}', must be one of {', '.join(_BOOLEANS)}.")
    return value


def _split_cell(text: str) -> tuple[str, str]:
    """Return path, with forward slashes, and key."""
    path, _, key = text.partition("::")
    return path.replace("\\", "/"), key


def _resolve(text: str, folder: Path) -> str:
    """Return the location of a cell; of the Unicode forms of a name, that of the file that is there."""
    name, key = _split_cell(text)
    paths = [str(folder / form) for form in (name, normalize("NFC", name), normalize("NFD", name))]
    path = next(filter(_exists, paths), paths[0])
    return f"{path}::{key}" if key else path


def _default_id(text: str, folder: Path) -> str:
    """Return the path below ``folder`` without suffix, and the key inside the file; what leads out of it is dropped."""
    name, key = _split_cell(text)
    path, base = PurePosixPath(name), folder.absolute().as_posix()
    if path.is_relative_to(base):
        path = path.relative_to(base)
    parts = [p for p in path.parts if p not in (path.anchor, "..")]
    return "/".join([split_suffix("/".join(parts))[0], *(p for p in key.split("/") if p)])


def _exists(location: str) -> bool:
    try:
        return Path(location.partition("::")[0]).exists()
    except OSError:  # not a name that a file could have
        return False


def _drop_common_folder(entries: Sequence[_Entry]) -> list[_Entry]:
    folders = [PurePosixPath(entry.id).parent.as_posix() for entry in entries]
    common = os.path.commonpath(folders) if entries else ""
    return [replace(entry, id=PurePosixPath(entry.id).relative_to(common).as_posix()) for entry in entries]


def _unique(entries: Iterable[_Entry]) -> list[_Entry]:
    """Return the entries, or say which have one id."""
    by_id: dict[str, _Entry] = {}
    for entry in entries:
        first = by_id.setdefault(entry.id, entry)
        if first is not entry:
            raise DataError(f"{entry.where}: the id '{entry.id}' is that of {first.where.rpartition(', ')[2]} too.")
    return list(by_id.values())


def _notes(path: Path, columns: tuple[str, ...]) -> tuple[str, ...]:
    notes: tuple[str, ...] = (f"cases are taken from {path}",)
    if unknown := [c for c in columns if c not in (*COLUMNS, *_SPLIT_COLUMNS)]:
        notes += (
            f"{counted(len(unknown), 'unknown column', f'of {path.name} are')} not used ({name_examples(unknown)})",
        )
    notes += tuple(
        f"WARNING the column {column} of {path.name} is not used: the split is drawn anew. To keep it, add a column "
        "id whose ids begin with the part: train/a, val/b, test/c"
        for column in columns
        if column in _SPLIT_COLUMNS
    )
    if not {"mask", "has_segmentation"} & set(columns):
        notes += (f"{path.name} has neither a column mask nor has_segmentation: all cases count as unlabeled",)
    return notes


def _note_unlisted(path: Path, entries: Sequence[_Entry]) -> tuple[str, ...]:
    """Return a note on images in the folders of the listed ones that are in no row; nothing without any."""
    images = [Path(entry.image.partition("::")[0]) for entry in entries]
    listed = {p.resolve() for p in (*images, *(Path(e.mask.partition("::")[0]) for e in entries if e.mask))}
    folders = {image.parent.resolve() for image in images if os.access(image.parent, os.R_OK)}
    others = [other for folder in folders for other in folder.iterdir() if is_image(other)]
    names = sorted(p.name for p in others if not p.name.startswith(".") and p.resolve() not in listed)
    note = f"{counted(len(names), 'image file', f'beside those of {path.name} are')} in none of its rows and not used"
    return (f"{note} ({name_examples(names)})",) if names else ()


def _check_entries(path: Path, entries: list[_Entry]) -> Iterator[Finding]:
    """Report where the table disagrees with the disk or with itself."""
    present = [e for e in entries if e.image_exists]
    absent = [e for e in entries if not e.image_exists]
    examples = ", ".join(e.image for e in absent[:1])
    message = f"{path}: {counted(len(absent), 'image', 'are')} not there, e.g. {examples}. Correct or remove the rows."
    yield from report("missing_image", "fault", message, [e.id for e in absent])
    without = [e for e in present if e.expects_mask and not e.mask_exists]
    examples = ", ".join(e.mask or f"that of {e.id}" for e in without[:1])
    message = (
        f"{path}: {counted(len(without), 'mask', 'are')} not there but should be, e.g. {examples}. "
        "Correct the path, or set labeled to false."
    )
    yield from report("missing_mask", "fault", message, [e.id for e in without])
    doubtful = [e.id for e in present if e.contradicts_itself]
    message = (
        f"{counted(len(doubtful), 'case', 'with has_segmentation=false are')} said to have a mask: counted as unlabeled"
    )
    yield from report("has_segmentation_disagrees", "warn", message, doubtful)
    said = [e.has_segmentation for e in entries if e.has_segmentation is not None]
    if said and not any(said):
        message = (
            f"{path}: has_segmentation is false in all {len(said)} rows: there is nothing to learn from. {REMEDIES}"
        )
        yield Finding("no_segmentation", "fault", message)
