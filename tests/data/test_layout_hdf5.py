"""Layouts: HDF5 files with lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_files import below, codes, pairs, said, touch, write_h5

from ssl_seg.data.layouts import find_listing
from ssl_seg.errors import DataError


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
        f"1 HDF5 file is not in train.list and left out ({place['T9']})",
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
    assert said(listing, "3 cases are grouped by the patient in the name")
    assert said(listing, "3 HDF5 files are not in train_slices.list")
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
    touch(tmp_path, "c.png")
    listing = find_listing(tmp_path)
    assert [c.id for c in listing.cases] == ["a"]
    assert codes(listing) == {"missing_image": ("b",)}
    assert said(listing, "1 image file is not HDF5 and not used (c.png)")
    (tmp_path / "c.png").unlink()
    (tmp_path / "a.h5").unlink()
    for root in (tmp_path, tmp_path / "b.h5"):  # the folder, or the file in its place
        with pytest.raises(
            DataError, match=r"(no subfolder images/|is a file).*\n.*b\.h5 holds the arrays .*\n"
        ) as error:
            find_listing(root)
        assert f"write {tmp_path / 'manifest.csv'}" in str(error.value)
    with pytest.raises(DataError, match=r"none of the 1 .*holds an array 'image'; .*b\.h5::KEY"):
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
