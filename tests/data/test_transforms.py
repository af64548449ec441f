from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_opening, gaussian_filter, label

from ssl_seg.data.resample import resample_image
from ssl_seg.data.sampling import crop, derive_rng
from ssl_seg.data.views.strong import _make_coarse, _run_steps
from ssl_seg.data.views.transforms import Views, measure_intensity, measure_parts, normalize
from ssl_seg.labels import IGNORE_INDEX


def random_patch(ndim: int, channels: int = 1, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).random((channels, *[side] * ndim), dtype=np.float32)


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
    "all": {"rotation": 180, "scale": 0.25, "elastic": 1.0},
}


def make_views(ndim: int, **options: float) -> Views:
    return Views(ndim, intensity=0, cutout=0, **options)


def move(views: Views, labels: np.ndarray, patch: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and target of a patch in the middle of a label image that is its own image."""
    geometry = views.draw_geometry(patch, derive_rng(seed))
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
    image, target = move(make_views(ndim), labels, shape, seed)
    assert np.array_equal(image, target)
    assert sorted(target.ravel()) == sorted(labels.ravel())
    assert target.shape == shape


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_image_and_target_stay_aligned(ndim: int, name: str) -> None:
    labels, patch = make_blobs(ndim), (20, 24, 28)[-ndim:]
    for seed in range(12):
        image, target = move(make_views(ndim, **GEOMETRIES[name]), labels, patch, seed)
        assert image.shape == target.shape == patch
        assert misalignment(image, target) == 0
        assert np.mean((image > 0.5) == (target > 0)) > 0.93  # what is left are borders


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_target_that_is_one_voxel_off_is_seen(ndim: int) -> None:
    labels = make_blobs(ndim)
    image, _ = move(make_views(ndim, rotation=40), labels, (24,) * ndim, 0)
    _, target = move(make_views(ndim, rotation=40), np.roll(labels, 2, axis=-1), (24,) * ndim, 0)
    assert misalignment(image, target) > 0.05


def test_classes_are_not_blended() -> None:
    labels = np.random.default_rng(0).choice([0, 3, 9, IGNORE_INDEX], (40, 40))
    _, target = move(make_views(2, rotation=45, scale=0.4, elastic=1), labels, (24, 24), 1)
    assert set(np.unique(target)) == {0, 3, 9, IGNORE_INDEX}


@pytest.mark.parametrize(
    ("seed", "options"), [(0, {"rotation": 60}), (1, {"scale": 0.5}), (2, {"rotation": 30, "scale": 0.3})]
)
def test_rotation_and_scale_are_those_of_opencv(seed: int, options: dict[str, float]) -> None:
    """Angle and factor are read off the sources of two voxels; OpenCV's own affine map then gives the same patch."""
    import cv2

    labels = gaussian_filter(np.random.default_rng(0).random((80, 80)), 2).astype(np.float32)
    views = Views(2, flips=False, rotate90=False, intensity=0, cutout=0, **options)
    geometry = views.draw_geometry((32, 40), derive_rng(seed))
    assert geometry.sources is not None
    down, right = (
        geometry.sources[:, 31, 0] - geometry.sources[:, 0, 0],
        geometry.sources[:, 0, 39] - geometry.sources[:, 0, 0],
    )
    angle, factor = np.degrees(np.arctan2(-right[0], right[1])), 39 / np.hypot(*right)
    assert abs(angle) <= options.get("rotation", 1e-9)
    assert 1 / (1 + options.get("scale", 1e-9)) <= factor <= 1 + options.get("scale", 1e-9)
    assert np.hypot(*down) == pytest.approx(31 / factor)
    assert down @ right == pytest.approx(0, abs=1e-9)

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
        geometry = make_views(ndim, elastic=1.0).draw_geometry(patch, derive_rng(seed))
        assert geometry.sources is not None
        offset = np.reshape(geometry.offset, (-1, *[1] * ndim))
        shift = geometry.sources + offset - rest
        assert 0.3 < np.abs(shift).max() < 0.35 * max(patch) / 4
        gradients = np.stack([np.stack(np.gradient(axis)) for axis in geometry.sources])
        assert np.linalg.det(np.moveaxis(gradients, (0, 1), (-2, -1))).min() > 0


def test_probability_of_a_deformation() -> None:
    drawn = [make_views(2, elastic=0.3).draw_geometry((8, 8), derive_rng(k)).sources is not None for k in range(400)]
    assert 0.2 < np.mean(drawn) < 0.4


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=GEOMETRIES)
def test_only_what_is_read_is_used(options: dict[str, float]) -> None:
    """All sources lie in the box, and no smaller box holds them."""
    for seed in range(10):
        geometry = make_views(2, **options).draw_geometry((10, 14), derive_rng(seed))
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
    seen = {move(make_views(2), labels, (4, 4), k)[0].tobytes() for k in range(200)}
    assert len(seen) == 8
    none = {move(make_views(2, flips=False, rotate90=False), labels, (4, 4), k)[0].tobytes() for k in range(20)}
    assert none == {labels.astype(np.float32).tobytes()}


@pytest.mark.parametrize(("ndim", "channels"), [(2, 1), (2, 3), (2, 6), (3, 1), (3, 2)])
def test_strong_view_changes_values_and_keeps_places(ndim: int, channels: int) -> None:
    """A bright blob stays where it is: the strong view has the highest correlation with its input at shift 0."""
    views = Views(ndim, intensity=0.5, cutout=0.0)
    coordinates = np.indices([16] * ndim) - np.array([5, 9, 7][:ndim]).reshape(-1, *[1] * ndim)
    blob = np.exp(-(coordinates**2).sum(0) / 8).astype(np.float32)
    unit = np.repeat(blob[None], channels, axis=0)
    changed = 0
    for seed in range(12):
        strong = views.strengthen(unit, derive_rng(seed))
        assert strong.shape == unit.shape
        assert strong.dtype == np.float32
        assert np.isfinite(strong).all()
        changed += not np.array_equal(strong, unit)
        shifted = [np.corrcoef(np.roll(strong, s, axis=-1).ravel(), unit.ravel())[0, 1] for s in range(-4, 5)]
        assert int(np.argmax(shifted)) == 4
    assert changed >= 9
    assert np.array_equal(unit[0], blob), "the input must not be changed in place"


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_changes_are_drawn_independently(ndim: int) -> None:
    """Of four changes with p = 0.8, 0.5, 0.5, 0.3 none applies in 3.5 % of the views (3D: shift too, 0.7 %)."""
    views, unit = Views(ndim, intensity=0.5, cutout=0.0), random_patch(ndim, side=8)
    same = [np.allclose(views.strengthen(unit, derive_rng(k)), unit, atol=1e-6) for k in range(300)]
    assert sum(same) < 30


@pytest.mark.parametrize("ndim", [2, 3])
def test_cutout_blanks_boxes_and_leaves_the_rest(ndim: int) -> None:
    views = Views(ndim, intensity=0.0, cutout=1.0)
    unit = random_patch(ndim, side=32)
    for seed in range(8):
        strong = views.strengthen(unit, derive_rng(seed))
        assert np.array_equal(unit, random_patch(ndim, side=32)), "the weak view must not be blanked too"
        changed = strong[0] != unit[0]
        assert 0.0005 < changed.mean() < 0.5
        assert label(changed)[1] <= 3
        assert np.array_equal(binary_opening(changed, np.ones([3] * ndim)), changed), "no stray voxel"


@pytest.mark.parametrize("ndim", [2, 3])
def test_without_intensity_and_cutout_the_strong_view_is_the_weak_one(ndim: int) -> None:
    views, unit = Views(ndim, intensity=0.0, cutout=0.0), random_patch(ndim)
    assert all(np.array_equal(views.strengthen(unit, derive_rng(k)), unit) for k in range(20))


@pytest.mark.parametrize("ndim", [2, 3])
def test_low_resolution_keeps_the_content_in_place(ndim: int) -> None:
    """The center of a blob stays within a fifth of a voxel; nearest-voxel downsampling moves it more (control)."""
    from monai.transforms import RandSimulateLowResolution

    coordinates = np.indices([32] * ndim)
    blob = np.exp(-sum((c - 12.0) ** 2 for c in coordinates) / 18).astype(np.float32)[None]

    def shift(image: np.ndarray) -> float:
        weights = image[0].astype(np.float64)
        return max(abs((weights * c).sum() / weights.sum() - 12) for c in coordinates)

    mode = "bilinear" if ndim == 2 else "trilinear"
    steps = [_make_coarse(1.0, mode)]
    coarse = [_run_steps(steps, blob, seed) for seed in range(60)]
    changed = [image for image in coarse if not np.array_equal(image, blob)]
    assert 5 <= len(changed) <= 25
    assert max(map(shift, changed)) < 0.2
    control = RandSimulateLowResolution(1.0, upsample_mode=mode, zoom_range=(0.55, 0.55))
    assert shift(np.asarray(control(blob))) > 0.2


@pytest.mark.parametrize("ndim", [2, 3])
def test_same_seed_same_view_also_after_pickling(ndim: int) -> None:
    views = Views(ndim)
    unit = random_patch(ndim)
    first = [views.strengthen(unit, derive_rng(k)) for k in range(4)]
    copy = pickle.loads(pickle.dumps(views))
    again = [copy.strengthen(unit, derive_rng(k)) for k in reversed(range(4))][::-1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
