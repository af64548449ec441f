"""NRRD and MetaImage: read as the NIfTI file of the same voxels at the same place, or refused with a reason."""

from __future__ import annotations

import base64
import bz2
import gzip
import pickle
import zlib
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ssl_seg.data.volumes import open_image, open_mask, write_mask
from ssl_seg.errors import DataError
from ssl_seg.results.mask_files import plan_jobs

RNG = np.random.default_rng(8)

# Written by SimpleITK 2.5.7: np.arange(24, dtype="i2").reshape(2, 3, 4) * 100 - 900, compressed; the affine is that of
# the NIfTI file that it wrote beside them.
ITK_MHA = b"""ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = True
CompressedDataSize = 59
TransformMatrix = -0.16317591116653479 -0.059391174613884663 -0.98480775301220813 -0.17612718641183034 \
0.983905467618579 -0.030153689607045786 0.97074859578658357 0.16853106291793438 -0.17101007166283427
Offset = 10 -20 30
CenterOfRotation = 0 0 0
AnatomicalOrientation = SAR
ElementSpacing = 0.5 0.75 3
DimSize = 4 3 2
ElementType = MET_SHORT
ElementDataFile = LOCAL
""" + base64.b64decode("eF4BMADP/3z84PxE/aj9DP5w/tT+OP+c/wAAZADIACwBkAH0AVgCvAIgA4QD6ANMBLAEFAV4BXxqFH0=")
ITK_NRRD = b"""NRRD0004
# Complete NRRD file format specification at:
# http://teem.sourceforge.net/nrrd/format.html
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 3 2
space directions: (-0.081587955583267396,-0.029695587306942332,-0.49240387650610407) \
(-0.13209538980887275,0.73792910071393425,-0.02261526720528434) \
(2.9122457873597507,0.5055931887538031,-0.51303021498850288)
kinds: domain domain domain
endian: little
encoding: gzip
space origin: (10,-20,30)

""" + base64.b64decode(
    "H4sIAAAAAAAAAwEwAM//fPzg/ET9qP0M/nD+1P44/5z/AABkAMgALAGQAfQBWAK8AiADhAPoA0wEsAQUBXgF5f27jjAAAAA="
)
ITK_AFFINE = [
    [0.081588, 0.132095, -2.912246, -10.0],
    [0.029696, -0.737929, -0.505593, 20.0],
    [-0.492404, -0.022615, -0.51303, 30.0],
    [0.0, 0.0, 0.0, 1.0],
]
ITK_VOXELS = (np.arange(24, dtype=np.int16).reshape(2, 3, 4) * 100 - 900).T

NRRD = b"NRRD0005\ntype: short\ndimension: 3\nsizes: 2 3 4\nencoding: raw\nendian: little\n\n"
MHA = b"ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
VOXELS = bytes(48)


def write_nrrd(path: Path, voxels: np.ndarray, affine: np.ndarray | None, encoding: str, space: str = "RAS") -> None:
    """Write (X, Y, Z), or (C, X, Y, Z), whose ``affine`` leads to RAS."""
    number, channels = voxels.ndim, voxels.ndim - 3
    lines = ["NRRD0005", f"type: {voxels.dtype.name.replace('float32', 'float')}", f"dimension: {number}"]
    lines += ["sizes: " + " ".join(map(str, voxels.shape)), f"encoding: {encoding}"]
    lines += ["endian: " + ("big" if voxels.dtype.byteorder == ">" else "little"), "a key:=its value"]
    if affine is not None:
        signs = {"R": 1, "A": 1, "S": 1, "L": -1, "P": -1}
        placed = np.diag([*(signs[letter] for letter in space), 1]) @ affine
        vectors = [f"({','.join(map(str, column))})" for column in placed[:3, :3].T]
        lines += [f"space: {space}", "space directions: " + " ".join(["none"] * channels + vectors)]
        lines += [f"space origin: ({','.join(map(str, placed[:3, 3]))})"]
    elif channels:
        lines += ["kinds: list space space space"]
    pack = {"raw": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}[encoding]
    path.write_bytes("\n".join([*lines, "", ""]).encode() + pack(voxels.tobytes(order="F")))


def write_mha(path: Path, voxels: np.ndarray, affine: np.ndarray, *, compressed: bool) -> None:
    """Write (X, Y, Z) or (C, X, Y, Z) with the direction of each axis as a row, in LPS."""
    placed = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(placed[:3, :3], axis=0)
    kinds = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT"}
    fields = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryDataByteOrderMSB": voxels.dtype.byteorder == ">",
        "CompressedData": compressed,
        "TransformMatrix": " ".join(map(str, (placed[:3, :3] / spacing).T.ravel())),
        "Offset": " ".join(map(str, placed[:3, 3])),
        "ElementSpacing": " ".join(map(str, spacing)),
        "DimSize": " ".join(map(str, voxels.shape[-3:])),
        **({"ElementNumberOfChannels": voxels.shape[0]} if voxels.ndim == 4 else {}),
        "ElementType": kinds[voxels.dtype.name],
        "ElementDataFile": "LOCAL",
    }
    data = voxels.tobytes(order="F")
    header = "".join(f"{name} = {value}\n" for name, value in fields.items())
    path.write_bytes(header.encode() + (zlib.compress(data) if compressed else data))


def check_same(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    """Check that a file is read as NIfTI (X, Y, Z[, C]) is."""
    expected_path = path.with_name("expected.nii")
    nibabel.Nifti1Image(voxels.astype(voxels.dtype.newbyteorder("=")), affine).to_filename(expected_path)
    found, expected = open_image(str(path)), open_image(str(expected_path))
    np.testing.assert_array_equal(found.read(), expected.read())
    assert found.geometry is not None
    assert expected.geometry is not None
    np.testing.assert_allclose(np.array(found.geometry.affine), np.array(expected.geometry.affine), atol=1e-5)
    np.testing.assert_allclose(found.geometry.spacing, expected.geometry.spacing, rtol=1e-5)
    box = tuple(slice(size // 3, size) for size in found.shape[1:])
    np.testing.assert_array_equal(found.read(box), expected.read(box))


@pytest.mark.parametrize(("name", "content"), [("a.mha", ITK_MHA), ("a.nrrd", ITK_NRRD)])
def test_files_of_itk_are_read_as_its_nifti(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    check_same(tmp_path / name, ITK_VOXELS, np.array(ITK_AFFINE))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
@pytest.mark.parametrize("space", ["RAS", "LPS", "LAS"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "<f4"])
def test_codecs_types_and_spaces(tmp_path: Path, encoding: str, space: str, dtype: str) -> None:
    voxels = RNG.integers(0, 200, (3, 4, 5)).astype(dtype)
    affine = np.array([[0, -0.5, 0.1, 12], [0.75, 0, 0, -3], [0.1, 0, 2.5, 7], [0, 0, 0, 1.0]])
    write_nrrd(tmp_path / "a.nrrd", voxels, affine, encoding, space)
    check_same(tmp_path / "a.nrrd", voxels, affine)
    write_mha(tmp_path / "b.mha", voxels, affine, compressed=encoding != "raw")
    check_same(tmp_path / "b.mha", voxels, affine)
    assert open_image(str(tmp_path / "a.nrrd")).by_box == (encoding == "raw")


@pytest.mark.parametrize("channels", [1, 2])
def test_all_orientations(tmp_path: Path, channels: int) -> None:
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) * signs * (0.5, 1, 2))[list(order)]
        voxels = RNG.integers(0, 900, (channels, 3, 4, 5), dtype=np.int16)
        as_nifti = np.moveaxis(voxels, 0, -1)
        write_nrrd(tmp_path / "a.nrrd", voxels, affine, "raw", "LPS")
        check_same(tmp_path / "a.nrrd", as_nifti, affine)
        write_mha(tmp_path / "b.mha", voxels, affine, compressed=True)
        check_same(tmp_path / "b.mha", as_nifti, affine)


def test_without_directions_the_axes_are_those_of_the_file(tmp_path: Path) -> None:
    voxels = RNG.integers(0, 900, (2, 3, 4, 5), dtype=np.int16)
    write_nrrd(tmp_path / "channels.nrrd", voxels, None, "gzip")
    np.testing.assert_array_equal(open_image(str(tmp_path / "channels.nrrd")).read(), voxels.transpose(0, 3, 2, 1))
    plane = RNG.integers(0, 200, (4, 6), dtype=np.uint8)
    header = b"NRRD0005\r\ntype: uint8\r\ndimension: 2\r\nsizes: 6 4\r\nencoding: raw\r\nspacings: 0.5 2\r\n\r\n"
    (tmp_path / "plane.nrrd").write_bytes(header + plane.tobytes())
    header = b"ObjectType = Image\nNDims = 2\nDimSize = 6 4\nElementSpacing = 0.5 2\nElementType = MET_UCHAR\n"
    (tmp_path / "plane.mha").write_bytes(header + b"ElementDataFile = LOCAL\n" + plane.tobytes())
    for name in ("plane.nrrd", "plane.mha"):
        stored = open_image(str(tmp_path / name))
        np.testing.assert_array_equal(stored.read(), plane[None])
        assert stored.geometry is not None
        assert stored.geometry.spacing == (2.0, 0.5)
        assert stored.geometry.affine is None


def test_colors_are_channels(tmp_path: Path) -> None:
    color = RNG.integers(0, 200, (4, 6, 3), dtype=np.uint8)
    header = b"NRRD0005\ntype: uchar\ndimension: 3\nsizes: 3 6 4\nencoding: raw\nkinds: RGB-color domain domain\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + color.tobytes())
    np.testing.assert_array_equal(open_image(str(tmp_path / "a.nrrd")).read(), np.moveaxis(color, -1, 0))


def test_results_lie_on_the_grid_of_the_image(tmp_path: Path) -> None:
    for name, content in (("a.mha", ITK_MHA), ("b.nrrd", ITK_NRRD)):
        (tmp_path / name).write_bytes(content)
    jobs = plan_jobs(tmp_path, tmp_path / "masks", 3, "auto")
    assert [job.mask.name for job in jobs] == ["a.nii.gz", "b.nii.gz"]
    image = open_image(str(tmp_path / "a.mha"))
    mask = (image.read()[0] > 0).astype(np.uint8)
    write_mask(jobs[0].mask, mask, image.geometry)
    written = nibabel.load(jobs[0].mask)
    np.testing.assert_array_equal(np.asarray(written.dataobj), ITK_VOXELS > 0)
    np.testing.assert_allclose(written.affine, ITK_AFFINE, atol=1e-5)
    np.testing.assert_array_equal(open_mask(str(jobs[0].mask)).read()[0], mask)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.nrrd", NRRD + VOXELS[:-1], f"holds {len(NRRD) + 47} bytes and its header claims {len(NRRD) + 48}"),
        ("a.nrrd", NRRD.replace(b"raw", b"gzip") + gzip.compress(VOXELS)[:-1], "cut off"),
        ("a.nrrd", NRRD.replace(b"raw", b"gzip") + gzip.compress(VOXELS[1:]), "47 bytes, and its header claims 48"),
        (
            "a.nrrd",
            NRRD.replace(b"raw", b"gzip") + gzip.compress(VOXELS + b"x"),
            "more bytes, and its header claims 48",
        ),
        ("a.nrrd", NRRD.replace(b"raw", b"gzip") + gzip.compress(VOXELS)[:-5] + bytes(5), "incorrect data check"),
        ("a.nrrd", NRRD.replace(b"2 3 4", b"90000 90000 90000") + VOXELS, "its header claims"),
        ("a.nrrd", NRRD.replace(b"raw", b"gz").replace(b"2 3", b"9999999 9999") + VOXELS, "stored bytes can hold"),
        ("a.nrrd", NRRD.replace(b"raw", b"ascii") + b"1 2", "encoding is ascii"),
        ("a.nrrd", NRRD.replace(b"short", b"block"), "of the type 'block'"),
        ("a.nrrd", NRRD.replace(b"little", b"small") + VOXELS, "'endian: small', where little or big"),
        ("a.nrrd", NRRD.replace(b"2 3 4", b"2 three 4"), "'sizes: 2 three 4', where numbers"),
        ("a.nrrd", NRRD.replace(b"2 3 4", b"2 3 2 2") + VOXELS, "4 axes are not those.*does not say"),
        ("a.nrrd", NRRD.replace(b"endian", b"data file: b.raw\nendian"), r"elsewhere \(data file: b.raw\)"),
        ("a.nrrd", NRRD[:-1], "no end"),
        ("a.mha", MHA.replace(b"LOCAL", b"b.raw"), r"elsewhere \(b.raw\)"),
        ("a.mha", MHA.replace(b"SHORT", b"LONG") + VOXELS, "of the type 'MET_LONG'"),
        ("a.mha", MHA.replace(b"2 3 4", b"2 3 2 2") + VOXELS, r"\(2, 3, 2, 2\) are neither.*files of their own"),
        ("a.mha", MHA.replace(b"2 3 4", b"2 0 4") + VOXELS, "neither"),
        (
            "a.mha",
            MHA.replace(b"Element", b"CompressedData = True\nElement", 1) + zlib.compress(VOXELS)[:-4],
            "cut off",
        ),
        ("a.mha", b"BinaryData = False\n" + MHA, "not valid MetaImage"),
        ("a.mha", MHA.replace(b"NDims", b"BinaryData = False\nNDims") + b"1 2", "stored as text"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        open_image(str(tmp_path / name)).read()
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("length", [2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
@pytest.mark.parametrize(("name", "header"), [("a.nrrd", NRRD), ("a.mha", MHA)])
def test_a_header_ends_within_a_mebibyte(tmp_path: Path, name: str, header: bytes, length: int) -> None:
    first, _, rest = header.partition(b"\n")
    comment = b"#" if name == "a.nrrd" else b"Comment = "
    text = b"\n".join([first, comment + b"x" * (length - len(header) - len(comment) - 1), rest])
    assert len(text) == length
    voxels = np.arange(24, dtype="<i2")
    (tmp_path / name).write_bytes(text + voxels.tobytes())
    if length <= 2**20:
        found = open_image(str(tmp_path / name)).read()
        np.testing.assert_array_equal(found, voxels.reshape(1, 4, 3, 2))
        return
    with pytest.raises(DataError, match="its header is longer than 1 MiB"):
        open_image(str(tmp_path / name))


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_processes_of_a_loader_share_an_opened_file(tmp_path: Path, encoding: str) -> None:
    voxels = RNG.integers(0, 900, (2, 3, 4, 5), dtype=np.int16)
    write_nrrd(tmp_path / "a.nrrd", voxels, None, encoding)
    shared = pickle.loads(pickle.dumps(open_image(str(tmp_path / "a.nrrd"))))
    np.testing.assert_array_equal(shared.read(), voxels.transpose(0, 3, 2, 1))


def test_the_intact_files_of_these_tests_are_read(tmp_path: Path) -> None:
    for name, content in (("a.nrrd", NRRD), ("b.mha", MHA)):
        (tmp_path / name).write_bytes(content + VOXELS)
        assert open_image(str(tmp_path / name)).read().shape == (1, 4, 3, 2)
