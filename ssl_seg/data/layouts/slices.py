"""Folders of 2D slices as volumes, ``images/scan/00.tif, 01.tif, ...``, with a mask for each slice or one for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ssl_seg.data.findings import Finding
from ssl_seg.data.formats.slices import number_slices
from ssl_seg.data.layouts.files import find_stacks, note_unlabeled
from ssl_seg.data.layouts.folders import Files, choose_source, sort_files
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.data.layouts.names import MASK_WORDS, split_marker
from ssl_seg.data.volumes import split_location, split_suffix
from ssl_seg.errors import DataError, counted, name_examples

_BESIDE = (
    "inklabels",
    "labels",
    "label",
    *(word for word in MASK_WORDS if word not in ("mask", "masks")),
    "mask",
    "masks",
)
"""Files beside slices that can be their mask, best first: ``mask`` often says where a scroll was scanned."""


def recognize(root: Path) -> bool:
    """Return whether folders of numbered slices have one mask for all of them, and no slice has one of its own."""
    if not root.is_dir():
        return False
    files = sort_files(root)
    stacks = find_stacks(files.images)
    if not stacks or ((best := choose_source(files)) is not None and best.pairs):
        return False
    masks = [_find_mask(files, name, members) for name, members in stacks.items()]
    return any(mask and not mask.endswith("/") and Path(mask).stem not in ("mask", "masks") for mask in masks)


def find(root: Path) -> Listing:
    """Return each folder of numbered slices as one volume.

    An id is the path of the folder, without a last ``layers`` or ``surface_volume``. Its mask is a folder of slices or
    a file of that name in a folder for masks, or a file such as ``inklabels.png`` or ``scan_label.tif`` in or above it.
    A 2D file is the mask of every slice.

    Raises:
        DataError: if no folder holds slices that differ in nothing but a number, or two are one case.
    """
    files = sort_files(root)
    stacks = find_stacks(files.images)
    if not stacks:
        raise DataError(
            f"{root}: no folder holds numbered slices. A volume is a folder such as images/scan_1/ with 00.tif, "
            "01.tif, and so on; its mask masks/scan_1/ with the same files, or one masks/scan_1.png for all slices."
        )
    cases, shared, findings = [], [], list(files.scan.findings)
    stacked_masks = {
        f"{slices[0].parent}/": slices for masks in files.masks.values() for slices in find_stacks(masks).values()
    }
    for name, members in sorted(stacks.items()):
        mask = _find_mask(files, name, members)
        if mask is not None and not mask.endswith("/"):
            shared.append(name)
            mask = f"{mask}::depth={len(members)}"
        elif mask is not None:
            findings += _check_numbers(name, members, stacked_masks[mask])
        cases.append(Case(name, f"{members[0].parent}/", mask, None))
    notes = (*files.scan.notes, f"{counted(len(cases), 'folder', 'of slices are')} read as volumes")
    if shared:
        notes += (f"{counted(len(shared), 'volume', 'have')} one mask file: if it is 2D, it applies to all slices "
                  f"({name_examples(shared)})",)  # fmt: skip
    used = {str(path) for members in stacks.values() for path in members} | {
        split_location(str(case.mask))[0] for case in cases
    }
    if left := sorted(name for name, path in files.images.items() if str(path) not in used):
        notes += (f"{counted(len(left), 'image', 'are')} not slices of a volume and not used ({name_examples(left)})",)
    notes += note_unlabeled(sum(case.mask is None for case in cases), len(cases))
    return Listing("slices", tuple(cases), notes, tuple(findings))


def _check_numbers(name: str, images: list[Path], masks: list[Path]) -> Iterator[Finding]:
    """Report as many masks as slices whose numbers run otherwise: they would be those of other slices."""
    ours, theirs = number_slices(images), number_slices(masks)
    shift = theirs[0] - ours[0]
    if len(ours) != len(theirs) or theirs == [number + shift for number in ours]:
        return  # of another number of slices, the sizes differ
    mask = next(number for number, own in zip(theirs, ours, strict=True) if number != own + shift)
    message = (
        f"the numbers of {images[0].parent}/ and {masks[0].parent}/ run in different steps, from {mask} of the masks "
        "on, so that slices would get the masks of others. Add the missing files, or give both the same numbers."
    )
    yield Finding("slices_differ", "fault", message, (name,))


def _find_mask(files: Files, name: str, members: list[Path]) -> str | None:
    """Return the location of the mask of a volume: a folder, with a slash behind it, or a file."""
    for word in sorted(files.masks, key=MASK_WORDS.index):
        masks = files.masks[word]
        for mask, path in masks.items():
            if name in (mask, files.bare[mask]) or ((marked := split_marker(mask)) and marked[0] == name):
                return str(path)
        for folder, slices in find_stacks(masks).items():
            if folder == name:
                return f"{slices[0].parent}/"
    parent, own = members[0].parent, name.rpartition("/")[2]
    folders = (parent, parent.parent) if parent.parent.name == own else (parent,)
    beside: dict[str, str] = {}
    for path in files.images.values():
        if path.parent in folders and path not in members:
            stem = split_suffix(path.name)[0].casefold()
            marked = split_marker(stem)
            word = marked[1].strip("_-. ") if marked and marked[0] == own.casefold() else stem
            beside[word] = str(path)
    return next((beside[word] for word in _BESIDE if word in beside), None)
