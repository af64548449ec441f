"""Copies are found in every form in which they come, and different images are not taken for copies."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sizes import around

from ssl_seg.data import duplicates
from ssl_seg.data.duplicates import ALIKE_LIKENESS, COPY_LIKENESS, FEW_COPIES, Likeness, compare_cases, find_likeness
from ssl_seg.data.facts import Appearance, CaseFacts
from ssl_seg.data.synthetic import generate

Thumbnails = dict[str, NDArray[np.float32]]


def find_copies(thumbnails: Thumbnails) -> list[tuple[str, ...]]:
    return [tuple(sorted(cluster)) for cluster in find_likeness(thumbnails).copies]


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
    assert find_copies(thumbnails) == []


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_copy_is_found(change, images: dict[str, NDArray[np.uint8]], thumbnails: Thumbnails) -> None:
    thumbnails["copy"] = shrink(change(images["07"]))
    assert find_copies(thumbnails) == [("07", "copy")]


@pytest.mark.parametrize(
    "change",
    [lambda image: 255 - image, lambda image: image[16:-16, 16:-16], lambda image: np.roll(image, 30, 1)],
    ids=["inverted", "cropped", "shifted"],
)
def test_what_is_no_copy(change, images: dict[str, NDArray[np.uint8]], thumbnails: Thumbnails) -> None:
    thumbnails["other"] = shrink(change(images["07"]))
    assert find_copies(thumbnails) == []


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
    assert find_copies(stack) == [("0", "both", "turned", "x", "y", "z")]


def test_a_volume_turned_out_of_its_plane_is_not_looked_for() -> None:
    stack = {str(n): noise(16, 16, 16, seed=n) for n in range(9)}
    stack["turned"] = np.rot90(stack["0"], 1, (0, 1))
    assert find_copies(stack) == []


def test_constant_images_are_no_copies_of_each_other(thumbnails: Thumbnails) -> None:
    for n in range(3):
        # Rounding leaves a trace in averages of a constant: here the same one in each.
        thumbnails[f"constant{n}"] = np.full((32, 32), 100.3, np.float32) + np.eye(32, dtype=np.float32) * 1e-4
    assert find_copies(thumbnails) == []
    assert find_likeness(thumbnails).pairs == ()


def test_images_and_volumes_are_not_compared(thumbnails: Thumbnails) -> None:
    thumbnails |= {str(n): noise(16, 16, 16, seed=n) for n in range(3)}
    thumbnails["second"] = thumbnails["0"].copy()
    assert find_copies(thumbnails) == [("0", "second")]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_to_compare(count: int) -> None:
    assert find_copies({str(n): noise(32, 32) for n in range(count)}) == []


def test_two_copies_alone_are_found() -> None:
    assert find_copies({"a": noise(32, 32), "b": noise(32, 32) * 2}) == [("a", "b")]


def retinas(count: int) -> Thumbnails:
    """Different retinas, seen by three cameras in turn; their raw thumbnails correlate by 0.97 within a camera."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128] / 127 - 0.5
    made = {}
    for n in range(count):
        radius, left, top = ((0.47, 0, 0), (0.40, 0, -0.02), (0.33, 0.03, 0))[n % 3]
        texture = cv2.GaussianBlur(rng.normal(0, 1, (128, 128)).astype(np.float32), (0, 0), 3)
        side, height = rng.choice([-0.15, 0.15]), rng.normal(0, 0.03)
        spot = 25 * np.exp(-((x - side) ** 2 + (y - height) ** 2) / 0.004)
        image = (np.hypot(x - left, y - top) < radius) * (120 + 12 * texture / texture.std() + spot)
        made[f"r{n:03d}"] = np.clip(image, 0, 255).astype(np.uint8)
    return made


def test_three_cameras_make_no_copies_and_true_ones_among_them_are_found() -> None:
    images = retinas(240)
    made = {i: shrink(image) for i, image in images.items()}
    raw = np.corrcoef([made[i].ravel() for i in list(made)[::3]])
    assert np.median(raw) > 0.97
    assert find_likeness(made).copies == find_likeness(made).crowds == ()
    changes = list(COPIES.values())
    for n in range(20):
        made[f"copy{n:02d}"] = shrink(np.ascontiguousarray(changes[n % len(changes)](images[f"r{11 * n:03d}"])))
    assert set(find_copies(made)) == {(f"copy{n:02d}", f"r{11 * n:03d}") for n in range(20)}


def test_a_light_that_is_much_stronger_than_all_else_makes_no_copies() -> None:
    lamp = 20 * noise(32, 32, seed=99)
    aligned = {f"{n:02d}": lamp + noise(32, 32, seed=n) for n in range(12)}
    assert np.corrcoef(aligned["00"].ravel(), aligned["01"].ravel())[0, 1] > 0.99
    assert find_copies(aligned) == []
    aligned["copy"] = aligned["05"] * 1.5 + 3
    assert find_copies(aligned) == [("05", "copy")]


def slices(count: int) -> Thumbnails:
    """Images that change from each to the next by little, and from the first to the last altogether."""
    planes = [noise(32, 32, seed=n) for n in range(count // 10 + 2)]
    return {
        f"slice{n:03d}": np.cos(n % 10 * np.pi / 20) * planes[n // 10]
        + np.sin(n % 10 * np.pi / 20) * planes[n // 10 + 1]
        for n in range(count)
    }


def test_no_chain_joins_what_is_no_copy() -> None:
    made = slices(100)
    found = find_likeness(made)
    vectors = {i: (t - t.mean()).ravel() / np.linalg.norm(t - t.mean()) for i, t in made.items()}
    assert max(map(len, found.copies)) <= FEW_COPIES
    for first, *others in found.copies:
        assert min(vectors[first] @ vectors[other] for other in others) >= COPY_LIKENESS
    connected = {i for cluster in found.copies for i in cluster} | {i for p in found.pairs for i in (p.first, p.second)}
    assert connected == set(made), "each slice is at least mentioned beside a neighbor"


@pytest.mark.parametrize("count", [2, 7, *around(FEW_COPIES)])
def test_many_copies_of_one_image_are_a_set_or_a_crowd(count: int) -> None:
    """A crowd is more than eight images and more than a third of all."""
    base = noise(32, 32)
    made = {f"copy{n:02d}": base + 0.02 * noise(32, 32, seed=100 + n) for n in range(count)}
    found = find_likeness(made | {f"other{n}": noise(32, 32, seed=1 + n) for n in range(3)})
    (cluster,) = found.crowds if count > FEW_COPIES else found.copies
    assert set(cluster) == set(made)
    assert found.pairs == ()
    many = find_likeness(made | {f"other{n:03d}": noise(32, 32, seed=1000 + n) for n in range(3 * count)})
    assert [set(cluster) for cluster in many.copies] == [set(made)]
    assert many.crowds == ()


def brute_force(thumbnails: Thumbnails, limit: float) -> dict[frozenset[str], float]:
    """Likeness of all pairs by the formulas of the module's description, one pair and turn at a time."""

    def unit(vectors: NDArray[np.floating]) -> NDArray[np.floating]:
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    def turn(square: NDArray[np.floating]) -> list[NDArray[np.floating]]:
        return [t for k in range(4) for t in (np.rot90(square, k), np.rot90(square, k).T)]

    flat = {i: unit((t - t.mean()).astype(float).ravel()) for i, t in thumbnails.items()}
    size = next(iter(thumbnails.values())).shape
    rows = np.stack([t.ravel() for v in flat.values() for t in turn(v.reshape(size))])
    whitening = np.eye(rows.shape[1])
    for few in (1, 10):
        current = unit(rows @ whitening)
        values, ends = np.linalg.eigh(current.T @ current / len(rows))
        whitening = whitening @ (ends * (1 + np.maximum(values, 0) * len(rows) / few) ** -0.5) @ ends.T
    white = {i: unit(v @ whitening) for i, v in flat.items()}
    found = {}
    for a, b in combinations(flat, 2):
        pairs = zip(turn(white[a].reshape(size)), turn(flat[a].reshape(size)), strict=True)
        likeness = min(max((w.ravel() @ white[b], r.ravel() @ flat[b]) for w, r in pairs))
        if likeness >= limit:
            found[frozenset((a, b))] = likeness
    return found


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=14), st.integers(0, 1000))
def test_agrees_with_brute_force(originals: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = {
        f"{n:02d}": np.rot90(noise(8, 8, seed=o), int(rng.integers(4))) * 3 + rng.normal(0, 8, (8, 8))
        for n, o in enumerate(originals)
    }
    found = find_likeness(made)
    expected = brute_force(made, 0.0)
    for cluster in (*found.copies, *found.crowds):
        assert min(expected[frozenset((cluster[0], other))] for other in cluster[1:]) >= COPY_LIKENESS - 0.005
    for pair in found.pairs:
        assert pair.likeness == pytest.approx(expected[frozenset((pair.first, pair.second))], abs=0.005)
    cluster_of = {i: cluster for cluster in (*found.copies, *found.crowds) for i in cluster}
    told = {frozenset((p.first, p.second)) for p in found.pairs}
    for ends, likeness in expected.items():
        first, second = ends
        together = cluster_of.get(first) == cluster_of.get(second, "none")
        assert likeness < COPY_LIKENESS + 0.005 or together or ends in told or len(originals) > 8


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_images_does_not_matter(random) -> None:
    made = {f"{n:02d}": noise(32, 32, seed=n // 2 if n < 8 else n) for n in range(14)}
    shuffled = list(made.items())
    random.shuffle(shuffled)
    assert find_likeness(dict(shuffled)) == find_likeness(made) != Likeness()


@pytest.mark.parametrize("shape", [(32, 32), (16, 16, 16), (2, 2), (2, 4, 4)])
def test_the_turns_are_all_of_the_plane_and_upside_down(shape: tuple[int, ...]) -> None:
    """Against NumPy: all combinations of mirrored axes, with the last two axes swapped or not."""
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    axes = range(len(shape))
    every = {
        np.flip(kept, [a for a, mirrored in zip(axes, chosen, strict=True) if mirrored]).tobytes()
        for kept in (image, image.swapaxes(-1, -2))
        for chosen in product((False, True), repeat=len(shape))
    }
    turns = [np.ascontiguousarray(turned) for turned in duplicates._turn(image)]
    assert {turned.tobytes() for turned in turns} == every
    assert len(turns) == len(every)
    images = duplicates._Images([str(n) for n in range(len(turns))], {str(n): t for n, t in enumerate(turns)})
    features = images.describe(np.arange(len(turns)))
    np.testing.assert_allclose(features, np.broadcast_to(features[0], features.shape), atol=5e-3)


@pytest.mark.parametrize("shape", [(8, 8), (4, 4, 4)])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_whitening_is_that_of_the_second_moments_of_all_turns(shape: tuple[int, ...], count: int) -> None:
    rng = np.random.default_rng(count)
    vectors = duplicates._to_unit(rng.normal(size=(count, 64)) + rng.normal(size=64))
    directions, shares = duplicates._find_whitening(vectors.astype(np.float32), shape, few := 0.5)
    turned = np.array([t.ravel() for v in vectors for t in duplicates._turn(v.reshape(shape))])
    values, axes = np.linalg.eigh(turned.T @ turned / len(turned))
    lengths = np.where(values > 0.01 * few / count, (1 + np.maximum(values, 0) * count / few) ** -0.5, 1.0)
    expected = axes * lengths @ axes.T
    np.testing.assert_allclose(np.eye(64) - directions * shares @ directions.T, expected, atol=1e-4)
    assert np.abs(expected - np.eye(64)).max() > 0.01


def test_alike_pairs_are_ranked() -> None:
    made = {f"{n:02d}": noise(32, 32, seed=n) for n in range(20)}
    made["near"] = made["00"] + 0.5 * noise(32, 32, seed=100) - 50
    made["far"] = made["00"] + 0.6 * noise(32, 32, seed=101) - 60
    found = find_likeness(made)
    assert found.copies == found.crowds == ()
    assert [(p.first, p.second) for p in found.pairs][:2] == [("00", "near"), ("00", "far")]
    assert found.pairs[0].likeness > found.pairs[1].likeness > ALIKE_LIKENESS


def make_many(count: int, copies: int) -> Thumbnails:
    """Different textures under one light, then copies of the first ones, turned and with noise."""
    rng = np.random.default_rng(0)
    lamp = cv2.GaussianBlur(rng.normal(0, 1, (32, 32)), (0, 0), 4) * 20
    made = [cv2.GaussianBlur(rng.normal(0, 1, (32, 32)), (0, 0), 1.5) * 3 + lamp for _ in range(count - copies)]
    made += [np.rot90(made[n], n) + 0.04 * rng.normal(0, 1, (32, 32)) for n in range(copies)]
    return {f"{n:05d}": thumbnail.astype(np.float32) for n, thumbnail in enumerate(made)}


@pytest.mark.parametrize("count", [*around(64), 300])
def test_buckets_find_what_the_comparison_of_all_finds(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_many(count, 12)
    expected = find_likeness(made)
    assert len(expected.copies) == 12
    monkeypatch.setattr(duplicates, "_EXACT", 64)
    monkeypatch.setattr(duplicates, "_BUCKET", 16)
    monkeypatch.setattr(duplicates, "_CHUNK", 32)
    assert find_likeness(made).copies == expected.copies


def test_more_copies_than_neighbors_are_joined_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_EXACT", 64)
    monkeypatch.setattr(duplicates, "_BUCKET", 16)
    base = noise(32, 32)
    same = {f"copy{n:02d}": base + 0.02 * noise(32, 32, seed=1000 + n) for n in range(24)}
    made = same | {f"other{n:03d}": noise(32, 32, seed=1 + n) for n in range(200)}
    assert [set(cluster) for cluster in find_likeness(made).copies] == [set(same)]


def facts_of(thumbnails: Thumbnails) -> dict[str, CaseFacts]:
    return {
        i: CaseFacts((64, 64), 1, "uint8", None, None, f"{n:012x}0000", appearance=Appearance(0, 1, 0, 1, 0, 0, shown))
        for n, (i, shown) in enumerate(thumbnails.items())
    }


@pytest.mark.parametrize("writable", [True, False])
def test_the_search_is_kept_by_content(writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_EXACT", 20)
    monkeypatch.setenv("SSL_SEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SSL_SEG_KEEP_FACTS", "1")
    root = tmp_path / "data"
    root.mkdir()
    if not writable:
        (root / ".ssl_seg").write_text("a file where the folder should be")
    facts = facts_of(make_many(40, 3))
    searches = []
    monkeypatch.setattr(duplicates, "find_likeness", lambda shown: searches.append(len(shown)) or find_likeness(shown))
    first = compare_cases(facts, str(root))
    assert len(first.copies) == 3
    assert compare_cases(facts, str(root)) == first
    renamed = {f"x{i}": f for i, f in facts.items()}
    assert {tuple(i[1:] for i in c) for c in compare_cases(renamed, str(root)).copies} == set(first.copies)
    assert searches == [40]
    assert (root / ".ssl_seg" / "likeness.json").exists() == writable
    for path in (tmp_path / "cache").rglob("likeness.json") if not writable else [root / ".ssl_seg" / "likeness.json"]:
        path.write_text('{"key": 3}')
    assert compare_cases(facts, str(root)) == first
    fewer = dict(list(facts.items())[:30])
    assert compare_cases(fewer, str(root)).copies == ()
    assert searches == [40, 40, 30]
    compare_cases(dict(list(facts.items())[:20]), str(root))
    assert searches == [40, 40, 30, 20]


def test_real_micrographs_hold_no_copies_and_a_planted_one_is_found(emps_dir: Path) -> None:
    paths = sorted((emps_dir / "images").iterdir())[:80]
    images = {p.stem: cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in paths}
    made = {i: shrink(image) for i, image in images.items()}
    assert find_copies(made) == []
    made["planted"] = shrink(jpeg(cv2.resize(np.rot90(images[paths[33].stem]).copy(), (180, 180))))
    assert find_copies(made) == [(paths[33].stem, "planted")]
