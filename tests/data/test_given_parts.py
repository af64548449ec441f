"""Folders train/, val/ and test/ are the split, unless shares are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssl_seg.data.catalog import Catalog, CatalogSettings, open_catalog
from ssl_seg.data.layouts.names import find_parts
from ssl_seg.data.splits.checks import check_split
from ssl_seg.data.splits.split import Split, make_folds, make_split
from ssl_seg.errors import SplitError

PLACES: dict[str, tuple[str, str]] = {
    "part outside": ("{part}/images/{name}.png", "{part}/masks/{name}.png"),
    "part inside": ("images/{part}/{name}.png", "labels/{part}/{name}.png"),
    "in one name": ("{part}_images/{name}.png", "{part}_masks/{name}.png"),
    "beside": ("{part}/{name}.png", "{part}/{name}_mask.png"),
    "a folder more": ("downloaded/{part}/images/{name}.png", "downloaded/{part}/masks/{name}.png"),
    "for each site": ("{site}/{part}/images/{name}.png", "{site}/{part}/masks/{name}.png"),
}


def write(root: Path, counts: dict[str, tuple[int, int]], place: str = "part outside") -> Path:
    """Write for each folder so many images with masks, and so many without; returns ``root``."""
    rng = np.random.default_rng(0)
    for part, (labeled, unlabeled) in counts.items():
        for n in range(labeled + unlabeled):
            names = {"part": part, "name": f"{part[0]}{n}x", "site": f"site{n % 2}"}
            image, mask = (root / text.format(**names) for text in PLACES[place])
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (24, 24), np.uint8)
            cv2.imwrite(str(image), pixels)
            if n < labeled:
                cv2.imwrite(str(mask), (pixels > 128).astype(np.uint8))
    return root


def read(root: Path) -> Catalog:
    return open_catalog(str(root), CatalogSettings(groups=Path("none")))


def below(catalog: Catalog, part: str, *, labeled: bool = True) -> set[str]:
    """Ids by where the files lie: a folder, or the beginning of one, is called so."""
    return {
        c.id
        for c in catalog.cases
        if (c.mask is not None) == labeled
        and any(folder.split("_")[0] == part for folder in Path(c.image).relative_to(catalog.root).parts[:-1])
    }


def parts(split: Split) -> list[set[str]]:
    return [set(split.fractions[1.0]), set(split.val), set(split.test)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "VALID", "Test")]
)
def test_folders_are_the_parts(tmp_path: Path, place: str, names: tuple[str, str, str]) -> None:
    train, val, test = names
    catalog = read(write(tmp_path, {train: (9, 3), val: (4, 2), test: (5, 1)}, place))
    assert len(catalog.labeled) == 18
    for seed in range(3):
        split = make_split(catalog, [0.5], seed=seed)
        ids = parts(split)
        if place == "in one name":
            assert [len(part) for part in ids] == [9, 4, 5]
        else:
            assert ids == [below(catalog, name) for name in names]
            assert set(split.unlabeled) == below(catalog, train, labeled=False)
        assert len(split.fractions[0.5]) == 5
        assert (
            "9 in train/, 4 in val/, 5 in test/ with masks: validation is val/, the test list is test/"
            in split.notes[0]
        )
        assert any("3 unlabeled cases are left out: in validation or test, or of" in note for note in split.notes)
    orders = {make_split(catalog, [0.5], seed=seed).fractions[0.5] for seed in range(5)}
    assert len(orders) > 1


def test_without_test_the_test_list_is_empty(tmp_path: Path) -> None:
    catalog = read(write(tmp_path, {"train": (9, 0), "val": (4, 0)}))
    split = make_split(catalog, [])
    assert parts(split) == [below(catalog, "train"), below(catalog, "val"), set()]
    assert "validation is val/, the test list is empty" in split.notes[0]
    assert not [f for f in check_split(split, catalog) if f.level == "fault"]


def test_without_val_a_share_of_train_is_validation(tmp_path: Path) -> None:
    catalog = read(write(tmp_path, {"train": (20, 4), "test": (5, 0)}))
    split = make_split(catalog, [])
    train, val, test = parts(split)
    assert (train | val, test) == (below(catalog, "train"), below(catalog, "test"))
    assert len(val) == 3
    assert "validation is 0.15 of the rest, the test list is test/" in split.notes[0]
    assert len(make_split(catalog, [], val_fraction=0.4).val) == 8


@pytest.mark.parametrize("masks", [0, 1])
def test_a_test_folder_without_masks_is_left_out(tmp_path: Path, masks: int) -> None:
    catalog = read(write(tmp_path, {"train": (9, 2), "val": (3, 0), "test": (masks, 6)}))
    split = make_split(catalog, [])
    assert parts(split) == [below(catalog, "train"), below(catalog, "val"), below(catalog, "test")]
    assert len(split.test) == masks
    assert set(split.unlabeled) == below(catalog, "train", labeled=False)
    assert split.content.keys().isdisjoint(below(catalog, "test", labeled=False))


def test_a_share_replaces_its_folder(tmp_path: Path) -> None:
    catalog = read(write(tmp_path, {"train": (12, 2), "val": (4, 2), "test": (4, 2)}))
    everything = {c.id for c in catalog.labeled}
    by_val = make_split(catalog, [], val_fraction=0.25)
    train, val, test = parts(by_val)
    assert (train | val, test, len(val)) == (everything - below(catalog, "test"), below(catalog, "test"), 4)
    assert val != below(catalog, "val")
    assert len(by_val.unlabeled) == 4
    train, val, test = parts(make_split(catalog, [], test_fraction=0.25))
    assert (train | test, val, len(test)) == (everything - below(catalog, "val"), below(catalog, "val"), 4)
    assert parts(make_split(catalog, [], test_fraction=0.0)) == [
        everything - below(catalog, "val"), below(catalog, "val"), set(),
    ]  # fmt: skip
    anew = make_split(catalog, [], val_fraction=0.15, test_fraction=0.2)
    assert [len(part) for part in parts(anew)] == [13, 3, 4]
    assert len(anew.unlabeled) == 6
    assert not any("folders" in note for note in anew.notes)


def test_folds_keep_the_test_folder(tmp_path: Path) -> None:
    catalog = read(write(tmp_path, {"train": (8, 0), "val": (4, 0), "test": (4, 3)}))
    folds = make_folds(catalog, [], 3)
    assert all(set(fold.test) == below(catalog, "test") for fold in folds)
    assert sorted(i for fold in folds for i in fold.val) == sorted(below(catalog, "train") | below(catalog, "val"))
    assert all(not fold.unlabeled for fold in folds)
    without = make_folds(catalog, [], 3, test_fraction=0.0)
    assert sorted(i for fold in without for i in fold.val) == sorted(c.id for c in catalog.labeled)


@pytest.mark.parametrize(
    "names",
    [("train",), ("val", "test"), ("training_day", "test_1"), ("a", "b", "c"), ("test",)],
    ids="-".join,
)
def test_other_folders_decide_nothing(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Negative control: the split is that of the same files in folders that mean nothing."""
    catalog = read(write(tmp_path / "named", dict.fromkeys(names, (20 // len(names), 2))))
    plain = read(write(tmp_path / "plain", {f"{name[0]}{n}": (20 // len(names), 2) for n, name in enumerate(names)}))
    split, other = make_split(catalog, []), make_split(plain, [])
    assert [len(part) for part in parts(split)] == [len(part) for part in parts(other)]
    assert len(split.test) > 0
    assert len(split.unlabeled) == 2 * len(names)
    assert not any("folders" in note for note in split.notes)


def test_train_without_masks_decides_nothing(tmp_path: Path) -> None:
    catalog = read(write(tmp_path, {"train": (0, 5), "val": (10, 0), "test": (10, 0)}))
    split = make_split(catalog, [])
    assert set().union(*parts(split)) == {c.id for c in catalog.labeled}
    assert len(split.unlabeled) == 5


def test_cases_elsewhere_are_for_training(tmp_path: Path) -> None:
    root = write(tmp_path, {"train": (9, 0), "val": (3, 0), "more": (2, 1), "unlabeled": (0, 4)}, "part inside")
    catalog = read(root)
    split = make_split(catalog, [])
    assert parts(split)[0] == below(catalog, "train") | below(catalog, "more")
    assert set(split.unlabeled) == below(catalog, "more", labeled=False) | below(catalog, "unlabeled", labeled=False)
    assert "9 in train/, 3 in val/, 2 elsewhere with masks" in split.notes[0]


def test_names_in_a_folder_for_unlabeled_images_say_nothing() -> None:
    ids = ["unlabeled/test/a", "unlabeled+/train/a", "s/train/a", "train/test/a", "train", "atrain/b"]
    assert find_parts(ids) == {"s/train/a": "train", "train/test/a": "train"}


Change = Callable[[Path], object]


def copy(of: str, to: str, change: Callable[[np.ndarray], np.ndarray] = lambda image: image) -> Change:
    return lambda root: cv2.imwrite(str(root / to), change(cv2.imread(str(root / of), cv2.IMREAD_UNCHANGED)))


LEAKS: dict[str, tuple[Change, str]] = {
    "a copy": (copy("train/images/t0x.png", "val/images/v0x.png"), "duplicate_content"),
    "a turned copy": (copy("train/images/t0x.png", "test/images/t0x.png", np.rot90), "near_duplicate"),
    "a group": (
        lambda root: (root / "groups.csv").write_text("name,group\ntrain/t1x,p\nval/v1x,p\n"),
        "group_straddles",
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_leaks_between_given_folders_are_faults(tmp_path: Path, leak: str) -> None:
    change, code = LEAKS[leak]
    root = write(tmp_path, {"train": (9, 0), "val": (4, 0), "test": (4, 0)})
    change(root)
    catalog = open_catalog(str(root), CatalogSettings(groups=None if leak == "a group" else Path("none")))
    split = make_split(catalog, [])
    assert [len(part) for part in parts(split)] == [9, 4, 4]
    assert [f.code for f in check_split(split, catalog) if f.level == "fault"] == [code]
    assert not any("kept in one part" in note for note in split.notes)
    assert all(
        f.level != "fault" for f in check_split(make_split(catalog, [], val_fraction=0.2, test_fraction=0.2), catalog)
    )


def test_an_unlabeled_copy_of_a_test_image_is_left_out(tmp_path: Path) -> None:
    root = write(tmp_path, {"train": (9, 2), "val": (4, 0), "test": (4, 0)})
    copy("test/images/t0x.png", "train/images/t9x.png")(root)
    catalog = read(root)
    split = make_split(catalog, [])
    assert split.unlabeled == ("train/t10x",)
    assert not [f for f in check_split(split, catalog) if f.level == "fault"]


def test_one_labeled_case_in_train_and_no_val(tmp_path: Path) -> None:
    catalog = read(write(tmp_path, {"train": (1, 0), "test": (5, 0)}))
    with pytest.raises(SplitError, match=r"1 labeled case in 1 group.*cannot be split"):
        make_split(catalog, [])
    catalog = read(write(tmp_path / "more", {"train": (1, 0), "val": (1, 0)}))
    assert [len(part) for part in parts(make_split(catalog, []))] == [1, 1, 0]
