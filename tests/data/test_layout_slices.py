"""Folders of 2D slices as volumes."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from layout_files import said, touch

from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.formats.slices import sort_slices
from ssl_seg.data.layouts import find_listing, list_images
from ssl_seg.data.volumes import open_image, open_mask, read_image, read_mask
from ssl_seg.errors import DataError

RNG = np.random.default_rng(0)


def write_stack(folder: Path, volume: np.ndarray, name: str = "{:02d}.tif") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for z, plane in enumerate(volume):
        path = folder / name.format(z)
        if path.suffix == ".tif":
            tifffile.imwrite(path, plane)
        else:
            path.write_bytes(cv2.imencode(path.suffix, plane)[1].tobytes())


def make_volume(depth: int = 11, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 60000, (depth, 20, 30)).astype(np.uint16)


def masks_of(root: Path, layout: str = "auto") -> dict[str, tuple[str, str | None]]:
    cases = find_listing(root, layout).cases
    return {c.id: (c.image.removeprefix(f"{root}/"), c.mask and c.mask.removeprefix(f"{root}/")) for c in cases}


@pytest.mark.parametrize("name", ["{:02d}.tif", "{}.png", "slice_{}.tif", "z{:04d}.png"])
def test_a_folder_of_slices_is_a_volume_in_the_order_of_numbers(tmp_path: Path, name: str) -> None:
    volume = make_volume()
    write_stack(tmp_path / "scan", volume, name)
    (tmp_path / "scan" / "inklabels.png").write_bytes(b"no slice")
    (tmp_path / "scan" / "._01.tif").write_bytes(b"no slice")
    location = f"{tmp_path / 'scan'}/"
    assert np.array_equal(read_image(location), volume[None])
    assert open_image(location).geometry is None
    opened = pickle.loads(pickle.dumps(open_image(location)))
    assert (opened.shape, opened.by_box) == ((1, 11, 20, 30), True)
    for box in ((slice(0, 1), slice(0, 20), slice(0, 30)), (slice(3, 9), slice(5, 7), slice(29, 30))):
        assert np.array_equal(opened.read(box)[0], volume[box])


def test_slices_that_differ_are_named_on_reading(tmp_path: Path) -> None:
    write_stack(tmp_path / "scan", make_volume(3))
    tifffile.imwrite(tmp_path / "scan" / "03.tif", np.zeros((20, 31), np.uint16))
    with pytest.raises(DataError, match=r"03\.tif is uint16 of the shape \(1, 20, 31\), .*00\.tif is"):
        read_image(f"{tmp_path / 'scan'}/")
    touch(tmp_path, "deep/1.tif")
    tifffile.imwrite(tmp_path / "deep" / "0.tif", np.zeros((4, 20, 31), np.uint16), photometric="minisblack")
    with pytest.raises(DataError, match=r"0\.tif is a volume; .*layout=folders"):
        open_image(f"{tmp_path / 'deep'}/")
    with pytest.raises(DataError, match="no such folder of numbered slices"):
        open_image(f"{tmp_path / 'nowhere'}/")


@pytest.mark.parametrize(
    ("numbers", "gap"),
    [((0, 1, 2), None), ((5, 15, 25), None), ((7, 8), None), ((0, 1, 3, 4), "1 and 3"), ((0, 10, 20, 40), "20 and 40")],
)
def test_missing_slices_are_named(tmp_path: Path, numbers: tuple[int, ...], gap: str | None) -> None:
    for number in numbers:
        write_stack(tmp_path / "a.b" / "images" / "scan.v2", make_volume(1), f"x.1.{number}.tif")
    location = f"{tmp_path / 'a.b' / 'images' / 'scan.v2'}/"
    assert (gap is None) == (open_image(location).notes == ())
    if gap is not None:
        assert f"slices are missing between {gap}:" in open_image(location).notes[0]
        write_stack(tmp_path / "a.b" / "masks" / "scan.v2", np.zeros((len(numbers), 20, 30), np.uint8), "{}.png")
        (finding,) = find_listing(tmp_path / "a.b", "slices").findings
        assert (finding.code, finding.level, finding.cases) == ("slices_differ", "fault", ("scan.v2",))


@pytest.mark.parametrize("first", [0, 1])
def test_masks_of_slices_may_be_counted_from_another_number(tmp_path: Path, first: int) -> None:
    for number in range(3):
        write_stack(tmp_path / "images" / "scan", make_volume(1), f"{number}.tif")
        write_stack(tmp_path / "masks" / "scan", np.full((1, 20, 30), number, np.uint8), f"m{number + first:02d}.png")
    listing = find_listing(tmp_path, "slices")
    assert listing.findings == ()
    assert read_mask(str(listing.cases[0].mask))[:, 0, 0].tolist() == [0, 1, 2]


def test_a_mask_of_other_slices_is_no_missing_mask(tmp_path: Path) -> None:
    write_stack(tmp_path / "images" / "scan", make_volume(4))
    write_stack(tmp_path / "masks" / "scan", np.zeros((3, 20, 30), np.uint8))
    with pytest.raises(DataError, match="the mask is 3 x 20 x 30, its image 4 x 20 x 30"):
        open_catalog(str(tmp_path), CatalogSettings(layout="slices"))


def test_sorting_by_number() -> None:
    assert sort_slices(["a10", "a9", "a100", "label"]) == ["a9", "a10", "a100"]
    for names in (["a1"], ["a1", "b2"], ["a1", "a01"], ["x", "y"], []):
        assert sort_slices(names) == []


@pytest.mark.parametrize(
    ("slices", "mask", "case_id"),
    [
        ("images/frag/{:02d}.tif", "masks/frag.png", "frag"),
        ("images/frag/{:02d}.tif", "labels/frag_inklabels.png", "frag"),
        ("images/frag/layers/{:02d}.tif", "masks/frag.png", "frag"),
        ("frag/layers/{:02d}.tif", "frag/inklabels.png", "frag"),
        ("frag/surface_volume/{:02d}.tif", "frag/frag_inklabels.png", "frag"),
        ("frag/{:02d}.tif", "frag/inklabels.png", "frag"),
        ("train/1/surface_volume/{:02d}.tif", "train/1/inklabels.png", "train/1"),
    ],
)
def test_one_mask_for_a_stack_makes_it_a_volume(tmp_path: Path, slices: str, mask: str, case_id: str) -> None:
    volume, label = make_volume(65), RNG.integers(0, 2, (20, 30), np.uint8)
    write_stack((tmp_path / slices).parent, volume, Path(slices).name)
    (tmp_path / mask).parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(tmp_path / mask), label)
    listing = find_listing(tmp_path)
    assert listing.layout == "slices"
    assert masks_of(tmp_path) == {case_id: (f"{Path(slices).parent}/", f"{mask}::depth=65")}
    assert said(listing, "1 volume has one mask file: if it is 2D, it applies to all slices")
    (case,) = listing.cases
    assert case.mask is not None
    assert np.array_equal(read_mask(case.mask), np.broadcast_to(label, (65, 20, 30)))
    assert open_mask(case.mask).by_box  # the whole is 65 times what is stored
    box = (slice(60, 70), slice(2, 5), slice(0, 30))
    assert np.array_equal(open_mask(case.mask).read(box)[0], np.broadcast_to(label[2:5], (5, 3, 30)))


def test_the_valid_region_of_a_scroll_is_not_its_label(tmp_path: Path) -> None:
    touch(tmp_path, *(f"1/layers/{z:02d}.tif" for z in range(5)), "1/mask.png", "1/ir.png")
    with pytest.raises(DataError):
        find_listing(tmp_path)
    assert masks_of(tmp_path, "slices") == {"1": ("1/layers/", "1/mask.png::depth=5")}
    touch(tmp_path, "1/inklabels.png")
    listing = find_listing(tmp_path)
    assert masks_of(tmp_path) == {"1": ("1/layers/", "1/inklabels.png::depth=5")}
    assert said(listing, "2 images are not slices of a volume and not used (1/ir, 1/mask)")


def test_folders_of_patients_stay_2d_images_unless_told_otherwise(tmp_path: Path) -> None:
    volumes = [make_volume(5, seed) for seed in range(3)]
    for n, volume in enumerate(volumes):
        write_stack(tmp_path / "images" / f"patient{n}", volume)
        write_stack(tmp_path / "masks" / f"patient{n}", (volume > 30000).astype(np.uint8))
    listing = find_listing(tmp_path)
    assert (listing.layout, len(listing.cases)) == ("folders", 15)
    assert said(
        listing, "the 3 folders of numbered images, e.g. patient0, are read as 2D images; if each is one volume"
    )
    assert {c.group for c in listing.cases} == {"patient0", "patient1", "patient2"}
    catalog = open_catalog(str(tmp_path), CatalogSettings(layout="slices"))
    assert (catalog.ndim, [c.id for c in catalog.labeled]) == (3, ["patient0", "patient1", "patient2"])
    for case, volume in zip(catalog.cases, volumes, strict=True):
        assert np.array_equal(read_image(case.image)[0], volume)
        assert case.mask is not None
        assert np.array_equal(read_mask(case.mask), volume > 30000)


def test_a_3d_mask_of_a_stack_and_a_stack_without_one(tmp_path: Path) -> None:
    mask = (make_volume(4) > 30000).astype(np.uint8)
    for name in ("a", "b"):
        write_stack(tmp_path / "images" / name, make_volume(4))
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "masks" / "a.tif", mask, photometric="minisblack")
    catalog = open_catalog(str(tmp_path))
    assert (catalog.layout, catalog.ndim) == ("slices", 3)
    assert {c.id: c.mask is not None for c in catalog.cases} == {"a": True, "b": False}
    assert catalog.facts["a"].counts == tuple(np.bincount(mask.ravel()))


def test_folders_to_predict_are_volumes_where_the_training_had_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_stack(tmp_path / name, make_volume(4))
    assert list_images(tmp_path, "slices") == [("a", (f"{tmp_path}/a/",)), ("b", (f"{tmp_path}/b/",))]
    assert list_images(tmp_path / "a", "slices") == [("a", (f"{tmp_path}/a/",))]
    assert len(list_images(tmp_path, "folders")) == 8


def test_the_layout_says_what_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png")
    with pytest.raises(DataError, match=r"no folder holds numbered slices\. A volume is a folder such as"):
        find_listing(tmp_path, "slices")


@pytest.mark.parametrize("suffix", [".nii.gz", ".tif"])
def test_channels_in_nifti_files_are_no_slices(tmp_path: Path, suffix: str) -> None:
    """Of t1 and t2 the numbers are names; NIfTI files are volumes already."""
    touch(tmp_path, *(f"p{n}/p{n}_{kind}{suffix}" for n in range(3) for kind in ("t1", "t2", "seg")))
    if suffix == ".tif":
        assert find_listing(tmp_path).layout == "slices"
    else:
        with pytest.raises(DataError, match="These layouts are recognized"):
            find_listing(tmp_path)
