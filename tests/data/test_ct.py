"""The intensity window of CT: when it is proposed, what it is, and what it does."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sizes import around
from torch import nn

from ssl_seg.data import contrast
from ssl_seg.data.catalog import Catalog, CatalogSettings, open_catalog
from ssl_seg.data.contrast import looks_like_ct, measure_window
from ssl_seg.data.reading import Reading
from ssl_seg.data.store import CaseStore, cut_unit
from ssl_seg.data.views.transforms import make_window, normalize
from ssl_seg.diagnose.inputs import compare_inputs
from ssl_seg.inference.sliding import Predictor
from ssl_seg.run.plan import plan_run

SHAPE = (24, 20, 12)


def scan(seed: int, organ: float = 60) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Return Hounsfield units (X, Y, Z) of a body in air with an organ, and the mask of the organ."""
    rng = np.random.default_rng(seed)
    values, mask = np.full(SHAPE, -1000.0), np.zeros(SHAPE, np.uint8)
    values[4:20, 3:17] = -100
    mask[7:14, 6:12, 3:9] = 1
    values[mask > 0] = organ
    values[5, 5, 5] = 1500
    return np.clip(values + rng.normal(0, 20, SHAPE) * (values > -1000), -1000, None).round().astype(np.int16), mask


def write(folder: Path, scans: list[tuple[NDArray, NDArray]]) -> Catalog:
    for name, which in (("images", 0), ("masks", 1)):
        (folder / name).mkdir(parents=True)
        for index, arrays in enumerate(scans):
            nib.save(nib.Nifti1Image(arrays[which], np.eye(4)), folder / name / f"{index}.nii.gz")
    return open_catalog(str(folder))


def planned_window(catalog: Catalog, given: dict | None = None) -> list[float] | None:
    labeled = [case.id for case in catalog.labeled]
    return {p.key: p.value for p in plan_run(catalog, labeled, (), given or {}, gpu=False)}.get("data.window")


def test_the_window_is_of_the_foreground_of_labeled_cases(tmp_path: Path) -> None:
    scans = [scan(0), scan(1), scan(2, organ=500)]
    catalog = write(tmp_path / "ct", scans)
    inside = np.concatenate([image[mask > 0] for image, mask in scans[:2]])
    expected = tuple(np.percentile(inside, (0.5, 99.5)).round())
    assert measure_window(catalog, ["0", "1"]) == pytest.approx(expected, abs=1)
    assert planned_window(catalog) == list(measure_window(catalog, ["0", "1", "2"]) or ())
    assert planned_window(catalog, {"data": {"window": None}}) is None
    assert measure_window(catalog, []) is None


def change(image: NDArray, kind: str) -> NDArray:
    if kind == "seismic":
        return np.clip(np.random.default_rng(0).normal(0, 900, image.shape), -2000, 2000).astype(np.int16)
    shift = {"as it is": 0, "unsigned": 1000, "heights": 950}[kind]
    return (image + shift).astype(np.uint16 if kind == "unsigned" else np.int16)


@pytest.mark.parametrize(
    ("kind", "expected"), [("as it is", True), ("unsigned", False), ("heights", False), ("seismic", False)]
)
def test_what_looks_like_ct(tmp_path: Path, kind: str, expected: bool) -> None:
    catalog = write(tmp_path / "ct", [(change(image, kind), mask) for image, mask in map(scan, range(3))])
    assert looks_like_ct(catalog.facts.values()) == expected
    assert (planned_window(catalog) is not None) == expected


def test_a_few_others_among_many_scans_do_not_matter(tmp_path: Path) -> None:
    scans = [scan(n) for n in range(11)]
    catalog = write(tmp_path / "ct", [*scans[:10], (change(scans[10][0], "unsigned"), scans[10][1])])
    facts = list(catalog.facts.values())
    assert looks_like_ct(facts)
    assert not looks_like_ct(facts[2:4])  # "10" and "2"


@pytest.mark.parametrize("images", [*around(2), 9])
def test_so_many_images_are_read_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    monkeypatch.setattr(contrast, "WINDOW_IMAGES", 2)
    catalog = write(tmp_path / "ct", [scan(n) for n in range(images)])
    read = []
    load = CaseStore.load
    monkeypatch.setattr(CaseStore, "load", lambda self, i: [read.append(i), load(self, i)][1])
    assert measure_window(catalog, sorted(catalog.facts)) is not None
    assert len(read) == len(set(read)) == min(images, 2)


class Pointwise(nn.Module):
    """A network that looks at single voxels."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return torch.cat([-windows, windows], dim=1)


@pytest.mark.parametrize(("window", "agree"), [((0.0, 120.0), True), (None, False)])
def test_air_around_a_scan_changes_nothing(window: tuple[float, float] | None, agree: bool) -> None:
    image = scan(0)[0][None]
    padded = np.pad(image, [(0, 0), (0, 0), (0, 0), (16, 16)], constant_values=-1000)
    predict = Predictor(Pointwise(), (16, 16, 16), torch.device("cpu"), nullcontext, intensity_window=window)
    difference = np.abs(predict(padded)[..., 16:-16] - predict(image)).max()
    assert (difference < 1e-5) == agree


def test_training_and_prediction_see_the_same(tmp_path: Path) -> None:
    catalog = write(tmp_path / "ct", [scan(0)])
    for memory in (2**31, 1):
        case = CaseStore(catalog, 1, memory, window=(-50.0, 150.0)).load("0")
        patch = case.intensity.unit_to_zscore(cut_unit(case, (0, 0, 0), SHAPE[::-1]))
        image = scan(0)[0].T[None]
        np.testing.assert_allclose(patch, normalize(image, (-50, 150)), atol=1e-6)
        np.testing.assert_allclose(patch, (np.clip(image, -50, 150) - 50) / (200 / 12**0.5), atol=1e-5)
        outside = cut_unit(case, (-4, 0, 0), SHAPE[::-1])[:, :4]
        np.testing.assert_allclose(case.intensity.unit_to_zscore(outside), 0, atol=1e-6)


def test_values_spread_evenly_over_the_window_have_mean_0_and_deviation_1() -> None:
    values = np.linspace(-7, 3, 100_001)[None, None]
    zscore = make_window((-7, 3), 1)
    seen = zscore.unit_to_zscore(zscore.to_unit(values))
    assert seen.mean() == pytest.approx(0, abs=1e-3)
    assert seen.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("gaps", [False, True])
def test_a_window_does_not_make_the_input_look_wrong(tmp_path: Path, *, gaps: bool) -> None:
    catalog = write(tmp_path / "ct", [scan(0)])
    if gaps:
        catalog = open_catalog(catalog.root, CatalogSettings(reading=Reading(nodata=-1000)))
    window = (-200.0, 150.0)
    predictor = Predictor(Pointwise(), (12, 20, 24), torch.device("cpu"), nullcontext, intensity_window=window)
    fed = compare_inputs(predictor, CaseStore(catalog, 1, window=window), "0", 2)
    assert fed.difference < 1e-5
    assert fed.rank_correlation(0) == pytest.approx(1, abs=1e-6)
