"""Images and masks that names tell apart: of folders (``images/``, ``masks/``) or of files (``x``, ``x_mask``)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ssl_seg.data.findings import Finding
from ssl_seg.data.layouts.files import (
    Scan,
    add_image,
    find_stacks,
    make_id,
    match_masks,
    note_others,
    note_unlabeled,
    scan_folder,
)
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.data.layouts.names import MASK_WORDS, PARTS, UNLABELED, match_names, place_of, role_of, split_marker
from ssl_seg.data.volumes import IMAGE_SUFFIXES, is_image
from ssl_seg.errors import DataError, counted, name_examples

_FEW = 5
"""With fewer labeled images, names that are alike say less."""


@dataclass(frozen=True)
class Files:
    """The files of a data set by what the names of their folders say; all but ``others`` by id.

    ``masks`` has those of each word, and ``bare`` a second id for them. ``has_folder`` says whether ``images`` lie in
    folders for images; if not, they are all files in folders without a role.
    """

    scan: Scan
    has_folder: bool
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, dict[str, Path]] = field(default_factory=dict)
    bare: dict[str, str] = field(default_factory=dict)
    unlabeled: dict[str, Path] = field(default_factory=dict)
    outside: dict[str, Path] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    clashes: list[DataError] = field(default_factory=list)

    def add(self, files: dict[str, Path], case_id: str, path: Path) -> None:
        """Add a file to one of these; keep the error if its id is taken."""
        try:
            add_image(files, case_id, path)
        except DataError as error:
            self.clashes.append(error)


@dataclass(frozen=True)
class _Source:
    """Files that can be the masks: those in folders of one ``word``, or those with one ``marker`` in their name.

    ``names`` maps each to a second id, which for a marker is that of its image.
    """

    word: str
    marker: str
    names: dict[str, str]
    pairs: int


def recognize(root: Path) -> bool:
    """Return whether there is a folder for images, or one for masks that belong to images beside it."""
    if not root.is_dir():
        return False
    files = sort_files(root)
    best = choose_source(files)
    return not best.marker if best is not None and best.pairs else files.has_folder


def recognize_suffix(root: Path) -> bool:
    """Return whether the names of files tell most masks."""
    best = choose_source(sort_files(root)) if root.is_dir() else None
    return best is not None and bool(best.marker) and best.pairs > 0


def find(root: Path) -> Listing:
    """Return the images with the masks of the same name, see ``match_names``, in a folder for masks.

    An id is the path without its suffix and without the folder that says that it holds images; images of
    ``unlabeled/`` keep that folder in their id.

    Raises:
        DataError: if there are no images, two files have one id, or there are masks and none belongs to an image.
    """
    files = sort_files(root)
    if not files.has_folder and not files.masks:
        raise DataError(describe_missing(root))
    if not files.images:
        held = "".join(f" Note: {note}." for note in note_others(tuple(files.others)) + files.scan.notes)
        raise DataError(f"{root}: its folder for images holds none; known are {', '.join(IMAGE_SUFFIXES)}.{held}")
    source = choose_source(files, markers=False)
    listing = _list("folders", root, files, source)
    if not files.masks:
        listing = _with_masks_elsewhere(root, files, listing)
    return listing


def find_suffix(root: Path) -> Listing:
    """Return the images with the masks beside them, ``x_mask.png`` for ``x.png``; an id is the path without its suffix.

    The most frequent addition makes a mask. Files with another one whose image is there, and numbered further masks
    (``x_mask_1.png``), are neither images nor masks.

    Raises:
        DataError: if no image has a mask, or two files have one id.
    """
    files = sort_files(root)
    source = choose_source(files, folders=False)
    if source is None or not source.pairs:
        raise DataError(
            f"{root}: no image has a mask beside it. The mask of x.png must be called x_mask.png "
            "(or x with _label, _seg, _gt, ...)."
        )
    return _list("suffix", root, files, source)


def sort_files(root: Path) -> Files:
    """Return the files below ``root``. Where it has a folder for images itself, others without a role are not read."""
    children = list(root.iterdir())
    has_folder = any(role_of(path.name)[0] == "image" and path.is_dir() for path in children)
    known = (*UNLABELED, *PARTS)
    read = [p.name for p in children if role_of(p.name)[0] or p.name.lower() in known or p.is_file()]
    scan = scan_folder(root, read if has_folder else None)
    placed = [(path, name, place_of(name)) for path in scan.files if is_image(path) for name in [make_id(path, root)]]
    files = Files(scan, has_folder or any(place.role == "image" for _, _, place in placed))
    for path, name, place in placed:
        if place.role == "mask":
            files.add(files.masks.setdefault(place.word, {}), place.id, path)
            files.bare[place.id] = place.bare
        elif place.role == "image":
            files.add(files.images, place.id, path)
        elif name.partition("/")[0].lower() in UNLABELED:
            files.unlabeled[name] = path
        else:
            files.add(files.outside if files.has_folder else files.images, name, path)
    for name, path in files.unlabeled.items():
        if name in files.images:
            files.add(files.images, name, path)
    others = (path.relative_to(root) for path in scan.files if not is_image(path))
    # Beside a folder for images, only files in folders are worth a note.
    files.others.extend(path.as_posix() for path in others if not has_folder or len(path.parts) > 1)
    return files


def choose_source(files: Files, *, folders: bool = True, markers: bool = True) -> _Source | None:
    """Return the source with the masks of most images; among equals a folder, and the first of ``MASK_WORDS``."""
    found = [
        _Source(word, "", names, len(match_names(files.images, names)))
        for word, masks in files.masks.items()
        if folders
        for names in [{mask: files.bare[mask] for mask in masks}]
    ]
    if markers:
        found += _find_marked(files.images)
    if not found:
        return None
    return max(found, key=lambda s: (s.pairs, not s.marker, -MASK_WORDS.index(s.word), s.marker))


def _find_marked(images: Mapping[str, Path]) -> list[_Source]:
    """Return the additions to names that make masks of the images beside them."""
    marked: dict[str, dict[str, str]] = {}
    for case_id in images:
        if found := split_marker(case_id):
            marked.setdefault(found[1], {})[case_id] = found[0]
    sources = []
    for marker, names in marked.items():
        word = re.sub(r"[_\-. ]", "", marker)
        pairs = len(match_names(images.keys() - names.keys(), names))
        sources.append(_Source(word, marker, names, pairs))
    return sources


def _list(layout: str, root: Path, files: Files, source: _Source | None) -> Listing:
    """Return the cases, with the masks of ``source``."""
    if files.clashes:
        raise files.clashes[0]
    images, seconds = dict(files.images), {} if source is None else source.names
    masks: dict[str, Path] = {}
    marked: dict[str, Path] = {}
    if source is not None and source.marker:
        masks = marked = {name: images.pop(name) for name in seconds}
    elif source is not None:
        masks = files.masks[source.word]
    further = {name for name in images if _is_further(name, images, marked)}
    for name in further:
        del images[name]
    used, notes, findings = match_masks(images, masks, root, seconds)
    if source is not None and source.marker:
        where = "begin with" if source.marker[-1] in "_-. " else "end in"
        notes = (f"masks are the {len(used)} files that {where} {source.marker}", *notes)
    elif source is not None and source.word != "masks":
        notes = (f"masks are taken from {_folder_of(files.masks[source.word])}", *notes)
    for word, others in files.masks.items():
        if source is None or source.marker or word != source.word:
            unused = counted(len(others), "file", f"of {_folder_of(others)} are")
            notes += (f"{unused} not used: another folder has the masks",)
    if further:
        message = f"{counted(len(further), 'further mask', 'of an image are')} not used"
        notes += (f"{message} ({name_examples(sorted(further))})",)
        findings += (Finding("further_mask", "warn", message, tuple(sorted(further))),)
    alike = (*_find_additions(images.keys() - used.keys(), used), *_find_rivals(files, source, len(used)))
    notes, findings = (*notes, *(f"WARNING {finding.message}" for finding in alike)), (*findings, *alike)
    if files.outside:
        notes += (f"{counted(len(files.outside), 'image', 'outside the folder for images are')} not used "
                  f"({name_examples(sorted(files.outside))})",)  # fmt: skip
    notes = note_others(tuple(files.others)) + files.scan.notes + notes
    notes += note_unlabeled(len(images) - len(used), len(images))
    stacks = find_stacks(images)
    if len(stacks) > 1 and not stacks.keys() & PARTS.keys() and sum(map(len, stacks.values())) == len(images):
        found = f"{len(stacks)} folders of numbered images, e.g. {min(stacks)}"
        notes += (f"the {found}, are read as 2D images; if each is one volume: data.layout=slices",)
    if files.unlabeled:
        notes += (f"{counted(len(files.unlabeled), 'unlabeled image', 'are')} taken from unlabeled/",)
    cases = (
        Case(i, str(path), str(used[i]) if i in used else None, None)
        for i, path in sorted({**images, **files.unlabeled}.items())
    )
    return Listing(layout, tuple(cases), notes, files.scan.findings + findings)


def _is_further(name: str, images: Mapping[str, Path], masks: Mapping[str, Path]) -> bool:
    """Return whether a name is that of an image that is there with an addition, or such a mask, perhaps numbered."""
    plain = re.sub(r"_?\d+$", "", name)
    return plain in masks or any(found[0] in images for found in map(split_marker, {name, plain}) if found)


def _find_additions(unlabeled: Collection[str], labeled: Collection[str]) -> Iterator[Finding]:
    """Report what the names of unlabeled images add to those of labeled ones, where half of the labeled ones have such
    an image beside them; numbers are no addition."""
    found: dict[str, list[str]] = {}
    for name in sorted(unlabeled):
        starts = [match.start() for match in re.finditer(r"[_\-. ]", name)]
        base = next((name[:start] for start in reversed(starts) if name[:start] in labeled), name)
        if any(map(str.isalpha, name[len(base) :])):
            found.setdefault(name[len(base) :], []).append(name)
    for addition, names in found.items():
        if 2 * len(names) >= max(len(labeled), _FEW):
            message = (
                f"{counted(len(names), 'image', 'have')} the name of a labeled one with {addition} behind and count "
                f"as unlabeled ({name_examples(names)}): move them away if they are maps, drawings or channels of "
                "those images"
            )
            yield Finding("named_like_labeled", "warn", message, tuple(names))


def _find_rivals(files: Files, source: _Source | None, used: int) -> Iterator[Finding]:
    """Report other folders for masks that hold half as many files as are ``used``, or more: a mask of the field of view
    beside that of the vessels, say."""
    if source is None or source.marker:
        return
    taken = _folder_of(files.masks[source.word])
    for others in (others for word, others in files.masks.items() if word != source.word and 2 * len(others) >= used):
        other = _folder_of(others)
        message = (
            f"{taken} and {other} are both folders for masks by their names, and {taken} is used: if the masks that "
            f"you mean are in {other}, move {taken} out of the data set"
        )
        yield Finding("two_mask_folders", "warn", message, tuple(sorted(others)))


def _folder_of(files: Mapping[str, Path]) -> str:
    """Return the name of the folder that marks the first of these files as a mask."""
    path = next(iter(files.values()))
    return next(f"{parent.name}/" for parent in path.parents if role_of(parent.name)[0] == "mask")


def _with_masks_elsewhere(root: Path, files: Files, listing: Listing) -> Listing:
    """Return the listing with a fault if no image has a mask and another folder holds files of their names."""
    best = max(_count_names(root, files.images), default=(0, ""))
    if any(case.mask for case in listing.cases) or not best[0]:
        return listing
    message = (
        f"no image has a mask, and masks seem to lie in {best[1]}/: {best[0]} of its files have the names of images. "
        "Rename that folder to masks/ if they are masks, or move it out of the data set if not."
    )
    fault = Finding("masks_elsewhere", "fault", message)
    return Listing(listing.layout, listing.cases, listing.notes, (*listing.findings, fault))


def _count_names(root: Path, images: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """Yield folders beside the images, with their number of files named like images, if that is half of them."""
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not role_of(p.name)[0]):
        if folder.name.lower() in UNLABELED or folder.name.startswith("."):
            continue
        names = {make_id(path, folder): "" for path in scan_folder(folder).files if is_image(path)}
        pairs = len(match_names(images, {name: name for name in names}))
        if 2 * pairs >= max(len(names), 1):
            yield pairs, folder.name


def describe_missing(root: Path) -> str:
    """Return what ``root``, which has no ``images/``, holds instead and what to do."""
    if role_of(root.name)[0]:
        return f"{root} has no subfolder images/. Name the folder above it: {root.parent}"
    found = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if not p.name.startswith("."))
    held = f"It holds {name_examples(found)}" if found else "It is empty"
    return (
        f"{root} has no subfolder images/. {held}. Put the images into {root / 'images'} and the masks, under the same "
        f"names, into {root / 'masks'}."
    )
