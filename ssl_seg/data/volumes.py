"""One image or mask: from a location to an array, and back to a file.

Shapes: images (C, *S), masks (*S), with *S = (Z, Y, X) or (Y, X). A depth of one is an image, not a stack.

A location is a path, ``synthetic:particles/0007``, or ``PATH::KEY`` for an array inside an HDF5, NPZ or Zarr file;
without a key, that is ``image`` (of a mask: ``label``, then ``mask``), or the only array there is. A path that ends
in a slash is a folder of 2D slices in the order of their numbers; ``PATH::depth=65`` is one 2D mask for 65. Axes:

- TIFF and OME-Zarr name theirs; axes of length one are dropped, and points in time refused.
- NIfTI, NRRD and MetaImage become (C, Z, Y, X), with Z, Y and X pointing to superior, anterior and right where they
  have an affine.
- Arrays of NPY, NPZ, HDF5 and plain Zarr are (Y, X), (Z, Y, X) or (C, Z, Y, X), unless a short axis elsewhere is
  likelier the channels (``lay_out_array``); unnamed pages of a TIFF are slices.
- ``Reading.axes`` names the axes of all of these but NIfTI, whatever the file says.

Values come as stored, NIfTI with its slope and intercept. Images come upright by their orientation tag, with the colors
of their palette, and large where bright; of a mask, the indices of a palette are the labels. Only what a file declares
as alpha is dropped. ``Stored.notes`` say what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ssl_seg.data import synthetic
from ssl_seg.data.formats import FORMATS, Format
from ssl_seg.data.formats.hdf5 import write_hdf5
from ssl_seg.data.formats.layout import AxisLayout, Box
from ssl_seg.data.formats.nifti import undo_orientation, write_nifti
from ssl_seg.data.formats.numpy_files import write_npy
from ssl_seg.data.formats.pixels import merge_label_channels
from ssl_seg.data.formats.slices import repeat_slices, sort_slices, stack_slices
from ssl_seg.data.formats.stored import (
    AnyArray,
    Fetch,
    Gaps,
    Geometry,
    Stored,
    cut,
    from_array,
    leave_out,
    merge_equal_channels,
    name_errors,
)
from ssl_seg.data.formats.tiff import write_tiff
from ssl_seg.data.formats.zarr_store import write_zarr
from ssl_seg.data.grids import compare_grids
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.errors import DataError, did_you_mean, name_examples
from ssl_seg.files import atomic_folder, atomic_write, name_unwritable

__all__ = [
    "IMAGE_SUFFIXES",
    "MASK_KEYS",
    "Geometry",
    "Stored",
    "advise_conversion",
    "has_grid",
    "is_image",
    "is_lossy",
    "lay_out_as_file",
    "list_arrays",
    "open_image",
    "open_mask",
    "read_image",
    "read_mask",
    "split_location",
    "split_suffix",
    "takes_axes",
    "write_mask",
    "write_probabilities",
]

IMAGE_SUFFIXES = tuple(FORMATS)
"""Suffixes of files (Zarr: folders) that are taken for images, in lower case."""

_IN_PLACE = "to .nii.gz, which keeps where voxels lie:"
_CONVERSIONS = {
    (".nhdr", ".mhd"): f"{_IN_PLACE} SimpleITK.WriteImage(SimpleITK.ReadImage(old), new)",
    (".mgz", ".mgh", ".hdr", ".img"): f"{_IN_PLACE} nibabel.save(nibabel.load(old), new)",
    (".webp", ".gif", ".avif", ".jp2", ".pbm", ".pgm", ".ppm", ".tga"): "to .png: PIL.Image.open(old).save(new)",
    (".czi", ".lif", ".lsm", ".nd2", ".oib", ".ims", ".svs", ".ndpi", ".scn", ".mrxs", ".vsi"): (
        "to .tif, one image or stack a file, in Fiji or QuPath"
    ),
    (".dcm", ".dicom", ".ima"): "to .nii.gz: ssl-seg data import FOLDER OUT",
}
"""Suffixes of images that are not read, and what to make of them how."""

_IMAGE_KEYS = ("image",)
MASK_KEYS = ("label", "mask")
"""Names of the array of the mask in files that hold several, the first that is there."""

_VOLUMES = ".tif, .nii.gz, .npy, .h5 or .ome.zarr"

_PICTURE = "save it as PNG, which keeps all values"
_OTHER_KINDS = (
    (8, b"webp", f"is a WebP picture: {_PICTURE}"),
    (0, b"gif8", f"is a GIF picture: {_PICTURE}"),
    (4, b"ftyp", f"is an AVIF or HEIC picture, or a film: {_PICTURE}"),
    (4, b"jp  ", f"is a JPEG 2000 picture: {_PICTURE}"),
    (0, b"version https:/", "is a pointer of Git LFS, not the file itself: run git lfs pull"),
    (0, b"<!doctype html", "is a web page: download the file again"),
    (0, b"<html", "is a web page: download the file again"),
)
"""Position and first bytes, in lower case, of what files of these suffixes often are, and what to do."""

_ONE_FRAME = (".npy", ".h5", ".hdf5", ".zarr", ".ome.zarr")
"""Suffixes of files that hold masks as they are read, whatever the order in the file of the image."""

ROUNDED = 1e-3
"""Values of a mask this close to a whole number are meant to be it: scaling and resampling leave such traces."""


def split_suffix(name: str) -> tuple[str, str]:
    """Return ``name`` without its suffix, and the suffix in lower case; ``(name, "")`` if it is not one of an image."""
    base = name.rstrip("/").rpartition("/")[2].lower()
    if not base.endswith(IMAGE_SUFFIXES):
        return name, ""
    fitting = [suffix for suffix in IMAGE_SUFFIXES if base.endswith(suffix) and base != suffix]
    longest = max(fitting, key=len, default="")
    return name[: len(name) - len(longest)], longest


def split_location(location: str) -> tuple[str, str]:
    """Return the path of a location, and its key, "" without one; a file's own name may have two colons."""
    name, _, key = location.partition("::")
    return (name, key) if split_suffix(name)[1] else (location, "")


def is_image(path: Path) -> bool:
    """Return whether ``path`` is taken for an image: by its suffix, and a Zarr store by being a folder as well."""
    suffix = split_suffix(path.name)[1]
    return suffix != "" and (not FORMATS[suffix].is_folder or path.is_dir())


def advise_conversion(names: Iterable[str]) -> str:
    """Return sentences, each behind a space, on how to convert the images among files that are not read."""
    lower = [name.lower().removesuffix(".gz") for name in names]
    found = {how: [s for s in suffixes if any(n.endswith(s) for n in lower)] for suffixes, how in _CONVERSIONS.items()}
    return "".join(f" Convert {' and '.join(sorted(known))} {how}." for how, known in found.items() if known)


def is_lossy(location: str) -> bool:
    """Return whether a location is a file that does not keep values, by its suffix."""
    suffix = split_suffix(location)[1]
    return suffix != "" and FORMATS[suffix].is_lossy


def has_grid(location: str) -> bool:
    """Return whether a location is a file that says where its voxels lie in the world, by its suffix."""
    suffix = split_suffix(location)[1]
    return suffix != "" and FORMATS[suffix].has_grid


def takes_axes(location: str) -> bool:
    """Return whether ``data.axes`` holds for a location, by its suffix."""
    suffix = split_suffix(split_location(location)[0])[1]
    return suffix != "" and FORMATS[suffix].takes_axes


def open_image(*locations: str, reading: Reading = AS_STORED) -> Stored:
    """Return an opened image; several locations are its channels, or groups of channels, one behind the other.

    A color image that is decoded on opening and whose three channels are equal has C = 1.

    Args:
        locations: where it is.
        reading: how its files are read, where they leave it open.

    Raises:
        DataError: if a file is missing, damaged, of an unknown kind, or the sizes or grids differ.
    """
    parts = [leave_out(_open(location, _IMAGE_KEYS, reading), reading) for location in locations]
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts:
        if part.shape[1:] != first.shape[1:]:
            raise DataError(
                f"{part.location} has the size {part.shape[1:]}, {first.location} has {first.shape[1:]}. "
                "The channels of an image must have the same size."
            )
        compare_grids(part.location, part.geometry, first.location, first.geometry, first.shape[1:])
    return Stored(
        shape=(sum(part.shape[0] for part in parts), *first.shape[1:]),
        dtype=np.result_type(*(part.dtype for part in parts)),
        geometry=first.geometry,
        by_box=all(part.by_box for part in parts),
        location=first.location,
        fetch=partial(_read_channels, tuple(parts)),
        chunk_rows=max(part.chunk_rows for part in parts),
        gaps=_join_gaps(parts),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def open_mask(location: str, *, reading: Reading = AS_STORED) -> Stored:
    """Return an opened mask: C = 1, an integer dtype; where ``reading`` takes fractions, that of the file.

    Raises:
        DataError: as for ``open_image``; also for colors. Where a file holds no integer dtype, ``read`` raises it for
            values that are not integers, unless ``reading`` takes fractions.
    """
    if synthetic.is_synthetic(location):
        return _hold_synthetic(location, synthetic.generate(*synthetic.parse_location(location))[1])
    location, _, depth = location.partition("::depth=") if location.rpartition("=")[2].isdigit() else (location, "", "")
    stored = _open(location, MASK_KEYS, replace(reading, is_mask=True))
    if stored.dtype.kind == "f":
        stored = replace(stored, fetch=partial(_fetch_finite, stored.fetch, location))
    if stored.shape[0] != 1:
        with name_errors(location):
            are_slices = len(stored.shape) == 3 and takes_axes(location) and reading.axes is None
            labels, notes, colors = merge_label_channels(stored.read(), are_slices=are_slices)
        fetch = partial(cut, labels)
        notes = (*stored.notes, *notes)
        stored = replace(
            stored,
            shape=labels.shape,
            by_box=False,
            fetch=fetch,
            notes=notes,
            label_colors=colors or stored.label_colors,
        )
    if depth:
        stored = repeat_slices(stored, int(depth))
    return stored if reading.fractions else to_integers(stored)


def to_integers(mask: Stored) -> Stored:
    """Return an opened mask whose ``read`` gives integers, or raises DataError for values that are none."""
    if mask.dtype.kind in "iu":
        return mask
    fetch = partial(_fetch_integers, mask.fetch, mask.location)
    integers = replace(mask, dtype=np.dtype(np.int32), fetch=fetch)
    if mask.by_box or (mask.read() == integers.read()).all():
        return integers
    return replace(integers, notes=(*mask.notes, f"values within {ROUNDED} of a whole number are rounded"))


def read_image(*locations: str, reading: Reading = AS_STORED) -> NDArray[np.generic]:
    """Return an image as (C, *S) in its own dtype; color images are RGB, without alpha.

    An image of one location whose three channels are equal has C = 1.

    Raises:
        DataError: as for ``open_image``; also if it holds NaN or infinity that ``reading`` does not leave out.
    """
    image = open_image(*locations, reading=reading).read()
    return merge_equal_channels(image) if len(locations) == 1 else image


def read_mask(location: str, *, reading: Reading = AS_STORED) -> NDArray[Any]:
    """Return a mask as (*S) of integers, with the values of the file; see ``open_mask``.

    Raises:
        DataError: as for ``open_mask``; also for values that are not integers.
    """
    return cast(NDArray[Any], open_mask(location, reading=reading).read()[0])


def list_arrays(path: Path) -> tuple[str, ...]:
    """Return the keys of the arrays in an HDF5, NPZ or Zarr file; none for other files and where no key is needed.

    Raises:
        DataError: if the file is missing, damaged, or of an unknown kind.
    """
    return tuple(_list_arrays(path, _check_start(path)))


def write_mask(path: Path, mask: AnyArray, geometry: Geometry | None = None) -> None:
    """Write a mask as ``.png`` (Y, X), ``.tif`` (zlib), ``.nii``, ``.nii.gz``, ``.npy``, ``.h5`` or OME-Zarr.

    Replaces ``path`` in one step; a Zarr store, which is a folder, in two.

    Args:
        path: its suffix says the format; its folder is made if it is missing.
        mask: (*S), values 0..65535; read by rows, its type is kept.
        geometry: geometry of the image: the axes of its file are those of the mask's, and NIfTI keeps where they lie.

    Raises:
        DataError: if shape, values and suffix do not fit, or the file cannot be written.
    """
    stored = mask
    if isinstance(mask, np.ndarray):
        top = int(mask.max(initial=0))
        if mask.ndim not in (2, 3) or top > 65535 or int(mask.min(initial=0)) < 0:
            raise DataError(
                f"{path}: a mask has 2 or 3 dimensions and values 0..65535, got {mask.shape} and up to {top}."
            )
        stored = mask.astype(np.uint8 if top < 256 else np.uint16)
    _write_array(path, stored, geometry, f"a mask with {mask.ndim} dimensions is")


def write_labels(path: Path, labels: NDArray[np.integer[Any]], geometry: Geometry | None = None) -> None:
    """Write (*S) numbers of objects as uint16, or uint32 where they need it, in a format of ``write_mask``.

    Raises:
        DataError: if ``path`` has another suffix, a PNG would have more than 65,535 objects, or it cannot be written.
    """
    number = int(labels.max(initial=0))
    if number >= 2**16 and split_suffix(path.name)[1] == ".png" and labels.ndim == 2:
        raise DataError(f"{path}: PNG numbers 65,535 objects at most, and there are {number:,}: write {_VOLUMES}.")
    stored = labels.astype(np.uint16 if number < 2**16 else np.uint32)
    _write_array(path, stored, geometry, "numbers of objects are")


def write_probabilities(path: Path, probs: AnyArray, geometry: Geometry | None = None) -> None:
    """Write (*S) probabilities in a format of ``write_mask`` but PNG; TIFF is uncompressed, so that it can be mapped.

    Raises:
        DataError: if ``path`` has another suffix, or cannot be written.
    """
    _write_array(path, probs, geometry, "probabilities are", are_labels=False)


def lay_out_as_file(array: NDArray[np.generic], path: Path, geometry: Geometry | None) -> NDArray[np.generic]:
    """Return (*S) in the order in which it is written to ``path``: in PNG, TIFF and NIfTI that of the image's file."""
    return array if split_suffix(path.name)[1] in _ONE_FRAME else undo_orientation(array, geometry)


def _write_array(path: Path, array: AnyArray, geometry: Geometry | None, what: str, *, are_labels: bool = True) -> None:
    """Write labels, or probabilities, in the format of the suffix; ``what`` they are begins the error for others."""
    suffix, is_plane = split_suffix(path.name)[1], are_labels and array.ndim == 2
    if suffix == ".png" and is_plane:
        turned = np.ascontiguousarray(lay_out_as_file(array[:], path, geometry))
        _write(path, lambda file: file.write_bytes(cv2.imencode(".png", turned)[1].tobytes()))
    elif suffix in (".tif", ".tiff"):
        is_turned = geometry is not None and geometry.header is not None  # else the rows are those of the file
        stored = lay_out_as_file(array[:], path, geometry) if is_turned else array
        placed, compression = None if is_turned else geometry, "zlib" if are_labels else None
        _write(path, lambda file: write_tiff(file, stored, compression=compression, geometry=placed))
    elif suffix == ".npy":
        _write(path, lambda file: write_npy(file, array))
    elif suffix in (".h5", ".hdf5"):
        _write(path, lambda file: write_hdf5(file, array, MASK_KEYS[1] if are_labels else _IMAGE_KEYS[0]))
    elif suffix in (".zarr", ".ome.zarr"):
        _write(path, lambda folder: write_zarr(folder, array, geometry), atomic_folder)
    elif suffix in (".nii", ".nii.gz"):
        _write(path, lambda file: write_nifti(file, array, geometry, compressed=suffix == ".nii.gz"))
    else:
        raise DataError(f"{path}: {what} written as {'.png, ' * is_plane}{_VOLUMES}.")


def _write(
    path: Path,
    write: Callable[[Path], object],
    replacing: Callable[[Path], AbstractContextManager[Path]] = atomic_write,
) -> None:
    with name_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write(temporary)


def _open(location: str, default_keys: Sequence[str], reading: Reading) -> Stored:
    if synthetic.is_synthetic(location):
        return _hold_synthetic(location, synthetic.generate(*synthetic.parse_location(location))[0])
    if location.endswith("/") and not split_suffix(location)[1]:
        return _open_slices(location, partial(_open, default_keys=default_keys, reading=reading))
    path, key, kind = _resolve(location, default_keys)
    with name_errors(location):
        return kind.open(path, key, reading)


def _open_slices(location: str, open_one: Callable[[str], Stored]) -> Stored:
    files = {split_suffix(path.name)[0]: path for path in Path(location).glob("[!.]*") if is_image(path)}
    ordered = sort_slices(files)
    if not ordered:
        raise DataError(f"{location}: no such folder of numbered slices.")
    return stack_slices(location, [files[name] for name in ordered], open_one)


def _resolve(location: str, default_keys: Sequence[str]) -> tuple[Path, str, Format]:
    """Return path, key ("" if there is none) and format of a location, after a look at the first bytes."""
    name, key = split_location(location)
    path = Path(name)
    kind = _check_start(path)
    if kind.list_arrays is None:
        if key:
            raise DataError(f"{location}: a {kind.name} file holds one image. Name it without '::{key}'.")
        return path, "", kind
    key = key.strip("/")
    if key and kind.is_folder and (path / key).is_dir():  # an array of a Zarr store, or an OME image in it
        return path, key, kind
    return path, _choose_key(path, key, _list_arrays(path, kind), default_keys), kind


def _list_arrays(path: Path, kind: Format) -> Mapping[str, None]:
    """Return the names of the arrays of a file."""
    with name_errors(str(path)):
        return {} if kind.list_arrays is None else kind.list_arrays(path)


def _choose_key(path: Path, wanted: str, names: Mapping[str, None], default_keys: Sequence[str]) -> str:
    """Return the key wanted, else the first default there is, else the only array; "" for a lone array of Zarr."""
    if wanted:
        if wanted in names:
            return wanted
        held = f"It holds {name_examples(names, 8)}" if names else "It holds no array of numbers with two axes or more"
        raise DataError(f"{path} has no array '{wanted}'{did_you_mean(wanted, names)}. {held}.")
    found = [key for key in default_keys if key in names] or (list(names) if len(names) == 1 else [])
    if found:
        return found[0]
    if path.is_dir() and not names:
        return ""
    held = f"the arrays {name_examples(names, 8)}" if names else "no array of numbers with two axes or more"
    raise DataError(
        f"{path} holds {held}, and none named {' or '.join(default_keys)}. Name one in a manifest, as {path}::KEY."
    )


def _check_start(path: Path) -> Format:
    """Return the format; check that the file (Zarr: folder) is there, not empty, and of the kind of its suffix."""
    suffix = split_suffix(path.name)[1]
    if not suffix:
        advice = advise_conversion([path.name])
        raise DataError(f"{path}: unknown suffix '{path.suffix}'. Known are {', '.join(IMAGE_SUFFIXES)}.{advice}")
    kind = FORMATS[suffix]
    if kind.is_folder and path.exists():
        if not path.is_dir():
            raise DataError(f"{path}: a {kind.name} image is a folder, this is a file.")
        return kind
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        link = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "no such file"
        raise DataError(f"{path}: {link}.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}).") from error
    if not head:
        raise DataError(f"{path}: the file is empty (0 bytes). Copy or export it again, or remove it.")
    if not head.startswith(kind.magic):
        found = [f"looks like {other}: rename it" for other, own in FORMATS.items() if head.startswith(own.magic)]
        found += [hint for start, magic, hint in _OTHER_KINDS if head[start:].lower().startswith(magic)]
        hint = f"It {found[0]}" if found else "It is damaged: copy or export it again"
        raise DataError(f"{path}: this is not valid {kind.name}. {hint}, or remove it.")
    return kind


def _hold_synthetic(location: str, voxels: NDArray[np.uint8]) -> Stored:
    return from_array(location, voxels, AxisLayout(tuple(range(voxels.ndim))))


def _join_gaps(parts: Sequence[Stored]) -> Gaps | None:
    found = [part.gaps for part in parts if part.gaps is not None]
    stored = (part.dtype if part.gaps is None else part.gaps.dtype for part in parts)
    return Gaps(np.result_type(*stored), found[0].value) if found else None


def _read_channels(parts: Sequence[Stored], box: Box) -> NDArray[Any]:
    return np.concatenate([part.read(box) for part in parts])


def _fetch_finite(fetch: Fetch, location: str, box: Box) -> NDArray[Any]:
    """Return a box of a mask, if it holds neither NaN nor infinity: nobody can say which class that would be."""
    mask = fetch(box)
    if broken := mask.size - np.count_nonzero(np.isfinite(mask)):
        raise DataError(
            f"{location}: {broken} of {mask.size} mask values are NaN or infinite. Save 0 there if it is background, "
            "or an integer such as 255 if nobody has labeled it, and type --set data.ignore_value=255."
        )
    return mask


def _fetch_integers(fetch: Fetch, location: str, box: Box) -> NDArray[np.integer[Any]]:
    """Return a box of a mask with an integer dtype, if all its values are integers."""
    mask = fetch(box)
    whole = are_whole(mask)
    if not whole.all():
        raise DataError(
            f"{location}: mask values must be integers, found e.g. {mask[~whole].flat[0]:g}. If they are "
            "probabilities of foreground, type --set data.mask=probability."
        )
    return np.round(mask).astype(np.int32)


def are_whole(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values are integers that an int32 holds, or as near to one as traces of scaling are."""
    near = np.isclose(values, np.round(values), rtol=0, atol=ROUNDED)
    return np.asarray(near & (np.abs(values) < np.float64(2**31)))  # infinity is not below it
