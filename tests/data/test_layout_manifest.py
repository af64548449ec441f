"""Layouts: tables with one row for each image."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layout_files import codes, pairs, said, touch, write_table

from ssl_seg.data.findings import select_faults
from ssl_seg.data.layouts import find_listing
from ssl_seg.data.layouts.names import find_parts
from ssl_seg.errors import DataError

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
        f"2 unknown columns of {path.name} are not used (scanner, date)",
    )
    assert find_listing(path) == listing


def test_what_a_table_leaves_out_is_said(tmp_path: Path) -> None:
    """Images beside the listed ones, and a split; ids that begin with a part are one, as the note says."""
    touch(tmp_path, "x/a.png", "x/b.png", "x/c.png", "x/._c.png", "x/c.txt", "y/a.png", "elsewhere/d.png")
    rows = [["x/a.png", "y/../y/a.png", "train"], ["x/b.png", None, "test"]]
    write_table(tmp_path, ".csv", ["image", "mask", "split"], rows)
    _, split, unlisted = find_listing(tmp_path).notes
    assert unlisted == "1 image file beside those of manifest.csv is in none of its rows and not used (c.png)"
    assert "the column split of manifest.csv is not used" in split
    (tmp_path / "x" / "c.png").unlink()
    rows = [[f"x/{name}.png", f"{part}/{name}"] for name, part in (("a", "train"), ("b", "test"))]
    write_table(tmp_path, ".csv", ["image", "id"], rows)
    listing = find_listing(tmp_path)
    assert not any("not used" in note for note in listing.notes)
    assert find_parts(case.id for case in listing.cases) == {"train/a": "train", "test/b": "test"}


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


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_as_other_programs_write_them(tmp_path: Path, separator: str, encoding: str) -> None:
    touch(tmp_path, "é;x.png", "m.png")
    lines = [["image", "mask", "group"], ['"é;x.png"', "m.png", '"p1,p2"'], ["m.png", "", ""]]
    text = "\r\n".join(separator.join(cells) for cells in lines)
    (tmp_path / "table.csv").write_bytes(text.encode(encoding))
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {"é;x": ("é;x.png", "m.png"), "m": ("m.png", None)}
    assert {c.id: c.group for c in listing.cases} == {"é;x": "p1,p2", "m": None}


def test_unreadable_manifests(tmp_path: Path) -> None:
    for suffix, content in {".csv": b"image\n\xff\xfe.png", ".parquet": b"PAR1 no"}.items():
        path = tmp_path / f"table{suffix}"
        path.write_bytes(content)
        with pytest.raises(DataError, match="the table cannot be read") as raised:
            find_listing(path)
        assert ("Save it as UTF-8" in str(raised.value)) == (suffix == ".csv")


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
