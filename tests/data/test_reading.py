"""How the voxels of single files are read: axes, channels, orientation, palettes. Oracles: Pillow, tifffile, numpy."""

from __future__ import annotations

import re
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from test_volumes import png_chunk

from ssl_seg.config import DataConfig
from ssl_seg.config.layers import validate
from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.disk_cache import WORTH_A_COPY, DiskCache, open_copy
from ssl_seg.data.formats import stored
from ssl_seg.data.reading import Reading
from ssl_seg.data.store import CaseStore
from ssl_seg.data.volumes import open_image, open_mask, read_image, read_mask, write_mask
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.labels import Meaning

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
    catalog = open_catalog(root, CatalogSettings(reading=reading))
    assert (catalog.channels, catalog.ndim, catalog.reading) == (5, 2, reading)
    assert audit(root, CatalogSettings(reading=reading)).summary["faults"] == 0
    for memory in (2**31, 0):  # whole, and by box
        store = CaseStore(catalog, 5, memory)
        np.testing.assert_array_equal(store.load("1").image[:, 0:20, 0:24], FIVE + 1)
        np.testing.assert_array_equal(store.load_whole("1").target, FIVE[0] > 91)


def test_a_decoded_copy_is_one_of_each_reading(tmp_path: Path) -> None:
    array = RNG.integers(0, 9, (3, 9, 1, WORTH_A_COPY // 25), dtype=np.uint8)
    path, cache = save(tmp_path / "x.npz", array), DiskCache(tmp_path / "cache", 2**30)
    copies = []
    for reading in (Reading("CZYX"), Reading("ZCYX")):
        copies.append(cache.name(path, reading=reading))
        cache.write(copies[-1], open_image(path, reading=reading).read, array.nbytes, 0)
    assert copies[0] != copies[1]
    assert cache.find(path, reading=Reading("ZCYX")) == copies[1]
    assert cache.find(path) is None
    for copy, expected in zip(copies, (array, array.transpose(1, 0, 2, 3)), strict=True):
        np.testing.assert_array_equal(open_copy(copy).read(), expected)


# --- axes that the sizes suggest -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "axes", "is_guess"),
    [
        ((20, 24), "YX", False),
        ((1, 20, 24), "QYX", False),
        ((20, 24, 1), "YXQ", False),
        ((1, 1, 20, 24), "QQYX", False),
        ((1, 20, 24, 1), "QYXQ", False),
        ((3, 20, 24), "CYX", True),
        ((2, 20, 24), "CYX", True),
        ((4, 20, 24), "CYX", True),
        ((5, 20, 24), "ZYX", True),
        ((8, 20, 24), "ZYX", True),
        ((9, 20, 24), "ZYX", False),
        ((40, 20, 24), "ZYX", False),
        ((3, 4, 3), "ZYX", True),
        ((20, 24, 2), "YXC", False),
        ((20, 24, 3), "YXC", False),
        ((20, 24, 4), "YXC", False),
        ((20, 24, 5), "ZYX", False),
        ((40, 48, 5), "YXC", True),
        ((39, 48, 5), "ZYX", False),
        ((256, 300, 32), "YXC", True),
        ((264, 300, 33), "ZYX", False),
        ((3, 7, 20, 24), "CZYX", False),
        ((2, 3, 20, 24), "CZYX", True),
        ((7, 2, 20, 24), "ZCYX", True),
        ((4, 4, 20, 24), "CZYX", True),
        ((5, 4, 20, 24), "ZCYX", True),
        ((7, 20, 24, 3), "ZYXC", False),
        ((1, 3, 20, 24), "QCYX", True),
        ((7, 1, 20, 24), "ZQYX", True),
    ],
)
def test_axes_of_arrays_by_their_sizes(tmp_path: Path, stored: tuple[int, ...], axes: str, is_guess: bool) -> None:
    array = RNG.integers(0, 99, stored, dtype=np.uint8)
    path = save(tmp_path / "x.npy", array)
    order = [axes.index(axis) for axis in "QCZYX" if axis in axes]
    kept = array.transpose([n for n, axis in enumerate(axes) if axis == "Q"] + [n for n in order if axes[n] != "Q"])
    expected = kept.reshape([stored[n] for n in order if axes[n] != "Q"])
    np.testing.assert_array_equal(read_image(path), expected if "C" in axes else expected[None])
    assert any("set data.axes" in note for note in open_image(path).notes) == is_guess


def test_masks_and_pages_are_stacks(tmp_path: Path) -> None:
    three = FIVE[:3]
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.npy", three)), three)
    path = save(tmp_path / "x.tif", three)
    np.testing.assert_array_equal(read_image(path), three[None])
    assert any("data.axes" in note for note in open_image(path).notes)
    np.testing.assert_array_equal(read_image(path, reading=Reading("CYX")), three)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".h5"])
@pytest.mark.parametrize(
    ("axes", "image", "mask"),
    [
        ("CYX", (5, 20, 24), (20, 24)),
        ("ZYX", (3, 20, 24), (3, 20, 24)),
        ("YXC", (20, 24, 6), (20, 24)),
        (None, (3, 20, 24), (20, 24)),
        (None, (9, 20, 24), (9, 20, 24)),
    ],
)
def test_masks_tell_the_axes_of_their_images(
    tmp_path: Path, suffix: str, axes: str | None, image: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    if suffix == ".tif" and image[0] == 3:  # pages are a stack unless masks tell otherwise
        axes = None if axes else "CYX"
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n in range(3):
        save(tmp_path / "images" / f"{n}{suffix}", RNG.integers(0, 99, image, dtype=np.uint8))
    save(tmp_path / "masks" / f"1{suffix}", RNG.integers(0, 2, mask, dtype=np.uint8))
    catalog, report = open_catalog(str(tmp_path)), audit(str(tmp_path))
    assert catalog.reading == report.reading == Reading(axes)
    assert {facts.shape for facts in catalog.facts.values()} == {mask}
    for notes in (catalog.notes, report.summary["notes"]):
        assert [note for note in notes if "axes" in note] == (
            [] if axes is None else [f"data.axes={axes}: only so the images have the size of their masks"]
        )


def test_a_broken_first_file_does_not_hide_the_axes(tmp_path: Path) -> None:
    root = Path(write_channels(tmp_path / "data"))
    (root / "images" / "0.npy").write_bytes(b"\x93NUMPY")
    assert audit(str(root)).reading == Reading("CYX")


def test_a_guess_without_masks_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for n in range(3):
        save(tmp_path / "images" / f"{n}.npy", FIVE[:3] + n)
    (note,) = (note for note in open_catalog(str(tmp_path)).notes if "axes" in note)
    assert note == "3 images: axes are taken for CYX by their sizes: set data.axes if they are others"


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}, {}])
def test_points_in_time_are_no_depth(tmp_path: Path, options: dict[str, Any]) -> None:
    path = str(tmp_path / "x.tif")
    tifffile.imwrite(path, FIVE, photometric="minisblack", metadata={"axes": "TYX"}, **options)
    with pytest.raises(DataError, match=r"5 points in time .*image of its own; data.axes=ZYX reads them as a stack"):
        read_image(path)
    np.testing.assert_array_equal(read_image(path, reading=Reading("ZYX")), FIVE[None])


@pytest.mark.parametrize("slices", [3, 4])
def test_planes_that_are_read_as_colors_may_be_slices(tmp_path: Path, slices: int) -> None:
    """tifffile writes so few slices as colors, one plane behind the other; colors of each pixel are no slices."""
    path, pixels, gray = (str(tmp_path / f"{name}.tif") for name in ("planes", "pixels", "gray"))
    stack = np.random.default_rng(0).integers(0, 3, (slices, 8, 9), np.uint8)
    tifffile.imwrite(path, stack)
    tifffile.imwrite(pixels, np.moveaxis(stack, 0, -1), photometric="rgb")
    tifffile.imwrite(gray, stack, photometric="minisblack")
    advice = [any("data.axes=ZYX" in note for note in open_image(p).notes) for p in (path, pixels, gray)]
    assert advice == [True, False, False]
    with pytest.raises(DataError, match=r"the slices of a volume, set data\.axes=ZYX"):
        open_mask(path)
    np.testing.assert_array_equal(read_mask(path, reading=Reading("ZYX")), stack)
    cv2.imwrite(str(tmp_path / "colors.png"), np.moveaxis(stack[:3], 0, -1))
    with pytest.raises(DataError, match=r"one integer per pixel(?!.*data\.axes)"):
        open_mask(str(tmp_path / "colors.png"))


def test_masks_do_not_make_time_a_depth(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", FIVE > 90, photometric="minisblack", metadata={"axes": "TYX"})
    (fault,) = (f for f in audit(str(tmp_path)).findings if f.code == "unreadable")
    assert "points in time" in fault.message


# --- channels and alpha ----------------------------------------------------------------------------------------------

PLANES = RNG.integers(0, 256, (4, 20, 24), dtype=np.uint8)


def write_tiff(path: Path, array: np.ndarray, **options: Any) -> str:
    tifffile.imwrite(path, array, **({"photometric": "minisblack"} | options))
    return str(path)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("count", "photometric", "extra", "alpha"),
    [
        (4, "rgb", ["unspecified"], False),
        (4, "rgb", ["unassalpha"], True),
        (4, "rgb", ["assocalpha"], True),
        (2, "minisblack", ["unspecified"], False),
        (2, "minisblack", ["unassalpha"], True),
        (4, "minisblack", ["unspecified"] * 3, False),
    ],
)
def test_only_declared_alpha_is_alpha(
    tmp_path: Path, planar: str, compression: str | None, count: int, photometric: str, extra: list[str], alpha: bool
) -> None:
    stored = PLANES[:count] if planar == "separate" else np.moveaxis(PLANES[:count], 0, -1)
    options = {"photometric": photometric, "planarconfig": planar, "extrasamples": extra, "compression": compression}
    path = write_tiff(tmp_path / "x.tif", np.ascontiguousarray(stored), **options)
    with tifffile.TiffFile(path) as tiff:
        assert [sample.name.lower() for sample in tiff.pages[0].extrasamples] == extra
    np.testing.assert_array_equal(read_image(path), PLANES[: count - alpha])
    assert ("alpha is dropped" in open_image(path).notes) == alpha


@pytest.mark.parametrize(("count", "depth"), [(2, 8), (4, 8), (4, 16)])
def test_png_alpha_is_dropped_and_said(tmp_path: Path, count: int, depth: int) -> None:
    planes, path = PLANES[:count], str(tmp_path / "x.png")
    if depth == 8:
        Image.fromarray(np.moveaxis(planes, 0, -1)).save(path)
    else:
        planes = planes.astype(np.uint16) * 201
        cv2.imwrite(path, np.moveaxis(planes[[2, 1, 0, 3]], 0, -1))
    np.testing.assert_array_equal(read_image(path), planes[:-1])
    assert open_image(path).notes == ("alpha is dropped",)


def test_sixteen_bit_colors_of_png(tmp_path: Path) -> None:
    planes = PLANES[:3].astype(np.uint16) * 251
    cv2.imwrite(str(tmp_path / "x.png"), np.moveaxis(planes[::-1], 0, -1))
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.png")), planes)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("count", [2, 4])
def test_a_label_in_the_alpha_channel_is_read(tmp_path: Path, suffix: str, count: int) -> None:
    label = (PLANES[0] > 128).astype(np.uint8) * 255
    stored = np.stack([*[np.full_like(label, 255)] * (count - 1), label], -1)
    path = tmp_path / f"x{suffix}"
    if suffix == ".png":
        Image.fromarray(stored).save(path)
    else:
        photometric = "rgb" if count == 4 else "minisblack"
        write_tiff(path, stored, photometric=photometric, planarconfig="contig", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_mask(str(path)), label)
    assert open_mask(str(path)).notes == ("its colors are constant: alpha is read in their place",)
    opaque = stored.copy()
    opaque[..., 0], opaque[..., -1] = label, 255
    opaque[..., 1:-1] = label[..., None]
    np.testing.assert_array_equal(read_mask(save_color(tmp_path / f"y{suffix}", opaque)), label)


def save_color(path: Path, array: np.ndarray) -> str:
    if path.suffix == ".tif":
        photometric = "rgb" if array.shape[-1] > 2 else "minisblack"
        extra = ["unassalpha"] if array.shape[-1] % 2 == 0 else None
        return write_tiff(path, array, photometric=photometric, planarconfig="contig", extrasamples=extra)
    if path.suffix == ".npy":
        return save(path, array)
    Image.fromarray(array).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("suffix", "count"), [(".bmp", 3), *((s, n) for s in (".png", ".tif", ".npy") for n in (3, 4))]
)
def test_a_mask_of_equal_channels_is_a_gray_mask(tmp_path: Path, suffix: str, count: int) -> None:
    label = (PLANES[0] // 90).astype(np.uint8)
    stored = np.stack([label] * 3 + [np.full_like(label, 255)] * (count == 4), -1)
    np.testing.assert_array_equal(read_mask(save_color(tmp_path / f"x{suffix}", stored)), label)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
def test_colors_of_a_mask_are_named_or_its_one_channel_is_read(tmp_path: Path, suffix: str) -> None:
    label = (PLANES[0] // 90).astype(np.uint8)
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 128, 0]], np.uint8)
    path = save_color(tmp_path / f"x{suffix}", colors[label])
    with pytest.raises(DataError, match=r"the colors .*\(0, 0, 0\), \(0, 128, 0\), \(255, 0, 0\)\. Save one integer"):
        read_mask(path)
    red = save_color(tmp_path / f"red{suffix}", colors[(label > 1).astype(int)])
    np.testing.assert_array_equal(read_mask(red), (label > 1) * 255)
    assert any("not black is the label" in note for note in open_mask(red).notes)
    # Red on white: nothing says whether red is the object.
    with pytest.raises(DataError, match="colors"):
        read_mask(save_color(tmp_path / f"w{suffix}", np.array([[255, 255, 255], [255, 0, 0]], np.uint8)[label // 2]))


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
@pytest.mark.parametrize("color", [False, True])
def test_images_are_upright_as_in_pillow(tmp_path: Path, orientation: int, kind: str, color: bool) -> None:
    path = tmp_path / f"x.{kind}"
    image = Image.fromarray(np.moveaxis(PLANES[:3], 0, -1) if color else PLANES[0])
    exif = Image.Exif()
    exif[274] = orientation
    image.save(path, exif=exif, **({"quality": 95} if kind == "jpg" else {}))
    with Image.open(path) as opened:
        stored = Image.fromarray(np.asarray(opened)) if kind == "jpg" else image
    stored.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(stored))
    found = read_image(str(path))
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1).squeeze(), expected)
    assert any("turned upright" in note for note in open_image(str(path)).notes) == (orientation > 1)
    box = open_image(str(path)).read((slice(2, 7), slice(3, 5)))
    np.testing.assert_array_equal(box, found[:, 2:7, 3:5])


def test_a_mask_drawn_on_the_stored_pixels_is_explained(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(PLANES[0]).save(tmp_path / "images" / "a.jpg", exif=exif)
    Image.fromarray(PLANES[0] // 200).save(tmp_path / "masks" / "a.png")
    with pytest.raises(
        DataError, match=r"20 x 24, its image 24 x 20.*the same size. \(The image: it is turned upright"
    ):
        open_catalog(str(tmp_path))


# --- white is zero, palettes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16"])
def test_white_is_large(tmp_path: Path, dtype: str, compression: str | None) -> None:
    values = PLANES[0] > 128 if dtype == "bool" else PLANES[0].astype(dtype) * (1 if dtype == "uint8" else 257)
    path = write_tiff(tmp_path / "x.tif", values, photometric="miniswhite", compression=compression, software="scanner")
    image = read_image(path)[0]
    with Image.open(path) as opened:
        seen = np.asarray(opened.convert("L")) if dtype != "uint16" else (255 - PLANES[0])
    top = {"bool": 1, "uint8": 255, "uint16": 65535}[dtype]
    np.testing.assert_array_equal(image.astype(int) * 255, seen.astype(int) * top)
    assert any("inverted" in note for note in open_image(path).notes)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16"])
def test_what_looks_white_in_a_mask_is_foreground(tmp_path: Path, dtype: str) -> None:
    foreground = PLANES[0] > 128
    top = {"bool": 1, "uint8": 255, "uint16": 65535}[dtype]
    stored = ((~foreground) * top).astype(dtype)
    path = write_tiff(tmp_path / "x.tif", stored, photometric="miniswhite", software="scanner")
    np.testing.assert_array_equal(read_mask(path), foreground * top)
    assert any("looks white" in note for note in open_mask(path).notes)
    labels = write_tiff(tmp_path / "y.tif", PLANES[0] // 90, photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(labels), PLANES[0] // 90)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"metadata": None}, {"ome": True}], ids=str)
@pytest.mark.parametrize("shape", [(20, 24), (7, 13), (5, 20, 24)], ids=str)
def test_what_was_true_is_foreground(tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """tifffile calls zero white in files of bool unless it is told otherwise; it reads them back as they were."""
    foreground = np.random.default_rng(0).random(shape) < 0.2
    tifffile.imwrite(path := tmp_path / "y.tif", foreground, **options)
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].photometric == tifffile.PHOTOMETRIC.MINISWHITE
    axes = Reading() if len(shape) == 2 else Reading(axes="ZYX")
    for read in (open_mask, open_image):
        np.testing.assert_array_equal(read(str(path), reading=axes).read()[0], foreground)
    assert any("as tifffile wrote them" in note for note in open_mask(str(path), reading=axes).notes)


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palettes(tmp_path: Path, suffix: str) -> None:
    picture = Image.fromarray(PLANES[0] // 70)
    picture.putpalette(VOC)
    path = tmp_path / f"x{suffix}"
    picture.save(path)
    with Image.open(path) as opened:
        assert opened.mode == "P"
        indices, colors = np.asarray(opened), np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_mask(str(path)), indices)
    np.testing.assert_array_equal(read_image(str(path)), np.moveaxis(colors, -1, 0))
    assert open_mask(str(path)).notes == ("the indices of its palette are the labels",)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palettes_in_an_order_of_their_own(tmp_path: Path, suffix: str) -> None:
    foreground = PLANES[0] > 128
    white_first = Image.fromarray((~foreground).astype(np.uint8))
    white_first.putpalette([255, 255, 255, 0, 0, 0])
    white_first.save(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(read_mask(str(tmp_path / f"x{suffix}")) > 0, foreground)
    red_first = Image.fromarray((~foreground).astype(np.uint8))
    red_first.putpalette([255, 0, 0, 0, 0, 0])
    red_first.save(tmp_path / f"y{suffix}")
    np.testing.assert_array_equal(read_mask(str(tmp_path / f"y{suffix}")), foreground)
    (note,) = open_mask(str(tmp_path / f"y{suffix}")).notes
    assert note.endswith("the background is black, which is 1 there")
    three = Image.fromarray(PLANES[0] % 3)
    three.putpalette([255, 0, 0, 0, 0, 0, 0, 255, 0])
    three.save(tmp_path / f"z{suffix}")
    np.testing.assert_array_equal(read_mask(str(tmp_path / f"z{suffix}")), PLANES[0] % 3)
    (note,) = open_mask(str(tmp_path / f"z{suffix}")).notes
    assert note.endswith("1 is black: if it is the background, set data.label_values=[1, 0, 2]")


def quantize(path: Path, classes: np.ndarray) -> None:
    """Write black, red and green for 0, 1 and 2 with a palette of its own, in the order of how frequent they are."""
    picture = Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[classes])
    order = sorted(picture.getcolors(), reverse=True)
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for _, color in order for value in color])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_palettes_that_number_colors_anew_in_each_mask(tmp_path: Path, suffix: str) -> None:
    """The frequent one of two colors is first in one file and last in the other; of three, nothing tells the order."""
    few, most = PLANES[0] > 200, PLANES[0] > 40
    three = few * 1 + most * 1
    for folder, masks in {
        "two": (few * 1, most * 1),
        "three": (three, 2 * (three == 1) + (three == 2)),
    }.items():
        for n, mask in enumerate(masks):
            for part in ("images", "masks"):
                (tmp_path / folder / part).mkdir(parents=True, exist_ok=True)
            write_mask(tmp_path / folder / "images" / f"{n}.png", PLANES[n])
            quantize(tmp_path / folder / "masks" / f"{n}{suffix}", mask)
    catalog = open_catalog(str(tmp_path / "two"))
    for n, mask in enumerate((few, most)):
        np.testing.assert_array_equal(CaseStore(catalog, 1).load(str(n)).target, mask)
    with pytest.raises(DataError, match=r"the value 0 is red in 0 and green in 1.*with one palette"):
        open_catalog(str(tmp_path / "three"))
    named = open_catalog(str(tmp_path / "three"), CatalogSettings(meaning=Meaning(label_values=(0, 1, 2))))
    assert any("other colors" in note for note in named.notes)
    numbers = open_catalog(str(tmp_path / "three"), CatalogSettings(meaning=Meaning(kind="instances")))
    assert not any("other colors" in note for note in numbers.notes)


@pytest.mark.parametrize("channel", [0, 1])
def test_one_color_in_each_mask_is_a_class_only_where_it_is_the_same(tmp_path: Path, channel: int) -> None:
    """Red in one mask and green in the other are both 255: taken for one class, they would be mixed in silence."""
    for n, own in enumerate((0, channel)):
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
        write_mask(tmp_path / "images" / f"{n}.png", PLANES[n])
        color = np.zeros((*PLANES[0].shape, 3), np.uint8)
        color[..., own] = (PLANES[n] > 99) * 255
        Image.fromarray(color).save(tmp_path / "masks" / f"{n}.png")
    if channel == 0:
        assert open_catalog(str(tmp_path)).label_values == (0, 255)
    else:
        with pytest.raises(DataError, match="the value 255 is red in 0 and green in 1"):
            open_catalog(str(tmp_path))


def test_a_mask_of_imagej_whose_table_is_inverted_has_the_values_that_imagej_shows(tmp_path: Path) -> None:
    """Objects are 255 there, and black to the eye; of a scanner's file, what looks white is foreground."""
    mask = (PLANES[0] > 99).astype(np.uint8) * 255
    for name, options, expected in (("a", {"imagej": True}, mask), ("b", {"software": "scanner"}, 255 - mask)):
        path = write_tiff(tmp_path / f"{name}.tif", mask, photometric="miniswhite", **options)
        np.testing.assert_array_equal(read_mask(str(path)), expected)
        assert any("zero is white" in note for note in open_mask(str(path)).notes)


@pytest.mark.parametrize("grays", [(0, 2), (0, 31), (0, 32), (0, 33), (0, 127)])
def test_a_palette_of_the_grays_that_a_mask_has(tmp_path: Path, grays: tuple[int, ...]) -> None:
    """A class that a mask lacks is left out by programs that make files smaller; bright grays are for the eye."""
    picture = Image.fromarray((PLANES[0] > 99).astype(np.uint8), "P")
    picture.putpalette([value for gray in grays for value in (gray, gray, gray)])
    picture.save(tmp_path / "x.png")
    assert set(np.unique(read_mask(str(tmp_path / "x.png")))) == {0, grays[1] if grays[1] < 32 else 1}


@pytest.mark.parametrize(("planes", "pages"), [(2, 2), (2, 1), (5, 1), (1, 2), (3, 5)])
def test_planes_that_an_ome_text_names_are_those_of_its_file(tmp_path: Path, planes: int, pages: int) -> None:
    """Where they are not, tifffile gives zeros for what is missing, and leaves out what is not named."""
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{PLANES[0].shape[1]}" '
        f'SizeY="{PLANES[0].shape[0]}" SizeZ="{planes}" SizeC="1" SizeT="1"><TiffData/></Pixels></Image></OME>'
    )
    path = tmp_path / "x.ome.tif"
    with tifffile.TiffWriter(path) as writer:
        for n in range(pages):
            writer.write(PLANES[0] + n, description=text if n == 0 else None, metadata=None, contiguous=False)
    if planes == pages:
        np.testing.assert_array_equal(read_image(str(path))[0], np.stack([PLANES[0], PLANES[0] + 1]))
    else:
        with pytest.raises(DataError, match=f"its OME text names {planes} planes"):
            read_image(str(path))


def test_an_ome_image_in_two_files_is_refused(tmp_path: Path) -> None:
    """Either would be read as the whole image, and one alone with zeros in the place of the other."""
    planes = "".join(
        f'<TiffData FirstC="{n}" IFD="0" PlaneCount="1"><UUID FileName="c{n}.ome.tif">urn:uuid:{n}</UUID></TiffData>'
        for n in range(2)
    )
    for n in range(2):
        text = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{n}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" '
            f'SizeX="{PLANES[0].shape[1]}" SizeY="{PLANES[0].shape[0]}" SizeZ="1" SizeC="2" SizeT="1">{planes}'
            "</Pixels></Image></OME>"
        )
        tifffile.imwrite(tmp_path / f"c{n}.ome.tif", PLANES[0] + n, description=text, metadata=None)
    for _ in range(2):
        with pytest.raises(DataError, match="names 2 planes, 1 of them in other files or nowhere"):
            read_image(str(tmp_path / "c0.ome.tif"))
        (tmp_path / "c1.ome.tif").unlink(missing_ok=True)


def test_a_palette_of_imagej_is_for_display(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    green = np.stack([np.zeros(256), np.arange(256), np.zeros(256)]).astype(np.uint8)
    tifffile.imwrite(path, PLANES[0], imagej=True, photometric="palette", colormap=green.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(str(path)), PLANES[:1])
    assert any("display" in note for note in open_image(str(path)).notes)


# --- depths, colors, pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".h5"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", ">u2", "<i4", "uint32", "uint64", ">f8", "int64"])
def test_depths_keep_their_values(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = (FIVE[0] % 100).astype(dtype)
    if np.dtype(dtype).itemsize > 2 and np.dtype(dtype).kind in "ui":
        values[0, 0] = np.iinfo(dtype).max  # beyond what float32 and float64 tell apart
        values[0, 1] = np.iinfo(dtype).max - 1
    path = tmp_path / f"x{suffix}"
    if suffix == ".tif":
        write_tiff(path, values, byteorder=">" if dtype.startswith(">") else "<")
    else:
        save(path, values)
    found = read_image(str(path))[0]
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values)


def test_twelve_packed_bits(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    values = PLANES[0].astype(np.uint16) * 16
    path = write_tiff(tmp_path / "x.tif", values)
    packed = imagecodecs.packints_encode(values, 12)
    data = bytearray(Path(path).read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, tags = (
            page.dataoffsets[0],
            {name: page.tags[name].valueoffset for name in ("BitsPerSample", "StripByteCounts")},
        )
        size = page.tags["StripByteCounts"].dtype
    data[offset : offset + len(packed)] = packed
    data[tags["BitsPerSample"] : tags["BitsPerSample"] + 2] = (12).to_bytes(2, "little")
    width = 2 if size == tifffile.DATATYPE.SHORT else 4
    data[tags["StripByteCounts"] : tags["StripByteCounts"] + width] = len(packed).to_bytes(width, "little")
    Path(path).write_bytes(bytes(data))
    np.testing.assert_array_equal(read_image(path)[0], values)


def test_cmyk(tmp_path: Path) -> None:
    picture = Image.fromarray(np.moveaxis(PLANES[:3], 0, -1)).convert("CMYK")
    picture.save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as opened:
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.jpg")), np.moveaxis(expected, -1, 0))
    picture.save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="its colors are SEPARATED: save it as RGB or gray"):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("mode", ["LAB", "YCbCr"])
def test_other_colors_of_tiff_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (24, 20)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"its colors are .*: save it as RGB or gray"):
        read_image(str(tmp_path / "x.tif"))


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(plane) for plane in FIVE]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animation of 5 frames: save each as an image"):
        read_image(str(tmp_path / "x.png"))


def test_interlaced_png(tmp_path: Path) -> None:
    """Written by hand, for no library here writes one: seven passes of ever more pixels, each row without a filter."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = (b"\0" + row.tobytes() for y, x, dy, dx in passes for row in PLANES[0][y::dy, x::dx])
    height, width = PLANES[0].shape
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks))
    np.testing.assert_array_equal(read_image(str(tmp_path / "x.png"))[0], PLANES[0])


def test_reduced_copies_and_transparency_masks_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(PLANES[0], metadata=None)
        tiff.write(np.zeros((8, 8, 3), np.uint8), photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(PLANES[0] > 9, subfiletype=4, metadata=None)
    np.testing.assert_array_equal(read_image(str(path)), PLANES[:1])
    assert any("not read" in note for note in open_image(str(path)).notes)


def test_a_thumbnail_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(PLANES[0], metadata=None)
        tiff.write(np.zeros((8, 8, 3), np.uint8), photometric="rgb", metadata=None)
    with pytest.raises(
        DataError, match=r"2 pages are 2 images \(20 x 24 uint8, 8 x 8 x 3 uint8\).*thumbnail.* Save the"
    ):
        read_image(str(path))


# --- floats, notes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif"])
def test_traces_of_scaling_are_rounded(tmp_path: Path, suffix: str) -> None:
    labels = FIVE[0] // 70
    noisy = (labels + RNG.normal(0, 1e-7, labels.shape) - 1e-5 * (labels == 1)).astype(np.float32)
    path = save(tmp_path / f"x{suffix}", noisy)
    np.testing.assert_array_equal(read_mask(path), labels)
    noisy[3, 4] += 0.002
    with pytest.raises(DataError, match="integers"):
        read_mask(save(tmp_path / f"y{suffix}", noisy))
    exact = save(tmp_path / f"z{suffix}", labels.astype(np.float32))
    if suffix == ".npz":  # decoded on opening: it is known which are rounded
        assert open_mask(path).notes == ("values within 0.001 of a whole number are rounded",)
        assert open_mask(exact).notes == ()


def test_what_was_done_on_reading_is_said_once_a_kind(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n in range(4):
        Image.fromarray(np.moveaxis(PLANES, 0, -1) ^ np.uint8(n)).save(tmp_path / "images" / f"{n}.png")
        mask = Image.fromarray(PLANES[n] // 200)
        mask.putpalette(VOC)
        mask.save(tmp_path / "masks" / f"{n}.png")
    said = {"4 images: alpha is dropped", "4 masks: the indices of its palette are the labels"}
    for notes in (open_catalog(str(tmp_path)).notes, audit(str(tmp_path)).summary["notes"]):
        assert said == {note for note in notes if re.match(r"\d+ (image|mask)s?: ", note)}


def test_one_thread_at_a_time_loads_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads that load nibabel at once can see each other's half of it: an ImportError, once in many starts."""
    inside, most = [], []

    def load(name: str) -> str:
        inside.append(name)
        most.append(len(inside))
        time.sleep(0.01)
        inside.remove(name)
        return name

    monkeypatch.setattr(stored.importlib, "import_module", load)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(stored.import_once, "abcd")) == list("abcd")
    assert max(most) == 1
