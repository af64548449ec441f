from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_opening, gaussian_filter, label, map_coordinates

from ssl_seg.config import AugmentConfig
from ssl_seg.data.resample import resample_image
from ssl_seg.data.sampling import crop, derive_rng
from ssl_seg.data.views import intensity as changes
from ssl_seg.data.views.geometry import SQUARE, GeometricTransform, draw_geometry
from ssl_seg.data.views.intensity import CHANGES, MOST_BOXES, blank_boxes, change_intensity, invert
from ssl_seg.data.views.transforms import measure_intensity, measure_parts, normalize
from ssl_seg.labels import IGNORE_INDEX


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_unit_range_and_back_is_the_zscore_of_the_whole_image(dtype: type, channels: int) -> None:
    image = (np.random.default_rng(1).random((channels, 20, 30)) * 200).astype(dtype)
    stats = measure_intensity(image)
    unit = stats.to_unit(image)
    assert unit.min() == 0
    assert unit.max() == pytest.approx(1)
    np.testing.assert_allclose(stats.unit_to_zscore(unit), normalize(image), atol=2e-5)
    flat = image.reshape(channels, -1).astype(np.float64)
    expected = (flat - flat.mean(1, keepdims=True)) / flat.std(1, keepdims=True)
    np.testing.assert_allclose(normalize(image).reshape(channels, -1), expected, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    dtype=st.sampled_from(["u1", "u2", "i2", "u4", "i4", "i8", "u8", "f4", "f8"]),
    exponent=st.integers(0, 12),
    sign=st.sampled_from([-1, 1]),
    seed=st.integers(0, 99),
)
def test_a_constant_added_to_an_image_changes_nothing(dtype: str, exponent: int, sign: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 100, (2, 9, 11)).astype(dtype)
    with np.errstate(invalid="ignore"):
        shifted = (image.astype(np.float64) + sign * 10**exponent).astype(dtype)
    assume((shifted.astype(np.float64) == image.astype(np.float64) + sign * 10**exponent).all())
    near, far = measure_intensity(image), measure_intensity(shifted)
    np.testing.assert_allclose(normalize(shifted), normalize(image), atol=1e-5)
    np.testing.assert_allclose(far.to_unit(shifted), near.to_unit(image), atol=1e-6)
    patch = far.unit_to_zscore(far.to_unit(shifted[:, 2:7, 3:]))
    np.testing.assert_allclose(patch, normalize(image)[:, 2:7, 3:], atol=1e-5)
    if dtype != "f4":  # whose interpolated values are rounded to those it can hold
        moved = normalize(resample_image(shifted, (5, 20)))
        np.testing.assert_allclose(moved, normalize(resample_image(image, (5, 20))), atol=1e-4)


def test_parts_are_measured_as_the_whole() -> None:
    image = np.random.default_rng(2).normal(1e7, 3, (2, 40, 5))
    parts = [(c, image[c, i : i + 7]) for i in range(0, 40, 7) for c in range(2)]
    whole, joined = measure_intensity(image), measure_parts(parts, 2)
    for name in ("low", "high", "mean", "std"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-10)
    np.testing.assert_allclose(whole.std, image.std(axis=(1, 2)), rtol=1e-9)


def test_constant_image_is_zero_not_nan() -> None:
    image = np.full((1, 8, 8), 7, np.uint8)
    stats = measure_intensity(image)
    assert np.array_equal(normalize(image), np.zeros((1, 8, 8)))
    assert np.array_equal(stats.unit_to_zscore(stats.to_unit(image)), np.zeros((1, 8, 8)))


GEOMETRIES = {
    "exact": {},
    "rotation": {"rotation": 40},
    "scale": {"scale": 0.4},
    "elastic": {"elastic": 1.0},
    "tilt": {"tilt": 30},
    "all": {"rotation": 180, "tilt": 30, "scale": 0.25, "elastic": 1.0},
}


def make_geometry(
    patch: tuple[int, ...], seed: int, spacing: tuple[float, ...] | None = None, **given: float
) -> GeometricTransform:
    """Return a draw of mirrors, quarter turns and the changes that are given, each with certainty."""
    augment = AugmentConfig(**{"affine": 1.0, "rotation": 0.0, "tilt": 0.0, "scale": 0.0, **given})
    return draw_geometry(patch, derive_rng(seed), augment, spacing)


def move(labels: np.ndarray, patch: tuple[int, ...], seed: int, **given: float) -> tuple[np.ndarray, np.ndarray]:
    """Return image and target of a patch in the middle of a label image that is its own image."""
    geometry = make_geometry(patch, seed, **given)
    start = geometry.locate([(n - p) // 2 for n, p in zip(labels.shape, patch, strict=True)])
    image = crop(labels[None].astype(np.float32), start, geometry.size, 0)
    target = crop(labels.astype(np.int64), start, geometry.size, IGNORE_INDEX)
    return geometry.move_image(np.asarray(image, np.float32))[0], geometry.move_target(np.asarray(target, np.int64))


def misalignment(image: np.ndarray, target: np.ndarray) -> float:
    """Return 1 - IoU of foreground in image and target, without the voxels within one step of a border of either."""
    inside = image > 0.5
    clear = (np.abs(image - inside) < 0.01) & (target != IGNORE_INDEX)
    both, either = (inside & (target > 0) & clear).sum(), ((inside | (target > 0)) & clear).sum()
    return 1 - both / either


def make_blobs(ndim: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(0).random([48] * ndim), 3)
    return (noise > np.median(noise)).astype(np.int64)


@settings(deadline=None, max_examples=40)
@given(ndim=st.sampled_from([2, 3]), seed=st.integers(0, 10_000), long_axis=st.booleans())
def test_image_and_target_turn_together(ndim: int, seed: int, long_axis: bool) -> None:
    shape = (*[6] * (ndim - 1), 9 if long_axis else 6)
    labels = np.arange(np.prod(shape)).reshape(shape)
    image, target = move(labels, shape, seed)
    assert np.array_equal(image, target)
    assert sorted(target.ravel()) == sorted(labels.ravel())
    assert target.shape == shape


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_image_and_target_stay_aligned(ndim: int, name: str) -> None:
    labels, patch = make_blobs(ndim), (20, 24, 28)[-ndim:]
    for seed in range(12):
        image, target = move(labels, patch, seed, **GEOMETRIES[name])
        assert image.shape == target.shape == patch
        assert misalignment(image, target) == 0
        assert np.mean((image > 0.5) == (target > 0)) > 0.93  # what is left are borders


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_target_that_is_one_voxel_off_is_seen(ndim: int) -> None:
    labels = make_blobs(ndim)
    image, _ = move(labels, (24,) * ndim, 0, rotation=40)
    _, target = move(np.roll(labels, 2, axis=-1), (24,) * ndim, 0, rotation=40)
    assert misalignment(image, target) > 0.05


def test_classes_are_not_blended() -> None:
    labels = np.random.default_rng(0).choice([0, 3, 9, IGNORE_INDEX], (40, 40))
    _, target = move(labels, (24, 24), 1, rotation=45, scale=0.4, elastic=1)
    assert set(np.unique(target)) == {0, 3, 9, IGNORE_INDEX}


@pytest.mark.parametrize(
    ("seed", "options"), [(0, {"rotation": 60}), (1, {"scale": 0.5}), (2, {"rotation": 30, "scale": 0.3})]
)
def test_rotation_and_scale_are_those_of_opencv(seed: int, options: dict[str, float]) -> None:
    """Angle and factor are read off the sources of two voxels; OpenCV's own affine map then gives the same patch."""
    import cv2

    labels = gaussian_filter(np.random.default_rng(0).random((80, 80)), 2).astype(np.float32)
    geometry = make_geometry((32, 40), seed, flips=False, rotate90=False, **options)
    assert geometry.sources is not None
    down, right = (
        geometry.sources[:, 31, 0] - geometry.sources[:, 0, 0],
        geometry.sources[:, 0, 39] - geometry.sources[:, 0, 0],
    )
    angle, factor = np.degrees(np.arctan2(-right[0], right[1])), 39 / np.hypot(*right)
    assert abs(angle) <= options.get("rotation", 1e-4)
    assert 1 / (1 + options.get("scale", 1e-5)) <= factor <= 1 + options.get("scale", 1e-5)
    assert np.hypot(*down) == pytest.approx(31 / factor, rel=1e-4)
    assert down @ right == pytest.approx(0, abs=1e-2)

    start = geometry.locate((24, 20))
    image = geometry.move_image(np.asarray(crop(labels[None], start, geometry.size, 0), np.float32))[0]
    matrix = cv2.getRotationMatrix2D((39.5, 39.5), -angle, factor)
    expected = cv2.warpAffine(labels, matrix, (80, 80), flags=cv2.INTER_LINEAR)[24:56, 20:60]
    np.testing.assert_allclose(image, expected, atol=0.01)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_deformation_moves_voxels_and_never_folds(ndim: int) -> None:
    patch = (24, 40, 32)[-ndim:]
    rest = np.indices(patch)
    for seed in range(10):
        geometry = make_geometry(patch, seed, elastic=1.0)
        assert geometry.sources is not None
        offset = np.reshape(geometry.offset, (-1, *[1] * ndim))
        shift = geometry.sources + offset - rest
        assert 0.3 < np.abs(shift).max() < 0.35 * max(patch) / 4
        gradients = np.stack([np.stack(np.gradient(axis)) for axis in geometry.sources])
        assert np.linalg.det(np.moveaxis(gradients, (0, 1), (-2, -1))).min() > 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"elastic": 0.3, "affine": 0.0}, 0.3),
        ({"affine": 0.2, "rotation": 20, "scale": 0.0}, 0.2),
        ({"affine": 0.2, "rotation": 0, "tilt": 0, "scale": 0.4}, 0.2),
        ({"affine": 0.2, "rotation": 20, "scale": 0.4}, 1 - 0.8**2),
        ({"affine": 1.0, "rotation": 0, "tilt": 0, "scale": 0.0}, 0.0),
        ({"affine": 0.0}, 0.0),
    ],
)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_geometry_is_drawn_with_its_probability(ndim: int, given: dict[str, float], expected: float) -> None:
    augment = AugmentConfig(**given)
    drawn = [draw_geometry((8,) * ndim, derive_rng(k), augment).sources is not None for k in range(500)]
    assert np.mean(drawn) == pytest.approx(expected, abs=3.5 * (expected * (1 - expected) / 500) ** 0.5)


def find_matrix(geometry: GeometricTransform) -> np.ndarray:
    """Return the matrix of an affine geometry: the steps between the sources of neighboring voxels."""
    assert geometry.sources is not None
    sources = geometry.sources.astype(np.float64)
    return np.stack(
        [np.diff(sources, axis=axis + 1).mean(tuple(range(1, sources.ndim))) for axis in range(len(sources))], 1
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (3.0, 1.0), (1.0, 1.0, 1.0), (4.0, 1.0, 2.0), (0.5, 2.0, 2.0)])
def test_angles_are_those_of_the_sample(spacing: tuple[float, ...]) -> None:
    """In units of length the matrix is a rotation times a scale; in voxels it is not where these are no cubes."""
    ndim, given = len(spacing), {"rotation": 40, "tilt": 30, "scale": 0.4}
    size, angles = np.array(spacing), []
    for seed in range(60):
        matrix = find_matrix(make_geometry((16, 24, 20)[-ndim:], seed, spacing, flips=False, rotate90=False, **given))
        in_space = matrix * size[:, None] / size
        factor = np.linalg.det(in_space) ** (1 / ndim)
        assert 1 / 1.4001 < factor < 1.4001
        np.testing.assert_allclose(in_space @ in_space.T, factor**2 * np.eye(ndim), atol=1e-3)
        if ndim == 2:
            angles.append(abs(np.degrees(np.arctan2(in_space[1, 0], in_space[0, 0]))))
        else:  # between the old Z and the new one: two tilts of up to 30 degrees make up to 41.4
            angles.append(np.degrees(np.arccos(np.clip(in_space[0, 0] / factor, -1, 1))))
    thickness = max(size[1:].max() / size[0], size[0] / size[1:].min()) if ndim == 3 else 1
    largest = 40 if ndim == 2 else np.degrees(np.arccos(np.cos(np.radians(30 / thickness)) ** 2))
    assert 0.6 * largest < max(angles) < largest + 0.1


@pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 1.0)])
def test_a_moved_grid_of_coordinates_is_where_the_matrix_says(spacing: tuple[float, ...] | None) -> None:
    """The image holds its own coordinates, so that the patch says where each voxel is from; scipy agrees on noise."""
    patch = (10, 14, 12)
    geometry = make_geometry(patch, 3, spacing, flips=False, rotate90=False, rotation=180, tilt=30, scale=0.4)
    matrix, offset = find_matrix(geometry), np.reshape(geometry.offset, (3, 1, 1, 1))
    center = (np.reshape(patch, (3, 1, 1, 1)) - 1) / 2
    places = np.tensordot(matrix, np.indices(patch) - center, axes=1) + center
    box = np.indices(geometry.size) + offset
    np.testing.assert_allclose(geometry.move_image(box.astype(np.float32)), places, atol=2e-3)
    noise = np.random.default_rng(0).random((2, *geometry.size), dtype=np.float32)
    expected = [map_coordinates(channel, places - offset, order=1, mode="nearest") for channel in noise]
    np.testing.assert_allclose(geometry.move_image(noise), expected, atol=1e-4)
    classes = np.random.default_rng(1).integers(-100, 60_000, geometry.size)
    nearest = map_coordinates(classes, places - offset, order=0, mode="nearest")
    assert np.mean(geometry.move_target(classes) == nearest) > 0.99  # but for ties


@pytest.mark.parametrize(("ratio", "orientations"), [(1.0, 8), (SQUARE, 8), (SQUARE + 0.01, 4), (1 / SQUARE - 0.01, 4)])
def test_voxels_that_are_not_square_get_half_turns_only(ratio: float, orientations: int) -> None:
    ramp = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    found = {make_geometry((4, 4), seed, (ratio, 1.0)).move_image(ramp).tobytes() for seed in range(100)}
    assert len(found) == orientations


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (1, 8, 8), (2, 16, 16), (3, 3, 3)])
def test_tiny_patches_have_all_geometries_and_changes(shape: tuple[int, ...]) -> None:
    for seed in range(20):
        geometry = make_geometry(shape, seed, **GEOMETRIES["all"])
        rng = derive_rng(seed)
        image = geometry.move_image(rng.random((2, *geometry.size), dtype=np.float32))
        target = geometry.move_target(rng.integers(0, 3, geometry.size))
        assert image.shape == (2, *shape)
        assert target.shape == shape
        strong = blank_boxes(change_intensity(image, rng, 1.0, 10.0), rng, 1.0)
        assert strong.shape == image.shape
        assert np.isfinite(strong).all()


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
def test_only_what_is_read_is_used(options: dict[str, float]) -> None:
    """All sources lie in the box, and no smaller box holds them."""
    for seed in range(10):
        geometry = make_geometry((10, 14), seed, **options)
        if geometry.sources is None:
            assert (geometry.offset, geometry.size) == ((0, 0), (10, 14))
            continue
        flat = geometry.sources.reshape(2, -1)
        assert (flat.min(1) >= 0).all()
        assert (flat.min(1) < 1).all()
        assert (flat.max(1) <= np.array(geometry.size) - 1).all()
        assert (flat.max(1) > np.array(geometry.size) - 2).all()


def test_geometry_reaches_all_eight_orientations_of_a_square() -> None:
    labels = np.arange(16).reshape(4, 4)
    seen = {move(labels, (4, 4), k)[0].tobytes() for k in range(200)}
    assert len(seen) == 8
    none = {move(labels, (4, 4), k, flips=False, rotate90=False)[0].tobytes() for k in range(20)}
    assert none == {labels.astype(np.float32).tobytes()}


NAMES = [change.__name__ for change, _, _ in CHANGES]


def make_image(ndim: int, channels: int = 1, side: int = 16) -> np.ndarray:
    """Return smooth z-scores."""
    noise = np.random.default_rng(0).normal(size=(channels, *[side] * ndim))
    smooth = np.stack([gaussian_filter(channel, 1.5) for channel in noise])
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


@pytest.mark.parametrize(("ndim", "channels"), [(2, 1), (2, 3), (2, 6), (3, 1), (3, 2)])
def test_changes_of_intensity_keep_places(ndim: int, channels: int) -> None:
    """A bright blob stays where it is: the changed patch has the highest correlation with its input at shift 0."""
    coordinates = np.indices([16] * ndim) - np.array([5, 9, 7][:ndim]).reshape(-1, *[1] * ndim)
    blob = 3 * np.exp(-(coordinates**2).sum(0) / 8).astype(np.float32)
    patch, changed = np.repeat(blob[None], channels, axis=0), 0
    for seed in range(20):
        strong = change_intensity(patch, derive_rng(seed), 0.5, 2.0)
        assert strong.shape == patch.shape
        assert strong.dtype == np.float32
        assert np.isfinite(strong).all()
        changed += not np.array_equal(strong, patch)
        shifted = [np.corrcoef(np.roll(strong, s, axis=-1).ravel(), patch.ravel())[0, 1] for s in range(-4, 5)]
        assert int(np.argmax(shifted)) == 4
    assert changed >= 14
    assert np.array_equal(patch[0], blob), "the input must not be changed in place"


@pytest.mark.parametrize("factor", [0.0, 1.0, 2.0, 10.0])
def test_each_change_has_its_probability(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Each is counted on its own; one with probability 0 never acts, and with 1 always."""
    seen: list[str] = []

    def count(name: str) -> Callable[..., np.ndarray]:
        return lambda channel, *_: (seen.append(name), channel)[1]

    counted = tuple((count(change.__name__), p, share) for change, p, share in CHANGES)
    monkeypatch.setattr(changes, "CHANGES", counted)
    patches, patch = 2000, np.zeros((1, 4, 4), np.float32)
    for seed in range(patches):
        change_intensity(patch, derive_rng(seed), 0.5, factor)
    nnunet = {
        "add_noise": (0.1, 1.0), "blur": (0.2, 0.5), "change_brightness": (0.15, 1.0), "change_contrast": (0.15, 1.0),
        "lower_resolution": (0.25, 0.5), "change_inverted_gamma": (0.1, 1.0), "change_gamma": (0.3, 1.0),
    }  # fmt: skip
    assert list(nnunet) == NAMES
    for name, (probability, share) in nnunet.items():
        expected = min(factor * probability, 1.0) * share
        tolerance = 4 * (expected * (1 - expected) / patches) ** 0.5
        assert seen.count(name) / patches == pytest.approx(expected, abs=tolerance)


def test_the_changes_are_drawn_independently() -> None:
    """At nnU-Net's probabilities a quarter of the patches has none; the channels of a patch differ."""
    patch = make_image(2, channels=2, side=8)
    same = [np.array_equal(change_intensity(patch, derive_rng(k), 0.5, 1.0), patch) for k in range(400)]
    expected = 0.9 * (1 - 0.2 * 0.75) * 0.85 * 0.85 * (1 - 0.25 * 0.75) * 0.9 * 0.7
    assert np.mean(same) == pytest.approx(expected, abs=0.08)
    twins = np.repeat(patch[:1], 2, axis=0)
    unlike = [not np.array_equal(*change_intensity(twins, derive_rng(k), 0.5, 1.0)) for k in range(50)]
    assert np.mean(unlike) > 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_each_change_does_what_it_says(ndim: int, name: str) -> None:
    """At a strength of 0.5, with the limits of nnU-Net; the statistics that it promises to keep are kept."""
    change, channel = getattr(changes, name), make_image(ndim, side=24)[0]
    for seed in range(30):
        changed = change(channel, derive_rng(seed), 0.5)
        assert changed.shape == channel.shape
        assert changed.dtype == np.float32
        difference, spread = changed - channel, changed.std() / channel.std()
        rising = np.diff(changed.ravel()[np.argsort(channel.ravel())])
        assert difference.any() or name == "lower_resolution"  # where the size is rounded to the old one
        if name == "add_noise":
            assert difference.std() < 0.1**0.5 * 1.1
            assert abs(np.corrcoef(difference.ravel(), channel.ravel())[0, 1]) < 0.2
        if name == "blur":
            assert gaussian_filter(channel, 1.05).std() <= changed.std() <= gaussian_filter(channel, 0.45).std()
        if name == "change_brightness":
            factors = changed[np.abs(channel) > 0.01] / channel[np.abs(channel) > 0.01]
            assert 0.7499 <= factors.min() <= factors.max() <= 1.2501
            assert np.ptp(factors) < 1e-3
        if name == "change_contrast":
            assert channel.min() <= changed.min() <= changed.max() <= channel.max()
            assert 0.7499 < spread < 1.2501
            assert (rising >= 0).all()
        if name == "lower_resolution":
            assert channel.min() <= changed.min() <= changed.max() <= channel.max()
            assert spread <= 1
        if name.endswith("gamma"):
            assert changed.mean() == pytest.approx(channel.mean(), abs=1e-4)
            assert changed.std() == pytest.approx(channel.std(), rel=1e-3)
            assert (rising >= -1e-5).all()


@pytest.mark.parametrize("name", NAMES)
def test_more_strength_changes_more(name: str) -> None:
    change, channel = getattr(changes, name), make_image(2, side=24)[0]

    def measure(strength: float) -> float:
        return float(np.mean([np.abs(change(channel, derive_rng(k), strength) - channel).mean() for k in range(40)]))

    assert measure(0.05) < measure(0.5) < measure(1.0)


@pytest.mark.parametrize("value", [0.0, -1.7, 5.0])
def test_a_constant_image_stays_finite(value: float) -> None:
    patch = np.full((1, 8, 8), value, np.float32)
    for seed in range(40):
        assert np.isfinite(change_intensity(patch, derive_rng(seed), 1.0, 10.0)).all()
        assert np.array_equal(blank_boxes(patch, derive_rng(seed), 1.0), patch)
    for name in set(NAMES) - {"add_noise", "change_brightness"}:
        np.testing.assert_allclose(getattr(changes, name)(patch[0], derive_rng(0), 1.0), patch[0], rtol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_cutout_blanks_boxes_and_leaves_the_rest(ndim: int) -> None:
    patch = np.random.default_rng(0).random((2, *[32] * ndim), dtype=np.float32)
    before, most = patch.copy(), 0
    for seed in range(30):
        strong = blank_boxes(patch, derive_rng(seed), 1.0)
        assert np.array_equal(patch, before), "the weak view must not be blanked too"
        changed = strong[0] != patch[0]
        assert np.array_equal(changed, strong[1] != patch[1])
        assert (3 / 32) ** ndim <= changed.mean() <= MOST_BOXES * (10 / 32) ** ndim
        assert label(changed)[1] <= MOST_BOXES
        assert np.array_equal(binary_opening(changed, np.ones([3] * ndim)), changed), "no stray voxel"
        assert ((strong >= 0) & (strong <= 1)).all()
        most = max(most, len(np.unique(strong[0][changed])))
    assert most == MOST_BOXES


def test_cutout_has_its_probability() -> None:
    patch = make_image(2)
    for probability in (0.0, 0.3, 1.0):
        blanked = [not np.array_equal(blank_boxes(patch, derive_rng(k), probability), patch) for k in range(500)]
        assert np.mean(blanked) == pytest.approx(probability, abs=0.06 * (0 < probability < 1))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_strength_of_nothing_changes_nothing(ndim: int) -> None:
    patch = make_image(ndim)
    assert all(np.array_equal(change_intensity(patch, derive_rng(k), 0.0, 10.0), patch) for k in range(20))


@pytest.mark.parametrize("ndim", [2, 3])
def test_low_resolution_keeps_the_content_in_place(ndim: int) -> None:
    """The center of a blob stays within a fifth of a voxel; nearest-voxel downsampling moves it more (control)."""
    from monai.transforms import RandSimulateLowResolution

    coordinates = np.indices([32] * ndim)
    blob = np.exp(-sum((c - 12.0) ** 2 for c in coordinates) / 18).astype(np.float32)

    def shift(image: np.ndarray) -> float:
        weights = image.astype(np.float64)
        return max(abs((weights * c).sum() / weights.sum() - 12) for c in coordinates)

    assert max(shift(changes.lower_resolution(blob, derive_rng(seed), 0.5)) for seed in range(40)) < 0.2
    mode = "bilinear" if ndim == 2 else "trilinear"
    control = RandSimulateLowResolution(1.0, upsample_mode=mode, zoom_range=(0.55, 0.55))
    assert shift(np.asarray(control(blob[None]))[0]) > 0.2


@pytest.mark.parametrize("gamma", [0.7, 1.5])
@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_that_of_monai(monkeypatch: pytest.MonkeyPatch, gamma: float, inverted: bool) -> None:
    from monai.transforms import AdjustContrast

    channel = make_image(2, side=20)[0]
    monkeypatch.setattr(changes, "_draw_factor", lambda *_: gamma)
    own = (changes.change_inverted_gamma if inverted else changes.change_gamma)(channel, derive_rng(0), 0.5)
    monai = AdjustContrast(gamma, invert_image=inverted, retain_stats=True)(channel[None])
    np.testing.assert_allclose(own, np.asarray(monai)[0], atol=5e-3)


@pytest.mark.parametrize("ndim", [2, 3])
def test_same_seed_same_view_for_any_number_of_threads(ndim: int) -> None:
    patch, views, before = make_image(ndim, 2, side=40), [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for seed in range(6):
            geometry = make_geometry((32,) * ndim, seed, **GEOMETRIES["all"])
            box = np.resize(patch, (2, *geometry.size))
            strong = change_intensity(geometry.move_image(box), derive_rng(seed), 1.0, 10.0)
            views.append((strong.tobytes(), geometry.move_target((box[0] * 50).astype(np.int64)).tobytes()))
    torch.set_num_threads(before)
    assert views[:6] == views[6:]
    assert len(set(views)) == 6


def test_patches_are_inverted_with_their_probability() -> None:
    patch = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    drawn = [invert(patch, derive_rng(seed), 0.3) for seed in range(400)]
    assert all(np.array_equal(one, patch) or np.array_equal(one, -patch) for one in drawn)
    assert 0.2 < sum(np.array_equal(one, -patch) for one in drawn) / 400 < 0.4
    rng, same = derive_rng(0), derive_rng(0)
    assert invert(patch, rng, 0.0) is patch
    assert rng.random() == same.random()  # no draw: trainings without it keep their bits
