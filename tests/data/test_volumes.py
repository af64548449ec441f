"""Reading and writing single files, against Pillow and tifffile as oracles."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ssl_seg.data import synthetic
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.data.volumes import read_image, read_mask, write_mask, write_probabilities
from ssl_seg.errors import DataError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (23, 31), dtype=np.uint8)
COLOR = RNG.integers(0, 256, (23, 31, 3), dtype=np.uint8)
STACK = RNG.integers(0, 256, (5, 12, 14), dtype=np.uint8)


def pillow_bytes(array: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind, **options)
    return buffer.getvalue()


def tiff_bytes(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"photometric": "minisblack"} | options)
    return buffer.getvalue()


def pillow_stack_bytes(compression: str) -> bytes:
    """A multi-page file whose page directories lie between the pages, as libtiff writes them."""
    pages, buffer = [Image.fromarray(page) for page in STACK], io.BytesIO()
    pages[0].save(buffer, format="TIFF", save_all=True, append_images=pages[1:], compression=compression)
    return buffer.getvalue()


def put(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG"])
@pytest.mark.parametrize("array", [GRAY, COLOR], ids=["gray", "color"])
def test_lossless_rasters_equal_pillow(tmp_path: Path, suffix: str, array: np.ndarray) -> None:
    path = put(tmp_path, f"x{suffix}", pillow_bytes(array, suffix[1:].upper()))
    expected = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpg_is_close_to_what_went_in(tmp_path: Path, suffix: str, channels: int) -> None:
    ramp = np.add.outer(np.arange(40), 2 * np.arange(48)).astype(np.uint8)
    array = ramp if channels == 1 else np.stack([ramp, 200 - ramp, ramp // 2], -1)
    image = read_image(put(tmp_path, f"x{suffix}", pillow_bytes(array, "JPEG", quality=98, subsampling=0)))
    expected = ramp[None] if channels == 1 else np.moveaxis(array, -1, 0)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 6


def test_sixteen_bit_png_keeps_its_values(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (9, 7), dtype=np.uint16)
    image = read_image(put(tmp_path, "x.png", pillow_bytes(values, "PNG")))
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[0], values)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_gray_stored_as_rgb_has_one_channel(tmp_path: Path, kind: str) -> None:
    suffix = {"TIFF": "tif"}.get(kind, kind.lower())
    equal = np.repeat(GRAY[..., None], 3, -1)
    np.testing.assert_array_equal(read_image(put(tmp_path, f"x.{suffix}", pillow_bytes(equal, kind))), GRAY[None])
    for channel in range(3):
        nearly = equal.copy()
        nearly[3, 4, channel] ^= 1
        assert len(read_image(put(tmp_path, f"y.{suffix}", pillow_bytes(nearly, kind)))) == 3


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32"])
def test_tiff_stacks_keep_values_and_dtype(tmp_path: Path, compression: str | None, byteorder: str, dtype: str) -> None:
    stack = STACK.astype(dtype) * 3
    image = read_image(put(tmp_path, "x.tif", tiff_bytes(stack, compression=compression, byteorder=byteorder)))
    assert image.dtype == np.dtype(dtype)
    assert image.dtype.isnative
    np.testing.assert_array_equal(image, stack[None])


@pytest.mark.parametrize(
    ("array", "options", "expected"),
    [
        (GRAY, {}, GRAY[None]),
        (COLOR, {"photometric": "rgb"}, np.moveaxis(COLOR, -1, 0)),
        (np.moveaxis(COLOR, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}, np.moveaxis(COLOR, -1, 0)),
        (np.stack([COLOR, COLOR // 2]), {"photometric": "rgb"}, np.moveaxis(np.stack([COLOR, COLOR // 2]), -1, 0)),
        (STACK[:3], {}, STACK[None, :3]),
        (STACK, {"bigtiff": True}, STACK[None]),
        (STACK, {"imagej": True, "metadata": {"axes": "ZYX"}}, STACK[None]),
        (STACK[:, None], {"imagej": True, "metadata": {"axes": "ZCYX"}}, STACK[None]),
        (np.stack([STACK, STACK // 3], 1), {"metadata": {"axes": "ZCYX"}, "ome": True}, np.stack([STACK, STACK // 3])),
        (GRAY > 99, {}, (GRAY > 99)[None].astype(np.uint8)),
    ],
    ids=[
        "gray",
        "rgb",
        "planar",
        "rgb stack",
        "3 pages are no channels",
        "bigtiff",
        "imagej",
        "one channel",
        "ome",
        "1 bit",
    ],
)
def test_tiff_layouts(tmp_path: Path, array: np.ndarray, options: dict[str, object], expected: np.ndarray) -> None:
    image = read_image(put(tmp_path, "x.tiff", tiff_bytes(array, **options)))
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
def test_multi_page_tiff_of_another_writer(tmp_path: Path, compression: str) -> None:
    np.testing.assert_array_equal(read_image(put(tmp_path, "x.tif", pillow_stack_bytes(compression))), STACK[None])


@pytest.mark.parametrize("compression", ["lzw", "zstd", "packbits", "lzma"])
def test_further_codecs(tmp_path: Path, compression: str) -> None:
    pytest.importorskip("imagecodecs")
    np.testing.assert_array_equal(
        read_image(put(tmp_path, "x.tif", tiff_bytes(STACK, compression=compression)))[0], STACK
    )


def test_synthetic_locations_are_read() -> None:
    image, mask = synthetic.generate("particles", 7)
    np.testing.assert_array_equal(read_image("synthetic:particles/0007"), image[None])
    np.testing.assert_array_equal(read_mask("synthetic:particles/0007"), mask)


def test_real_images_equal_pillow_and_tifffile(emps_dir: Path, la_half_dir: Path) -> None:
    for path in sorted((emps_dir / "images").iterdir())[:5]:
        np.testing.assert_array_equal(read_image(str(path))[0], np.asarray(Image.open(path)))
    path = min((la_half_dir / "masks").iterdir())
    np.testing.assert_array_equal(read_mask(str(path)), tifffile.imread(path))


# --- what is refused ------------------------------------------------------------------------------------------------

WHOLE = {
    "gray.png": pillow_bytes(GRAY, "PNG"),
    "color.png": pillow_bytes(COLOR, "PNG"),
    "gray.jpg": pillow_bytes(GRAY, "JPEG"),
    "progressive.jpg": pillow_bytes(COLOR, "JPEG", progressive=True),
    "gray.bmp": pillow_bytes(GRAY, "BMP"),
    "zlib.tif": tiff_bytes(STACK, compression="zlib"),
    "zlib_be.tif": tiff_bytes(STACK, compression="zlib", byteorder=">"),
    "zlib_big.tif": tiff_bytes(STACK, compression="zlib", bigtiff=True),
    "plain.tif": tiff_bytes(STACK),
    "pages.tif": pillow_stack_bytes("raw"),
    "deflate_pages.tif": pillow_stack_bytes("tiff_adobe_deflate"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_file_is_refused_quietly(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = WHOLE[name]
    whole = read_image(put(tmp_path, name, data))
    offsets = [*range(0, len(data), max(1, len(data) // 120)), *range(len(data) - 24, len(data))]
    for offset in offsets:
        path = put(tmp_path, name, data[:offset])
        try:
            image = read_image(path)
        except DataError as error:
            assert path in str(error)  # noqa: PT017 - most offsets raise, some need not
        else:
            # Bytes behind the pixels may be missing (padding, an unused table), but never pixels.
            assert not name.endswith(".jpg"), f"{name} cut at {offset} of {len(data)} was accepted"
            np.testing.assert_array_equal(image, whole)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", WHOLE)
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(WHOLE[name])
        for position in rng.integers(0, min(len(data), 600), 2):
            data[position] ^= int(rng.integers(1, 256))
        try:
            read_image(put(tmp_path, name, bytes(data)))
        except DataError as error:
            assert name in str(error)  # noqa: PT017


def test_a_flipped_pixel_byte_of_a_png_is_noticed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(WHOLE["gray.png"])
    data[len(data) // 2] ^= 1
    with pytest.raises(DataError, match="checksum"):
        read_image(put(tmp_path, "x.png", bytes(data)))
    assert capfd.readouterr() == ("", "")


def test_a_jpg_preview_does_not_hide_a_missing_end(tmp_path: Path) -> None:
    whole = WHOLE["gray.jpg"]
    exif = b"\xff\xe1" + struct.pack(">H", 2 + len(whole)) + whole
    with_preview = whole[:2] + exif + whole[2:]
    assert read_image(put(tmp_path, "x.jpg", with_preview)).shape == (1, *GRAY.shape)
    with pytest.raises(DataError, match="truncated"):
        read_image(put(tmp_path, "x.jpg", with_preview[:-2]))


def test_fill_bytes_between_jpg_markers_are_allowed(tmp_path: Path) -> None:
    whole = WHOLE["gray.jpg"]
    filled = read_image(put(tmp_path, "x.jpg", whole[:2] + b"\xff\xff" + whole[2:]))
    np.testing.assert_array_equal(filled, read_image(put(tmp_path, "y.jpg", whole)))


def test_bmp_with_a_short_header(tmp_path: Path) -> None:
    """The header of OS/2 has 12 bytes instead of 40; OpenCV would read such a color image as gray."""
    rows = b"".join(row[:, ::-1].tobytes() + bytes(-row.nbytes % 4) for row in COLOR[::-1])
    header = struct.pack("<IHHHH", 12, COLOR.shape[1], COLOR.shape[0], 1, 24)
    data = b"BM" + struct.pack("<IHHI", 26 + len(rows), 0, 0, 26) + header + rows
    np.testing.assert_array_equal(read_image(put(tmp_path, "x.bmp", data)), np.moveaxis(COLOR, -1, 0))


def test_a_page_that_tifffile_gives_up_on_is_not_left_out(tmp_path: Path) -> None:
    data = bytearray(pillow_stack_bytes("raw"))
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        third = tiff.pages[2].offset
    data[third : third + 2] = struct.pack("<H", 4200)  # tags; tifffile stops at a directory with more than 4096
    with pytest.raises(DataError, match="only 2 of its 3 pages"):
        read_image(put(tmp_path, "x.tif", bytes(data) + bytes(60_000)))


def test_page_directories_in_a_loop_are_refused(tmp_path: Path) -> None:
    data = bytearray(pillow_stack_bytes("raw"))
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[4].offset
    (tags,) = struct.unpack("<H", data[last : last + 2])
    data[last + 2 + 12 * tags : last + 6 + 12 * tags] = struct.pack("<I", first)
    with pytest.raises(DataError, match="loop"):
        read_image(put(tmp_path, "x.tif", bytes(data)))


def test_no_file_no_bytes_no_image(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    cases = {
        str(tmp_path / "missing.png"): "no such file",
        str(tmp_path / "folder.png"): "cannot be opened",
        put(tmp_path, "empty.tif", b""): "empty",
        put(tmp_path, "text.png", b"not an image at all"): "not valid PNG",
        put(tmp_path, "other.png", WHOLE["gray.jpg"]): "looks like .jpg",
        put(tmp_path, "x.npy", b"abc"): "not valid NPY",
        put(tmp_path, "x.txt", b"abc"): "unknown suffix",
        put(tmp_path, "photo.jpg", pillow_bytes(COLOR, "WEBP")): "is a WebP picture: save it as PNG",
        put(tmp_path, "clip.png", pillow_bytes(GRAY, "GIF")): "is a GIF picture",
        put(tmp_path, "phone.jpg", b"\0\0\0\x24ftypheic" + bytes(40)): "is an AVIF or HEIC picture",
        put(tmp_path, "lfs.nii.gz", b"version https://git-lfs.github.com/spec/v1\n"): "run git lfs pull",
        put(tmp_path, "page.tif", b"<!DOCTYPE html><html>"): "is a web page: download",
        put(tmp_path, "broken.png", WHOLE["gray.png"][:11]): "its header is damaged",
    }
    for location, reason in cases.items():
        with pytest.raises(DataError, match=reason) as raised:
            read_image(location)
        assert location in str(raised.value)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb_png() -> bytes:
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def bomb_jpg() -> bytes:
    data = bytearray(WHOLE["gray.jpg"])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def bomb_bmp() -> bytes:
    data = bytearray(WHOLE["gray.bmp"])
    data[18:26] = struct.pack("<ii", 30_000, 30_000)
    return bytes(data)


def bomb_tiff(compression: str | None) -> bytes:
    buffer = io.BytesIO(tiff_bytes(GRAY, compression=compression, metadata=None))
    with tifffile.TiffFile(buffer, mode="r+") as tiff:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tiff.pages[0].tags[tag].overwrite(60_000)
        return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.png", bomb_png()),
        ("x.jpg", bomb_jpg()),
        ("x.bmp", bomb_bmp()),
        ("x.tif", bomb_tiff("zlib")),
        ("x.tif", bomb_tiff(None)),
    ],
    ids=["png", "jpg", "bmp", "tif zlib", "tif"],
)
def test_a_header_that_claims_too_much_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=r"claims|beyond its end"):
        read_image(put(tmp_path, name, data))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused(tmp_path: Path, bad: float) -> None:
    values = GRAY.astype(np.float32)
    values[2, 3] = bad
    with pytest.raises(DataError, match="1 of 713 values are NaN or infinite"):
        read_image(put(tmp_path, "x.tif", tiff_bytes(values)))
    mask = np.where(np.isfinite(values), 1.0, bad)
    np.save(tmp_path / "x_mask.npy", mask)
    for reading in (AS_STORED, Reading(nonfinite="ignore"), Reading(fractions=True)):
        with pytest.raises(DataError, match=r"1 of 713 mask values are NaN or infinite.*data\.ignore_value=255"):
            read_mask(str(tmp_path / "x_mask.npy"), reading=reading)


WITHOUT_CODECS = """
import sys
sys.modules["imagecodecs"] = None
from pathlib import Path
import numpy as np
from ssl_seg.data.volumes import read_image, read_mask, write_mask
from ssl_seg.errors import DataError
folder = Path(sys.argv[1])
mask = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
write_mask(folder / "mask.tif", mask)
np.testing.assert_array_equal(read_mask(str(folder / "mask.tif")), mask)
try:
    read_image(str(folder / "lzw.tif"))
except DataError as error:
    sys.exit(str(error))
"""


def test_without_imagecodecs_zlib_works_and_others_say_what_to_install(tmp_path: Path) -> None:
    put(tmp_path, "lzw.tif", pillow_bytes(GRAY, "TIFF", compression="tiff_lzw"))
    command = [sys.executable, "-c", WITHOUT_CODECS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (tmp_path / "mask.tif").exists(), done.stderr
    assert str(tmp_path / "lzw.tif") in done.stderr
    assert "LZW" in done.stderr
    assert "pip install 'ssl-seg[codecs]'" in done.stderr
    assert "Traceback" not in done.stderr


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.int16])
def test_a_mask_of_another_type_comes_as_integers(tmp_path: Path, dtype: type) -> None:
    labels = RNG.integers(0, 2, (9, 8)).astype(dtype)
    mask = read_mask(put(tmp_path, "x.tif", tiff_bytes(labels)))
    assert np.issubdtype(mask.dtype, np.integer)
    np.testing.assert_array_equal(mask, labels)


@pytest.mark.parametrize("value", [0.5, 1e12])
def test_a_mask_of_fractions_is_refused(tmp_path: Path, value: float) -> None:
    values = np.zeros((4, 5), np.float32)
    values[1, 1] = value
    with pytest.raises(DataError, match="integers"):
        read_mask(put(tmp_path, "x.tif", tiff_bytes(values)))


def test_colored_masks_are_refused_and_jpg_masks_are_read_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="colors"):
        read_mask(put(tmp_path, "x.png", pillow_bytes(COLOR, "PNG")))
    assert read_mask(put(tmp_path, "x.jpg", WHOLE["gray.jpg"])).dtype == np.uint8


@settings(deadline=None, max_examples=40)
@given(
    mask=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int64]),
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6),
        elements=st.integers(0, 255),
    )
)
def test_masks_survive_a_round_trip(tmp_path_factory: pytest.TempPathFactory, mask: np.ndarray) -> None:
    # A stack of one slice comes back as an image: a TIFF does not tell them apart.
    path = tmp_path_factory.mktemp("mask") / ("x.png" if mask.ndim == 2 else "x.tif")
    write_mask(path, mask)
    np.testing.assert_array_equal(read_mask(str(path)), mask[0] if mask.ndim == 3 and len(mask) == 1 else mask)


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("x.png", np.zeros((2, 3, 4), int)),
        ("x.jpg", np.zeros((3, 4), int)),
        ("x.png", np.zeros(4, int)),
        ("x.png", np.full((3, 4), 65536)),
        ("x.png", np.full((3, 4), -1)),
    ],
)
def test_masks_that_do_not_fit_their_file_are_refused(tmp_path: Path, name: str, mask: np.ndarray) -> None:
    with pytest.raises(DataError):
        write_mask(tmp_path / name, mask)
    assert list(tmp_path.iterdir()) == []


def test_probabilities_survive_exactly(tmp_path: Path) -> None:
    for shape in [(7, 8), (3, 7, 8)]:
        probs = RNG.random(shape, dtype=np.float32)
        write_probabilities(tmp_path / "p.tif", probs)
        image = read_image(str(tmp_path / "p.tif"))
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image[0], probs)
    with pytest.raises(DataError, match=r"\.tif"):
        write_probabilities(tmp_path / "p.png", probs)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tif"
    write_mask(path, STACK)

    def half_a_file(file: Path, *_: object, **__: object) -> None:
        Path(file).write_bytes(b"II*\0")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", half_a_file)
    with pytest.raises(DataError, match="No space left"):
        write_mask(path, STACK * 0)
    np.testing.assert_array_equal(read_mask(str(path)), STACK)
    assert list(tmp_path.iterdir()) == [path]
