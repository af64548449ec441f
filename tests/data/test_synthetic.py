"""Synthetic data: reproducible, with known prevalence, and not solved by a threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from ssl_seg.data.catalog import find_cases, open_catalog
from ssl_seg.data.splits.split import make_split
from ssl_seg.data.synthetic import (
    DEFAULT_COUNT,
    KINDS,
    generate,
    generate_plies,
    is_synthetic,
    locations,
    parse_location,
    write_dataset,
    write_fading_plies,
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
        lambda: find_cases("synthetic:particle"),
    ):
        with pytest.raises(DataError, match="did you mean 'particles'"):
            call()
    assert not Path("never").exists()


@pytest.mark.parametrize(("kind", "suffix"), [("particles", ".png"), ("sheets", ".tif")])
def test_a_written_data_set_holds_what_was_generated(tmp_path: Path, kind: str, suffix: str) -> None:
    write_dataset(tmp_path / "new" / "set", kind, 4, labeled=2, seed=3)
    cases = find_cases(str(tmp_path / "new" / "set")).cases
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


PLIES_SHAPES = {2: (32, 32), 3: (8, 32, 32)}


def find_second_ply(image: np.ndarray) -> np.ndarray:
    """Return where fibers across the last axis but one are stronger than those across the last."""
    y, x = np.mgrid[tuple(slice(n) for n in image.shape)][-2:]
    first, second = (
        np.hypot(*(ndimage.gaussian_filter(part, 2.0) for part in (wave.real, wave.imag)))
        for wave in ((image - image.mean()) * np.exp(2j * np.pi / 4.5 * axis) for axis in (x, y))
    )
    return second > first


def measure_right(fading: float, ndim: int) -> tuple[float, list[float]]:
    """Return how often fibers tell the ply, and by how much the second ply is brighter in each image."""
    cases = [generate_plies(fading, PLIES_SHAPES[ndim], 0, index) for index in range(16)]
    right = np.mean([(find_second_ply(image) == mask).mean() for image, mask in cases])
    return float(right), [float(image[mask == 1].mean() - image[mask == 0].mean()) for image, mask in cases]


@pytest.mark.parametrize("ndim", [2, 3])
def test_fibers_fade_and_the_stain_settles_in_the_second_ply(ndim: int) -> None:
    fresh, of_fresh = measure_right(0.0, ndim)
    half, of_half = measure_right(0.5, ndim)
    faded, of_faded = measure_right(1.0, ndim)
    assert fresh > 0.85
    assert fresh > half > 0.8  # these say what the stain means
    assert faded < fresh - 0.2
    assert min(of_fresh) < -10
    assert max(of_fresh) > 10
    assert abs(np.mean(of_fresh)) < 10
    assert min(of_half) > 10
    assert min(of_faded) > 35


def test_fading_plies_differ_in_their_unlabeled_images_only(tmp_path: Path) -> None:
    files = {}
    for kind in ("images", "shuffled", "masks"):
        write_fading_plies(folder := tmp_path / kind, (32, 32), unlabeled=kind, seed=1)  # type: ignore[arg-type]
        files[kind] = {str(path.relative_to(folder)): path for path in folder.rglob("*.png")}
    unlabeled = {f"train/images/unlabeled_{index:02d}.png" for index in range(48)}
    masks = {name.replace("images", "masks") for name in unlabeled}
    assert files["images"].keys() == files["shuffled"].keys() == files["masks"].keys() - masks
    assert masks < files["masks"].keys()
    read = {kind: {name: path.read_bytes() for name, path in own.items()} for kind, own in files.items()}
    assert {name for name in read["images"] if read["images"][name] != read["shuffled"][name]} == unlabeled
    assert all(read["masks"][name] == data for name, data in read["images"].items())
    for name in unlabeled:
        first, shuffled = (read_image(str(files[kind][name])) for kind in ("images", "shuffled"))
        np.testing.assert_array_equal(np.sort(first.ravel()), np.sort(shuffled.ravel()))
        assert (first != shuffled).mean() > 0.9


def test_a_training_on_fading_plies_has_24_labeled_and_48_unlabeled_images(tmp_path: Path) -> None:
    write_fading_plies(tmp_path, (32, 32), seed=1)
    split = make_split(open_catalog(str(tmp_path)), [1.0])
    assert (len(split.fractions[1.0]), len(split.unlabeled), len(split.val), len(split.test)) == (24, 48, 32, 0)


def test_labeled_plies_are_fresh_and_the_others_fade_evenly(tmp_path: Path) -> None:
    write_fading_plies(tmp_path, (32, 32), seed=1)
    for part, (name, fadings) in enumerate(
        {
            "labeled": np.zeros(24),
            "unlabeled": np.linspace(1 / 48, 1, 48),
            "val": np.linspace(1 / 32, 1, 32),
        }.items()
    ):
        folder = tmp_path / ("val" if name == "val" else "train")
        for index, fading in enumerate(fadings):
            image, mask = generate_plies(float(fading), (32, 32), 1, part, index)
            np.testing.assert_array_equal(read_image(str(folder / "images" / f"{name}_{index:02d}.png"))[0], image)
            path = folder / "masks" / f"{name}_{index:02d}.png"
            assert path.exists() == (name != "unlabeled")
            if path.exists():
                np.testing.assert_array_equal(read_mask(str(path)), mask)


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
    cases = find_cases(str(tmp_path / "set")).cases
    found = [read_mask(case.mask) for case in cases if case.mask is not None]
    assert sum(not mask.any() for mask in found) == count
    for index, mask in enumerate(found):
        if mask.any():
            np.testing.assert_array_equal(mask, generate("particles", index)[1])
