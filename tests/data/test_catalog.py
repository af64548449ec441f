"""Finding cases in a folder, and what is said about folders that are not right."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from ssl_seg.data import catalog as catalog_module
from ssl_seg.data.catalog import Catalog, CatalogSettings, open_catalog
from ssl_seg.data.layouts import Case, find_listing
from ssl_seg.errors import DataError
from ssl_seg.labels import Meaning

RNG = np.random.default_rng(0)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".tif", ".tiff"):
        tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 and array.shape[-1] == 3 else "minisblack")
    else:
        path.write_bytes(cv2.imencode(path.suffix, array)[1].tobytes())


def image(shape: tuple[int, ...] = (8, 9)) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def mask(*values: int, shape: tuple[int, ...] = (8, 9)) -> np.ndarray:
    """Zeros, and one pixel of each value."""
    array = np.zeros(shape, np.uint16 if max(values, default=0) > 255 else np.uint8)
    array.flat[1 : 1 + len(values)] = values
    return array


def make(root: Path, masks: dict[str, np.ndarray | None]) -> str:
    """Write one image per name, and its mask unless that is None."""
    for name, array in masks.items():
        save(root / "images" / f"{name}.png", image())
        if array is not None:
            save(root / "masks" / f"{name}.png", array)
    return str(root)


def find(root: Path, groups: Path | None = None) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    listing = find_listing(root, groups=groups)
    return listing.cases, listing.notes


# --- pairing --------------------------------------------------------------------------------------------------------


def test_images_and_masks_are_paired_by_name(tmp_path: Path) -> None:
    save(tmp_path / "images" / "b.PNG", image())
    save(tmp_path / "images" / "sub" / "a.v1.jpg", image())
    save(tmp_path / "images" / "c.tif", image())
    save(tmp_path / "masks" / "b.tif", mask(1))
    save(tmp_path / "masks" / "sub" / "a.v1.png", mask(1))
    cases, notes = find(tmp_path)
    assert [c.id for c in cases] == ["b", "c", "sub/a.v1"]
    assert [Path(c.mask).name if c.mask else None for c in cases] == ["b.tif", None, "a.v1.png"]
    assert all(Path(c.image).is_file() and c.group is None for c in cases)
    assert notes == ("1 of 3 images have no mask file and count as unlabeled",)


def test_other_files_are_counted_and_hidden_ones_ignored(tmp_path: Path) -> None:
    make(tmp_path, {"a": mask(1), "b": mask(1)})
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "images" / ".c.png").write_bytes(b"x")
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "images" / ".hidden" / "d.png").write_bytes(b"x")
    (tmp_path / "masks" / "notes.txt").write_text("x")
    cases, notes = find(tmp_path)
    assert [c.id for c in cases] == ["a", "b"]
    assert notes == (
        "1 file cannot be read as images and is not used (1 x .txt; masks/notes.txt)",
        "files of servers and systems are left out: 1 x Thumbs.db",
    )


def test_masks_without_an_image_are_noted(tmp_path: Path) -> None:
    make(tmp_path, {"a": mask(1)})
    for name in "wxyz":
        save(tmp_path / "masks" / f"{name}.png", mask(1))
    cases, notes = find(tmp_path)
    assert [c.id for c in cases] == ["a"]
    assert notes == ("4 masks without an image are not used (w, x, y, ... (1 more))",)


def test_masks_of_other_images_altogether(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", image())
    save(tmp_path / "masks" / "0123456.png", mask(1))
    with pytest.raises(DataError, match=r"An image is called images/a\.png, a mask masks/0123456\.png"):
        find(tmp_path)


def test_folders_that_are_not_right(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "other" / "stuff").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "none" / "images").mkdir(parents=True)
    make(tmp_path / "good", {"a": None})
    for name, reason in {
        "missing": "does not exist",
        "file": "is a file",
        "other": r"no subfolder images/.*holds stuff/",
        "empty": "It is empty",
        "none": "its folder for images holds none",
        "good/images": rf"Name the folder above it: {tmp_path / 'good'}$",
    }.items():
        with pytest.raises(DataError, match=reason) as raised:
            find(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)


# --- groups ---------------------------------------------------------------------------------------------------------


def groups_of(root: Path, text: str, name: str = "groups.csv") -> tuple[dict[str, str | None], tuple[str, ...]]:
    (root / name).write_text(text, encoding="utf-8")
    cases, notes = find(root, None if name == "groups.csv" else root / name)
    return {c.id: c.group for c in cases}, notes


def test_a_group_file_is_found_and_names_may_have_suffixes(tmp_path: Path) -> None:
    make(tmp_path, {"a": mask(1), "b": mask(1), "c.d": mask(1)})
    groups, notes = groups_of(tmp_path, "\ufeffname, group,extra\na.png, p 1,x\nb,p2,y\nc.d,p2,z\n")
    assert groups == {"a": "p 1", "b": "p2", "c.d": "p2"}
    assert notes == (f"groups are taken from {tmp_path / 'groups.csv'}",)
    groups, notes = groups_of(tmp_path, "name,group\na,1\nb,1\nc.d,1\n", name="mine.csv")
    assert groups == {"a": "1", "b": "1", "c.d": "1"}
    assert notes == ()


def test_incomplete_group_files(tmp_path: Path) -> None:
    make(tmp_path, {"a_scan": mask(1), "b": mask(1)})
    groups, notes = groups_of(tmp_path, "name,group\na_scan,1\n")
    assert groups == {"a_scan": "1", "b": None}
    assert notes[1:] == ("1 case is not in groups.csv; each is its own group (b)",)
    groups, notes = groups_of(tmp_path, "name,group\na_scan,1\nb,1\nz,1\n")
    assert groups == {"a_scan": "1", "b": "1"}
    assert notes[1:] == ("1 name in groups.csv belongs to no image (z)",)
    with pytest.raises(DataError, match=r"no image is named a_scam \(did you mean 'a_scan'\?\)"):
        groups_of(tmp_path, "name,group\na_scam,1\nb,1\n")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a,1\nb,1\n", "first line must be 'name,group', found 'a,1'"),
        ("", "first line must be"),
        ("name,group\n", "it has no rows"),
        ("name,group\na,1\na.png,2\n", "line 3: 'a.png' is in two groups, '1' and '2'"),
        ("name,group\na,\n", "line 2: name and group must not be empty"),
        ("name,group\na\n", "line 2: name and group must not be empty"),
    ],
)
def test_malformed_group_files(tmp_path: Path, text: str, reason: str) -> None:
    make(tmp_path, {"a": mask(1), "b": mask(1)})
    with pytest.raises(DataError, match=reason):
        groups_of(tmp_path, text)


def test_a_missing_group_file_is_an_error(tmp_path: Path) -> None:
    make(tmp_path, {"a": mask(1)})
    with pytest.raises(DataError, match=r"nowhere\.csv.*cannot be read"):
        find(tmp_path, tmp_path / "nowhere.csv")


# --- facts ----------------------------------------------------------------------------------------------------------


def test_facts_of_a_small_data_set(tmp_path: Path) -> None:
    make(tmp_path, {"a": mask(1, 2), "b": mask(), "c": None})
    found = open_catalog(str(tmp_path))
    assert (found.ndim, found.channels, found.num_classes, found.label_values) == (2, 1, 3, (0, 1, 2))
    assert [c.id for c in found.labeled] == ["a", "b"]
    assert [c.id for c in found.unlabeled] == ["c"]
    assert found.facts["a"].foreground == pytest.approx(2 / 72)
    assert (found.facts["a"].values, found.facts["a"].shape, found.facts["a"].dtype) == ((0, 1, 2), (8, 9), "uint8")
    assert (found.facts["b"].values, found.facts["b"].foreground) == ((0,), 0.0)
    assert (found.facts["c"].values, found.facts["c"].foreground) == (None, None)
    assert found.case("b").id == "b"
    with pytest.raises(DataError, match="no case 'bb'"):
        found.case("bb")


def test_an_unknown_case_names_the_nearest(tmp_path: Path) -> None:
    found = open_catalog(make(tmp_path, {"scan_01": mask(1), "other": mask(1)}))
    with pytest.raises(DataError, match="did you mean 'scan_01'"):
        found.case("scan_1")


def test_ignored_voxels_count_neither_as_foreground_nor_as_looked_at(tmp_path: Path) -> None:
    make(tmp_path, {"a": mask(1, 255, 255), "b": np.full((8, 9), 255, np.uint8)})
    found = open_catalog(str(tmp_path), CatalogSettings(meaning=Meaning(ignore_value=255)))
    assert found.label_values == (0, 1)
    assert found.ignore_value == 255
    assert found.facts["a"].values == (0, 1, 255)
    assert found.facts["a"].foreground == pytest.approx(1 / 70)
    assert found.facts["b"].foreground is None
    assert [case.id for case in found.unlabeled] == ["b"]


def test_given_label_values_decide_what_background_is(tmp_path: Path) -> None:
    make(tmp_path, {"a": np.where(mask(1) == 1, 0, 7).astype(np.uint8)})
    found = open_catalog(str(tmp_path), CatalogSettings(meaning=Meaning(label_values=(7, 0))))
    assert found.label_values == (7, 0)
    assert found.facts["a"].foreground == pytest.approx(1 / 72)


def test_content_depends_on_pixels_and_not_on_the_format(tmp_path: Path) -> None:
    pixels, labels = image(), mask(1)
    for folder, suffix in (("one", ".png"), ("two", ".tif"), ("three", ".bmp")):
        save(tmp_path / folder / "images" / f"a{suffix}", pixels)
        save(tmp_path / folder / "masks" / f"a{suffix}", labels)
    one, two, three = (open_catalog(str(tmp_path / f)).facts["a"].content for f in ("one", "two", "three"))
    assert one == two == three
    assert len(one) == 16
    assert set(one) <= set("0123456789abcdef")
    save(tmp_path / "two" / "masks" / "a.tif", mask(0, 1))
    (tmp_path / "three" / "masks" / "a.bmp").unlink()
    save(tmp_path / "one" / "images" / "a.png", pixels ^ 1)
    changed_image, changed_mask, no_mask = (
        open_catalog(str(tmp_path / f)).facts["a"].content for f in ("one", "two", "three")
    )
    assert changed_image[:12] != one[:12]
    assert changed_mask[:12] == no_mask[:12] == one[:12]
    assert len({one[12:], changed_mask[12:], no_mask[12:]}) == 3


def test_content_tells_shapes_and_dtypes_apart(tmp_path: Path) -> None:
    for name, array in {
        "a": np.zeros((4, 6), np.uint8),
        "b": np.zeros((6, 4), np.uint8),
        "c": np.zeros((4, 3), np.uint16),
    }.items():
        save(tmp_path / "images" / f"{name}.tif", array)
    assert len({f.content for f in open_catalog(str(tmp_path)).facts.values()}) == 3


def test_gray_and_color_images_may_be_mixed(tmp_path: Path) -> None:
    make(tmp_path, {"a": None})
    save(tmp_path / "images" / "b.png", image((8, 9, 3)))
    assert open_catalog(str(tmp_path)).channels == 3


def test_each_case_is_read_once_and_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, {"a": mask(1), "b": None, "c": mask(1)})
    read: list[str] = []
    original = catalog_module.read_facts
    monkeypatch.setattr(catalog_module, "read_facts", lambda case, **kw: read.append(case.id) or original(case, **kw))
    tracked: list[Any] = []

    def track(items: Iterable[Any], total: int) -> Iterable[Any]:
        assert total == 3
        for item in items:
            tracked.append(item)
            yield item

    open_catalog(str(tmp_path), track=track)
    assert sorted(read) == ["a", "b", "c"]
    assert len(tracked) == 3


# --- problems -------------------------------------------------------------------------------------------------------


def test_all_problems_come_in_one_error(tmp_path: Path) -> None:
    make(tmp_path, {"good": mask(1), "odd": mask(1), "size": mask(1, shape=(8, 8)), "corrupt": mask(1)})
    (tmp_path / "masks" / "corrupt.png").write_bytes((tmp_path / "masks" / "good.png").read_bytes()[:-5])
    save(tmp_path / "masks" / "odd.png", mask(1, 77))
    save(tmp_path / "images" / "volume.tif", image((4, 8, 9)))
    with pytest.raises(DataError) as raised:
        open_catalog(str(tmp_path))
    text = str(raised.value)
    assert "4 problems" in text
    assert f"{tmp_path / 'masks' / 'corrupt.png'}: cannot be read" in text
    assert f"{tmp_path / 'masks' / 'size.png'}: the mask is 8 x 8, its image 8 x 9" in text
    assert "2 with 2D (e.g. good), 1 with 3D (e.g. volume)" in text
    assert "1 mask of 2 holds values {77}, the others only {0, 1}" in text
    assert "odd)" in text


@pytest.mark.parametrize(("files", "problems", "shown"), [(4, 4, 4), (5, 5, 5), (6, 1, 5), (11, 1, 5)])
def test_many_files_with_one_problem_are_one(tmp_path: Path, files: int, problems: int, shown: int) -> None:
    make(tmp_path, dict.fromkeys([f"{i:02d}" for i in range(files)], mask(1)))
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{problems} problems?") as raised:
        open_catalog(str(tmp_path))
    assert str(raised.value).count("the file is empty") == shown
    assert (f"{files} cases cannot be used" in str(raised.value)) == (problems == 1)


def test_values_outside_given_label_values_name_the_file(tmp_path: Path) -> None:
    make(tmp_path, {"a": mask(1), "b": mask(1, 3), "c": mask(9)})
    with pytest.raises(DataError) as raised:
        open_catalog(str(tmp_path), CatalogSettings(meaning=Meaning(label_values=(0, 1), ignore_value=9)))
    assert "1 mask of 3 holds values {3}, which are not among the label values {0, 1}" in str(raised.value)
    assert "(b)" in str(raised.value)
    assert "1 problem" in str(raised.value)
    assert (
        open_catalog(
            str(tmp_path), CatalogSettings(meaning=Meaning(label_values=(0, 1, 3), ignore_value=9))
        ).num_classes
        == 3
    )


def test_channel_counts_must_agree(tmp_path: Path) -> None:
    for name, channels in {"a": 2, "b": 2, "c": 5}.items():
        stack = image((channels, 8, 9))
        (tmp_path / "images").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", stack, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(DataError, match=r"2 with 2 channels \(e\.g\. a\), 1 with 5 channels \(e\.g\. c\)"):
        open_catalog(str(tmp_path))
    (tmp_path / "images" / "c.tif").unlink()
    assert open_catalog(str(tmp_path)).channels == 2


# --- notes ----------------------------------------------------------------------------------------------------------


def test_empty_masks_and_missing_masks_are_said_loudly(tmp_path: Path) -> None:
    full = open_catalog(make(tmp_path / "w", {"a": mask() + 1, "b": mask() + 1}))
    assert "all 2 masks hold 1 and nothing else" in full.notes[-1]
    assert "all 2 masks are there and EMPTY" in open_catalog(make(tmp_path / "x", {"a": mask(), "b": mask()})).notes[-1]
    assert "none of the 1 images has a mask" in open_catalog(make(tmp_path / "y", {"a": None})).notes[-1]
    assert open_catalog(make(tmp_path / "z", {"a": mask(), "b": mask(1)})).notes == ()


def test_faults_of_images_that_a_training_can_bear_are_said(tmp_path: Path) -> None:
    make(tmp_path, {"a": mask(1), "b": mask(1), "c": mask(1)})
    save(tmp_path / "images" / "flat.png", np.full_like(image(), 9))
    save(tmp_path / "masks" / "flat.png", np.zeros_like(mask(1)))
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "images" / "copy.png")
    shutil.copy(tmp_path / "masks" / "a.png", tmp_path / "masks" / "copy.png")
    assert not any("WARNING" in note for note in open_catalog(tmp_path).notes)
    for name in ("flat", "copy"):
        save(tmp_path / "masks" / f"{name}.png", np.flipud(mask(1)).copy())
    notes = "\n".join(open_catalog(tmp_path).notes)
    assert "WARNING conflicting_masks: 2 cases in 1 set (a = copy) of the same image have different masks" in notes
    assert "WARNING constant_image: 1 image of one single value has foreground in the mask" in notes
    save(tmp_path / "images" / "d.png", mask(255))
    assert "WARNING mask_as_image: 1 image has two values only" in open_catalog(tmp_path).notes[-1]


def test_smoothed_masks_are_suspected(tmp_path: Path) -> None:
    gradient = np.arange(72, dtype=np.uint8).reshape(8, 9)
    found = open_catalog(make(tmp_path, {"a": gradient}))
    assert "71 values besides 0" in found.notes[-1]
    assert open_catalog(str(tmp_path), CatalogSettings(meaning=Meaning(label_values=tuple(range(72))))).notes == ()
    assert open_catalog(str(tmp_path), CatalogSettings(meaning=Meaning(kind="semantic"))).notes == ()


# --- sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "ndim", "count"), [("particles", 2, 200), ("sheets", 3, 40)])
def test_the_synthetic_catalog(kind: str, ndim: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = find_listing(Path(f"synthetic:{kind}"))
    assert (len(listing.cases), listing.notes) == (count, ())
    monkeypatch.setattr(catalog_module, "find_listing", lambda *_, **__: replace(listing, cases=listing.cases[:4]))
    found = open_catalog(f"synthetic:{kind}")
    assert (found.ndim, found.channels, found.label_values) == (ndim, 1, (0, 1))
    assert [c.id for c in found.labeled] == ["0000", "0001", "0002", "0003"]


def test_real_data_sets(emps_dir: Path, la_half_dir: Path) -> None:
    emps = open_catalog(str(emps_dir))
    assert (len(emps.cases), len(emps.labeled), emps.ndim, emps.label_values) == (366, 366, 2, (0, 255))
    assert all(c.group for c in emps.cases)
    assert mean_foreground(emps) == pytest.approx(0.33, abs=0.02)
    atria = open_catalog(str(la_half_dir))
    assert (len(atria.cases), atria.ndim, atria.channels, atria.label_values) == (80, 3, 1, (0, 1))
    assert mean_foreground(atria) == pytest.approx(0.09, abs=0.01)


def mean_foreground(found: Catalog) -> float:
    return float(np.mean([found.facts[c.id].foreground for c in found.labeled]))
