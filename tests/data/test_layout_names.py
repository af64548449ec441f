"""Layouts: what names of folders and files say, links, and files of servers."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from unicodedata import normalize

import pytest
from layout_files import codes, pairs, said, touch

from ssl_seg.data.layouts import find_listing, list_images
from ssl_seg.data.layouts.files import scan_folder
from ssl_seg.data.layouts.names import MASK_WORDS, match_names, place_of, split_marker
from ssl_seg.data.volumes import open_image
from ssl_seg.errors import DataError, did_you_mean
from ssl_seg.results.mask_files import check_places

NAMES = ("v_1", "v_2", "v_10")


def both(root: Path, images: str, masks: str, names: tuple[str, ...] = NAMES) -> Path:
    """Make an image and a mask of each name; ``{}`` stands for it."""
    return touch(root, *(pattern.format(name) for name in names for pattern in (images, masks)))


@pytest.mark.parametrize(
    ("images", "masks", "prefix"),
    [
        ("images/{}.png", "masks/{}.png", ""),
        ("images/{}.png", "labels/{}.tif", ""),
        ("Images/{}.png", "LABEL/{}.png", ""),
        ("imgs/{}.jpg", "annotations/{}.png", ""),
        ("img/{}.jpg", "gt/{}.png", ""),
        ("image/{}.jpg", "Ground_Truth/{}.png", ""),
        ("raw/{}.tif", "segmentations/{}.tif", ""),
        ("images/{}.png", "instances/{}.tif", ""),
        ("images/{}.png", "masks/{}_mask.png", ""),
        ("images/{}.png", "masks/{}_Labels.png", ""),
        ("images/img_{}.png", "masks/mask_{}.png", "img_"),
        ("images/{}_image.png", "labels/{}-seg.png", "{}_image"),
        ("{}.png", "masks/{}.png", ""),
        ("{}.png", "sub/masks/{}.png", None),
        ("train/images/{}.png", "train/masks/{}.png", "train/"),
        ("images/train/{}.png", "labels/train/{}.png", "train/"),
        ("train_images/{}.png", "train_masks/{}.png", "train/"),
        ("img_dir/val/{}.jpg", "ann_dir/val/{}.png", "val/"),
        ("p1/{}.png", "p1/mask/{}.png", "p1/"),
        ("p1/{}.png", "masks/p1/{}.png", "p1/"),
        ("images/{}.png", "images/masks/{}.png", ""),
        ("images/raw/{}.png", "images/seg/{}.png", "images/"),
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", ""),
        ("images/{}.jpg", "masks/{}.jpg.png", ""),
        ("images/{}.png", "masks/{}.png.mask.png", ""),
    ],
)
def test_usual_folders(tmp_path: Path, images: str, masks: str, prefix: str | None) -> None:
    both(tmp_path, images, masks)
    if prefix is None:  # images and masks of other folders do not belong together by their last name
        with pytest.raises(DataError, match="has no subfolder images/"):
            find_listing(tmp_path)
        return
    listing = find_listing(tmp_path)
    ids = {name: prefix.format(name) if "{}" in prefix else prefix + name for name in NAMES}
    assert listing.layout == "folders"
    assert pairs(listing, tmp_path) == {ids[n]: (images.format(n), masks.format(n)) for n in NAMES}
    assert listing.findings == ()
    assert listing == find_listing(tmp_path, "folders")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}.tif", "{}_masks.tif"),
        ("{}.tif", "{}_seg.npy"),
        ("{}.tif", "{}_cp_masks.png"),
        ("{}.png", "{}_MASK.png"),
        ("{}.png", "{}_Mask.PNG"),
        ("{}.png", "{}-mask.png"),
        ("{}.png", "{}.mask.png"),
        ("{}.png", "mask_{}.png"),
        ("{}.png", "{}_ground_truth.png"),
        ("img_{}.png", "label_{}.png"),
        ("{}_image.png", "{}_labels.png"),
    ],
)
def test_masks_beside_their_images_by_name(tmp_path: Path, image: str, mask: str) -> None:
    both(tmp_path, image, mask)
    listing = find_listing(tmp_path)
    assert listing.layout == "suffix"
    found = pairs(listing, tmp_path)
    assert {found[i] for i in found} == {(image.format(n), mask.format(n)) for n in NAMES}
    assert len(found) == len(NAMES)
    assert listing.findings == ()


def test_masks_of_cellpose_come_before_its_archives(tmp_path: Path) -> None:
    both(tmp_path, "{}.tif", "{}_cp_masks.png")
    touch(tmp_path, *(f"{name}_seg.npy" for name in NAMES))
    assert pairs(find_listing(tmp_path), tmp_path)["v_1"] == ("v_1.tif", "v_1_cp_masks.png")


def test_the_case_of_an_addition_does_not_make_an_image(tmp_path: Path) -> None:
    touch(tmp_path, *(f"s{k}.png" for k in range(6)))
    touch(tmp_path, *(f"s{k}_{'mask' if k < 4 else 'MASK'}.png" for k in range(6)))
    listing = find_listing(tmp_path)
    assert {i: mask for i, (_, mask) in pairs(listing, tmp_path).items()} == {
        f"s{k}": f"s{k}_{'mask' if k < 4 else 'MASK'}.png" for k in range(6)
    }


def test_masks_of_some_images_and_masks_of_two_kinds(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/b.png", "masks/a.png", "gt/a.png", "gt/b.png", "a_preview.png")
    listing = find_listing(tmp_path)
    assert pairs(listing, tmp_path) == {"a": ("images/a.png", "gt/a.png"), "b": ("images/b.png", "gt/b.png")}
    assert said(listing, "masks are taken from gt/")
    assert said(listing, "1 file of masks/ is not used: another folder has the masks")
    assert said(listing, "1 image outside the folder for images is not used (a_preview)")
    assert [(f.code, f.level, f.cases) for f in listing.findings] == [("two_mask_folders", "warn", ("a",))]


def test_fields_of_view_are_not_taken_for_masks(tmp_path: Path) -> None:
    for name in ("01_dr", "02_g", "03_h"):  # as HRF names its files
        touch(tmp_path, f"hrf/images/{name}.JPG", f"hrf/manual1/{name}.tif", f"hrf/mask/{name}_mask.tif")
        touch(tmp_path, f"chase/images/{name}.png", f"chase/labels/{name}.png", f"chase/masks/{name}.png")
        touch(tmp_path, f"alone/images/{name}.png", f"alone/masks/{name}.png")
    hrf = find_listing(tmp_path / "hrf")
    assert pairs(hrf, tmp_path / "hrf")["02_g"] == ("images/02_g.JPG", "manual1/02_g.tif")
    for folder in ("hrf", "chase"):
        assert [f.code for f in find_listing(tmp_path / folder).findings] == ["two_mask_folders"]
    assert find_listing(tmp_path / "alone").findings == ()


def test_parts_are_one_data_set(tmp_path: Path) -> None:
    both(tmp_path, "train/images/{}.png", "train/masks/{}.png")
    both(tmp_path, "val/images/{}.png", "val/masks/{}.png")
    touch(tmp_path, "test/images/x.png")
    found = pairs(find_listing(tmp_path), tmp_path)
    assert {i for i, (_, mask) in found.items() if mask} == {f"{part}/{n}" for part in ("train", "val") for n in NAMES}
    assert found["test/x"] == ("test/images/x.png", None)


def test_masks_in_a_folder_of_another_name_are_named(tmp_path: Path) -> None:
    both(tmp_path, "images/{}.png", "outcome/{}.tif")
    touch(tmp_path, "notes/x.png")
    listing = find_listing(tmp_path)
    assert list(codes(listing)) == ["masks_elsewhere"]
    (fault,) = listing.findings
    assert fault.level == "fault"
    assert "masks seem to lie in outcome/: 3 of its files have the names of images. Rename" in fault.message
    touch(tmp_path, "masks/v_1.png")
    assert codes(find_listing(tmp_path)) == {}


def test_ids_that_clash(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "images/a.jpg", "masks/a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png have the same name"):
        find_listing(tmp_path)
    touch(tmp_path / "two", "train_images/a.png", "images_train/a.png", "train/masks/a.png")
    with pytest.raises(DataError, match="would both be the case train/a"):
        find_listing(tmp_path / "two", "folders")


def test_other_patients_are_never_matched() -> None:
    assert match_names({"a/scan", "b/scan"}, {"scan": "scan", "c/scan": "c/scan"}) == {}
    assert match_names({"img_1", "1"}, {"mask_1": "mask_1"}) == {}
    assert match_names({"a"}, {"a_mask": "a_mask", "a_gt": "a_gt"}) == {}
    assert match_names({"a", "A"}, {"A": "A"}) == {"A": "A"}
    assert match_names({"p.000.0000", "p.007.0001"}, {"p.000": "p.000"}) == {}


@pytest.mark.parametrize("name", ["a1", "xyz007"])
def test_an_addition_is_found_before_and_behind(name: str) -> None:
    for word, separator in product(MASK_WORDS, "_-. "):
        assert split_marker(f"d/{name}{separator}{word.upper()}") == (f"d/{name}", f"{separator}{word}")
        assert split_marker(f"{word}{separator}{name}") == (name, f"{word}{separator}")
        assert split_marker(f"{name}{word}") is None
        assert split_marker(word) is None


def test_folders_without_a_word_give_no_role() -> None:
    for name in ("a", "site_1/a", "masked/a", "imagesque/a", "label_1/a", "image_quality/a"):
        assert place_of(name).role is None, name


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_forms_of_unicode_in_tables(tmp_path: Path, form: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    touch(tmp_path, *(normalize(form, f"{folder}/ä.png") for folder in ("images", "masks")))
    (tmp_path / "groups.csv").write_text(normalize(other, "name,group\nä,p1\n"), encoding="utf-8")
    assert [(c.id, c.group) for c in find_listing(tmp_path).cases] == [("ä", "p1")]
    table = normalize(other, "image,mask\nimages/ä.png,masks/ä.png\n")
    (tmp_path / "manifest.csv").write_text(table, encoding="utf-8")
    (case,) = find_listing(tmp_path).cases
    assert (case.id, case.group) == ("ä", "p1")
    assert Path(case.image).exists()
    assert Path(case.mask or "").exists()


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """It could not be written into a split or a table."""
    touch(tmp_path, "images/ä.png", "masks/ä.png")
    try:
        (tmp_path / "images" / os.fsdecode(b"\xe4.png")).touch()
    except OSError:
        pytest.skip("the file system takes text only")
    for look in (find_listing, lambda root: check_places(root / "images" / os.fsdecode(b"\xe4.png"), root / "out")):
        with pytest.raises(DataError, match=r"its name is not in UTF-8\. Rename it"):
            look(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_forms_of_unicode_are_one_name(tmp_path: Path, form: str) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    touch(tmp_path, f"images/{normalize(form, 'Zelle_ä')}.png", f"masks/{normalize(other, 'Zelle_ä')}.png")
    (case,) = find_listing(tmp_path).cases
    assert case.id == normalize("NFC", "Zelle_ä")
    assert case.mask is not None
    assert Path(case.image).exists()
    assert Path(case.mask).exists()


def test_files_of_servers_and_systems_are_no_images(tmp_path: Path) -> None:
    both(tmp_path, "images/{}.png", "masks/{}.png")
    junk = ("@eaDir/v_1.png/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/v_1.png", ".AppleDouble/v_1.png", "._v_1.png",
            "Thumbs.db", "desktop.ini", ".DS_Store", "v_1_thumb.jpg", "v_2.thumb.jpg")  # fmt: skip
    for folder in ("images", "masks", "images/sub"):
        touch(tmp_path / folder, *junk)
    touch(tmp_path, "images/left_thumb.png")
    listing = find_listing(tmp_path)
    assert [c.id for c in listing.cases] == ["left_thumb", "sub/v_1_thumb", "sub/v_2.thumb", *sorted(NAMES)]
    (note,) = [n for n in listing.notes if "servers" in n]
    assert note == (
        "files of servers and systems are left out: 3 x .AppleDouble/, 3 x ._*, 3 x @eaDir/, 3 x Thumbs.db, "
        "3 x __MACOSX/, 3 x desktop.ini, 4 x thumbnails of images"
    )


# --- links ----------------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    both(tmp_path / "elsewhere", "i/{}.png", "m/{}.png")
    touch(tmp_path / "data", "images/own.png", "masks/own.png")
    (tmp_path / "data" / "images" / "site").symlink_to(tmp_path / "elsewhere" / "i")
    (tmp_path / "data" / "masks" / "site").symlink_to(tmp_path / "elsewhere" / "m")
    listing = find_listing(tmp_path / "data")
    assert [c.id for c in listing.cases] == ["own", *sorted(f"site/{n}" for n in NAMES)]
    assert all(c.mask for c in listing.cases)
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere" / "i")
    assert len(scan_folder(tmp_path / "linked").files) == len(NAMES)
    assert os.fspath(scan_folder(tmp_path / "linked").files[0]).startswith(f"{tmp_path}/linked/")


def test_loops_and_second_ways_are_not_followed(tmp_path: Path) -> None:
    both(tmp_path, "images/site/{}.png", "masks/site/{}.png")
    (tmp_path / "images" / "up").symlink_to(tmp_path)
    (tmp_path / "images" / "site" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "a_second_way").symlink_to(tmp_path / "images" / "site")
    listing = find_listing(tmp_path)
    assert [c.id for c in listing.cases] == sorted(f"site/{n}" for n in NAMES)
    assert said(listing, "3 links lead to a folder that is read already: not followed")


def test_links_that_lead_nowhere_are_a_fault(tmp_path: Path) -> None:
    both(tmp_path, "images/{}.png", "masks/{}.png")
    for k in range(3):
        (tmp_path / "images" / f"x{k}.png").symlink_to(f"/not/mounted/{k}.png")
    listing = find_listing(tmp_path)
    assert [c.id for c in listing.cases] == sorted(NAMES)
    (fault,) = listing.findings
    assert (fault.level, fault.code, fault.cases) == ("fault", "missing_image", ("x0", "x1", "x2"))
    assert f"3 links lead nowhere, e.g. {tmp_path}/images/x0.png to /not/mounted/0.png" in fault.message
    listed = dict(list_images(tmp_path, "folders"))  # what `predict` reads, and names where it cannot
    assert sorted(listed) == sorted([*NAMES, "x0", "x1", "x2"])
    with pytest.raises(DataError, match=r"x0\.png: a link to /not/mounted/0\.png, which is not there"):
        open_image(*listed["x0"])


def test_many_names_without_a_match_are_refused_at_once() -> None:
    """All pairs of so many names would take hours."""
    images = {f"frame_{7 * k:06d}_left_camera" for k in range(50_000)}
    masks = {f"{k:04d}-gt": f"{k:04d}-gt" for k in range(50_000)}
    assert match_names(images, masks) == {}


@pytest.mark.parametrize("count", [999, 1000, 1001, 4000])
def test_the_nearest_word_among_many(count: int) -> None:
    words = [f"scan_{k:05d}" for k in range(count)]
    for k in (0, count // 2, count - 1):
        assert did_you_mean(f"scan_{k:05d}x", words) == f" (did you mean 'scan_{k:05d}'?)"
    assert did_you_mean("?", words) == ""


def test_an_ending_in_front_of_the_last_one_is_no_part_of_the_name(tmp_path: Path) -> None:
    listing = find_listing(both(tmp_path, "images/{}.ome.tif", "masks/{}_mask.png"))
    assert [(c.id, Path(c.mask or "").name) for c in listing.cases] == [
        (f"{name}.ome", f"{name}_mask.png") for name in sorted(NAMES)
    ]
    with pytest.raises(DataError, match=r"is called images/v_1\.a\.png, a mask masks/v_1\.b\.png"):
        find_listing(both(tmp_path / "other", "images/{}.a.png", "masks/{}.b.png"))
    with pytest.raises(DataError, match=r"a mask masks/one/v_1\.png\. Name .* in folders of the same names"):
        find_listing(both(tmp_path / "deep", "images/{}.png", "masks/one/{}.png"))
