"""Copies are found in every form in which they come, and different images are not taken for copies."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sizes import around

from ssl_seg.data import duplicates
from ssl_seg.data.duplicates import AlikePairs, find_alike_pairs, find_near_duplicates
from ssl_seg.data.synthetic import generate

Thumbnails = dict[str, NDArray[np.float32]]


def shrink(image: NDArray[np.generic], size: int = 32) -> NDArray[np.float32]:
    """OpenCV's area mean: the same as the package's own where sizes divide."""
    return cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


@pytest.fixture(scope="module")
def images() -> dict[str, NDArray[np.uint8]]:
    return {f"{n:02d}": generate("particles", n)[0] for n in range(20)}


@pytest.fixture
def thumbnails(images: dict[str, NDArray[np.uint8]]) -> Thumbnails:
    return {i: shrink(image) for i, image in images.items()}


def jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_UNCHANGED)


COPIES = {
    "the same": lambda image: image,
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "three quarters": lambda image: cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA),
    "double": lambda image: cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC),
    "jpeg": jpeg,
    "16 bit, brighter": lambda image: image.astype(np.uint16) * 100 + 5000,
    "less contrast": lambda image: (image * 0.4 + 60).astype(np.uint8),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "quarter turn": np.rot90,
    "three quarter turns": lambda image: np.rot90(image, 3),
    "transposed": lambda image: image.T,
    "turned and resized": lambda image: cv2.resize(np.rot90(image).copy(), (200, 90), interpolation=cv2.INTER_AREA),
}


def test_different_images_are_no_copies(thumbnails: Thumbnails) -> None:
    assert find_near_duplicates(thumbnails) == []


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_is_found(change, images: dict[str, NDArray[np.uint8]], thumbnails: Thumbnails) -> None:
    thumbnails["copy"] = shrink(change(images["07"]))
    assert find_near_duplicates(thumbnails) == [("07", "copy")]


@pytest.mark.parametrize(
    "change",
    [lambda image: 255 - image, lambda image: image[16:-16, 16:-16], lambda image: np.roll(image, 30, 1)],
    ids=["inverted", "cropped", "shifted"],
)
def test_what_is_no_copy(change, images: dict[str, NDArray[np.uint8]], thumbnails: Thumbnails) -> None:
    thumbnails["other"] = shrink(change(images["07"]))
    assert find_near_duplicates(thumbnails) == []


def test_volumes_mirrored_along_each_axis_and_turned_in_the_plane() -> None:
    stack = {str(n): noise(16, 16, 16, seed=n) for n in range(9)}
    first = stack["0"]
    stack |= {
        "z": first[::-1],
        "y": first[:, ::-1],
        "x": first[:, :, ::-1],
        "turned": np.rot90(first, 1, (1, 2)),
        "both": np.rot90(first, 3, (1, 2))[::-1],
    }
    assert find_near_duplicates(stack) == [("0", "both", "turned", "x", "y", "z")]


def test_a_volume_turned_out_of_its_plane_is_not_looked_for() -> None:
    stack = {str(n): noise(16, 16, 16, seed=n) for n in range(9)}
    stack["turned"] = np.rot90(stack["0"], 1, (0, 1))
    assert find_near_duplicates(stack) == []


def test_constant_images_are_no_copies_of_each_other(thumbnails: Thumbnails) -> None:
    for n in range(3):
        # Rounding leaves a trace in averages of a constant: here the same one in each.
        thumbnails[f"constant{n}"] = np.full((32, 32), 100.3, np.float32) + np.eye(32, dtype=np.float32) * 1e-4
    assert find_near_duplicates(thumbnails) == []
    assert find_alike_pairs(thumbnails) == AlikePairs()


def test_images_and_volumes_are_not_compared(thumbnails: Thumbnails) -> None:
    thumbnails |= {str(n): noise(16, 16, 16, seed=n) for n in range(3)}
    thumbnails["second"] = thumbnails["0"].copy()
    assert find_near_duplicates(thumbnails) == [("0", "second")]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_compare(count: int) -> None:
    assert find_near_duplicates({str(n): noise(32, 32) for n in range(count)}) == []


def test_two_copies_alone_are_found() -> None:
    assert find_near_duplicates({"a": noise(32, 32), "b": noise(32, 32) * 2}) == [("a", "b")]


def test_a_chain_is_one_cluster_and_clusters_are_sorted_by_size() -> None:
    steps = {f"slice{n}": 0.15 * n * noise(32, 32, seed=1) + noise(32, 32, seed=2) for n in range(6)}
    others = {f"other{n}": noise(32, 32, seed=10 + n) for n in range(30)}
    pair = {"b": noise(32, 32, seed=3), "a": noise(32, 32, seed=3)}
    assert np.corrcoef(steps["slice0"].ravel(), steps["slice5"].ravel())[0, 1] < 0.9
    assert find_near_duplicates({**pair, **others, **steps}) == [tuple(steps), ("a", "b")]


def test_aligned_images_are_not_all_copies_of_each_other() -> None:
    lamp = 20 * noise(32, 32, seed=99)
    aligned = {f"{n:02d}": lamp + noise(32, 32, seed=n) for n in range(12)}
    typical = np.corrcoef(aligned["00"].ravel(), aligned["01"].ravel())[0, 1]
    assert typical > 0.99, "the plain limit would join all of them"
    assert find_near_duplicates(aligned) == []
    aligned["copy"] = aligned["05"] * 1.5 + 3
    assert find_near_duplicates(aligned) == [("05", "copy")]


def brute_force(thumbnails: Thumbnails, limit: float) -> set[frozenset[str]]:
    """Clusters by comparing each pair with numpy's own correlation, then joining what overlaps."""
    clusters = [{i} for i in thumbnails]
    for a, b in combinations(thumbnails, 2):
        turns = [t for k in range(4) for t in (np.rot90(thumbnails[a], k), np.rot90(thumbnails[a], k).T)]
        if max(np.corrcoef(t.ravel(), thumbnails[b].ravel())[0, 1] for t in turns) >= limit:
            joined = {x for c in clusters if {a, b} & c for x in c}
            clusters = [c for c in clusters if not {a, b} & c] + [joined]
    return {frozenset(c) for c in clusters if len(c) > 1}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=2, max_size=14), st.integers(1, 5), st.integers(0, 1000))
def test_agrees_with_brute_force_for_any_chunks(originals: list[int], chunk: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = {
        f"{n:02d}": np.rot90(noise(8, 8, seed=o), int(rng.integers(4))) * 3 + rng.normal(0, 8, (8, 8))
        for n, o in enumerate(originals)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_CHUNK", chunk)
        patch.setattr(duplicates, "_TYPICAL_SHARE", 10.0)  # the plain limit holds
        found = find_near_duplicates(made, minimum_correlation=0.98)
    assert {frozenset(c) for c in found} == brute_force(made, 0.98)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(random) -> None:
    made = {f"{n:02d}": noise(32, 32, seed=n // 2 if n < 8 else n) for n in range(14)}
    shuffled = list(made.items())
    random.shuffle(shuffled)
    assert find_near_duplicates(dict(shuffled)) == find_near_duplicates(made) != []


def test_alike_pairs_are_ranked_and_counted() -> None:
    base, other = noise(32, 32, seed=1), noise(32, 32, seed=2)
    made = {"base": base, "near": base + 0.2 * other, "far": base + 0.5 * other, "turned": np.rot90(base).copy()}
    pairs = find_alike_pairs(made, minimum_correlation=0.5).pairs
    assert [(p.first, p.second) for p in pairs] == [("base", "near"), ("far", "near"), ("base", "far")]
    for pair in pairs:
        expected = np.corrcoef(made[pair.first].ravel(), made[pair.second].ravel())[0, 1]
        assert pair.correlation == pytest.approx(expected, abs=1e-5)
    assert find_alike_pairs(made, minimum_correlation=0.5, count=1) == AlikePairs(pairs[:1], 3)
    assert find_alike_pairs(made, minimum_correlation=0.999) == AlikePairs()


CHUNK = 5
Pairs = dict[tuple[str, str], float]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_CHUNK", CHUNK)
    monkeypatch.setattr(duplicates, "_ALIKE_SHARE", 10.0)  # the plain limit holds
    monkeypatch.setattr(duplicates, "_TYPICAL_SHARE", 10.0)


def make_threes(count: int) -> Thumbnails:
    """Images of which each three in a row correlate by about 0.8, and others hardly at all."""
    return {f"{n:02d}": noise(32, 32, seed=n // 3) + 0.5 * noise(32, 32, seed=100 + n) for n in range(count)}


def correlate(thumbnails: Thumbnails, limit: float) -> Pairs:
    found = {p: np.corrcoef(*(thumbnails[i].ravel() for i in p))[0, 1] for p in combinations(thumbnails, 2)}
    return {p: value for p, value in found.items() if value >= limit}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", around(CHUNK))
def test_clusters_agree_with_brute_force_on_both_sides_of_a_chunk(count: int) -> None:
    made = {f"{n:02d}": np.rot90(noise(32, 32, seed=n % 4), n) * 2 for n in range(count)}
    found = find_near_duplicates(made, minimum_correlation=0.98)
    assert {frozenset(c) for c in found} == brute_force(made, 0.98)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", around(CHUNK))
def test_alike_pairs_agree_with_brute_force_on_both_sides_of_a_chunk(count: int) -> None:
    made = make_threes(count)
    found, expected = find_alike_pairs(made, minimum_correlation=0.5, count=1000), correlate(made, 0.5)
    assert {(p.first, p.second) for p in found.pairs} == set(expected)
    assert found.total == len(expected)
    for pair in found.pairs:
        assert pair.correlation == pytest.approx(expected[pair.first, pair.second], abs=1e-5)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kept", around(7))
def test_all_alike_pairs_are_counted_and_the_strongest_named(kept: int) -> None:
    """14 images: 13 pairs."""
    made = make_threes(14)
    expected = correlate(made, 0.5)
    found = find_alike_pairs(made, minimum_correlation=0.5, count=kept)
    assert found.total == len(expected) == 13
    strongest = sorted(expected, key=lambda pair: -expected[pair])
    assert [(p.first, p.second) for p in found.pairs] == strongest[:kept]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kept", [1, 3, 4, 100])
def test_of_pairs_that_are_equally_alike_the_first_are_named(kept: int) -> None:
    made = {f"{n:02d}": noise(32, 32) for n in range(12)}
    found = find_alike_pairs(made, count=kept)
    assert found.total == 66
    assert [(p.first, p.second) for p in found.pairs] == list(combinations(made, 2))[:kept]


@pytest.mark.usefixtures("small")
def test_pairs_of_one_place_are_left_out_before_they_are_counted() -> None:
    made = make_threes(14)
    part_of = {i: "train" if int(i) % 3 else "val" for i in made if i != "13"}
    cluster_of = {"00": 1, "01": 1}
    expected = {
        (a, b): value
        for (a, b), value in correlate(made, 0.5).items()
        if part_of.get(a, a) != part_of.get(b, b) and {a, b} != {"00", "01"}
    }
    found = find_alike_pairs(made, minimum_correlation=0.5, together=(part_of, cluster_of), count=3)
    assert found.total == len(expected) == 8
    assert [(p.first, p.second) for p in found.pairs] == sorted(expected, key=lambda pair: -expected[pair])[:3]


@pytest.mark.parametrize("count", around(7))
def test_what_is_usual_is_judged_by_an_even_sample(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the images are aligned, half are not: a sample of the first ones alone would take all for aligned."""
    monkeypatch.setattr(duplicates, "_SAMPLE", 7)
    lamp = 20 * noise(32, 32, seed=99)
    stack = np.stack([(lamp if n % 2 else 0) + noise(32, 32, seed=n) for n in range(count)])
    vectors = duplicates._normalize(stack)
    chosen = range(count) if count <= 7 else [round(n * (count - 1) // 6) for n in range(7)]
    typical = np.median([np.corrcoef(vectors[a], vectors[b])[0, 1] for a, b in combinations(chosen, 2)])
    expected = max(0.5, min(1 - 0.1 * (1 - typical), 0.998))
    assert duplicates._limit_among(vectors, 0.5, 0.1) == pytest.approx(expected, abs=1e-5)


def test_real_micrographs_hold_no_copies_and_a_planted_one_is_found(emps_dir: Path) -> None:
    paths = sorted((emps_dir / "images").iterdir())[:80]
    images = {p.stem: cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in paths}
    made = {i: shrink(image) for i, image in images.items()}
    assert find_near_duplicates(made) == []
    made["planted"] = shrink(jpeg(cv2.resize(np.rot90(images[paths[33].stem]).copy(), (180, 180))))
    assert find_near_duplicates(made) == [(paths[33].stem, "planted")]
