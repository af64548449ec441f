"""The raw data format of nnU-Net, and that of the Medical Segmentation Decathlon that it came from.

``imagesTr/X_0000.nii.gz`` and ``X_0001.nii.gz`` are the channels of case X, ``labelsTr/X.nii.gz`` is its mask. The
Decathlon has ``imagesTr/X.nii.gz``. Without dataset.json, the endings of the files say what they are.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_seg.data.layouts.files import Scan, add_image, make_id, match_masks, note_unlabeled, scan_folder, walk_files
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.data.volumes import IMAGE_SUFFIXES, advise_conversion, is_image, split_suffix
from ssl_seg.errors import DataError, counted, name_examples
from ssl_seg.files import read_text

_COLOR_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
"""One file may hold all channels (red, green, blue)."""


@dataclass(frozen=True)
class _Description:
    """What dataset.json says: ``labels`` are (value, name), without the value to ignore; ``channels`` may be None."""

    ending: str
    channels: int | None
    labels: tuple[tuple[int, str], ...]
    ignore_value: int | None


def recognize(root: Path) -> bool:
    """Return whether there is imagesTr/ with dataset.json or labelsTr/."""
    return (root / "imagesTr").is_dir() and ((root / "dataset.json").is_file() or (root / "labelsTr").is_dir())


def find(root: Path) -> Listing:
    """Return the training cases, with the label values that dataset.json declares; imagesTs/ is not used.

    Raises:
        DataError: if a part is missing, dataset.json is not of that form or declares regions, cases differ in channels,
            or there are labels and none belongs to an image.
    """
    if not (root / "imagesTr").exists():
        raise DataError(f"{root} has no imagesTr: the nnU-Net layout is dataset.json, imagesTr/ and labelsTr/.")
    images_scan, labels_scan = scan_folder(root / "imagesTr"), scan_folder(root / "labelsTr")
    notes: tuple[str, ...] = ()
    if (root / "dataset.json").is_file():
        description = _read_description(root / "dataset.json")
    else:
        endings = Counter(split_suffix(path.name)[1] for path in images_scan.files if is_image(path))
        description = _Description(endings.most_common(1)[0][0] if endings else ".nii.gz", None, (), None)
        notes = (f"there is no dataset.json: files end in {description.ending}, label values are those of the masks",)
    files, image_notes = _files_by_stem(root / "imagesTr", images_scan, description.ending)
    if not files:
        raise DataError(f"{root / 'imagesTr'} holds no file that ends in {description.ending} (from dataset.json).")
    channels_of = group_channels(files)
    if _find_separator(files):
        _check_channels(root, channels_of, description)
    images = {case_id: channels[0] for case_id, channels in channels_of.items()}
    labels, label_notes = _files_by_stem(root / "labelsTr", labels_scan, description.ending)
    plain = {label: re.sub(r"[_.-]0000$", "", label) for label in labels}
    masks, mask_notes, findings = match_masks(images, labels, root, plain)
    notes += image_notes + label_notes + mask_notes + note_unlabeled(len(images) - len(masks), len(images))
    notes += Scan(left_out=images_scan.left_out + labels_scan.left_out).notes
    findings += images_scan.findings + labels_scan.findings
    if test := [path for path in walk_files(root / "imagesTs") if path.name.endswith(description.ending)]:
        notes += (f"{counted(len(test), 'file', 'of imagesTs/ are')} not used",)
    cases = (
        Case(i, str(paths[0]), str(masks[i]) if i in masks else None, None, tuple(map(str, paths[1:])))
        for i, paths in sorted(channels_of.items())
    )
    return Listing(
        "nnunet",
        tuple(cases),
        notes,
        findings,
        label_values=tuple(value for value, _ in description.labels) or None,
        ignore_value=description.ignore_value,
        class_names=tuple(name for _, name in description.labels),
    )


def _files_by_stem(folder: Path, scan: Scan, ending: str) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the files with this ending by the path without it, and a note on others."""
    found: dict[str, Path] = {}
    others: list[str] = []
    for path in scan.files:
        if path.name.lower().endswith(ending.lower()):
            add_image(found, make_id(path, folder), path)
        else:
            others.append(path.relative_to(folder).as_posix())
    files = counted(len(others), "file", f"in {folder.name}/ do")
    note = f"{files} not end in {ending}: not used ({name_examples(others)})"
    return found, (note,) if others else ()


def _find_separator(stems: Iterable[str]) -> str:
    """Return the character before the number of a channel: ``_``, or else ``.`` or ``-``; "" without numbers."""
    first = {stem[-5] for stem in stems if stem.endswith("0000") and stem[-5:-4] in ("_", ".", "-")}
    return next((separator for separator in "_.-" if separator in first), "")


def group_channels(files: Mapping[str, Path]) -> dict[str, list[Path]]:
    """Return the files of each case in the order of their channel numbers."""
    separator = _find_separator(files)
    if not separator:
        return {stem: [path] for stem, path in files.items()}
    grouped: dict[str, list[Path]] = {}
    for stem, path in sorted(files.items()):
        parts = re.fullmatch(rf"(.+){re.escape(separator)}(\d{{4}})", stem)
        channels = grouped.setdefault(parts[1], []) if parts else []
        if parts is None or int(parts[2]) != len(channels):
            raise DataError(f"{path}: the channels of a case end in _0000, _0001, ... This one does not follow on any.")
        channels.append(path)
    return grouped


def _check_channels(root: Path, channels_of: Mapping[str, list[Path]], description: _Description) -> None:
    """Compare the number of files of each case with dataset.json; a file of colors may hold all channels."""
    counts = {case_id: len(paths) for case_id, paths in channels_of.items()}
    colors = description.ending.lower() in _COLOR_SUFFIXES and set(counts.values()) == {1}
    expected = description.channels or Counter(counts.values()).most_common(1)[0][0]
    wrong = sorted(case_id for case_id, count in counts.items() if count != expected)
    if wrong and not colors:
        says = "dataset.json names" if description.channels else "most cases have"
        raise DataError(
            f"{root}: {says} {counted(expected, 'channel')}, and {counted(len(wrong), 'case', 'have')} another "
            f"number of files, e.g. {wrong[0]} has {counts[wrong[0]]}. Add the missing files, or correct dataset.json."
        )


def _read_description(path: Path) -> _Description:
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: must be an object with channel_names, labels and file_ending.")
    if "dataset" in content:
        raise DataError(
            f"{path}: file lists under 'dataset' are not read. Write them as manifest.csv with the columns image, mask."
        )
    ending = content.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or ending.lower() not in IMAGE_SUFFIXES:
        advice = advise_conversion([str(ending)])
        raise DataError(
            f"{path}: file_ending {ending!r} cannot be read. Known are {', '.join(IMAGE_SUFFIXES)}.{advice}"
        )
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise DataError(f"{path}: channel_names must map channel numbers to names, found {channels!r}.")
    named = content.get("labels") or {}
    if not isinstance(named, dict):
        raise DataError(f"{path}: labels must map names to values, found {named!r}.")
    labels = [_parse_label(key, value, path) for key, value in named.items()]
    ignored = [value for value, name in labels if name == "ignore"]
    kept = tuple(sorted(item for item in labels if item[1] != "ignore"))
    values = [value for value, _ in labels]
    if labels and (len(set(values)) != len(values) or 0 not in [value for value, _ in kept] or len(kept) < 2):
        raise DataError(
            f"{path}: labels need one name for each value, 0 for the background, and another; found {values}."
        )
    return _Description(ending, len(channels), kept, ignored[0] if ignored else None)


def _parse_label(key: str, value: Any, path: Path) -> tuple[int, str]:
    """Return (value, name) of ``"tumor": 2``, or of ``"2": "tumor"`` as in version 1."""
    if isinstance(value, list):
        raise DataError(
            f"{path}: label '{key}' is a region of the values {value}; regions overlap, and a mask here has one class "
            "per voxel. Declare each value as a label of its own."
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return value, key
    if isinstance(value, str) and key.isdecimal():
        return int(key), value
    raise DataError(f"{path}: label '{key}': {value!r} is neither name: value nor \"value\": name.")
