"""Folders of predictions from anywhere: how they are read, what is found, and what is left alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import h5py
import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from sizes import around
from sklearn.metrics import f1_score

from ssl_seg.data.volumes import write_mask, write_probabilities
from ssl_seg.diagnose.clock import Clock
from ssl_seg.diagnose.gate import apply_gate
from ssl_seg.diagnose.prediction_files import SAMPLE, find_predictions
from ssl_seg.diagnose.predictions import PredictionsRequest, diagnose_predictions
from ssl_seg.diagnose.result import Diagnosis
from ssl_seg.errors import DataError

Images = Sequence[NDArray[Any]]


def write_folder(folder: Path, images: Images, suffix: str = "") -> Path:
    """Write integers as PNG (volumes as TIFF) and floats as TIFF."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        name = f"{index:02}{suffix}"
        if image.dtype.kind == "f":
            write_probabilities(folder / f"{name}.tif", image)
        elif image.ndim == 3:
            write_mask(folder / f"{name}.tif", image)
        elif image.dtype == np.uint16:
            cv2.imwrite(str(folder / f"{name}.png"), image)
        else:
            write_mask(folder / f"{name}.png", image)
    return folder


def make_truth(count: int = 6, size: int = 48, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Discs of many sizes at many places."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size, :size]
    centers, radii = rng.uniform(8, size - 8, (count, 2)), np.linspace(6, size / 2, count)
    return [((y - a) ** 2 + (x - b) ** 2 < r**2).astype(np.uint8) for (a, b), r in zip(centers, radii, strict=True)]


def make_probs(truth: Images, seed: int = 0, sharpness: float = 4.0) -> list[NDArray[np.float32]]:
    """What a good network says of the discs: blurred logits with noise."""
    rng = np.random.default_rng(seed)
    probs = []
    for mask in truth:
        logit = sharpness * (2 * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5) - 1)
        probs.append((1 / (1 + np.exp(-logit - rng.normal(0, 0.7, mask.shape)))).astype(np.float32))
    return probs


def diagnose(predictions: Path, masks: Path | None = None, **request: Any) -> Diagnosis:
    return diagnose_predictions(PredictionsRequest(predictions, masks, **request))


def codes(diagnosis: Diagnosis) -> list[str]:
    return [f.code for f in diagnosis.findings]


def reported_masks() -> list[NDArray[np.uint8]]:
    """45 images with 95.06 % and 5 with 71.19 %: foreground everywhere behind an uncovered border."""
    wide, small = np.zeros((320, 320), np.uint8), np.zeros((256, 256), np.uint8)
    wide[:312, :312] = small[20:236, 20:236] = 255
    return [wide] * 45 + [small] * 5


def test_the_reported_case(tmp_path: Path) -> None:
    diagnosis = diagnose(write_folder(tmp_path / "p", reported_masks()))
    assert diagnosis.verdict.level == "collapsed"
    assert diagnosis.verdict.message == "constant output function: do not submit"
    assert codes(diagnosis) == ["uniform_ratio", "coverage_hole"]
    ratio, hole = (f.message for f in diagnosis.findings)
    assert "all 45 images of 320 x 320 predict exactly 95.06% foreground = (312/320) x (312/320)" in ratio
    assert "all 5 images of 256 x 256 predict exactly 71.19% foreground = (216/256) x (216/256)" in ratio
    assert "y 312..319, x 312..319 of 320 x 320" in hole
    assert "border" in diagnosis.causes[0].text
    assert 1 <= len(diagnosis.causes) <= 3
    assert diagnosis.next_command.startswith("ssl-seg diagnose")


def test_three_images_that_differ_do_not_hide_the_reported_case(tmp_path: Path) -> None:
    others = [mask.repeat(6, 0).repeat(5, 1) for mask in make_truth(3)]  # 288 x 240
    diagnosis = diagnose(write_folder(tmp_path / "p", [*reported_masks(), *others]))
    assert codes(diagnosis) == ["uniform_ratio", "coverage_hole"]


def test_healthy_masks_are_left_alone(tmp_path: Path) -> None:
    diagnosis = diagnose(write_folder(tmp_path / "p", make_truth(12)))
    assert (diagnosis.verdict.level, diagnosis.verdict.code) == ("ok", "healthy")
    assert diagnosis.findings == diagnosis.causes == ()
    assert "outputs" not in diagnosis.statistics
    assert len(diagnosis.examples) == 5


def test_equal_true_shares_make_equal_predictions_right(tmp_path: Path) -> None:
    masks = [np.roll(make_truth(1, seed=3)[0], 5 * i, axis=1) for i in range(6)]
    predictions, truth = write_folder(tmp_path / "p", masks), write_folder(tmp_path / "m", masks)
    assert codes(diagnose(predictions, truth)) == []
    assert "uniform_ratio" in codes(diagnose(predictions))  # without masks nobody knows


def test_good_probabilities_are_healthy_and_scored(tmp_path: Path) -> None:
    truth = make_truth()
    probs = make_probs(truth)
    diagnosis = diagnose(write_folder(tmp_path / "p", probs), write_folder(tmp_path / "m", truth))
    assert diagnosis.verdict.level == "ok"
    flat_truth, flat_pred = np.ravel(truth), np.ravel(probs) > 0.5
    assert diagnosis.statistics["scores"]["f1"] == pytest.approx(f1_score(flat_truth, flat_pred))
    assert {i.id: i.f1 for i in diagnosis.images}["02"] == pytest.approx(
        f1_score(truth[2].ravel(), probs[2].ravel() > 0.5)
    )
    assert diagnosis.statistics["sweep"]["best_f1"] >= diagnosis.statistics["scores"]["f1"] - 1e-12
    assert diagnosis.statistics["looked_at"]["read_as"].startswith("probabilities")


@pytest.mark.parametrize(("dtype", "top", "word"), [(np.uint8, 255, "256 gray"), (np.uint16, 65535, "65536 gray")])
def test_gray_probabilities_are_read_as_such(tmp_path: Path, dtype: type, top: int, word: str) -> None:
    truth = make_truth()
    probs = make_probs(truth)
    gray = [(p * top).round().astype(dtype) for p in probs]
    diagnosis = diagnose(write_folder(tmp_path / "p", gray), write_folder(tmp_path / "m", truth))
    assert word in diagnosis.notes[0]
    assert diagnosis.statistics["outputs"]["all"]["prob_mean"] == pytest.approx(np.mean(probs), abs=1 / top)


def test_instances_and_classes_are_masks(tmp_path: Path) -> None:
    numbered = [mask * (np.arange(48, dtype=np.uint8)[:, None] // 2 + 1) for mask in make_truth()]
    assert len(np.unique(numbered)) > 16
    diagnosis = diagnose(write_folder(tmp_path / "p", numbered))
    assert "masks" in diagnosis.notes[0]
    assert diagnosis.verdict.level == "ok"


def make_classes(count: int = 12) -> list[NDArray[np.uint8]]:
    """Masks of class 1, whose last columns are class 2."""
    masks = [mask.copy() for mask in make_truth(count)]
    for mask in masks:
        mask[:, 30:] = np.where(mask[:, 30:] > 0, 2, 0)
    return masks


def test_a_class_that_is_never_predicted_is_named(tmp_path: Path) -> None:
    truth = make_classes()
    swapped = [np.where(mask > 0, 1, 0).astype(np.uint8) for mask in truth]
    masks = write_folder(tmp_path / "m", truth)
    diagnosis = diagnose(write_folder(tmp_path / "p", swapped), masks)
    assert codes(diagnosis) == ["missing_class"]
    share = np.mean(np.stack(truth) == 2)
    assert f"class 2 on 0.000% of the voxels where {share:.3%} is true" in diagnosis.findings[0].message
    scores = f1_score(np.ravel(truth), np.ravel(swapped), labels=[1, 2], average=None, zero_division=0)
    assert diagnosis.action == "give this class a larger weight, and train longer"
    assert f"1: {scores[0]:.3f}, 2: {scores[1]:.3f};" in diagnosis.notes[-1]
    assert diagnosis.statistics["scores"]["f1_macro"] == pytest.approx(scores.mean())
    gated = apply_gate(diagnosis, 0.9).verdict.message
    assert gated == f"F1 (mean of 2 classes) is {scores.mean():.3f} on 12 images, and 0.9 is required"
    right = diagnose(write_folder(tmp_path / "r", truth), masks)
    assert codes(right) == []
    assert "F1 (mean of 2 classes) 1.000, +" in right.verdict.message
    assert "1: 1.000, 2: 1.000;" in right.notes[-1]
    assert "class" not in " ".join(diagnose(tmp_path / "p", write_folder(tmp_path / "t", swapped)).notes)
    more = diagnose(tmp_path / "r", tmp_path / "t")
    assert more.notes[-1] == "the predictions hold 2 too, which no true mask holds: all count as foreground"


@pytest.mark.parametrize("suffix", ["_objects", "_entropy", "_variance", "_other"])
def test_what_predict_writes_beside_masks_is_no_prediction(tmp_path: Path, suffix: str) -> None:
    write_folder(tmp_path, make_truth(4))
    write_folder(tmp_path, make_truth(4), suffix=suffix)
    assert len(find_predictions(tmp_path)) == (8 if suffix == "_other" else 4)
    alone = write_folder(tmp_path / "alone", make_truth(4), suffix=suffix)
    assert len(find_predictions(alone)) == 4


def test_an_image_without_a_mask_in_its_file_is_no_mask(tmp_path: Path) -> None:
    truth = make_truth(3)
    for index, mask in enumerate(truth):
        with h5py.File(tmp_path / f"{index:02}.h5", "w") as file:
            file["image"] = np.full_like(mask, 7)
            if index:
                file["label"] = mask
    found = diagnose(write_folder(tmp_path / "p", truth), tmp_path)
    assert (found.statistics["scores"]["images"], found.statistics["scores"]["f1"]) == (2, 1.0)


def test_numbers_of_objects_are_not_taken_for_classes(tmp_path: Path) -> None:
    truth = make_classes()
    numbered = [np.where(mask > 0, 5 + n, 0).astype(np.uint8) for n, mask in enumerate(truth)]
    diagnosis = diagnose(write_folder(tmp_path / "p", numbered), write_folder(tmp_path / "m", truth))
    assert codes(diagnosis) == []
    assert "the predictions hold 5, 6, 7" in diagnosis.notes[-1]
    assert "2 classes are not compared" in diagnosis.notes[-1]


def test_settings_say_what_is_background(tmp_path: Path) -> None:
    truth = make_truth()
    shifted = [np.where(mask > 0, 7, 3).astype(np.uint8) for mask in truth]
    marked = [mask.copy() for mask in shifted]
    for mask in marked:
        mask[:4] = 9
    folders = write_folder(tmp_path / "p", shifted), write_folder(tmp_path / "m", marked)
    diagnosis = diagnose(*folders, settings={"label_values": (3, 7), "ignore_value": 9})
    assert diagnosis.statistics["scores"]["f1"] == 1.0
    assert diagnosis.statistics["trivial"]["prevalence"] == pytest.approx(np.mean([m[4:] for m in truth]))


def test_a_narrow_band_is_constant(tmp_path: Path) -> None:
    """The reported outputs: 0.627 +- 0.069, 0.52 to 0.71, the same in each image, whatever it shows."""
    rng = np.random.default_rng(0)
    probs = [rng.choice([0.5216, 0.66, 0.7071], (64, 64), p=[0.28, 0.68, 0.04]).astype(np.float32) for _ in range(5)]
    alone = diagnose(write_folder(tmp_path / "p", probs))
    assert alone.verdict.message == "constant output function: do not submit"
    assert codes(alone)[0] == "constant_output"
    assert "equal_statistics" in codes(alone)
    with_masks = diagnose(tmp_path / "p", write_folder(tmp_path / "m", make_truth(5, 64)))
    assert with_masks.verdict.code == "constant_output"
    assert "AUROC" in with_masks.findings[0].message


def test_a_narrow_but_right_output_is_no_constant(tmp_path: Path) -> None:
    truth = make_truth()
    probs = [np.where(m > 0, 0.66, 0.55).astype(np.float32) for m in truth]
    found = codes(diagnose(write_folder(tmp_path / "p", probs), write_folder(tmp_path / "m", truth)))
    assert "constant_output" not in found
    assert "shifted_threshold" in found


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_mask_has_no_other_threshold(tmp_path: Path, share: float) -> None:
    """Where most is foreground, all of it scores more than a mask that lacks a part: that is no better cut of it."""
    truth = [np.arange(64 * 64).reshape(64, 64) < share * 64 * 64] * 5
    masks = [np.where(np.arange(64)[None] < 24, m, False).astype(np.uint8) for m in truth]
    found = codes(diagnose(write_folder(tmp_path / "p", masks), write_folder(tmp_path / "m", [m * 1 for m in truth])))
    assert "shifted_threshold" not in found


def test_empty_predictions(tmp_path: Path) -> None:
    empty = write_folder(tmp_path / "p", [np.zeros((48, 48), np.uint8)] * 6)
    alone = diagnose(empty)
    assert (alone.verdict.level, codes(alone)) == ("warn", ["all_negative"])
    missed = diagnose(empty, write_folder(tmp_path / "m", make_truth()))
    assert (missed.verdict.level, missed.verdict.code) in {
        ("collapsed", "all_negative"),
        ("collapsed", "constant_output"),
    }
    right = diagnose(empty, write_folder(tmp_path / "e", [np.zeros((48, 48), np.uint8)] * 6))
    assert right.verdict.level == "ok"


def test_swapped_values_are_named(tmp_path: Path) -> None:
    truth = make_truth()
    inverted = write_folder(tmp_path / "p", [1 - mask for mask in truth])
    diagnosis = diagnose(inverted, write_folder(tmp_path / "m", truth))
    assert diagnosis.verdict.code == "inverted_output"
    assert "swapped" in diagnosis.causes[0].text


@pytest.mark.parametrize("values", [(-1, 1), (1, 2)])
def test_predictions_without_the_value_of_background_are_no_collapse(tmp_path: Path, values: tuple[int, int]) -> None:
    truth = make_truth()
    masks = write_folder(tmp_path / "m", truth)
    (tmp_path / "p").mkdir()
    for n, mask in enumerate(truth):
        np.save(tmp_path / "p" / f"{n:02}.npy", np.where(mask, values[1], values[0]).astype(np.int16))
    with pytest.raises(DataError, match=re.escape(f"data.label_values={list(values)}")):
        diagnose_predictions(PredictionsRequest(tmp_path / "p", masks))
    same = shutil.copytree(tmp_path / "p", tmp_path / "same")
    told = PredictionsRequest(tmp_path / "p", same, {"label_values": values})
    assert diagnose_predictions(told).statistics["scores"]["f1"] == 1.0
    full = write_folder(tmp_path / "full", [np.ones_like(mask) for mask in truth])  # one value: that is a collapse
    assert diagnose(full, masks).verdict.level == "collapsed"


def test_many_objects_are_no_gray_values(tmp_path: Path) -> None:
    """More than half of the range of uint8; a blurred copy of the same objects is read as probabilities."""
    rng = np.random.default_rng(0)
    fields = [np.kron(rng.random((15, 15)) < 0.8, np.pad(np.ones((4, 4), int), 1)) for _ in range(4)]
    numbers = [ndimage.label(field)[0] for field in fields]
    assert all(127 < number.max() < 256 for number in numbers)
    masks = write_folder(tmp_path / "m", [field.astype(np.uint8) for field in fields])
    diagnosis = diagnose(write_folder(tmp_path / "p", [number.astype(np.uint8) for number in numbers]), masks)
    assert diagnosis.statistics["scores"]["f1"] == 1.0
    assert diagnosis.statistics["looked_at"]["read_as"].startswith("masks")
    blurred = [cv2.GaussianBlur(255.0 * field, (0, 0), 1.0).astype(np.uint8) for field in fields]
    diagnosis = diagnose(write_folder(tmp_path / "b", blurred), masks)
    assert diagnosis.statistics["looked_at"]["read_as"].startswith("probabilities")


def test_nan_is_a_finding_and_no_error(tmp_path: Path) -> None:
    probs = make_probs(make_truth())
    probs[3][5, 5:9] = np.nan
    diagnosis = diagnose(write_folder(tmp_path / "p", probs))
    assert (diagnosis.verdict.level, diagnosis.verdict.code) == ("collapsed", "non_finite")
    assert diagnosis.findings[0].value == 4
    assert not any("optim.lr" in text for cause in diagnosis.causes for text in cause.evidence)  # nobody knows it


def test_probabilities_beside_masks_belong_to_them(tmp_path: Path) -> None:
    """What ``ssl-seg predict --probabilities`` writes."""
    truth = make_truth()
    folder = write_folder(tmp_path / "p", [(p > 0.5).astype(np.uint8) * 255 for p in make_probs(truth)])
    write_folder(folder, make_probs(truth), suffix="_prob")
    diagnosis = diagnose(folder, write_folder(tmp_path / "m", truth))
    assert [i.id for i in sorted(diagnosis.images, key=lambda i: i.id)] == [f"{n:02}" for n in range(6)]
    assert "outputs" in diagnosis.statistics
    assert diagnosis.verdict.level == "ok"


def test_volumes(tmp_path: Path) -> None:
    volumes = [np.stack([np.roll(m, s, 0) for s in range(5)]) for m in make_truth()]
    diagnosis = diagnose(write_folder(tmp_path / "p", volumes), write_folder(tmp_path / "m", volumes))
    assert diagnosis.verdict.level == "ok"
    assert diagnosis.statistics["shapes"][0]["shape"] == [5, 48, 48]
    assert diagnosis.examples[0].pred.shape == (48, 48)


def test_part_of_the_masks_is_enough(tmp_path: Path) -> None:
    truth = make_truth()
    predictions = write_folder(tmp_path / "p", truth)
    masks = write_folder(tmp_path / "m", truth[:2])
    diagnosis = diagnose(predictions, masks)
    assert any("2 of 6 predictions have a mask" in note for note in diagnosis.notes)
    assert diagnosis.statistics["scores"]["images"] == diagnosis.statistics["foreground"]["true"]["images"] == 2


@pytest.mark.parametrize("name", ["masks", "labels", "Instances"])
def test_a_data_folder_is_taken_for_its_masks(name: str, tmp_path: Path) -> None:
    truth = make_truth()
    write_folder(tmp_path / "data" / "images", [255 - m for m in truth])
    write_folder(tmp_path / "data" / name, truth)
    diagnosis = diagnose(write_folder(tmp_path / "p", truth), tmp_path / "data")
    assert diagnosis.statistics["scores"]["f1"] == 1.0


@pytest.mark.parametrize("count", around(SAMPLE))
@pytest.mark.parametrize("kind", ["numbers of objects", "gray steps"])
def test_true_masks_of_other_kinds_are_read_as_such(kind: str, count: int, tmp_path: Path) -> None:
    """Each truth is that of another number of discs; a few of the masks show what all of them are."""
    rng = np.random.default_rng(count)
    fields = [np.kron(rng.random((6, 6)) < 0.4, np.pad(np.ones((6, 6), int), 1)) for _ in range(count)]
    if kind == "gray steps":
        masks = [np.clip(cv2.GaussianBlur(f * 255.0, (0, 0), 0.6), 0, 255).round().astype(np.uint8) for f in fields]
        pred = [(mask > mask.max() / 2).astype(np.uint8) for mask in masks]
    else:
        masks = [ndimage.label(f)[0].astype(np.uint16) for f in fields]
        pred = [f.astype(np.uint8) for f in fields]
    diagnosis = diagnose(write_folder(tmp_path / "p", pred), write_folder(tmp_path / "m", masks))
    assert diagnosis.statistics["scores"]["f1"] == 1.0
    assert any(kind in note for note in diagnosis.notes)


def test_time_is_limited(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", make_truth(30))
    elapsed = [0.0]

    def track(items: Iterable[Any], _: int) -> Iterator[Any]:
        for item in items:
            yield item
            elapsed[0] += 1.0

    clock = Clock(15, now=lambda: elapsed[0])
    diagnosis = diagnose_predictions(PredictionsRequest(folder), clock=clock, track=lambda _: track)
    assert diagnosis.statistics["looked_at"]["new"] == {"used": 15, "of": 30}


def test_unusable_folders_are_named(tmp_path: Path) -> None:
    truth = make_truth()
    predictions = write_folder(tmp_path / "p", truth)
    with pytest.raises(DataError, match=r"no folder .*missing"):
        diagnose(tmp_path / "missing")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        diagnose(tmp_path / "none")
    with pytest.raises(DataError, match=r"no folder .*missing"):
        diagnose(predictions, tmp_path / "missing")
    with pytest.raises(DataError, match="holds no mask"):
        diagnose(predictions, tmp_path / "none")
    with pytest.raises(DataError, match="p holds the predictions: give the folder of the true masks"):
        diagnose(predictions, tmp_path / "none" / ".." / "p")
    with pytest.raises(DataError, match=r"none of the 6 masks .* first prediction is 00.png, the first mask 00_gt.png"):
        diagnose(predictions, write_folder(tmp_path / "other", truth, suffix="_gt"))
    with pytest.raises(DataError, match=r"p/\d+.png: the prediction is 48 x 48, .*narrow.* 48 x 40"):
        diagnose(predictions, write_folder(tmp_path / "narrow", [m[:, :40] for m in truth]), seed=1)


def test_values_that_are_no_predictions_are_refused(tmp_path: Path) -> None:
    logits = [np.linspace(-3, 7, 2304, dtype=np.float32).reshape(48, 48)]
    with pytest.raises(DataError, match="not probabilities"):
        diagnose(write_folder(tmp_path / "logits", logits))
    (tmp_path / "colors").mkdir()
    color = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "colors" / "a.png"), color)
    with pytest.raises(DataError, match="one channel, this file has 3"):
        diagnose(tmp_path / "colors")


def test_predictions_and_masks_are_compared_where_they_lie(tmp_path: Path) -> None:
    masks = [np.zeros((6, 20, 24), np.uint8) for _ in range(3)]
    straight, flipped = np.diag([1.0, 1, 2, 1]), np.diag([-1.0, -1, 2, 1])
    flipped[:2, 3] = 23, 19
    for n, mask in enumerate(masks):
        mask[1:4, 2:9, 3 + n : 12] = 1
        for folder, array, affine in (
            ("p", mask.T, straight),
            ("m", mask.T[::-1, ::-1], flipped),
            ("far", mask.T, np.diag([1.0, 1, 3, 1])),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / folder / f"c{n}.nii.gz")
    assert diagnose(tmp_path / "p", tmp_path / "m").statistics["scores"]["f1"] == 1
    with pytest.raises(DataError, match="different grids"):
        diagnose(tmp_path / "p", tmp_path / "far")


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [((8, 9, 10), np.diag([1.0, 1, 3, 1]), "different grids"), ((8, 9, 11), np.eye(4), "They must have the same size")],
    ids=["grid", "size"],
)
@pytest.mark.parametrize("names", [("c", "c_prob"), ("c_prob1", "c_prob2")])
def test_files_of_one_prediction_lie_on_each_other(
    tmp_path: Path, shape: tuple[int, ...], affine: np.ndarray, said: str, names: tuple[str, str]
) -> None:
    half = np.full((8, 9, 10), 0.5, np.float32)
    first = np.ones(half.shape, np.uint8) if names[0] == "c" else half
    nibabel.save(nibabel.Nifti1Image(first, np.eye(4)), tmp_path / f"{names[0]}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(half, np.eye(4)), tmp_path / f"{names[1]}.nii.gz")
    diagnose(tmp_path)
    nibabel.save(nibabel.Nifti1Image(np.full(shape, 0.5, np.float32), affine), tmp_path / f"{names[1]}.nii.gz")
    with pytest.raises(DataError, match=said):
        diagnose(tmp_path)
