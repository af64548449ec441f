"""Files below a folder, and masks by the names of their images. No image is opened here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from ssl_seg.data.findings import Finding
from ssl_seg.data.volumes import is_image, split_suffix
from ssl_seg.errors import DataError, name_examples


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield what lies below ``folder``, in one order on every system, without hidden files and folders.

    A ``.zarr`` folder is one image.
    """
    for parent, subfolders, names in os.walk(folder):
        visible = sorted(s for s in subfolders if not s.startswith("."))
        stores = [s for s in visible if split_suffix(s)[1].endswith(".zarr")]
        subfolders[:] = [s for s in visible if s not in stores]
        for name in sorted([*stores, *(n for n in names if not n.startswith("."))]):
            yield Path(parent, name)


def find_images(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the images below ``folder`` by id, and the names of the other files.

    An id is the path below ``folder`` without its suffix, with forward slashes.

    Raises:
        DataError: if two images have one id.
    """
    images: dict[str, Path] = {}
    others: list[str] = []
    for path in walk_files(folder):
        relative = path.relative_to(folder).as_posix()
        if not is_image(path):
            others.append(relative)
            continue
        case_id = split_suffix(relative)[0]
        if case_id in images:
            raise DataError(f"{images[case_id]} and {path} have the same name. Keep one of them.")
        images[case_id] = path
    return images, tuple(others)


def note_others(folder: Path, others: tuple[str, ...]) -> tuple[str, ...]:
    """Return a note on files that are no images, if there are any."""
    note = f"{len(others)} file(s) in {folder.name}/ are no images and not used ({name_examples(others)})"
    return (note,) if others else ()


def note_unlabeled(without_mask: int, images: int) -> tuple[str, ...]:
    """Return a note on images without a mask, if there are any."""
    note = f"{without_mask} of {images} images have no mask file and count as unlabeled"
    return (note,) if without_mask else ()


def match_masks(
    images: Mapping[str, Path], masks: Mapping[str, Path], folder: Path
) -> tuple[dict[str, Path], tuple[str, ...], tuple[Finding, ...]]:
    """Return the masks of ``folder`` that belong to an image, a note and a finding on the others.

    Raises:
        DataError: if there are masks and none belongs to an image.
    """
    without_image = tuple(sorted(set(masks) - set(images)))
    if not without_image:
        return dict(masks), (), ()
    if len(without_image) == len(masks):
        raise _no_mask_matches(images, masks, folder)
    message = f"{len(without_image)} mask(s) without an image are not used"
    finding = Finding("unpaired_mask", "warn", message, without_image)
    used = {i: path for i, path in masks.items() if i in images}
    return used, (f"{message} ({name_examples(without_image)})",), (finding,)


def _no_mask_matches(images: Mapping[str, Path], masks: Mapping[str, Path], folder: Path) -> DataError:
    """Say how the names differ, by the mask that comes nearest to an image."""
    for mask in sorted(masks):
        nearest = [i for i in images if i in mask] or difflib.get_close_matches(mask, images, n=1)
        if nearest:
            image = max(nearest, key=len)
            name = PurePosixPath(image).name + split_suffix(masks[mask].name)[1]
            target = masks[mask].relative_to(folder).with_name(name)
            hint = f"Masks must be named like their image: rename {masks[mask].name} to {target.as_posix()}, and so on."
            break
    else:
        image, mask = min(images), min(masks)
        hint = "Masks must be named like their image, without additions such as _mask."
    return DataError(
        f"{folder.parent}: none of the {len(masks)} masks has the name of an image. An image is called "
        f"{images[image].name}, a mask {masks[mask].name}. {hint}"
    )
