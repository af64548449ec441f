"""Which images are predicted, where their masks go, and which of them are there already. Loads no torch.

A folder of masks has a record of its own, ``.predictions.jsonl``: by which networks and settings, and from which image,
each mask was made. It tells masks that an interrupted call has finished from those of other networks or people.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_seg.data.layouts import list_images, manifest
from ssl_seg.data.layouts.files import check_text, find_stacks, make_id, note_others, walk_files
from ssl_seg.data.reading import Reading
from ssl_seg.data.volumes import (
    IMAGE_SUFFIXES,
    advise_conversion,
    has_grid,
    is_image,
    open_image,
    split_location,
    split_suffix,
)
from ssl_seg.errors import DataError, counted, name_examples
from ssl_seg.files import append_jsonl, find_obstacle, name_unwritable, read_jsonl

RECORD = ".predictions.jsonl"
NIFTI_SUFFIXES = (".nii", ".nii.gz")
OBJECTS = "_objects"
"""What is put behind the name for the label image and the table of objects."""
ENTROPY, VARIANCE = "_entropy", "_variance"
"""The same, for maps of uncertainty."""
ZARR_SUFFIXES = (".zarr", ".ome.zarr")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".npy", ".h5", ".hdf5", *ZARR_SUFFIXES)
"""Formats of masks in which what is written beside them is, too."""
MASK_SUFFIXES = (".png", ".tif", ".tiff", *VOLUME_SUFFIXES)
SAME_FORMAT = {".tiff": ".tif", ".hdf5": ".h5", ".zarr": ".ome.zarr"}
"""Suffixes with the one that ``--format`` has for their format."""


@dataclass(frozen=True)
class Job:
    """An image (one location for each channel file), and what is written for it: probabilities, objects, the mask."""

    locations: tuple[str, ...]
    mask: Path
    probabilities: tuple[Path, ...] = ()
    has_objects: bool = False
    is_numbered: bool = False
    """Whether the mask is the label image of the objects itself."""

    @property
    def labels(self) -> Path:
        """Label image of the objects."""
        return self.mask if self.is_numbered else _paths_beside(self.mask, (OBJECTS,))[0]

    @property
    def table(self) -> Path:
        """Table of the objects."""
        return self.mask.with_name(f"{split_suffix(self.mask.name)[0]}{OBJECTS}.csv")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All files that are written."""
        beside = (*(() if self.is_numbered else (self.labels,)), self.table)
        return (*self.probabilities, *(beside if self.has_objects else ()), self.mask)

    def identify_image(self) -> list[list[Any]]:
        """Return path, size and time of change of each file, which tell whether it is still the image that it was."""
        files = [Path(split_location(location)[0]) for location in self.locations]
        stats = [file.stat() if file.exists() else None for file in files]
        return [[str(f.resolve()), s and s.st_size, s and s.st_mtime_ns] for f, s in zip(files, stats, strict=True)]


@dataclass(frozen=True)
class Made:
    """What the record says about a mask: by which settings it was begun, and, once it is done, from which image."""

    settings: Mapping[str, Any]
    image: list[list[Any]] | None = None
    shape: tuple[int, ...] = ()
    share: float = 0.0


@dataclass(frozen=True)
class MaskRecord:
    """The record of a ``folder`` of masks, or of none: a single mask with a name of its own is not recorded.

    Lines are appended: the ``settings`` and the names ``planned`` when a call begins, then one that is ``done`` a mask.
    """

    folder: Path | None
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Sixteen hex digits that stand for the settings."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    def read(self) -> dict[str, Made]:
        """Return what is known of each mask, by its path below the folder.

        Raises:
            DataError: for a record that this program has not written.
        """
        if self.folder is None:
            return {}
        made: dict[str, Made] = {}
        settings: dict[str, Mapping[str, Any]] = {}
        path = self.folder / RECORD
        try:
            for line in read_jsonl(path):
                if "planned" in line:  # perhaps by a second call, when the first one had done some
                    settings[line["key"]] = own = line["settings"]
                    named = (name for name in line["planned"] if name not in made or made[name].settings != own)
                    made |= dict.fromkeys(named, Made(own))
                else:
                    own = settings[line["key"]]
                    made[line["done"]] = Made(own, line["image"], tuple(line["shape"]), float(line["share"]))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(
                f"{path} cannot be read: choose another output, or give --overwrite to replace all masks"
            ) from error
        return made

    def plan(self, jobs: Sequence[Job]) -> None:
        """Say which masks are about to be made: what lies there under these names is ours from now on.

        Raises:
            DataError: when it cannot be written.
        """
        if self.folder is not None and jobs:
            names = [self.name(job) for job in jobs]
            self._append({"key": self.key, "settings": self.settings, "planned": names})

    def finish(self, job: Job, image: list[list[Any]], shape: Sequence[int], share: float) -> None:
        """Say that a mask is written, of the image that ``identify_image`` has named.

        Raises:
            DataError: when that cannot be written.
        """
        line = {"key": self.key, "done": self.name(job), "image": image, "shape": list(shape)}
        self._append({**line, "share": share})

    def is_done(self, job: Job) -> bool:
        """Return whether all outputs are there, made by these settings from the image as it is now."""
        own, there = self.read().get(self.name(job)), all(path.exists() for path in job.outputs)
        return there and own is not None and own.settings == self.settings and own.image == job.identify_image()

    def lock_path(self, job: Job) -> Path:
        """Return the file that is locked by the process that makes a mask."""
        return (self.folder or job.mask.parent) / f".{self.name(job).replace('/', '_')}.lock"

    def name(self, job: Job) -> str:
        """Return the path of a mask below the folder."""
        return job.mask.relative_to(self.folder or job.mask.parent).as_posix()

    def _append(self, line: Mapping[str, Any]) -> None:
        if self.folder is None:
            return
        with name_unwritable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            append_jsonl(self.folder / RECORD, line)


def check_places(source: Path, output: Path) -> None:
    """Check what can be known of input and output before any network is read.

    Raises:
        DataError: no such input, a file that is no image, an output that is the input, holds it or cannot be made.
    """
    if not source.exists():
        raise DataError(f"no image file or folder {source}")
    if not os.access(source, os.R_OK):
        raise DataError(f"{source} cannot be read: permission denied")
    check_text(source)
    if not is_image(source) and not source.is_dir() and not manifest.recognize(source):
        advice = advise_conversion([source.name])
        raise DataError(f"{source} is not an image: known suffixes are {', '.join(sorted(IMAGE_SUFFIXES))}.{advice}")
    several = not is_image(source)
    place = output.resolve()
    if output.exists() and place in {source.resolve(), (source / "images").resolve()}:
        raise DataError(f"{output}: masks would be written among the images of {source}: choose another output")
    if several and source.resolve().is_relative_to(place):  # what lies below the output counts as written earlier
        raise DataError(f"{output} holds the images of {source}: choose another output, or a folder in it")
    is_file = split_suffix(output.name)[1] in MASK_SUFFIXES
    if several and (output.is_file() or is_mask_name(output)):
        raise DataError(f"{output} is a file, and the masks of {source} need a folder: choose another output")
    if not several and not is_file and output.is_file():
        raise DataError(f"{output} is a file, but not a mask file ({', '.join(MASK_SUFFIXES)}): choose another output")
    if not several and is_image(output) and not is_mask_name(output) and not output.is_dir():
        known = ", ".join(MASK_SUFFIXES)
        raise DataError(f"{output}: masks are not written as {split_suffix(output.name)[1]}: use one of {known}")
    if obstacle := find_obstacle(output / "mask" if output.is_dir() else output):
        raise DataError(f"{output} cannot be written: {obstacle}")


def plan_jobs(
    source: Path,
    output: Path,
    ndim: int,
    layout: str,
    suffixes: Iterable[str] = (),
    *,
    objects: bool = False,
    numbered: bool = False,
    suffix: str | None = None,
    axes: str | None = None,
) -> list[Job]:
    """Return the images of a file or folder with the paths of their masks.

    Args:
        source: an image, a folder of images, or a data set in a known layout, such as the file of a manifest.
        output: folder of the masks; a file for a single image.
        ndim: 2 or 3.
        layout: layout of the training data: files of nnU-Net that end in _0000, _0001, ... are channels of one image.
        suffixes: what is put behind the name for each file of probabilities.
        objects: whether objects are written.
        numbered: whether their label image is the mask.
        suffix: that of the masks in a folder; by default PNG, TIFF for volumes, and NIfTI for NIfTI, NRRD, MetaImage.
        axes: ``data.axes`` of the training, by which an array of few slices is a volume.

    Raises:
        DataError: no image, two images with one mask, a mask in the place of an image, a volume as PNG, a ``suffix``
            of no mask, or a name that says another format.
    """
    suffixes = tuple(suffixes)
    if suffix not in (None, *MASK_SUFFIXES):
        raise DataError(f"--format {(suffix or '')[1:]}: masks are written as {', '.join(MASK_SUFFIXES)}")
    if is_image(source):
        name, has_name = split_suffix(source.name)[0], is_mask_name(output)
        named = split_suffix(output.name)[1]
        if has_name and suffix not in (None, SAME_FORMAT.get(named, named)):
            raise DataError(f"--format {(suffix or '')[1:]}: {output} says another format: leave one of them out")
        mask = output if has_name else output / _mask_name(name, source.name, ndim, suffix)
        jobs = [Job((str(source),), mask, _paths_beside(mask, suffixes), objects, numbered)]
    else:
        images = _find_images(source, output, layout, ndim, axes)
        if not images:
            advice = advise_conversion(path.name for path in walk_files(source))
            raise DataError(f"{source} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).{advice}")
        masks = [output / _mask_name(name, files[0], ndim, suffix) for name, files in images]
        pairs = zip(images, masks, strict=True)
        jobs = [Job(files, mask, _paths_beside(mask, suffixes), objects, numbered) for (_, files), mask in pairs]
    _check_distinct(jobs)
    if ndim == 3 and (planes := [job.mask for job in jobs if job.mask.suffix == ".png"]):
        raise DataError(f"{planes[0]}: PNG holds no volume: use one of {', '.join(MASK_SUFFIXES[1:])}")
    return jobs


def is_mask_name(output: Path) -> bool:
    """Return whether an output names a single mask, rather than a folder."""
    suffix = split_suffix(output.name)[1]
    return suffix in ZARR_SUFFIXES or (suffix in MASK_SUFFIXES and not output.is_dir())


def split_jobs(jobs: Sequence[Job], record: MaskRecord, *, overwrite: bool) -> tuple[list[Job], dict[Path, Made]]:
    """Return the jobs that are to be done, and the masks that are there already, made by the same settings.

    Raises:
        DataError: for an output that exists and was made by other settings, from another image, or by someone else.
    """
    found = [[path for path in job.outputs if path.exists()] for job in jobs]
    made = {} if overwrite else record.read()  # after that: another process says what it makes before it makes it
    waiting: list[Job] = []
    kept: dict[Path, Made] = {}
    refused: list[str] = []
    for job, there in zip(jobs, found, strict=True):
        own = made.get(record.name(job))
        if folders := [path for path in there if path.is_dir() and split_suffix(path.name)[1] not in ZARR_SUFFIXES]:
            refused.append(f"{folders[0]} is a folder")
        elif not there or overwrite:
            waiting.append(job)
        elif own is None:
            refused.append(f"{there[0]} exists already and is not overwritten")
        elif own.settings != record.settings:
            changes = _describe_changes(own.settings, record.settings)
            refused.append(f"{job.mask} exists already and is not overwritten: it was made with {changes}")
        elif own.image is None or len(there) < len(job.outputs):
            waiting.append(job)  # an interrupted call had not come to its end
        elif own.image != job.identify_image():
            refused.append(f"{job.mask} was made from another image, or {job.locations[0]} has changed since then")
        else:
            kept[job.mask] = own
    if refused:
        others = f" (and {len(refused) - 1} more like it)" if len(refused) > 1 else ""
        raise DataError(f"{refused[0]}{others}: choose another output, or give --overwrite to replace all masks")
    return waiting, kept


def _describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if "networks" in changed:
        return "other networks"
    return ", ".join(f"{key} {_show(before.get(key))} and not {_show(now.get(key))}" for key in changed)


def _show(value: Any) -> str:
    return "as by default" if value is None else str(value)


def _find_images(
    folder: Path, output: Path, layout: str, ndim: int, axes: str | None
) -> list[tuple[str, tuple[str, ...]]]:
    """Return name and locations of the images of a folder, without what an earlier call has written below it.

    Where a network of volumes gets nothing but numbered 2D images, each folder of them is one.
    """
    place = output.resolve()

    def is_output(path: str) -> bool:
        return Path(path).resolve().is_relative_to(place)

    files = {make_id(p, folder.parent): p for p in walk_files(folder) if is_image(p) and not is_output(str(p))}
    if ndim == 3 and files and sum(map(len, find_stacks(files).values())) == len(files):
        with suppress(DataError):  # it is named later
            first = open_image(str(next(iter(files.values()))), reading=Reading(axes=axes, scratch=folder))
            is_plane = len(first.shape) == 3  # (C, Y, X)
            layout = "slices" if is_plane else "folders" if layout == "slices" else layout
    return list_images(folder, layout, is_output)


def note_unread(source: Path, output: Path, jobs: Sequence[Job]) -> tuple[str, ...]:
    """Return notes on the files of a folder that get no mask: no images that can be read, and images that are no cases
    of the data set which the folder is."""
    if is_image(source):
        return ()
    inner, place = source / "images" if (source / "images").is_dir() else source, output.resolve()
    used = {Path(split_location(location)[0]).resolve() for job in jobs for location in job.locations}
    unused: dict[bool, list[str]] = {True: [], False: []}
    for path in walk_files(inner):
        found = path.resolve()
        if not found.is_relative_to(place) and not {found, found.parent} & used:
            unused[is_image(path)].append(path.relative_to(inner).as_posix())
    notes = note_others(tuple(unused[False]))
    if images := unused[True]:
        files = counted(len(images), "image file", "outside its cases get")
        text = f"{source} is read as a data set: {files} no mask"
        notes += (f"{text} ({name_examples(images)})",)
    return notes


def _mask_name(name: str, image: str, ndim: int, suffix: str | None) -> str:
    """Return the file name of an image's mask: NIfTI, which keeps the geometry, where the image is."""
    if suffix is not None:
        return name + suffix
    if has_grid(image):
        ending = split_suffix(image)[1]
        return name + (ending if ending in NIFTI_SUFFIXES else ".nii.gz")
    return name + (".png" if ndim == 2 else ".tif")


def _paths_beside(mask: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    stem, ending = split_suffix(mask.name)
    kind = ending if ending in VOLUME_SUFFIXES else ".tif"
    return tuple(mask.with_name(f"{stem}{suffix}{kind}") for suffix in suffixes)


def _check_distinct(jobs: Sequence[Job]) -> None:
    """Nothing may be written twice, or over an image."""
    images = {os.path.realpath(split_location(location)[0]): location for job in jobs for location in job.locations}
    owners: dict[Path, str] = {}
    for job in jobs:
        for path in job.outputs:
            if (image := images.get(os.path.realpath(path))) is not None:
                raise DataError(f"{path} would be written over the image {image}: choose another output")
            if path in owners:
                raise DataError(
                    f"two images would both be written to {path}: {owners[path]} and {job.locations[0]}: rename one of "
                    "them"
                )
            owners[path] = job.locations[0]
