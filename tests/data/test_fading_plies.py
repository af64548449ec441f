"""The problem that unlabeled images solve: fibers that fade, and a stain that only they explain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fading_plies import generate_plies, write_fading_plies
from scipy import ndimage

from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.splits.split import make_split
from ssl_seg.data.volumes import read_image, read_mask

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
