"""NPY, NPZ, NIfTI, HDF5, Zarr and TIFF by box, against the libraries that write them and against plain numpy."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from forking import HOURS
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_seg.data.formats import file_checks
from ssl_seg.data.formats import stored as stored_module
from ssl_seg.data.reading import Reading
from ssl_seg.data.volumes import (
    IMAGE_SUFFIXES,
    Geometry,
    is_image,
    list_arrays,
    open_image,
    open_mask,
    read_image,
    read_mask,
    split_suffix,
    write_mask,
)
from ssl_seg.errors import DataError

RNG = np.random.default_rng(3)
PLANE = RNG.integers(0, 900, (13, 17), dtype=np.int16)
STACK = RNG.integers(0, 900, (6, 11, 9), dtype=np.int16)
PAIR = RNG.integers(0, 900, (2, 6, 11, 9), dtype=np.int16)
COLOR = RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
AFFINE = np.array([[0.0, -0.5, 0, 12], [0.75, 0, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1]])

BY_BOX = {".npy", ".nii", ".tif", ".h5", ".zarr"}


def save(path: Path, array: np.ndarray, key: str = "image") -> str:
    """Write an array (C, *S) or (*S) by its suffix, with the library of the format."""
    suffix = split_suffix(path.name)[1]
    if suffix == ".npy":
        np.save(path, array)
    elif suffix == ".npz":
        np.savez_compressed(path, **{key: array})
    elif suffix in (".nii", ".nii.gz"):
        order = (3, 2, 1, 0) if array.ndim == 4 else tuple(range(array.ndim))[::-1]
        moved = np.moveaxis(array.transpose(order), -1, 3) if array.ndim == 4 else array.transpose(order)
        nibabel.Nifti1Image(moved, np.eye(4)).to_filename(path)
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file[key] = array
    elif suffix == ".zarr":
        zarr.open_group(str(path), mode="a").create_array(key, data=array, chunks=(1, 1, 2, 4, 4)[-array.ndim :])
    else:
        axes = {"axes": "CZYX"[-array.ndim :]}
        tifffile.imwrite(path, array, photometric="minisblack", metadata=axes, ome=array.ndim == 4)
    return str(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``STACK`` in every format, by suffix."""
    folder = tmp_path_factory.mktemp("stack")
    return {s: save(folder / f"x{s}", STACK) for s in (".npy", ".npz", ".nii", ".nii.gz", ".h5", ".zarr", ".tif")}


SUFFIXES = [".npy", ".npz", ".nii", ".nii.gz", ".h5", ".zarr", ".tif"]


# --- every format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "array",
    [PLANE, STACK, PAIR, STACK.astype(np.float32), STACK.astype(np.uint8), STACK.astype(">i4")],
    ids=["plane", "stack", "channels", "float", "bytes", "big endian"],
)
def test_values_shape_and_dtype_are_kept(tmp_path: Path, suffix: str, array: np.ndarray) -> None:
    location = save(tmp_path / f"x{suffix}", array)
    expected = array if array.ndim == 4 else array[None]
    stored = open_image(location)
    image = read_image(location)
    assert stored.shape == image.shape == expected.shape
    assert stored.dtype == image.dtype == array.dtype.newbyteorder("=")
    assert stored.by_box == (suffix in BY_BOX)
    assert image.flags.c_contiguous
    assert image.flags.writeable
    np.testing.assert_array_equal(image, expected)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES))
def test_a_box_equals_the_same_box_of_the_whole(saved: dict[str, str], data: st.DataObject, suffix: str) -> None:
    bounds = [sorted(data.draw(st.lists(st.integers(-2, n + 2), min_size=2, max_size=2))) for n in STACK.shape]
    box = tuple(slice(max(0, a), b) if b > max(0, a) else slice(None, b or None) for a, b in bounds)
    np.testing.assert_array_equal(open_image(saved[suffix]).read(box)[0], STACK[box])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_depth_of_one_is_an_image(tmp_path: Path, suffix: str) -> None:
    assert read_image(save(tmp_path / f"x{suffix}", PLANE[None])).shape == (1, *PLANE.shape)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_opened_image_can_be_pickled_and_holds_no_file(saved: dict[str, str], suffix: str) -> None:
    open_image(saved[suffix]).read()  # zarr starts its thread once
    before = len(list(Path("/proc/self/fd").iterdir()))
    stored = [pickle.loads(pickle.dumps(open_image(saved[suffix]))) for _ in range(3)]
    np.testing.assert_array_equal(stored[0].read()[0], STACK)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    if suffix in BY_BOX:
        assert len(pickle.dumps(stored[0])) < 1.5 * STACK.nbytes  # with the voxels it would be more than twice


def test_a_forked_process_can_read_what_was_opened_before(saved: dict[str, str]) -> None:
    opened = [open_image(saved[suffix]) for suffix in SUFFIXES]
    for stored in opened:
        stored.read()

    def compare() -> None:
        os._exit(0 if all((stored.read()[0] == STACK).all() for stored in opened) else 1)

    child = multiprocessing.get_context("fork").Process(target=compare)
    child.start()
    child.join(HOURS)
    assert child.exitcode == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_masks_are_integers_in_every_format(tmp_path: Path, suffix: str) -> None:
    for array in (STACK.astype(np.uint8), (STACK % 3).astype(np.float32)):
        location = save(tmp_path / f"{array.dtype}{suffix}", array, "mask")
        mask = open_mask(location)
        assert mask.dtype.kind in "iu"
        assert mask.read((slice(2, 4), slice(None), slice(None))).dtype == mask.dtype
        np.testing.assert_array_equal(read_mask(location), array)
    fractions = save(tmp_path / f"bad{suffix}", STACK / np.float32(7))
    with pytest.raises(DataError, match="mask values must be integers"):
        read_mask(fractions)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_infinity_is_refused_where_it_is_read(tmp_path: Path, suffix: str) -> None:
    values = STACK.astype(np.float32)
    values[4, 1, 1] = np.inf
    location = save(tmp_path / f"x{suffix}", values)
    stored = open_image(location)
    np.testing.assert_array_equal(stored.read((slice(0, 4), slice(None), slice(None)))[0], values[:4])
    with pytest.raises(DataError, match=rf"{suffix}.* 1 of 99 values are NaN"):
        stored.read((slice(4, 5), slice(None), slice(None)))
    with pytest.raises(DataError, match="1 of 594 values are NaN"):
        read_image(location)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".zarr"])
def test_color_arrays(tmp_path: Path, suffix: str) -> None:
    alpha = np.concatenate([COLOR, COLOR[..., :1]], -1)
    equal = np.repeat(COLOR[..., :1], 3, -1)
    np.testing.assert_array_equal(read_image(save(tmp_path / f"rgb{suffix}", COLOR)), np.moveaxis(COLOR, -1, 0))
    np.testing.assert_array_equal(read_image(save(tmp_path / f"rgba{suffix}", alpha)), np.moveaxis(alpha, -1, 0))
    np.testing.assert_array_equal(read_image(save(tmp_path / f"gray{suffix}", equal)), equal[None, ..., 0])
    box = open_image(str(tmp_path / f"rgba{suffix}")).read((slice(2, 9), slice(1, 3)))
    np.testing.assert_array_equal(box, np.moveaxis(alpha[2:9, 1:3], -1, 0))
    # A thin volume is no color image.
    assert read_image(save(tmp_path / f"thin{suffix}", np.arange(36).reshape(3, 4, 3))).shape == (1, 3, 4, 3)
    with pytest.raises(DataError, match="one channel, this one has 3"):
        read_mask(f"{tmp_path / f'rgb{suffix}'}" + "::image" * (suffix != ".npy"))


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("scale", [1, 255, 0.5])
def test_planes_of_classes_are_recognized_in_masks(tmp_path: Path, axis: int, scale: float) -> None:
    classes = np.arange(13 * 17 * 11).reshape(13, 17, 11) % 3
    planes = np.stack([classes == n for n in range(3)], axis) * np.asarray(scale, np.float32)
    with pytest.raises(DataError, match=r"its 3 channels add up to the same .*one-hot.*argmax"):
        read_mask(save(tmp_path / "planes.npy", planes))
    planes[0, 0, 0] = 0
    with pytest.raises(DataError, match="this one has 3 with the colors"):  # colors on black, not planes
        read_mask(save(tmp_path / "colors.npy", planes))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_that_are_no_images_are_refused(tmp_path: Path, suffix: str) -> None:
    location = save(tmp_path / f"x{suffix}", STACK.astype(np.complex64))
    with pytest.raises(DataError, match=r"pixels of type complex64 and shape|holds no array of numbers"):
        read_image(location)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5", ".zarr"])
@pytest.mark.parametrize("shape", [(2, 2, 2, 3, 4), (0, 4)])
def test_shapes_that_are_no_images_are_refused(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    location = save(tmp_path / f"x{suffix}", np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=r"its shape \(2, 2, 2, 3, 4\) is neither|shape \(0, 4\) are not supported"):
        read_image(location)


def test_only_a_part_of_a_large_file_is_read(tmp_path: Path) -> None:
    """Files of 8 GiB that are holes but for their headers: reading them whole would not end well."""
    shape = (2048, 2048, 2048)
    tifffile.memmap(tmp_path / "x.tif", shape=shape, dtype=np.uint8, photometric="minisblack", bigtiff=True)
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u1", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 2**33)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    with (tmp_path / "x.nii").open("wb") as file:
        header.write_to(file)
        file.truncate(352 + 2**33)
    zarr.create_array(str(tmp_path / "x.zarr"), shape=shape, chunks=(64, 64, 64), dtype=np.uint8)
    box = (slice(5, 9), slice(2000, 2048), slice(0, 30))
    for name in ("x.tif", "x.npy", "x.nii", "x.zarr"):
        open_image(str(tmp_path / name)).read(box)
        tracemalloc.start()
        stored = open_image(str(tmp_path / name))
        assert stored.shape == (1, *shape)
        assert stored.by_box
        assert not stored.read(box).any()
        assert tracemalloc.get_traced_memory()[1] < 2**20, name
        tracemalloc.stop()


def test_what_no_memory_can_hold_is_refused_by_name(saved: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "physical_memory", lambda: STACK.nbytes - 1)
    stored = open_image(saved[".npy"])
    with pytest.raises(DataError, match=r"x\.npy: 1,188 bytes would be read at once"):
        stored.read()
    np.testing.assert_array_equal(stored.read((slice(0, 5), slice(None), slice(None)))[0], STACK[:5])


# --- several files, keys, suffixes ----------------------------------------------------------------------------------


def test_channels_in_files_of_their_own(tmp_path: Path) -> None:
    first = save(tmp_path / "a_0000.nii.gz", PAIR[0])
    second = save(tmp_path / "a_0001.npy", PAIR[1].astype(np.float32))
    stored = open_image(first, second)
    assert (stored.shape, stored.dtype, stored.by_box) == (PAIR.shape, np.dtype(np.float32), False)
    assert stored.geometry is not None
    assert stored.geometry == open_image(first).geometry
    np.testing.assert_array_equal(read_image(first, second), PAIR)
    box = (slice(1, 3), slice(0, 5), slice(2, 4))
    np.testing.assert_array_equal(stored.read(box), PAIR[(slice(None), *box)])
    assert len(read_image(second, second, second)) == 3, "equal channels that were asked for are kept"
    with pytest.raises(DataError, match=r"b\.npy has the size \(13, 17\).*a_0000.*\(6, 11, 9\)"):
        open_image(first, save(tmp_path / "b.npy", PLANE))


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".zarr"])
def test_keys(tmp_path: Path, suffix: str) -> None:
    def file_with(name: str, *keys: str) -> str:
        arrays = {key: np.full((4, 5), n, np.uint8) for n, key in enumerate(keys)}
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".npz":
            np.savez(path, **arrays)
        elif suffix == ".h5":
            with h5py.File(path, "w") as file:
                for key, array in arrays.items():
                    file[key] = array
        else:
            group = zarr.open_group(str(path), mode="w")
            for key, array in arrays.items():
                group.create_array(key, data=array)
        assert list_arrays(path) == tuple(sorted(keys))
        return str(path)

    both = file_with("both", "image", "mask", "label")
    assert (read_image(both).max(), read_mask(both).max()) == (0, 2)
    assert read_mask(f"{both}::mask").max() == 1
    assert read_mask(file_with("mask", "other", "mask")).max() == 1
    assert read_image(file_with("one", "volume")).shape == (1, 4, 5)
    two = file_with("two", "volumes/raw", "volumes/seg")
    assert read_image(f"{two}::volumes/seg").max() == 1
    with pytest.raises(DataError, match=r"two.*holds the arrays volumes/raw, volumes/seg.*none named image.*::KEY"):
        read_image(two)
    with pytest.raises(DataError, match=r"no array 'volumes/rav' \(did you mean 'volumes/raw'\?\)"):
        read_image(f"{two}::volumes/rav")


def test_keys_belong_to_files_that_hold_arrays(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds one image\. Name it without '::image'"):
        read_image(save(tmp_path / "x.npy", PLANE) + "::image")
    np.testing.assert_array_equal(read_image(save(tmp_path / "a::b.npy", PLANE))[0], PLANE)
    assert list_arrays(tmp_path / "x.npy") == ()


def test_voxels_in_other_files_must_be_there(tmp_path: Path) -> None:
    """HDF5 gives zeros where the file of a virtual data set or of external storage is missing or cut off."""
    layout, raw = h5py.VirtualLayout(STACK.shape, STACK.dtype), tmp_path / "e.raw"
    for n in range(2):
        with h5py.File(tmp_path / f"{n}.h5", "w") as file:
            file["part"] = STACK[3 * n : 3 * n + 3]
        layout[3 * n : 3 * n + 3] = h5py.VirtualSource(f"{n}.h5", "part", (3, *STACK.shape[1:]))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_virtual_dataset("image", layout, fillvalue=0)
    with h5py.File(tmp_path / "e.h5", "w") as file:
        files = [(str(tmp_path / "first.raw"), 3, 100), (str(raw), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("image", STACK.shape, STACK.dtype, external=files)[:] = STACK
    for name in ("v.h5", "e.h5"):
        np.testing.assert_array_equal(read_image(str(tmp_path / name))[0], STACK)
    (tmp_path / "1.h5").unlink()
    raw.write_bytes(raw.read_bytes()[:-1])
    for name, reason in (("v.h5", r"are in 1\.h5, which is not there"), ("e.h5", r"e\.raw, which is not there or too")):
        with pytest.raises(DataError, match=reason):
            read_image(str(tmp_path / name))


def test_data_sets_that_are_no_images_are_not_listed(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["names"], file["spacing"], file["deep/volume"] = ["a", "b"], [1.0, 2.0], STACK
    assert list_arrays(tmp_path / "x.h5") == ("deep/volume",)
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.h5"))[0], STACK)
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file["names"] = ["a", "b"]
    with pytest.raises(DataError, match="holds no array of numbers"):
        read_image(str(tmp_path / "y.h5"))


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("a/b.nii.gz", "a/b", ".nii.gz"),
        ("A.NII.GZ", "A", ".nii.gz"),
        ("a.b.nii", "a.b", ".nii"),
        ("x.ome.zarr", "x", ".ome.zarr"),
        ("x.ome.tif", "x.ome", ".tif"),
        ("a/b.c", "a/b.c", ""),
        ("x.gz", "x.gz", ""),
        ("a.png/b", "a.png/b", ""),
        (".png", ".png", ""),
        ("a/.nii.gz", "a/.nii.gz", ""),
    ],
)
def test_the_longest_suffix_is_split_off(name: str, stem: str, suffix: str) -> None:
    assert split_suffix(name) == (stem, suffix)


def test_images_are_known_by_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "y.zarr").write_bytes(b"")
    assert is_image(tmp_path / "x.zarr")
    assert not is_image(tmp_path / "y.zarr")
    assert is_image(tmp_path / "missing.NII.GZ")
    assert not is_image(tmp_path / "notes.txt")
    assert tuple(s.lower() for s in IMAGE_SUFFIXES) == IMAGE_SUFFIXES


# --- NIfTI ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_equals_nibabel(tmp_path: Path, suffix: str, kind: type) -> None:
    image = kind(STACK.T, AFFINE)
    image.header.set_xyzt_units("mm")
    image.to_filename(tmp_path / f"x{suffix}")
    loaded = nibabel.load(tmp_path / f"x{suffix}")
    location = str(tmp_path / f"x{suffix}")
    canonical = nibabel.as_closest_canonical(loaded)
    np.testing.assert_array_equal(read_image(location)[0], np.asarray(canonical.dataobj).T)
    geometry = open_image(location).geometry
    assert geometry == open_image(location).geometry
    assert geometry is not None
    assert geometry.spacing == (2.5, 0.75, 0.5)
    np.testing.assert_array_equal(geometry.affine, canonical.affine)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_slope_and_intercept_are_applied(tmp_path: Path, suffix: str, dtype: type) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    image = nibabel.Nifti1Image(STACK.T.astype(dtype), None, header)
    image.header.set_slope_inter(0.25, -1024)
    path = tmp_path / f"x{suffix}"
    image.to_filename(path)  # stores (values + 1024) / 0.25
    loaded = nibabel.load(path)
    assert loaded.dataobj.slope == 0.25
    stored = open_image(str(path))
    assert stored.dtype == (np.float32 if dtype is np.int16 else np.float64)
    np.testing.assert_array_equal(stored.read()[0], loaded.get_fdata().T)
    np.testing.assert_array_equal(
        stored.read((slice(1, 2), slice(0, 4), slice(3, 5)))[0], loaded.get_fdata().T[1:2, :4, 3:5]
    )


def test_nifti_axes(tmp_path: Path) -> None:
    def shape_of(shape: tuple[int, ...]) -> tuple[int, ...]:
        nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4)).to_filename(tmp_path / "x.nii")
        return open_image(str(tmp_path / "x.nii")).shape

    assert shape_of((5, 6)) == (1, 6, 5)
    assert shape_of((5, 6, 1)) == (1, 6, 5)
    assert shape_of((5, 6, 7, 2)) == (2, 7, 6, 5)
    assert shape_of((5, 6, 1, 3)) == (3, 6, 5)
    assert shape_of((5, 6, 7, 1, 2)) == (2, 7, 6, 5)
    with pytest.raises(DataError, match="its axes"):
        shape_of((5, 6, 7, 2, 2))


def test_nifti_files_without_voxels_are_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Pair(STACK.T, np.eye(4))
    image.to_filename(tmp_path / "pair.hdr")
    (tmp_path / "pair.hdr").rename(tmp_path / "pair.nii")
    (tmp_path / "zero.nii").write_bytes(nibabel.Nifti1Image(STACK.T, np.eye(4)).header.binaryblock + bytes(5000))
    with pytest.raises(DataError, match=r"\.img pairs are not read"):
        read_image(str(tmp_path / "pair.nii"))
    with pytest.raises(DataError, match="start at byte 0, inside the header"):
        read_image(str(tmp_path / "zero.nii"))


def test_an_unusable_spacing_is_unknown(tmp_path: Path) -> None:
    header = nibabel.Nifti1Image(STACK.T, np.eye(4)).header
    header["pixdim"][1:4] = [1, 0, 2]
    header["sform_code"] = 0
    header["vox_offset"] = 352
    (tmp_path / "x.nii").write_bytes(header.binaryblock + bytes(4) + STACK.tobytes())
    assert open_image(str(tmp_path / "x.nii")).geometry is None
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.nii"))[0], STACK)


def test_a_spacing_without_affine_is_written(tmp_path: Path) -> None:
    write_mask(tmp_path / "x.nii", STACK, Geometry((3.0, 2.0, 1.5)))
    np.testing.assert_array_equal(nibabel.load(tmp_path / "x.nii").affine, np.diag([1.5, 2.0, 3.0, 1]))
    write_mask(tmp_path / "y.nii", PLANE)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "y.nii").affine, np.eye(4))


# --- TIFF, OME-Zarr -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("options", "spacing"),
    [
        (
            {"imagej": True, "resolution": (4, 5), "metadata": {"axes": "ZYX", "unit": "um", "spacing": 2.5}},
            (2.5, 0.2, 0.25),
        ),
        ({"imagej": True, "resolution": (4, 5), "metadata": {"axes": "ZYX", "unit": "um"}}, None),
        ({"imagej": True, "resolution": (4, 5), "metadata": {"axes": "ZYX", "spacing": 2.5}}, None),
        (
            {
                "ome": True,
                "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 2.5},
            },
            (2.5, 0.2, 0.25),
        ),
        ({"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.2}}, None),
        (
            {
                "ome": True,
                "metadata": {
                    "axes": "ZYX",
                    "PhysicalSizeX": 1,
                    "PhysicalSizeY": 1,
                    "PhysicalSizeZ": 2,
                    "PhysicalSizeZUnit": "nm",
                },
            },
            None,
        ),
        ({"resolution": (72, 72), "resolutionunit": "INCH", "metadata": {"axes": "ZYX"}}, None),
    ],
    ids=["imagej", "imagej without z", "imagej without unit", "ome", "ome without z", "ome mixed units", "dpi"],
)
def test_tiff_spacing(tmp_path: Path, options: dict[str, object], spacing: object, compression: str | None) -> None:
    tifffile.imwrite(tmp_path / "x.tif", STACK, photometric="minisblack", compression=compression, **options)
    geometry = open_image(str(tmp_path / "x.tif")).geometry
    assert geometry == open_image(str(tmp_path / "x.tif")).geometry
    assert (geometry and geometry.spacing) == (spacing and pytest.approx(spacing))


def save_ome(path: Path, array: np.ndarray, axes: str, version: str, scale: list[float] | None) -> str:
    group = zarr.open_group(str(path), mode="w", zarr_format=3 if version == "0.5" else 2)
    for level, part in enumerate((array, array[..., ::2, ::2])):
        group.create_array(f"s{level}", data=part)
    levels: list[dict[str, object]] = [{"path": "s0"}, {"path": "s1"}]
    if scale:
        levels[0]["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
    scales = [{"axes": [{"name": a} for a in axes], "datasets": levels}]
    group.attrs.update(
        {"ome": {"version": "0.5", "multiscales": scales}} if version == "0.5" else {"multiscales": scales}
    )
    return str(path)


def place(spacing: tuple[float, ...], origin: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Geometry:
    """Return the geometry of a volume with this spacing and origin, both (z, y, x)."""
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = origin[::-1]
    return Geometry(spacing, tuple(tuple(row) for row in affine.tolist()))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    location = save_ome(tmp_path / "x.ome.zarr", PAIR[None], "tczyx", version, [1, 1, 3.0, 0.5, 0.25])
    np.testing.assert_array_equal(read_image(location), PAIR)
    assert open_image(location).geometry == place((3.0, 0.5, 0.25))
    assert open_image(location).by_box
    box = (slice(1, 3), slice(0, 4), slice(5, 6))
    np.testing.assert_array_equal(open_image(location).read(box), PAIR[(slice(None), *box)])
    plane = save_ome(tmp_path / "y.zarr", PLANE[None], "zyx", version, None)
    assert read_image(plane).shape == (1, *PLANE.shape)
    assert open_image(plane).geometry is None
    save_ome(tmp_path / "x.ome.zarr" / "labels" / "cells", STACK, "zyx", version, None)
    np.testing.assert_array_equal(read_mask(f"{location}::labels/cells"), STACK)
    with pytest.raises(DataError, match="holds 2 points in time"):
        read_image(save_ome(tmp_path / "t.zarr", PAIR, "tzyx", version, None))
    with pytest.raises(DataError, match="its axes"):
        read_image(save_ome(tmp_path / "q.zarr", PAIR, "qzyx", version, None))


def test_scales_of_an_ome_image_and_of_its_level_are_multiplied(tmp_path: Path) -> None:
    location = save_ome(tmp_path / "x.zarr", STACK, "zyx", "0.4", [2.0, 1.0, 1.0])
    group = zarr.open_group(location, mode="a")
    scales = [
        dict(group.attrs["multiscales"][0], coordinateTransformations=[{"type": "scale", "scale": [3, 0.5, 0.25]}])
    ]
    group.attrs["multiscales"] = scales
    assert open_image(location).geometry == place((6.0, 0.5, 0.25))
    scales[0]["datasets"][0]["coordinateTransformations"].append({"type": "translation", "translation": [1, 2, 3]})
    scales[0]["coordinateTransformations"].append({"type": "translation", "translation": [10, 20, 30]})
    group.attrs["multiscales"] = scales
    assert open_image(location).geometry == place((6.0, 0.5, 0.25), (13.0, 21.0, 30.75))


def test_ome_images_inside_a_group_are_read_as_such(tmp_path: Path) -> None:
    """As bioformats2raw writes them: their axes and scales count, and their levels are no images of their own."""
    path = tmp_path / "x.ome.zarr"
    zarr.open_group(str(path), mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    save_ome(path / "0", PAIR[None], "tczyx", "0.4", [1, 1, 3.0, 0.5, 0.25])
    np.testing.assert_array_equal(read_image(str(path)), PAIR)
    assert open_image(str(path)).geometry == place((3.0, 0.5, 0.25))
    save_ome(path / "1", STACK[:, None], "tzyx", "0.4", None)
    assert list_arrays(path) == ("0", "1")
    with pytest.raises(DataError, match="holds 6 points in time"):
        read_image(f"{path}::1")


def test_ome_axes_in_another_order(tmp_path: Path) -> None:
    location = save_ome(tmp_path / "x.zarr", STACK.T, "xyz", "0.4", [0.25, 0.5, 3.0])
    np.testing.assert_array_equal(read_image(location)[0], STACK)
    assert open_image(location).geometry == place((3.0, 0.5, 0.25))


def test_a_lone_zarr_array_needs_no_key(tmp_path: Path) -> None:
    for version in (2, 3):
        path = tmp_path / f"{version}.zarr"
        zarr.create_array(str(path), data=STACK, zarr_format=version)
        np.testing.assert_array_equal(read_image(str(path))[0], STACK)
        assert list_arrays(path) == ()


def test_zarr_folders_that_hold_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_bytes(b"PK")
    group = zarr.open_group(str(tmp_path / "broken.zarr"), mode="w")
    group.create_array("image", data=STACK)
    (tmp_path / "broken.zarr" / "image" / "zarr.json").write_text("{not json")
    for name, reason in [
        ("missing.zarr", "no such file"),
        ("file.zarr", "is a folder, this is a file"),
        ("empty.zarr", "cannot be read"),
        ("broken.zarr::image", "cannot be read"),
    ]:
        with pytest.raises(DataError, match=reason) as raised:
            read_image(str(tmp_path / name))
        assert name.partition("::")[0] in str(raised.value)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_masks_of_half_precision(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_mask(save(tmp_path / "x.npy", PLANE.astype(np.float16))), PLANE)
    with pytest.raises(DataError, match="12 mask values are NaN or infinite"):
        read_mask(save(tmp_path / "y.npy", np.full((3, 4), np.inf, np.float16)), reading=Reading(nonfinite="ignore"))


def test_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    objects = np.array([[Trap(), 1], [2, 3]], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", image=objects)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match="Python objects"):
            read_image(str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


def test_checksums_are_compared(tmp_path: Path) -> None:
    packed = tmp_path / "x.nii.gz"
    save(packed, STACK)
    data = bytearray(packed.read_bytes())
    data[-6] ^= 1
    packed.write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        read_image(str(packed))
    archive = tmp_path / "x.npz"
    for write in (np.savez, np.savez_compressed):
        write(archive, image=STACK)
        checksum = zipfile.ZipFile(archive).infolist()[0].CRC.to_bytes(4, "little")
        archive.write_bytes(archive.read_bytes().replace(checksum, b"\1\2\3\4"))
        with pytest.raises(DataError, match="CRC"):
            read_image(str(archive))


def test_headers_that_claim_too_much_are_refused(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((3000, 3000, 3000))
    header["vox_offset"] = 352
    block = header.binaryblock + bytes(4) + bytes(1000)
    (tmp_path / "x.nii").write_bytes(block)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(block))
    for name in ("x.npy", "member.npy"):
        with (tmp_path / name).open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f8", "fortran_order": False, "shape": (3000, 3000, 3000)}
            )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "member.npy", "image.npy")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("image", (5000, 5000), np.float64)
        file.create_dataset("chunked", (5000, 50000), np.float64, chunks=(100, 100))
    tracemalloc.start()
    for location in ("x.nii", "x.nii.gz", "x.npy", "x.npz", "x.h5", "x.h5::chunked"):
        with pytest.raises(DataError, match="its header claims"):
            read_image(str(tmp_path / location))
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


def test_a_zip_archive_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    """The directory of the archive and the header of the array agree on 3 GB, and 100 bytes are stored."""
    shape = (3, 2**30)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header.getvalue())
    data = bytearray((tmp_path / "x.npz").read_bytes())
    size = data.index(b"PK\1\2") + 24
    data[size : size + 4] = (len(header.getvalue()) + 3 * 2**30).to_bytes(4, "little")
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DataError, match="its header claims 3,2"):
        read_image(str(tmp_path / "x.npz"))


def test_empty_masks_compress_well_and_are_no_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_checks, "_ALWAYS_ALLOWED", 8 * 2**20)
    zeros = np.zeros((9, 1024, 1024), np.uint8)  # just above the size that is always allowed
    write_mask(tmp_path / "x.nii.gz", zeros)
    write_mask(tmp_path / "x.tif", zeros)
    assert (tmp_path / "x.tif").stat().st_size < zeros.size / 500
    np.savez_compressed(tmp_path / "x.npz", label=zeros)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("label", data=zeros, compression="gzip", compression_opts=1)
    zarr.open_group(str(tmp_path / "x.zarr"), mode="w").create_array("label", data=zeros, chunks=(9, 128, 128))
    for name in ("x.nii.gz", "x.tif", "x.npz", "x.h5", "x.zarr"):
        assert not read_mask(str(tmp_path / name)).any()


@pytest.mark.parametrize(("suffix", "extra"), [(".h5", "hdf5"), (".zarr", "zarr")])
def test_a_missing_package_is_named(
    saved: dict[str, str], monkeypatch: pytest.MonkeyPatch, suffix: str, extra: str
) -> None:
    for module in ("h5py", "zarr"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"pip install 'ssl-seg\[{extra}\]'") as raised:
        open_image(saved[suffix])
    assert saved[suffix] in str(raised.value)


def test_libraries_are_imported_where_they_are_needed() -> None:
    code = "import sys, ssl_seg.data.volumes; print({'nibabel', 'h5py', 'zarr', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
