"""One folder with ``x.png`` and ``x_mask.png``."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from ssl_seg.data.findings import Finding
from ssl_seg.data.layouts.files import find_images, note_others, note_unlabeled, walk_files
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.data.volumes import is_image, split_suffix
from ssl_seg.errors import DataError, name_examples

ENDINGS = ("_mask", "_label", "_seg", "_gt")
"""What the name of a mask has and that of its image has not."""


def recognize(root: Path) -> bool:
    """Return whether any image has a mask beside it."""
    names = {split_suffix(path.relative_to(root).as_posix())[0] for path in walk_files(root) if is_image(path)}
    return _most_frequent_ending(names) is not None


def find(root: Path) -> Listing:
    """Return the images with the masks beside them; an id is the path below ``root`` without its suffix.

    The most frequent ending makes a mask. Files with another ending whose image is there, and numbered further masks
    (``x_mask_1.png``), are neither images nor masks.

    Raises:
        DataError: if no image has a mask, or two files have one id.
    """
    files, others = find_images(root)
    ending = _most_frequent_ending(files)
    if ending is None:
        raise DataError(
            f"{root}: no image has a mask beside it. The mask of x.png must be called x_mask.png "
            f"(or x with {', '.join(ENDINGS[1:])})."
        )
    masks = {i for i in files if i.endswith(ending)}
    further = {i for i in files if i not in masks and re.sub(r"_?\d+$", "", i) in masks}
    other_kind = {i for i in files for e in ENDINGS if e != ending and _image_of(i, e) in files} - masks - further
    images = sorted(set(files) - masks - further - other_kind)
    labeled = {i for i in images if i + ending in masks}
    cases = (Case(i, str(files[i]), str(files[i + ending]) if i in labeled else None, None) for i in images)
    notes = (*note_others(root, others), f"masks are the {len(labeled)} files that end in {ending}")
    findings = (
        *_report("unpaired_mask", "mask(s) without an image are not used", masks - {i + ending for i in labeled}),
        *_report("further_mask", f"further mask(s) of an image are not used, only {ending}", further | other_kind),
    )
    notes += tuple(f"{f.message} ({name_examples(f.cases)})" for f in findings)
    notes += note_unlabeled(len(images) - len(labeled), len(images))
    return Listing("suffix", tuple(cases), notes, findings)


def _most_frequent_ending(ids: Collection[str]) -> str | None:
    """Return the ending with the most pairs, the first of ``ENDINGS`` among equals, or None without a pair."""
    pairs = {ending: sum(_image_of(i, ending) in ids for i in ids) for ending in ENDINGS}
    best = max(ENDINGS, key=lambda ending: pairs[ending])
    return best if pairs[best] else None


def _image_of(mask: str, ending: str) -> str | None:
    return mask.removesuffix(ending) if mask.endswith(ending) else None


def _report(code: str, what: str, ids: set[str]) -> tuple[Finding, ...]:
    return (Finding(code, "warn", f"{len(ids)} {what}", tuple(sorted(ids))),) if ids else ()
