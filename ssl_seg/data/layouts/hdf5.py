"""HDF5 files with the arrays ``image`` and ``label``, as the left-atrium and ACDC sets are published."""

from __future__ import annotations

import re
from pathlib import Path
from unicodedata import normalize

from ssl_seg.data.findings import Finding
from ssl_seg.data.layouts.files import add_image, note_unlabeled, walk_files
from ssl_seg.data.layouts.listing import Case, Listing, check_id
from ssl_seg.data.volumes import is_image, list_arrays, split_suffix
from ssl_seg.errors import DataError, counted, name_examples
from ssl_seg.files import read_text

SUFFIXES = (".h5", ".hdf5")
LISTS = ("train.list", "train_slices.list")
FOLDERS = ("", "data", "data/slices", "2018LA_Seg_Training Set")
"""Where the files of a list are looked for, below the folder of the data set."""

_LA_FILE = "mri_norm2"
_PATIENT = re.compile(r"(?:.*/)?(patient\d+)_frame\d+(?:_slice_\d+)?")


def recognize(root: Path) -> bool:
    """Return whether there are such files, and no ``images/`` that they could belong to."""
    if not root.is_dir() or (root / "images").is_dir():
        return False
    first = next((p for p in walk_files(root) if _is_hdf5(p)), None)
    return first is not None and (_find_list(root) is not None or "image" in list_arrays(first))


def find(root: Path) -> Listing:
    """Return the cases of train.list (else of train_slices.list), or without a list one case for each file.

    An id is the name in the list, or the path below ``root``, without the suffix and without ``/mri_norm2``.

    Raises:
        DataError: if there are no such files, one cannot be opened, or a list is empty or repeats a name.
    """
    files = [path for path in walk_files(root) if _is_hdf5(path)]
    if not files:
        raise DataError(f"{root} holds no {' or '.join(SUFFIXES)} file: each must have the arrays image and label.")
    source = _find_list(root)
    found, notes, findings = _from_list(root, source, files) if source else (_from_files(root, files), (), ())
    if others := [p.relative_to(root).as_posix() for p in walk_files(root) if is_image(p) and not _is_hdf5(p)]:
        notes += (f"{counted(len(others), 'image file', 'are')} not HDF5 and not used ({name_examples(others)})",)
    arrays = {case_id: list_arrays(path) for case_id, path in found.items()}
    without_image = tuple(sorted(i for i, keys in arrays.items() if "image" not in keys))
    if len(without_image) == len(found):
        first, keys = next((found[i], keys) for i, keys in arrays.items())
        raise DataError(
            f"{root}: none of the {len(found)} {' or '.join(SUFFIXES)} files holds an array 'image'; {first} holds "
            f"{name_examples(keys)}. Name other arrays in a manifest: {first.name}::KEY."
        )
    if without_image:
        files_without = counted(len(without_image), "file", "hold")
        message = f"{files_without} no array 'image', e.g. {found[without_image[0]]}. Remove them."
        findings += (Finding("missing_image", "fault", message, without_image),)
    cases = []
    for case_id, path in sorted(found.items()):
        if case_id not in without_image:
            label = next((f"{path}::{key}" for key in ("label", "mask") if key in arrays[case_id]), None)
            patient = _PATIENT.fullmatch(case_id)
            cases.append(Case(case_id, f"{path}::image", label, patient[1] if patient else None))
    if grouped := [c.id for c in cases if c.group]:
        notes += (
            f"{counted(len(grouped), 'case', 'are')} grouped by the patient in the name ({name_examples(grouped)})",
        )
    notes += note_unlabeled(sum(c.mask is None for c in cases), len(cases))
    return Listing("hdf5", tuple(cases), notes, findings)


def _is_hdf5(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _find_list(root: Path) -> Path | None:
    return next((root / name for name in LISTS if (root / name).is_file()), None)


def _to_id(name: str) -> str:
    """Return ``case/mri_norm2.h5`` or ``case.h5`` as ``case``."""
    stem = normalize("NFC", split_suffix(name)[0] if name.lower().endswith(SUFFIXES) else name)
    return stem.removesuffix(f"/{_LA_FILE}")


def _from_files(root: Path, files: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files:
        add_image(found, _to_id(path.relative_to(root).as_posix()), path)
    return found


def _from_list(
    root: Path, source: Path, files: list[Path]
) -> tuple[dict[str, Path], tuple[str, ...], tuple[Finding, ...]]:
    """Return the files of the names in ``source`` by id, a note on other files, and a finding on names without one."""
    present = {normalize("NFC", path.relative_to(root).as_posix()): path for path in files}
    found: dict[str, Path] = {}
    missing: list[str] = []
    for case_id in _read_list(source):
        tails = (*(case_id + s for s in SUFFIXES), *(f"{case_id}/{_LA_FILE}{s}" for s in SUFFIXES))
        places = (f"{folder}/{tail}".lstrip("/") for folder in FOLDERS for tail in tails)
        path = next((present[place] for place in places if place in present), None)
        if path is None:
            missing.append(case_id)
        else:
            found[case_id] = path
    if not found:
        raise DataError(f"{source}: there is no file for any of its names, e.g. {missing[0]}, in {root}.")
    notes: tuple[str, ...] = (f"cases are taken from {source}",)
    if left_out := sorted(set(files) - set(found.values())):
        examples = name_examples([path.relative_to(root).as_posix() for path in left_out])
        notes += (f"{counted(len(left_out), 'HDF5 file', 'are')} not in {source.name} and left out ({examples})",)
    if not missing:
        return found, notes, ()
    names = counted(len(missing), "name", "have")
    message = f"{source}: {names} no file, e.g. {missing[0]}. Add the files, or remove the names."
    return found, notes, (Finding("missing_image", "fault", message, tuple(missing)),)


def _read_list(source: Path) -> list[str]:
    """Return the ids of a list with one name per line."""
    try:
        lines = read_text(source).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read ({error}).") from error
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if name := line.strip().replace("\\", "/"):
            case_id = check_id(_to_id(name), f"{source}, line {number}")
            if case_id in line_of:
                raise DataError(f"{source}, line {number}: '{case_id}' is in line {line_of[case_id]} too. Remove one.")
            line_of[case_id] = number
    if not line_of:
        raise DataError(f"{source}: no names in it. Write one case name per line, or remove the file.")
    return list(line_of)
