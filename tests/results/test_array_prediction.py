"""Arrays in memory are predicted as their NPY files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import train_tiny

import ssl_seg
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.errors import ConfigError, DataError


def predict_file(run: Path, image: np.ndarray[Any, Any], folder: Path, **options: Any) -> dict[str, Any]:
    (folder / "in").mkdir(parents=True)
    np.save(folder / "in" / "a.npy", image)
    ssl_seg.predict(run, folder / "in", folder / "out", format="npy", probabilities=True, **options)
    return {path.stem: np.load(path) for path in (folder / "out").glob("*.npy")}


@pytest.mark.parametrize("kind", ["u1", "u2", "f4", "color", "channel first"])
def test_an_array_is_predicted_as_its_file(tiny_run: Path, tmp_path: Path, kind: str) -> None:
    plane = np.random.default_rng(0).integers(0, 200, (70, 45))
    arrays = {"color": np.stack([plane] * 3, axis=-1).astype("u1"), "channel first": plane[None].astype("u1")}
    image = arrays[kind] if kind in arrays else plane.astype(kind)
    expected = predict_file(tiny_run, image, tmp_path, tta=kind == "u1")
    found = ssl_seg.load_predictor(tiny_run, tta=kind == "u1")(image)
    np.testing.assert_array_equal(found.mask, expected["a"])
    np.testing.assert_array_equal(found.probabilities[1], expected["a_prob"])
    np.testing.assert_allclose(found.probabilities.sum(axis=0), 1, atol=1e-6)


def test_a_mark_for_no_data_is_background_as_in_a_file(tiny_run: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 10, (64, 64)).astype(np.float32)
    image[:, :20] = -9999
    expected = predict_file(tiny_run, image, tmp_path)
    found = ssl_seg.load_predictor(tiny_run)(image)
    np.testing.assert_array_equal(found.mask, expected["a"])
    assert any("-9999 is taken for no data" in note for note in found.notes)
    assert not found.mask[:, :20].any()


def test_thresholds_and_label_values_are_those_of_predict(tiny_run: Path) -> None:
    image = np.random.default_rng(0).integers(0, 200, (64, 64)).astype(np.uint8)
    low, high = (ssl_seg.load_predictor(tiny_run, threshold=t)(image) for t in (0.01, 0.99))
    np.testing.assert_array_equal(low.probabilities, high.probabilities)
    np.testing.assert_array_equal(low.mask > 0, low.probabilities[1] > 0.01)
    assert low.mask.max() in (1, 255)
    assert high.mask.sum() < low.mask.sum()


def test_objects_have_numbers(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", "particles", 8, instances=True)
    train_tiny(tmp_path / "run", tmp_path / "data", {"data": {"task": "instances"}, "length": {"steps": 2}})
    image = np.random.default_rng(0).integers(0, 200, (64, 64)).astype(np.uint8)
    expected = predict_file(tmp_path / "run", image, tmp_path / "x")
    objects = next(value for name, value in expected.items() if "prob" not in name)
    np.testing.assert_array_equal(ssl_seg.load_predictor(tmp_path / "run")(image).mask, objects)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 30, 30, 30)), "the array is read as 3D"),
        (np.zeros(5), r"the array: its shape \(5,\) is neither"),
        (np.array([["a"] * 9] * 9), "the array"),
        (np.zeros((40, 40), complex), "the array"),
        (np.full((40, 40), np.nan), "the array"),
        (np.random.default_rng(0).random((40, 40, 4)), "the array"),
        (np.ma.masked_greater(np.eye(40), 0.5), "the array has masked values"),
    ],
)
def test_what_is_no_image_is_named(tiny_run: Path, image: np.ndarray[Any, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        ssl_seg.load_predictor(tiny_run)(image)


def test_a_masked_array_without_masked_values_is_an_image(tiny_run: Path) -> None:
    predict, image = ssl_seg.load_predictor(tiny_run), np.eye(40)
    np.testing.assert_array_equal(predict(np.ma.asarray(image)).mask, predict(image).mask)


def test_a_voxel_size_that_does_not_fit(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="3 numbers, and the network was trained on 2D images"):
        ssl_seg.load_predictor(tiny_run)(np.zeros((40, 40)), (1, 1, 1))
