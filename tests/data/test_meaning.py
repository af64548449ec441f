"""What masks mean is recognized from their values, holds for all who read them, and what is given wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import mask_sets
import numpy as np
import pytest
from mask_sets import CLASSES, OBJECTS, STEPS, Make
from numpy.typing import NDArray
from sizes import around

from ssl_seg.config.layers import parse_override
from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.audit.meaning import _MOST_CLASSES, settle_meaning
from ssl_seg.data.catalog import Catalog, CatalogSettings, open_catalog, parse_section
from ssl_seg.data.findings import Finding
from ssl_seg.data.mask_values import LOOKED_AT, MaskScan, scan_mask
from ssl_seg.data.reading import Reading
from ssl_seg.data.store import CaseStore
from ssl_seg.data.volumes import open_mask
from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX, Meaning


def scan(folder: Path, masks: Sequence[NDArray[Any]], threshold: float | None = None) -> dict[str, MaskScan]:
    found = {}
    for n, values in enumerate(masks):
        np.save(folder / f"{n}.npy", values)
        mask = open_mask(str(folder / f"{n}.npy"), reading=Reading(fractions=True))
        found[str(n)] = scan_mask(mask, threshold)[1]
    return found


def recognize(folder: Path, masks: Sequence[NDArray[Any]]) -> tuple[Meaning, list[Finding]]:
    return settle_meaning(scan(folder, masks), Meaning())


def write_set(folder: Path, masks: Sequence[NDArray[Any]], suffix: str = ".png") -> str:
    """Write the masks, and images that are brighter where a mask is above half of its largest value."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for n, mask in enumerate(masks):
        image = np.clip(rng.normal(70, 15, mask.shape) + 90 * (mask > mask.max() / 2), 0, 255).astype(np.uint8)
        for name, array, kind in (("images", image, ".npy" if mask.ndim > 2 else ".png"), ("masks", mask, suffix)):
            path = str(folder / name / f"c{n:02d}{kind}")
            np.save(path, array) if kind == ".npy" else cv2.imwrite(path, array)
    return str(folder)


def targets(catalog: Catalog) -> list[NDArray[Any]]:
    store = CaseStore(catalog, catalog.channels)
    return [np.asarray(store.load(case.id).target) for case in catalog.cases]


def check_seen_is_counted(catalog: Catalog) -> None:
    """What the store gives has the classes and the share of foreground that the facts state."""
    for case, target in zip(catalog.cases, targets(catalog), strict=True):
        facts = catalog.facts[case.id]
        known = target != IGNORE_INDEX
        assert facts.foreground == pytest.approx((target[known] > 0).mean())
        for index, value in enumerate(catalog.label_values):
            counted = dict(zip(facts.values or (), facts.counts or (), strict=True)).get(value, 0)
            assert counted == (target == index).sum()


# --- recognition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("make", OBJECTS)
def test_numbers_of_objects_are_foreground(tmp_path: Path, make: Make, seed: int) -> None:
    meaning, findings = recognize(tmp_path, make(np.random.default_rng(seed)))
    assert (meaning.kind, meaning.label_values) == ("instances", (0, 1))
    (finding,) = findings
    assert (finding.level, "data.mask=semantic" in finding.message) == ("info", True)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("make", CLASSES)
def test_classes_stay_classes(tmp_path: Path, make: Make, seed: int) -> None:
    meaning, findings = recognize(tmp_path, make(np.random.default_rng(seed)))
    assert (meaning.kind, meaning.label_values) == ("semantic", None)
    assert all(f.level == "warn" and "data.mask=instances" in f.message for f in findings)
    assert len(findings) <= 1


@pytest.mark.parametrize("make", [mask_sets.organs, mask_sets.cell_types, mask_sets.shapes, mask_sets.layers])
def test_nobody_is_warned_of_plain_classes(tmp_path: Path, make: Make) -> None:
    assert recognize(tmp_path, make(np.random.default_rng(0)))[1] == []


@pytest.mark.parametrize(("cells", "said"), [(16, False), (17, True), (24, True)])
def test_tracked_cells_are_no_classes_in_silence(tmp_path: Path, cells: int, said: bool) -> None:
    rng = np.random.default_rng(0)
    corners, frames = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2)[:cells] * 16 + 4, []
    for _ in range(8):  # each cell keeps its number, and almost its place
        frame = np.zeros((84, 84), np.uint16)
        for number, (y, x) in enumerate(corners + rng.integers(-3, 4, (cells, 2)), start=1):
            frame[y : y + 8 + number % 3, x : x + 8] = number
        frames.append(frame)
    meaning, findings = recognize(tmp_path, frames)
    assert meaning.kind == "semantic"
    assert [("data.mask=instances" in f.message, f.level) for f in findings] == [(True, "info")] * said


def test_nested_regions_might_be_objects(tmp_path: Path) -> None:
    """1, 2, ... n, one part each, another n in each image: one line, and the setting for either."""
    (finding,) = recognize(tmp_path, mask_sets.nested(np.random.default_rng(0)))[1]
    for setting in ("instances", "binary", "semantic"):
        assert f"--set data.mask={setting}" in finding.message


@pytest.mark.parametrize("make", STEPS)
def test_gray_steps_are_cut_in_the_middle(tmp_path: Path, make: Make) -> None:
    masks = make(np.random.default_rng(0))
    meaning, (finding,) = recognize(tmp_path, masks)
    top = max(mask.max() for mask in masks)
    assert (meaning.kind, meaning.threshold) == ("binary", top / 2)
    assert meaning.label_values == ((0, 255) if top == 255 else (0, 1))
    assert f"{top / 2:g} are foreground" in finding.message


def test_fractions_at_both_ends_are_probabilities(tmp_path: Path) -> None:
    meaning, _ = recognize(tmp_path, mask_sets.probabilities(np.random.default_rng(0)))
    assert (meaning.kind, meaning.threshold) == ("probability", 0.5)


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 255], [0, 128, 255], range(6), range(1, 9)])
def test_thin_lines_of_classes_are_no_steps(tmp_path: Path, values: Sequence[int]) -> None:
    """Boundaries of layers, one voxel wide."""
    lines = np.zeros((96, 96), np.uint8)
    for n, value in enumerate(values):
        lines[4 + 9 * n] = value
    assert recognize(tmp_path, [lines] * 6)[0].kind == "semantic"


def test_classes_with_numbers_of_objects_are_refused_in_one_line(tmp_path: Path) -> None:
    """Values such as 26001: class 26, object 1."""
    rng = np.random.default_rng(0)
    masks = []
    for ids in mask_sets.counted_anew(rng, 9, 8):
        classes = rng.choice([11, 24, 26], ids.max() + 1)
        masks.append(np.where(ids > 0, classes[ids] * 1000 + ids, 0))
    root = write_set(tmp_path, [mask.astype(np.uint16) for mask in masks])
    with pytest.raises(DataError, match=r"1 problem found\.\nmask_kind: .*1000 x class"):
        open_catalog(root)
    assert [f.code for f in audit(root).findings if f.level != "info"] == ["mask_kind"]
    check_seen_is_counted(open_catalog(root, CatalogSettings(meaning=Meaning(kind="instances"))))


def test_an_image_in_place_of_a_mask_is_no_set_of_steps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gray = [np.clip(rng.normal(90, 30, (64, 64)), 0, 255).astype(np.uint8) for _ in range(6)]
    meaning, findings = recognize(tmp_path, gray)
    assert meaning.kind == "semantic"
    assert [f.level for f in findings] == ["warn"]


def test_without_masks_or_foreground_nothing_is_said(tmp_path: Path) -> None:
    assert recognize(tmp_path, []) == (Meaning("semantic"), [])
    assert recognize(tmp_path, [np.zeros((9, 9), np.uint8)] * 3) == (Meaning("semantic"), [])


# --- what is given ----------------------------------------------------------------------------------------------------


def test_what_is_given_wins(tmp_path: Path) -> None:
    scans = scan(tmp_path, mask_sets.at_most_seven(np.random.default_rng(0)))
    assert settle_meaning(scans, Meaning("semantic")) == (Meaning("semantic"), [])
    values = tuple(range(8))
    assert settle_meaning(scans, Meaning(label_values=values)) == (Meaning("semantic", label_values=values), [])
    assert settle_meaning(scans, Meaning(label_map={7: 0}))[0].kind == "semantic"
    assert settle_meaning(scans, Meaning("binary", 0.0))[0].label_values == (0, 1)
    assert settle_meaning(scans, Meaning(threshold=0.0))[0].kind == "binary"
    assert settle_meaning(scans, Meaning("instances", label_values=(0, 255)))[0].label_values == (0, 255)
    with pytest.raises(DataError, match=r"data\.mask=instances has two classes, and data\.label_values=\[0, 1, 2\]"):
        settle_meaning(scans, Meaning("instances", label_values=(0, 1, 2)))


def test_a_threshold_that_nobody_gave_cuts_no_regions_away(tmp_path: Path) -> None:
    scans = scan(tmp_path, mask_sets.at_most_seven(np.random.default_rng(0)))
    (finding,) = settle_meaning(scans, Meaning("binary"))[1]
    assert (finding.code, finding.level) == ("threshold", "fault")
    assert "--set data.mask=instances" in finding.message
    assert settle_meaning(scans, Meaning("binary", 3.5))[1] == []


def test_a_threshold_leaves_foreground(tmp_path: Path) -> None:
    scans = scan(tmp_path, [np.eye(9, dtype=np.uint8)])
    (finding,) = settle_meaning(scans, Meaning("binary", 127.5))[1]
    assert (finding.code, finding.level) == ("threshold", "fault")
    assert "--set data.threshold=0.5" in finding.message


def test_numbers_below_0_are_no_objects(tmp_path: Path) -> None:
    masks = [ids.astype(np.int32) - 1 for ids in mask_sets.counted_anew(np.random.default_rng(0))]
    scans = scan(tmp_path, masks)
    for given in (Meaning("instances"), Meaning(task="instances")):
        (finding,) = settle_meaning(scans, given)[1]
        assert (finding.code, finding.level) == ("negative_numbers", "fault")
        top = max(int(mask.max()) for mask in masks) + 1
        assert f"'data.label_map={{-1: 0, 0: {top}}}'" in finding.message
        mapped = replace(given, label_map={-1: 0, 0: top})
        assert settle_meaning(scans, mapped)[1] == []
        np.testing.assert_array_equal(mapped.to_objects(masks[0]) > 0, masks[0] >= 0)
        assert settle_meaning(scans, replace(given, ignore_value=-1))[1] == []


def test_a_threshold_of_another_range_is_named(tmp_path: Path) -> None:
    """What a run trained on one set of masks says of another one."""
    soft = mask_sets.resized(np.random.default_rng(0))
    shares = [mask / np.float32(255) for mask in soft]
    classes = [np.repeat(np.arange(3, dtype=np.uint8), 27).reshape(9, 9)]
    cases: list[tuple[list[Any], Meaning, str]] = [
        (shares, Meaning("binary", 127.5), "the largest is 1. Type --set data.threshold=0.5"),
        (soft, Meaning("probability", 0.5), "--set data.threshold=127.5"),
        (classes, Meaning("probability", 0.5), "--set data.mask=semantic"),
        (soft, Meaning("binary", 127.5), ""),
        (shares, Meaning("probability", 0.5), ""),
        (soft, Meaning("probability"), ""),
    ]
    for n, (masks, given, message) in enumerate(cases):
        (tmp_path / str(n)).mkdir()
        found = settle_meaning(scan(tmp_path / str(n), masks, given.threshold), given)[1]
        assert [f.code for f in found] == ["threshold"] * bool(message), given
        assert message in "".join(f.message for f in found)


@pytest.mark.parametrize("threshold", [None, 0.1, 0.9])
def test_a_mask_of_one_fraction_is_scanned(tmp_path: Path, threshold: float | None) -> None:
    (found,) = scan(tmp_path, [np.full((9, 9), 0.5, np.float32)], threshold).values()
    assert (found.values.tolist(), found.counts.tolist(), found.fractions) == ([0.5], [81], True)


@pytest.mark.parametrize(
    ("kind", "top", "expected"),
    [
        ("binary", 200, 100),
        ("probability", 200, 127.5),
        ("probability", 300, 32767.5),
        ("probability", 0.8, 0.5),
        ("binary", 0.8, 0.4),
    ],
)
def test_default_thresholds(tmp_path: Path, kind: Any, top: float, expected: float) -> None:
    mask = np.zeros((9, 9), np.float32 if top < 1 else np.uint16)
    mask[3:6, 3:6] = top
    assert settle_meaning(scan(tmp_path, [mask]), Meaning(kind))[0].threshold == pytest.approx(expected)


def test_the_written_foreground_is_not_the_value_to_ignore(tmp_path: Path) -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[:3], mask[3:6] = 255, 1
    for ignored, values in ((255, (0, 1)), (1, (0, 255))):
        meaning, _ = settle_meaning(scan(tmp_path, [mask]), Meaning("instances", ignore_value=ignored))
        assert meaning.label_values == values
        assert set(np.unique(meaning.to_target(mask))) == {0, 1, IGNORE_INDEX}


# --- all who read masks agree ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [mask_sets.at_most_seven, mask_sets.through_the_set, mask_sets.in_3d])
def test_objects_from_the_folder_to_the_network(tmp_path: Path, make: Make) -> None:
    masks = [mask.astype(np.int32) for mask in make(np.random.default_rng(0))]
    catalog = open_catalog(write_set(tmp_path, masks, ".npy"))
    assert (catalog.meaning.kind, catalog.label_values) == ("instances", (0, 1))
    check_seen_is_counted(catalog)
    for mask, target in zip(masks, targets(catalog), strict=True):
        np.testing.assert_array_equal(target, mask > 0)
    assert [f.code for f in audit(str(tmp_path)).findings if f.level != "info"] == []


def test_smoothed_masks_from_the_folder_to_the_network(tmp_path: Path) -> None:
    masks = mask_sets.resized(np.random.default_rng(0))
    catalog = open_catalog(write_set(tmp_path, masks))
    check_seen_is_counted(catalog)
    for mask, target in zip(masks, targets(catalog), strict=True):
        np.testing.assert_array_equal(target, mask > 127.5)


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_probabilities_are_counted_exactly(tmp_path: Path, threshold: float | None) -> None:
    """In whatever of the 256 levels of the look at them the threshold lies."""
    masks = mask_sets.probabilities(np.random.default_rng(0))
    masks[0][:9, :9] = np.linspace(0.45, 0.55, 81).reshape(9, 9)
    catalog = open_catalog(write_set(tmp_path, masks, ".npy"), CatalogSettings(meaning=Meaning(threshold=threshold)))
    check_seen_is_counted(catalog)
    np.testing.assert_array_equal(targets(catalog)[0], masks[0] > (0.5 if threshold is None else threshold))


def test_jpg_masks_of_black_and_white_are_read(tmp_path: Path) -> None:
    masks = mask_sets._black_white(np.random.default_rng(0))
    catalog = open_catalog(write_set(tmp_path, masks, ".jpg"))
    assert catalog.meaning.kind == "binary"
    check_seen_is_counted(catalog)
    for mask, target in zip(masks, targets(catalog), strict=True):
        assert (target != (mask > 0)).mean() < 0.005


def test_jpg_masks_of_classes_are_refused(tmp_path: Path) -> None:
    masks = [mask * 40 for mask in mask_sets.cell_types(np.random.default_rng(0))]
    with pytest.raises(DataError, match=r"lossy_mask: 16 masks are JPG.*\n?.*--set data\.mask=binary"):
        open_catalog(write_set(tmp_path, masks, ".jpg"))


@pytest.mark.parametrize("step", [80, 255])
def test_small_classes_in_jpg_masks_are_not_cut_in_silence(tmp_path: Path, step: int) -> None:
    """Regions so small that their grays are as mixed as edges are; black and white of that size is fine."""
    y, x = np.indices((64, 64))
    discs = [(y - 16) ** 2 + (x - c) ** 2 < 36 for c in (12, 32, 52)]
    masks = [sum(disc * min(255, step * (n + 1)) for n, disc in enumerate(discs)).astype(np.uint8)] * 4
    root = write_set(tmp_path, masks, ".jpg")
    for n, mask in enumerate(masks):
        cv2.imwrite(str(tmp_path / "masks" / f"c{n:02d}.jpg"), mask, [cv2.IMWRITE_JPEG_QUALITY, 60])
    found = audit(root).findings
    assert [(f.code, f.level) for f in found if "JPG" in f.message] == [("lossy_mask", "warn")] * (step == 80)
    said = audit(root, CatalogSettings(meaning=Meaning(kind="binary"))).findings
    assert not any("JPG" in f.message for f in said)


def test_fractions_that_are_no_probabilities_are_refused_with_what_to_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = [mask_sets.foreground(rng, 4) * rng.uniform(8, 22) for _ in range(5)]
    root = write_set(tmp_path, masks, ".npy")
    with pytest.raises(DataError, match="fractions: 5 mask") as caught:
        open_catalog(root)
    typed = re.findall(r"--set (data\.\w+=\S+)", str(caught.value))
    settings = {key: value for text in typed for key, value in parse_override(text).values["data"].items()}
    assert settings == {"mask": "binary", "threshold": 0}
    check_seen_is_counted(open_catalog(root, parse_section(settings)))
    findings = audit(root).findings
    assert [f.code for f in findings if f.level == "fault"] == ["fractions"]


# --- memory and time grow with the voxels and the values, not with their product ------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3000])
def test_counts_are_those_of_numpy(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for dtype, offset in ((np.uint16, 0), (np.int32, -5), (np.int64, 2**40)):
        mask = rng.integers(0, count + 1, (90, 70)).astype(dtype) + dtype(offset)
        (found,) = scan(tmp_path, [mask]).values()
        values, counts = np.unique(mask, return_counts=True)
        np.testing.assert_array_equal(found.values, values)
        np.testing.assert_array_equal(found.counts, counts)


def test_parts_and_squares_are_those_of_brute_force(tmp_path: Path) -> None:
    """Values that do not touch; each with one part of its own size, or two."""
    mask = np.zeros((64, 64), np.int32)
    mask[2:12, 2:6], mask[2:12, 20:24], mask[30:35, 30:36], mask[50, 3:60] = 1, 1, 2, 3
    (found,) = scan(tmp_path, [mask]).values()
    np.testing.assert_allclose(found.part[1:], [0.5, 1, 1])
    np.testing.assert_allclose(found.solid[1:], [2 * 27 / 80, 20 / 30, 0])
    np.testing.assert_allclose(found.center[1:] * 64, [[6.5, 12.5], [32, 32.5], [50, 31]], rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_blocks_make_no_difference_to_what_they_do_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    mask = np.zeros((64, 64), np.int32)
    mask[0:7, 2:6], mask[21:28, 20:24], mask[49:56, 30:36] = 1, 2, 3
    (whole,) = scan(tmp_path, [mask]).values()
    monkeypatch.setattr("ssl_seg.data.mask_values.BLOCK_BYTES", rows * 64 * 4)
    (found,) = scan(tmp_path, [mask]).values()
    np.testing.assert_array_equal(found.counts, whole.counts)
    known = np.isfinite(found.center)
    np.testing.assert_allclose(found.center[known], whole.center[known], rtol=1e-6)


@pytest.mark.parametrize(("budget", "looked"), [(4095, True), (4096, True), (4097, True), (0, False)])
def test_neighbors_are_looked_at_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, looked: bool
) -> None:
    monkeypatch.setattr("ssl_seg.data.mask_values.LOOKED_AT", budget)
    mask = np.kron(np.arange(4).reshape(2, 2), np.ones((32, 32), np.int32))
    (found,) = scan(tmp_path, [mask]).values()
    assert np.isfinite(found.solid).all() == looked
    np.testing.assert_array_equal(found.counts, 1024)
    assert LOOKED_AT == 2**24


def test_twelve_thousand_objects_are_one_line(tmp_path: Path) -> None:
    cells = 1 + np.arange(12_100).reshape(110, 110)
    mask = np.kron(cells, np.pad(np.ones((3, 3), np.int64), ((0, 1), (0, 1)))).astype(np.uint16)
    result = audit(write_set(tmp_path, [mask, np.roll(mask, 1, 1), mask[:400]]))
    assert result.meaning.kind == "instances"
    assert [row["value"] for row in result.summary["mask_values"]] == [0, 1]
    (finding,) = (f for f in result.findings if f.code == "mask_kind")
    assert "up to 12100 in a mask" in finding.message


@pytest.mark.parametrize("count", around(_MOST_CLASSES))
def test_so_many_regions_at_one_place_in_all_masks_are_no_classes(count: int, tmp_path: Path) -> None:
    side = 4 * int(np.ceil(count**0.5))
    atlas = np.zeros((side, side), np.uint16)
    for n in range(count):
        y, x = divmod(4 * n, side)
        atlas[4 * y + 1 : 4 * y + 4, x + 1 : x + 4] = n + 1
    meaning, findings = recognize(tmp_path, [atlas] * 4)
    assert meaning.kind == ("semantic" if count <= _MOST_CLASSES else "instances")
    assert [finding.code for finding in findings] == ["mask_kind"]
