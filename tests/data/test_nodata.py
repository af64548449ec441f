"""Voxels without data: from a GeoTIFF's tag, a setting, an odd value, NaN; and masks that say nothing."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from sizes import around
from torch import nn

from ssl_seg.config import DataConfig
from ssl_seg.config.layers import Layer, check_partial, merge_layers, validate
from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.facts import read_facts
from ssl_seg.data.formats.stored import LazyArray
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.nodata import FEWEST
from ssl_seg.data.reading import Reading
from ssl_seg.data.resample import resample_image
from ssl_seg.data.store import CaseStore
from ssl_seg.data.views.transforms import blacken_gaps, normalize
from ssl_seg.data.volumes import read_image
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.inference.scoring import score_case
from ssl_seg.inference.sliding import Predictor
from ssl_seg.labels import IGNORE_INDEX, Meaning

RNG = np.random.default_rng(0)
COLLAR = np.s_[..., :5]
IGNORE = Reading(nonfinite="ignore")


def write(folder: Path, images: list[NDArray], masks: list[NDArray], tag: str | None = None) -> str:
    for name, arrays in (("images", images), ("masks", masks)):
        (folder / name).mkdir(parents=True)
        for index, array in enumerate(arrays):
            tags = [(42113, "s", 0, tag, True)] if tag is not None and name == "images" else []
            tifffile.imwrite(folder / name / f"{index}.tif", array, photometric="minisblack", extratags=tags)
    return str(folder)


def scene(dtype: str = "f4", ndim: int = 2) -> tuple[NDArray, NDArray]:
    """Return an image of values 1000 .. 1300 and its mask, which has foreground in the collar too."""
    shape = (24, 32) if ndim == 2 else (6, 24, 32)
    mask = np.zeros(shape, np.uint8)
    mask[..., 3:12, 2:14] = 1
    return (RNG.integers(1000, 1100, shape) + 200 * mask).astype(dtype), mask


def with_collar(image: NDArray, value: float) -> NDArray:
    marked = image.copy()
    marked[COLLAR] = value
    return marked


def test_a_tag_of_the_file_is_taken_at_its_word(tmp_path: Path) -> None:
    image, mask = scene("u2")
    root = write(tmp_path / "x", [with_collar(image, 0)], [mask], tag="0")
    read = read_image(f"{root}/images/0.tif")
    assert np.isnan(read[COLLAR]).all()
    np.testing.assert_array_equal(read[0, :, 5:], image[:, 5:])
    as_it_is = read_image(f"{root}/images/0.tif", reading=Reading(nodata="none"))
    np.testing.assert_array_equal(as_it_is[0], with_collar(image, 0))
    assert as_it_is.dtype == np.uint16


@pytest.mark.parametrize("tag", ["", "none", "1.#QNAN", "-9999"])
def test_tags_that_say_nothing_about_the_image(tmp_path: Path, tag: str) -> None:
    image, mask = scene("u2")
    image[0, 0] = 2**16 - 9999  # what -9999 is in 16 bits
    np.testing.assert_array_equal(read_image(f"{write(tmp_path / 'x', [image], [mask], tag)}/images/0.tif")[0], image)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "value", "reading", "tag"),
    [
        ("f4", np.nan, IGNORE, None),
        ("f4", np.inf, IGNORE, None),
        ("f8", 1e300, IGNORE, None),
        ("f4", np.nan, Reading(), "nan"),
        ("f4", -9999, Reading(), None),
        ("f4", np.finfo(np.float32).min, Reading(), None),
        ("i2", -32768, Reading(), "-32768"),
        ("u2", 65535, Reading(), None),
        ("i4", 77, Reading(nodata=77), None),
    ],
)
def test_the_voxels_take_no_part(
    tmp_path: Path, ndim: int, dtype: str, value: float, reading: Reading, tag: str | None
) -> None:
    image, mask = scene(dtype, ndim)
    root = write(tmp_path / "x", [with_collar(image, value)] * 2, [mask] * 2, tag)
    catalog = open_catalog(root, CatalogSettings(reading=reading))
    facts = catalog.facts["0"]
    assert facts.missing == pytest.approx(5 / 32)
    assert facts.appearance is not None
    assert (facts.appearance.low, facts.appearance.high) == (image[..., 5:].min(), image[..., 5:].max())
    assert facts.appearance.std == pytest.approx(image[..., 5:].std())
    assert facts.foreground == pytest.approx(mask[..., 5:].mean())
    assert any("voxels without data (up to 15.6%: 0)" in note for note in catalog.notes)
    expected = (image[..., 5:] - image[..., 5:].mean(dtype=np.float64)) / image[..., 5:].std(dtype=np.float64)
    for memory in (2**31, 0):  # whole, and by box
        case = CaseStore(catalog, 1, memory).load("0")
        assert isinstance(case.image, LazyArray) == (memory == 0)
        everything = (slice(None),) * ndim
        assert case.target is not None
        patch, target = case.image[(slice(None), *everything)], case.target[(Ellipsis, *everything)]
        zscore = case.intensity.unit_to_zscore(case.intensity.to_unit(patch))
        for seen in (zscore, normalize(patch)):
            np.testing.assert_allclose(seen[0, ..., 5:], expected, atol=1e-5)
            np.testing.assert_allclose(seen[COLLAR], 0, atol=1e-6)
        assert (target[COLLAR] == IGNORE_INDEX).all()
        np.testing.assert_array_equal(target[..., 5:], mask[..., 5:])
        assert case.foreground[0][:, -1].min() >= 5
        whole = CaseStore(catalog, 1, memory).load_whole("0")
        np.testing.assert_array_equal(whole.target, target)


class Everywhere(nn.Module):
    """Predicts foreground in every voxel."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        assert torch.isfinite(windows).all()
        return torch.cat([-(windows[:, :1] ** 2) - 1, windows[:, :1] ** 2 + 1], dim=1)


@pytest.mark.parametrize("resample_to", [None, (2.0, 2.0)])
def test_they_are_predicted_as_background_and_not_scored(
    tmp_path: Path, resample_to: tuple[float, float] | None
) -> None:
    image, mask = scene("i2")
    catalog = open_catalog(write(tmp_path / "x", [with_collar(image, -9999)] * 2, [mask] * 2))
    case = CaseStore(catalog, 1).load_whole("0")
    predictor = Predictor(Everywhere(), (16, 16), torch.device("cpu"), nullcontext, resample_to=resample_to)
    for probs in (predictor(case.image, (1.0, 1.0)), predictor.with_logits(case.image, (1.0, 1.0))[0]):
        np.testing.assert_array_equal(probs.argmax(axis=0), np.arange(32)[None] >= np.full((24, 1), 5))
        np.testing.assert_array_equal(probs[0][COLLAR], 1)
        np.testing.assert_array_equal(probs[1][COLLAR], 0)
        overlap = score_case("0", case, probs).overlap
        assert (overlap.tp, overlap.fp, overlap.fn) == (mask[:, 5:].sum(), (1 - mask[:, 5:]).sum(), 0)


LEVELS = np.linspace(0, 4000, 3000).astype(np.int32)


@pytest.mark.parametrize(
    ("rest", "dtype", "value", "count", "found"),
    [
        (LEVELS, "i2", -9999, 100, True),
        (LEVELS, "f4", -99999, 100, True),
        (LEVELS, "f4", 1e20, 100, True),
        (LEVELS, "f8", np.finfo(np.float64).min / 1e280, 100, True),
        (LEVELS, "u2", 65535, 100, True),
        (LEVELS, "i2", -32768, 100, True),
        *((LEVELS, "i2", -9999, count, count >= FEWEST) for count in around(FEWEST)),
        (LEVELS, "i2", -3024, 1000, False),  # outside the circle of a CT scanner
        (LEVELS + 30000, "u2", 0, 1000, False),  # a black background
        (LEVELS // 60, "u1", 255, 1000, False),  # text burnt in
        (LEVELS * 16, "u2", 65535, 1000, False),  # saturated
        (LEVELS, "i2", -3999, 1000, False),  # nothing that programs write
        (LEVELS, "i2", -999, 1000, False),  # not far enough
        (LEVELS * 0 + 7, "i2", -9999, 1000, False),  # two values: rather a mask
        (np.concatenate([LEVELS, [-10000]]), "i2", -9999, 1000, False),  # not the smallest
    ],
)
def test_which_values_are_taken_for_no_data(
    tmp_path: Path, rest: NDArray, dtype: str, value: float, count: int, found: bool
) -> None:
    pixels = np.concatenate([rest.astype(dtype), np.full(count, value, dtype)])
    pixels = np.concatenate([pixels, np.full(-len(pixels) % 64, pixels[0])]).reshape(-1, 64)
    np.save(tmp_path / "x.npy", pixels)
    facts = read_facts(Case("x", str(tmp_path / "x.npy"), None, None))
    assert facts.odd_value == (pixels.dtype.type(value) if found else None)


def test_a_guess_is_said_and_can_be_turned_off(tmp_path: Path) -> None:
    image, mask = scene("i2")
    root = write(tmp_path / "x", [with_collar(image, -9999), image, image], [mask] * 3)
    catalog = open_catalog(root)
    assert catalog.reading.nodata == -9999
    assert any("The value -9999 is taken for no data" in note for note in catalog.notes)
    found = {finding.code: finding for finding in audit(root).findings}
    assert found["no_data"].level == "warn"
    assert found["no_data"].cases == ("0",)
    given = {finding.code: finding for finding in audit(root, CatalogSettings(reading=Reading(nodata=-9999))).findings}
    assert given["no_data"].level == "info"
    off = open_catalog(root, CatalogSettings(reading=Reading(nodata="none")))
    assert not any(facts.missing for facts in off.facts.values())
    assert {i: f.content for i, f in off.facts.items()} == {i: f.content for i, f in catalog.facts.items()}


def test_nan_is_refused_with_the_setting_that_leaves_it_out(tmp_path: Path) -> None:
    image, mask = scene()
    root = write(tmp_path / "x", [with_collar(image, np.nan)], [mask])
    with pytest.raises(DataError, match=r"data\.nonfinite=ignore"):
        open_catalog(root)
    assert open_catalog(root, CatalogSettings(reading=IGNORE)).facts["0"].missing > 0


def test_an_image_of_nothing_else_is_a_fault(tmp_path: Path) -> None:
    image, mask = scene()
    root = write(tmp_path / "x", [image, np.full_like(image, np.nan)], [mask] * 2)
    with pytest.raises(DataError, match="no voxel has data"):
        open_catalog(root, CatalogSettings(reading=IGNORE))


def test_a_color_is_no_gap_where_one_channel_is_black(tmp_path: Path) -> None:
    color = RNG.integers(1, 250, (3, 20, 30), dtype=np.uint8)
    color[0, 2, 2] = 0
    color[:, 5, 5] = 0
    np.save(tmp_path / "x.npy", color)
    read = read_image(str(tmp_path / "x.npy"), reading=Reading(axes="CYX", nodata=0))
    np.testing.assert_array_equal(np.argwhere(np.isnan(read)), [(c, 5, 5) for c in range(3)])


def test_a_gap_of_one_channel_alone_is_filled_and_not_ignored(tmp_path: Path) -> None:
    image, mask = scene()
    root = write(tmp_path / "x", [np.stack([with_collar(image, np.nan), image])] * 2, [mask] * 2)
    catalog = open_catalog(root, CatalogSettings(reading=replace(IGNORE, axes="CYX")))
    case = CaseStore(catalog, 2).load("0")
    np.testing.assert_array_equal(case.target, mask)
    assert np.isfinite(case.intensity.to_unit(case.image[:, 0:24, 0:32])).all()
    assert catalog.facts["0"].foreground == pytest.approx(mask.mean())


def test_gaps_stay_where_they_are_on_another_grid() -> None:
    image = with_collar(scene("f4")[0][None], np.nan)
    coarse = resample_image(image, (12, 16))
    assert np.isnan(coarse[0, :, :2]).all()
    assert np.isfinite(coarse[0, :, 3:]).all()
    assert np.nanmin(coarse) >= np.nanmin(image)
    assert np.isnan(resample_image(np.full((1, 4, 4), np.nan, np.float32), (8, 8))).all()


def test_spaces_of_nifti(tmp_path: Path) -> None:
    volume = RNG.normal(100, 10, (8, 9, 10)).astype(np.float32)
    volume[:3] = np.nan
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "x.nii.gz")
    with pytest.raises(DataError, match=r"270 of 720 values are NaN or infinite"):
        read_image(str(tmp_path / "x.nii.gz"))
    assert np.isnan(read_image(str(tmp_path / "x.nii.gz"), reading=IGNORE)).sum() == 270


def test_gaps_are_shown_black() -> None:
    image = np.array([[3.0, np.nan], [5.0, np.inf]])
    np.testing.assert_array_equal(blacken_gaps(image), [[3, 3], [5, np.inf]])
    np.testing.assert_array_equal(blacken_gaps(np.full((2, 2), np.nan)), 0)
    np.testing.assert_array_equal(blacken_gaps(np.eye(2, dtype=np.uint8)), np.eye(2))


class TestMasksThatSayNothing:
    def test_they_make_unlabeled_cases(self, tmp_path: Path) -> None:
        image, mask = scene("u2")
        nothing = np.full_like(mask, 255)
        root = write(tmp_path / "x", [image + n for n in range(3)], [mask, mask, nothing])
        catalog = open_catalog(root, CatalogSettings(meaning=Meaning(ignore_value=255)))
        assert [case.id for case in catalog.unlabeled] == ["2"]
        assert any("1 mask ignores every voxel (2)" in note for note in catalog.notes)
        result = audit(root, CatalogSettings(meaning=Meaning(ignore_value=255)))
        assert result.summary["counts"]["labeled"] == 2
        assert result.summary["foreground"]["empty"] == 0
        codes = {finding.code for finding in result.findings}
        assert "nothing_annotated" in codes
        assert "empty_masks" not in codes

    @pytest.mark.parametrize(("annotated", "negative"), [(0.1, False), (0.9, True)])
    def test_a_few_voxels_of_background_are_no_labeled_negative(
        self, tmp_path: Path, annotated: float, negative: bool
    ) -> None:
        image, mask = scene("u2")
        few = np.full_like(mask, 255)
        few[: round(annotated * len(few))] = 0
        root = write(tmp_path / "x", [image + n for n in range(3)], [mask, mask, few])
        codes = {finding.code for finding in audit(root, CatalogSettings(meaning=Meaning(ignore_value=255))).findings}
        assert ("empty_masks" in codes) == negative

    def test_shares_are_of_the_voxels_that_count(self, tmp_path: Path) -> None:
        image, mask = scene("u2")
        mask = np.where(np.arange(32) < 16, mask, 255).astype(np.uint8)
        catalog = open_catalog(
            write(tmp_path / "x", [image], [mask]), CatalogSettings(meaning=Meaning(ignore_value=255))
        )
        assert catalog.facts["0"].foreground == pytest.approx((mask == 1).sum() / (mask < 255).sum())
        assert catalog.facts["0"].annotated == 0.5


class TestSparseLabels:
    """0 is what nobody annotated, 1 background, 2 and more objects."""

    def scribbled(self, folder: Path, *, classes: int = 2, annotated: float = 0.3) -> tuple[str, list[NDArray]]:
        masks = []
        for n in range(4):
            rng = np.random.default_rng(n)
            mask = (rng.integers(0, 3, (24, 32)) // 2 + 1).astype(np.uint8)  # one third is object
            mask[:2, :2] = classes
            masks.append(np.where(rng.random(mask.shape) < annotated, mask, 0).astype(np.uint8))
        images = [(70 * mask + np.random.default_rng(9).integers(0, 9, mask.shape)).astype(np.uint8) for mask in masks]
        return write(folder, images, masks), masks

    def test_ignoring_zero_is_enough(self, tmp_path: Path) -> None:
        root, masks = self.scribbled(tmp_path / "x")
        catalog = open_catalog(root, CatalogSettings(meaning=Meaning(ignore_value=0)))
        assert catalog.label_values == (1, 2)
        target = CaseStore(catalog, 1).load("0").target
        np.testing.assert_array_equal(target, np.array([IGNORE_INDEX, 0, 1])[masks[0]])
        assert catalog.facts["0"].foreground == pytest.approx((masks[0] == 2).sum() / (masks[0] > 0).sum())
        result = audit(root, CatalogSettings(meaning=Meaning(ignore_value=0)))
        assert result.meaning.label_values == (1, 2)
        assert result.summary["faults"] == 0
        assert (
            audit(root, CatalogSettings(meaning=Meaning(ignore_value=0, label_values=(1, 2)))).summary["foreground"]
            == result.summary["foreground"]
        )

    def test_more_classes(self, tmp_path: Path) -> None:
        root, _ = self.scribbled(tmp_path / "x", classes=3, annotated=1)
        assert open_catalog(root, CatalogSettings(meaning=Meaning(ignore_value=0))).label_values == (1, 2, 3)

    @pytest.mark.parametrize("ignored", [0, 1, 2, 255])
    def test_the_value_to_ignore_can_be_given_alone(self, ignored: int) -> None:
        assert (
            check_partial(merge_layers([Layer("--set", {"data": {"ignore_value": ignored}})]))[0].data.ignore_value
            == ignored
        )

    @pytest.mark.parametrize(
        ("annotated", "settings", "hinted"),
        [
            (0.3, {}, True),
            (0.3, {"ignore_value": 0}, False),
            (0.3, {"label_values": (0, 1, 2)}, False),
            (0.8, {}, False),
        ],
    )
    def test_the_audit_asks_where_it_is_likely(
        self, tmp_path: Path, annotated: float, settings: dict, hinted: bool
    ) -> None:
        root, _ = self.scribbled(tmp_path / "x", annotated=annotated)
        found = {
            finding.code: finding.message
            for finding in audit(root, CatalogSettings(meaning=Meaning(**settings))).findings
        }
        assert ("perhaps_sparse" in found) == hinted
        if hinted:
            assert "--set data.ignore_value=0 --set 'data.label_values=[1, 2]'" in found["perhaps_sparse"]

    def test_a_label_value_that_is_ignored_is_refused_with_the_remedy(self) -> None:
        section = {"label_values": [0, 1, 2], "channels": 1, "patch_size": [32, 32], "foreground_ratio": 0}
        with pytest.raises(ConfigError, match=r"data\.label_values=\[1, 2\], background first"):
            validate(DataConfig, section | {"ignore_value": 0}, prefix="data.")


def test_a_value_taken_for_no_data_is_no_matter_of_axes(tmp_path: Path) -> None:
    image, mask = scene()
    image[COLLAR] = -9999
    root = write(tmp_path, [image, image + 1], [mask, mask])
    for notes in (open_catalog(root).notes, audit(root).summary["notes"]):
        assert not [note for note in notes if "data.axes" in note]
    assert any("-9999" in note for note in open_catalog(root).notes)
