"""DICOM series become volumes in which every voxel lies where the scanner says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from ssl_seg.cli import app
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.imports import import_labels
from ssl_seg.data.layouts import find_listing
from ssl_seg.errors import DataError

pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")

SERIES = "1.2.3.4"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, -0.6)


def write_slice(path: Path, pixels: np.ndarray, position: Any = (0, 0, 0), **tags: Any) -> Path:
    """Write a file of one frame, or of several where ``pixels`` has three axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.Modality, data.SeriesInstanceUID, data.SeriesNumber = "CT", SERIES, 3
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelSpacing, data.ImageOrientationPatient = [2.0, 0.5], list(AXIAL)
    if position is not None:
        data.ImagePositionPatient = list(map(float, position))
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def write_volume(folder: Path, count: int = 5, step: float = 3.0, orientation: Any = AXIAL, **tags: Any) -> np.ndarray:
    """Write slices in no order of their names; return the values (slice along the normal, row, column)."""
    values = np.random.default_rng(0).integers(-500, 500, (count, 4, 6)).astype(np.int16)
    normal = np.cross(orientation[:3], orientation[3:])
    for n, name in enumerate(np.random.default_rng(1).permutation(count)):
        position = np.array([10.0, -20.0, 30.0]) + n * step * normal
        own = {"ImageOrientationPatient": list(orientation), "SliceThickness": step} | tags
        write_slice(folder / f"IM{name}.dcm", values[n], position, **own)
    return values


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, OBLIQUE])
def test_a_voxel_lies_where_the_scanner_says(tmp_path: Path, orientation: Any) -> None:
    values = write_volume(tmp_path / "scan", orientation=orientation, RescaleSlope=2, RescaleIntercept=-1000)
    import_labels(tmp_path / "scan", tmp_path / "out")
    image = nibabel.load(tmp_path / "out" / "images" / "scan.nii.gz")
    stored = np.asarray(image.dataobj)
    assert stored.dtype == np.int16
    np.testing.assert_array_equal(stored, values.transpose(2, 1, 0) * 2 - 1000)
    along, down = np.array(orientation[:3]), np.array(orientation[3:])
    for column, row, n in ((0, 0, 0), (5, 0, 0), (0, 3, 0), (0, 0, 4), (2, 1, 3)):
        lps = np.array([10, -20, 30]) + column * 0.5 * along + row * 2.0 * down + n * 3.0 * np.cross(along, down)
        np.testing.assert_allclose((image.affine @ [column, row, n, 1])[:3], lps * [-1, -1, 1], atol=1e-5)
    assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)


def test_fractions_of_the_scale_are_kept(tmp_path: Path) -> None:
    values = write_volume(tmp_path / "scan", RescaleSlope="0.5", RescaleIntercept="0.25")
    import_labels(tmp_path / "scan", tmp_path / "out")
    stored = np.asarray(nibabel.load(tmp_path / "out" / "images" / "scan.nii.gz").dataobj)
    np.testing.assert_array_equal(stored, values.transpose(2, 1, 0).astype(np.float32) * 0.5 + 0.25)


def test_frames_of_one_file_are_slices(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 999, (3, 4, 6)).astype(np.uint16)

    def group(**sequences: dict[str, Any]) -> Any:
        outer = pydicom.Dataset()
        for name, tags in sequences.items():
            inner = pydicom.Dataset()
            for tag, value in tags.items():
                setattr(inner, tag, value)
            setattr(outer, name, [inner])
        return outer

    frames = [group(PlanePositionSequence={"ImagePositionPatient": [0.0, 0.0, z]}) for z in (8.0, 0.0, 4.0)]
    shared = group(
        PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)},
        PixelMeasuresSequence={"PixelSpacing": [0.7, 0.7], "SliceThickness": 4.0},
        PixelValueTransformationSequence={"RescaleSlope": "1", "RescaleIntercept": "-5"},
    )
    tags = {"NumberOfFrames": 3, "PerFrameFunctionalGroupsSequence": frames, "SharedFunctionalGroupsSequence": [shared]}
    tags |= {"PixelSpacing": None, "ImageOrientationPatient": None}
    write_slice(tmp_path / "scan" / "all.dcm", values, None, **tags)
    import_labels(tmp_path / "scan", tmp_path / "out")
    image = nibabel.load(tmp_path / "out" / "images" / "scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), values[[1, 2, 0]].transpose(2, 1, 0).astype(int) - 5)
    np.testing.assert_allclose(image.header.get_zooms(), (0.7, 0.7, 4.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("gap", r"not evenly spaced \(3 .. 6 mm\): are slices missing"),
        ("twice", "several slices lie in one place"),
        ("tilt", "shifted against each other"),
        ("turn", "differ in direction"),
        ("size", "differ in size"),
        ("color", "in color"),
        ("palette", "in color"),
        ("seg", "of the kind SEG, not images"),
        ("film", "no positions: a film"),
        ("lost", "1 of its 5 slices have no position"),
        ("PixelSpacing", "it has positions and no PixelSpacing"),
        ("ImageOrientationPatient", "it has positions and no ImageOrientationPatient"),
    ],
)
def test_what_is_no_volume_is_left_out_with_its_reason(tmp_path: Path, change: str, reason: str) -> None:
    pixels = np.zeros((4, 6), np.uint16)
    for n in range(5):
        tags: dict[str, Any] = {}
        z = n * 3.0 + 3.0 * (change == "gap" and n > 2) - 3.0 * (change == "twice" and n == 2)
        position = (0.0, n * 0.5 if change == "tilt" else 0.0, z)
        if change == "turn" and n == 2:
            tags["ImageOrientationPatient"] = list(CORONAL)
        if change == "seg":
            tags["Modality"] = "SEG"
        if change == "color":
            tags |= {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
        if change == "palette":
            tags["PhotometricInterpretation"] = "PALETTE COLOR"
        if change == "film":
            tags["NumberOfFrames"] = 3
        if change[0].isupper():
            tags[change] = None
        own = np.zeros((3, 4, 6), np.uint16) if change in ("color", "film") else pixels
        own = np.zeros((5, 6), np.uint16) if change == "size" and n == 1 else own
        write_slice(
            tmp_path / "bad" / f"{n}.dcm",
            own,
            None if change == "film" or (change == "lost" and n == 3) else position,
            **tags,
        )
    with pytest.raises(DataError, match=f"none of 1 DICOM series can be converted: .*{reason}"):
        import_labels(tmp_path / "bad", tmp_path / "alone")
    write_volume(tmp_path / "both" / "good", SeriesInstanceUID="1.2.9")
    (tmp_path / "bad").rename(tmp_path / "both" / "bad")
    notes = "\n".join(import_labels(tmp_path / "both", tmp_path / "out"))
    assert "1 series are left out" in notes
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["good.nii.gz"]


def test_series_in_one_folder_become_volumes_of_their_own(tmp_path: Path) -> None:
    write_volume(tmp_path / "in" / "p1")
    for path in (tmp_path / "in" / "p1").iterdir():
        path.rename(path.with_suffix(""))  # files without a suffix are known by their mark
    write_volume(tmp_path / "in" / "p2")
    for path in sorted((tmp_path / "in" / "p2").iterdir()):
        path.rename(path.with_name(f"b{path.name}"))
        data = pydicom.dcmread(path.with_name(f"b{path.name}"))
        data.SeriesInstanceUID = "1.2.3.5"
        data.save_as(path.with_name(f"b{path.name}"))
    write_volume(tmp_path / "in" / "p2", count=3, SeriesInstanceUID="1.2.3.6", SeriesNumber=7)
    import_labels(tmp_path / "in", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert [case.id for case in find_listing(tmp_path / "out").cases] == ["p1", "p2_3", "p2_7"]
    assert names == ["p1.nii.gz", "p2_3.nii.gz", "p2_7.nii.gz"]


def test_series_of_patients_with_folders_of_images_keep_the_names_of_the_patients(tmp_path: Path) -> None:
    for n in range(2):
        write_volume(tmp_path / "in" / f"p{n}" / "images" / "ct", SeriesInstanceUID=f"1.2.{n}")
    import_labels(tmp_path / "in", tmp_path / "out")
    assert [case.id for case in find_listing(tmp_path / "out").cases] == ["p0/ct", "p1/ct"]


def test_one_slice_and_images_without_a_place(tmp_path: Path) -> None:
    write_volume(tmp_path / "in" / "one", count=1)
    pixels = np.arange(24, dtype=np.uint16).reshape(4, 6)
    tags = {"SeriesInstanceUID": "1.2.8", "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    write_slice(tmp_path / "in" / "xray" / "a.dcm", pixels, None, Modality="DX", **tags)
    import_labels(tmp_path / "in", tmp_path / "out")
    assert nibabel.load(tmp_path / "out" / "images" / "one.nii.gz").header.get_zooms() == (0.5, 2.0, 3.0)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "images" / "xray.tif"), 4095 - pixels.astype(int))


@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_values_of_which_the_smallest_is_white_are_inverted(tmp_path: Path, dtype: type) -> None:
    pixels = np.arange(24, dtype=dtype).reshape(4, 6) - (12 if dtype == np.int16 else 0)
    write_slice(tmp_path / "in" / "a.dcm", pixels, None, PhotometricInterpretation="MONOCHROME1")
    import_labels(tmp_path / "in", tmp_path / "out")
    expected = (65535 if dtype == np.uint16 else -1) - pixels.astype(int)
    np.testing.assert_array_equal(tifffile.imread(next((tmp_path / "out" / "images").iterdir())), expected)


def test_files_that_are_named_by_a_uid_are_slices_and_images(tmp_path: Path) -> None:
    values = write_volume(tmp_path / "scan", count=4)
    for n, path in enumerate(sorted((tmp_path / "scan").iterdir())):
        path.rename(path.with_name(f"CT.1.2.{n}" if n % 2 else f"IM{n}"))
    (tmp_path / "scan" / "notes.1").write_text("no DICOM")
    import_labels(tmp_path / "scan", tmp_path / "out")
    assert nibabel.load(tmp_path / "out" / "images" / "scan.nii.gz").shape == values.T.shape
    plane = np.full((4, 6), 7, np.int16)
    for name in ("1.2.8", "1.2.9"):
        write_slice(tmp_path / "plain" / name, plane, None)
    import_labels(tmp_path / "plain", tmp_path / "planes")
    assert len(list((tmp_path / "planes" / "images").iterdir())) == 2
    write_slice(tmp_path / "plain" / "again" / "1.2.9", plane, None)
    with pytest.raises(DataError, match=r"3 images without a position have 2 names: rename them"):
        import_labels(tmp_path / "plain", tmp_path / "third")


def test_masks_beside_the_series_come_along(tmp_path: Path) -> None:
    for n in range(2):
        write_volume(tmp_path / "in" / "images" / f"scan{n}", SeriesInstanceUID=f"1.2.{n}")
    import_labels(tmp_path / "in", tmp_path / "first")
    for n in range(2):
        affine = nibabel.load(tmp_path / "first" / "images" / f"scan{n}.nii.gz").affine
        mask = np.zeros((6, 4, 5), np.uint8)
        mask[2:4, 1:3, 1:3] = 1
        (tmp_path / "in" / "masks").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "in" / "masks" / f"scan{n}.nii.gz")
    done = CliRunner().invoke(app.app, ["data", "import", str(tmp_path / "in"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "2 images of 2 DICOM series\n2 mask files taken along" in done.output
    assert len(open_catalog(str(tmp_path / "out")).labeled) == 2


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_volume(tmp_path / "scan")
    path = tmp_path / "scan" / "IM2.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"IM2\.dcm: cannot be read"):
        import_labels(tmp_path / "scan", tmp_path / "out")
    path.write_bytes(b"no DICOM file" * 30)
    with pytest.raises(DataError, match=r"IM2\.dcm: cannot be read: it is not a DICOM file"):
        import_labels(tmp_path / "scan", tmp_path / "out")
    path.write_bytes(bytes(128) + b"DICM" + bytes(400))
    with pytest.raises(DataError, match=r"IM2\.dcm: cannot be read"):
        import_labels(tmp_path / "scan", tmp_path / "out")
    assert not (tmp_path / "out").exists()
