"""Layouts: nnU-Net's raw data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layout_files import codes, touch, write_nnunet

from ssl_seg.data.layouts import find_listing
from ssl_seg.data.layouts.listing import Case
from ssl_seg.errors import DataError


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
        "1 file in imagesTr/ does not end in .nii.gz: not used (notes.txt)",
        "1 mask without an image is not used (old)",
        "1 of 2 images have no mask file and count as unlabeled",
        "files of servers and systems are left out: 1 x ._*",
        "2 files of imagesTs/ are not used",
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
    with pytest.raises(DataError, match=r"names 3 channels, and 1 case has another number.*e\.g\. a has 1"):
        find_listing(tmp_path / "nii")


TWO = {"0": "a", "1": "b"}


@pytest.mark.parametrize(
    ("images", "changes", "reason"),
    [
        (["a_0000", "a_0001", "b_0000"], {"channel_names": TWO}, r"names 2 channels.*e\.g\. b has 1"),
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
        (["a_0000"], {"file_ending": ".mhd"}, r"file_ending '\.mhd' cannot be read. Known are"),
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
    write_nnunet(tmp_path, ["a1_0000"], ["b1"])
    with pytest.raises(
        DataError, match=r"none of the 1 masks.*a1_0000\.nii\.gz, a mask labelsTr/b1\.nii\.gz. Name each mask like"
    ):
        find_listing(tmp_path)


def channels(root: Path) -> dict[str, tuple[list[str], str | None]]:
    """Return the names of the files of each case, and that of its mask."""
    return {
        c.id: ([Path(f).name for f in (c.image, *c.more_channels)], c.mask and Path(c.mask).name)
        for c in find_listing(root).cases
    }


def test_dots_before_the_channel_and_in_the_name(tmp_path: Path) -> None:
    images = [f"p.{k:03d}.000{c}" for k in range(3) for c in range(2)]
    write_nnunet(tmp_path, images, ["p.000", "p.001"], channel_names={"0": "CT", "1": "PET"})
    ending = ".nii.gz"
    assert channels(tmp_path) == {
        f"p.00{k}": ([f"p.00{k}.0000{ending}", f"p.00{k}.0001{ending}"], f"p.00{k}{ending}" if k < 2 else None)
        for k in range(3)
    }
    write_nnunet(tmp_path / "mixed", ["p.000_0000", "p.001_0000"], ["p.000", "p.001"])
    assert channels(tmp_path / "mixed") == {
        f"p.00{k}": ([f"p.00{k}_0000{ending}"], f"p.00{k}{ending}") for k in range(2)
    }


def test_labels_that_carry_a_channel_number_and_endings_in_capitals(tmp_path: Path) -> None:
    write_nnunet(tmp_path, ["a_1_0000", "a_2_0000"], ["a_1_0000"])
    touch(tmp_path, "imagesTr/a_3_0000.NII.GZ", "labelsTr/a_3.NII.GZ")
    assert {i: mask for i, (_, mask) in channels(tmp_path).items()} == {
        "a_1": "a_1_0000.nii.gz",
        "a_2": None,
        "a_3": "a_3.NII.GZ",
    }


def test_without_dataset_json(tmp_path: Path) -> None:
    write_nnunet(tmp_path, ["a_0000", "a_0001", "b_0000", "b_0001"], ["a"], file_ending=".png")
    (tmp_path / "dataset.json").unlink()
    listing = find_listing(tmp_path)
    assert (listing.layout, listing.label_values) == ("nnunet", None)
    assert channels(tmp_path)["a"] == (["a_0000.png", "a_0001.png"], "a.png")
    assert listing.notes[0].startswith("there is no dataset.json: files end in .png")
    touch(tmp_path, "imagesTr/c_0000.png", "imagesTr/c_0001.png", "imagesTr/c_0002.png")
    with pytest.raises(DataError, match=r"most cases have 2 channels, and 1 case.*c has 3"):
        find_listing(tmp_path)
