"""Groups that names show, and further unlabeled images from another folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from layout_files import pairs, said, touch, write_nnunet

from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.layouts import find_listing
from ssl_seg.data.layouts.groups import NO_GROUPS, infer_groups
from ssl_seg.data.splits.split import make_split
from ssl_seg.errors import DataError


def grid(pattern: str, groups: int, each: int = 4) -> list[str]:
    """Return names of ``each`` members of every group."""
    return [pattern.format(g=g, m=m) for g in range(groups) for m in range(each)]


@pytest.mark.parametrize(
    ("pattern", "group"),
    [
        ("patient{g:02d}_slice{m:02d}", "patient{g:02d}"),
        ("patient_{g:02d}_slice_{m:02d}", "patient_{g:02d}"),
        ("case_{g:04d}_z{m:03d}", "case_{g:04d}"),
        ("s{g}_t{m}", "s{g}"),
        ("{g:03d}-{m}", "{g:03d}"),
        ("TCGA_CS_{g:04d}_{m}", "TCGA_CS_{g:04d}"),
        ("00087a{g:x}d4dc_{m:02d}", "00087a{g:x}d4dc"),
        ("patient{g}/slice_{m}", "patient{g}"),
        ("donor_{g}/x{m}", "donor_{g}"),
        ("patient{g}_day{m}_t1", "patient{g}"),
        ("train/patient{g}_{m}", "patient{g}"),
        ("unlabeled+/patient{g}_{m}", "patient{g}"),
    ],
)
def test_groups_that_names_show(pattern: str, group: str) -> None:
    names = grid(pattern, 7)
    assert infer_groups(names) == {pattern.format(g=g, m=m): group.format(g=g) for g in range(7) for m in range(4)}


@pytest.mark.parametrize(
    "names",
    [
        [f"img_{k:03d}" for k in range(100)],
        [f"{k:03d}" for k in range(100)],
        [f"f7884{k:05x}" for k in range(100)],
        [f"a{k}b4c/f47ac10b" for k in range(20)],
        grid("benign_{m}", 1, 50) + grid("malignant_{m}", 1, 50),
        grid("exp1_{m}", 1, 50) + grid("exp2_{m}", 1, 50),
        grid("site_a/{m}", 1, 50) + grid("site_b/{m}", 1, 50),
        grid("train/img_{m}", 1, 50) + grid("val/img_{m}", 1, 20) + grid("test/img_{m}", 1, 20),
        grid("{g}_{m}", 5),
        grid("patient{g}_{m}", 2),
        grid("{g:03d}_{m}", 40, 1),
        [*grid("patient{g}_{m}", 4, 2), *(f"patient9_{m}" for m in range(9))],
        [],
    ],
)
def test_names_that_show_no_groups(names: list[str]) -> None:
    assert infer_groups(names) == {}


@pytest.mark.parametrize(("count", "found"), [(5, False), (6, True), (7, True), (40, True)])
def test_more_than_a_handful_of_groups(count: int, found: bool) -> None:
    assert bool(infer_groups(grid("{g:03d}_{m}", count))) is found


@pytest.mark.parametrize(("count", "found"), [(2, False), (3, True), (4, True)])
def test_a_word_for_a_patient_needs_fewer(count: int, found: bool) -> None:
    assert bool(infer_groups(grid("patient{g}_{m}", count))) is found


def test_real_names_show_no_groups(emps_dir: Path, la_half_dir: Path) -> None:
    for root in (emps_dir, la_half_dir):
        listing = find_listing(root, groups=None if root is la_half_dir else NO_GROUPS)
        assert infer_groups([c.id for c in listing.cases]) == {}


def test_groups_are_kept_together_unless_told_otherwise(tmp_path: Path) -> None:
    names = grid("patient{g:02d}_slice{m:02d}", 8)
    touch(tmp_path, *(f"{folder}/{n}.png" for folder in ("images", "masks") for n in names))
    listing = find_listing(tmp_path)
    assert {c.id: c.group for c in listing.cases} == {n: n.partition("_")[0] for n in names}
    assert said(listing, "8 groups are taken from names, e.g. patient00 of patient00_slice00")
    without = find_listing(tmp_path, groups=NO_GROUPS)
    assert {c.group for c in without.cases} == {None}
    assert not said(without, "groups")
    (tmp_path / "groups.csv").write_text("name,group\n" + "".join(f"{n},{k % 4}\n" for k, n in enumerate(names)))
    assert {c.group for c in find_listing(tmp_path).cases} == {"0", "1", "2", "3"}
    assert {c.group for c in find_listing(tmp_path, groups=NO_GROUPS).cases} == {None}


# --- further unlabeled images ---------------------------------------------------------------------------------------


def test_images_of_another_folder_join_as_unlabeled(tmp_path: Path) -> None:
    root, more = tmp_path / "data", tmp_path / "more"
    touch(root, "images/a.png", "masks/a.png", "unlabeled/b.png")
    touch(more, "a.png", "deep/c.tif", "notes.txt", "@eaDir/a.png")
    listing = find_listing(root, unlabeled=more)
    assert pairs(listing, tmp_path) == {
        "a": ("data/images/a.png", "data/masks/a.png"),
        "unlabeled/b": ("data/unlabeled/b.png", None),
        "unlabeled+/a": ("more/a.png", None),
        "unlabeled+/deep/c": ("more/deep/c.tif", None),
    }
    assert [c.id for c in listing.cases] == sorted(c.id for c in listing.cases)
    assert said(listing, f"2 unlabeled images are taken from {more}")
    again = find_listing(root, unlabeled=root / "unlabeled")
    assert [c.id for c in again.cases] == ["a", "unlabeled/b"]
    assert said(again, "1 image of")
    with pytest.raises(DataError, match=r"masks holds 1 mask of the data set, e\.g\. .*a\.png"):
        find_listing(root, unlabeled=root / "masks")
    with pytest.raises(DataError, match="no such folder for further unlabeled images"):
        find_listing(root, unlabeled=tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no image"):
        find_listing(root, unlabeled=touch(tmp_path / "texts", "a.txt"))
    touch(more, "a.jpg")
    with pytest.raises(DataError, match="have the same name"):
        find_listing(root, unlabeled=more)


def test_masks_of_the_other_folder_are_not_looked_at(tmp_path: Path) -> None:
    touch(tmp_path / "data", "images/a.png", "masks/a.png")
    touch(tmp_path / "more", "x.png", "x_mask.png")
    listing = find_listing(tmp_path / "data", unlabeled=tmp_path / "more")
    assert {c.id: c.mask is None for c in listing.cases} == {"a": False, "unlabeled+/x": True}


def test_channels_of_nnunet_in_the_other_folder(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "data", ["a_0000", "a_0001"], ["a"], channel_names={"0": "CT", "1": "PET"})
    touch(tmp_path / "more", "b_0000.nii.gz", "b_0001.nii.gz")
    case = find_listing(tmp_path / "data", unlabeled=tmp_path / "more").cases[-1]
    assert (case.id, Path(case.image).name, [Path(m).name for m in case.more_channels]) == (
        "unlabeled+/b",
        "b_0000.nii.gz",
        ["b_0001.nii.gz"],
    )


def test_groups_reach_across_folders(tmp_path: Path) -> None:
    names = grid("patient{g:02d}_slice{m:02d}", 6)
    touch(tmp_path / "data", *(f"{folder}/{n}.png" for folder in ("images", "masks") for n in names))
    touch(tmp_path / "more", "patient00_slice77.png", "other.png")
    cases = find_listing(tmp_path / "data", unlabeled=tmp_path / "more").cases
    found = {c.id: c.group for c in cases if c.mask is None}
    assert found == {"unlabeled+/patient00_slice77": "patient00", "unlabeled+/other": None}


def test_a_copy_of_a_sealed_image_is_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(8):
        image = rng.integers(0, 255, (40, 40), np.uint8)
        for folder, array in (("images", image), ("masks", (image > 128).astype(np.uint8))):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "data" / folder / f"n{k}.png"), array)
        (tmp_path / "more").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "more" / f"{k}.tif"), image)
    catalog = open_catalog(str(tmp_path / "data"), CatalogSettings(unlabeled=tmp_path / "more"))
    assert len(catalog.unlabeled) == 8
    split = make_split(catalog, [1.0])
    sealed = {i.replace("n", "unlabeled+/") for i in (*split.test, *split.val)}
    assert sealed
    assert not sealed & set(split.unlabeled)
    assert len(split.unlabeled) == 8 - len(sealed)


def test_synthetic_images_take_further_ones_too(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    plain, more = (find_listing(Path("synthetic:particles"), unlabeled=folder) for folder in (None, tmp_path))
    assert more.cases[-1] == replace(plain.cases[0], id="unlabeled+/a", image=str(tmp_path / "a.png"), mask=None)
    assert len(more.cases) == len(plain.cases) + 1
