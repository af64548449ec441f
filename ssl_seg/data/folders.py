"""Pairing the files of ``images/`` and ``masks/`` by name, and the group file. No image is opened here."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from ssl_seg.data.volumes import IMAGE_SUFFIXES
from ssl_seg.errors import DataError, did_you_mean


def find_pairs(root: Path) -> tuple[dict[str, Path], dict[str, Path], tuple[str, ...]]:
    """Return images by id, masks by id (each with an image), and notes.

    An id is the path below ``images/`` without its suffix, with forward slashes.

    Raises:
        DataError: if there are no images, two files have one id, or there are masks and none belongs to an image.
    """
    _check_root(root)
    images, notes = _files_by_id(root / "images")
    if not images:
        raise DataError(f"{root / 'images'} holds no images; known are {', '.join(IMAGE_SUFFIXES)}.")
    masks, mask_notes = _files_by_id(root / "masks") if (root / "masks").is_dir() else ({}, ())
    without_image = sorted(set(masks) - set(images))
    if masks and len(without_image) == len(masks):
        raise _no_mask_matches(root, images, masks)
    notes += mask_notes
    if without_image:
        notes += (f"{len(without_image)} mask(s) without an image are not used ({_examples(without_image)})",)
    without_mask = len(images) - len(masks) + len(without_image)
    if without_mask:
        notes += (f"{without_mask} of {len(images)} images have no mask file and count as unlabeled",)
    return images, {i: p for i, p in masks.items() if i in images}, notes


def read_groups(path: Path, ids: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return id -> group from a CSV file with the columns name and group, and notes.

    Names may carry an image suffix. Cases that are missing form a group each. Names of no case are noted; if there are
    cases missing as well, one may be the other misspelt, which would let a group leak between train and test.

    Raises:
        DataError: if the file is not of that form, gives a case two groups, or may be misspelt.
    """
    group_of: dict[str, str] = {}
    for line, name, group in _group_rows(path):
        case_id = name if name in ids else _without_suffix(name)
        if not name or not group:
            raise DataError(f"{path}, line {line}: name and group must not be empty.")
        if group_of.setdefault(case_id, group) != group:
            raise DataError(f"{path}, line {line}: '{name}' is in two groups, '{group_of[case_id]}' and '{group}'.")
    unknown, missing = sorted(set(group_of) - set(ids)), sorted(set(ids) - set(group_of))
    if unknown and missing:
        raise DataError(
            f"{path}: no image is named {_examples(unknown)}{did_you_mean(unknown[0], missing)}, and {len(missing)} "
            f"image(s) have no group ({_examples(missing)}). Correct the names, or remove the rows of no image."
        )
    notes: tuple[str, ...] = ()
    if unknown:
        notes += (f"{len(unknown)} name(s) in {path.name} belong to no image ({_examples(unknown)})",)
    if missing:
        notes += (f"{len(missing)} case(s) are not in {path.name}; each is its own group ({_examples(missing)})",)
    return {i: g for i, g in group_of.items() if i in ids}, notes


def _group_rows(path: Path) -> list[tuple[int, str, str]]:
    """Return (line, name, group) of each row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [(name or "").strip() for name in reader.fieldnames or []]
            if not {"name", "group"} <= set(columns):
                raise DataError(f"{path}: the first line must be 'name,group', found '{','.join(columns)}'.")
            reader.fieldnames = columns
            return [(reader.line_num, (row["name"] or "").strip(), (row["group"] or "").strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the group file cannot be read ({error}).") from error


def _check_root(root: Path) -> None:
    """Say what to do if ``root`` is no folder with ``images/`` in it."""
    if not root.is_dir():
        what = "is a file, expected a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}. Name the folder that holds images/ and masks/.")
    if (root / "images").is_dir():
        return
    if root.name in ("images", "masks"):
        raise DataError(f"{root} has no subfolder images/. Name the folder above it: {root.parent}")
    found = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if not p.name.startswith("."))
    held = f"It holds {_examples(found)}" if found else "It is empty"
    raise DataError(
        f"{root} has no subfolder images/. {held}. Put the images into {root / 'images'} and the masks, under the same "
        f"names, into {root / 'masks'}."
    )


def _files_by_id(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the image files below ``folder`` by id, and a note on other files."""
    found: dict[str, Path] = {}
    others: list[str] = []
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                others.append(relative)
                continue
            case_id = _without_suffix(relative)
            if case_id in found:
                raise DataError(f"{found[case_id]} and {path} have the same name. Keep one of them.")
            found[case_id] = path
    notes = (f"{len(others)} file(s) in {folder.name}/ are no images and not used ({_examples(others)})",)
    return found, notes if others else ()


def _without_suffix(name: str) -> str:
    """Return ``name`` without its suffix, if that is one of an image."""
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name


def _no_mask_matches(root: Path, images: Mapping[str, Path], masks: Mapping[str, Path]) -> DataError:
    """Say how the names differ, by the mask that comes nearest to an image."""
    for mask in sorted(masks):
        nearest = [i for i in images if i and i in mask] or difflib.get_close_matches(mask, images, n=1)
        if nearest:
            image = max(nearest, key=len)
            target = masks[mask].relative_to(root / "masks").with_name(PurePosixPath(image).name + masks[mask].suffix)
            hint = f"Masks must be named like their image: rename {masks[mask].name} to {target.as_posix()}, and so on."
            break
    else:
        image, mask = min(images), min(masks)
        hint = "Masks must be named like their image, without additions such as _mask."
    return DataError(
        f"{root}: none of the {len(masks)} masks has the name of an image. An image is called {images[image].name}, "
        f"a mask {masks[mask].name}. {hint}"
    )


def _examples(names: Collection[str]) -> str:
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
