"""``images/`` and ``masks/``, paired by file name, and ``unlabeled/``."""

from __future__ import annotations

from pathlib import Path

from ssl_seg.data.layouts import suffix
from ssl_seg.data.layouts.files import find_images, match_masks, note_others, note_unlabeled
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.data.volumes import IMAGE_SUFFIXES
from ssl_seg.errors import DataError, name_examples


def recognize(root: Path) -> bool:
    """Return whether there is ``images/``, unless the masks lie in it too."""
    images = root / "images"
    return images.is_dir() and ((root / "masks").is_dir() or not suffix.recognize(images))


def find(root: Path) -> Listing:
    """Return the images with the masks of the same name.

    An id is the path below ``images/`` without its suffix, with forward slashes; images of ``unlabeled/`` keep that
    folder in their id.

    Raises:
        DataError: if there are no images, two files have one id, or there are masks and none belongs to an image.
    """
    if not (root / "images").is_dir():
        raise DataError(describe_missing(root))
    images, others = find_images(root / "images")
    if not images:
        raise DataError(f"{root / 'images'} holds no images; known are {', '.join(IMAGE_SUFFIXES)}.")
    found, other_masks = find_images(root / "masks")
    masks, mask_notes, findings = match_masks(images, found, root / "masks")
    notes = note_others(root / "images", others) + note_others(root / "masks", other_masks) + mask_notes
    notes += note_unlabeled(len(images) - len(masks), len(images))
    further, unused = find_images(root / "unlabeled")
    notes += note_others(root / "unlabeled", unused)
    if further:
        notes += (f"{len(further)} unlabeled image(s) are taken from unlabeled/",)
    for name, path in further.items():
        case_id = f"unlabeled/{name}"
        if case_id in images:
            raise DataError(f"{images[case_id]} and {path} would both be the case {case_id}. Rename one of them.")
        images[case_id] = path
    cases = (Case(i, str(path), str(masks[i]) if i in masks else None, None) for i, path in sorted(images.items()))
    return Listing("folders", tuple(cases), notes, findings)


def describe_missing(root: Path) -> str:
    """Return what ``root``, which has no ``images/``, holds instead and what to do."""
    if root.name in ("images", "masks"):
        return f"{root} has no subfolder images/. Name the folder above it: {root.parent}"
    found = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if not p.name.startswith("."))
    held = f"It holds {name_examples(found)}" if found else "It is empty"
    return (
        f"{root} has no subfolder images/. {held}. Put the images into {root / 'images'} and the masks, under the same "
        f"names, into {root / 'masks'}."
    )
