"""Where voxels lie in the world: one frame for all orientations, against nibabel; grids that do not match."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, inv_ornt_aff

from ssl_seg.data.volumes import (
    Geometry,
    open_image,
    open_mask,
    read_image,
    read_mask,
    write_mask,
    write_probabilities,
)

RNG = np.random.default_rng(5)
STACK = RNG.integers(0, 900, (6, 11, 9), dtype=np.int16)  # (z, y, x) along superior, anterior, right
WORLD = np.array([[0.5, 0, 0, 12], [0, 0.75, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
OBLIQUE = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, -0.2, 0.25) @ WORLD[:3, :3], WORLD[:3, 3])
ORIENTATIONS = [
    np.column_stack([axes, signs])
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def turn(array: np.ndarray, affine: np.ndarray, orientation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y, z[, c]) and its affine, stored along other axes at the same places in the world."""
    return apply_orientation(array, orientation), affine @ inv_ornt_aff(orientation, array.shape)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None, kind: type = nibabel.Nifti1Image) -> str:
    """Write an array in the order of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind(array, affine).to_filename(path)
    return str(path)


# --- reading --------------------------------------------------------------------------------------------------------


def test_there_are_48_orientations() -> None:
    assert len({o.tobytes() for o in ORIENTATIONS}) == 48


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", [WORLD, OBLIQUE], ids=["straight", "oblique"])
def test_all_orientations_read_as_the_same_arrays(tmp_path: Path, suffix: str, affine: np.ndarray) -> None:
    for orientation in ORIENTATIONS:
        array, turned = turn(STACK.T, affine, orientation)
        location = save(tmp_path / f"x{suffix}", array, turned)
        np.testing.assert_array_equal(read_image(location)[0], STACK)
        np.testing.assert_array_equal(read_mask(location), STACK)
        geometry = open_image(location).geometry
        assert geometry == open_image(location).geometry
        assert geometry is not None
        assert geometry.spacing == pytest.approx((2.5, 0.75, 0.5))
        canonical = nibabel.as_closest_canonical(nibabel.load(location))
        np.testing.assert_array_equal(np.asarray(canonical.dataobj).T, STACK)
        np.testing.assert_allclose(geometry.affine, canonical.affine, atol=1e-9)
        assert open_image(location).by_box == (suffix == ".nii")


@pytest.mark.parametrize("angles", [(1, 0, 0), (0, -1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)])
def test_axes_halfway_between_those_of_the_world_read_alike(tmp_path: Path, angles: tuple[int, ...]) -> None:
    rotation = nibabel.eulerangles.euler2mat(*(a * np.pi / 4 for a in angles))
    affine = nibabel.affines.from_matvec(rotation @ WORLD[:3, :3], (3, -20.3, 7))
    first: np.ndarray | None = None
    for orientation in ORIENTATIONS:
        image = read_image(save(tmp_path / "x.nii", *turn(STACK.T, affine, orientation)))
        first = image if first is None else first
        np.testing.assert_array_equal(image, first)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_box_of_a_flipped_file_equals_the_box_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    array, turned = turn(STACK.T, WORLD, data.draw(st.sampled_from(ORIENTATIONS)))
    location = save(tmp_path_factory.mktemp("box") / "x.nii", array, turned)
    bounds = [data.draw(st.tuples(st.integers(-n - 2, n + 2), st.integers(-n - 2, n + 2))) for n in STACK.shape]
    box = tuple(slice(*pair) for pair in bounds)
    np.testing.assert_array_equal(open_image(location).read(box)[0], STACK[box])


@pytest.mark.parametrize("channels", [(2,), (1, 2)])
def test_channels_of_a_file_follow_its_axes(tmp_path: Path, channels: tuple[int, ...]) -> None:
    pair = np.stack([STACK, STACK[::-1] + 1000])
    for orientation in ORIENTATIONS[5::11]:
        array, turned = turn(pair.transpose(3, 2, 1, 0), WORLD, orientation)
        location = save(tmp_path / "x.nii.gz", array.reshape(*array.shape[:3], *channels), turned)
        np.testing.assert_array_equal(read_image(location), pair)


@pytest.mark.parametrize("flat", [0, 1, 2], ids=["axial", "coronal", "sagittal"])
def test_one_slice_is_an_image_along_whichever_axis_it_lies(tmp_path: Path, flat: int) -> None:
    volume = np.take(STACK, [3], axis=flat)
    spacing = [s for axis, s in enumerate((2.5, 0.75, 0.5)) if axis != flat]
    for orientation in ORIENTATIONS:
        array, turned = turn(volume.T, OBLIQUE, orientation)
        location = save(tmp_path / "x.nii", array, turned)
        np.testing.assert_array_equal(read_image(location), volume.squeeze()[None])
        geometry = open_image(location).geometry
        assert geometry is not None
        assert geometry.spacing == pytest.approx(spacing)


def test_a_plane_without_a_third_axis_follows_its_affine(tmp_path: Path) -> None:
    plane = STACK[0]
    location = save(tmp_path / "x.nii", plane.T[::-1, ::-1], np.diag([-0.5, -0.75, 1, 1]))
    assert nibabel.load(location).shape == plane.T.shape
    np.testing.assert_array_equal(read_image(location)[0], plane)
    location = save(tmp_path / "y.nii", plane, np.array([[0, 0.5, 0, 0], [0.75, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    np.testing.assert_array_equal(read_image(location)[0], plane)


def set_forms(path: Path, **fields: Any) -> str:
    """Write ``STACK`` as it is, and then these fields of the header."""
    nibabel.Nifti1Image(STACK.T, np.eye(4)).to_filename(path)
    stored = path.read_bytes()
    header = nibabel.Nifti1Header(stored[:348])
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + stored[348:])
    return str(path)


LEFT = {"sform_code": 1, "srow_x": [-1, 0, 0, 8], "srow_y": [0, 1, 0, 0], "srow_z": [0, 0, 1, 0]}
TURNED = {"qform_code": 1, "quatern_b": 0, "quatern_c": 0, "quatern_d": 1}  # half a turn about z: x and y flipped


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (LEFT | TURNED, STACK[:, :, ::-1]),
        (TURNED | {"sform_code": 0}, STACK[:, ::-1, ::-1]),
        (TURNED | LEFT | {"srow_x": [0, 0, 0, 0]}, STACK[:, ::-1, ::-1]),
        (LEFT | {"srow_x": [np.nan, 0, 0, 8]}, STACK),
        (TURNED | {"sform_code": 0, "pixdim": [1, 1, 0, 1, 1, 1, 1, 1]}, STACK),
        (TURNED | {"sform_code": 0, "quatern_b": 2}, STACK),
        (TURNED | LEFT | {"quatern_b": 2}, STACK[:, :, ::-1]),
        ({"sform_code": 0, "qform_code": 0}, STACK),
        (LEFT | {"sform_code": 0}, STACK),
    ],
    ids=[
        "sform first",
        "qform",
        "broken sform",
        "NaN",
        "unknown distance",
        "long quaternion",
        "long quaternion beside sform",
        "neither",
        "sform without code",
    ],
)
def test_which_form_says_where_the_axes_point(tmp_path: Path, fields: dict[str, Any], expected: np.ndarray) -> None:
    location = set_forms(tmp_path / "x.nii", **fields)
    np.testing.assert_array_equal(read_image(location)[0], expected)


# --- writing --------------------------------------------------------------------------------------------------------


def make_file(path: Path, kind: type, orientation: np.ndarray, array: np.ndarray = STACK.T) -> str:
    """Write an image whose sform and qform differ, both with a code, and with units."""
    turned, affine = turn(array, OBLIQUE, orientation)
    image = kind(turned, None)
    image.header.set_sform(affine, 4)
    image.header.set_qform(affine + np.array([[0, 0, 0, 5.0]] * 3 + [[0] * 4]), 3)
    image.header.set_xyzt_units("micron", "msec")
    image.to_filename(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::5], ids=lambda o: "".join(map(str, o.ravel())))
def test_results_lie_where_their_image_lies(tmp_path: Path, suffix: str, kind: type, orientation: np.ndarray) -> None:
    location = make_file(tmp_path / "image.nii.gz", kind, orientation)
    image, geometry = nibabel.load(location), open_image(location).geometry
    mask, probs = (STACK > 450).astype(np.uint8), RNG.random(STACK.shape, np.float32)
    path = tmp_path / f"result{suffix}"
    for array, write in ((mask, write_mask), (probs, write_probabilities)):
        write(path, array, geometry)
        written = nibabel.load(path)
        assert type(written) is type(image)
        assert written.get_data_dtype() == array.dtype
        assert written.shape == image.shape
        for name in ("sform", "qform"):
            ours, theirs = (getattr(x.header, f"get_{name}")(coded=True) for x in (written, image))
            assert ours[1] == theirs[1]
            np.testing.assert_array_equal(ours[0], theirs[0])
        assert written.header.get_xyzt_units() == image.header.get_xyzt_units()
        np.testing.assert_array_equal(written.header["pixdim"][:4], image.header["pixdim"][:4])
        np.testing.assert_array_equal(read_image(str(path))[0], array)
        assert open_image(str(path)).geometry == geometry
    write_mask(path, mask, geometry)
    expected = np.asarray(image.dataobj) > 450  # voxel by voxel in the file, without any of our reading
    np.testing.assert_array_equal(np.asarray(nibabel.load(path).dataobj) > 0, expected)


@pytest.mark.parametrize("flat", [0, 1, 2, None])
def test_the_result_of_an_image_has_the_axes_of_its_file(tmp_path: Path, flat: int | None) -> None:
    for orientation in ORIENTATIONS[::7]:
        path = tmp_path / "image.nii"
        if flat is None:
            location = save(path, STACK[0].T[::-1], np.diag([-0.5, 0.75, 1, 1]))
        else:
            location = make_file(path, nibabel.Nifti1Image, orientation, np.take(STACK, [3], axis=flat).T)
        image = read_image(location)[0]
        assert image.ndim == 2
        write_mask(tmp_path / "mask.nii.gz", image, open_image(location).geometry)
        written = nibabel.load(tmp_path / "mask.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(nibabel.load(path).dataobj))
        np.testing.assert_array_equal(written.affine, nibabel.load(path).affine)
        write_mask(tmp_path / "mask.png", image, open_image(location).geometry)
        stored = np.asarray(nibabel.load(path).dataobj)
        np.testing.assert_array_equal(read_mask(str(tmp_path / "mask.png")), stored.squeeze().T)


def test_channels_are_no_axis_of_the_result(tmp_path: Path) -> None:
    pair = np.stack([STACK, STACK]).transpose(3, 2, 1, 0)
    location = save(tmp_path / "image.nii.gz", *turn(pair, WORLD, ORIENTATIONS[13]))
    write_mask(tmp_path / "mask.nii.gz", STACK, open_image(location).geometry)
    written = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(nibabel.load(location).dataobj)[..., 0])


def test_a_tiff_of_a_nifti_image_has_the_order_of_its_file(tmp_path: Path) -> None:
    array, affine = turn(STACK.T, WORLD, ORIENTATIONS[13])
    location = save(tmp_path / "image.nii.gz", array, affine)
    write_mask(tmp_path / "mask.tif", STACK, open_image(location).geometry)
    np.testing.assert_array_equal(read_mask(str(tmp_path / "mask.tif")), array.T)
    write_probabilities(tmp_path / "prob.tif", STACK.astype(np.float32), open_image(location).geometry)
    np.testing.assert_array_equal(read_image(str(tmp_path / "prob.tif"))[0], array.T)


def test_a_file_without_directions_gets_a_result_without(tmp_path: Path) -> None:
    location = set_forms(tmp_path / "x.nii", sform_code=0, qform_code=0, pixdim=[1, 0.5, 0.75, 2.5, 1, 1, 1, 1])
    geometry = open_image(location).geometry
    assert geometry == Geometry((2.5, 0.75, 0.5))
    write_mask(tmp_path / "mask.nii.gz", STACK, geometry)
    header = nibabel.load(tmp_path / "mask.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    assert open_image(str(tmp_path / "mask.nii.gz")).geometry == geometry
    np.testing.assert_array_equal(open_mask(str(tmp_path / "mask.nii.gz")).read()[0], STACK)


def test_equal_masks_are_equal_files(tmp_path: Path) -> None:
    location = save(tmp_path / "image.nii.gz", STACK.T, WORLD)
    write_mask(tmp_path / "x.nii.gz", STACK, open_image(location).geometry)
    assert (tmp_path / "x.nii.gz").read_bytes()[3:8] == bytes(5), "without name and time"
