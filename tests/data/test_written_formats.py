"""Masks and probabilities in every format: what is written is read back, with voxel size, unit and place."""

from __future__ import annotations

import errno
import gc
import gzip
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from sizes import around

from ssl_seg.data.formats import nifti, zarr_store
from ssl_seg.data.formats import stored as stored_module
from ssl_seg.data.formats import tiff as tiff_module
from ssl_seg.data.formats.stored import Geometry, LazyArray, iterate_rows
from ssl_seg.data.reading import Reading
from ssl_seg.data.volumes import open_image, open_mask, read_mask, write_mask, write_probabilities
from ssl_seg.errors import DataError
from ssl_seg.files import is_disk_full

VOLUMES = [".tif", ".nii", ".nii.gz", ".npy", ".h5", ".ome.zarr", ".zarr"]


def by_rows(array: NDArray[Any]) -> LazyArray:
    return LazyArray(array.shape, array.dtype, lambda rows: array[rows].copy())


@pytest.fixture(params=["whole", "by rows"])
def give(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is written: an array, or one that is read two rows at a time."""
    monkeypatch.setattr(stored_module, "_ROW_BYTES", 300)
    return by_rows if request.param == "by rows" else lambda array: array


@pytest.mark.parametrize("shape", [(11, 13), (5, 9, 11)])
@pytest.mark.parametrize("suffix", [*VOLUMES, ".png"])
def test_masks_come_back(give: Any, suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    mask, path = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8), tmp_path / f"a{suffix}"
    if suffix == ".png" and len(shape) == 3:
        with pytest.raises(DataError, match=r"written as \.tif"):
            write_mask(path, give(mask))
        return
    for written in (mask, mask[::-1]):  # the second takes the place of the first
        write_mask(path, give(np.ascontiguousarray(written)))
        np.testing.assert_array_equal(read_mask(str(path)), written)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("rows", around(tiff_module._TILE))
@pytest.mark.parametrize("columns", around(tiff_module._TILE))
def test_an_image_of_any_number_of_tiles_comes_back(rows: int, columns: int, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 4, (rows, columns)).astype(np.uint8)
    write_mask(tmp_path / "a.tif", by_rows(mask))
    np.testing.assert_array_equal(read_mask(str(tmp_path / "a.tif")), mask)


@pytest.mark.parametrize("shape", [(11, 13), (5, 9, 11)])
@pytest.mark.parametrize("suffix", VOLUMES)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_probabilities_come_back(give: Any, suffix: str, shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    probs, path = (np.random.default_rng(0).random(shape) * 255).astype(dtype), tmp_path / f"a{suffix}"
    write_probabilities(path, give(probs))
    found = open_image(str(path))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.read()[0], probs)


@pytest.mark.parametrize("unit", ["mm", "µm", "nm", None])
@pytest.mark.parametrize("suffix", [".tif", ".nii", ".ome.zarr"])
@pytest.mark.parametrize("shape", [(11, 13), (5, 9, 11)])
def test_spacing_and_unit_are_kept(
    give: Any, suffix: str, unit: str | None, shape: tuple[int, ...], tmp_path: Path
) -> None:
    spacing = (2.5, 0.5, 0.25)[-len(shape) :]
    path = tmp_path / f"a{suffix}"
    write_mask(path, give(np.ones(shape, np.uint8)), Geometry(spacing, unit=unit))
    found = open_mask(str(path)).geometry
    assert found is not None
    assert found.spacing == spacing
    expected = {(".nii", "nm"): None, (".tif", None): "pixel"}.get((suffix, unit), unit)
    assert found.unit == expected


def test_a_nifti_image_keeps_its_frame(give: Any, tmp_path: Path) -> None:
    """Oblique, flipped and with its axes exchanged: nibabel finds each voxel of the mask where the image has it."""
    affine = np.array([[0, -2, 0.1, 5], [-1.5, 0, 0, 7], [0.1, 0, -3, 9], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).integers(0, 5, (6, 7, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "image.nii.gz")
    image = open_image(str(tmp_path / "image.nii.gz"))
    for name in ("mask.nii", "mask.nii.gz"):
        write_mask(tmp_path / name, give(image.read()[0].astype(np.uint8)), image.geometry)
        found = nibabel.load(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(found.dataobj), voxels)
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert gzip.decompress((tmp_path / "mask.nii.gz").read_bytes()) == (tmp_path / "mask.nii").read_bytes()


def test_an_ome_tiff_keeps_its_resolution(give: Any, tmp_path: Path) -> None:
    sizes = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    units = {f"{name}Unit": "nm" for name in sizes}
    voxels = np.random.default_rng(0).integers(0, 5, (5, 9, 11)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", voxels, ome=True, metadata={"axes": "ZYX", **sizes, **units})
    image = open_image(str(tmp_path / "a.ome.tif"))
    write_mask(tmp_path / "mask.tif", give(image.read()[0]), image.geometry)
    with tifffile.TiffFile(tmp_path / "mask.tif") as tiff:
        np.testing.assert_array_equal(tiff.asarray(), voxels)
        for name, value in (sizes | units).items():
            assert f'{name}="{value}"' in (tiff.ome_metadata or "")


@pytest.mark.parametrize("rows", around(4))
def test_all_rows_are_written(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "_ROW_BYTES", 4 * 30 + 7)
    array = np.arange(rows * 30, dtype=np.uint8).reshape(rows, 5, 6)
    found = list(iterate_rows(by_rows(array)))
    assert [first for first, _ in found] == list(range(0, rows, 4))
    np.testing.assert_array_equal(np.concatenate([part for _, part in found]), array)


@pytest.mark.parametrize("size", around(20))
def test_levels_of_ome_zarr(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zarr_store, "_SMALLEST_LEVEL", 20)
    monkeypatch.setattr(zarr_store, "_CHUNK", {3: (3, 7, 7)})
    mask = np.random.default_rng(0).integers(0, 4, (5, size, 9)).astype(np.uint8)
    write_mask(tmp_path / "a.ome.zarr", by_rows(mask), Geometry((2.0, 1.0, 0.5), unit="µm"))
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    levels = group.attrs["multiscales"][0]["datasets"]
    for number, level in enumerate(levels):
        np.testing.assert_array_equal(group[level["path"]][:], mask[(slice(None, None, 2**number),) * 3])
        assert level["coordinateTransformations"][0]["scale"] == [2.0 * 2**number, 2**number, 0.5 * 2**number]
    assert max(group[levels[-1]["path"]].shape) < 20
    assert len(levels) == 1 or max(group[levels[-2]["path"]].shape) >= 20


class TestLargeCompressedTiff:
    @pytest.fixture(autouse=True)
    def any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiff_module, "BOXES_FROM", 1)

    @pytest.mark.parametrize("shape", [(70, 90), (6, 50, 40), (70, 90, 3)])
    @pytest.mark.parametrize("options", [{"tile": (32, 16)}, {"rowsperstrip": 7}, {}])
    @pytest.mark.parametrize("dtype", ["uint8", ">u2", "float32"])
    def test_boxes_are_those_of_the_whole(
        self, shape: tuple[int, ...], options: dict[str, Any], dtype: str, tmp_path: Path
    ) -> None:
        voxels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
        photometric, axes = ("rgb", "YXS") if shape[-1] == 3 else ("minisblack", "ZYX"[-len(shape) :])
        tifffile.imwrite(
            tmp_path / "a.tif", voxels, compression="zlib", photometric=photometric, metadata={"axes": axes}, **options
        )
        whole, image = (
            open_image(str(tmp_path / "a.tif"), reading=Reading(scratch=scratch)) for scratch in (None, tmp_path)
        )
        assert (whole.by_box, image.by_box) == (False, True)
        assert image.shape == whole.shape
        np.testing.assert_array_equal(image.read(), whole.read())
        box = (slice(2, 5), slice(31, 33), slice(15, 39))[-len(image.shape) + 1 :]
        np.testing.assert_array_equal(image.read(box), whole.read()[(slice(None), *box)])

    @pytest.mark.parametrize("size", around(1000))
    def test_only_large_ones(self, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiff_module, "BOXES_FROM", 1000)
        tifffile.imwrite(
            tmp_path / "a.tif", np.zeros((1, size), np.uint8), compression="zlib", photometric="minisblack"
        )
        assert open_image(str(tmp_path / "a.tif"), reading=Reading(scratch=tmp_path)).by_box == (size >= 1000)

    def test_tiles_that_are_not_stored_are_zero(self, tmp_path: Path) -> None:
        voxels = np.zeros((64, 64), np.uint8)
        voxels[:20, :20] = 7
        with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
            tiles = [voxels[y : y + 32, x : x + 32] if y + x == 0 else None for y in (0, 32) for x in (0, 32)]
            tiff.write(
                iter(tiles), shape=(64, 64), dtype=np.uint8, tile=(32, 32), compression="zlib", photometric="minisblack"
            )
        np.testing.assert_array_equal(
            open_image(str(tmp_path / "a.tif"), reading=Reading(scratch=tmp_path)).read()[0], voxels
        )


def count_open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class TestLargeCompressedNifti:
    """With a scratch folder, it is unpacked there."""

    @pytest.fixture(autouse=True)
    def any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nifti, "BOXES_FROM", 1)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        (tmp_path / "images").mkdir()
        return tmp_path / "images" / "a.nii.gz"

    @pytest.fixture
    def scratch(self, tmp_path: Path) -> Path:
        (tmp_path / "scratch").mkdir()
        return tmp_path / "scratch"

    def write(self, path: Path, dtype: str = "int16", slope: float = 1.0, shape: tuple[int, ...] = (7, 6, 5)) -> None:
        """Write (X, Y, Z), oblique and with an axis the other way round."""
        voxels = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
        affine = np.array([[-2, 0.1, 0, 0], [0, 3, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        image = nibabel.Nifti1Image(voxels, affine)
        image.header.set_slope_inter(slope, 3.0 if slope != 1 else 0.0)
        nibabel.save(image, path)

    @pytest.mark.parametrize("shape", [(7, 6, 5), (9, 8), (7, 6, 5, 2)])
    @pytest.mark.parametrize(("dtype", "slope"), [("int16", 1.0), ("uint8", 0.5), ("float32", 1.0), (">i2", 1.0)])
    def test_boxes_are_those_of_the_whole(
        self, shape: tuple[int, ...], dtype: str, slope: float, path: Path, scratch: Path
    ) -> None:
        self.write(path, dtype, slope, shape)
        whole, image = (open_image(str(path), reading=Reading(scratch=own)) for own in (None, scratch))
        assert (whole.by_box, image.by_box) == (False, True)
        assert (image.shape, image.dtype, image.geometry) == (whole.shape, whole.dtype, whole.geometry)
        np.testing.assert_array_equal(image.read(), whole.read())
        box = (slice(1, 3), slice(2, 5), slice(0, 4))[-len(image.shape) + 1 :]
        np.testing.assert_array_equal(image.read(box), whole.read()[(slice(None), *box)])

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed in /proc")
    def test_nothing_is_left(self, path: Path, scratch: Path) -> None:
        self.write(path)
        before = count_open_files()
        image = open_image(str(path), reading=Reading(scratch=scratch))
        assert list(scratch.iterdir()) == []
        assert count_open_files() == before + 1
        del image
        gc.collect()
        assert count_open_files() == before

    @pytest.mark.parametrize("size", around(1000))
    def test_only_large_ones(self, size: int, path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(nifti, "BOXES_FROM", 352 + 1000)  # the voxels begin behind the header
        self.write(path, "uint8", shape=(size, 1))
        assert open_image(str(path), reading=Reading(scratch=scratch)).by_box == (size >= 1000)

    @pytest.mark.parametrize("damage", ["truncated", "checksum"])
    def test_damaged_files(self, damage: str, path: Path, scratch: Path) -> None:
        self.write(path)
        packed = path.read_bytes()
        path.write_bytes(packed[:-20] if damage == "truncated" else packed[:-8] + bytes(4) + packed[-4:])
        with pytest.raises(DataError, match=r"a\.nii\.gz: cannot be read"):
            open_image(str(path), reading=Reading(scratch=scratch))
        assert list(scratch.iterdir()) == []

    def test_a_folder_that_takes_no_file_is_not_the_fault_of_the_image(
        self, path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(path)
        with pytest.raises(DataError, match=r"missing: a compressed volume cannot be unpacked there") as caught:
            open_image(str(path), reading=Reading(scratch=scratch / "missing"))
        assert not is_disk_full(caught.value)

        def fail(**_: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tempfile, "TemporaryFile", fail)
        with pytest.raises(DataError, match=r"scratch: .* \(No space left on device\)") as caught:
            open_image(str(path), reading=Reading(scratch=scratch))
        assert is_disk_full(caught.value), "the call ends, and further images are not tried"
