"""How data sets may lie on disk: what each layout finds, what it says, and what it refuses."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_seg.data.findings import select_faults
from ssl_seg.data.layouts import LAYOUTS, find_listing
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.errors import ConfigError, DataError


def touch(root: Path, *names: str) -> Path:
    """Make empty files: nothing may be decoded here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def pairs(listing: Listing, root: Path) -> dict[str, tuple[str, str | None]]:
    """Return id -> image and mask, relative to ``root``."""
    return {c.id: (below(c.image, root), c.mask and below(c.mask, root)) for c in listing.cases}


def below(location: str, root: Path) -> str:
    return location.removeprefix(f"{root}/")


def codes(listing: Listing) -> dict[str, tuple[str, ...]]:
    """Return code -> cases of the findings."""
    return {f.code: f.cases for f in listing.findings}


def said(listing: Listing, text: str) -> bool:
    return any(text in note for note in listing.notes)


# --- choice ---------------------------------------------------------------------------------------------------------


def small_set(name: str, root: Path) -> Path:
    """Write a set in the layout of this name."""
    if name == "manifest":
        touch(root, "a.png")
        (root / "manifest.csv").write_text("image\na.png\n")
    elif name == "nnunet":
        write_nnunet(root, ["a_0000"], ["a"])
    elif name == "hdf5":
        write_h5(root / "a.h5")
    else:
        touch(root, *{"folders": ("images/a.png", "masks/a.png"), "suffix": ("a.png", "a_mask.png")}[name])
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognized_and_forced_layouts_say_what_is_missing(tmp_path: Path, name: str) -> None:
    root = small_set(name, tmp_path / name)
    listing = find_listing(root)
    assert listing.layout == name == LAYOUTS[name].name
    assert [c.id for c in listing.cases] == ["a"]
    assert find_listing(root, name) == listing
    assert [n for n, layout in LAYOUTS.items() if layout.recognize(root)] == [name]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=str(tmp_path / "empty")):
        find_listing(tmp_path / "empty", name)


def test_a_manifest_comes_before_the_folders_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "masks/b.png")
    (tmp_path / "manifest.csv").write_text("image\nimages/a.png\n")
    assert find_listing(tmp_path).layout == "manifest"
    assert [c.id for c in find_listing(tmp_path, "folders").cases] == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "layout"),
    [("image,mask", "manifest"), ("image,has_segmentation", "manifest"), ("image,area", "folders")],
)
def test_beside_images_only_a_table_about_masks_is_a_manifest(tmp_path: Path, header: str, layout: str) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "train.csv").write_text(f"{header}\nimages/a.png,1\n")
    assert find_listing(tmp_path).layout == layout


def test_an_unknown_layout_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown layout 'nnunett' \(did you mean 'nnunet'\?\).*auto, manifest"):
        find_listing(tmp_path, "nnunett")


def test_nothing_recognized_lists_the_layouts(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.tif")
    with pytest.raises(DataError) as raised:
        find_listing(tmp_path)
    lines = str(raised.value).splitlines()
    assert "It holds a.png, a.tif. Put the images into" in lines[0]
    assert [line.strip().partition(":")[0] for line in lines[2:]] == list(LAYOUTS)


def test_roots_that_are_no_folder(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match="does not exist"):
        find_listing(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file, expected a folder"):
        find_listing(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"is a file, expected a folder\. Only the layout manifest"):
        find_listing(tmp_path / "notes.txt", "suffix")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_group_file_serves_every_layout(tmp_path: Path, name: str) -> None:
    root = small_set(name, tmp_path)
    (root / "groups.csv").write_text("name,group,image\na,p1,a.png\n")
    listing = find_listing(root)
    assert (listing.layout, [c.group for c in listing.cases]) == (name, ["p1"])
    assert said(listing, f"groups are taken from {root / 'groups.csv'}")
    if name == "manifest":
        assert find_listing(root / "manifest.csv") == listing
    (root / "mine.txt").write_text("name,group\na,p2\n")
    assert [c.group for c in find_listing(root, groups=root / "mine.txt").cases] == ["p2"]


# --- manifest -------------------------------------------------------------------------------------------------------


def write_table(root: Path, suffix: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"manifest{suffix}"
    if suffix == ".csv":
        lines = [",".join("" if c is None else str(c) for c in row) for row in [columns, *rows]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    else:
        pq.write_table(pa.table({c: [row[n] for row in rows] for n, c in enumerate(columns)}), path)
    return path


BOTH = pytest.mark.parametrize("suffix", [".csv", ".parquet"])


@BOTH
def test_a_manifest_with_all_columns(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "x/a.png", "x/b.png", "x/c.png", "x/d.nii.gz", "y/a.png", "y/b.png", "y/c.png")
    columns = ["image", "mask", "group", "labeled", "has_segmentation", "id", "Scanner", "date"]
    rows = [
        ["x/b.png", "y/b.png", "p1", True, True, None, "s", 1],
        ["x\\a.png", "y\\a.png", "p1", True, True, "first", "s", 2],
        ["x/c.png", "y/c.png", None, False, True, None, "s", 3],
        ["x/d.nii.gz", None, "p2", False, False, None, "s", 4],
    ]
    path = write_table(tmp_path, suffix, columns, rows)
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {
        "first": ("x/a.png", "y/a.png"),
        "x/b": ("x/b.png", "y/b.png"),
        "x/c": ("x/c.png", None),
        "x/d": ("x/d.nii.gz", None),
    }
    assert [c.group for c in listing.cases] == ["p1", "p1", None, "p2"]
    assert listing.declared == {"first": True, "x/b": True, "x/c": True, "x/d": False}
    assert listing.findings == ()
    assert listing.notes == (
        f"cases are taken from {path}",
        f"2 unknown column(s) of {path.name} are not used (scanner, date)",
    )
    assert find_listing(path) == listing


@BOTH
def test_a_case_without_segmentation_is_unlabeled_whatever_else_its_row_says(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, *(f"{n}.png" for n in "abcde"), "ma.png", "mb.png")
    rows = [
        ["a.png", "ma.png", True],
        ["b.png", "mb.png", False],
        ["c.png", None, True],
        ["d.png", "gone.png", True],
        ["e.png", "gone.png", False],
    ]
    write_table(tmp_path, suffix, ["image", "mask", "has_segmentation"], rows)
    listing = find_listing(tmp_path)
    assert [c.id for c in listing.cases if c.mask] == ["a"]
    assert [c.id for c in listing.cases] == ["a", "b", "c", "d", "e"]
    assert codes(listing) == {"missing_mask": ("c", "d"), "has_segmentation_disagrees": ("b",)}
    assert [f.code for f in select_faults(listing.findings)] == ["missing_mask"]
    assert listing.declared == {"a": True, "b": False, "c": True, "d": True, "e": False}


@pytest.mark.parametrize(("row", "is_fault"), [("a.png,gone.png,true", True), ("a.png,gone.png,false", False)])
def test_a_mask_that_is_not_there_is_a_fault_unless_it_is_not_wanted(tmp_path: Path, row: str, is_fault: bool) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "manifest.csv").write_text(f"image,mask,labeled\n{row}\n")
    assert ("missing_mask" in codes(find_listing(tmp_path))) == is_fault
    (tmp_path / "manifest.csv").write_text("image,mask\na.png,gone.png\n")
    assert codes(find_listing(tmp_path)) == {"missing_mask": ("a",)}
    (tmp_path / "manifest.csv").write_text("image,mask\na.png,\n")
    assert codes(find_listing(tmp_path)) == {}


def test_no_segmentation_at_all_is_a_fault(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    write_table(tmp_path, ".csv", ["image", "has_segmentation"], [["a.png", 0], ["b.png", "No"]])
    listing = find_listing(tmp_path)
    assert [(f.code, f.level) for f in listing.findings] == [("no_segmentation", "fault")]
    write_table(tmp_path, ".csv", ["image", "has_segmentation"], [["a.png", 0], ["b.png", "yes"]])
    assert "no_segmentation" not in codes(find_listing(tmp_path))


def test_labeled_but_without_segmentation_is_a_contradiction(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png", "m.png")
    columns = ["image", "mask", "labeled", "has_segmentation"]
    write_table(tmp_path, ".csv", columns, [["a.png", "", 1, 0], ["b.png", "m.png", 1, 1]])
    assert codes(find_listing(tmp_path)) == {"has_segmentation_disagrees": ("a",)}


def test_missing_images_are_a_fault_and_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    write_table(tmp_path, ".csv", ["image"], [["a.png"], ["gone.png"], ["x" * 5000 + ".png"]])
    listing = find_listing(tmp_path)
    assert [c.id for c in listing.cases] == ["a"]
    assert codes(listing) == {"missing_image": ("gone", "x" * 5000)}
    assert said(listing, "neither a column mask nor has_segmentation")
    write_table(tmp_path, ".csv", ["image"], [["gone.png"]])
    with pytest.raises(DataError, match=r"none of its 1 images is there, e\.g\. .*gone\.png\. Paths are relative to"):
        find_listing(tmp_path)


def test_arrays_inside_files_and_folders_that_are_images(tmp_path: Path) -> None:
    touch(tmp_path, "set.h5", "v.zarr/zarr.json")
    rows = [["set.h5::scans/one", "set.h5::masks/one"], ["set.h5::scans/two", ""], ["v.zarr", ""]]
    write_table(tmp_path, ".csv", ["image", "mask"], rows)
    assert pairs(find_listing(tmp_path), tmp_path) == {
        "set/scans/one": ("set.h5::scans/one", "set.h5::masks/one"),
        "set/scans/two": ("set.h5::scans/two", None),
        "v": ("v.zarr", None),
    }


def test_folders_that_all_images_share_are_no_part_of_the_ids(tmp_path: Path) -> None:
    touch(tmp_path, "data/im/x/a.png", "data/im/y/b.png", "data/im/c.png")
    rows = [["data/im/x/a.png"], ["data/im/y/b.png"]]
    write_table(tmp_path, ".csv", ["image"], rows)
    assert [c.id for c in find_listing(tmp_path).cases] == ["x/a", "y/b"]
    write_table(tmp_path, ".csv", ["image"], [*rows, ["data/im/c.png"]])
    assert [c.id for c in find_listing(tmp_path).cases] == ["c", "x/a", "y/b"]


def test_ids_stay_below_the_output_folder(tmp_path: Path) -> None:
    root = touch(tmp_path, "pool/a.png", "set/b.png") / "set"
    write_table(root, ".csv", ["image"], [["../pool/a.png"], [root / "b.png"]])
    listing = find_listing(root)
    assert [c.id for c in listing.cases] == ["b", "pool/a"]
    assert Path(listing.cases[1].image).is_file()
    for bad in ("../up", "/abs", "a//b", "."):
        write_table(root, ".csv", ["image", "id"], [["b.png", bad]])
        with pytest.raises(DataError, match=r"line 2: the id '.*' must be a relative path"):
            find_listing(root)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image,mask\na.png,a.png\n,b.png\n", "line 3: image must not be empty"),
        ("image,labeled\na.png,maybe\n", "line 2: labeled is 'maybe', must be one of true, 1, yes, false, 0, no"),
        ("image,has_segmentation\na.png,1\na.png,\n", "line 3: has_segmentation is ''"),
        ("image,id\na.png,x\n\nb.png,x\n", "line 4: the id 'x' is that of line 2 too"),
        ("image\na.png\na.png\n", "line 3: the id 'a' is that of line 2 too"),
        ("file,mask\na.png,\n", "no column 'image', found 'file,mask'. Known are image, mask"),
        ("image,mask,image\na.png,,\n", "column 'image' is there twice"),
        ("image,mask\na.png,m.png,x\n", "line 2: 3 cells, the first line has 2"),
        ('image\n"a.png\n', "the table cannot be read"),
        ("image\n", "no rows"),
        ("", "no column 'image'"),
    ],
)
def test_malformed_manifests(tmp_path: Path, text: str, reason: str) -> None:
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match=reason) as raised:
        find_listing(tmp_path)
    assert str(tmp_path / "manifest.csv") in str(raised.value)


def test_unreadable_manifests(tmp_path: Path) -> None:
    for suffix, content in {".csv": b"image\n\xff\xfe.png", ".parquet": b"PAR1 no"}.items():
        path = tmp_path / f"table{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError, match="the table cannot be read"):
            find_listing(path)


def test_parquet_cells_must_be_text_or_truth_values(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"image": [{"bytes": b"x"}]}), path)
    with pytest.raises(DataError, match=r"row 1, column image: expected text.*found dict"):
        find_listing(path)
    touch(tmp_path, "a.png")
    pq.write_table(pa.table({"image": ["a.png", "a.png"], "has_segmentation": [True, None]}), path)
    with pytest.raises(DataError, match="row 2: has_segmentation is ''"):
        find_listing(path)


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path, ".parquet", ["image"], [["a.png"]])
    for name in [m for m in sys.modules if m.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow.*Run pip install 'ssl-seg\[parquet\]'"):
        find_listing(path)


def test_one_table_of_any_name_is_a_manifest_and_two_are_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / "other.csv").write_text("name,value\na,1\n")
    (tmp_path / "train.csv").write_text("image\na.png\n")
    assert [c.id for c in find_listing(tmp_path).cases] == ["a"]
    (tmp_path / "val.csv").write_text("image\na.png\n")
    with pytest.raises(DataError, match=r"2 manifests \(train\.csv, val\.csv\). Name one of the files"):
        find_listing(tmp_path)
    assert [c.id for c in find_listing(tmp_path / "val.csv").cases] == ["a"]
    (tmp_path / "manifest.csv").write_text("image\na.png\n")
    assert said(find_listing(tmp_path), "manifest.csv")


# --- nnU-Net --------------------------------------------------------------------------------------------------------

DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "tumor": 2, "organ": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def write_nnunet(root: Path, images: Sequence[str], masks: Sequence[str], **changes: Any) -> Path:
    """Write empty files and dataset.json; a change to None removes the key."""
    description = {k: v for k, v in (DESCRIPTION | changes).items() if v is not None}
    ending = description.get("file_ending", ".nii.gz")
    touch(root, *(f"imagesTr/{i}{ending}" for i in images), *(f"labelsTr/{i}{ending}" for i in masks))
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_nnunet_channels_labels_and_unlabeled_cases(tmp_path: Path) -> None:
    images = ["liver_10_0000", "liver_10_0001", "liver_2_0001", "liver_2_0000"]
    write_nnunet(tmp_path, images, ["liver_2", "old"], channel_names={"0": "CT", "1": "PET"})
    touch(
        tmp_path, "imagesTs/x_0000.nii.gz", "imagesTs/x_0001.nii.gz", "imagesTr/notes.txt", "imagesTr/._a_0000.nii.gz"
    )
    listing = find_listing(tmp_path)
    folder = tmp_path / "imagesTr"
    assert listing.cases == tuple(
        Case(
            i,
            str(folder / f"{i}_0000.nii.gz"),
            str(tmp_path / "labelsTr" / f"{i}.nii.gz") if i == "liver_2" else None,
            None,
            (str(folder / f"{i}_0001.nii.gz"),),
        )
        for i in ("liver_10", "liver_2")
    )
    assert (listing.label_values, listing.class_names) == ((0, 1, 2), ("background", "organ", "tumor"))
    assert listing.ignore_value is None
    assert codes(listing) == {"unpaired_mask": ("old",)}
    assert listing.notes == (
        "1 file(s) in imagesTr/ do not end in .nii.gz and are not used (notes.txt)",
        "1 mask(s) without an image are not used (old)",
        "1 of 2 images have no mask file and count as unlabeled",
        "2 file(s) of imagesTs/ are not used",
    )


@pytest.mark.parametrize(
    ("labels", "values", "names", "ignored"),
    [
        ({"0": "background", "2": "b", "1": "a"}, (0, 1, 2), ("background", "a", "b"), None),
        ({"background": 0, "x": 1, "ignore": 2}, (0, 1), ("background", "x"), 2),
        (None, None, (), None),
    ],
)
def test_labels_of_both_versions(
    tmp_path: Path, labels: Any, values: Any, names: tuple[str, ...], ignored: int | None
) -> None:
    listing = find_listing(write_nnunet(tmp_path, ["a_0000"], ["a"], labels=labels))
    assert (listing.label_values, listing.class_names, listing.ignore_value) == (values, names, ignored)


def test_the_decathlon_has_no_channel_numbers(tmp_path: Path) -> None:
    write_nnunet(
        tmp_path,
        ["brats_1", "brats_2"],
        ["brats_1"],
        file_ending=None,
        channel_names=None,
        modality={"0": "T1", "1": "T2"},
    )
    listing = find_listing(tmp_path)
    assert [(c.id, c.more_channels, bool(c.mask)) for c in listing.cases] == [
        ("brats_1", (), True),
        ("brats_2", (), False),
    ]


def test_one_file_of_colors_may_hold_all_channels(tmp_path: Path) -> None:
    colors = {"0": "R", "1": "G", "2": "B"}
    write_nnunet(tmp_path / "png", ["a_0000"], ["a"], channel_names=colors, file_ending=".png")
    assert [c.id for c in find_listing(tmp_path / "png").cases] == ["a"]
    write_nnunet(tmp_path / "nii", ["a_0000"], ["a"], channel_names=colors)
    with pytest.raises(DataError, match=r"names 3 channel\(s\), and 1 case\(s\) have another number.*e\.g\. a has 1"):
        find_listing(tmp_path / "nii")


TWO = {"0": "a", "1": "b"}


@pytest.mark.parametrize(
    ("images", "changes", "reason"),
    [
        (["a_0000", "a_0001", "b_0000"], {"channel_names": TWO}, r"names 2 channel\(s\).*e\.g\. b has 1"),
        (["a_0000", "b_0001"], {}, r"b_0001\.nii\.gz: the channels of a case end in _0000"),
        (["a_0000", "a_0002"], {}, r"a_0002\.nii\.gz: the channels of a case"),
        (["a_0000", "b"], {}, r"b\.nii\.gz: the channels of a case"),
        ([], {}, r"no imagesTr|holds no file that ends in \.nii\.gz"),
        (["a_0000"], {"labels": {"background": 0, "whole": [1, 2]}}, r"'whole' is a region of the values \[1, 2\]"),
        (["a_0000"], {"labels": {"background": 0, "x": 1.5}}, "label 'x': 1.5 is neither"),
        (["a_0000"], {"labels": {"background": 0, "x": True}}, "label 'x': True is neither"),
        (["a_0000"], {"labels": {"x": 1, "y": 2}}, r"0 for the background.*found \[1, 2\]"),
        (["a_0000"], {"labels": {"background": 0, "x": 1, "y": 1}}, "one name for each value"),
        (["a_0000"], {"labels": {"background": 0}}, "and another"),
        (["a_0000"], {"labels": [0, 1]}, "labels must map names to values"),
        (["a_0000"], {"channel_names": None}, "channel_names must map channel numbers"),
        (["a_0000"], {"channel_names": ["CT"]}, "channel_names must map channel numbers"),
        (["a_0000"], {"file_ending": ".mha"}, r"file_ending '\.mha' cannot be read. Known are"),
        (["a_0000"], {"dataset": {"a": {}}}, "file lists under 'dataset' are not read"),
    ],
)
def test_nnunet_folders_that_are_not_right(tmp_path: Path, images: list[str], changes: Any, reason: str) -> None:
    write_nnunet(tmp_path, images, [], **changes)
    with pytest.raises(DataError, match=reason) as raised:
        find_listing(tmp_path, "nnunet")
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "[" * 100_000, "\ufeff{"])
def test_a_broken_dataset_json(tmp_path: Path, text: str) -> None:
    write_nnunet(tmp_path, ["a_0000"], ["a"])
    (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"dataset\.json: (cannot be read|must be an object)"):
        find_listing(tmp_path)


def test_labels_of_other_names_say_how_to_rename(tmp_path: Path) -> None:
    write_nnunet(tmp_path, ["a1_0000"], ["a1_seg"])
    with pytest.raises(DataError, match=r"none of the 1 masks.*rename a1_seg\.nii\.gz to a1\.nii\.gz"):
        find_listing(tmp_path)


# --- HDF5 -----------------------------------------------------------------------------------------------------------


def write_h5(path: Path, keys: Sequence[str] = ("image", "label")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key in keys:
            file[key] = np.zeros((2, 2))


@pytest.mark.parametrize("folder", ["", "2018LA_Seg_Training Set/"])
def test_the_published_left_atrium_layout(tmp_path: Path, folder: str) -> None:
    for name in ("A1", "B2", "C3", "T9"):
        write_h5(tmp_path / f"{folder}{name}" / "mri_norm2.h5", ("image",) if name == "C3" else ("image", "label"))
    place = {n: f"{folder}{n}/mri_norm2.h5" for n in ("A1", "B2", "C3", "T9")}
    (tmp_path / "train.list").write_text("C3\r\nA1\n\nB2\nZ0\n")
    (tmp_path / "test.list").write_text("T9\n")
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {
        "A1": (f"{place['A1']}::image", f"{place['A1']}::label"),
        "B2": (f"{place['B2']}::image", f"{place['B2']}::label"),
        "C3": (f"{place['C3']}::image", None),
    }
    assert listing.notes == (
        f"cases are taken from {tmp_path / 'train.list'}",
        f"1 HDF5 file(s) are not in train.list and are left out ({place['T9']})",
        "1 of 3 images have no mask file and count as unlabeled",
    )
    assert [(f.code, f.level, f.cases) for f in listing.findings] == [("missing_image", "fault", ("Z0",))]


def test_ids_are_those_of_the_list_without_a_list_too(tmp_path: Path) -> None:
    write_h5(tmp_path / "A1" / "mri_norm2.h5")
    write_h5(tmp_path / "B2.hdf5", ("image", "mask"))
    without = find_listing(tmp_path)
    (tmp_path / "train.list").write_text("A1\nB2.hdf5\n")
    assert find_listing(tmp_path).cases == without.cases
    assert [(c.id, below(c.mask or "", tmp_path)) for c in without.cases] == [
        ("A1", "A1/mri_norm2.h5::label"),
        ("B2", "B2.hdf5::mask"),
    ]


def test_the_published_acdc_layout(tmp_path: Path) -> None:
    slices = [f"patient{p:03d}_frame01_slice_{s}" for p in (1, 2) for s in (1, 2)]
    for name in slices:
        write_h5(tmp_path / "data" / "slices" / f"{name}.h5")
    for name in ("patient001_frame01", "patient002_frame01"):
        write_h5(tmp_path / "data" / f"{name}.h5")
    (tmp_path / "train_slices.list").write_text("\n".join(slices[:3]))
    listing = find_listing(tmp_path)
    assert [c.id for c in listing.cases] == slices[:3]
    assert [c.group for c in listing.cases] == ["patient001", "patient001", "patient002"]
    assert said(listing, "3 case(s) are grouped by the patient in their name")
    assert said(listing, "3 HDF5 file(s) are not in train_slices.list")
    (tmp_path / "train.list").write_text("patient002_frame01.h5\n")
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {
        "patient002_frame01": ("data/patient002_frame01.h5::image", "data/patient002_frame01.h5::label")
    }
    assert listing.cases[0].group == "patient002"


def test_other_names_form_no_groups(tmp_path: Path) -> None:
    for name in ("patient001", "x_patient001_frame01", "patient001_frame01_extra"):
        write_h5(tmp_path / f"{name}.h5")
    listing = find_listing(tmp_path)
    assert {c.group for c in listing.cases} == {None}
    assert listing.notes == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n \n", "no names in it"),
        ("a\na.h5\n", "line 2: 'a' is in line 1 too"),
        ("../a\n", "line 1: the id '../a' must be a relative path"),
        ("b\nc\n", r"there is no file for any of its names, e\.g\. b"),
    ],
)
def test_lists_that_are_not_right(tmp_path: Path, text: str, reason: str) -> None:
    write_h5(tmp_path / "a.h5")
    (tmp_path / "train.list").write_text(text)
    with pytest.raises(DataError, match=reason) as raised:
        find_listing(tmp_path)
    assert str(tmp_path / "train.list") in str(raised.value)


def test_files_without_an_image(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5")
    write_h5(tmp_path / "b.h5", ("weights",))
    listing = find_listing(tmp_path)
    assert [c.id for c in listing.cases] == ["a"]
    assert codes(listing) == {"missing_image": ("b",)}
    (tmp_path / "a.h5").unlink()
    with pytest.raises(DataError, match="has no subfolder images/"):
        find_listing(tmp_path)
    with pytest.raises(DataError, match=r"none of the 1 .*holds an array 'image'"):
        find_listing(tmp_path, "hdf5")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5")
    (tmp_path / "b.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:700])
    with pytest.raises(DataError, match=r"b\.h5: cannot be read"):
        find_listing(tmp_path)


def test_two_files_of_one_id_are_refused(tmp_path: Path) -> None:
    write_h5(tmp_path / "a.h5")
    write_h5(tmp_path / "a" / "mri_norm2.h5")
    with pytest.raises(DataError, match="would both be the case a"):
        find_listing(tmp_path)


def test_hdf5_files_in_images_belong_to_that_folder(tmp_path: Path) -> None:
    write_h5(tmp_path / "images" / "a.h5")
    listing = find_listing(tmp_path)
    assert (listing.layout, pairs(listing, tmp_path)) == ("folders", {"a": ("images/a.h5", None)})


# --- folders --------------------------------------------------------------------------------------------------------


def test_further_unlabeled_images(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.nii.gz", "unlabeled/a.png", "unlabeled/sub/b.tif", "unlabeled/x.txt")
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {
        "a": ("images/a.png", "masks/a.nii.gz"),
        "unlabeled/a": ("unlabeled/a.png", None),
        "unlabeled/sub/b": ("unlabeled/sub/b.tif", None),
    }
    assert listing.notes == (
        "1 file(s) in unlabeled/ are no images and not used (x.txt)",
        "2 unlabeled image(s) are taken from unlabeled/",
    )
    touch(tmp_path, "images/unlabeled/a.png")
    with pytest.raises(DataError, match="would both be the case unlabeled/a"):
        find_listing(tmp_path)


def test_zarr_folders_are_one_image_and_hidden_files_none(tmp_path: Path) -> None:
    touch(tmp_path, "images/v.zarr/c/0/0.png", "images/w.ome.zarr/0/zarr.json", "masks/v.zarr/zarr.json")
    touch(tmp_path, "images/.cache/x.png", "images/.x.png")
    assert pairs(find_listing(tmp_path), tmp_path) == {
        "v": ("images/v.zarr", "masks/v.zarr"),
        "w": ("images/w.ome.zarr", None),
    }


def test_unpaired_masks_are_a_finding(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png", "masks/b.png")
    assert [(f.code, f.level, f.cases) for f in find_listing(tmp_path).findings] == [("unpaired_mask", "warn", ("b",))]


def test_masks_among_the_images_are_not_taken_for_images(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/a_mask.png", "images/b.png")
    listing = find_listing(tmp_path)
    assert listing.layout == "suffix"
    assert pairs(listing, tmp_path) == {
        "images/a": ("images/a.png", "images/a_mask.png"),
        "images/b": ("images/b.png", None),
    }
    (tmp_path / "masks").mkdir()
    assert find_listing(tmp_path).layout == "folders"


NAMES = st.sets(st.sampled_from(["a", "b", "c", "d/a", "d/e.1", "f g"]), min_size=1)


@settings(max_examples=40, deadline=None)
@given(NAMES, NAMES, st.randoms(use_true_random=False))
def test_pairs_are_the_common_names_in_any_order_of_writing(
    images: set[str], masks: set[str], order: random.Random
) -> None:
    files = [f"images/{n}.png" for n in sorted(images)] + [f"masks/{n}.tif" for n in sorted(masks)]
    order.shuffle(files)
    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder), *files)
        if not images & masks:
            with pytest.raises(DataError, match="has the name of an image"):
                find_listing(root)
            return
        listing = find_listing(root)
    assert [c.id for c in listing.cases] == sorted(images)
    assert {c.id for c in listing.cases if c.mask} == images & masks
    assert codes(listing) == ({"unpaired_mask": tuple(sorted(masks - images))} if masks - images else {})


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.booleans(), min_size=1), st.randoms(use_true_random=False))
def test_a_manifest_and_folders_list_the_same_cases(masked: dict[str, bool], order: random.Random) -> None:
    names = list(masked)
    order.shuffle(names)
    with tempfile.TemporaryDirectory() as folder:
        root = touch(Path(folder), *(f"images/{n}.png" for n in names), *(f"masks/{n}.png" for n in names if masked[n]))
        rows = [[f"images/{n}.png", f"masks/{n}.png" if masked[n] else None, masked[n], n] for n in names]
        (root / "masks").mkdir(exist_ok=True)
        by_name = find_listing(root)
        write_table(root, ".csv", ["image", "mask", "has_segmentation", "id"], rows)
        by_table = find_listing(root)
    assert (by_name.layout, by_table.layout) == ("folders", "manifest")
    assert by_name.cases == by_table.cases
    assert by_table.declared == masked


# --- suffix ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["_mask", "_label", "_seg", "_gt"])
def test_masks_beside_their_images(tmp_path: Path, ending: str) -> None:
    touch(tmp_path, "a.jpg", f"a{ending}.png", "sub/b.tif", f"sub/b{ending}.tif", "c.png", f"lost{ending}.png", "n.txt")
    listing = find_listing(tmp_path)
    assert listing.layout == "suffix"
    assert pairs(listing, tmp_path) == {
        "a": ("a.jpg", f"a{ending}.png"),
        "c": ("c.png", None),
        "sub/b": ("sub/b.tif", f"sub/b{ending}.tif"),
    }
    assert codes(listing) == {"unpaired_mask": (f"lost{ending}",)}
    assert said(listing, f"masks are the 2 files that end in {ending}")
    assert said(listing, "1 of 3 images have no mask file")


def test_the_most_frequent_ending_is_taken_and_others_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a_mask.png", "b.png", "b_seg.png", "c.png", "c_seg.png", "c_seg_1.png", "city_gt.png")
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {
        "a": ("a.png", None),
        "b": ("b.png", "b_seg.png"),
        "c": ("c.png", "c_seg.png"),
        "city_gt": ("city_gt.png", None),
    }
    assert codes(listing) == {"further_mask": ("a_mask", "c_seg_1")}


def test_without_a_pair_the_masks_are_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b_mask.png")
    with pytest.raises(DataError, match=r"The mask of x\.png must be called x_mask\.png"):
        find_listing(tmp_path, "suffix")


# --- real images ----------------------------------------------------------------------------------------------------


def test_real_data_sets_are_folders(emps_dir: Path, la_half_dir: Path) -> None:
    for root, count in ((emps_dir, 366), (la_half_dir, 80)):
        listing = find_listing(root)
        assert (listing.layout, len(listing.cases), listing.findings) == ("folders", count, ())
        assert all(c.mask for c in listing.cases)
