"""Files below a folder, and masks by the names of their images. No image is opened here."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from ssl_seg.data.findings import Finding
from ssl_seg.data.formats.slices import sort_slices
from ssl_seg.data.layouts.names import match_names
from ssl_seg.data.volumes import advise_conversion, has_grid, is_image, split_suffix
from ssl_seg.errors import DataError, counted, name_examples

LAYERS = ("layers", "surface_volume", "slices", "stack")
"""Folders of slices that are not part of the name of a volume."""
_SYSTEM_FOLDERS = ("@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found")
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "ehthumbs.db")
_THUMBNAIL = re.compile(r"(.+)[_\-.](?:thumb|thumbs|thumbnail)", re.IGNORECASE)


@dataclass
class Scan:
    """What lies below a folder: ``files`` in one order on every system, and what is not among them.

    ``left_out`` counts files of servers and systems by kind; ``dangling`` are links that lead nowhere, ``repeated``
    those to a folder that is read already.
    """

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    dangling: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say about the files that are left out."""
        notes: tuple[str, ...] = ()
        if self.left_out:
            kinds = ", ".join(f"{number} x {kind}" for kind, number in sorted(self.left_out.items()))
            notes += (f"files of servers and systems are left out: {kinds}",)
        if self.repeated:
            links = counted(len(self.repeated), "link", "lead")
            notes += (f"{links} to a folder that is read already: not followed ({name_examples(self.repeated)})",)
        return notes

    @property
    def findings(self) -> tuple[Finding, ...]:
        """A fault for links that lead nowhere."""
        if not self.dangling:
            return ()
        first = self.dangling[0]
        message = (
            f"{counted(len(self.dangling), 'link', 'lead')} nowhere, e.g. {first} to {first.readlink()}. Mount the "
            "disk that holds the files, or remove the links."
        )
        return (Finding("missing_image", "fault", message, tuple(split_suffix(p.name)[0] for p in self.dangling)),)


def scan_folder(folder: Path, names: Collection[str] | None = None) -> Scan:
    """Return what lies below ``folder``, without hidden files and folders. A ``.zarr`` folder is one image.

    With ``names``, of the files and folders in ``folder`` itself only these are looked at.

    Links to folders are followed, each folder once: by its own path where it has one below ``folder``.
    """
    scan = Scan()
    if not folder.is_dir():
        return scan
    seen = {_identify(parent) for parent in (folder.resolve(), *folder.resolve().parents)}
    links = _walk(folder, scan, seen, names)
    while links:
        link = links.pop(0)
        if _identify(link) in seen:
            scan.repeated.append(link)
        else:
            seen.add(_identify(link))
            links += _walk(link, scan, seen)
    scan.files.sort(key=lambda path: path.parts)
    return scan


def _identify(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _walk(folder: Path, scan: Scan, seen: set[tuple[int, int]], names: Collection[str] | None = None) -> list[Path]:
    """Add what lies below ``folder`` to a scan; return the links to folders, which are not followed."""
    links: list[Path] = []
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        entries = sorted(_list(parent), key=lambda entry: entry.name)
        if names is not None and parent is folder:
            entries = [entry for entry in entries if entry.name in names]
        small = [entry.name for entry in entries if "thumb" in entry.name.lower()]
        stems = {split_suffix(entry.name)[0] for entry in entries if small}
        for entry in entries:
            path, name = parent / entry.name, entry.name.lower()
            thumbnail = _THUMBNAIL.fullmatch(split_suffix(entry.name)[0]) if small else None
            if name in _SYSTEM_FOLDERS or name in _SYSTEM_FILES or name == ".appledouble":
                scan.left_out[entry.name + "/" * entry.is_dir()] += 1
            elif name.startswith("."):
                scan.left_out["._*"] += name.startswith("._")
            elif thumbnail and thumbnail[1] in stems:
                scan.left_out["thumbnails of images"] += 1
            elif entry.is_dir():
                if split_suffix(entry.name)[1].endswith(".zarr"):
                    scan.files.append(path)
                elif entry.is_symlink():
                    links.append(path)
                else:
                    seen.add(_identify(path))
                    waiting.append(path)
            elif entry.is_symlink() and not path.exists():
                scan.dangling.append(path)
            else:
                scan.files.append(path)
    scan.left_out += Counter()  # drops zeros
    return links


def _list(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error}).") from error


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of ``scan_folder``, and links that lead nowhere: who opens one says so."""
    scan = scan_folder(folder)
    yield from sorted((*scan.files, *scan.dangling), key=lambda path: path.parts)


def make_id(path: Path, folder: Path) -> str:
    """Return the path below ``folder`` without its suffix, with forward slashes, in the composed Unicode form.

    Raises:
        DataError: if it is no text.
    """
    check_text(path)
    return normalize("NFC", split_suffix(path.relative_to(folder).as_posix())[0])


def check_text(path: Path) -> None:
    """Check that a path can be written into a split or a table.

    Raises:
        DataError: if it is no text.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        if (encoding := sys.getfilesystemencoding()) != "utf-8":
            raise DataError(f"{path}: Python reads names as {encoding} here. Set PYTHONUTF8=1.") from None
        hint = "Rename it; convmv -f latin1 -t utf8 --notest does so."
        raise DataError(f"{path}: its name is not in UTF-8. {hint}") from None


def find_images(folder: Path) -> dict[str, Path]:
    """Return the images below ``folder`` by id; see ``make_id``.

    Raises:
        DataError: if two images have one id.
    """
    images: dict[str, Path] = {}
    for path in filter(is_image, walk_files(folder)):
        add_image(images, make_id(path, folder), path)
    return images


def add_image(images: dict[str, Path], case_id: str, path: Path) -> None:
    """Add an image or a mask to those with other ids.

    Raises:
        DataError: if the id is taken.
    """
    first = images.setdefault(case_id, path)
    if first is path:
        return
    if first.parent == path.parent:
        raise DataError(f"{first} and {path} have the same name. Keep one of them.")
    raise DataError(f"{first} and {path} would both be the case {case_id}. Rename one of them.")


def find_stacks(images: Mapping[str, Path]) -> dict[str, list[Path]]:
    """Return the slices, in their order, of each folder with numbered images, by its id; see ``sort_slices``. Files
    of NIfTI and the like are none: t1 and t2 are two channels."""
    folders: dict[Path, dict[str, Path]] = {}
    for path in images.values():
        if not has_grid(path.name):
            folders.setdefault(path.parent, {})[split_suffix(path.name)[0]] = path
    names = {path.parent: case_id.rpartition("/")[0] for case_id, path in images.items()}
    stacks: dict[str, list[Path]] = {}
    for parent, slices in folders.items():
        above, _, last = names[parent].rpartition("/")
        name = above if above and last.lower() in LAYERS and above not in stacks else names[parent]
        if name and (ordered := sort_slices(slices)):
            stacks[name] = [slices[stem] for stem in ordered]
    return stacks


def note_others(others: tuple[str, ...]) -> tuple[str, ...]:
    """Return a note on files that are no images; nothing without any."""
    kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in others)
    shown = ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common(3))
    files = counted(len(others), "file", "cannot be read as images and are")
    note = f"{files} not used ({shown}; {name_examples(others)})"
    if advice := advise_conversion(others):
        note += f".{advice.rstrip('.')}"
    return (note,) if others else ()


def note_unlabeled(without_mask: int, images: int) -> tuple[str, ...]:
    """Return a note on images without a mask; nothing without any."""
    note = f"{without_mask} of {images} images have no mask file and count as unlabeled"
    return (note,) if without_mask else ()


def _name_below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def match_masks(
    images: Mapping[str, Path], masks: Mapping[str, Path], folder: Path, seconds: Mapping[str, str] | None = None
) -> tuple[dict[str, Path], tuple[str, ...], tuple[Finding, ...]]:
    """Return the masks that belong to an image, by its id; notes, and a finding on the others. See ``match_names``.

    Args:
        folder: where they lie, for the message.
        seconds: a second name of some masks.

    Raises:
        DataError: if there are masks and none belongs to an image.
    """
    matched = match_names(images, {mask: (seconds or {}).get(mask, mask) for mask in masks})
    if masks and not matched:
        image, mask = (_name_below(folder, files[min(files)]) for files in (images, masks))
        raise DataError(
            f"{folder}: none of the {len(masks)} masks has the name of an image. An image is called {image}, a mask "
            f"{mask}. Name each mask like its image, in folders of the same names, and put the masks of one image into "
            "one file; additions such as _mask may stay."
        )
    used = {image: masks[mask] for mask, image in matched.items()}
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    if loose := sorted(mask for mask, image in matched.items() if image not in (mask, (seconds or {}).get(mask))):
        example = f"{masks[loose[0]].name} is the mask of {images[matched[loose[0]]].name}"
        notes += (f"{counted(len(loose), 'mask', 'are')} named almost like the image: {example}",)
    if without_image := tuple(sorted(set(masks) - set(matched))):
        message = f"{counted(len(without_image), 'mask', 'without an image are')} not used"
        notes += (f"{message} ({name_examples(without_image)})",)
        findings += (Finding("unpaired_mask", "warn", message, without_image),)
    return used, notes, findings
