"""DICOM series as NIfTI volumes (X, Y, Z) with the affine of the scanner; images without a position as TIFF."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.stored import import_optional, name_errors
from ssl_seg.data.formats.tiff import write_tiff
from ssl_seg.data.layouts.names import place_of
from ssl_seg.errors import DataError, counted, name_examples

KIND = "DICOM"
SUFFIXES = (".dcm", ".dicom", ".ima")
_TOLERANCE = 0.01
"""Share of the distance of slices, and of 1, that positions and directions may be off."""


@dataclass(frozen=True)
class _Frame:
    """A slice: where it lies, in mm to the left, back and head of the patient, and how its values are scaled."""

    path: Path
    number: int
    size: tuple[int, int]
    position: NDArray[np.float64] | None
    directions: NDArray[np.float64]
    spacing: NDArray[np.float64]
    thickness: float
    scale: tuple[float, float]


class _UnusableError(Exception):
    """Why a series is left out."""


def recognize(path: Path) -> str | None:
    """Return ``KIND`` for a DICOM file, by its suffix, or by its mark behind byte 128 where it has none or a number, as
    names that are UIDs do."""
    if path.suffix.lower() in SUFFIXES:
        return KIND
    if path.suffix.strip(".0123456789") or path.name == "DICOMDIR" or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return KIND if file.read(132)[128:] == b"DICM" else None
    except OSError:
        return None


def write_series(files: Sequence[Path], base: Path, out: Path) -> list[str]:
    """Write each series of the files below ``base`` to ``out/images``; return what to say.

    Raises:
        DataError: if a file is damaged, pydicom is missing, or no series can be converted.
    """
    pydicom = import_optional("pydicom", "dicom", str(files[0]))
    series: dict[str, list[tuple[Path, Any]]] = {}
    for path in files:
        with name_errors(str(path)):
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True)
            except pydicom.errors.InvalidDicomError:
                raise ValueError("it is not a DICOM file, or it is damaged") from None
            series.setdefault(str(header.SeriesInstanceUID), []).append((path, header))
    written, left_out = 0, []
    for name, members in _name_series(series.values(), base):
        try:
            written += _write_one(pydicom, members, out / "images" / name)
        except _UnusableError as error:
            left_out.append(f"{members[0][0].parent} series {members[0][1].get('SeriesNumber', '?')}: {error}")
    if not written:
        raise DataError(f"{base}: none of {len(series)} DICOM series can be converted: {name_examples(left_out)}.")
    return [
        f"{counted(written, 'image')} of {len(series)} DICOM series",
        *([f"{len(left_out)} series are left out: {name_examples(left_out)}"] * bool(left_out)),
    ]


def _name_series(
    series: Iterable[list[tuple[Path, Any]]], base: Path
) -> list[tuple[PurePosixPath, list[tuple[Path, Any]]]]:
    """Return a name for each series: its folder below what all have in common, its number where others lie there."""
    series = list(series)
    folders = [PurePosixPath(members[0][0].parent.relative_to(base).as_posix()) for members in series]
    common = os.path.commonpath([folder.parent for folder in folders])
    names: list[PurePosixPath] = []
    for folder, members in zip(folders, series, strict=True):
        name = folder.relative_to(common) if folder.name else PurePosixPath(base.resolve().name)
        name = PurePosixPath(place_of(name.as_posix()).bare)
        if folders.count(folder) > 1:
            name = name.with_name(f"{name.name}_{members[0][1].get('SeriesNumber', 0)}")
        if name in names:
            name = name.with_name(f"{name.name}_{len(names)}")
        names.append(name)
    return list(zip(names, series, strict=True))


def _write_one(pydicom: Any, members: Sequence[tuple[Path, Any]], place: Path) -> int:
    """Write a series as one volume, or each of its images that have no position; return the number of files."""
    header = members[0][1]
    if header.get("Modality") in ("SEG", "RTSTRUCT", "SR", "PR", "KO") or "Rows" not in header:
        raise _UnusableError(
            f"it is of the kind {header.get('Modality')}, not images (segmentations are not converted)"
        )
    is_gray = str(header.get("PhotometricInterpretation", "MONOCHROME2")).startswith("MONOCHROME")
    if header.get("SamplesPerPixel", 1) != 1 or not is_gray:
        raise _UnusableError("it is in color")
    frames = [frame for path, own in members for frame in _list_frames(path, own)]
    place.parent.mkdir(parents=True, exist_ok=True)
    if without := sum(frame.position is None for frame in frames):
        if without < len(frames):
            raise _UnusableError(f"{without} of its {len(frames)} slices have no position")
        if len(frames) > len(members):
            raise _UnusableError("its frames have no positions: a film, not a volume")
        images = {_strip_suffix(frame.path): frame for frame in frames}
        if len(images) < len(frames):
            names = counted(len(images), "name")
            raise _UnusableError(f"{len(frames)} images without a position have {names}: rename them")
        for own, frame in images.items():
            name = f"{place.name}_{own}" if len(frames) > 1 else place.name
            write_tiff(place.with_name(f"{name}.tif"), _read_values(pydicom, [frame])[0], compression="zlib")
        return len(frames)
    import nibabel

    ordered, affine = _arrange(frames)
    volume = np.stack(_read_values(pydicom, ordered)).transpose(2, 1, 0)
    image = nibabel.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nibabel.save(image, place.with_name(f"{place.name}.nii.gz"))
    return 1


def _strip_suffix(path: Path) -> str:
    """Return the name without a suffix of DICOM; that of a UID stays whole."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _list_frames(path: Path, header: Any) -> list[_Frame]:
    """Return the frames of a file; what it says of one frame stands before what it says of all."""
    own = header.get("PerFrameFunctionalGroupsSequence") or [{}] * int(header.get("NumberOfFrames") or 1)
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]

    def find(frame: Any, group: str, name: str, default: Any = None) -> NDArray[np.float64]:
        sources = [(source.get(f"{group}Sequence") or [{}])[0] for source in (frame, shared)]
        values = (source.get(name) for source in (*sources, header))
        value = next((value for value in values if value is not None and value != ""), default)
        if value is None:
            raise _UnusableError(f"it has positions and no {name}")
        return np.array(value, np.float64)

    frames = []
    with name_errors(str(path)):
        for number, frame in enumerate(own):
            position = find(frame, "PlanePosition", "ImagePositionPatient", ())
            unknown = None if position.size else 0.0  # without a position, nothing else of the kind is needed
            frames.append(
                _Frame(
                    path=path,
                    number=number,
                    size=(int(header.Rows), int(header.Columns)),
                    position=position if position.size else None,
                    directions=np.resize(find(frame, "PlaneOrientation", "ImageOrientationPatient", unknown), (2, 3)),
                    spacing=find(frame, "PixelMeasures", "PixelSpacing", unknown),
                    thickness=float(find(frame, "PixelMeasures", "SliceThickness", 1)) or 1.0,
                    scale=(
                        float(find(frame, "PixelValueTransformation", "RescaleSlope", 1)),
                        float(find(frame, "PixelValueTransformation", "RescaleIntercept", 0)),
                    ),
                )
            )
    return frames


def _arrange(frames: Sequence[_Frame]) -> tuple[list[_Frame], NDArray[np.float64]]:
    """Return the slices along their normal, and the affine from (column, row, slice) to RAS."""
    first = frames[0]
    for frame in frames:
        if frame.size != first.size or not np.allclose(frame.spacing, first.spacing, rtol=_TOLERANCE):
            raise _UnusableError("its slices differ in size")
        if not np.allclose(frame.directions, first.directions, atol=_TOLERANCE):
            raise _UnusableError("its slices differ in direction")
    normal = np.cross(*first.directions)
    ordered = sorted(frames, key=lambda frame: float(np.dot(np.asarray(frame.position), normal)))
    positions = np.array([frame.position for frame in ordered])
    step = normal * first.thickness
    if len(ordered) > 1:
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)
        steps = np.diff(positions, axis=0)
        distance = float(np.median(steps @ normal))
        if distance <= 0 or float((steps @ normal).min()) < _TOLERANCE * distance:
            raise _UnusableError("several slices lie in one place: times, echoes or phases of one scan")
        if np.abs(steps @ normal - distance).max() > _TOLERANCE * distance:
            raise _UnusableError(
                f"its slices are not evenly spaced ({float((steps @ normal).min()):.4g} .. "
                f"{float((steps @ normal).max()):.4g} mm): are slices missing?"
            )
        if np.linalg.norm(step - normal * (step @ normal)) > _TOLERANCE * distance:
            raise _UnusableError("its slices are shifted against each other (a tilted gantry)")
    affine = np.eye(4)
    affine[:3, 0] = first.directions[0] * first.spacing[1]
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _read_values(pydicom: Any, frames: Sequence[_Frame]) -> list[NDArray[Any]]:
    """Return the slices (row, column) in the values of the scanner, of one dtype: whole numbers where they are."""
    stored: dict[Path, NDArray[Any]] = {}
    for path in dict.fromkeys(frame.path for frame in frames):
        with name_errors(str(path)):
            data = pydicom.dcmread(path)
            pixels = data.pixel_array
            if data.get("PhotometricInterpretation") == "MONOCHROME1":  # the smallest value means white
                pixels = (2 ** int(data.BitsStored) - 1 if pixels.dtype.kind == "u" else -1) - pixels
            stored[path] = pixels.reshape(-1, *pixels.shape[-2:])
    whole = all(number.is_integer() for frame in frames for number in frame.scale)
    kind = np.int64 if whole else np.float64
    values = [stored[f.path][f.number].astype(kind) * kind(f.scale[0]) + kind(f.scale[1]) for f in frames]
    low, high = min(int(v.min()) for v in values), max(int(v.max()) for v in values)
    fitting = np.int16 if low >= -(2**15) and high < 2**15 else np.int32
    return [value.astype(fitting if whole else np.float32) for value in values]
