"""How the voxels of single files are read: axes, channels, orientation, palettes. Oracles: Pillow, tifffile, numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from ssl_seg.config import DataConfig
from ssl_seg.configio import validate
from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.disk_cache import WORTH_A_COPY, DiskCache, open_copy
from ssl_seg.data.reading import Reading
from ssl_seg.data.store import CaseStore
from ssl_seg.data.volumes import read_image, read_mask
from ssl_seg.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
FIVE = RNG.integers(0, 200, (5, 20, 24), dtype=np.uint8)
"""Five channels or five slices."""


def save(path: Path, array: np.ndarray) -> str:
    """Write an array in the format of its suffix, without the names of its axes."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, array)
    elif path.suffix == ".tif":
        with tifffile.TiffWriter(path) as tiff:
            for page in array.reshape(-1, *array.shape[-2:]):
                tiff.write(page, photometric="minisblack", metadata=None, contiguous=False)
    elif path.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["image"] = array
    else:
        zarr = pytest.importorskip("zarr")
        zarr.save_array(str(path), array)
    return str(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".h5", ".zarr"])
def test_axes_name_what_the_file_does_not(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"x{suffix}", FIVE)
    np.testing.assert_array_equal(read_image(path), FIVE[None])
    np.testing.assert_array_equal(read_image(path, reading=Reading("ZYX")), FIVE[None])
    np.testing.assert_array_equal(read_image(path, reading=Reading("CYX")), FIVE)


@pytest.mark.parametrize(
    ("axes", "stored", "read"),
    [
        ("YXC", (20, 24, 5), (5, 20, 24)),
        ("XY", (24, 20), (1, 20, 24)),
        ("XYZC", (24, 20, 7, 2), (2, 7, 20, 24)),
        ("ZYXC", (7, 20, 24, 2), (2, 7, 20, 24)),
        ("CZYX", (2, 7, 20, 24), (2, 7, 20, 24)),
        ("CZYX", (7, 20, 24), (1, 7, 20, 24)),  # a gray one among them
        ("CYX", (1, 5, 20, 24), (5, 20, 24)),  # an axis of length one in front
        ("CYX", (20, 24), (1, 20, 24)),
        ("CZYX", (2, 1, 20, 24), (2, 20, 24)),  # a depth of one is an image
    ],
)
def test_every_order_of_axes(tmp_path: Path, axes: str, stored: tuple[int, ...], read: tuple[int, ...]) -> None:
    array = RNG.integers(0, 99, stored, dtype=np.uint8)
    image = read_image(save(tmp_path / "x.npy", array), reading=Reading(axes))
    assert image.shape == read
    letters = axes.lower() if len(axes) == len(stored) else ""
    if letters:
        order = [letters.index(axis) for axis in "czyx" if axis in letters]
        np.testing.assert_array_equal(image.reshape(array.transpose(order).shape), array.transpose(order))


@pytest.mark.parametrize(
    ("axes", "shape"), [("CYX", (20, 24)), ("YXC", (20, 24)), ("CYX", (1, 20, 24)), ("YXC", (20, 24, 1))]
)
def test_masks_leave_the_channels_out(tmp_path: Path, axes: str, shape: tuple[int, ...]) -> None:
    mask = RNG.integers(0, 3, (20, 24), dtype=np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "x.npy", mask.reshape(shape)), reading=Reading(axes)), mask)


def test_axes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", RNG.integers(0, 9, (2, 5, 20, 24), dtype=np.uint8))
    with pytest.raises(DataError, match=r"data.axes=CYX does not fit its shape \(2, 5, 20, 24\)"):
        read_image(path, reading=Reading("CYX"))


@pytest.mark.parametrize("axes", ["TYX", "ZYXT", "ZZYX", "CY", "zyx", "SYX", ""])
def test_axes_of_other_letters_are_refused(axes: str) -> None:
    section = {"label_values": [0, 1], "channels": 1, "patch_size": [32, 32], "foreground_ratio": 0}
    assert validate(DataConfig, section | {"axes": "CYX"}, prefix="data.").axes == "CYX"
    with pytest.raises(ConfigError, match="time" if "T" in axes else "each once"):
        validate(DataConfig, section | {"axes": axes}, prefix="data.")


def write_channels(folder: Path, images: int = 3) -> str:
    """Write images of five channels, with masks of their size."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(images):
        save(folder / "images" / f"{index}.npy", FIVE + index)
        save(folder / "masks" / f"{index}.npy", (FIVE[0] > 90 + index).astype(np.uint8))
    return str(folder)


def test_a_data_set_is_read_by_its_axes_everywhere(tmp_path: Path) -> None:
    root, reading = write_channels(tmp_path / "data"), Reading("CYX")
    catalog = open_catalog(root, reading=reading)
    assert (catalog.channels, catalog.ndim, catalog.reading) == (5, 2, reading)
    assert audit(root, reading=reading).summary["faults"] == 0
    for memory in (2**31, 0):  # whole, and by box
        store = CaseStore(catalog, 5, memory)
        np.testing.assert_array_equal(store.load("1").image[:, 0:20, 0:24], FIVE + 1)
        np.testing.assert_array_equal(store.load_whole("1").target, FIVE[0] > 91)


def test_a_decoded_copy_is_one_of_each_reading(tmp_path: Path) -> None:
    array = RNG.integers(0, 9, (3, 9, 1, WORTH_A_COPY // 25), dtype=np.uint8)
    path, cache = save(tmp_path / "x.npz", array), DiskCache(tmp_path / "cache", 2**30)
    copies = [cache.add(path, reading=Reading(axes)) for axes in ("CZYX", "ZCYX")]
    assert copies[0] != copies[1]
    assert cache.find(path, reading=Reading("ZCYX")) == copies[1]
    assert cache.find(path) is None
    for copy, expected in zip(copies, (array, array.transpose(1, 0, 2, 3)), strict=True):
        np.testing.assert_array_equal(open_copy(copy).read(), expected)
