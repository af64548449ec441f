"""The store: cases in memory or by box, on the grid of the file or another one, and decoded copies on disk."""

from __future__ import annotations

import os
import pickle
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from sizes import around

from ssl_seg.config import AugmentConfig
from ssl_seg.data import disk_cache
from ssl_seg.data import store as store_module
from ssl_seg.data.catalog import Catalog, CatalogSettings, open_catalog
from ssl_seg.data.disk_cache import DiskCache, fill_disk_cache, open_disk_cache
from ssl_seg.data.formats.stored import LazyArray
from ssl_seg.data.loader import PatchSource
from ssl_seg.data.reading import Reading
from ssl_seg.data.store import CaseStore, _choose_ranks, _find_points, cut_unit, decoded_bytes
from ssl_seg.errors import DataError
from ssl_seg.labels import Meaning

SHAPE = (12, 20, 24)


def volume(seed: int, shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 200, shape).astype(np.uint8)


def write(folder: Path, count: int = 2, *, compressed: bool = False) -> Path:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for n in range(count):
        image = volume(n)
        for name, array in (("images", image), ("masks", (image > 150).astype(np.uint8) + (image > 190))):
            options: dict[str, Any] = {"compression": "zlib"} if compressed else {}
            tifffile.imwrite(folder / name / f"{n}.tif", array, photometric="minisblack", **options)
    return folder


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(write(tmp_path / "plain")))


class TestByBox:
    @pytest.mark.parametrize("start", [(0, 0, 0), (4, 9, 15), (-2, -3, 18)])
    def test_a_box_is_that_of_the_array_in_memory(self, catalog: Catalog, start: tuple[int, ...]) -> None:
        near, far = CaseStore(catalog, 1).load("1"), CaseStore(catalog, 1, max_bytes=1).load("1")
        assert isinstance(near.image, np.ndarray)
        assert isinstance(far.image, LazyArray)
        assert isinstance(far.target, LazyArray)
        np.testing.assert_allclose(cut_unit(far, start, (8, 8, 8)), cut_unit(near, start, (8, 8, 8)), atol=1e-6)
        assert near.target is not None
        inside = tuple(slice(max(s, 0), s + 8) for s in start)
        np.testing.assert_array_equal(far.target[(Ellipsis, *inside)], near.target[inside])
        assert far.target.dtype == near.target.dtype

    def test_statistics_and_foreground_are_found_without_the_whole(self, catalog: Catalog) -> None:
        near, far = CaseStore(catalog, 1).load("0"), CaseStore(catalog, 1, max_bytes=1).load("0")
        for name in ("low", "high", "mean", "std"):
            np.testing.assert_allclose(getattr(far.intensity, name), getattr(near.intensity, name), rtol=1e-6)
        assert len(far.foreground) == len(near.foreground) == 2
        for got, expected in zip(far.foreground, near.foreground, strict=True):
            np.testing.assert_array_equal(got, expected)
        assert far.nbytes < near.nbytes

    @pytest.mark.parametrize("kind", ["noise", "constant", "offset", "gaps"])
    def test_a_volume_of_one_channel_is_not_read_for_its_statistics(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        image = volume(3).astype(np.float64)
        if kind == "constant":
            image[:] = 7
        if kind == "offset":
            image += 1e9
        if kind == "gaps":
            image[2:5] = np.nan
        (tmp_path / "images").mkdir()
        np.save(tmp_path / "images" / "a.npy", image)
        data = open_catalog(str(tmp_path), CatalogSettings(reading=Reading(nonfinite="ignore")))
        near = CaseStore(data, 3).load("a").intensity
        monkeypatch.setattr(store_module, "iterate_blocks", None)
        far = CaseStore(data, 3, 1).load("a").intensity
        for got, wanted in zip(astuple(far), astuple(near), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-12)

    def test_points_of_many_blocks_have_their_rows(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ssl_seg.data.blocks.iterate_blocks.__defaults__", (1,))
        expected = CaseStore(catalog, 1).load("0").foreground
        for got, wanted in zip(CaseStore(catalog, 1, max_bytes=1).load("0").foreground, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)

    def test_a_gray_volume_is_repeated(self, catalog: Catalog) -> None:
        far = CaseStore(catalog, 3, max_bytes=1).load("0")
        patch = cut_unit(far, (0, 0, 0), (4, 4, 4))
        assert patch.shape == (3, 4, 4, 4)
        np.testing.assert_array_equal(patch[0], patch[2])

    def test_it_can_be_sent_to_another_process(self, catalog: Catalog) -> None:
        store = CaseStore(catalog, 1, max_bytes=1)
        store.load("0")
        copy = pickle.loads(pickle.dumps(store))
        np.testing.assert_array_equal(
            cut_unit(copy.load("0"), (0, 0, 0), (4, 4, 4)), cut_unit(store.load("0"), (0, 0, 0), (4, 4, 4))
        )

    def test_only_if_the_data_set_does_not_fit(self, catalog: Catalog) -> None:
        size = decoded_bytes(catalog)
        assert size == 2 * 3 * np.prod(SHAPE)
        assert isinstance(CaseStore(catalog, 1, max_bytes=size).load("0").image, np.ndarray)
        assert isinstance(CaseStore(catalog, 1, max_bytes=size - 1).load("0").image, LazyArray)

    def test_an_image_and_its_mask_in_one_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk_cache, "WORTH_A_COPY", 1)
        for n in range(2):
            arrays = {"image": volume(n), "label": (volume(n) > 150).astype(np.uint8)}
            np.savez_compressed(tmp_path / f"{n}.npz", **arrays)
            with h5py.File(tmp_path / f"{n + 2}.h5", "w") as file:
                for key, array in arrays.items():
                    file.create_dataset(key, data=array, compression="gzip")
        names = ["0.npz", "1.npz", "2.h5", "3.h5"]
        (tmp_path / "manifest.csv").write_text("image,mask\n" + "".join(f"{name},{name}\n" for name in names))
        catalog = open_catalog(str(tmp_path))
        cache = DiskCache(tmp_path / "cache", 2**30)
        assert fill_disk_cache(cache, catalog) is None
        for store in (CaseStore(catalog, 1, 1), CaseStore(catalog, 1, 1, disk_cache=cache)):
            for case in catalog.cases:
                target = store.load(case.id).target
                assert target is not None
                np.testing.assert_array_equal(
                    target[(Ellipsis, *(slice(0, n) for n in SHAPE))], volume(int(case.id) % 2) > 150
                )

    def test_a_mask_that_is_decoded_anyway_counts_for_the_limit(self, tmp_path: Path) -> None:
        folder = write(tmp_path / "mixed")
        for path in (folder / "masks").iterdir():
            tifffile.imwrite(path, tifffile.imread(path), compression="zlib", photometric="minisblack")
        case = CaseStore(open_catalog(str(folder)), 1, max_bytes=1).load("0")
        assert isinstance(case.image, LazyArray)
        assert isinstance(case.target, np.ndarray)
        assert case.nbytes >= case.target.nbytes

    def test_remembered_voxels_do_not_depend_on_the_blocks(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ssl_seg.data.store.FOREGROUND_POINTS", 100)
        expected = CaseStore(catalog, 1).load("0").foreground
        assert 100 <= len(expected[0]) < 250
        monkeypatch.setattr("ssl_seg.data.blocks.iterate_blocks.__defaults__", (1,))
        for got, wanted in zip(CaseStore(catalog, 1, max_bytes=1).load("0").foreground, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)

    @pytest.mark.parametrize("block_bytes", [1, 2**20])
    @pytest.mark.parametrize("voxels", [0, 1, *around(10), 19, 20, 21])
    def test_how_many_voxels_of_a_class_are_remembered(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voxels: int, block_bytes: int
    ) -> None:
        """All below twice the number; else one of every n, no fewer than the number and no more than twice as many."""
        monkeypatch.setattr("ssl_seg.data.store.FOREGROUND_POINTS", 10)
        monkeypatch.setattr("ssl_seg.data.blocks.iterate_blocks.__defaults__", (block_bytes,))
        folder = write(tmp_path / "few", 1)
        mask = np.zeros(SHAPE, np.uint8)
        places = np.sort(np.random.default_rng(voxels).choice(mask.size, voxels, replace=False))
        mask.flat[places] = 1
        tifffile.imwrite(folder / "masks" / "0.tif", mask, photometric="minisblack")
        catalog = open_catalog(str(folder), CatalogSettings(meaning=Meaning(label_values=(0, 1))))
        for max_bytes in (2**31, 1):
            foreground = CaseStore(catalog, 1, max_bytes).load("0").foreground
            points = np.concatenate([np.empty((0, 3), int), *foreground])
            ranks = np.searchsorted(places, remembered := np.ravel_multi_index(tuple(points.T), SHAPE))
            np.testing.assert_array_equal(places[ranks], remembered)
            np.testing.assert_array_equal(ranks // max(1, voxels // 10), range(len(points)))
            assert min(voxels, 10) <= len(points) < 20

    @pytest.mark.parametrize("width", [32, 64, 96, 256])
    def test_the_remembered_voxels_are_spread_over_all_columns(self, width: int) -> None:
        """One voxel in 64 is remembered: every 64-th would lie in few columns of such widths."""
        rows = 4 * 2**17 // width
        target = np.ones((rows, width), np.int16)
        target[:, width // 2 :] = 2
        points, each, _ = _find_points([(0, target)], [0, *[target.size // 2] * 2])
        assert [len(p) // 4096 for p in points] == [1, 1]
        assert [len(p) * n // (target.size // 2 + n) for p, n in zip(points, each, strict=True)] == [0, 0]
        for where, first in zip(points, (0, width // 2), strict=True):
            seen = np.bincount(where[:, 1] - first, minlength=width // 2)
            assert chisquare(seen).pvalue > 1e-4

    def test_every_voxel_is_remembered_equally_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ssl_seg.data.store.FOREGROUND_POINTS", 10)
        monkeypatch.setattr("ssl_seg.data.store.derive_rng", lambda _: rng)
        for count in (19, 20, 21, 29, 30, 31, 105):
            rng = np.random.default_rng(0)
            often = sum(np.bincount(_choose_ranks(count), minlength=count) for _ in range(3000))
            stride = max(1, count // 10)
            np.testing.assert_allclose(often, 3000 / stride, atol=5 * (3000 * (stride - 1)) ** 0.5 / stride)

    @pytest.mark.parametrize("spacing", [0.5, 1.0, 2.0])
    def test_on_another_grid_the_voxels_of_that_grid_are_remembered(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spacing: float
    ) -> None:
        monkeypatch.setattr("ssl_seg.data.store.FOREGROUND_POINTS", 10)
        catalog = open_catalog(str(write(tmp_path / "grid", 1)), CatalogSettings(spacing=(1.0, 1.0, 1.0)))
        case = CaseStore(catalog, 1, resample_to=(spacing,) * 3).load("0")
        assert isinstance(case.target, np.ndarray)
        for index, points in enumerate(case.foreground, start=1):
            count = int((case.target == index).sum())
            assert min(count, 10) <= len(points) <= min(count, 19)
            assert (case.target[tuple(points.T)] == index).all()

    def test_the_whole_can_still_be_had(self, catalog: Catalog) -> None:
        whole = CaseStore(catalog, 1, max_bytes=1).load_whole("1")
        np.testing.assert_array_equal(whole.image[0], volume(1))
        np.testing.assert_array_equal(whole.target, (volume(1) > 150).astype(int) + (volume(1) > 190))


class TestDiskCache:
    @pytest.fixture(autouse=True)
    def small_files_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(disk_cache, "WORTH_A_COPY", 1)

    @pytest.fixture
    def compressed(self, tmp_path: Path) -> Catalog:
        return open_catalog(str(write(tmp_path / "zlib", compressed=True)))

    def test_compressed_volumes_become_mappable(self, compressed: Catalog, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path / "cache", 2**30)
        assert not isinstance(CaseStore(compressed, 1, 1, disk_cache=cache).load("0").image, LazyArray)
        assert fill_disk_cache(cache, compressed) is None
        assert len(list(cache.folder.iterdir())) == 4
        far, near = CaseStore(compressed, 1, 1, disk_cache=cache).load("0"), CaseStore(compressed, 1).load("0")
        assert isinstance(far.image, LazyArray)
        np.testing.assert_allclose(cut_unit(far, (2, 3, 4), (8, 8, 8)), cut_unit(near, (2, 3, 4), (8, 8, 8)), atol=1e-6)
        assert near.target is not None
        assert far.target is not None
        box = (Ellipsis, slice(0, 5), slice(0, 5), slice(0, 5))
        np.testing.assert_array_equal(far.target[box], near.target[box])

    def test_written_once(self, compressed: Catalog, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path / "cache", 2**30)
        fill_disk_cache(cache, compressed)
        before = {p.name: p.stat().st_mtime_ns for p in cache.folder.iterdir()}
        fill_disk_cache(cache, compressed)
        assert {p.name: p.stat().st_mtime_ns for p in cache.folder.iterdir()} == before

    def test_the_copy_of_a_file_that_changed_is_not_used(self, compressed: Catalog, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path / "cache", 2**30)
        location = compressed.case("0").image
        fill_disk_cache(cache, compressed)
        assert cache.find(location) is not None
        tifffile.imwrite(location, volume(99), compression="zlib", photometric="minisblack")
        assert cache.find(location) is None

    def test_the_limit_holds_and_is_said(self, compressed: Catalog, tmp_path: Path) -> None:
        size = int(np.prod(SHAPE))
        cache = DiskCache(tmp_path / "cache", int(2.5 * size))
        note = fill_disk_cache(cache, compressed)
        assert note is not None
        assert "1 volume has no decoded copy" in note
        assert sum(p.stat().st_size for p in cache.folder.iterdir()) <= cache.max_bytes
        assert len(list(cache.folder.iterdir())) == 2

    @pytest.mark.parametrize("room", [-1, 0, 1])
    @pytest.mark.parametrize("copies", [1, 2, 4])
    def test_exactly_as_many_copies_as_there_is_room_for(
        self, compressed: Catalog, tmp_path: Path, copies: int, room: int
    ) -> None:
        """Four files, image and mask of two volumes, in copies of one size: with one byte less, one copy less."""
        assert fill_disk_cache(DiskCache(tmp_path / "all", 2**30), compressed) is None
        (size,) = {p.stat().st_size for p in (tmp_path / "all").iterdir()}
        cache = DiskCache(tmp_path / "cache", copies * size + room)
        note = fill_disk_cache(cache, compressed)
        written = [p.stat().st_size for p in cache.folder.glob("*")]
        assert len(written) == copies - (room < 0)
        assert sum(written) <= cache.max_bytes
        assert (note is None) == (len(written) == 4)

    @pytest.mark.parametrize("missing", [0, 1])
    @pytest.mark.parametrize(("total", "left_free"), [(2000 * 2**30, 10 * 2**30), (50 * 2**30, 5 * 2**30)])
    def test_a_part_of_the_disk_is_left_free(
        self,
        compressed: Catalog,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        total: int,
        left_free: int,
        missing: int,
    ) -> None:
        monkeypatch.setattr(disk_cache, "LEFT_FREE", 10 * 2**30)
        free = left_free + int(np.prod(SHAPE)) + 128 - missing
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=total, free=free))
        note = fill_disk_cache(DiskCache(tmp_path / "cache", 2**30), compressed)
        assert len(list((tmp_path / "cache").glob("*"))) == (0 if missing else 4)
        assert note is None or ("2 volumes" in note and "SSL_SEG_CACHE" in note and "disk_cache_gb" not in note)
        assert (note is None) == (not missing)

    @pytest.mark.parametrize("least", [-1, 0, 1])
    def test_a_copy_pays_from_a_size_on(
        self, compressed: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int
    ) -> None:
        monkeypatch.setattr(disk_cache, "WORTH_A_COPY", int(np.prod(SHAPE)) + least)
        cache = DiskCache(tmp_path / "cache", 2**30)
        assert fill_disk_cache(cache, compressed) is None
        assert len(list(cache.folder.glob("*"))) == (0 if least > 0 else 4)

    def test_what_can_be_read_by_box_needs_no_copy(self, catalog: Catalog, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path / "cache", 2**30)
        assert fill_disk_cache(cache, catalog) is None
        assert not cache.folder.exists()

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The files that are opened to be copied."""
        found: list[str] = []
        for name in ("open_image", "open_mask"):
            whole = getattr(disk_cache, name)

            def count(*locations: str, whole: Any = whole, **options: Any) -> Any:
                found.append(locations[0])
                return whole(*locations, **options)

            monkeypatch.setattr(disk_cache, name, count)
        return found

    def test_a_full_cache_decodes_nothing(self, compressed: Catalog, tmp_path: Path, opened: list[str]) -> None:
        assert "2 volumes" in str(fill_disk_cache(DiskCache(tmp_path / "cache", 100), compressed))
        assert opened == []

    def test_what_is_copied_is_opened_once(self, compressed: Catalog, tmp_path: Path, opened: list[str]) -> None:
        for _ in range(2):
            fill_disk_cache(DiskCache(tmp_path / "cache", 2**30), compressed)
            assert len(opened) == 4

    def test_what_has_no_copy_is_not_even_opened(self, catalog: Catalog, tmp_path: Path, opened: list[str]) -> None:
        (tmp_path / "rgb" / "images").mkdir(parents=True)
        color = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "rgb" / "images" / "a.png"), color)
        for data in (catalog, open_catalog(str(tmp_path / "rgb"))):
            assert fill_disk_cache(DiskCache(tmp_path / "cache", 2**30), data) is None
        assert opened == []

    def test_the_copies_are_measured_once(
        self, compressed: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured: list[Path] = []
        monkeypatch.setattr(DiskCache, "measure", lambda cache: measured.append(cache.folder) or 0)
        fill_disk_cache(DiskCache(tmp_path / "cache", 2**30), compressed)
        assert len(list((tmp_path / "cache").iterdir())) == 4
        assert len(measured) == 1

    @pytest.mark.parametrize("age", [-10, 10])
    def test_half_written_copies_count_until_they_are_left_behind(self, tmp_path: Path, age: int) -> None:
        part, copy = tmp_path / ".a.npy.1234abcd.part", tmp_path / "b.npy"
        for path, size in ((part, 100), (copy, 30)):
            path.write_bytes(b"0" * size)
        changed = time.time() - disk_cache.LEFT_BEHIND - age
        for path in (part, copy):
            os.utime(path, (changed, changed))
        assert DiskCache(tmp_path, 2**30).measure() == (130 if age < 0 else 30)
        assert part.exists() == (age < 0)
        assert copy.exists()

    def test_processes_that_fill_it_at_once(self, compressed: Catalog, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path / "cache", 2**30)
        with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
            assert list(pool.map(fill_disk_cache, [cache] * 6, [compressed] * 6)) == [None] * 6
        assert len(list(cache.folder.iterdir())) == 4
        near = CaseStore(compressed, 1).load("0")
        far = CaseStore(compressed, 1, 1, disk_cache=cache).load("0")
        np.testing.assert_allclose(cut_unit(far, (0, 0, 0), (8, 8, 8)), cut_unit(near, (0, 0, 0), (8, 8, 8)), atol=1e-6)

    def test_a_folder_that_cannot_be_written(self, compressed: Catalog, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="SSL_SEG_CACHE"):
            fill_disk_cache(DiskCache(tmp_path / "file" / "cache", 2**30), compressed)

    def test_where_it_is(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("SSL_SEG_CACHE", str(tmp_path))
        found = open_disk_cache(0.5)
        assert found == DiskCache(tmp_path, 2**29)
        assert open_disk_cache(0) is None


class TestResampling:
    @pytest.fixture
    def scans(self, tmp_path: Path) -> Catalog:
        """One volume whose slices are 3 apart, voxels 1 x 1 in the plane."""
        for name in ("imagesTr", "labelsTr"):
            (tmp_path / name).mkdir()
        image = np.repeat(np.arange(8, dtype=np.float32), 10 * 12).reshape(8, 10, 12)
        mask = (image >= 4).astype(np.uint8)
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        nib.save(nib.Nifti1Image(image.transpose(2, 1, 0), affine), tmp_path / "imagesTr" / "a_0000.nii.gz")
        nib.save(nib.Nifti1Image(mask.transpose(2, 1, 0), affine), tmp_path / "labelsTr" / "a.nii.gz")
        (tmp_path / "dataset.json").write_text(
            '{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}'
        )
        return open_catalog(str(tmp_path))

    def test_the_network_sees_the_new_grid(self, scans: Catalog) -> None:
        case = CaseStore(scans, 1, resample_to=(1.0, 1.0, 2.0)).load("a")
        assert case.image.shape == (1, 24, 10, 6)
        assert isinstance(case.target, np.ndarray)
        assert case.target.shape == (24, 10, 6)
        np.testing.assert_array_equal(case.target[:12], 0)
        np.testing.assert_array_equal(case.target[12:], 1)
        assert isinstance(case.image, np.ndarray)

    def test_the_whole_case_stays_on_its_own(self, scans: Catalog) -> None:
        whole = CaseStore(scans, 1, resample_to=(1.0, 1.0, 2.0)).load_whole("a")
        assert whole.image.shape == (1, 8, 10, 12)
        assert whole.spacing == pytest.approx((3.0, 1.0, 1.0))

    def test_a_given_spacing_wins(self, scans: Catalog) -> None:
        given = open_catalog(scans.root, CatalogSettings(spacing=(2.0, 1.0, 1.0)))
        store = CaseStore(given, 1, resample_to=(1.0, 1.0, 1.0))
        assert store.load("a").image.shape == (1, 16, 10, 12)
        assert store.load_whole("a").spacing == (2.0, 1.0, 1.0)
        other_axes = open_catalog(scans.root, CatalogSettings(spacing=(2.0, 1.0)))
        assert other_axes.facts["a"].spacing == scans.facts["a"].spacing

    @pytest.mark.parametrize("to", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (6.0, 2.0, 2.0)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_memory_is_that_of_the_new_grid(self, scans: Catalog, to: tuple[float, ...], channels: int) -> None:
        loaded = CaseStore(scans, channels, resample_to=to).load("a")
        assert isinstance(loaded.image, np.ndarray)
        assert isinstance(loaded.target, np.ndarray)
        size = loaded.image.nbytes // channels + loaded.target.nbytes
        assert decoded_bytes(scans, to) == size
        assert decoded_bytes(scans) == 8 * 10 * 12 * (4 + 2)
        for room in (-1, 0, 1):
            assert CaseStore(scans, 1, size + room, resample_to=to).fits == (room >= 0)

    def test_the_catalog_is_asked_once_for_its_channels(
        self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each answer looks at all facts: one for each case would be the square of their number."""
        asked: list[int] = []
        monkeypatch.setattr(Catalog, "channels", property(lambda _: asked.append(1) or 1))
        assert len(catalog.facts) > 1
        decoded_bytes(catalog)
        assert len(asked) == 1

    @pytest.mark.parametrize("kind", ["volume", "flat", "color", "part"])
    def test_a_case_is_resampled_once(
        self, scans: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        to, data, channels = (1.0, 1.0, 2.0), scans, 1
        if kind in ("flat", "color"):
            folder = tmp_path / kind
            for name in ("images", "masks"):
                (folder / name).mkdir(parents=True)
            image = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / "images" / "a.png"), image if kind == "color" else image[..., 0])
            cv2.imwrite(str(folder / "masks" / "a.png"), (image[..., 0] > 200).astype(np.uint8))
            to, channels = (1.0, 2.0), 3
            data = open_catalog(str(folder), CatalogSettings(tiles=1, spacing=(2.0, 1.0)))
        if kind == "part":
            case = replace(scans.cases[0], region=((2, 7), (0, 10), (3, 12)))
            facts = {"a": replace(scans.facts["a"], shape=(5, 10, 9))}
            data = replace(scans, cases=(case,), facts=facts)
        cache = DiskCache(tmp_path / "cache", 2**30)
        assert fill_disk_cache(cache, data, resample_to=to) is None
        near = CaseStore(data, channels, resample_to=to).load("a")
        for module in (store_module, disk_cache):
            monkeypatch.setattr(module, "resample_image", None)
            monkeypatch.setattr(module, "resample_labels", None)
        store = CaseStore(data, channels, 1, disk_cache=cache, resample_to=to)
        far = store.load("a")
        assert fill_disk_cache(cache, data, resample_to=to) is None
        assert isinstance(far.image, LazyArray)
        assert isinstance(far.target, LazyArray)
        assert far.image.shape == near.image.shape
        start, size = (1,) * len(to), (6,) * len(to)
        np.testing.assert_allclose(cut_unit(far, start, size), cut_unit(near, start, size), atol=1e-6)
        whole = (slice(None),) * len(to)
        assert near.target is not None
        np.testing.assert_array_equal(far.target[(..., *whole)], near.target[whole])
        for left, right in zip(near.foreground, far.foreground, strict=True):
            np.testing.assert_array_equal(left, right)
        for got, wanted in zip(astuple(far.intensity), astuple(near.intensity), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5)

    def test_a_full_cache_resamples_nothing_in_vain(
        self, scans: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(disk_cache, "resample_image", None)
        assert "1 volume" in str(fill_disk_cache(DiskCache(tmp_path / "c", 99), scans, resample_to=(1.0, 1.0, 1.0)))
        store = CaseStore(scans, 1, 1, disk_cache=DiskCache(tmp_path / "c", 99), resample_to=(1.0, 1.0, 1.0))
        assert isinstance(store.load("a").image, np.ndarray)

    def test_a_copy_on_another_grid_is_not_taken(self, scans: Catalog, tmp_path: Path) -> None:
        cache = DiskCache(tmp_path / "cache", 2**30)
        fill_disk_cache(cache, scans, resample_to=(1.0, 1.0, 1.0))
        assert CaseStore(scans, 1, 1, disk_cache=cache, resample_to=(1.0, 1.0, 2.0)).load("a").image.shape[1] == 24
        assert CaseStore(scans, 1, 1, disk_cache=cache).load("a").image.shape == (1, 8, 10, 12)

    def test_without_spacing_there_is_nothing_to_resample_from(self, catalog: Catalog) -> None:
        with pytest.raises(DataError, match=r"data\.spacing"):
            CaseStore(catalog, 1, resample_to=(1.0, 1.0, 1.0)).load("0")


def test_a_label_map_joins_classes(tmp_path: Path) -> None:
    catalog = open_catalog(str(write(tmp_path / "plain")), CatalogSettings(meaning=Meaning(label_map={2: 1})))
    assert catalog.label_values == (0, 1)
    target = CaseStore(catalog, 1).load("0").target
    np.testing.assert_array_equal(target, volume(0) > 150)


def test_batches_do_not_depend_on_where_the_voxels_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, by box from the files, by box from decoded copies: the same training."""
    monkeypatch.setattr(disk_cache, "WORTH_A_COPY", 1)
    plain = open_catalog(str(write(tmp_path / "plain", 4)))
    compressed = open_catalog(str(write(tmp_path / "zlib", 4, compressed=True)))
    cache = DiskCache(tmp_path / "cache", 2**30)
    fill_disk_cache(cache, compressed)
    stores = {
        "memory": CaseStore(plain, 1),
        "by box": CaseStore(plain, 1, 1),
        "decoded each time": CaseStore(compressed, 1, 1),
        "copies": CaseStore(compressed, 1, 1, disk_cache=cache),
    }
    sources = {
        name: PatchSource(
            store,
            ("0", "1"),
            ("2", "3"),
            (2, 2),
            (8, 8, 8),
            0.5,
            AugmentConfig(affine=1.0, elastic=1.0, cutmix=1.0, copy_paste=1.0),
            positive=frozenset({"0"}),
            positive_ratio=0.5,
        )
        for name, store in stores.items()
    }
    for step in range(3):
        expected = sources["memory"][step]
        for name, source in sources.items():
            batch = source[step]
            assert batch.case_ids == expected.case_ids
            assert torch.equal(batch.target, expected.target), name
            for part in ("image", "weak", "strong"):
                torch.testing.assert_close(getattr(batch, part), getattr(expected, part), atol=2e-5, rtol=0)
