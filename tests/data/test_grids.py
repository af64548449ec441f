"""Pairs of files that do not lie on each other: refused where that is sure, doubted where it is likely."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from nibabel.orientations import apply_orientation, inv_ornt_aff
from test_frames import OBLIQUE, ORIENTATIONS, STACK, WORLD, save, turn

from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.facts import SizeMismatchError, read_facts
from ssl_seg.data.grids import GRID_TOLERANCE, GridMismatchError, compare_grids
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.sampling import crop
from ssl_seg.data.store import CaseStore, cut_unit
from ssl_seg.data.volumes import Geometry, advise_conversion, open_image, write_mask
from ssl_seg.errors import DataError
from ssl_seg.results.mask_files import check_places, plan_jobs

LPS = np.array([[0, -1], [1, -1], [2, 1]])
MASK = (STACK > 600).astype(np.uint8)


def compare(mask: str, image: str) -> str | None:
    return compare_grids(mask, open_image(mask).geometry, image, open_image(image).geometry, STACK.shape)


def shift(affine: np.ndarray, voxels: tuple[float, float, float]) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.array(voxels)
    return moved


@pytest.mark.parametrize("affine", [WORLD, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("voxels", [(1, 0, 0), (0, -1, 0), (0, 0, 1)])
def test_a_shift_counts_in_voxels(tmp_path: Path, affine: np.ndarray, voxels: tuple[float, float, float]) -> None:
    image = save(tmp_path / "image.nii.gz", *turn(STACK.T, affine, ORIENTATIONS[29]))
    for size, counts in ((0.0, False), (0.9, False), (1.1, True), (4.0, True)):
        moved = shift(affine, tuple(v * size * GRID_TOLERANCE for v in voxels))  # type: ignore[arg-type]
        mask = save(tmp_path / "mask.nii.gz", *turn(MASK.T, moved, ORIENTATIONS[40]))
        if not counts:
            assert compare(mask, image) is None
            continue
        with pytest.raises(GridMismatchError, match="origin"):
            compare(mask, image)


@pytest.mark.parametrize("angle", [0.001, 0.2])
def test_turned_and_stretched_grids(tmp_path: Path, angle: float) -> None:
    image = save(tmp_path / "image.nii.gz", STACK.T, WORLD)
    turned = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(angle) @ WORLD[:3, :3], WORLD[:3, 3])
    for name, affine in (("directions", turned), ("voxels", WORLD @ np.diag([1 + angle, 1, 1, 1]))):
        mask = save(tmp_path / "mask.nii.gz", MASK.T, affine)
        if angle < 0.01:
            assert compare(mask, image) is None
        else:
            with pytest.raises(GridMismatchError, match=name):
                compare(mask, image)


def test_rounded_headers_of_a_large_volume_are_one_grid() -> None:
    affine = np.array([[0.488281, 0, 0, -124.755859], [0, 0.488281, 0, -98.4], [0, 0, 1.25, -500.123456], [0, 0, 0, 1]])
    rounded = affine.astype(np.float32).round(4).astype(np.float64)
    geometries = [Geometry((1.25, 0.488, 0.488), tuple(map(tuple, a.tolist())), bytes(348)) for a in (affine, rounded)]
    assert compare_grids("mask", geometries[0], "image", geometries[1], (300, 512, 512)) is None


def test_the_message_names_both_files_affines_and_what_to_do(tmp_path: Path) -> None:
    image = save(tmp_path / "image.nii.gz", *turn(STACK.T, WORLD, LPS))
    mask = save(tmp_path / "mask.nii.gz", MASK.T, np.eye(4))
    with pytest.raises(GridMismatchError) as error:
        compare(mask, image)
    text = str(error.value)
    for part in (image, mask, "[1 0 0 0; 0 1 0 0; 0 0 1 0]", "[-0.5 0 0 16; 0 -0.75 0 4.5; 0 0 2.5 7]", "resample"):
        assert part in text


def test_a_file_without_directions_fits_one_that_is_stored_as_it_is_read(tmp_path: Path) -> None:
    for orientation, fits in ((ORIENTATIONS[0], True), (LPS, False), (np.array([[2, 1], [1, 1], [0, 1]]), False)):
        image = save(tmp_path / "image.nii.gz", *turn(STACK.T, WORLD, orientation))
        for name in ("mask.npy", "mask.tif", "mask.nii.gz"):
            mask = tmp_path / name
            if name == "mask.npy":
                np.save(mask, MASK)
            else:
                write_mask(mask, MASK)
            if name == "mask.nii.gz":
                bare = nibabel.Nifti1Image(MASK.T, None)
                bare.to_filename(mask)
            for first, second in ((str(mask), image), (image, str(mask))):
                if fits:
                    assert compare(first, second) is None
                else:
                    with pytest.raises(GridMismatchError, match="does not say where its axes point") as error:
                        compare(first, second)
                    assert f"Save {mask} as NIfTI with the affine of {image}" in str(error.value)


def test_a_slice_that_is_only_transposed_fits_a_png(tmp_path: Path) -> None:
    coronal = np.take(STACK, [3], axis=1)  # (z, 1, x), stored as (x, z, 1) and as (1, x, z)
    for axes in ([[0, 1], [2, 1], [1, 1]], [[1, 1], [0, 1], [2, 1]]):
        image = save(tmp_path / "image.nii.gz", *turn(coronal.T, WORLD, np.array(axes)))
        write_mask(tmp_path / "mask.png", MASK[:, 3])
        assert (
            compare_grids(
                "mask", open_image(str(tmp_path / "mask.png")).geometry, image, open_image(image).geometry, (6, 9)
            )
            is None
        )


def test_equal_sides_hide_a_transpose() -> None:
    nifti = Geometry(
        (1.0, 1.0),
        tuple(map(tuple, np.eye(4).tolist())),
        nibabel.Nifti1Image(np.zeros((9, 9, 1)), np.eye(4)).header.binaryblock,
    )
    assert nifti.header is not None
    nifti = Geometry(nifti.spacing, nifti.affine, _with_voxels(nifti.header))
    doubt = compare_grids("mask.png", None, "image.nii.gz", nifti, (9, 9))
    assert doubt is not None
    assert "transpose" in doubt
    assert compare_grids("mask.png", None, "image.nii.gz", nifti, (9, 8)) is None
    assert compare_grids("mask.nii.gz", nifti, "image.nii.gz", nifti, (9, 9)) is None


def _with_voxels(block: bytes) -> bytes:
    header = nibabel.Nifti1Header(block)
    header["vox_offset"] = 352
    return bytes(header.binaryblock)


@pytest.mark.parametrize(
    ("mask", "image", "doubted"),
    [
        ((2.0, 1.0, 1.5), (2.0, 1.0, 1.5), False),
        ((2.0, 1.0, 1.5), (2.01, 1.0, 1.5), False),
        ((2.0, 1.0, 1.5), (2.1, 1.0, 1.5), True),
        ((1.0, 1.0, 1.0), (2.1, 1.0, 1.5), False),
    ],
)
def test_other_voxel_sizes_are_doubted(
    mask: tuple[float, ...],
    image: tuple[float, ...],
    doubted: bool,
) -> None:
    assert bool(compare_grids("mask", Geometry(mask), "image", Geometry(image), (4, 5, 6))) == doubted


# --- commands -------------------------------------------------------------------------------------------------------


def save_cases(root: Path, *, mask_affine: np.ndarray = WORLD, suffix: str = ".nii.gz") -> None:
    """Write six cases of random orientations, image and mask apart; the object is brighter than all else."""
    rng = np.random.default_rng(0)
    for case in range(6):
        mask = np.zeros((12, 16, 18), np.uint8)
        mask[1:5, 2:7, 3:9] = 1
        image = (rng.normal(100, 5, mask.shape) + 100 * mask).astype(np.float32)
        for folder, array, affine in (("images", image, WORLD), ("masks", mask, mask_affine)):
            orientation = ORIENTATIONS[rng.integers(48)]
            stored = apply_orientation(array.T, orientation)
            save(root / folder / f"c{case}{suffix}", stored, affine @ inv_ornt_aff(orientation, array.T.shape))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("cache", [2**31, 1], ids=["in memory", "by box"])
def test_cases_of_any_orientations_are_read_in_one_frame(tmp_path: Path, suffix: str, cache: int) -> None:
    save_cases(tmp_path, suffix=suffix)
    catalog = open_catalog(str(tmp_path))
    assert {f.spacing for f in catalog.facts.values()} == {(2.5, 0.75, 0.5)}
    assert len({f.counts for f in catalog.facts.values()}) == 1
    store = CaseStore(catalog, 1, cache)
    for case in catalog.cases:
        loaded = store.load(case.id)
        unit = cut_unit(loaded, (0, 0, 0), (12, 16, 18))[0]
        target = crop(loaded.target, (0, 0, 0), (12, 16, 18), -1)
        expected = np.zeros((12, 16, 18), int)
        expected[1:5, 2:7, 3:9] = 1
        np.testing.assert_array_equal(target, expected)
        assert unit[expected > 0].min() > unit[expected == 0].max()
    assert not [f for f in audit(str(tmp_path)).findings if f.level == "fault"]


def test_masks_elsewhere_are_one_fault_of_audit_and_training(tmp_path: Path) -> None:
    save_cases(tmp_path, mask_affine=shift(WORLD, (4, 0, 0)))
    faults = [f for f in audit(str(tmp_path)).findings if f.level == "fault"]
    found = [f for f in faults if f.code == "grid_mismatch"]
    assert len(found) == 1
    assert len(found[0].cases) == 6
    assert "in 6 cases" in found[0].message
    with pytest.raises(DataError, match="grid_mismatch"):
        open_catalog(str(tmp_path))


def test_sizes_in_another_order_are_named_as_such(tmp_path: Path) -> None:
    image, mask = tmp_path / "image.nii.gz", tmp_path / "mask.npy"
    save(image, STACK.T, WORLD)
    for array, said in ((MASK.T, True), (MASK[1:], False)):
        np.save(mask, array)
        with pytest.raises(SizeMismatchError) as error:
            read_facts(Case("a", str(image), str(mask), None))
        assert ("data.axes" in str(error.value)) == said


def test_channels_follow_their_affines(tmp_path: Path) -> None:
    first = save(tmp_path / "a_0000.nii.gz", STACK.T, WORLD)
    second = save(tmp_path / "a_0001.nii.gz", *turn(STACK.T, WORLD, LPS))
    np.testing.assert_array_equal(open_image(first, second).read(), np.stack([STACK, STACK]))
    second = save(tmp_path / "a_0001.nii.gz", STACK.T, shift(WORLD, (0, 1, 0)))
    with pytest.raises(GridMismatchError, match="a_0001"):
        open_image(first, second)


def test_volumes_that_are_not_read_are_named_with_what_to_do(tmp_path: Path) -> None:
    save_cases(tmp_path / "data")
    for name in ("a.nhdr", "b.mhd"):
        (tmp_path / "data" / "masks" / name).write_bytes(b"NRRD0004")
    assert any("Convert .mhd and .nhdr to .nii.gz" in note for note in open_catalog(str(tmp_path / "data")).notes)
    advice = advise_conversion(["a.WEBP", "b.mgz", "c.img.gz", "d.czi", "e.dcm", "f.txt"])
    kinds = [part.partition(" to ")[0] for part in advice.split(" Convert ")[1:]]
    assert kinds == [".img and .mgz", ".webp", ".czi", ".dcm"]
    with pytest.raises(DataError, match=r"Convert \.nhdr to \.nii\.gz.*SimpleITK"):
        open_image(str(tmp_path / "data" / "masks" / "a.nhdr"))
    with pytest.raises(DataError, match=r"Convert \.mhd to"):
        check_places(tmp_path / "data" / "masks" / "b.mhd", tmp_path / "out")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "brain.mgz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"Convert \.mgz to \.nii\.gz.*nibabel"):
        plan_jobs(tmp_path / "scans", tmp_path / "out", 3, "auto")
    with pytest.raises(DataError) as error:
        open_image(str(tmp_path / "notes.txt"))
    assert "Convert" not in str(error.value)


@pytest.mark.parametrize("moved", [False, True])
def test_the_translation_of_ome_zarr_is_compared(tmp_path: Path, moved: bool) -> None:
    geometries = []
    for name, x in (("image", 0.0), ("mask", 0.5 * moved)):
        group = zarr.open_group(str(tmp_path / f"{name}.zarr"), mode="w", zarr_format=2)
        group.create_array("0", data=STACK)
        place = [{"type": "scale", "scale": [2.5, 0.75, 0.5]}, {"type": "translation", "translation": [0, 0, x]}]
        level = {"path": "0", "coordinateTransformations": place}
        group.attrs["multiscales"] = [{"axes": [{"name": a} for a in "zyx"], "datasets": [level]}]
        geometries.append(open_image(str(tmp_path / f"{name}.zarr")).geometry)
    doubt = compare_grids("mask", geometries[1], "image", geometries[0], STACK.shape)
    assert bool(doubt) == moved
    assert not doubt or "origin 0.5, 0, 0 against 0, 0, 0" in doubt


def test_doubts_are_said_once(tmp_path: Path) -> None:
    for case in range(3):
        for folder, array, size in (("images", STACK + case, 0.5), ("masks", MASK, 0.25)):
            (tmp_path / folder).mkdir(exist_ok=True)
            metadata = {"axes": "ZYX", "PhysicalSizeX": size, "PhysicalSizeY": size, "PhysicalSizeZ": 2}
            tifffile.imwrite(tmp_path / folder / f"c{case}.ome.tif", array, ome=True, metadata=metadata)
    found = [f for f in audit(str(tmp_path)).findings if f.code == "grid_doubt"]
    assert [f.level for f in found] == ["warn"]
    assert "2 x 0.25 x 0.25" in found[0].message
    assert found[0].message in open_catalog(str(tmp_path)).notes
