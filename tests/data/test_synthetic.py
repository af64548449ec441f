"""Synthetic data: reproducible, with known prevalence, and not solved by a threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from ssl_seg.data.layouts import find_listing
from ssl_seg.data.synthetic import (
    DEFAULT_COUNT,
    KINDS,
    generate,
    is_synthetic,
    locations,
    parse_location,
    write_dataset,
)
from ssl_seg.data.volumes import read_image, read_mask
from ssl_seg.errors import DataError

SHAPES = {"particles": (128, 128), "sheets": (32, 64, 64)}
SAMPLE = {"particles": 60, "sheets": 10}


@pytest.fixture(scope="module", params=KINDS)
def sample(request: pytest.FixtureRequest) -> tuple[str, np.ndarray, np.ndarray]:
    """Kind, images and masks of the first cases."""
    pairs = [generate(request.param, i) for i in range(SAMPLE[request.param])]
    return request.param, np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])


def test_shapes_and_values(sample: tuple[str, np.ndarray, np.ndarray]) -> None:
    kind, images, masks = sample
    assert images.shape[1:] == masks.shape[1:] == SHAPES[kind]
    assert images.dtype == masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 1}
    clipped = np.isin(images, (0, 255)).mean()
    assert clipped < 0.01


def test_prevalence_is_known_and_varies(sample: tuple[str, np.ndarray, np.ndarray]) -> None:
    kind, _, masks = sample
    share = masks.reshape(len(masks), -1).mean(1)
    assert 0.25 < share.mean() < 0.35
    assert share.min() > 0.08
    assert share.max() < 0.55
    assert np.ptp(share) > (0.3 if kind == "particles" else 0.1)


def test_no_threshold_does_well_but_the_gray_value_helps(sample: tuple[str, np.ndarray, np.ndarray]) -> None:
    _, images, masks = sample
    positive = np.bincount(images[masks == 1], minlength=256)
    negative = np.bincount(images[masks == 0], minlength=256)
    hits, false_alarms = positive[::-1].cumsum(), negative[::-1].cumsum()
    best = (2 * hits / (hits + false_alarms + positive.sum())).max()
    prevalence = masks.mean()
    all_foreground = 2 * prevalence / (1 + prevalence)
    assert all_foreground + 0.08 < best < 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_kind_seed_and_index_decide_everything(kind: str) -> None:
    image, mask = generate(kind, 3, seed=5)
    np.random.default_rng(0).normal()
    again, mask_again = generate(kind, 3, seed=5)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    for other in (generate(kind, 4, seed=5), generate(kind, 3, seed=6), generate(kind, 5, seed=3)):
        assert (mask != other[1]).mean() > 0.05


def test_locations_name_the_cases() -> None:
    assert locations("particles", 2) == ("synthetic:particles/0000", "synthetic:particles/0001")
    for kind in KINDS:
        named = [parse_location(loc) for loc in locations(kind)]
        assert named == [(kind, i) for i in range(DEFAULT_COUNT[kind])]
    assert is_synthetic("synthetic:particles")
    assert not is_synthetic("data/synthetic")


@pytest.mark.parametrize(
    "location", ["synthetic:particles", "synthetic:particles/x", "synthetic:particles/0001/2", "x/0001"]
)
def test_other_locations_are_refused(location: str) -> None:
    with pytest.raises(DataError, match="synthetic:particles/0007"):
        parse_location(location)


def test_an_unknown_kind_names_the_nearest() -> None:
    for call in (
        lambda: generate("particle", 0),
        lambda: locations("particle"),
        lambda: parse_location("synthetic:particle/1"),
        lambda: write_dataset(Path("never"), "particle", 1),
        lambda: find_listing(Path("synthetic:particle")),
    ):
        with pytest.raises(DataError, match="did you mean 'particles'"):
            call()
    assert not Path("never").exists()


@pytest.mark.parametrize(("kind", "suffix"), [("particles", ".png"), ("sheets", ".tif")])
def test_a_written_data_set_holds_what_was_generated(tmp_path: Path, kind: str, suffix: str) -> None:
    write_dataset(tmp_path / "new" / "set", kind, 4, labeled=2, seed=3)
    cases = find_listing(tmp_path / "new" / "set").cases
    assert [c.id for c in cases] == ["0000", "0001", "0002", "0003"]
    assert sum(c.mask is not None for c in cases) == 2
    for index, case in enumerate(cases):
        image, mask = generate(kind, index, seed=3)
        assert Path(case.image).suffix == suffix
        np.testing.assert_array_equal(read_image(case.image)[0], image)
        if case.mask is not None:
            np.testing.assert_array_equal(read_mask(case.mask), mask)


def labeled_names(folder: Path) -> set[str]:
    return {p.stem for p in (folder / "masks").iterdir()}


def test_the_seed_draws_which_images_are_labeled_and_more_include_fewer(tmp_path: Path) -> None:
    for name, labeled, seed in [("a", 3, 0), ("b", 3, 0), ("c", 5, 0), ("d", 3, 1), ("all", None, 0), ("none", 0, 0)]:
        write_dataset(tmp_path / name, "particles", 12, labeled=labeled, seed=seed)
    names = {folder.name: labeled_names(folder) for folder in tmp_path.iterdir()}
    assert names["a"] == names["b"]
    assert names["a"] < names["c"]
    assert names["a"] != names["d"]
    assert (len(names["all"]), len(names["none"])) == (12, 0)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        write_dataset(tmp_path, "particles", 1)
    with pytest.raises(DataError, match="not an empty folder"):
        write_dataset(tmp_path / "kept.txt", "particles", 1)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]
    (tmp_path / "empty").mkdir()
    write_dataset(tmp_path / "empty", "particles", 1)
    with pytest.raises(DataError, match="labeled=3"):
        write_dataset(tmp_path / "other", "particles", 2, labeled=3)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_image_shows_what_looks_like_the_foreground_and_nothing_else(kind: str) -> None:
    (image, mask), (full, _) = generate(kind, 3, empty=True), generate(kind, 3)
    assert not mask.any()
    assert image.std() > 0.5 * full.std()


def test_particles_are_numbered_within_the_mask_and_touch() -> None:
    numbers, mask = generate("particles", 1, instances=True)[1], generate("particles", 1)[1]
    np.testing.assert_array_equal(numbers > 0, mask == 1)
    assert len(np.unique(numbers)) - 1 > ndimage.label(mask)[1] > 1
    with pytest.raises(DataError, match="sheets have no numbers"):
        write_dataset(Path("never"), "sheets", 1, instances=True)


@pytest.mark.parametrize("empty", [-0.1, 1.1, float("nan")])
def test_a_share_lies_between_0_and_1(empty: float) -> None:
    with pytest.raises(DataError, match="must lie between 0 and 1"):
        write_dataset(Path("never"), "particles", 10, empty=empty)


@pytest.mark.parametrize(("empty", "count"), [(0.0, 0), (0.7, 7), (1.0, 10)])
def test_so_many_images_hold_nothing_and_the_others_stay_as_they_are(tmp_path: Path, empty: float, count: int) -> None:
    write_dataset(tmp_path / "set", "particles", 10, empty=empty)
    cases = find_listing(tmp_path / "set").cases
    found = [read_mask(case.mask) for case in cases if case.mask is not None]
    assert sum(not mask.any() for mask in found) == count
    for index, mask in enumerate(found):
        if mask.any():
            np.testing.assert_array_equal(mask, generate("particles", index)[1])
