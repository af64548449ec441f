"""``ssl-seg predict --objects``: label images and tables of connected parts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from test_cli import assert_refused

from ssl_seg.data.volumes import read_mask, write_labels, write_mask
from ssl_seg.diagnose.prediction_files import find_predictions
from ssl_seg.errors import DataError
from ssl_seg.inference.sliding import Predictor
from ssl_seg.results.objects import find_objects, list_columns
from ssl_seg.results.prediction import PredictRequest, predict


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestObjects:
    @given(st.integers(0, 2**32 - 1), st.sampled_from([(9, 14), (4, 6, 5)]))
    def test_each_row_is_what_its_label_covers(self, seed: int, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(seed)
        classes, image = rng.choice(3, shape, p=[0.6, 0.3, 0.1]), rng.integers(0, 255, (2, *shape), dtype=np.uint8)
        labels, rows = find_objects(classes, image, (0, 1, 7), (2.0, 0.5, 0.5)[-len(shape) :])
        np.testing.assert_array_equal(labels > 0, classes > 0)
        columns = list_columns(len(shape), 2)[1:]
        assert [row[0] for row in rows] == list(range(1, labels.max() + 1))
        for row in (dict(zip(columns, values, strict=True)) for values in rows):
            own = labels == row["object"]
            assert {(0, 1, 7)[k] for k in np.unique(classes[own])} == {row["class"]}
            assert row["voxels"] == own.sum()
            assert float(row["size"]) == pytest.approx(own.sum() * np.prod((2.0, 0.5, 0.5)[-len(shape) :]), rel=1e-4)
            for axis, (name, places) in enumerate(zip("zyx"[-len(shape) :], np.nonzero(own), strict=True)):
                assert (row[f"min_{name}"], row[f"max_{name}"]) == (places.min(), places.max()), axis
                assert row[f"center_{name}"] == pytest.approx(places.mean(), abs=0.006)
            assert [float(row[f"mean_{c}"]) for c in range(2)] == pytest.approx(
                [image[c][own].mean() for c in range(2)], rel=1e-4
            )

    def test_parts_that_share_a_corner_are_two(self) -> None:
        labels, rows = find_objects(np.eye(3, dtype=np.int64), np.zeros((1, 3, 3), np.uint8), (0, 1), None)
        assert np.diag(labels).tolist() == [1, 2, 3]
        assert [row[3] for row in rows] == ["", "", ""], "no size without a voxel size"

    def test_nothing_gives_an_empty_table(self) -> None:
        labels, rows = find_objects(np.zeros((3, 3), np.int64), np.zeros((1, 3, 3), np.uint8), (0, 1), None)
        assert (labels.any(), rows) == (False, [])


@pytest.mark.parametrize(("top", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_many_objects_need_wider_numbers(tmp_path: Path, top: int, dtype: type) -> None:
    labels = np.full((4, 5), top)
    write_labels(tmp_path / "a.tif", labels)
    stored = tifffile.imread(tmp_path / "a.tif")
    assert (stored.dtype, int(stored.max())) == (dtype, top)
    with pytest.raises(DataError, match=r"numbers of objects are written as"):
        write_labels(tmp_path / "a.png", labels)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images, one in a folder of its own, whose bright voxels are found."""

    def classify(_: Predictor, image: np.ndarray[Any, Any], spacing: object = None) -> np.ndarray[Any, Any]:
        high = (image[0] > 100).astype(np.float32)
        return np.stack([1 - high, high])

    monkeypatch.setattr(Predictor, "__call__", classify)
    for number, name in enumerate(("a.png", "sub/b.png")):
        image = np.zeros((40, 40), np.int64)
        image[3:6, 4:9] = 120 + number
        image[20, 20 : 22 + number] = 200
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        write_mask(tmp_path / "images" / name, image)
    return tmp_path / "images"


@pytest.fixture
def request_(tiny_run: Path, images: Path, tmp_path: Path) -> PredictRequest:
    return PredictRequest(tiny_run / "checkpoints" / "best.pt", images, tmp_path / "out", "student", objects=True)


def test_a_folder_has_a_table_of_all_images(request_: PredictRequest, tmp_path: Path) -> None:
    predict(request_)
    rows = read_table(tmp_path / "out" / "objects.csv")
    assert [(row["image"], row["object"], row["voxels"], row["mean"]) for row in rows] == [
        ("a", "1", "15", "120"), ("a", "2", "2", "200"), ("sub/b", "1", "15", "121"), ("sub/b", "2", "3", "200"),
    ]  # fmt: skip
    assert read_table(tmp_path / "out" / "sub" / "b_objects.csv") == rows[2:]
    labels = read_mask(str(tmp_path / "out" / "sub" / "b_objects.tif"))
    assert np.bincount(labels.ravel())[1:].tolist() == [15, 3]
    found = find_predictions(tmp_path / "out")
    assert [prediction.id for prediction in found] == ["a", "sub/b"], "label images are no predictions"


def test_a_second_call_makes_what_is_missing(request_: PredictRequest, tmp_path: Path) -> None:
    first = predict(request_)
    before = (tmp_path / "out" / "objects.csv").read_bytes()
    (tmp_path / "out" / "a_objects.csv").unlink()
    (tmp_path / "out" / "objects.csv").unlink()
    assert predict(request_) == first[:1]
    assert (tmp_path / "out" / "objects.csv").read_bytes() == before


def test_masks_that_are_there_get_their_objects(request_: PredictRequest, tmp_path: Path) -> None:
    from dataclasses import replace

    predict(replace(request_, objects=False))
    assert not (tmp_path / "out" / "objects.csv").exists()
    assert len(predict(request_)) == 2
    assert len(read_table(tmp_path / "out" / "objects.csv")) == 4


def test_another_table_of_that_name_stays(request_: PredictRequest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "objects.csv").write_text("mine\n")
    with pytest.raises(DataError, match=r"objects.csv exists already and is no table of objects"):
        predict(request_)
    assert (tmp_path / "out" / "objects.csv").read_text() == "mine\n"
    assert not (tmp_path / "out" / "a.png").exists()


def test_a_broken_image_is_not_in_the_table(request_: PredictRequest, images: Path, tmp_path: Path) -> None:
    (images / "c.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 3 images have no mask"):
        predict(request_)
    assert {row["image"] for row in read_table(tmp_path / "out" / "objects.csv")} == {"a", "sub/b"}


def test_a_single_image_and_its_voxel_size(cli: Cli, request_: PredictRequest, images: Path, tmp_path: Path) -> None:
    words = ("predict", request_.checkpoint, images / "a.png", tmp_path / "one.png", "--which", "student")
    code, _, err = cli(*words, "--objects", "--spacing", "0.5,0.5")
    assert code == 0, err
    assert "changes nothing" not in err
    assert [row["size"] for row in read_table(tmp_path / "one_objects.csv")] == ["3.75", "0.5"]
    assert sorted(path.name for path in tmp_path.glob("*one*")) == ["one.png", "one_objects.csv", "one_objects.tif"]
    assert_refused(cli(*words, "--objects"), "exists already and is not overwritten")
