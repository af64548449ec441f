"""Objects as three classes and back: what a perfect network gives are the objects that there were."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.data.catalog import Catalog, CatalogSettings, open_catalog, parse_section
from ssl_seg.data.disk_cache import DiskCache, fill_disk_cache
from ssl_seg.data.instances import BOUNDARY, INSIDE, THICKEST, find_instances, make_target
from ssl_seg.data.store import CaseStore
from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX, Meaning
from ssl_seg.scores.objects import match_objects


def make_cells(seed: int, shape: tuple[int, ...], number: int) -> NDArray[np.int32]:
    """Return touching cells: the voxels nearest to each of some points, and background beyond a distance of them."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (number, len(shape))) * shape
    places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(places[..., None, :] - points, axis=-1)
    cells = np.where(distance.min(axis=-1) < 0.3 * min(shape), 1 + distance.argmin(axis=-1), 0)
    return Meaning("instances").to_objects(cells)


def draw_discs(*circles: tuple[int, int, int], shape: tuple[int, int] = (60, 60)) -> NDArray[np.int32]:
    """Return discs (y, x, radius), numbered from 1; later ones lie on top."""
    y, x = np.indices(shape)
    objects = np.zeros(shape, np.int32)
    for number, (cy, cx, radius) in enumerate(circles, start=1):
        objects[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = number
    return objects


def are_equal(found: NDArray[Any], objects: NDArray[Any]) -> bool:
    """Return whether two label images have the same objects, whatever their numbers."""
    pairs = np.unique(np.stack([found.ravel(), objects.ravel()]), axis=1)
    return len(pairs[0]) == len(set(pairs[0])) == len(set(pairs[1])) and bool((found > 0).any() == (objects > 0).any())


def give_back(objects: NDArray[Any]) -> NDArray[np.int32]:
    return find_instances(make_target(objects))


def find_merged(objects: NDArray[np.int32], target: NDArray[np.int16]) -> set[int]:
    """Return the objects whose inside shares a face with the inside of another."""
    merged: set[int] = set()
    for axis in range(objects.ndim):
        (a, b), (ta, tb) = ((np.moveaxis(x, axis, 0)[:-1], np.moveaxis(x, axis, 0)[1:]) for x in (objects, target))
        touching = (a != b) & (ta == INSIDE) & (tb == INSIDE)
        merged |= {*a[touching].tolist(), *b[touching].tolist()}
    return merged


class TestTarget:
    @settings(max_examples=30)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([(40, 48), (14, 18, 16)]), st.integers(1, 12))
    def test_a_perfect_network_finds_every_object(self, seed: int, shape: tuple[int, ...], number: int) -> None:
        objects = make_cells(seed, shape, number)
        target = make_target(objects)
        np.testing.assert_array_equal(target > 0, objects > 0)
        with_inside = np.unique(objects[target == INSIDE])
        np.testing.assert_array_equal(with_inside[with_inside > 0], np.arange(1, objects.max() + 1))
        merged = find_merged(objects, target)
        assert not np.isin(objects[target == BOUNDARY], list(merged)).any(), "only those without a boundary touch"
        found, inside = find_instances(target), (target == INSIDE) & ~np.isin(objects, list(merged))
        for k in set(np.unique(objects[inside])):
            assert set(np.unique(objects[(target == INSIDE) & np.isin(found, found[inside & (objects == k)])])) == {k}

    def test_a_perfect_network_finds_them_nearly_whole(self) -> None:
        drawn = [make_cells(seed, ((40, 48), (14, 18, 16))[seed % 2], 1 + seed % 12) for seed in range(120)]
        counts = [match_objects(give_back(objects), objects) for objects in drawn]
        true = sum(c.true for c in counts)
        assert sum(c.matched[0] for c in counts) > 0.99 * true, "at an IoU of 0.5"
        assert sum(c.matched[5] for c in counts) > 0.95 * true, "at 0.75"

    @settings(max_examples=10)
    @given(st.integers(0, 2**32 - 1))
    def test_numbers_do_not_matter(self, seed: int) -> None:
        objects = make_cells(seed, (30, 34), 8)
        order = np.concatenate([[0], 1 + np.random.default_rng(seed).permutation(objects.max())])
        np.testing.assert_array_equal(make_target(objects), make_target(order[objects]))

    @pytest.mark.parametrize("radius", [3, 6, 10, 25])
    def test_the_boundary_is_a_quarter_of_the_radius_and_at_most_three(self, radius: int) -> None:
        objects = draw_discs((30, 30, radius))
        target = make_target(objects)
        to_background = ndimage.distance_transform_edt(objects)  # of voxels at the edge: 1
        width = min(max(radius // 4, 1), THICKEST)
        assert (target[(to_background > 0) & (to_background <= width - 0.5)] == BOUNDARY).all()
        assert (target[to_background > width + 1] == INSIDE).all()
        assert (target[to_background == 1] == BOUNDARY).all()

    def test_touching_discs_stay_apart(self) -> None:
        objects = draw_discs((30, 20, 12), (30, 40, 12))
        assert are_equal(ndimage.label(objects)[0], objects > 0), "they touch"
        assert match_objects(give_back(objects), objects).matched[8] == 2

    def test_five_voxels_keep_an_inside(self) -> None:
        objects = np.zeros((7, 9), np.int32)
        objects[2:5, 2] = objects[3, 1:4] = 1
        objects[2:5, 5] = objects[3, 4:7] = 2  # a cross beside it
        assert are_equal(give_back(objects), objects)

    def test_one_voxel_wide(self) -> None:
        objects = np.zeros((9, 12), np.int32)
        objects[2, 1:8] = 1
        objects[4:9, 3] = 2
        objects[7, 7] = 3
        assert are_equal(give_back(objects), objects)
        assert (make_target(objects)[objects > 0] == INSIDE).all()

    def test_two_voxels_wide_and_touching(self) -> None:
        objects = np.repeat([[0], [1], [1], [2], [2], [0]], 9, axis=1)
        np.testing.assert_array_equal(make_target(objects)[:, 0], [0, INSIDE, BOUNDARY, BOUNDARY, INSIDE, 0])
        assert are_equal(give_back(objects), objects)

    def test_holes_stay_background(self) -> None:
        objects = draw_discs((30, 30, 20), (30, 30, 8))
        objects[objects == 2] = 0
        assert are_equal(give_back(objects), objects)
        nested = draw_discs((30, 30, 20), (30, 30, 8))
        assert match_objects(give_back(nested), nested).matched[6] == 2, (
            "boundaries of two widths move the line between them"
        )

    def test_a_neck_thinner_than_the_boundary_does_not_cut_an_object(self) -> None:
        objects = draw_discs((20, 15, 12), (20, 43, 12))
        objects[19:22, 20:40] = 1
        objects[objects > 0] = 1
        assert are_equal(give_back(objects), objects)

    def test_the_border_is_no_edge(self) -> None:
        whole = draw_discs((30, 30, 20))
        assert (make_target(whole[:, :31])[30, 20:31] == INSIDE).all()
        np.testing.assert_array_equal(make_target(np.ones((8, 9), int)), INSIDE)

    def test_nothing(self) -> None:
        empty = np.zeros((4, 5, 6), np.int32)
        assert not make_target(empty).any()
        assert not find_instances(empty).any()

    def test_ignored_voxels_are_no_edge(self) -> None:
        objects = draw_discs((30, 30, 20))
        objects[:, 31:] = IGNORE_INDEX
        target = make_target(objects)
        np.testing.assert_array_equal(target[:, :31], make_target(objects[:, :31]))
        assert (target[:, 31:] == IGNORE_INDEX).all()

    def test_more_objects_than_sixteen_bits(self) -> None:
        side = 270  # of objects, in a row
        objects = np.kron(np.arange(1, side**2 + 1).reshape(side, side), np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]]))
        found = give_back(objects)
        assert found.max() == side**2 > 65_535
        assert match_objects(found, objects).matched[9] == side**2


def flood_by_steps(classes: NDArray[Any]) -> tuple[NDArray[Any], dict[tuple[int, ...], set[int]]]:
    """Return the marker of each voxel of the inside, and all that are nearest to each other voxel, by a queue."""
    markers, _ = ndimage.label(classes == INSIDE)
    nearest = {tuple(p): {int(markers[tuple(p)])} for p in np.argwhere(markers)}
    steps = dict.fromkeys(nearest, 0)
    waiting = deque(nearest)
    while waiting:
        here = waiting.popleft()
        for axis in range(classes.ndim):
            for way in (-1, 1):
                there = tuple(n + way * (a == axis) for a, n in enumerate(here))
                if min(there) < 0 or any(n >= size for n, size in zip(there, classes.shape, strict=True)):
                    continue
                if classes[there] and there not in steps:
                    steps[there], nearest[there] = steps[here] + 1, set()
                    waiting.append(there)
                if classes[there] and steps[there] == steps[here] + 1:
                    nearest[there] |= nearest[here]
    return markers, nearest


class TestInstances:
    @settings(max_examples=30)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([(9, 11), (4, 5, 6)]))
    def test_the_boundary_goes_to_the_nearest_inside(self, seed: int, shape: tuple[int, ...]) -> None:
        classes = np.random.default_rng(seed).choice(3, shape, p=[0.3, 0.2, 0.5])
        found = find_instances(classes)
        np.testing.assert_array_equal(found > 0, classes > 0)
        markers, nearest = flood_by_steps(classes)
        for place, choices in nearest.items():
            assert found[place] in choices
        alone = (classes > 0) & ~np.isin(np.arange(classes.size).reshape(shape),
                                         [np.ravel_multi_index(p, shape) for p in nearest])  # fmt: skip
        parts, number = ndimage.label(alone)
        assert found.max() == markers.max() + number
        assert are_equal(np.where(alone, found, 0), parts)


def write_cells(folder: Path, suffix: str = ".png", dtype: type = np.uint16, number: int = 3) -> list[NDArray[Any]]:
    """Write images and masks of cells, numbered with gaps."""
    cells = [np.where(c > 0, 3 * c + 4, 0).astype(dtype) for c in (make_cells(n, (40, 48), 9) for n in range(number))]
    for name in ("images", "instances"):
        (folder / name).mkdir(parents=True)
    for n, mask in enumerate(cells):
        cv2.imwrite(str(folder / "images" / f"{n}.png"), (50 + 100 * (mask > 0)).astype(np.uint8))
        file = folder / "instances" / f"{n}{suffix}"
        cv2.imwrite(str(file), mask) if suffix == ".png" else tifffile.imwrite(file, mask, photometric="minisblack")
    return cells


def open_objects(folder: Path, **settings: Any) -> Catalog:
    return open_catalog(str(folder), parse_section({"task": "instances", **settings}))


class TestStore:
    @pytest.mark.parametrize(
        ("suffix", "dtype"),
        [(".png", np.uint8), (".tif", np.uint16), (".tif", np.int32), (".tif", np.int64), (".tif", np.float32)],
    )
    def test_the_target_is_that_of_the_whole_mask(self, tmp_path: Path, suffix: str, dtype: type) -> None:
        cells = write_cells(tmp_path, suffix, dtype)
        catalog = open_objects(tmp_path)
        assert (catalog.label_values, catalog.num_classes) == ((0, 1, 2), 3)
        for max_bytes in (2**31, 1):
            store = CaseStore(catalog, 1, max_bytes)
            for n, mask in enumerate(cells):
                case = store.load(str(n))
                numbered = Meaning("instances").to_objects(mask)
                np.testing.assert_array_equal(np.asarray(case.target), make_target(numbered))
                np.testing.assert_array_equal(store.load_objects(str(n)), numbered)
                assert numbered.max() == len(np.unique(mask)) - 1
                assert len(case.foreground) == 2, "inside and boundary, for patches that are centered on one of them"
                for label, points, each in zip((INSIDE, BOUNDARY), case.foreground, case.voxels_each, strict=True):
                    assert len(points) * each == (make_target(numbered) == label).sum()

    def test_numbers_are_resampled_before_the_boundary_is_made(self, tmp_path: Path) -> None:
        (tmp_path / "plain").mkdir()
        write_cells(tmp_path / "plain", ".tif")
        catalog, to = open_objects(tmp_path / "plain", spacing=[1.0, 1.0]), (2.0, 2.0)
        near = CaseStore(catalog, 1, resample_to=to)
        numbers = near.load_objects("0")
        assert numbers is not None
        target = np.asarray(near.load("0").target)
        np.testing.assert_array_equal(target, make_target(ndimage.zoom(numbers, 0.5, order=0, grid_mode=True,
                                                                      mode="nearest")))  # fmt: skip
        coarse = ndimage.zoom(make_target(numbers), 0.5, order=0, grid_mode=True, mode="nearest")
        assert (target != coarse).any(), "the case tells one from the other"
        cache = DiskCache(tmp_path / "cache", 2**30)
        assert fill_disk_cache(cache, catalog, resample_to=to) is None
        far = CaseStore(catalog, 1, 1, disk_cache=cache, resample_to=to)
        np.testing.assert_array_equal(np.asarray(far.load("0").target), target)

    def test_an_ignored_number_is_no_object(self, tmp_path: Path) -> None:
        cells = write_cells(tmp_path)
        ignored = int(cells[0].max())
        catalog = open_objects(tmp_path, ignore_value=ignored)
        store = CaseStore(catalog, 1)
        objects = store.load_objects("0")
        assert objects is not None
        np.testing.assert_array_equal(objects == IGNORE_INDEX, cells[0] == ignored)
        assert (np.asarray(store.load("0").target)[cells[0] == ignored] == IGNORE_INDEX).all()
        assert open_objects(tmp_path, ignore_value=2).label_values == (0, 1, 3)

    def test_the_facts_are_those_of_the_foreground(self, tmp_path: Path) -> None:
        write_cells(tmp_path)
        plain = open_catalog(str(tmp_path), CatalogSettings(meaning=Meaning("instances")))
        catalog = open_objects(tmp_path)
        assert {i: (f.foreground, f.content) for i, f in catalog.facts.items()} == {
            i: (f.foreground, f.content) for i, f in plain.facts.items()
        }, "so splits, balance and the plan are the same"
        assert CaseStore(plain, 1).load_objects("0") is not None
        other = open_catalog(str(tmp_path), CatalogSettings(meaning=Meaning("binary", threshold=0)))
        assert CaseStore(other, 1).load_objects("0") is None


class TestMistakes:
    def write(self, folder: Path, masks: list[NDArray[Any]]) -> str:
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for n, mask in enumerate(masks):
            image = np.random.default_rng(n).integers(0, 255, mask.shape[:2]).astype(np.uint8)
            cv2.imwrite(str(folder / "images" / f"{n}.png"), image)
            cv2.imwrite(str(folder / "masks" / f"{n}.png"), mask)
        return str(folder)

    def test_masks_of_foreground_number_nothing(self, tmp_path: Path) -> None:
        root = self.write(tmp_path, [255 * (make_cells(n, (40, 48), 9) > 0).astype(np.uint8) for n in range(3)])
        with pytest.raises(DataError, match=r"no mask holds two values besides 0 \(255 in one of them\).*a number of"):
            open_objects(tmp_path)
        notes = open_catalog(root, parse_section({"task": "instances", "mask": "instances"})).notes
        assert any("no mask holds two values" in note for note in notes), "said, and taken as one object an image"

    def test_masks_of_classes_number_nothing(self, tmp_path: Path) -> None:
        blocks = np.kron(np.random.default_rng(0).integers(0, 3, (3, 6, 6)), np.ones((1, 8, 8), int)).astype(np.uint8)
        self.write(tmp_path, list(blocks))
        with pytest.raises(DataError, match=r"most of the values are in several parts of a mask.*data.mask=instances"):
            open_objects(tmp_path)

    def test_colors_are_no_numbers(self, tmp_path: Path) -> None:
        colors = np.random.default_rng(0).integers(0, 255, (3, 10, 3)).astype(np.uint8)
        self.write(tmp_path, [colors[n][make_cells(n, (40, 48), 9)] for n in range(3)])
        with pytest.raises(DataError, match="color"):
            open_objects(tmp_path)

    @pytest.mark.parametrize("kind", ["semantic", "binary", "probability"])
    def test_another_kind_of_masks_is_refused(self, tmp_path: Path, kind: str) -> None:
        write_cells(tmp_path)
        with pytest.raises(DataError, match=f"data.mask={kind} has no numbers: leave one of them out"):
            open_objects(tmp_path, mask=kind)

    def test_values_of_classes_are_refused(self, tmp_path: Path) -> None:
        write_cells(tmp_path)
        with pytest.raises(DataError, match=r"data.label_values=\[0, 5, 7\] are the values of classes: leave them out"):
            open_objects(tmp_path, label_values=[0, 5, 7])
        assert open_objects(tmp_path, label_values=[0, 1, 2]).num_classes == 3, "those of the plan of a run"
