"""How the cases of a data set lie on disk: one module for each layout, and the choice among them.

No image is decoded here. A new layout is a module with ``recognize`` and ``find``, and an entry in ``LAYOUTS``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_seg.data import synthetic
from ssl_seg.data.findings import Finding
from ssl_seg.data.formats import FORMATS
from ssl_seg.data.layouts import folders, hdf5, manifest, nnunet, slices
from ssl_seg.data.layouts.files import add_image, find_stacks, make_id, walk_files
from ssl_seg.data.layouts.groups import NO_GROUPS, infer_groups, read_groups
from ssl_seg.data.layouts.listing import CLASSES_FILE, Case, Listing
from ssl_seg.data.layouts.names import role_of
from ssl_seg.data.layouts.nnunet import group_channels
from ssl_seg.data.volumes import IMAGE_SUFFIXES, is_image, list_arrays, split_location, split_suffix
from ssl_seg.errors import ConfigError, DataError, counted, did_you_mean, name_examples
from ssl_seg.files import read_text

__all__ = ["AUTO", "EXTRA", "LAYOUTS", "Case", "Layout", "Listing", "find_listing", "list_images"]

LABELS = "labels_to_import"
"""Code of the finding that there are labels which are no mask images."""
AUTO = "auto"
"""Name that stands for the first layout that is recognized."""

EXTRA = "unlabeled+/"
"""What the ids of further unlabeled images begin with."""


@dataclass(frozen=True)
class Layout:
    """``recognize`` says whether a path can be meant to have this layout; ``find`` lists its cases or raises."""

    description: str
    recognize: Callable[[Path], bool]
    find: Callable[[Path], Listing]


LAYOUTS: dict[str, Layout] = {
    "manifest": Layout(
        "manifest.csv or manifest.parquet with the columns image and, as needed, mask, group, labeled, "
        "has_segmentation, id",
        manifest.recognize,
        manifest.find,
    ),
    "nnunet": Layout(
        "nnU-Net raw data or Medical Segmentation Decathlon: dataset.json, imagesTr/, labelsTr/",
        nnunet.recognize,
        nnunet.find,
    ),
    "hdf5": Layout(
        "HDF5 files with the arrays image and label, and train.list if not all of them are meant",
        hdf5.recognize,
        hdf5.find,
    ),
    "slices": Layout(
        "folders of numbered 2D slices as volumes, images/scan/00.tif, ..., with masks/scan/00.tif, ..., or one 2D "
        "mask for all slices: masks/scan.png, or scan/inklabels.png",
        slices.recognize,
        slices.find,
    ),
    "folders": Layout(
        "images/ and masks/ (or labels/, gt/, instances/, ...) with the same file names, also in train/ and val/; "
        "unlabeled/ for more images",
        folders.recognize,
        folders.find,
    ),
    "suffix": Layout(
        "x.png with its mask x_mask.png in one folder (or mask_x.png, x_labels.png, x-seg.png, x_gt.png, ...)",
        folders.recognize_suffix,
        folders.find_suffix,
    ),
}
"""In the order in which they are tried."""


def find_listing(root: Path, layout: str = AUTO, groups: Path | None = None, unlabeled: Path | None = None) -> Listing:
    """Return the cases of a data set, sorted by id, with notes and findings.

    Args:
        root: a folder, or the file of a manifest; or ``synthetic:<kind>``.
        layout: a key of ``LAYOUTS``, or ``auto`` for the first that is recognized.
        groups: CSV file with the columns name and group; ``groups.csv`` in the folder is used if it is there. It
            replaces groups that the layout finds itself. Without any, see ``infer_groups``; ``none`` stands for none.
        unlabeled: folder of further images, which are unlabeled; their ids are those below it, behind ``EXTRA``.

    Raises:
        ConfigError: if the layout is unknown.
        DataError: if no layout fits, no cases can be found, names clash, or no mask or group name belongs to any image.
    """
    if synthetic.is_synthetic(str(root)):
        locations = synthetic.locations(str(root).partition(":")[2])
        cases = tuple(Case(location.rpartition("/")[2], location, location, None) for location in locations)
        return _add_unlabeled(Listing("synthetic", cases), unlabeled, NO_GROUPS)
    if layout not in (AUTO, *LAYOUTS):
        known = [AUTO, *LAYOUTS]
        raise ConfigError(f"unknown layout '{layout}'{did_you_mean(layout, known)}. Known are {', '.join(known)}.")
    if not root.exists():
        raise DataError(
            f"{root} does not exist. Name the folder that holds images/ and masks/, with --data where it was moved."
        )
    if layout == AUTO:
        layout = next((name for name, known in LAYOUTS.items() if known.recognize(root)), "")
    elif root.is_file() and layout != "manifest":
        raise DataError(f"{root} is a file, expected a folder. Only the layout manifest is a file.")
    if not layout:
        raise _name_labels(root) or _nothing_recognized(root)
    try:
        listing = LAYOUTS[layout].find(root)
    except DataError as error:
        raise _name_labels(root) or error from None
    folder = root if root.is_dir() else root.parent
    if not any(case.mask for case in listing.cases) and (unread := _name_labels(root)):
        listing = replace(listing, findings=(*listing.findings, Finding(LABELS, "fault", str(unread))))
    return _add_unlabeled(_with_groups(_with_classes(listing, folder), folder, groups), unlabeled, groups)


def _name_labels(root: Path) -> DataError | None:
    """Return an error that names labels which are no mask images and the command to import them; None without any."""
    from ssl_seg.data.imports import find_labels

    found = find_labels(root)
    return None if found is None else DataError(f"{root}: no image with a mask. {found.advice}")


def _with_classes(listing: Listing, folder: Path) -> Listing:
    """Return the listing with the mask values and names of ``CLASSES_FILE``, unless it declares some itself; a value
    that is called ignore is none of a class, as in nnU-Net."""
    path = folder / CLASSES_FILE
    if listing.label_values is not None or not path.is_file():
        return listing
    try:
        names = {int(value): str(name) for value, name in json.loads(read_text(path)).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f'{path}: must name mask values, as {{"0": "background", "1": "cell"}} does ({error}).'
        ) from error
    values = tuple(sorted(value for value, name in names.items() if name != "ignore"))
    ignored = [value for value in names if value not in values]
    if len(values) < 2 or values[0] < 0 or len(ignored) > 1:
        raise DataError(
            f"{path}: it names the mask values {sorted(names)}. Name that of the background and of each class, from 0 "
            'on, and at most one that is left out as "ignore"; or remove the file.'
        )
    return replace(
        listing,
        label_values=values,
        class_names=tuple(names[v] for v in values),
        ignore_value=ignored[0] if ignored else listing.ignore_value,
    )


def list_images(
    folder: Path, layout: str, skip: Callable[[str], bool] = lambda _: False
) -> list[tuple[str, tuple[str, ...]]]:
    """Return name and locations of the images of a folder, or of the data set in it; masks are left out.

    Args:
        folder: folder of images, perhaps with subfolders.
        layout: that of the training data: files of nnU-Net that end in _0000, _0001, ... are channels of one image, and
            with slices a folder of numbered images is one volume.
        skip: says of a location whether it is left out.

    Raises:
        DataError: two images that are channels of one case, or see ``find_listing``.
    """
    inner = folder / "images" if (folder / "images").is_dir() else folder
    if layout != "slices" and inner == folder and any(known.recognize(folder) for known in LAYOUTS.values()):
        cases = [case for case in find_listing(folder).cases if not skip(case.image)]
        return [(case.id, (case.image, *case.more_channels)) for case in cases]
    files = [(make_id(p, inner), p) for p in walk_files(inner) if is_image(p) and not skip(str(p))]
    if layout == "slices":
        images = dict(files)
        stacks = find_stacks(images) or find_stacks({f"{folder.name}/{name}": path for name, path in images.items()})
        if stacks:
            return [(name, (f"{members[0].parent}/",)) for name, members in sorted(stacks.items())]
    if layout != "nnunet":
        return [(name, (str(path),)) for name, path in files]
    names = Counter(name for name, _ in files)
    if twice := [path for name, path in files if names[name] > 1]:
        raise DataError(f"{twice[0]} and {twice[1]} would both be the same channel of one image: rename one of them")
    return [(name, tuple(map(str, paths))) for name, paths in group_channels(dict(files)).items()]


def _add_unlabeled(listing: Listing, folder: Path | None, groups: Path | None) -> Listing:
    """Return the listing with the images of a folder as further unlabeled cases, and with groups from names.

    Their ids are those below ``folder``, behind ``EXTRA``. Groups are inferred where there are none and ``groups`` does
    not forbid it, over all cases.

    Raises:
        DataError: if there is no such folder, it holds no image, or two of its images have one name.
    """
    if folder is not None:
        listing = _join(listing, folder)
    if groups is not None or any(case.group for case in listing.cases):
        return listing
    group_of = infer_groups([case.id for case in listing.cases])
    if not group_of:
        return listing
    example = min(group_of)
    note = (
        f"{len(set(group_of.values()))} groups are taken from names, e.g. {group_of[example]} of {example}: a group "
        "stays in one part of a split. If this is wrong, give groups.csv, or none (--groups none) for no groups"
    )
    cases = tuple(replace(case, group=group_of.get(case.id)) for case in listing.cases)
    return replace(listing, cases=cases, notes=(*listing.notes, note))


def _join(listing: Listing, folder: Path) -> Listing:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder for further unlabeled images. If it has moved, give --unlabeled.")
    known = {os.path.realpath(split_location(case.image)[0]) for case in listing.cases}
    images = {case.id: Path(case.image) for case in listing.cases}
    cases = list(listing.cases)
    found = list_images(folder, listing.layout)
    further = [(n, files) for n, files in found if os.path.realpath(split_location(files[0])[0]) not in known]
    if not found:
        raise DataError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    masks = {os.path.realpath(split_location(case.mask)[0]) for case in listing.cases if case.mask} - known
    if wrong := [image for _, (image, *_) in further if os.path.realpath(split_location(image)[0]) in masks]:
        raise DataError(
            f"{folder} holds {counted(len(wrong), 'mask')} of the data set, e.g. {wrong[0]}: masks are no images. "
            "Name a folder of unlabeled images."
        )
    for name, (image, *more) in further:
        add_image(images, EXTRA + name, Path(image))
        cases.append(Case(EXTRA + name, image, None, None, tuple(more)))
    notes = (*listing.notes, f"{counted(len(further), 'unlabeled image', 'are')} taken from {folder}")
    if left := len(found) - len(further):
        notes += (f"{counted(left, 'image', f'of {folder} are')} in the data set already",)
    return replace(listing, cases=tuple(sorted(cases, key=lambda case: case.id)), notes=notes)


def _with_groups(listing: Listing, folder: Path, groups: Path | None) -> Listing:
    """Return the listing with the groups of the group file, or as it is without that file."""
    if groups == NO_GROUPS:
        return replace(listing, cases=tuple(replace(case, group=None) for case in listing.cases))
    notes = listing.notes
    if groups is None and (folder / "groups.csv").is_file():
        groups = folder / "groups.csv"
        notes += (f"groups are taken from {groups}",)
    if groups is None:
        return listing
    group_of, group_notes = read_groups(groups, {case.id for case in listing.cases})
    cases = tuple(replace(case, group=group_of.get(case.id)) for case in listing.cases)
    return replace(listing, cases=cases, notes=notes + group_notes)


def _nothing_recognized(root: Path) -> DataError:
    """Return an error that says what the folder holds, and which layouts are recognized."""
    if root.is_file():
        first = f"{root} is a file, expected a folder. Name the folder that holds images/ and masks/."
    else:
        first = folders.describe_missing(root)
    first += _advise_arrays(root)
    if role_of(root.name)[0]:
        return DataError(first)
    known = "\n".join(f"  {name}: {layout.description}" for name, layout in LAYOUTS.items())
    return DataError(f"{first}\nThese layouts are recognized:\n{known}")


def _advise_arrays(root: Path) -> str:
    """Return how a manifest names the arrays of a file that holds several: of ``root``, or the first one in it."""
    inside = sorted(root.iterdir()) if root.is_dir() and not is_image(root) else [root]
    path = next((p for p in inside if (kind := FORMATS.get(split_suffix(p.name)[1])) and kind.list_arrays), None)
    names: tuple[str, ...] = ()
    with suppress(DataError):
        names = () if path is None else list_arrays(path)
    if path is None or not names:
        return ""
    line = f"{path.name}::IMAGE,{path.name}::MASK"
    return (
        f"\n{path} holds the arrays {name_examples(names)}. To use two of them, write {path.parent / 'manifest.csv'} "
        f"with the line image,mask and lines such as {line}, and name the folder {path.parent}."
    )
