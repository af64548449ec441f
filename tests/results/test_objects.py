"""``ssl-seg predict --objects``: label images and tables of connected parts."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import tifffile
from conftest import Cli, train_tiny
from hypothesis import given
from hypothesis import strategies as st
from test_cli import assert_refused

from ssl_seg.data.instances import make_target
from ssl_seg.data.volumes import read_mask, write_labels, write_mask
from ssl_seg.diagnose.prediction_files import find_predictions
from ssl_seg.errors import DataError
from ssl_seg.inference.sliding import Predictor
from ssl_seg.labels import Meaning
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.objects import find_objects, list_columns
from ssl_seg.results.prediction import predict
from ssl_seg.scores.objects import match_objects


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
    if top < 65536:
        write_labels(tmp_path / "a.png", labels)
        np.testing.assert_array_equal(read_mask(str(tmp_path / "a.png")), labels)
    else:
        with pytest.raises(DataError, match=r"PNG numbers 65,535 objects at most, and there are 65,536: write .tif"):
            write_labels(tmp_path / "a.png", labels)
    with pytest.raises(DataError, match=r"numbers of objects are written as .png, .tif"):
        write_labels(tmp_path / "a.jpg", labels)


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


@pytest.mark.parametrize("suffix", [".nii.gz", ".npy"])
def test_places_are_those_of_the_label_image(request_: PredictRequest, tmp_path: Path, suffix: str) -> None:
    """A file of NIfTI may run the other way than the image that is read; of NPY, there is no such order."""
    (tmp_path / "scans").mkdir()
    voxels = np.zeros((40, 30, 1), np.int16)
    voxels[2:5, 6:16] = 200
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), tmp_path / "scans" / "a.nii.gz")
    predict(replace(request_, source=tmp_path / "scans", suffix=suffix))
    file = tmp_path / "out" / f"a_objects{suffix}"
    labels = np.load(file) if suffix == ".npy" else np.asarray(nibabel.load(file).dataobj)[..., 0].T
    (row,) = read_table(tmp_path / "out" / "a_objects.csv")
    for name, places in zip("yx", np.nonzero(labels), strict=True):
        assert (int(row[f"min_{name}"]), int(row[f"max_{name}"])) == (places.min(), places.max())
        assert float(row[f"center_{name}"]) == pytest.approx(places.mean())
    assert (int(row["min_x"]) == 2) == (suffix == ".nii.gz")


def test_a_second_call_makes_what_is_missing(request_: PredictRequest, tmp_path: Path) -> None:
    first = predict(request_)
    before = (tmp_path / "out" / "objects.csv").read_bytes()
    (tmp_path / "out" / "a_objects.csv").unlink()
    (tmp_path / "out" / "objects.csv").unlink()
    assert predict(request_) == first[:1]
    assert (tmp_path / "out" / "objects.csv").read_bytes() == before


def test_masks_that_are_there_get_their_objects(request_: PredictRequest, tmp_path: Path) -> None:

    predict(replace(request_, objects=False))
    assert not (tmp_path / "out" / "objects.csv").exists()
    assert len(predict(request_)) == 2
    assert len(read_table(tmp_path / "out" / "objects.csv")) == 4


def test_another_table_of_that_name_stays(request_: PredictRequest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "objects.csv").write_text("mine\n")
    with pytest.raises(DataError, match=r"objects.csv exists already and is not a table of objects"):
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


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of pairs of touching squares, and masks that number them."""
    folder = tmp_path_factory.mktemp("data") / "cells"
    rng = np.random.default_rng(0)
    for number in range(9):
        mask = np.zeros((64, 64), np.int64)
        for pair, (y, x) in enumerate(rng.integers(0, 44, (3, 2))):
            mask[y : y + 18, x : x + 9], mask[y : y + 18, x + 9 : x + 18] = 2 * pair + 1, 2 * pair + 2
        write_mask(folder / "instances" / f"{number}.png", mask)
        write_mask(folder / "images" / f"{number}.png", (mask > 0) * 150 + rng.integers(0, 60, mask.shape))
    return folder


@pytest.fixture(scope="module")
def instance_run(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps that has learned instances."""
    run = tmp_path_factory.mktemp("runs") / "instances"
    settings = {"data": {"task": "instances"}, "split": {"labels": 3, "val_fraction": 0.3, "test_fraction": 0.2}}
    train_tiny(run, cells, settings, {"length": {"steps": 2, "steps_per_epoch": 2}})
    return run


class TestInstances:
    def test_masks_are_label_images(
        self, instance_run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A network that gives what the masks say finds their objects, in the mask, the table and the scores."""
        masks = {
            hash(read_mask(str(cells / "images" / path.name)).astype(np.uint8).tobytes()): read_mask(str(path))
            for path in (cells / "instances").iterdir()
        }

        def know(_: Predictor, image: np.ndarray[Any, Any], spacing: object = None) -> np.ndarray[Any, Any]:
            numbers = Meaning("instances").to_objects(masks[hash(image[0].astype(np.uint8).tobytes())])
            return np.eye(3, dtype=np.float32)[make_target(numbers)].transpose(2, 0, 1)

        monkeypatch.setattr(Predictor, "__call__", know)
        checkpoint = instance_run / "checkpoints" / "best.pt"
        predict(PredictRequest(checkpoint, cells / "images", tmp_path / "out"))
        for path in sorted((cells / "instances").iterdir()):
            true, found = read_mask(str(path)), cv2.imread(str(tmp_path / "out" / path.name), -1)
            assert found.dtype == np.uint16
            assert match_objects(found, true).matched[5] == len(np.unique(true)) - 1 == found.max()
            rows = read_table(tmp_path / "out" / f"{path.stem}_objects.csv")
            assert [int(row["voxels"]) for row in rows] == np.bincount(found.ravel())[1:].tolist()
        assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".csv", ".jsonl"}
        assert len(read_table(tmp_path / "out" / "objects.csv")) == sum(len(np.unique(m)) - 1 for m in masks.values())
        again = predict(PredictRequest(checkpoint, cells / "images", tmp_path / "out", objects=True))
        assert not again, "they are there already, by the same settings"
        result = evaluate(EvaluateRequest(checkpoint))
        assert result["objects"]["f1_70"] == 1.0 > result["objects"]["trivial"]["connected"]["f1_50"]
        assert result["objects"]["pred"] == result["objects"]["true"] > 0

    def test_the_tables_show_them(self, cli: Cli, instance_run: Path, tmp_path: Path) -> None:
        code, out, err = cli("evaluate", instance_run)
        assert code == 0, err
        for name in ("F1 at IoU 0.5", "F1 at IoU 0.9", "AP", "PQ", "connected parts", "whole image as one"):
            assert name in out
        stored = json.loads((instance_run / "scores.json").read_text())["networks"][0]
        assert stored["objects"]["true"] > 0
        assert stored["cases"][0]["objects"]["found"]["true"] > 0

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("evaluate", "RUN", "--threshold", "0.4"), "one threshold cannot tell 3 classes apart"),
            (("calibrate", "RUN", "--clean"), "inside and boundary are parts of objects"),
            (("train", "--data", "DATA", "--task", "instance"), "instance"),
            (("train", "--data", "DATA", "--set", "task=instances"), "data.task"),
            (
                ("train", "--data", "DATA", "--task", "instances", "--set", "data.mask=semantic"),
                "data.mask=semantic has no numbers",
            ),
            (
                ("train", "--data", "DATA", "--task", "instances", "--set", "loss.class_weights=auto"),
                "give three numbers, of background, inside and boundary",
            ),
        ],
    )
    def test_what_does_not_go_with_them_is_refused(
        self, cli: Cli, instance_run: Path, cells: Path, tmp_path: Path, words: tuple[str, ...], message: str
    ) -> None:
        places = {"RUN": str(instance_run), "DATA": str(cells)}
        out = ("--out", str(tmp_path / "run")) if words[0] == "train" else ()
        assert_refused(cli(*(places.get(word, word) for word in words), *out), message)
