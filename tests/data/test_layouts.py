"""Layouts: the choice among them, folders, suffix, and the real images."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_files import codes, pairs, said, touch, write_h5, write_nnunet, write_table

from ssl_seg.data.layouts import LAYOUTS, find_listing
from ssl_seg.errors import ConfigError, DataError


def small_set(name: str, root: Path) -> Path:
    """Write a set in the layout of this name."""
    if name == "manifest":
        touch(root, "a.png")
        (root / "manifest.csv").write_text("image\na.png\n")
    elif name == "nnunet":
        write_nnunet(root, ["a_0000"], ["a"])
    elif name == "hdf5":
        write_h5(root / "a.h5")
    elif name == "slices":
        touch(root, "images/a/0.png", "images/a/1.png", "masks/a.png")
    else:
        touch(root, *{"folders": ("images/a.png", "masks/a.png"), "suffix": ("a.png", "a_mask.png")}[name])
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognized_and_forced_layouts_say_what_is_missing(tmp_path: Path, name: str) -> None:
    root = small_set(name, tmp_path / name)
    listing = find_listing(root)
    assert listing.layout == name
    assert [c.id for c in listing.cases] == ["a"]
    assert find_listing(root, name) == listing
    assert [n for n, layout in LAYOUTS.items() if layout.recognize(root)] == [name, *["folders"] * (name == "slices")]
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


def test_further_unlabeled_images(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.nii.gz", "unlabeled/a.png", "unlabeled/sub/b.tif", "unlabeled/x.txt")
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {
        "a": ("images/a.png", "masks/a.nii.gz"),
        "unlabeled/a": ("unlabeled/a.png", None),
        "unlabeled/sub/b": ("unlabeled/sub/b.tif", None),
    }
    assert listing.notes == (
        "1 file cannot be read as images and is not used (1 x .txt; unlabeled/x.txt)",
        "2 unlabeled images are taken from unlabeled/",
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
        "a": ("images/a.png", "images/a_mask.png"),
        "b": ("images/b.png", None),
    }
    (tmp_path / "masks").mkdir()
    assert find_listing(tmp_path).cases == listing.cases
    touch(tmp_path, "masks/a.png", "masks/b.png")
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {"a": ("images/a.png", "masks/a.png"), "b": ("images/b.png", "masks/b.png")}
    assert codes(listing) == {"further_mask": ("a_mask",)}


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


@pytest.mark.parametrize(
    ("beside", "named"),
    [("_superpixels", True), ("-T2", True), ("_1", False), ("x", False)],
)
def test_pictures_that_are_named_like_labeled_images_are_warned_of(tmp_path: Path, beside: str, named: bool) -> None:
    labeled = "abcd"
    touch(tmp_path, *(f"{name}{end}.png" for name in labeled for end in ("", "_gt")), "e.png", "f_other.png")
    assert codes(find_listing(tmp_path)) == {}
    touch(tmp_path, *(f"{name}{beside}.png" for name in labeled[:3]))
    listing = find_listing(tmp_path)
    expected = {"named_like_labeled": tuple(f"{name}{beside}" for name in labeled[:3])} if named else {}
    assert codes(listing) == expected
    assert said(listing, f"WARNING 3 images have the name of a labeled one with {beside} behind") == named


def test_without_a_pair_the_masks_are_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b_mask.png")
    with pytest.raises(DataError, match=r"The mask of x\.png must be called x_mask\.png"):
        find_listing(tmp_path, "suffix")


def test_real_data_sets_are_folders(emps_dir: Path, la_half_dir: Path) -> None:
    for root, count in ((emps_dir, 366), (la_half_dir, 80)):
        listing = find_listing(root)
        assert (listing.layout, len(listing.cases), listing.findings) == ("folders", count, ())
        assert all(c.mask for c in listing.cases)
